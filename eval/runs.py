"""Runs on disk: a folder for each, named after what makes its labels, so that runs never overwrite each other.

RUN/config.yaml          the resolved configuration
RUN/run.json             identity, versions, git commit, hardware
RUN/errors/KEY.txt       why an image was left out (on_error=skip)
RUN/SEGMENTER/labels/KEY.png
RUN/SEGMENTER/images.parquet
RUN/grid.parquet         counts of a grid, which every method has to beat
RUN/times/I-N.json       images and seconds of predicting, by shard
RUN/summary.json · RUN/report.html · RUN/images.html
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

import diffseg
from diffseg.errors import UserError
from diffseg.files import PARTIAL, check_writable, is_file_name, remove_abandoned, write

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "pillow", "pandas")
_LONGEST_NAME = 48  # characters of the methods' names in a folder's name
_FEW = 100  # images that are asked for one by one


@dataclass(frozen=True)
class Masks:
    """Somebody's label maps, scored instead of predicted ones: FOLDER/KEY + suffix."""

    folder: Path
    suffix: str = ".png"

    def path(self, key: str) -> Path:
        """The label map of an image."""
        return self.folder / f"{key}{self.suffix}"


@dataclass(frozen=True)
class Run:
    """A run's folder. identity: everything that changes its labels, ready for JSON. segmenters: their names.

    score_size: pixels a side at which it is scored; None: as predicted. masks: the label maps, where they are not the
    run's own.
    """

    folder: Path
    identity: dict[str, Any]
    segmenters: tuple[str, ...]
    score_size: int | None = None
    masks: Masks | None = None

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.folder.name

    def map(self, segmenter: str, key: str) -> Path:
        """The label map of an image."""
        return self.masks.path(key) if self.masks else self.folder / segmenter / "labels" / f"{key}.png"

    @property
    def _variant(self) -> str:
        return "" if self.score_size is None else f"-{self.score_size}"

    @property
    def summary(self) -> Path:
        """Its metrics."""
        return self.folder / f"summary{self._variant}.json"

    @property
    def report(self) -> Path:
        """Its page."""
        return self.folder / f"report{self._variant}.html"

    @property
    def pictures(self) -> Path:
        """The page of all its images."""
        return self.folder / f"images{self._variant}.html"

    def images(self, segmenter: str) -> Path:
        """The table of a segmenter's images."""
        return self.folder / segmenter / f"images{self._variant}.parquet"

    @property
    def grid(self) -> Path:
        """The table of its images under a grid in place of a segmenter."""
        return self.folder / f"grid{self._variant}.parquet"

    def add_time(self, shard: Sequence[int], images: int, seconds: float) -> None:
        """Notes how long the prediction of some more images of a shard took."""
        path = self.folder / "times" / f"{shard[0]}-{shard[1]}.json"
        before = _read_time(path)
        path.parent.mkdir(exist_ok=True)
        write(path, json.dumps({"images": before[0] + images, "seconds": before[1] + seconds}) + "\n")

    @property
    def seconds_per_image(self) -> float | None:
        """Of prediction, a shard's images one after the other; None: nothing was noted."""
        times = [_read_time(path) for path in sorted(self.folder.glob("times/*.json"))]
        images = sum(count for count, _ in times)
        return sum(seconds for _, seconds in times) / images if images else None

    def error(self, key: str) -> Path:
        """The file that says why an image was left out."""
        return self.folder / "errors" / f"{key}.txt"

    def skipped(self) -> dict[str, str]:
        """{key: why} of the images that prediction has left out and that still have no label map."""
        root = self.folder / "errors"
        reasons = {
            p.relative_to(root).as_posix().removesuffix(".txt"): p.read_text() for p in sorted(root.rglob("*.txt"))
        }
        return {key: why for key, why in reasons.items() if self.missing([key])}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that lack the map of at least one segmenter; folders are gone through, no file is asked for."""
        keys = list(keys)
        if self.masks or len(keys) < _FEW:
            return [key for key in keys if not all(self.map(name, key).exists() for name in self.segmenters)]
        there = [_names_below(self.folder / name / "labels") for name in self.segmenters]
        return [key for key in keys if not all(f"{key}.png" in names for names in there)]

    def remove_damaged(self, keys: Iterable[str]) -> int:
        """Removes label maps of the run's own that are cut off or no PNG, so that they are made again; how many."""
        damaged = [path for key in keys for name in self.segmenters if not _is_whole(path := self.map(name, key))]
        for path in damaged:
            path.unlink(missing_ok=True)
        return len(damaged)

    def remove_partials(self) -> None:
        """Removes what killed processes left under temporary names."""
        remove_abandoned(self.folder)


def _read_time(path: Path) -> tuple[int, float]:
    """(images, seconds) of a file of `Run.add_time`; (0, 0) where it is missing or damaged: it is no result."""
    try:
        noted = json.loads(path.read_bytes())
        return int(noted["images"]), float(noted["seconds"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0, 0.0


def _names_below(folder: Path) -> set[str]:
    """The files below a folder, as paths from there with slashes; none where there is no folder."""
    found: set[str] = set()
    for place, _, names in os.walk(folder):
        inner = Path(place).relative_to(folder).as_posix()
        found.update(names if inner == "." else (f"{inner}/{name}" for name in names))
    return found


def _is_whole(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does; True where there is none."""
    try:
        with path.open("rb") as file:
            begins = file.read(8) == b"\x89PNG\r\n\x1a\n"
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 12))
            return begins and file.read() == b"\x00\x00\x00\x00IEND\xaeB`\x82"
    except FileNotFoundError:
        return True


def digest(value: Any) -> str:
    """A short hash (12 hex digits) of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def folder_name(parts: Iterable[str], methods: Iterable[str], identity: Mapping[str, Any]) -> str:
    """PARTS-METHODS-HASH: what a run is in words, as far as a file's name can hold them, and its identity's hash."""
    names = "+".join(methods)
    if len(names) > _LONGEST_NAME:
        names = f"{names.count('+') + 1}-settings"
    return re.sub(r"[^\w.+=-]+", "-", "-".join(filter(None, [*parts, names, digest(identity)[:8]])))


def open_run(
    folder: Path,
    identity: dict[str, Any],
    config: str,
    made_with: dict[str, str] | None,
    create: bool = True,
    score_size: int | None = None,
    masks: Masks | None = None,
) -> Run:
    """The run with this identity in this folder: made with its record if new, continued if there.

    Args:
        folder: RUN. identity: what changes the labels; has "segmenters". config: YAML to keep.
        made_with: device and dtype of the predictions about to be made; None: none are made.
        create: make a run that is not there. score_size, masks: see `Run`.

    Raises:
        UserError: the folder holds another run, one made in another precision, or files that are no run.
        OSError: it cannot be written.
    """
    record = folder / "run.json"
    if record.exists():
        stored = _read_record(record)
        different = differences(stored["identity"], identity)
        if different:
            raise UserError(
                f"the folder {folder} holds a run with other settings ({'; '.join(different[:3])}): "
                f"name another with run=, or leave run= out"
            )
        before = stored["made_with"]
        if made_with and before and made_with != before:
            raise UserError(
                f"{folder} was begun in {before['dtype']} on {before['device']}; going on in {made_with['dtype']} on "
                f"{made_with['device']} would mix two: set device= and dtype= as they were, or name another run="
            )
    elif not create:
        raise UserError(f"there is no run {folder}: predict first, with the same settings")
    elif folder.is_dir() and any(p for p in folder.iterdir() if not p.name.endswith(PARTIAL)):
        raise UserError(f"the folder {folder} is not empty and holds no run (no run.json): name another with run=")
    check_writable(folder, "choose another with runs=DIR")
    if not record.exists():
        where = {"folder": str(masks.folder.resolve()), "suffix": masks.suffix} if masks else None
        facts = {"identity": identity, "made_with": made_with, "masks": where, **circumstances()}
        write(folder / "config.yaml", config)
        write(record, json.dumps(facts, indent=1) + "\n")
    return Run(folder, identity, tuple(identity["segmenters"]), score_size, masks)


def find_run(folder: Path, score_size: int | None = None) -> Run:
    """A run that is on disk.

    score_size: pixels a side that its scores are of; None: as predicted, or the only size that it was scored at.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} holds no run (no run.json): name a folder of results/runs")
    stored = _read_record(folder / "run.json")
    where, identity = stored["masks"], stored["identity"]
    masks = Masks(Path(where["folder"]), where["suffix"]) if where else None
    scored = [path.stem.removeprefix("summary-") for path in folder.glob("summary*.json")]
    if score_size is None and len(scored) == 1 and scored[0].isdecimal():
        score_size = int(scored[0])
    return Run(folder, identity, tuple(identity["segmenters"]), score_size, masks)


class Identity(TypedDict):
    """Everything that changes the labels of a run; more keys than these, which all runs have."""

    dataset: dict[str, Any]
    segmenters: dict[str, dict[str, Any]]


class MadeWith(TypedDict):
    """Of the predictions."""

    device: str
    dtype: str


class Record(TypedDict):
    """run.json, as far as it is read."""

    identity: Identity
    made_with: MadeWith | None
    masks: NotRequired[dict[str, str] | None]  # folder and suffix of label maps that are not the run's own


class Hardware(TypedDict):
    """Of the machine that a run was begun on."""

    machine: str
    cores: int | None
    gpus: list[str]


class FullRecord(Record):
    """run.json with `circumstances`."""

    versions: dict[str, str]
    commit: str | None
    hardware: Hardware
    begun: NotRequired[str]  # date and time, UTC


_RECORD, _FULL_RECORD = TypeAdapter(Record), TypeAdapter(FullRecord)


def read_circumstances(run: Run) -> dict[str, Any]:
    """run.json of a run, with all that `circumstances` says.

    Raises:
        UserError: missing or damaged.
    """
    return _read_record(run.folder / "run.json", _FULL_RECORD)


def _read_record(record: Path, form: TypeAdapter = _RECORD) -> dict[str, Any]:
    try:
        stored = json.loads(record.read_bytes())
        form.validate_python(stored)
        if not stored["identity"]["segmenters"] or not all(map(is_file_name, stored["identity"]["segmenters"])):
            raise ValueError("segmenters must have names that folders can have")
        masks = stored.get("masks")
        if masks is not None and masks.keys() != {"folder", "suffix"}:
            raise ValueError("masks must have folder and suffix")
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{record} is damaged ({in_a_line(error)}): remove the folder, or name another with run="
        ) from None
    return {**stored, "masks": masks}


def in_a_line(error: Exception) -> str:
    """What is wrong with data that was read, in a line."""
    if isinstance(error, ValidationError):
        wrong = error.errors()[0]
        return f"{'.'.join(map(str, wrong['loc'])) or 'all of it'}: {wrong['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two identities, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def versions() -> dict[str, str]:
    """Of diffseg, Python, and the libraries that results may depend on."""
    libraries = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"diffseg": diffseg.__version__, "python": platform.python_version(), **libraries}


def circumstances() -> dict[str, Any]:
    """What else a reader of the results wants to know: versions, git commit, hardware, date."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "commit": commit_of(Path(diffseg.__file__).resolve().parent.parent),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpus": gpus},
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit_of(root: Path) -> str | None:
    """The git commit of the checkout whose top folder is `root`, with "+" where it has been changed since.

    None where it is none: a wheel inside another project's checkout is not of that project's commit.
    """
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
        if Path(top.stdout.strip()).resolve() != root.resolve():
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed.stdout.strip())
