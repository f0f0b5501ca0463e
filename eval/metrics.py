"""The evaluation protocol: per-image Hungarian matching, summed counts, accuracy and mIoU. Pure numpy and scipy.

The paper's, as unsupervised segmentation has no class names: in every image, segments are assigned one to one to
classes so that the most pixels match; the counts are summed over all images before any ratio is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import stdtr, stdtrit

from diffseg.errors import UserError

# A protocol: what is added up over images, {name: [images, ...]}, and the metrics of such sums over sets of images,
# {name: [sets, ...]} -> {metric: float64 [sets]}.
Statistics = Mapping[str, np.ndarray]
Metrics = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

_BLOCK = 256  # sets of images whose metrics are computed at once


@dataclass(frozen=True)
class Counts:
    """Pixel counts per class, int64 [classes], of one image or, added up, of many; pixels: labelled pixels."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    pixels: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.pixels + other.pixels)


def histogram(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each (class, segment), over labelled pixels.

    Args:
        label: int [H, W], 0..classes-1, negative = ignored. prediction: int [H, W], segment numbers >= 0.

    Returns:
        int64 [classes, max(classes, segments)]; segments = the largest number in use on labelled pixels + 1. With fewer
        segments than classes the missing columns are zeros.

    Raises:
        UserError: a label >= classes, or a negative segment. ValueError: different shapes.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label map is {label.shape} but prediction is {prediction.shape}: they must be of one size")
    labelled = label >= 0
    truth, found = label[labelled].astype(np.int64), prediction[labelled].astype(np.int64)
    if truth.size and truth.max() >= classes:
        raise UserError(f"label {truth.max()} found, but there are {classes} classes (0 to {classes - 1})")
    if found.size and found.min() < 0:
        raise UserError(f"segment {found.min()} found: segment numbers start at 0")
    columns = max(classes, int(found.max()) + 1 if found.size else 0)
    return np.bincount(truth * columns + found, minlength=classes * columns).reshape(classes, columns)


def assign(hist: np.ndarray) -> np.ndarray:
    """The segment (column) of each class, int64 [classes]: one to one, so that the matched pixels are most.

    A class that none of the segments is left for, or that is absent, gets one it shares no pixel with.
    """
    return linear_sum_assignment(hist, maximize=True)[1]  # never fewer columns than rows, so every row is there


def match(hist: np.ndarray) -> Counts:
    """Assigns one segment to every class (`assign`) and counts: the paper's protocol.

    Surplus segments fall to classes absent from the image and count there as false positives; segments beyond the
    number of classes only leave false negatives.

    Args:
        hist: int64 [classes, max(classes, segments)] from `histogram`.
    """
    columns = assign(hist)
    tp = hist[np.arange(len(hist)), columns]
    return Counts(tp, hist[:, columns].sum(0) - tp, hist.sum(1) - tp, int(hist.sum()))


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels, 0..1, on which two label maps int [H, W] agree, their numbers matched one to one.

    How large the numbers are costs nothing, only how many of them occur.
    """
    first, second = _renumbered(a), _renumbered(b)
    counts = match(histogram(first, second, int(first.max()) + 1))
    return float(counts.tp.sum() / counts.pixels)


def _renumbered(labels: np.ndarray) -> np.ndarray:
    """Labels int [H, W] with the numbers that occur as 0, 1, ...; negative ones (ignored) stay negative."""
    numbers, rank = np.unique(labels, return_inverse=True)
    return rank.reshape(labels.shape) - np.count_nonzero(numbers < 0)


def summarise(counts: Counts | Iterable[Counts]) -> dict:
    """Accuracy, mIoU (mean over the classes that occur) and IoU per class (NaN where absent): fractions.

    A class occurs if any image has a pixel of it or a segment assigned to it.
    """
    if not isinstance(counts, Counts):
        counts = reduce(Counts.__add__, counts)
    union = counts.tp + counts.fp + counts.fn
    with np.errstate(invalid="ignore"):
        iou = counts.tp / union
    occurs = union > 0
    return {
        "accuracy": float(counts.tp.sum() / counts.pixels) if counts.pixels else float("nan"),
        "miou": float(iou[occurs].mean()) if occurs.any() else float("nan"),
        "iou": iou.tolist(),
    }


def statistics_of(counts: Sequence[Counts]) -> dict[str, np.ndarray]:
    """What the paper's protocol adds up over images: tp, fp, fn, int64 [images, classes]; pixels, int64 [images]."""
    return {
        "tp": np.stack([c.tp for c in counts]),
        "fp": np.stack([c.fp for c in counts]),
        "fn": np.stack([c.fn for c in counts]),
        "pixels": np.array([c.pixels for c in counts]),
    }


def score_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """accuracy and miou of sets of images, float64 [sets]; the mean is over the classes that occur in the set.

    Args:
        sums: those of `statistics_of` over the images of each set: tp, fp, fn [sets, classes], pixels [sets].
    """
    union = sums["tp"] + sums["fp"] + sums["fn"]
    occurs = union > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(occurs, sums["tp"] / union, 0)
        return {"accuracy": sums["tp"].sum(1) / sums["pixels"], "miou": iou.sum(1) / occurs.sum(1)}


def standard_errors(statistics: Statistics, metrics: Metrics) -> dict[str, float]:
    """The jackknife's standard error of each metric over images; NaN with fewer than two images.

    Every image is left out once, and the squared changes of the metric are added up, times (images - 1) / images
    (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 11; deviations are taken from the metric of all
    images, which is never less than from their mean). A class that only one image has drops out of the mean with this
    image: so the error includes that other images have other classes. Draws with replacement understate this, and the
    percentiles of such draws also lean to one side, because every draw loses rare classes and none can gain any.

    Metrics must change smoothly with the sums, as ratios do; for a median, the jackknife is wrong.

    Args:
        statistics: one row per image. metrics: of sums over sets of images.
    """
    return {name: _error(whole, without) for name, (whole, without) in _without_each(statistics, metrics).items()}


def intervals(
    statistics: Statistics,
    metrics: Metrics,
    level: float = 0.95,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of metrics over images: Student's t times the jackknife's `standard_errors` on either side.

    They cover what sets of as many images give on average, whichever classes these have; in simulations (27 classes, 30
    to 200 images) 95 % intervals did so in 92 to 98 % of the cases, mIoU and accuracy alike. mIoU itself moves with the
    number of images: a class's IoU, from a few images, tends to be below that of many, most of all where segments
    seldom match (one single segment for the whole image). No interval around the value tells how far.

    Args:
        statistics: one row per image. metrics: of sums over sets of images. bounds: least and largest value of metrics
            that have such, where intervals end; None: all are fractions.

    Returns:
        {metric: (low, high)}. Without width if leaving out any image changes nothing; NaN with fewer than two images,
        or if a metric is undefined without one of the images.
    """
    result = {}
    for name, (whole, without) in _without_each(statistics, metrics).items():
        least, most = (0.0, 1.0) if bounds is None else bounds.get(name, (-np.inf, np.inf))
        low, high = np.clip(_interval(whole, _error(whole, without), len(without), level), least, most)
        result[name] = (float(low), float(high))
    return result


def paired_intervals(
    first: Statistics, second: Statistics, metrics: Metrics, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """How much better the second of two methods is than the first on the same images: second - first.

    As `intervals`, of the difference: an image is left out for both, so what is hard for both cancels.

    Args:
        first, second: statistics of the same images, in the same order.

    Returns:
        {metric: {"difference", "interval": (low, high), "p"}}. p: of Student's t test, two-sided: the interval of level
        1 - p ends at 0. 1 if the methods never differ.

    Raises:
        ValueError: different numbers of images.
    """
    a, b = _without_each(first, metrics), _without_each(second, metrics)
    result = {}
    for name in a:
        (whole_a, without_a), (whole_b, without_b) = a[name], b[name]
        images = len(without_a)
        if len(without_b) != images:
            raise ValueError(f"{images} and {len(without_b)} images cannot be paired")
        difference = whole_b - whole_a
        error = _error(difference, without_b - without_a)
        result[name] = {
            "difference": difference,
            "interval": _interval(difference, error, images, level),
            "p": _p(difference, error, images),
        }
    return result


def _without_each(statistics: Statistics, metrics: Metrics) -> dict[str, tuple[float, np.ndarray]]:
    """Each metric of all images, and, float64 [images], without each of them."""
    images = len(next(iter(statistics.values())))
    totals = {name: values.sum(0) for name, values in statistics.items()}
    blocks = [
        metrics({name: totals[name] - values[start : start + _BLOCK] for name, values in statistics.items()})
        for start in range(0, images, _BLOCK)
    ]
    whole = metrics({name: total[None] for name, total in totals.items()})
    return {name: (float(value[0]), np.concatenate([b[name] for b in blocks])) for name, value in whole.items()}


def _error(whole: float, without: np.ndarray) -> float:
    images = len(without)
    return float(np.sqrt((images - 1) / images * ((without - whole) ** 2).sum())) if images > 1 else float("nan")


def _interval(value: float, error: float, images: int, level: float) -> tuple[float, float]:
    reach = float(stdtrit(images - 1, (1 + level) / 2)) * error if images > 1 else float("nan")
    return value - reach, value + reach


def _p(difference: float, error: float, images: int) -> float:
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stdtr(images - 1, -abs(difference) / error)) if images > 1 else float("nan")


def tie_sensitivity(hists: Sequence[np.ndarray], orders: int = 20, seed: int = 0) -> tuple[float, float]:
    """Smallest and largest mIoU over the given order of classes and segments and random other ones.

    Which absent class a surplus segment falls to gains nothing, so the solver decides it by position; accuracy does
    not depend on it, mIoU does.

    Args:
        hists: int64 [classes, columns] per image, from `histogram`.
    """
    rng = np.random.default_rng(seed)
    found = []
    for order in range(orders + 1):
        total: list[Counts] = []
        for hist in hists:
            rows, columns = (rng.permutation(n) if order else np.arange(n) for n in hist.shape)
            shuffled, back = match(hist[rows][:, columns]), np.argsort(rows)
            total.append(Counts(shuffled.tp[back], shuffled.fp[back], shuffled.fn[back], shuffled.pixels))
        found.append(summarise(total)["miou"])
    return min(found), max(found)
