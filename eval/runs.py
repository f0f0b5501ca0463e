"""Runs on disk: a folder for each, named after what makes its labels, so that runs never overwrite each other.

RUN/config.yaml          the resolved configuration
RUN/run.json             identity, versions, git commit, hardware
RUN/errors/KEY.txt       why an image was left out (on_error=skip)
RUN/SEGMENTER/labels/KEY.png
RUN/SEGMENTER/images.parquet
RUN/summary.json · RUN/report.html
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import diffseg
from diffseg.attention import EMBEDDED
from diffseg.files import PARTIAL, check_writable, write

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "pillow", "pandas")


@dataclass(frozen=True)
class Run:
    """A run's folder. identity: everything that changes its labels, ready for JSON. segmenters: their names.

    score_size: pixels a side at which it is scored; None: as predicted.
    """

    folder: Path
    identity: dict[str, Any]
    segmenters: tuple[str, ...]
    score_size: int | None = None

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.folder.name

    def map(self, segmenter: str, key: str) -> Path:
        """The label map of an image."""
        return self.folder / segmenter / "labels" / f"{key}.png"

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

    def images(self, segmenter: str) -> Path:
        """The table of a segmenter's images."""
        return self.folder / segmenter / f"images{self._variant}.parquet"

    def error(self, key: str) -> Path:
        """The file that says why an image was left out."""
        return self.folder / "errors" / f"{key}.txt"

    def skipped(self) -> dict[str, str]:
        """{key: why} of the images that prediction has left out."""
        root = self.folder / "errors"
        return {p.relative_to(root).as_posix().removesuffix(".txt"): p.read_text() for p in sorted(root.rglob("*.txt"))}

    def remove_partials(self) -> None:
        """Removes what killed processes left under temporary names; only when none is writing any more."""
        for path in self.folder.rglob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """A short hash (12 hex digits) of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def open_run(
    folder: Path,
    identity: dict[str, Any],
    config: str,
    made_with: dict[str, str] | None,
    create: bool = True,
    score_size: int | None = None,
) -> Run:
    """The run with this identity in this folder: made with its record if new, continued if there.

    Args:
        folder: RUN. identity: what changes the labels; has "segmenters". config: YAML to keep.
        made_with: device and dtype of the predictions about to be made; None: none are made.
        create: make a run that is not there. score_size: see `Run`.

    Raises:
        ValueError: the folder holds another run, one made in another precision, or files that are no run.
        OSError: it cannot be written.
    """
    record = folder / "run.json"
    if record.exists():
        stored = _read_record(record)
        different = differences(stored["identity"], identity)
        if different:
            raise ValueError(
                f"the folder {folder} holds a run with other settings ({'; '.join(different[:3])}): "
                f"name another with run=, or leave run= out"
            )
        before = stored["made_with"]
        if made_with and before and made_with != before:
            raise ValueError(
                f"{folder} was begun in {before['dtype']} on {before['device']}; going on in {made_with['dtype']} on "
                f"{made_with['device']} would mix two: set device= and dtype= as they were, or name another run="
            )
    elif not create:
        raise ValueError(f"there is no run {folder}: predict first, with the same settings")
    elif folder.is_dir() and any(p for p in folder.iterdir() if not p.name.endswith(PARTIAL)):
        raise ValueError(f"the folder {folder} is not empty and holds no run (no run.json): name another with run=")
    check_writable(folder, "choose another with runs=DIR")
    if not record.exists():
        write(folder / "config.yaml", config)
        write(record, json.dumps({"identity": identity, "made_with": made_with, **circumstances()}, indent=1) + "\n")
    return Run(folder, identity, tuple(identity["segmenters"]), score_size)


def find_run(folder: Path, score_size: int | None = None) -> Run:
    """A run that is on disk.

    Raises:
        ValueError: the folder holds none.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} holds no run (no run.json): name a folder of results/runs")
    identity = _read_record(folder / "run.json")["identity"]
    return Run(folder, identity, tuple(identity["segmenters"]), score_size)


def _read_record(record: Path) -> dict[str, Any]:
    try:
        stored = json.loads(record.read_text())
        return {"identity": stored["identity"], "made_with": stored["made_with"]}
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{record} is damaged ({error}): remove the folder, or name another with run=") from None


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two identities, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def circumstances() -> dict[str, Any]:
    """What else a reader of the results wants to know: versions, git commit, hardware."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {"diffseg": diffseg.__version__, "python": platform.python_version(), **versions},
        "commit": _commit(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpus": gpus},
    }


def _commit() -> str | None:
    """The git commit of the code, with "+" where it has been changed since; None where it is not a checkout."""
    root = Path(diffseg.__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed.stdout.strip())


def code_fingerprint() -> str:
    """Hash of the source of everything that makes label maps: after a change of the method, nothing old is reused."""
    root = Path(diffseg.__file__).parent
    method = ("attention", "baselines", "fused", "segmentation", "segmenter", "eval/segmenters", "eval/predict")
    files = [root / f"{name}.py" for name in method] + sorted((root / "datasets").glob("*.py"))
    return digest([hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()])


def model_fingerprint(name: str) -> str:
    """Hash of a local model's files: sizes, and contents (of large files, the first and last megabyte)."""
    root = Path(EMBEDDED.get(name, name))
    if not root.is_dir():
        return name
    parts = []
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".json", ".safetensors", ".txt")):
        with path.open("rb") as file:
            start = file.read(1 << 20)
            file.seek(max(path.stat().st_size - (1 << 20), 0))
            content = hashlib.sha256(start + file.read()).hexdigest()
        parts.append([path.relative_to(root).as_posix(), path.stat().st_size, content])
    return digest(parts)
