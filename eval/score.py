"""Label maps and ground truth -> per-image histograms -> metrics. Never needs a model or a GPU.

SEGMENTER/images.parquet   a row per image: key, pixels (labelled), segments, accuracy, miou, tp, fp, fn
                           (lists, one number per class), histogram (flattened, classes x columns), columns
summary.json               what `summarise_run` returns
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import Dataset as TorchDataset

from diffseg.datasets.base import DataError, Dataset, read_map
from diffseg.datasets.transforms import resize_label
from diffseg.eval.metrics import Counts, bootstrap, histogram, match, summarise, tie_sensitivity
from diffseg.eval.predict import loader
from diffseg.eval.progress import track
from diffseg.eval.runs import Run
from diffseg.files import write

MapPath = Callable[[str, str], Path]  # (segmenter, key) -> its label map

_SHOWN = 10  # complaints that one message lists


@dataclass(frozen=True)
class Scored:
    """The histograms of one image by segmenter (int64 [classes, columns]) and its numbers of segments; or errors."""

    key: str
    hists: dict[str, np.ndarray] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


class _Scorer(TorchDataset):
    """Reads truth and maps and counts, in worker processes."""

    def __init__(
        self, dataset: Dataset, keys: Sequence[str], segmenters: Sequence[str], path: MapPath, size: int | None
    ):
        self.dataset, self.keys, self.segmenters, self.path, self.size = dataset, keys, segmenters, path, size

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scored:
        key = self.keys[index]
        try:
            raw = self.dataset.raw_label(key)
            self.dataset.check_size(key, raw.shape)
            truth = resize_label(raw, self.size or self.dataset.size)
        except DataError as error:
            return Scored(key, errors=(str(error),))
        hists, segments, errors = {}, {}, []
        for name in self.segmenters:
            try:
                labels = read_prediction(self.path(name, key), self.dataset.size, raw.shape)
            except DataError as error:
                errors.append(str(error))
            else:
                if self.size:
                    labels = resize_label(labels, self.size)
                hists[name] = histogram(truth, labels, len(self.dataset.classes))
                segments[name] = len(np.unique(labels))
        return Scored(key, hists, segments, tuple(errors))


def read_prediction(path: Path, size: int, original: tuple[int, ...]) -> np.ndarray:
    """A label map as it is scored, int [size, size].

    One of the photo's original size is brought to the protocol's as the truth is: centre crop, nearest-exact.

    Raises:
        DataError: missing, damaged, or of neither size.
    """
    if not path.exists():
        raise DataError(f"the label map {path} is missing")
    labels = read_map(path)
    if labels.shape == (size, size):
        return labels
    if labels.shape == original:
        return resize_label(labels, size)
    raise DataError(
        f"{path} is {labels.shape[1]} x {labels.shape[0]} pixels: a label map must be {size} x {size}, or "
        f"{original[1]} x {original[0]} like the photo"
    )


def score(
    dataset: Dataset,
    segmenters: Sequence[str],
    path: MapPath,
    workers: int = 2,
    skip_errors: bool = False,
    left_out: Mapping[str, str] | None = None,
    size: int | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Scores label maps against the truth, image by image.

    Args:
        segmenters: names. path: where a segmenter's map of a key is. workers: processes.
        skip_errors: leave out images whose map or truth is missing or damaged, instead of stopping.
        left_out: {key: why} of images known to have no map.
        size: pixels a side at which to compare, maps and truth by nearest-exact; None: as predicted.

    Returns:
        {segmenter: a row per image, as in images.parquet}, {key: why} of the images left out.

    Raises:
        DataError: names every missing, damaged or wrong-sized file (the first ten).
    """
    skipped = dict(left_out or {}) if skip_errors else {}
    keys = [key for key in dataset.keys if key not in skipped]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in segmenters}
    for batch in track(loader(_Scorer(dataset, keys, segmenters, path, size), 1, workers), "score", len(keys)):
        for image in batch:
            if image.errors:
                skipped[image.key] = "; ".join(image.errors)
            else:
                for name in segmenters:
                    rows[name].append(_row(image.key, image.hists[name], image.segments[name]))
    if skipped and not skip_errors:
        complaints = [*skipped.values()][:_SHOWN] + ["..."] * (len(skipped) > _SHOWN)
        raise DataError(
            f"{len(skipped)} of {len(dataset)} images cannot be scored (leave them out with on_error=skip):\n  "
            + "\n  ".join(complaints)
        )
    if not any(rows.values()):
        raise DataError(f"none of the {len(dataset)} images could be scored: {next(iter(skipped.values()))}")
    return {name: pd.DataFrame(r) for name, r in rows.items()}, dict(sorted(skipped.items()))


def _row(key: str, hist: np.ndarray, segments: int) -> dict[str, Any]:
    counts = match(hist)
    summary = summarise(counts)
    return {
        "key": key,
        "pixels": counts.pixels,
        "segments": segments,
        "accuracy": summary["accuracy"],
        "miou": summary["miou"],
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "histogram": hist.ravel(),
        "columns": hist.shape[1],
    }


def counts_of(images: pd.DataFrame) -> list[Counts]:
    """The counts of each row."""
    lists = zip(images["tp"], images["fp"], images["fn"], images["pixels"], strict=True)
    return [Counts(np.asarray(tp), np.asarray(fp), np.asarray(fn), int(n)) for tp, fp, fn, n in lists]


def summarise_images(images: pd.DataFrame, classes: Sequence[str], resamples: int = 1000) -> dict[str, Any]:
    """The metrics of one segmenter from its rows.

    Returns:
        accuracy, miou: fractions; iou: {class: fraction, None where the class does not occur}; interval: 95 % over
        images, of accuracy and miou; ties: smallest and largest mIoU over the solver's ties; segments: mean number per
        image; images: their number.
    """
    counts = counts_of(images)
    hists = [
        np.asarray(h).reshape(-1, columns) for h, columns in zip(images["histogram"], images["columns"], strict=True)
    ]
    found = summarise(counts)
    return {
        "accuracy": found["accuracy"],
        "miou": found["miou"],
        "interval": bootstrap(counts, resamples),
        "ties": tie_sensitivity(hists),
        "segments": float(images["segments"].mean()),
        "images": len(images),
        "iou": {c: None if np.isnan(x) else x for c, x in zip(classes, found["iou"], strict=True)},
    }


def write_images(run: Run, images: Mapping[str, pd.DataFrame]) -> None:
    """Writes SEGMENTER/images.parquet of each segmenter."""
    for name, rows in images.items():
        run.images(name).parent.mkdir(parents=True, exist_ok=True)
        write(run.images(name), rows.to_parquet(None))


def read_images(run: Run, segmenter: str) -> pd.DataFrame:
    """SEGMENTER/images.parquet of a run.

    Raises:
        DataError: missing or damaged.
    """
    path = run.images(segmenter)
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): score the run again") from None


def read_summary(run: Run) -> dict[str, Any]:
    """summary.json of a run.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return json.loads(run.summary.read_text())
    except FileNotFoundError:
        raise DataError(f"{run.summary} is missing: score the run first") from None
    except ValueError as error:
        raise DataError(f"{run.summary} is damaged ({error}): remove it and score the run again") from None
