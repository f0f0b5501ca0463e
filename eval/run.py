"""`diffseg-eval`: data sets in, label maps on disk, numbers out. The only module that knows Hydra.

diffseg-eval                                       the embedded model on generated scenes
diffseg-eval experiment=coco dataset.root=DIR      the paper's COCO-Stuff-27
diffseg-eval -m segmenters.diffseg.threshold=0.4,0.6,0.8
diffseg-eval 'stages=[score,report]' labels=DIR dataset=coco_stuff27
"""

from __future__ import annotations

import difflib
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from diffseg.attention import EMBEDDED, DiffusionModel, resolve_device, resolve_dtype
from diffseg.datasets.base import Dataset
from diffseg.eval import compare
from diffseg.eval.check import check, read_reference
from diffseg.eval.predict import leave_with_parent, missing, predict, shard_of
from diffseg.eval.report import write_report
from diffseg.eval.runs import Run, code_fingerprint, digest, model_fingerprint, open_run
from diffseg.eval.score import MapPath, read_summary, score, summarise_images, write_images
from diffseg.eval.segmenters import Oracle
from diffseg.eval.tables import markdown
from diffseg.eval.tracker import Tracker
from diffseg.files import write

STAGES = ("predict", "score", "report", "check")


class MovedError(ValueError):
    """Metrics that are not what the reference expects."""


def _recommended(name: str, key: str, default: Any) -> Any:
    """What a local model's folder recommends (diffseg.json), else the default: ${recommended:NAME,KEY,DEFAULT}."""
    file = Path(EMBEDDED.get(name, name)) / "diffseg.json"
    return json.loads(file.read_text()).get(key, default) if file.is_file() else default


OmegaConf.register_new_resolver("recommended", _recommended, replace=True)
OmegaConf.register_new_resolver("cores", lambda most: min(most, os.cpu_count() or 1), replace=True)  # ${cores:8}


# --- one run ----------------------------------------------------------------------------------------------------------


def evaluate(config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """One run: the stages asked for, each only as far as it is not done yet.

    Args:
        config: the resolved configuration, see conf/config.yaml. names: of the chosen "dataset" and "model".

    Returns:
        The run's summary (what summary.json holds), or {} where nothing was scored yet.

    Raises:
        ValueError, OSError: one sentence that says what is wrong and what to do.
    """
    config = {**config, "segmenters": varied(config["segmenters"], config["vary"])}
    _check_options(config)
    devices = devices_of(config["device"])
    if len(devices) > 1:
        for device in devices:
            resolve_device(device)
    config["device"] = devices[0]
    stages, skip = config["stages"], config["on_error"] == "skip"
    reference = read_reference(config["reference"]) if "check" in stages else None
    dataset: Dataset = make(config["dataset"])
    segmenters = {name: make(settings) for name, settings in config["segmenters"].items()}
    tracker: Tracker = make(config["tracker"])
    keys = shard_of(dataset.keys, config["shard"])
    predicting = "predict" in stages and not config["labels"]
    run = _open(config, names, dataset, predicting)
    say(f"{dataset_line(names['dataset'], dataset)} -> {run.folder}")
    if predicting and len(devices) > 1 and missing(run, keys):
        _predict_side_by_side(config, names, devices)
    if predicting:
        _predict(config, run, dataset, segmenters, keys, skip)
    summary: dict[str, Any] = {}
    if "score" in stages and _can_score(config, run, dataset):
        summary = _score(config, names, run, dataset, skip)
        tracker.track(run, config, summary, dataset)
    if "report" in stages and (summary or run.summary.exists()):
        summary = summary or read_summary(run)
        Console().print(result_table(summary))
        say(f"report: {write_report(run, dataset, summary, config)}")
    if reference is not None:
        summary = summary or read_summary(run)
        _check(summary, reference)
    return {**summary, "folder": str(run.folder)} if summary else {}


def make(settings: dict[str, Any], **arguments: Any) -> Any:
    """The object that a node of the configuration describes.

    Raises:
        ValueError, OSError: what its constructor raises.
    """
    try:
        return instantiate(settings, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise ValueError(f"{settings.get('_target_')}: {error.__cause__ or error}") from error


def varied(segmenters: dict[str, Any], vary: dict[str, list[Any]] | None) -> dict[str, Any]:
    """The segmenters, with "diffseg" replaced by one for each combination of the values to try.

    All of them share one forward pass. {"threshold": [0.7, 0.9]} gives "threshold=0.7" and "threshold=0.9".

    Raises:
        ValueError: there is no segmenter diffseg, a setting it does not have, or no list of values.
    """
    if not vary:
        return segmenters
    base = segmenters.get("diffseg")
    if base is None:
        raise ValueError("vary= tries settings of the segmenter diffseg, and there is none of that name")
    for key, values in vary.items():
        if key not in base:
            raise ValueError(f"vary.{key}: the segmenter diffseg has no {key}{_nearest(key, list(base))}")
        if not isinstance(values, list) or not values:
            raise ValueError(f"vary.{key} must be a list of values to try, got {values!r}")
    combinations = (dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values()))
    made = {",".join(f"{k}={value_name(v)}" for k, v in chosen.items()): {**base, **chosen} for chosen in combinations}
    return made | {name: settings for name, settings in segmenters.items() if name != "diffseg"}


def value_name(value: Any) -> str:
    """A setting's value as part of a name: 0.7, 64-32-16-8, none."""
    return "-".join(map(value_name, value)) if isinstance(value, list) else "none" if value is None else f"{value}"


def say(text: str) -> None:
    """Tells the user, without disturbing what is printed as result."""
    print(text, file=sys.stderr, flush=True)


def dataset_line(name: str, dataset: Dataset) -> str:
    """What is evaluated: "scenes, 64 images", with the note on subsets."""
    return f"{name}, {len(dataset)} images" + (f" ({dataset.note})" if dataset.note else "")


def _check_options(config: dict[str, Any]) -> None:
    unknown = [s for s in config["stages"] if s not in STAGES]
    if unknown or not config["stages"]:
        raise ValueError(f"stages must be some of {', '.join(STAGES)}; got {config['stages']}")
    if config["on_error"] not in ("stop", "skip"):
        raise ValueError(f"on_error must be stop or skip, got {config['on_error']!r}")
    if config["score_size"] is not None and (type(config["score_size"]) is not int or config["score_size"] < 1):
        raise ValueError(f"score_size must be a whole number of pixels, got {config['score_size']!r}")
    for name, least in (("batch_size", 1), ("workers", 0), ("resamples", 1)):
        if type(config[name]) is not int or config[name] < least:
            raise ValueError(f"{name} must be a whole number, at least {least}; got {config[name]!r}")
    if not config["labels"] and (type(config["timestep"]) is not int or not 0 <= config["timestep"] <= 999):
        raise ValueError(f"timestep must be a whole number, 0 to 999; got {config['timestep']!r}")
    if not config["segmenters"]:
        raise ValueError("there is no segmenter: add one, such as segmenter@segmenters.diffseg=diffseg")
    if "check" in config["stages"] and not config["reference"]:
        raise ValueError("the stage check needs reference=NAME or a file")
    if config["labels"] and not Path(config["labels"]).is_dir():
        raise ValueError(f"there is no folder {config['labels']} of label maps (labels=DIR)")


def _open(config: dict[str, Any], names: dict[str, str], dataset: Dataset, predicting: bool) -> Run:
    """The run's folder; its name begins with what it is and ends with the hash of what changes its labels."""
    identity = {"dataset": {**config["dataset"], "fingerprint": dataset.fingerprint()}, "code": code_fingerprint()}
    if config["labels"]:
        masks = {"folder": str(Path(config["labels"]).resolve()), "suffix": config["labels_suffix"]}
        identity |= {"segmenters": {"labels": masks}}
        prefix = f"{names['dataset']}-labels"
    else:
        weights = model_fingerprint(config["model"]["name"])
        identity |= {
            "model": {**config["model"], "weights": weights},
            "timestep": config["timestep"],
            "dtype": config["dtype"],
            "segmenters": config["segmenters"],
        }
        prefix = f"{names['dataset']}-{names['model']}"
    identity = json.loads(json.dumps(identity))
    folder = Path(config["run"] or Path(config["runs"]) / f"{prefix}-{digest(identity)[:8]}")
    made_with = None
    if predicting:
        place = resolve_device(config["device"])
        dtype = resolve_dtype(config["dtype"], place)
        made_with = {"device": place.type, "dtype": str(dtype).removeprefix("torch.")}
    create = predicting or bool(config["labels"])
    return open_run(folder, identity, OmegaConf.to_yaml(config), made_with, create, config["score_size"])


def _predict(
    config: dict[str, Any], run: Run, dataset: Dataset, segmenters: dict[str, Any], keys: Sequence[str], skip: bool
) -> None:
    def load() -> DiffusionModel:
        return _load_model(json.dumps(config["model"]), config["device"], config["dtype"])

    if any(isinstance(s, Oracle) for s in segmenters.values()) and not dataset.labelled:
        raise ValueError("a segmenter that is told the truth needs labels, and this data set has none")
    there = len(keys) - len(missing(run, keys))
    if there and there < len(keys):
        say(f"continuing: {there} of {len(keys)} label maps are there")
    done, taken_s = predict(
        run, dataset, keys, segmenters, load, config["timestep"], config["batch_size"], config["workers"], skip
    )
    left_out = len(missing(run, keys))
    if done:
        say(f"predict: {done} images segmented in {taken_s:.1f} s ({done / max(taken_s, 1e-9):.2f} images/s)")
    elif not left_out:
        say("predict: nothing to do, every label map is there")
    if left_out:
        say(f"predict: {left_out} images left out, see {run.folder / 'errors'}")
    if not missing(run, dataset.keys):
        run.remove_partials()


def devices_of(device: str | list[str]) -> list[str]:
    """The devices that device= means: one, a list of them, or all the CUDA devices there are ("all").

    Raises:
        ValueError: an empty list, or all of none.
    """
    if device == "all":
        device = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if not device:
            raise ValueError("device=all means all CUDA devices, and none is there: use cpu or auto")
    devices = [device] if isinstance(device, str) else device
    if not devices or not all(isinstance(one, str) for one in devices):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N, all, or a list of such, got {device!r}")
    return devices


def _predict_side_by_side(config: dict[str, Any], names: dict[str, str], devices: Sequence[str]) -> None:
    """The shard in parts, one process for each device; each writes its maps into the same run.

    Raises:
        ValueError: a process did not do its part; what the others have done is kept.
    """
    first, step = config["shard"]
    share = max(1, config["workers"] // len(devices)) if config["workers"] else 0
    spawn = multiprocessing.get_context("spawn")
    processes = []
    for i, device in enumerate(devices):
        part = {"device": device, "shard": [first + step * i, step * len(devices)], "workers": share}
        mine = {**config, **part, "vary": None, "stages": ["predict"]}
        processes.append(spawn.Process(target=_part, args=(mine, names, len(devices)), name=device))
    say(f"predict: {len(devices)} processes, on {', '.join(devices)}")
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.name for process in processes if process.exitcode]
    if failed:
        raise ValueError(
            f"prediction failed on {', '.join(failed)}, see above; what is done is kept: run the same command again"
        )


def _part(config: dict[str, Any], names: dict[str, str], processes: int) -> None:
    """One device's part, in a process of its own."""
    leave_with_parent()
    os.environ["TTY_COMPATIBLE"] = "0"  # several progress bars would overwrite each other: lines instead
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    with _one_sentence():
        evaluate(config, names)


@lru_cache(maxsize=1)  # the jobs of a sweep share it
def _load_model(settings: str, device: str, dtype: str | None) -> DiffusionModel:
    return make(json.loads(settings), device=device, dtype=dtype)


def _can_score(config: dict[str, Any], run: Run, dataset: Dataset) -> bool:
    """Whether scoring makes sense now; says why not."""
    if not dataset.labelled:
        say("score: this data set has no labels, so there is nothing to score")
        return False
    if config["labels"]:
        return True
    lacking = [k for k in missing(run, dataset.keys) if not run.error(k).exists()]
    if lacking and config["shard"][1] > 1 and "predict" in config["stages"]:
        say(f"score: waits for the other shards, which lack {len(lacking)} images; then: stages=[score,report]")
        return False
    return True


def _score(config: dict[str, Any], names: dict[str, str], run: Run, dataset: Dataset, skip: bool) -> dict[str, Any]:
    """Scores unless that is done, writes images.parquet and summary.json, returns the summary."""
    scored_with = digest({"run": run.identity, "resamples": config["resamples"], "skip": skip})
    if run.summary.exists() and not config["labels"] and read_summary(run).get("scored_with") == scored_with:
        say(f"score: nothing to do, {run.summary.name} is there")
        return read_summary(run)
    path: MapPath = run.map
    left_out = run.skipped()
    if config["labels"]:
        root, suffix = Path(config["labels"]), config["labels_suffix"]
        _refuse_extra(root, suffix, dataset, skip)
        path, left_out = (lambda _, key: root / f"{key}{suffix}"), {}
    images, skipped = score(dataset, run.segmenters, path, config["workers"], skip, left_out, config["score_size"])
    write_images(run, images)
    summary = {
        "run": run.name,
        "scored_with": scored_with,
        "dataset": {"name": names["dataset"], "note": dataset.note, "classes": list(dataset.classes)},
        "model": None if config["labels"] else model_name(config["model"], names["model"]),
        "timestep": None if config["labels"] else config["timestep"],
        "size": config["score_size"] or dataset.size,
        "images": len(dataset) - len(skipped),
        "skipped": skipped,
        "segmenters": {
            name: {"settings": run.identity["segmenters"][name]}
            | summarise_images(rows, dataset.classes, config["resamples"])
            for name, rows in images.items()
        },
    }
    summary = json.loads(json.dumps(summary))
    write(run.summary, json.dumps(summary, indent=1) + "\n")
    if skipped:
        shown = "\n  ".join(f"{key}: {why}" for key, why in list(skipped.items())[:10])
        say(f"score: {len(skipped)} images left out:\n  {shown}")
    return summary


def model_name(settings: dict[str, Any], choice: str) -> str:
    """What results call the model: its id or folder; a control by its own name, never by the trained model's."""
    return settings["name"] if settings["_target_"].endswith(".from_pretrained") else choice


def _refuse_extra(root: Path, suffix: str, dataset: Dataset, skip: bool) -> None:
    """Label maps that belong to no image: probably masks of another data set, or keys that are named otherwise."""
    there = {p.relative_to(root).as_posix().removesuffix(suffix) for p in root.rglob(f"*{suffix}")}
    if not there:
        raise ValueError(f"the folder {root} holds no label map named KEY{suffix} (other names: labels_suffix=...)")
    extra = sorted(there - set(dataset.keys))
    if extra:
        text = f"{len(extra)} label maps in {root} belong to no image of the data set, such as {', '.join(extra[:3])}"
        if not skip:
            raise ValueError(f"{text}: remove them, or pass them over with on_error=skip")
        say(text)


def _check(summary: dict[str, Any], reference: dict[str, Any]) -> None:
    rows = check(summary, reference)
    shown = Table(*rows.columns, title="against the reference")
    for row in rows.itertuples(index=False):
        shown.add_row(*(f"{x:.4f}" if isinstance(x, float) else str(x) for x in row[:-1]), "ok" if row.ok else "MOVED")
    Console().print(shown)
    if not rows["ok"].all():
        raise MovedError(f"{(~rows['ok']).sum()} of {len(rows)} metrics moved by more than their tolerance")


def result_table(summary: dict[str, Any]) -> Table:
    """Accuracy and mIoU with intervals, one row per segmenter, in percent."""
    note = f", {summary['dataset']['note']}" if summary["dataset"]["note"] else ""
    shown = Table(title=f"{summary['dataset']['name']}, {summary['images']} images{note}")
    for name in ("segmenter", "accuracy %", "mIoU %", "mIoU over ties", "segments"):
        first = name == "segmenter"
        shown.add_column(name, justify="left" if first else "right", overflow="fold" if first else "ellipsis")
    for name, found in summary["segmenters"].items():
        cells = []
        for metric in ("accuracy", "miou"):
            low, high = found["interval"][metric]
            cells.append(f"{100 * found[metric]:.1f}\n({100 * low:.1f} to {100 * high:.1f})")
        ties = " to ".join(f"{100 * x:.1f}" for x in found["ties"])
        shown.add_row(name, *cells, ties, f"{found['segments']:.1f}")
    return shown


# --- Hydra ------------------------------------------------------------------------------------------------------------


class SweepTable(Callback):
    """Keeps each sweep job's result and ends the sweep with one table: on the terminal, as CSV and as Markdown."""

    failed = 0  # jobs of this process's sweep that ended with an error

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
        SweepTable.failed = sum("error" in job for job in jobs)
        rows = sweep_rows(jobs)
        write(folder / "table.csv", rows.to_csv(index=False))
        write(folder / "table.md", markdown(rows.map(_cell)))
        shown = Table(*(c.rpartition(".")[2] for c in rows if c != "run"), title="sweep")
        for row in rows.drop(columns="run", errors="ignore").itertuples(index=False):
            shown.add_row(*map(_cell, row))
        Console().print(shown)
        say(f"{folder / 'table.csv'}, {folder / 'table.md'}")


def sweep_rows(jobs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per job and segmenter: what the sweep varies, then the metrics; a failed job has its error instead."""
    settings = [_settings(job) for job in jobs]
    varied = {k for s in settings for k in s if any(other.get(k) != s[k] for other in settings)}
    rows: list[dict[str, Any]] = []
    for job in jobs:
        setting = {k: v for k, v in _settings(job).items() if k in varied}
        if "error" in job:
            rows.append({**setting, "segmenter": "", "error": job["error"]})
        for name, found in job.get("segmenters", {}).items():
            low, high = found["interval"]["miou"]
            metrics = {k: found[k] for k in ("accuracy", "miou")}
            rest = {"miou_low": low, "miou_high": high, "segments": found["segments"], "run": job["run"]}
            rows.append({**setting, "segmenter": name, **metrics, **rest})
    table = pd.DataFrame(rows)
    return table[[c for c in table if c not in ("run", "error")] + [c for c in ("run", "error") if c in table]]


def _settings(job: dict[str, Any]) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in job["overrides"] if "=" in o)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) and value == value else "" if value != value else str(value)


@contextmanager
def _one_sentence():
    """Turns the errors that a user can mend into one sentence and exit status 2 (1: metrics have moved)."""
    try:
        yield
    except KeyboardInterrupt:
        say("diffseg-eval: stopped; what is done is kept: run the same command again to go on")
        sys.exit(130)
    except MovedError as error:
        say(f"diffseg-eval: {error}")
        sys.exit(1)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        say(f"diffseg-eval: {_sentence(error)}")
        sys.exit(2)


def _sentence(error: BaseException) -> str:
    """What the user needs of an error, without Hydra's links."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("See https")]
    return "\n".join(lines).removesuffix(".")


@hydra.main(config_path="pkg://diffseg.conf", config_name="config", version_base="1.3")
def _job(config: DictConfig) -> dict[str, Any]:
    choices = HydraConfig.get().runtime.choices
    names = {"dataset": choices["dataset"], "model": choices["model"]}
    if HydraConfig.get().mode == RunMode.RUN:
        with _one_sentence():
            return evaluate(_resolved(config), names)
    try:  # one bad setting does not end a sweep
        return evaluate(_resolved(config), names)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        say(f"diffseg-eval: {_sentence(error)}")
        return {"error": _sentence(error)}


def _resolved(config: DictConfig) -> dict[str, Any]:
    absent = sorted(OmegaConf.missing_keys(config))
    if absent:
        raise ValueError(f"{absent[0]} must be given: {absent[0]}=...")
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuses misspelt overrides before Hydra does, with the nearest name that exists.

    Raises:
        ValueError: not an override; a group, an option of a group or a key that does not exist.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException:
            raise ValueError(
                f"{text}: cannot be read as key=value; lists are [1,2], mappings {{key:[1,2]}}, with every bracket "
                f"closed and the whole in single quotes for the shell"
            ) from None
    chosen: list[str] = []  # groups: what keys there are depends on them
    with initialize_config_module("diffseg.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        known = {group: loader.get_group_options(group) for group in loader.list_groups("")}
        for one, text in zip(parsed, overrides, strict=True):
            group, value = str(one.key_or_group), one.value()
            if group not in known:
                continue
            if isinstance(value, str) and not one.is_delete() and value not in known[group]:
                options = ", ".join(known[group])
                raise ValueError(f"{text}: {group} is one of {options}{_nearest(value, known[group])}")
            if not one.is_sweep_override():
                chosen.append(text)
        config = compose("config", chosen)
    keys = _flat(config)
    for one, text in zip(parsed, overrides, strict=True):
        key = str(one.key_or_group)
        if key.startswith("hydra") or key in known or one.is_add() or one.is_force_add() or one.is_delete():
            continue
        if one.package is None and key not in keys:
            raise ValueError(f"{text}: there is no setting {key}{_nearest(key, [*keys, *known])}")


def _flat(config: Any, prefix: str = "") -> list[str]:
    """All keys of a configuration, inner nodes too, with dots."""
    found = []
    for key in config:
        name = f"{prefix}{key}"
        found.append(name)
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            found += _flat(child, f"{name}.")
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    """The known name that was probably meant: one that ends with it (threshold), or is spelt almost the same."""
    inner = [key for key in known if key.endswith(f".{name}")]
    if inner:
        return f"; did you mean {inner[0]}?"
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def main() -> None:
    """The command `diffseg-eval`, and `diffseg-eval compare`."""
    if sys.argv[1:2] == ["compare"]:
        with _one_sentence():
            compare.command(make)(sys.argv[2:], "diffseg-eval compare", standalone_mode=True)
    overrides = [a for a in sys.argv[1:] if not a.startswith("-")]
    with _one_sentence():
        check_overrides(overrides)
    _job()
    if SweepTable.failed:
        say(f"diffseg-eval: {SweepTable.failed} jobs of the sweep failed, see the table")
        sys.exit(2)


if __name__ == "__main__":
    from diffseg.eval.run import main as _main  # the module that Hydra's callback is a class of

    _main()
