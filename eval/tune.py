"""`diffseg tune`: a threshold for a folder of photos, from one pass of the model for each of them.

Without labels, the number of segments that each tau makes of each photo. Where some photos have labels, the tau with
the best mIoU under the protocol `diffseg`, and how sure it is the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffseg.datasets.base import DataError, read_map
from diffseg.datasets.folder import MOST_UNNAMED
from diffseg.datasets.transforms import nearest
from diffseg.errors import UserError
from diffseg.eval.metrics import (
    Counts,
    Statistics,
    histogram,
    intervals,
    match,
    paired_intervals,
    score_metrics,
    standard_errors,
    statistics_of,
)
from diffseg.methods.base import as_numpy
from diffseg.methods.merging import Settings, labels_of, proposals
from diffseg.resizing import prepare, working_size
from diffseg.segmenter import DiffSeg

LABELS = (".label.png", ".png")  # what follows a photo's name in the name of its label map
FEW = 10  # labelled photos, below which a best threshold is little more than a guess
_STEP, _BELOW, _ABOVE = 1.15, 10, 6  # the usual thresholds: the model's default times or by 1.15, so many times
_MOST_PIXELS = 1 << 20  # of label maps: larger photos are counted and compared at about a megapixel
DRAWS = 2000  # of photos, for the interval of the best threshold
_LEVEL = 0.95
_TILE = 240  # pixels a side of a picture on the contact sheet, at most
_ROWS, _COLUMNS = 12, 6  # photos and thresholds on it, at most


@dataclass(frozen=True)
class Scores:
    """What labelled photos say of the thresholds, fractions.

    photos: how many have labels. miou, accuracy: float [taus]. miou_intervals: float [taus, 2], 95 % over photos; NaN
    with one photo. best, best_accuracy: index of the threshold with the best mIoU, accuracy. fewest: of the largest
    whose mIoU is within a standard error of the best (Breiman's rule). between: the thresholds in between which the
    best is in 95 % of draws of as many photos, None with one photo. share: of these draws, in which it is `best`. gain:
    mIoU of the best less that of the model's own threshold, with its interval: "difference", "interval".
    """

    photos: int
    miou: np.ndarray
    accuracy: np.ndarray
    miou_intervals: np.ndarray
    best: int
    best_accuracy: int
    fewest: int
    between: tuple[float, float] | None
    share: float
    gain: Mapping[str, Any]


@dataclass(frozen=True)
class Strip:
    """A photo on the contact sheet: uint8 [h, w, 3], and its label map int [h, w] under each threshold."""

    photo: np.ndarray
    labels: Sequence[np.ndarray]


@dataclass(frozen=True)
class Tuning:
    """Thresholds tried on photos.

    thresholds: rising. default: index of the model's own. segments: {photo: int [taus]}. strips: of some photos, by
    name. scores: None where no photo has labels.
    """

    thresholds: tuple[float, ...]
    default: int
    segments: Mapping[str, np.ndarray]
    strips: Mapping[str, Strip]
    scores: Scores | None

    @property
    def median(self) -> np.ndarray:
        """The median number of segments over photos, float [taus]."""
        return np.median(np.stack(list(self.segments.values())), 0)


def thresholds_around(default: float, given: Sequence[float] | None = None) -> tuple[float, ...]:
    """The thresholds to try, rising: those given, or about a quarter to twice the default; always the default itself.

    Raises:
        UserError: one that is not above 0.
    """
    for tau in given or ():
        Settings.make(tau)
    usual = [float(f"{default * _STEP**k:.3g}") for k in range(-_BELOW, _ABOVE + 1) if k]
    return tuple(sorted({default, *(usual if given is None else given)}))


# --- labels -----------------------------------------------------------------------------------------------------------


def label_files(photos: Mapping[str, Path], folder: Path | None) -> dict[str, Path]:
    """The label maps NAME.label.png or NAME.png in a folder, by the names of their photos; {} without a folder.

    Raises:
        DataError: no such folder, or a label map for none of the photos.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} for --labels")
    own = {path.resolve() for path in photos.values()}
    found = {}
    for name in photos:
        files = (folder / f"{name}{suffix}" for suffix in LABELS)
        file = next((file for file in files if file.is_file() and file.resolve() not in own), None)
        if file is not None:
            found[name] = file
    if not found:
        raise DataError(
            f"the folder {folder} has a label map for none of the {len(photos)} photos: name it after the photo, such "
            f"as {next(iter(photos))}.png, in this very folder"
        )
    return found


def read_labels(files: Mapping[str, Path], ignore: int) -> tuple[dict[str, np.ndarray], int]:
    """Label maps int32 [H, W], -1 = ignored, by name, and the number of classes.

    The values that occur become classes 0, 1, ...: a number that no map has is no class that segments could fall to.

    Raises:
        DataError: a damaged file, values too large for classes, nothing but ignored pixels.
    """
    maps = {name: read_map(path) for name, path in files.items()}
    for name, values in maps.items():
        values[values == ignore] = -1
        if values.max() >= MOST_UNNAMED:
            raise DataError(
                f"{files[name]} holds the value {values.max():,}: values are numbers of classes, below "
                f"{MOST_UNNAMED:,}; give class maps instead of instance maps, or say which value is not scored "
                f"(--ignore)"
            )
        if values.max() < 0:
            raise DataError(f"{files[name]}: every pixel is {ignore}, which is not scored (--ignore): leave it out")
    present = sorted({int(value) for values in maps.values() for value in np.unique(values) if value >= 0})
    numbers = np.full(MOST_UNNAMED + 1, -1, np.int32)  # the last one for -1
    numbers[present] = np.arange(len(present))
    return {name: numbers[values] for name, values in maps.items()}, len(present)


def check_shape(photo: np.ndarray, truth: np.ndarray | None, file: Path | None) -> None:
    """Raises DataError where a label map (int [H, W], None: there is none) is not of its photo's size."""
    if truth is not None and truth.shape != photo.shape[:2]:
        height, width = photo.shape[:2]
        raise DataError(
            f"{file} is {truth.shape[1]} x {truth.shape[0]} pixels and its photo, upright, {width} x {height}: label "
            f"the photo at its own size"
        )


# --- trying -----------------------------------------------------------------------------------------------------------


def try_thresholds(
    seg: DiffSeg, photo: np.ndarray, settings: Settings, thresholds: Sequence[float]
) -> Iterator[np.ndarray]:
    """The label map int32 [h, w], 0..K-1, that each threshold gives, from one pass; at most about a megapixel.

    Args:
        photo: uint8 [H, W, 3]. settings: all but the threshold, which is that of every iteration.
    """
    height, width = photo.shape[:2]
    pixels = prepare(photo, working_size(height, width, settings.size, seg.model.multiple))
    seen = seg.observe_pixels(pixels, settings.timestep, _bounded(height, width))
    for tau in thresholds:
        merged = proposals(seen, settings, [tau] * len(settings.threshold))
        yield as_numpy(labels_of(merged, seen.size)[0])


def _bounded(height: int, width: int) -> tuple[int, int]:
    """(height, width) of at most about a megapixel, in the same shape."""
    scale = min(1.0, math.sqrt(_MOST_PIXELS / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _tile(labels: np.ndarray) -> np.ndarray:
    """A label map int [H, W] as small as on the contact sheet."""
    scale = min(1.0, _TILE / max(labels.shape))
    height, width = (max(1, round(side * scale)) for side in labels.shape)
    return nearest(labels, (height, width))


class Trial:
    """Takes in photos one by one and gives what was found of all.

    Args:
        thresholds: rising. default: the model's own, one of them. sheet: names of photos for the contact sheet.
        classes: of the label maps.
    """

    def __init__(self, thresholds: Sequence[float], default: float, sheet: Sequence[str] = (), classes: int = 0):
        self.thresholds, self._default = tuple(thresholds), tuple(thresholds).index(default)
        self._sheet, self._classes = set(sheet), classes
        self._segments: dict[str, np.ndarray] = {}
        self._strips: dict[str, Strip] = {}
        self._counts: list[list[Counts]] = []  # [labelled photos][taus]

    def add(self, name: str, photo: np.ndarray, labels: Iterator[np.ndarray], truth: np.ndarray | None = None) -> None:
        """Takes in a photo uint8 [H, W, 3], its label map int [h, w] under each threshold, and its truth int [H, W]."""
        segments, tiles, counts = [], [], []
        for found in labels:
            segments.append(int(found.max()) + 1)
            if name in self._sheet:
                tiles.append(_tile(found))
            if truth is not None:
                counts.append(match(histogram(nearest(truth, found.shape), found, self._classes)))
        self._segments[name] = np.array(segments)
        if tiles:
            height, width = tiles[0].shape
            self._strips[name] = Strip(np.asarray(Image.fromarray(photo).resize((width, height))), tiles)
        if truth is not None:
            self._counts.append(counts)

    def result(self) -> Tuning:
        """What was found of all photos."""
        scores = None
        if self._counts:
            by_tau = [statistics_of(counts) for counts in zip(*self._counts, strict=True)]
            scores = scores_of(self.thresholds, self._default, by_tau)
        return Tuning(self.thresholds, self._default, self._segments, self._strips, scores)


def sheet_names(names: Sequence[str]) -> list[str]:
    """Those of many photos that are on the contact sheet, evenly among them."""
    places = np.linspace(0, len(names) - 1, min(len(names), _ROWS)).round().astype(int)
    return [names[i] for i in dict.fromkeys(places.tolist())]


# --- choosing ---------------------------------------------------------------------------------------------------------


def scores_of(thresholds: Sequence[float], default: int, statistics: Sequence[Statistics]) -> Scores:
    """What labelled photos say.

    Args:
        thresholds: rising. default: index of the model's own. statistics: for each of them, those of
            `metrics.statistics_of` over the photos.
    """
    values = [_metrics_of(s) for s in statistics]
    miou, accuracy = (np.array([value[metric] for value in values]) for metric in ("miou", "accuracy"))
    best, photos = int(best_of(miou)), len(statistics[0]["pixels"])
    error = standard_errors(statistics[best], score_metrics)["miou"] if photos > 1 else 0.0
    between, share = None, math.nan
    if photos > 1:
        drawn = best_of_draws(statistics)
        low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], method="nearest")
        between, share = (thresholds[low], thresholds[high]), float(np.mean(drawn == best))
    return Scores(
        photos,
        miou,
        accuracy,
        np.array([intervals(s, score_metrics, _LEVEL)["miou"] for s in statistics]),
        best,
        int(best_of(accuracy)),
        int(np.flatnonzero(miou >= miou[best] - error)[-1]),
        between,
        share,
        paired_intervals(statistics[default], statistics[best], score_metrics, _LEVEL)["miou"],
    )


def _metrics_of(statistics: Statistics) -> dict[str, float]:
    sums = {name: rows.sum(0, keepdims=True) for name, rows in statistics.items()}
    return {name: float(value[0]) for name, value in score_metrics(sums).items()}


def best_of(values: np.ndarray) -> np.ndarray:
    """The index of the best of float [taus, ...] along the first axis; of several that are equal, the middle one."""
    equal = values == values.max(0)
    rank = equal.cumsum(0)
    return (equal & (rank == (rank[-1] + 1) // 2)).argmax(0)


def best_of_draws(statistics: Sequence[Statistics], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The index of the threshold with the best mIoU in each of many draws of as many photos: int [draws].

    Photos are drawn with replacement: how often a threshold is the best of a draw says how sure it is.

    Args:
        statistics: of the photos, for each threshold.
    """
    photos = len(statistics[0]["pixels"])
    times = np.random.default_rng(seed).multinomial(photos, np.full(photos, 1 / photos), size=draws)  # [draws, photos]
    sums = ({name: times @ rows for name, rows in s.items()} for s in statistics)
    return best_of(np.stack([score_metrics(s)["miou"] for s in sums]))


def choose(tuning: Tuning, wanted: str | None) -> tuple[float, str]:
    """A threshold, and in words why it is this one.

    Args:
        wanted: "best", "fewest" or a number; None: "best".

    Raises:
        UserError: no such choice, or one that needs labels where there are none.
    """
    number = as_threshold(wanted)
    if number is not None:
        return number, "chosen by eye"
    scores = tuning.scores
    if scores is None:
        raise UserError(NO_LABELS)
    index = scores.fewest if wanted == "fewest" else scores.best
    rule = "the largest within a standard error of the best mIoU" if wanted == "fewest" else "the best mIoU"
    return tuning.thresholds[index], f"{rule}, {scores.miou[index]:.3f} on {photo_count(scores.photos, 'labelled')}"


NO_LABELS = (
    "without labels nothing says which threshold is the best: look at the contact sheet and say which one to keep, "
    "--choose 0.9, or label some photos (--labels)"
)


def as_threshold(wanted: str | None) -> float | None:
    """The number that is wanted; None: "best", "fewest" or nothing.

    Raises:
        UserError: anything else.
    """
    if wanted in (None, "best", "fewest"):
        return None
    try:
        number = float(str(wanted))
    except ValueError:
        raise UserError(f"--choose takes best, fewest or a threshold such as 0.9, got {wanted!r}") from None
    return Settings.make(number).threshold[0]


# --- naming -----------------------------------------------------------------------------------------------------------


def photo_count(number: int, kind: str = "") -> str:
    """ "1 photo", "12 labelled photos"."""
    return f"{number:,} {kind}{' ' * bool(kind)}photo{'s' * (number != 1)}"


def marks(tuning: Tuning) -> dict[int, str]:
    """What is to be said of some thresholds, by index: the model's default, the best, the fewest."""
    named = [(tuning.default, "default")]
    if tuning.scores is not None:
        named += [(tuning.scores.best, "best"), (tuning.scores.fewest, "fewest")]
    found: dict[int, str] = {}
    for index, text in named:
        found[index] = f"{found[index]}, {text}" if index in found else text
    return found


def sheet_columns(tuning: Tuning) -> list[int]:
    """The thresholds on the contact sheet: evenly among all, with those that have a mark."""
    count, must = len(tuning.thresholds), set(marks(tuning))
    free = np.linspace(0, count - 1, max(_COLUMNS - len(must), 0)).round().astype(int).tolist()
    return sorted({*must, *free})
