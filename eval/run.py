"""`diffseg-eval`: the door. Hydra composes a configuration; here it becomes an `Experiment`, and errors a sentence.

diffseg-eval                                       the embedded model on generated scenes
diffseg-eval experiment=coco dataset.root=DIR      the paper's COCO-Stuff-27
diffseg-eval -m segmenters.diffseg.threshold=0.4,0.6,0.8
diffseg-eval 'stages=[score,report]' labels=DIR dataset=coco_stuff27
diffseg-eval list · diffseg-eval compare RUN_A RUN_B · diffseg-eval gallery RUN · diffseg-eval leaderboard
diffseg-eval paper                                 all of the paper's experiments, and whether they reproduce

The only module that knows Hydra.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import lru_cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from rich.console import Console

import diffseg
from diffseg.attention import Look
from diffseg.backbones.base import Backbone, recommended
from diffseg.datasets.base import Dataset
from diffseg.errors import UserError, did_you_mean, printable
from diffseg.eval import paper
from diffseg.eval.check import read_reference
from diffseg.eval.cluster import Cluster
from diffseg.eval.evaluation import Experiment, MovedError, Part, dataset_line, evaluate
from diffseg.eval.progress import say
from diffseg.eval.protocols import Protocol
from diffseg.eval.runs import Masks, Run
from diffseg.eval.schema import ClusterOptions, LookOptions, check_arguments, check_options, takes
from diffseg.eval.sharing import cores, gpu_of, limit_threads
from diffseg.eval.show import compare, gallery, leaderboard
from diffseg.eval.show.published import published_rows
from diffseg.eval.show.sweep import write_sweep
from diffseg.eval.show.tables import list_command, markdown, sets_tables, sweep_failures, sweep_rows, sweep_table
from diffseg.eval.show.tracker import Tracker
from diffseg.eval.vary import varied
from diffseg.files import is_file_name, write
from diffseg.layers import select
from diffseg.methods.base import Oracle, Segmenter
from diffseg.start import uncollected

CONFIG = "pkg://diffseg.conf"
_OF_CLUSTER = ("address", "gpus", "cpus", "chunk", "readers", "retries", "timeout_s")
_COMMANDS = ("compare", "gallery", "leaderboard", "list", "paper")
_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")  # options

OmegaConf.register_new_resolver(
    "recommended", lambda name, key, default: (recommended(name) if name else {}).get(key, default), replace=True
)
OmegaConf.register_new_resolver("cores", lambda most: min(most, _cores()), replace=True)  # ${cores:8}
OmegaConf.register_new_resolver("explained", lambda: _explained(), replace=True)  # ${explained:}, for --help
logging.getLogger("hydra.utils").disabled = True  # of a class that is not there, it logs the error that is told here


# --- configuration -> objects -----------------------------------------------------------------------------------------


def experiment_of(config: dict[str, Any], choices: Mapping[str, str], command: str = "") -> Experiment:
    """The experiment that a resolved configuration (see conf/config.yaml) describes.

    Args:
        choices: names of the chosen "dataset" and "model". command: of the shell, that it was composed by.

    Raises:
        UserError, OSError: one sentence that says what is wrong and what to do.
    """
    check_options(config)
    check_options(config["ray"], ClusterOptions, "ray.")
    on_ray = config["workers"] == "ray"
    if config["labels"] and not Path(config["labels"]).is_dir():
        raise UserError(f"there is no folder {config['labels']} of label maps (labels=DIR)")
    known = sorted({row["dataset"] for row in published_rows()})
    if config["published"] not in (None, *known):
        raise UserError(f"published must be one of {', '.join(known)}, or null; got {config['published']!r}")
    if "check" in config["stages"] and not config["reference"]:
        raise UserError("the stage check needs reference=NAME or a file")
    model = None if config["labels"] else _model(config["model"], choices["model"], config["dtype"])
    segmenters, origins = segmenters_of(config, partial(_layers_of, model, "cpu" if on_ray else config["device"]))
    config = {**config, "segmenters": segmenters}
    for group in ("segmenters", "protocols"):
        for name in config[group]:
            if not is_file_name(name):
                raise UserError(f"{group}: {name!r} cannot be the name of a folder: choose a short one without slashes")
    return Experiment(
        dataset=_dataset(config["dataset"], choices["dataset"]),
        segmenters={name: segmenter_of(settings, name) for name, settings in config["segmenters"].items()},
        protocols={
            name: part(settings, name, f"protocols.{name}", Protocol) for name, settings in config["protocols"].items()
        },
        origins=origins,
        model=model,
        masks=Masks(Path(config["labels"]), config["labels_suffix"]) if config["labels"] else None,
        tracker=make(config["tracker"], "tracker", Tracker),
        look=Look(config["timestep"], config["noise"], layers=_frozen(config.get("layers"))),
        prompts=config["prompts"],
        dtype=config["dtype"],
        stages=config["stages"],
        runs=Path(config["runs"]),
        folder=Path(config["run"]) if config["run"] else None,
        device=config["device"],
        batch_size=config["batch_size"],
        workers=min(8, _cores()) if on_ray else config["workers"],
        streams=config["streams"],
        cluster=Cluster(**{key: config["ray"][key] for key in _OF_CLUSTER}) if on_ray else None,
        workers_write=config["ray"]["write"] == "workers",
        shard=config["shard"],
        skip_errors=config["on_error"] == "skip",
        score_size=config["score_size"],
        reference=read_reference(config["reference"]) if "check" in config["stages"] else None,
        published=config["published"],
        paper_threshold=config["paper_threshold"],
        record=config,
        command=command,
    )


def part(settings: Any, name: str, node: str, *kinds: type) -> Part:
    """The object that a node of the configuration describes, with what describes it."""
    return Part(make(settings, node, *kinds), name, settings, modules_of(settings))


def segmenters_of(
    config: Mapping[str, Any], layers: Callable[[], Sequence[str]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of each segmenter by name, with those that `vary` makes, and which each of these was made from.

    layers: gives the names of the model's self-attention layers; asked where each of them is to be tried.
    """

    def spelt_out(vary: Mapping[str, Any]) -> dict[str, Any]:
        """With lists in place of `layers: each`: all that take part together (null), then each alone."""
        lists: dict[str, Any] = {}
        for key, values in vary.items():
            if key == "layers" and values == "each":
                known = layers()
                chosen = select(_frozen(config.get("layers")), known)
                values = [None, *([name] for name in known if name in chosen)]
            lists[key] = spelt_out(values) if isinstance(values, dict) else values
        return lists

    return varied(config["segmenters"], spelt_out(config["vary"] or {}), _look_settings)


def _layers_of(model: Part | None, device: str) -> Sequence[str]:
    """The names of the model's self-attention layers; it is loaded for that, once for this and for prediction."""
    if model is None:
        raise UserError("vary.layers: each means each layer of a model, and there is none where labels=DIR is given")
    return model.made(device).self_attention()


def segmenter_of(settings: Any, name: str) -> Part:
    """The segmenter that a node of the configuration describes.

    Settings that its class does not take itself but a `Look` does (timestep, noise, size, layers) say how it looks.
    """
    return Part(_method_of(settings, f"segmenters.{name}"), name, settings, modules_of(settings))


def _method_of(settings: Any, node: str) -> Segmenter | Oracle:
    """The method that a node describes, with the methods inside it that it stands on (`of`)."""
    if not isinstance(settings, dict):
        return make(settings, node, Segmenter, Oracle)
    of_look = _look_settings(settings, node)
    looking = {key: settings[key] for key in of_look if settings.get(key) is not None}
    check_options(looking, LookOptions, f"{node}.")
    inner = {key: _method_of(value, f"{node}.{key}") for key, value in settings.items() if _is_method(value)}
    own = {key: value for key, value in settings.items() if key not in of_look and key not in inner}
    try:
        made = make(own, node, Segmenter, Oracle, **inner)
    except UserError as error:  # of several methods with a threshold, say whose it is
        raise UserError(str(error) if str(error).startswith(node) else f"{node}: {error}") from error
    if looking:
        made.look = replace(made.look, **{key: _frozen(value) for key, value in looking.items()})
    return made


def _is_method(settings: Any) -> bool:
    """Whether a node of the configuration describes a method."""
    if not isinstance(settings, dict) or not isinstance(settings.get("_target_"), str):
        return False
    made_by = _imported(settings["_target_"], "_target_")
    return inspect.isclass(made_by) and issubclass(made_by, Segmenter | Oracle)


def _look_settings(settings: Mapping[str, Any], node: str) -> list[str]:
    """The settings of every segmenter that say how it looks, but for those that its class takes itself.

    A method that stands on another one looks as that does.
    """
    made_by = _imported(_check_target(settings, node), node)
    if getattr(made_by, "passes", None) not in (Segmenter.passes, Oracle.passes):
        return []
    return [key for key in LookOptions.model_fields if not takes(made_by, key)]


def _frozen(values: list[Any] | None) -> Any:
    return tuple(values) if isinstance(values, list) else values


def _dataset(settings: Any, name: str) -> Part:
    dataset = part(settings, name, "dataset", Dataset)
    if not getattr(dataset.made, "keys", None):
        raise UserError(f"dataset: {settings['_target_']} has no images: its constructor must set keys, and not to []")
    return dataset


def _model(settings: Any, choice: str, dtype: str | None) -> Part:
    """The model, which is loaded when it is needed."""
    _check_call(settings, "model", {"device": "auto", "dtype": None})
    load = partial(_load_model, json.dumps(settings), dtype=dtype)
    return Part(load, model_name(settings, choice), settings, modules_of(settings))


def make(settings: Any, node: str, *kinds: type, **arguments: Any) -> Any:
    """The object that a node of the configuration describes.

    Args:
        node: the node's name, for messages. kinds: what the object must be one of. arguments: more than the settings.

    Raises:
        UserError: its class is not there, of another kind, or does not take such arguments. What its constructor
            raises.
    """
    _check_call(settings, node, arguments)
    target = settings["_target_"]
    try:
        instance = instantiate(settings, _convert_="all", **arguments)
    except InstantiationException as error:
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):
            raise UserError(f"{node}: {target}: {_first_line(error)}") from error
        raise error.__cause__ from None  # the constructor's own error, with its traceback
    if kinds and not isinstance(instance, kinds):
        names = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        raise UserError(f"{node}: {target} gives a {type(instance).__name__}, which is no subclass of {names}")
    return instance


def _check_call(settings: Any, node: str, more: Mapping[str, Any]) -> None:
    """Refuses a class that is not there and settings that it does not take, before they look like its own error."""
    made_by = _imported(_check_target(settings, node), node)
    target = settings["_target_"]
    lacking = sorted(getattr(made_by, "__abstractmethods__", ()))
    if lacking:
        raise UserError(f"{node}: the class {target} must have {' and '.join(lacking)}, too")
    arguments = {key: value for key, value in {**settings, **more}.items() if not key.startswith("_")}
    check_arguments(made_by, arguments, node)


def _check_target(settings: Any, node: str) -> str:
    """The name of the class that a node of the configuration describes an object of."""
    target = settings.get("_target_") if isinstance(settings, dict) else None
    if not isinstance(target, str):
        raise UserError(f"{node} names no class: it needs _target_, as in {node}._target_=mypkg.Mine; got {settings!r}")
    if not all(word.isidentifier() for word in target.split(".")):
        raise UserError(f"{node}._target_ must be a class with its module, as in mypkg.Mine; got {target!r}")
    return target


def _imported(target: str, node: str) -> Any:
    """The class or function of this name. Importing somebody's module may raise anything; a bug in it must show."""
    try:
        return get_object(target)
    except (ImportError, ValueError) as error:  # Hydra's; its cause is what somebody's module raised, maybe a bug
        cause = error.__cause__ or error
        if not isinstance(cause, ModuleNotFoundError) and not _is_hydras(cause):
            raise cause from None
        module, _, name = target.rpartition(".")
        if module in sys.modules and getattr(cause, "name", None) in (name, target):
            near = did_you_mean(name, dir(sys.modules[module]))
            raise UserError(f"{node}: {sys.modules[module].__file__} has no {name}{near}") from error
        text = f"{node}: there is no {target} to import ({_first_line(cause)})"
        if isinstance(cause, ModuleNotFoundError) and cause.name == target.partition(".")[0]:
            here = f"in the current folder {Path.cwd()}, " if _is_on_path(Path.cwd()) else ""
            text += f": looked {here}on PYTHONPATH and among the installed packages of {sys.prefix}"
        raise UserError(text) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def modules_of(settings: Any) -> tuple[str, ...]:
    """The modules of all classes that a node of the configuration names, at any depth."""
    nodes = [settings]
    modules: dict[str, None] = {}
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.values()
            if isinstance(node.get("_target_"), str):
                made_by = get_object(node["_target_"])
                modules[made_by.__module__] = None
                if inspect.isclass(getattr(made_by, "__self__", None)):  # a class method may be a parent's
                    modules[made_by.__self__.__module__] = None
        elif isinstance(node, list):
            nodes += node
    return tuple(modules)


def model_name(settings: dict[str, Any], choice: str) -> str:
    """What results call the model: its id or folder; a control by its own name, never by the trained model's."""
    return settings.get("name", choice) if settings["_target_"].endswith(".from_pretrained") else choice


@lru_cache(maxsize=1)  # the jobs of a sweep share it
def _load_model(settings: str, device: str, dtype: str | None) -> Backbone:
    with uncollected():  # diffusers and transformers are imported here
        return make(json.loads(settings), "model", Backbone, device=device, dtype=dtype)


# --- Hydra ------------------------------------------------------------------------------------------------------------


class SweepTable(Callback):
    """Keeps each sweep job's result and ends the sweep with one table, on the terminal and in files, and one page."""

    failed: Sequence[str] = ()  # of this process's sweep: a sentence for each job that ended with an error
    jobs = 0  # of it
    sweep: DictConfig | None = None  # of this process

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keeps the sweep's configuration, for a table of what there is if a job is lost."""
        SweepTable.sweep = config

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Writes the job's result to the sweep's folder."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        result = {"overrides": list(job_return.overrides), **(job_return.return_value or {})}
        folder = Path(config.hydra.sweep.dir) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{int(config.hydra.job.num):05d}.json", json.dumps(result))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gathers the results."""
        folder = Path(config.hydra.sweep.dir)
        jobs = [json.loads(p.read_text()) for p in sorted((folder / "jobs").glob("*.json"))]
        rows = sweep_rows(jobs)
        SweepTable.failed, SweepTable.jobs = sweep_failures(rows), len(jobs)
        shown = sweep_table(rows)
        write(folder / "table.csv", rows.to_csv(index=False))
        sets = sets_tables(jobs)
        by_set = {f"sets-{protocol}": table for protocol, table in sets.items()}
        for name, table in {"table": shown, **by_set}.items():
            write(folder / f"{name}.md", markdown(pd.DataFrame(table.cells, columns=table.headings)))
            Console().print(table.for_terminal())
        say(", ".join(str(folder / name) for name in ("table.csv", "table.md", *(f"{name}.md" for name in by_set))))
        command = command_of(["-m", *config.hydra.overrides.task]) if jobs else ""
        say(f"sweep: {write_sweep(folder, jobs, sets, command)}")


@hydra.main(config_path=CONFIG, config_name="config", version_base="1.3")
def _job(config: DictConfig) -> dict[str, Any]:
    chosen = HydraConfig.get().runtime.choices
    names = {group: chosen.get(group) or group for group in ("dataset", "model")}
    folders = [source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "command-line"]
    command = command_of(HydraConfig.get().overrides.task, folders)
    if HydraConfig.get().mode == RunMode.RUN:
        with _told():
            if (launcher := chosen.get("hydra/launcher")) != "basic":
                raise UserError(f"hydra/launcher={launcher} starts the jobs of a sweep, so give it with -m")
            return evaluate(experiment_of(resolved(config), names, command))
    try:  # one bad setting does not end a sweep
        with _without_tables():
            return evaluate(experiment_of(_beside_others(resolved(config)), names, command))
    except (OmegaConfBaseException, UserError, OSError) as error:
        say(f"diffseg-eval: {error}")
        return {"error": str(error)}
    except RuntimeError as error:
        if not _is_lost_job(error):
            raise
        return {"error": f"{_first_line(error)} What is done is kept: the same command goes on"}


@contextmanager
def _without_tables() -> Iterator[None]:
    """Jobs side by side on one terminal print no tables of their own, which nothing could tell apart: the sweep's has
    them all."""
    if HydraConfig.get().runtime.choices.get("hydra/launcher") == "local":
        with redirect_stdout(StringIO()):
            yield
    else:
        yield


def _beside_others(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a sweep's job, which may have others at its side: its GPU; its threads are limited, too."""
    job = HydraConfig.get()
    if job.runtime.choices.get("hydra/launcher") == "basic" or settings["workers"] == "ray":
        return settings
    limit_threads(_cores())
    return {**settings, "device": gpu_of(settings["device"], job.job.num)}


def _cores() -> int:
    """Cores for this process; jobs of a sweep that joblib starts share them."""
    launcher = HydraConfig.get().launcher if HydraConfig.initialized() else {}
    return cores(launcher.get("n_jobs") or 1)


def _explained() -> str:
    """The settings of conf/config.yaml with what it says of each, for Hydra's template of --help."""
    text = (Path(__file__).parents[1] / "conf" / "config.yaml").read_text()
    return text[text.index("stages:") : text.index("hydra:\n")].replace("$", "$$").rstrip()


def _is_lost_job(error: BaseException) -> bool:
    """Whether SLURM has ended a job for good: for its time, its memory, its machine."""
    return type(error).__module__.startswith("submitit.") and type(error).__name__ == "UncompletedJobError"


def command_of(overrides: Sequence[str], folders: Sequence[str] = ()) -> str:
    """The command line that makes a run from nothing, whatever stages this call was for; see `hydras`.

    folders: of configurations that the user brought along.
    """
    added = [text.rpartition("=")[2] for text in overrides if text.startswith("+protocol@protocols.")]
    kept = [f"protocol=[{','.join(added)}]"] * bool(added)
    placed = ("stages=", "protocol=[]", "+protocol@protocols.", "shard=")
    kept += [text for text in overrides if not text.startswith(placed)]
    return shlex.join(["diffseg-eval", *kept, *(word for folder in folders for word in ("--config-dir", folder))])


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data.

    Raises:
        UserError: something that must be given is not.
    """
    if "protocol" in config:
        raise UserError(
            "a protocol that an experiment or a sweep chooses must say where it belongs: begin its file in "
            "conf/protocol with the line '# @package protocols.NAME'"
        )
    try:
        absent = sorted(OmegaConf.missing_keys(config))
        if absent:
            raise UserError(f"{absent[0]} must be given: {absent[0]}=...")
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except InterpolationKeyError as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}; was it deleted, or never chosen?") from None


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it: stops as Ctrl-C does."""


def _terminate(*_: Any) -> None:
    raise _TerminatedError


@contextmanager
def _told(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Turns the errors that a user can mend into one sentence and exit status 2 (1: metrics have moved)."""
    try:
        yield
    except KeyboardInterrupt as error:
        say("diffseg-eval: stopped; what is done is kept: run the same command again to go on")
        sys.exit(143 if isinstance(error, _TerminatedError) else 130)
    except MovedError as error:
        say(f"diffseg-eval: {error}")
        sys.exit(1)
    except UserWarning as error:  # of Hydra, which `main` makes an error
        path = re.search("path=(.*) is not available", str(error))
        place = path[1] if path else error
        say(f"diffseg-eval: hydra.searchpath: {place} is no folder, and no package with an __init__.py")
        sys.exit(2)
    except InstantiationException:  # a class that the configuration names failed: with its traceback
        raise
    except (HydraException, OmegaConfBaseException) as error:  # some of them are OSErrors, too
        say(f"diffseg-eval: {printable(hydra_sentence(error, arguments))}")
        sys.exit(2)
    except (UserError, OSError) as error:
        say(f"diffseg-eval: {error}")
        sys.exit(2)
    except ValueError as error:
        if not _is_hydras(error):
            raise
        say(f"diffseg-eval: {printable(_first_line(error))}")
        sys.exit(2)
    except RuntimeError as error:
        if str(error).startswith('Could not detect "srun"'):
            say("diffseg-eval: there is no SLURM on this machine (srun): hydra/launcher=local runs a sweep here")
            sys.exit(2)
        if not _is_lost_job(error) or SweepTable.sweep is None:
            raise
        SweepTable().on_multirun_end(SweepTable.sweep)
        say(
            f"diffseg-eval: {' '.join(str(error).splitlines()[:2])}; the sweep's other jobs go on: once they have "
            f"ended, the same command makes what is missing and gives the whole table"
        )
        sys.exit(2)


def _is_hydras(error: BaseException) -> bool:
    """Whether Hydra itself raised an error, as it does where its own options do not go together."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(hydra.__file__).parent)


def hydra_sentence(error: BaseException, arguments: Sequence[str]) -> str:
    """What the user needs of Hydra's error, with the nearest name that there is.

    arguments: of the command line, which say what names there are.
    """
    if isinstance(error, OverrideParseException):
        if re.fullmatch(r"[\w-]+", error.override):
            return (
                f"there is no command {error.override}{did_you_mean(error.override, _COMMANDS)}; settings are key=value"
            )
        return (
            f"{error.override}: cannot be read as key=value; lists are [1,2], mappings {{key:[1,2]}}, with every "
            f"bracket closed and the whole in single quotes for the shell"
        )
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", str(error)):
        key, values = ambiguous.groups()
        return f"{key}={values}: several values are a sweep, with -m; one list is '{key}=[{values}]'"
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("See https", "Set the"))]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group.startswith("model/"):  # a hub id, or a folder
            option = error.missing_cfg_file.removeprefix("model/")
            return f"model={option}: a hub id or a folder is given as model=pretrained model.name={option}"
        known = list(error.options or [name.rpartition("/")[2] for name in _groups() if name.startswith(f"{group}/")])
        return f"{group}={option}: {group} is one of {', '.join(known)}{did_you_mean(option, known)}"
    if isinstance(error, ConfigCompositionException):
        unknown = re.search(r"(?:override|delete|group|config\.) '([^']+)'", str(error))
        if unknown:
            key = unknown.group(1)
            if key == "segmenter":
                return (
                    "segmenter: a run may have several, so say which: +segmenter@segmenters.NAME=NAME adds one, "
                    "segmenter@segmenters.diffseg=NAME puts it in diffseg's place"
                )
            text = next((a for a in arguments if a.lstrip("+~").partition("=")[0].partition("@")[0] == key), key)
            return f"{text}: there is no setting {key}{did_you_mean(key, known_names(arguments))}"
    return " ".join(lines).removesuffix(".")


def known_names(arguments: Sequence[str]) -> list[str]:
    """The settings and groups that there are with the groups chosen on a command line, as far as they compose."""
    GlobalHydra.instance().clear()
    with initialize_config_module("diffseg.conf", version_base="1.3"):
        groups = list(dict.fromkeys(name.partition("/")[0] for name in _groups()))
        config = compose("config")
        chosen: list[str] = []
        for text in arguments:
            if text.lstrip("+").partition("=")[0].partition("@")[0] in groups:
                with suppress(HydraException, OmegaConfBaseException):
                    config = compose("config", [*chosen, text])
                    chosen.append(text)
    return [*_flat(config), *groups]


def _groups() -> list[str]:
    """GROUP/OPTION of every option of this project's own groups."""
    root = Path(diffseg.__file__).parent / "conf"
    return [p.relative_to(root).with_suffix("").as_posix() for p in sorted(root.glob("*/*.yaml"))]


def _flat(config: Any, prefix: str = "") -> list[str]:
    """All keys of a configuration, inner nodes too, with dots."""
    keys = []
    for key in config:
        name = f"{prefix}{key}"
        keys.append(name)
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            keys += _flat(child, f"{name}.")
    return keys


def composed(arguments: Sequence[str]) -> Experiment:
    """The experiment of a command line, which is not run.

    Raises:
        UserError, OSError: one sentence that says what is wrong and what to do.
    """
    overrides = hydras(arguments)
    try:
        with initialize_config_module("diffseg.conf", version_base="1.3"):
            chosen = compose("config", overrides, return_hydra_config=True).hydra.runtime.choices
            config = resolved(compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_sentence(error, arguments)) from None
    choices = {group: chosen.get(group) or group for group in ("dataset", "model")}
    return experiment_of(config, choices, command_of(overrides))


def dataset_of(run: Run, name: str, overrides: Sequence[str]) -> Dataset:
    """The data set that a run was made on, for its pictures; nothing that stands in the run's folder is executed.

    Its class is that of this installation's dataset=NAME; numbers and words of the run's settings are taken over, but
    for where the data lies: that is the user's to say.

    Args:
        name: of the data set, as the run's summary has it. overrides: dataset.root=DIR and such.

    Raises:
        UserError: there is no such data set, or it is not what the run was made on.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{run.folder} names no data set: {name!r}")
    try:
        with initialize_config_module("diffseg.conf", version_base="1.3"):
            node = compose("config", [f"dataset={name}", *overrides]).dataset
            settings = OmegaConf.to_container(node, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_sentence(error, overrides)) from None
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    stored = {key: value for key, value in run.identity["dataset"].items() if f"dataset.{key}" not in given}
    assert isinstance(settings, dict)
    settings |= {
        key: stored[key] for key in settings.keys() & stored.keys() if key != "_target_" and _plain(stored[key])
    }
    if "???" in settings.values():
        absent = next(str(key) for key, value in settings.items() if value == "???")
        raise UserError(f"say where the data set {name} is: dataset.{absent}=...")
    dataset = make({str(key): value for key, value in settings.items()}, "dataset", Dataset)
    if dataset.fingerprint() != run.identity["dataset"].get("fingerprint"):
        raise UserError(
            f"{dataset_line(name, dataset)}, is not the data that {run.folder} was made on: name it as for that run, "
            f"with dataset.root=DIR and such at the end of the command"
        )
    return dataset


def _plain(value: Any) -> bool:
    """Whether a setting is a number, a word, nothing, or a list of such."""
    if isinstance(value, list):
        return all(isinstance(item, str | int | float) for item in value)
    return value is None or isinstance(value, str | int | float)


def hydras(arguments: Sequence[str]) -> list[str]:
    """A command line as Hydra can read it.

    Hydra wants all overrides in a row; here they may stand on both sides of an option, as in `dataset.count=2
    --config-dir conf model=mine`. And Hydra lays the files of protocol=[a,b] on top of each other unless each begins
    with its package; here each becomes protocols.NAME, in this order.
    """
    options: list[str] = []
    overrides: list[str] = []
    for before, text in zip(["", *arguments], arguments, strict=False):
        is_override = not text.startswith("-") and ("=" in text or text[:1] in ("+", "~"))
        (overrides if is_override and before not in _WITH_VALUE else options).append(text)
    placed = []
    for text in overrides:
        chosen = re.fullmatch(r"protocol=(?:\[([\w, -]+)\]|(\w+))", text)
        names = [name.strip() for name in (chosen[1] or chosen[2]).split(",")] if chosen else []
        placed += ["protocol=[]", *(f"+protocol@protocols.{name}={name}" for name in names)] if chosen else [text]
    return [*options, *placed]


def _is_on_path(folder: Path) -> bool:
    return any(Path(entry).resolve() == folder.resolve() for entry in sys.path)


def main() -> None:
    """The command `diffseg-eval`, with `diffseg-eval compare`, `gallery`, `leaderboard`, `list` and `paper`."""
    arguments = sys.argv[1:]
    if not (sys.flags.safe_path or _is_on_path(Path.cwd())):
        sys.path.append(str(Path.cwd()))  # classes of the user's own; at the end, where they hide nothing
    if arguments[:1] == ["--version"]:
        print(f"diffseg-eval {diffseg.__version__}")
        return
    made = (
        lambda: compare.command(dataset_of),
        lambda: gallery.command(dataset_of),
        leaderboard.command,
        list_command,
        lambda: paper.command(composed),
    )
    commands = dict(zip(_COMMANDS, made, strict=True))
    signal.signal(signal.SIGTERM, _terminate)
    if arguments and arguments[0] in commands:
        with _told():
            commands[arguments[0]]()(arguments[1:], f"diffseg-eval {arguments[0]}", standalone_mode=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of ending the program: they are told here
    warnings.filterwarnings("error", ".* is not available", UserWarning, "hydra")  # a search path that leads nowhere
    sys.argv[1:] = hydras(arguments)
    with _told(arguments):
        _job()
    if SweepTable.failed:
        ratio = f"{len(SweepTable.failed)} of the sweep's {SweepTable.jobs} jobs"
        say("\n  ".join([f"diffseg-eval: {ratio} failed:", *SweepTable.failed]))
        sys.exit(2)


if __name__ == "__main__":
    from diffseg.eval.run import main as _main  # the module that Hydra's callback is a class of

    _main()
