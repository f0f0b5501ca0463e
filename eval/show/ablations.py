"""What scored runs vary, found by comparing their settings; the data behind the curves of `diffseg.eval.show.figures`.

An ablation is one key that varies (the threshold, the weights R, the time step ...), all else being equal: within a
run, which tried many settings in one pass, or over several runs, such as the jobs of a sweep. Two keys make one where
each value of the one was tried with each of the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import diffseg
from diffseg.backbones.base import PAPER_TIMESTEP, recommended
from diffseg.errors import UserError
from diffseg.eval.runs import find_run, in_a_line
from diffseg.eval.score import Summary, read_summary
from diffseg.eval.show.tables import metric_number
from diffseg.files import is_file_name
from diffseg.layers import short_names

_METHOD = "diffseg.methods.merging.Merging"


@dataclass(frozen=True)
class Candidate:
    """One scored segmenter. settings: its own and its run's, by name. found: its metrics, as summary.json has them.

    paper_threshold: tau that the paper has for the data set.
    """

    settings: dict[str, Any]
    found: dict[str, Any]
    paper_threshold: float | None = None


@dataclass(frozen=True)
class Usual:
    """The value that a key has where nobody sets it. whose: "the model's own", "the paper's", "the default"."""

    value: Any
    whose: str


@dataclass(frozen=True)
class Ablation:
    """One key that varies. values: numbers in rising order, other values as they came; found: metrics of each.

    fixed: the settings that do not vary. usual: what is used where nobody sets the key, among the values or not.
    """

    key: str
    values: tuple[Any, ...]
    found: tuple[dict[str, Any], ...]
    fixed: dict[str, Any]
    usual: Usual | None = None

    @property
    def numeric(self) -> bool:
        """Whether the values are points of a scale, not categories."""
        return all(map(is_number, self.values))

    @property
    def name(self) -> str:
        """The key as a file's name has it: a threshold that is relative is another quantity."""
        return f"relative-{self.key}" if self.relative else self.key

    @property
    def relative(self) -> bool:
        """Whether the key is the threshold, as a fraction of the image's median distance."""
        return self.key == "threshold" and bool(self.fixed.get("relative"))

    @property
    def label(self) -> str:
        """The key in words, with the paper's symbol and the unit."""
        return "threshold / median distance" if self.relative else _LABELS.get(self.key, self.key)

    @property
    def title(self) -> str:
        """On what it was measured: "scenes, 64 images; mini, t = 100"."""
        return _title(self.fixed)

    def text(self, value: Any) -> str:
        """A value in words."""
        if self.key == "weights":
            return weights_name(value, _resolutions(value, self.fixed.get("size")))
        if self.key == "layers":
            return _layers_name(value, self.values)
        return value_text(value)


@dataclass(frozen=True)
class Crossed:
    """Two keys that vary, each value of the one with each of the other.

    rows, columns: the two as ablations, with the metrics of the other's first value. found: metrics by (row, column).
    """

    rows: Ablation
    columns: Ablation
    found: dict[tuple[Any, Any], dict[str, Any]]

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that do not vary."""
        return {key: value for key, value in self.rows.fixed.items() if key != self.columns.key}

    @property
    def name(self) -> str:
        """The keys as a file's name has them."""
        return f"{self.rows.name}-{self.columns.name}"

    @property
    def label(self) -> str:
        """The keys in words."""
        return f"{self.rows.label} and {self.columns.label}"

    @property
    def title(self) -> str:
        """On what it was measured."""
        return _title(self.fixed)


def _title(fixed: Mapping[str, Any]) -> str:
    data = [f"{fixed['data']}, {fixed['images']} images"] if {"data", "images"} <= set(fixed) else []
    model = [str(fixed["model"]).rpartition("/")[2]] if fixed.get("model") else []
    timestep = [f"t = {fixed['timestep']}"] if fixed.get("timestep") is not None else []
    noise = ["with noise"] if fixed.get("noise") is not None else []
    return "; ".join(filter(None, [*data, ", ".join(model + timestep + noise)]))


_LABELS = {
    "threshold": "threshold τ (nats)",
    "anchors": "anchors M, of M × M",  # noqa: RUF001
    "iterations": "iterations N",
    "timestep": "time step t",
    "layers": "attention layers",
    "weights": "weights R",
    "refine": "refinement (k-means)",
}


def value_text(value: Any) -> str:
    """A setting's value for people: 0.7, on, none; a hub id or a folder by its last part."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    if isinstance(value, int | float):
        return f"{value:g}"
    return "none" if value is None else str(value).rstrip("/").rpartition("/")[2]


def weights_name(weights: Sequence[float] | None, resolutions: Sequence[Any]) -> str:
    """The weights R in words: proportional, equal, "64 only", else their ratio; resolutions: finest first."""
    if weights is None:
        return "proportional"
    used = [r for r, weight in zip(resolutions, weights, strict=True) if weight]
    if len(used) == 1:
        return f"{used[0]} only"
    return "equal" if len(set(weights)) == 1 else " : ".join(f"{w:g}" for w in weights)


def _layers_name(chosen: Sequence[Any] | None, tried: Sequence[Sequence[Any] | None]) -> str:
    """A selection of layers in words, as short as those beside it allow: "all", "up 1.0"."""
    short = short_names([name for layers in tried for name in layers or () if isinstance(name, str)])
    return "all" if chosen is None else ", ".join(short.get(layer, str(layer)) for layer in chosen)


def _resolutions(weights: Sequence[float] | None, size: int | None) -> list[str]:
    """Sides of the attention maps, finest first: of Stable Diffusion 1 and 2, whose four begin at an eighth.

    Others cannot be told from a run (XL has two, of a sixteenth on), so they are numbered.
    """
    count = len(weights or ())
    if count == 4 and size:
        return [f"{size // 8 >> level}" for level in range(4)]
    return [f"resolution {level} of {count}" for level in range(1, count + 1)]


def best_of(ablation: Ablation | Crossed) -> str:
    """The best value of an ablation, or the best two of a crossed one, and how the usual one does, in a sentence."""
    if isinstance(ablation, Crossed):
        miou = {key: found["miou"] for key, found in ablation.found.items() if found["miou"] is not None}
        if not miou:
            return "No mIoU is defined."
        row, column = best = max(miou, key=lambda key: miou[key])
        where = (
            f"{ablation.rows.label} {ablation.rows.text(row)}, {ablation.columns.label} {ablation.columns.text(column)}"
        )
        return f"Best mIoU: {metric_number(miou[best], 'miou')} at {where}."
    by_value = dict(zip(map(ablation.text, ablation.values), ablation.found, strict=True))
    known = {text: found for text, found in by_value.items() if found["miou"] is not None}
    if not known:
        return "No mIoU is defined."
    best_value = max(known, key=lambda text: known[text]["miou"])
    said = f"Best mIoU: {metric_number(known[best_value]['miou'], 'miou')} at {best_value}"
    usual = ablation.usual and ablation.text(ablation.usual.value)
    if ablation.usual is None or usual not in known:
        return f"{said}."
    return f"{said}; {ablation.usual.whose}, {usual}: {metric_number(known[usual]['miou'], 'miou')}."


# --- finding them -----------------------------------------------------------------------------------------------------


def candidates(summary: Summary, dataset: Any = None) -> list[Candidate]:
    """The segmenters of a run.

    Args:
        summary: of the run. dataset: what identifies the data set, where it is known.
    """
    facts = summary["dataset"]
    run = {
        "data": facts["name"] + (f" ({facts['note']})" if facts["note"] else ""),
        "model": summary["model"],
        "timestep": summary["timestep"],
        "layers": summary.get("layers"),
        "size": facts["size"],
        "scored at": summary["size"],
        "images": summary["images"],
        "data set": dataset,
    }
    scores = summary["segmenters"].values()
    return [
        Candidate({**row["settings"], **run, **_own_look(row["settings"])}, dict(row), facts["paper_threshold"])
        for row in scores
    ]


def _own_look(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a segmenter's settings say of how it looks, which comes before what the run says."""
    return {key: settings[key] for key in ("timestep", "layers") if settings.get(key) is not None}


def varying(tried: Sequence[Candidate]) -> list[str]:
    """The keys that differ between candidates, in the order of their settings."""
    keys = dict.fromkeys(key for c in tried for key in c.settings)
    return [key for key in keys if any(c.settings.get(key) != tried[0].settings.get(key) for c in tried)]


def ablation_of(tried: Sequence[Candidate], where: str = "these runs") -> Ablation | Crossed:
    """The ablation that candidates make, of the first one's kind; others beside it (baselines, controls) are left out.

    Raises:
        UserError: nothing varies, more than two keys do, or two without all their combinations; a value occurs twice.
    """
    group = _first_kind(tried)
    keys = varying(group)
    if not keys:
        times = "" if len(group) == 1 else ", given more than once"
        raise UserError(
            f"nothing varies in {where} (one setting{times}): give a run of an ablation, such as "
            f"experiment=ablation_threshold, or runs that differ in one setting"
        )
    if len(keys) == 2 and _is_crossed(keys, group):
        return _crossed(keys, group, where)
    if len(keys) > 1:
        raise UserError(
            f"{' and '.join(keys)} vary at once in {where}: a curve shows one key, all else being equal; a heat map "
            f"two, each value of the one with each of the other"
        )
    return _made(keys[0], group, where)


def _is_crossed(keys: Sequence[str], group: Sequence[Candidate]) -> bool:
    """Whether each value of the one key occurs with each of the other, once."""
    tried = [[repr(c.settings.get(key)) for key in keys] for c in group]
    pairs = set(map(tuple, tried))
    return len(pairs) == len(tried) == math.prod(len(set(values)) for values in zip(*tried, strict=True))


def _crossed(keys: Sequence[str], group: Sequence[Candidate], where: str) -> Crossed:
    """Two keys: in the columns one that has numbers."""
    numeric = [all(is_number(c.settings.get(key)) for c in group) for key in keys]
    row, column = keys if numeric[1] or not numeric[0] else keys[::-1]
    first = group[0].settings
    rows = _made(row, [c for c in group if c.settings.get(column) == first.get(column)], where)
    columns = _made(column, [c for c in group if c.settings.get(row) == first.get(row)], where)
    found = {tuple(_frozen(c.settings.get(key)) for key in (row, column)): c.found for c in group}
    return Crossed(rows, columns, found)


def _first_kind(tried: Sequence[Candidate]) -> list[Candidate]:
    return [c for c in tried if c.settings.get("_target_") == tried[0].settings.get("_target_")]


def _made(key: str, group: Sequence[Candidate], where: str) -> Ablation:
    values = [_frozen(c.settings.get(key)) for c in group]
    twice = [v for v in values if values.count(v) > 1]
    if twice:
        raise UserError(f"{key} = {value_text(twice[0])} occurs more than once in {where}: leave one out")
    fixed = {k: v for k, v in group[0].settings.items() if k != key}
    pairs = list(zip(values, (c.found for c in group), strict=True))
    if all(map(is_number, values)):
        pairs.sort(key=lambda pair: pair[0])
    usual = usual_value(key, fixed, group[0].paper_threshold)
    return Ablation(key, tuple(v for v, _ in pairs), tuple(f for _, f in pairs), fixed, usual)


def is_number(value: Any) -> bool:
    """Whether a value is a point of a scale."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def usual_value(key: str, fixed: dict[str, Any], paper_threshold: float | None) -> Usual | None:
    """The value of a key where nobody sets it; None: there is none, as for the model, or a relative threshold."""
    if fixed.get("_target_") != _METHOD or (key == "threshold" and fixed.get("relative")):
        return None
    own = recommended(fixed.get("model") or "")
    if key in own:
        return Usual(own[key], "the model's own")
    if key == "layers":
        return Usual(None, "the default")
    paper = {"threshold": paper_threshold, "timestep": PAPER_TIMESTEP}
    if key in paper:
        return None if paper[key] is None else Usual(paper[key], "the paper's")
    defaults = yaml.safe_load((Path(diffseg.__file__).parent / "conf" / "segmenter" / "diffseg.yaml").read_text())
    return Usual(_frozen(defaults[key]), "the default") if key in defaults else None


def ablations_among(tried: Sequence[Candidate]) -> list[Ablation | Crossed]:
    """The ablations that candidates make, one of each kind, but of kinds that `ablation_of` refuses."""
    kinds = dict.fromkeys(c.settings.get("_target_") for c in tried)
    found = []
    for kind in kinds:
        with suppress(UserError):
            found.append(ablation_of([c for c in tried if c.settings.get("_target_") == kind]))
    return found


def ablation_in(summary: Summary) -> Ablation | Crossed | None:
    """The ablation that a run is; None where its segmenters do not differ in just one key, or two that are crossed."""
    try:
        return ablation_of(candidates(summary))
    except UserError:
        return None


# --- on disk ----------------------------------------------------------------------------------------------------------


def read_ablations(folders: Sequence[Path], score_size: int | None = None) -> list[Ablation | Crossed]:
    """The ablations of runs on disk: one of each run that varies something by itself, and one of all others together.

    Args:
        folders: runs, or sweeps, which stand for the runs of their jobs. score_size: of the scores to read.

    Raises:
        UserError: a folder that is no scored run, or what `ablation_of` raises.
    """
    runs = list(dict.fromkeys(run for given in folders for run in _runs_of(given)))
    tried = {run: _read(run, score_size) for run in runs}
    made = [ablation_of(found, str(run)) for run, found in tried.items() if len(_first_kind(found)) > 1]
    single = [c for found in tried.values() if len(_first_kind(found)) == 1 for c in found]
    return made + ([ablation_of(single, str(runs[0]) if len(runs) == 1 else "these runs")] if single else [])


def _runs_of(folder: Path) -> list[Path]:
    """The run itself, or the runs of a sweep's jobs: RUNS/sweeps/TIME/jobs/*.json name folders of RUNS."""
    jobs = sorted((folder / "jobs").glob("*.json"))
    if (folder / "run.json").is_file() or not jobs:
        return [folder]
    names = [name for name in map(_run_of, jobs) if name is not None]
    if not names:
        raise UserError(f"{folder} holds no job that gave a result: run the sweep again")
    return [folder.parent.parent / name for name in names]


def _run_of(job: Path) -> str | None:
    """The run of a sweep's job, by its file; None: it failed."""
    try:
        result = json.loads(job.read_bytes())
        name = result.get("run")
        if name is not None and not is_file_name(name):
            raise ValueError(f"run must be a folder's name, got {name!r}")
        return name
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"{job} is damaged ({in_a_line(error)}): run the sweep again, or remove it") from None


def _read(folder: Path, score_size: int | None) -> list[Candidate]:
    run = find_run(folder, score_size)
    return candidates(read_summary(run), run.identity["dataset"])
