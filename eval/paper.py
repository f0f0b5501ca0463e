"""`diffseg-eval paper`: all of the paper's experiments in a row, and one page that says whether they reproduce.

It begins with a plan: which runs, what of them is there, what is missing, and, measured on three images with the same
code, how long it takes and how much disk. Then each step is a run as the printed command makes it, in a process of its
own: one that fails, or is killed, takes no other with it. What to do again is decided by the runs themselves, so the
same command continues. The page is made by `diffseg.eval.show.paper`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from diffseg.backbones.base import EMBEDDED
from diffseg.backbones.loading import kind_of
from diffseg.datasets.base import DataError
from diffseg.datasets.scenes import Scenes
from diffseg.devices import resolve_device
from diffseg.errors import UserError
from diffseg.eval.evaluation import Experiment, MovedError, evaluate, open_folder, run_of
from diffseg.eval.predict import predict
from diffseg.eval.progress import say
from diffseg.eval.runs import Run, digest
from diffseg.eval.score import count_all, read_summary
from diffseg.eval.show.paper import Outcome, compared, gates, tables, verdict, write_page
from diffseg.eval.show.tables import Shown
from diffseg.eval.workers import leave_with_parent
from diffseg.files import check_writable, write

Compose = Callable[[Sequence[str]], Experiment]  # arguments of diffseg-eval -> what they mean

FOLDERS = {"coco_stuff27": "coco", "cityscapes": "cityscapes"}
STAND_IN_MODELS = ("mini", "mini_untrained")  # with these, scenes may stand in for data that is not there
TIMESTEPS = (1, 100, 200, 300, 500, 700, 900)
MEASURED = 3  # images that a step's costs are measured on
SCENES = {True: 64, False: 24}  # images where scenes stand in: of tables (what the gate is of), of all else
SCENES_ALONE = ["dataset=scenes"]
FIGURES = "figures"
_EXAMPLES = 8  # images that a report shows: what it takes on disk is these


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One run of the paper.

    about: what it gives. benchmark: the published data set that it is of, or stands for. arguments: of diffseg-eval.
    sizes: pixels a side at which it is scored; None: as predicted. is_table: published numbers stand beside it.
    """

    name: str
    about: str
    benchmark: str
    arguments: tuple[str, ...]
    sizes: tuple[int | None, ...] = (None,)
    is_table: bool = False

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each command; from the second on, the label maps are there."""
        return [[*self.arguments, *([f"score_size={size}"] if size else [])] for size in self.sizes]


def data_sets(
    model: str, coco: Path | None, cityscapes: Path | None, overrides: Sequence[str] = ()
) -> dict[str, list[str]]:
    """What says where each of the paper's data sets is: {benchmark: arguments}.

    With an embedded model those that are there; if none is, scenes stand in for the first. A folder that is named is
    meant: it must be there with any model.

    Args:
        model: model=NAME. coco, cityscapes: folders; None: those below the folder that data=FOLDER of the overrides
            names, or below data.
    """
    named = {"coco_stuff27": coco, "cityscapes": cityscapes}
    given = [text.removeprefix("data=") for text in overrides if text.startswith("data=")]
    below = Path(given[-1] if given else "data")  # of several settings the last counts, as with Hydra
    roots = {name: folder or below / FOLDERS[name] for name, folder in named.items()}
    if model in STAND_IN_MODELS:
        roots = {name: root for name, root in roots.items() if named[name] or root.is_dir()}
    if not roots:
        return {"coco_stuff27": SCENES_ALONE}
    return {name: [f"dataset={name}", f"dataset.root={root}"] for name, root in roots.items()}


def steps_of(
    model: str, data: Mapping[str, Sequence[str]], runs: Path, count: int | None = None, overrides: Sequence[str] = ()
) -> list[Step]:
    """The runs of the paper, its tables first. Baselines, ablations and names are those of the first data set.

    Methods and settings that can share a forward pass are one run: the baselines with DiffSeg; tau, R, M and N.

    Args:
        data: see `data_sets`. runs: where runs are kept. count: images of each data set; None: all. overrides: for
            every step.
    """

    def step(name: str, about: str, benchmark: str, *chosen: str, is_table: bool = False) -> Step:
        where = data[benchmark]
        images = SCENES[is_table] if count is None and where == SCENES_ALONE else count
        arguments = [*chosen, *where, f"model={model}", f"runs={runs}"]
        arguments += [f"dataset.count={images}"] if images else []
        return Step(name, about, benchmark, (*arguments, *overrides), (None, 320) if is_table else (None,), is_table)

    first, *others = data
    captions = "prompts=captions" if _has_captions(data[first]) else "prompts=classes"
    times = f"vary={{timestep:[{','.join(map(str, TIMESTEPS))}]}}"
    return [
        step(
            "scenes" if data[first] == SCENES_ALONE else first,
            "DiffSeg and the clustering baselines",
            first,
            "experiment=baselines",
            is_table=True,
        ),
        *(step(name, "DiffSeg", name, f"experiment={name}", is_table=True) for name in others),
        step("naming", "Semantic DiffSeg", first, "experiment=naming", captions),
        step("ablations", "tau, R, M, N and refinement, in one pass", first, "experiment=ablations"),
        step("timesteps", f"t, {len(TIMESTEPS)} passes an image", first, times),
    ]


def _has_captions(where: Sequence[str]) -> bool:
    """Whether a data set has captions, which the paper names segments by; else all classes are listed."""
    root = next((Path(text.removeprefix("dataset.root=")) for text in where if text.startswith("dataset.root=")), None)
    return root is None or (root / "annotations" / "captions_val2017.json").is_file()


def command_line(arguments: Sequence[str]) -> str:
    """A step's command, as a user types it."""
    return f"diffseg-eval {shlex.join(arguments)}"


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a step takes on this machine: seconds and bytes once, and for each image."""

    once_s: float
    image_s: float
    once_bytes: float
    image_bytes: float

    def seconds(self, images: int) -> float:
        """Of a step that has this many images left."""
        return self.once_s + self.image_s * images

    def size(self, images: int) -> float:
        """Bytes that it writes for this many images."""
        return self.once_bytes + self.image_bytes * images


@dataclass(frozen=True)
class Planned:
    """A step that can be done: what it means, where its run is, how many images lack, what it costs.

    left: images without label maps. scored: whether all its scores are on disk. cost: None where it was not measured.
    """

    step: Step
    experiment: Experiment
    run: Run
    left: int
    scored: bool
    cost: Cost | None = None

    @property
    def images(self) -> int:
        """All of them."""
        return len(self.experiment.dataset.made)

    @property
    def is_done(self) -> bool:
        """Whether nothing seems to be left; the run itself has the last word."""
        return not self.left and self.scored

    @property
    def seconds(self) -> float:
        """That it will take; 0 where that is not known."""
        return 0.0 if self.is_done or self.cost is None else self.cost.seconds(self.left)

    @property
    def size(self) -> float:
        """Bytes that it will write; 0 where that is not known."""
        return 0.0 if self.is_done or self.cost is None else self.cost.size(self.left)


def plan(compose: Compose, steps: Sequence[Step], model: Sequence[str]) -> tuple[list[Planned], dict[str, list[str]]]:
    """The steps that can be done, and what is missing for the others: {sentence: the steps that need it}.

    What is missing is what the data sets and models themselves say of it. Nothing is loaded or written.

    Args:
        model: arguments that say which, so that weights and data that are missing are told together.

    Raises:
        UserError: there is no such model.
    """
    can: list[Planned] = []
    missing: dict[str, list[str]] = {}
    part = compose(model).model
    weights = _wrong_with(part.settings) if part else ""
    if weights:
        missing[weights] = [step.name for step in steps]
    for step in steps:
        try:
            experiment = compose(step.arguments)
        except (UserError, OSError) as error:
            missing.setdefault(str(error), []).append(step.name)
            continue
        if not weights:
            run = run_of(experiment)
            left = len(run.missing(experiment.dataset.made.keys))
            scored = all(replace(run, score_size=size).summary.exists() for size in step.sizes)
            can.append(Planned(step, experiment, run, left, scored))
    return can, missing


def _wrong_with(model: Mapping[str, Any]) -> str:
    """What keeps a pretrained diffusion model from being loaded, as far as its index says; "" where nothing does."""
    if not model["_target_"].startswith(("diffseg.backbones.diffusion.", "diffseg.backbones.dit.")):
        return ""
    if not model["_target_"].endswith(".from_pretrained") or model["name"] in EMBEDDED:
        return ""
    try:
        say(f"paper: looking for the model {model['name']}")
        kind_of(model["name"], model.get("revision"))
    except (UserError, OSError) as error:
        return str(error)
    return ""


def measure(compose: Compose, step: Step, images: int, folder: Path) -> Cost:
    """What a step costs, from a run of it on a few images in a folder of its own.

    The first image does not count for the time of one: it warms up. On a GPU the others are fewer than a batch, and
    one device is measured where several share the work: the time of an image is then rather too long.

    Raises:
        UserError, OSError: what the step itself would say.
    """
    experiment = compose([*step.arguments, f"runs={folder}", f"dataset.count={images}"])
    dataset = experiment.dataset.made
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        start = time.monotonic()
        run = open_folder(experiment)
        methods = {name: part.made for name, part in experiment.segmenters.items()}
        assert experiment.model is not None
        load = partial(experiment.model.made, experiment.device)
        rest = (methods, load, experiment.look, experiment.batch_size, experiment.workers)
        _, warm_s = predict(run, dataset, dataset.keys[:1], *rest, prompts=experiment.prompts)
        done, taken_s = predict(run, dataset, dataset.keys, *rest, prompts=experiment.prompts)
        image_s = taken_s / done if done else warm_s
        once_s = time.monotonic() - start - taken_s - min(warm_s, image_s)

        for size in step.sizes:
            start = time.monotonic()
            count_all(dataset, run.segmenters, run.map, 0, size=size, own=True)
            count_s = (time.monotonic() - start) / images
            start = time.monotonic()
            evaluate(replace(experiment, stages=("score", "report"), score_size=size))
            once_s += time.monotonic() - start
            image_s += count_s / max(1, experiment.workers)
    sizes = {path: path.stat().st_size for path in run.folder.rglob("*") if path.is_file()}
    of_images = sum(size for path, size in sizes.items() if path.suffix in (".png", ".parquet"))
    once = (sum(sizes.values()) - of_images) * _EXAMPLES / images
    return Cost(once_s, image_s, once, of_images / images)


def measured(compose: Compose, planned: Sequence[Planned], memory: Path) -> tuple[list[Planned], dict[str, list[str]]]:
    """The steps with what they cost, and why others cannot be done even on three images, as `plan` says it.

    What was measured of the same run on the same device before is not measured again. memory: the file that keeps it.
    """
    known: dict[str, dict[str, float]] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(memory.read_bytes()))
    costs: list[Planned] = []
    problems: dict[str, list[str]] = {}
    for one in planned:
        key = f"{one.run.name} on {resolve_device(one.experiment.device)}"
        cost = None
        with suppress(KeyError, TypeError):
            cost = Cost(**known[key])
        if cost is None and not one.is_done:
            say(f"paper: measuring {one.step.name} on {min(MEASURED, one.images)} images")
            try:
                with tempfile.TemporaryDirectory(prefix="diffseg-paper-") as folder:
                    cost = apart(measure, compose, one.step, min(MEASURED, one.images), Path(folder))
            except UserError as error:
                problems.setdefault(str(error), []).append(one.step.name)
                continue
            known[key] = asdict(cost)
            write(memory, json.dumps(known, indent=1) + "\n")
        costs.append(replace(one, cost=cost))
    return costs, problems


def plan_table(planned: Sequence[Planned]) -> Shown:
    """The plan for people: what each step is, how far it is, how long it will take, how much it will write."""
    cells = []
    for one in planned:
        there = one.images - one.left
        cost = one.cost and not one.is_done
        cells.append(
            [
                one.step.name,
                one.step.about,
                f"{one.experiment.dataset.name}, {one.images:,}",
                "all" if one.is_done else f"{there:,}",
                f"{one.cost.image_s:.2f}" if cost and one.cost else "",
                "done" if one.is_done else duration(one.seconds) if cost else "not measured",
                "" if one.is_done else size_of(one.size) if cost else "not measured",
            ]
        )
    total, most = sum(one.seconds for one in planned), sum(one.size for one in planned)
    if any(one.cost for one in planned):
        cells.append(["all", "", "", "", "", duration(total), size_of(most)])
    headings = ["step", "what", "data, images", "there", "s an image", "time", "disk"]
    return Shown("the plan", headings, cells, f"measured on {MEASURED} images of each step, on this machine")


def duration(seconds: float) -> str:
    """Seconds for people: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size_of(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# --- in processes of their own ----------------------------------------------------------------------------------------

# From a server that has imported everything once, where there is such a thing.
_KINDS = multiprocessing.get_all_start_methods()
_PRELOADED = [
    "diffseg.eval.paper",
    "diffseg.methods.merging",
    "diffseg.methods.clustering",
    "diffseg.methods.naming",
    "diffseg.backbones.diffusion",
    "diffseg.eval.show.drawing",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
    "hydra.main",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
]
_PROCESSES: Any = multiprocessing.get_context("forkserver" if "forkserver" in _KINDS else "spawn")


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """work(*arguments) in a process of its own, which ends with this one.

    Raises:
        UserError: what it raised as UserError or OSError; or it ended otherwise, by an error that it shows, or killed.
    """
    if hasattr(_PROCESSES, "set_forkserver_preload"):
        _PROCESSES.set_forkserver_preload(_PRELOADED)
    receive, send = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_answer, args=(send, work, arguments))
    process.start()
    send.close()
    answer, error = None, None
    try:
        with suppress(EOFError):  # it has ended without an answer
            answer, error = receive.recv()
        process.join()
    finally:
        process.terminate()  # where this one is told to stop
    if error is not None:
        raise UserError(error)
    if process.exitcode:
        status = process.exitcode
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}, see above"
        raise UserError(f"its process {how}")
    return answer


def _answer(send: Connection, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Sends what work(*arguments) returns, or the sentence of what it raises."""
    leave_with_parent()
    try:
        send.send((work(*arguments), None))
    except (UserError, OSError) as error:
        send.send((None, str(error)))
    except KeyboardInterrupt:  # the one that started it says so
        sys.exit(130)


def run_step(compose: Compose, step: Step) -> None:
    """Does a step, as its commands would; its tables are for the page, so the terminal shows only how far it is."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        for arguments in step.commands:
            evaluate(compose(arguments))


# --- figures ----------------------------------------------------------------------------------------------------------


def figure_commands(experiment: Experiment, named: bool, out: Path) -> list[list[str]]:
    """Arguments of `python -m diffseg.eval.show.figures` for the figures of the method, on a data set's first images.

    [] where the model is not one that is loaded by its name.

    Args:
        experiment: of the first table. named: whether segments are named by captions. out: folder.
    """
    model, dataset = experiment.model, experiment.dataset.made
    if model is None or not model.settings["_target_"].endswith(".from_pretrained"):
        return []
    tau = experiment.segmenters["diffseg"].settings["threshold"]
    common = ["--model", model.settings["name"], "--timestep", str(experiment.look.timestep)]
    common += ["--device", experiment.device, "--size", str(dataset.size)]
    common += ["--threshold", str(tau)] if isinstance(tau, int | float) else []
    keys = dataset.keys[:4]
    photos = [f"scene:{int(key)}" if isinstance(dataset, Scenes) else str(dataset.file(key)) for key in keys]
    commands = [
        ["overview", photos[0], *common, "--out", str(out / "overview.png")],
        ["weights", photos[0], *common, "--out", str(out / "weights.png")],
    ]
    if named:
        words = {
            photo: [noun for noun, _ in dataset.words(key, "captions").nouns]
            for photo, key in zip(photos, keys, strict=True)
        }
        words = {photo: nouns for photo, nouns in words.items() if nouns}
        nouns = [text for each in words.values() for text in ("--nouns", ",".join(each))]
        if words:
            commands.append(["gallery", *words, *nouns, *common, "--out", str(out / "named.jpg")])
    return commands


def draw(commands: Sequence[Sequence[str]]) -> None:
    """Draws figures.

    Raises:
        UserError: one cannot be drawn.
    """
    from diffseg.eval.show.figures import app

    for arguments in commands:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            status = app(list(arguments), standalone_mode=False)
        if status:
            raise UserError(f"the figure {arguments[0]} cannot be drawn, see above")


def figures(planned: Sequence[Planned], out: Path) -> str:
    """Draws the figures of the method unless they are of the same runs already; what went wrong, or "".

    planned: the steps, the first of which says on what data.
    """
    folder, experiment = out / FIGURES, planned[0].experiment
    named = any(one.step.name == "naming" and one.experiment.prompts == "captions" for one in planned)
    try:
        commands = figure_commands(experiment, named, folder)
        made_of = digest([commands, *(one.run.name for one in planned)])
        record = folder / "made-of.txt"
        if record.is_file() and record.read_text() == made_of:
            return ""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for arguments in commands:
            say(f"paper: python -m diffseg.eval.show.figures {shlex.join(arguments)}")
        apart(draw, commands)
        write(record, made_of)
    except (UserError, OSError) as error:
        return str(error)
    return ""


# --- the command ------------------------------------------------------------------------------------------------------


def do_steps(compose: Compose, planned: Sequence[Planned]) -> list[Outcome]:
    """Does the steps in order and says after each how long the others will take; one that fails is passed over."""
    outcomes, spent, expected = [], 0.0, 0.0
    for number, one in enumerate(planned, start=1):
        say(f"\npaper: step {number} of {len(planned)}, {one.step.name}: {one.step.about}")
        for arguments in one.step.commands:
            say(f"  {command_line(arguments)}")
        start, wrong = time.monotonic(), ""
        try:
            apart(run_step, compose, one.step)
        except UserError as error:
            wrong = str(error)
            say(f"paper: {one.step.name} failed: {error}")
        taken_s = time.monotonic() - start
        if not wrong:
            spent, expected = spent + taken_s * bool(one.seconds), expected + one.seconds
        left_s = sum(later.seconds for later in planned[number:]) * (spent / expected if expected else 1)
        left = f"; about {duration(left_s)} left" if left_s else ""
        say(f"paper: {one.step.name} {'failed after' if wrong else 'took'} {duration(taken_s)}{left}")
        outcomes.append(outcome_of(one, wrong, taken_s))
    return outcomes


def outcome_of(one: Planned, wrong: str, taken_s: float | None) -> Outcome:
    """What a step has come to. wrong: why it failed. taken_s: seconds; None: it was not done in this call."""
    summaries = {}
    if not wrong:
        try:
            summaries = {size: read_summary(replace(one.run, score_size=size)) for size in one.step.sizes}
        except DataError as error:
            wrong = str(error)
    commands = [command_line(arguments) for arguments in one.step.commands]
    facts = (one.step.name, one.step.about, one.step.benchmark, one.step.is_table, commands)
    return Outcome(*facts, one.run, one.experiment.dataset.made, summaries, wrong, taken_s)


def _check_space(planned: Sequence[Planned], runs: Path) -> None:
    """Refuses to begin what the disk has no room for, as far as it was measured."""
    needed, free = sum(one.size for one in planned), shutil.disk_usage(runs).free
    if needed > free:
        raise UserError(
            f"the runs need about {size_of(needed)} and {size_of(free)} are free in {runs}: choose another with --runs"
        )


def listed(missing: Mapping[str, Sequence[str]]) -> str:
    """What is missing as a list, each with the steps that need it."""
    return "".join(f"\n  {problem} (for {', '.join(names)})" for problem, names in missing.items())


def command(compose: Compose) -> typer.Typer:
    """The command line. compose: arguments of diffseg-eval -> the experiment."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def run(
        overrides: Annotated[
            list[str] | None, typer.Argument(help="For every step: device=cuda, batch_size=16.", show_default=False)
        ] = None,
        model: Annotated[str, typer.Option(help="model=NAME; mini runs here and offline.")] = "sd14",
        coco: Annotated[
            Path | None, typer.Option(help="Folder of COCO-Stuff. (default: data/coco, or coco below data=FOLDER)")
        ] = None,
        cityscapes: Annotated[
            Path | None, typer.Option(help="Folder. (default: data/cityscapes, or cityscapes below data=FOLDER)")
        ] = None,
        count: Annotated[int | None, typer.Option(min=1, help="The first so many images. (default: all)")] = None,
        only_plan: Annotated[bool, typer.Option("--plan", help="Say what there is to do, and do nothing.")] = False,
        partial_: Annotated[
            bool, typer.Option("--partial", help="Do what can be done if something is missing.")
        ] = False,
        runs: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("results/runs"),
        out: Annotated[Path | None, typer.Option(help="Folder. (default: results/paper/MODEL)")] = None,
    ) -> None:
        """Runs all of the paper's experiments and says on one page whether they reproduce; a second call continues."""
        place = out or Path("results/paper") / (model if count is None else f"{model}-{count}")
        data = data_sets(model, coco, cityscapes, overrides or [])
        steps = steps_of(model, data, runs, count, overrides or [])
        weights = [f"model={model}", *(text for text in overrides or [] if text.lstrip("+").startswith("model."))]
        try:
            planned, missing = plan(compose, steps, weights)
            _reproduce(compose, planned, missing, place, runs, only_plan, partial_)
        except KeyboardInterrupt:
            say("diffseg-eval: stopped; what is done is kept: run the same command again to go on")
            raise typer.Exit(130) from None

    return app


def _reproduce(
    compose: Compose,
    planned: Sequence[Planned],
    missing: dict[str, list[str]],
    out: Path,
    runs: Path,
    only_plan: bool,
    part_of_it: bool,
) -> None:
    """Measures, does, draws and tells."""
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    if missing and (not planned or not (part_of_it or only_plan)):
        rest = " (--partial does the other steps)" if planned and not part_of_it else ""
        raise UserError(f"something is missing, so nothing was done{rest}:{listed(missing)}")

    # How long it takes; what is so short that measuring would take as long is not measured.
    for folder in (out, runs):
        check_writable(folder, "choose another with --runs and --out")
    if only_plan or any(one.images > MEASURED for one in planned):
        planned, problems = measured(compose, planned, out / "costs.json")
        missing |= problems
    console.print(plan_table(planned).for_terminal())
    if missing and not (part_of_it and planned and not only_plan):
        rest = " (--partial does the other steps)" if planned and not part_of_it else ""
        raise UserError(f"something is missing, so nothing was done{rest}:{listed(missing)}")
    _check_space(planned, runs)
    if only_plan:
        return

    # The steps, the figures, the page.
    if missing:
        say(f"paper: left out, because something is missing:{listed(missing)}")
    outcomes = do_steps(compose, planned)
    failed = {one.name: one.wrong for one in outcomes if one.wrong}
    wrong = figures(planned, out)
    failed |= {FIGURES: wrong} if wrong else {}
    if not any(one.summaries for one in outcomes):
        raise UserError(f"every step failed: {_together(failed)}")
    page = write_page(out, outcomes, missing, failed)

    # The answer.
    for table in tables(outcomes):
        console.print(table.for_terminal())
    for number in compared(outcomes):
        console.print(number.sentence, highlight=False, soft_wrap=True)
    for gate in gates(outcomes):
        console.print(gate.sentence, highlight=False, soft_wrap=True)
    console.print(verdict(outcomes), highlight=False, soft_wrap=True)
    typer.echo(page)
    if failed:
        raise UserError(f"{len(failed)} of the steps failed, the others are on the page: {_together(failed)}")
    moved = [gate.name for gate in gates(outcomes) if not gate.holds]
    if moved:
        raise MovedError(f"the gate does not hold: {', '.join(moved)}")


def _together(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in failed.items())
