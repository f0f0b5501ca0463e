"""The evaluation protocol: per-image Hungarian matching, summed counts, accuracy and mIoU. Pure numpy and scipy.

The paper's, as unsupervised segmentation has no class names: in every image, segments are assigned one to one to
classes so that the most pixels match; the counts are summed over all images before any ratio is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.optimize import linear_sum_assignment


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
        ValueError: different shapes, a label >= classes, or a negative segment.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label map is {label.shape} but prediction is {prediction.shape}: they must be of one size")
    labelled = label >= 0
    truth, found = label[labelled].astype(np.int64), prediction[labelled].astype(np.int64)
    if truth.size and truth.max() >= classes:
        raise ValueError(f"label {truth.max()} found, but there are {classes} classes (0 to {classes - 1})")
    if found.size and found.min() < 0:
        raise ValueError(f"segment {found.min()} found: segment numbers start at 0")
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
    """Share of pixels, 0..1, on which two label maps int [H, W] agree, their numbers matched one to one."""
    counts = match(histogram(a, b, int(a.max()) + 1))
    return counts.tp.sum() / counts.pixels


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


def bootstrap(counts: Sequence[Counts], samples: int = 1000, level: float = 0.95, seed: int = 0) -> dict:
    """Confidence intervals of accuracy and mIoU over images: the counts of as many images, drawn with replacement.

    Returns:
        {"accuracy": (low, high), "miou": (low, high)}, the central `level` of `samples` draws.
    """
    drawn = _resample(counts, _draws(len(counts), samples, seed))
    return {name: _central(values, level) for name, values in drawn.items()}


def paired_bootstrap(
    first: Sequence[Counts], second: Sequence[Counts], samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> dict[str, dict]:
    """How much better the second of two methods is than the first on the same images: second - first.

    The same images are drawn for both, so what is hard for both cancels.

    Args:
        first, second: counts of the same images, in the same order.

    Returns:
        {"accuracy", "miou": {"difference", "interval": (low, high), "p"}}. p: two-sided, twice the smaller share of
        draws in which the difference is not above or not below 0; at least 1 / samples.
    """
    draws = _draws(len(first), samples, seed)
    a, b = _resample(first, draws), _resample(second, draws)
    whole_a, whole_b = summarise(first), summarise(second)
    found = {}
    for name in ("accuracy", "miou"):
        difference = b[name] - a[name]
        tail = min((difference <= 0).mean(), (difference >= 0).mean())
        found[name] = {
            "difference": whole_b[name] - whole_a[name],
            "interval": _central(difference, level),
            "p": float(min(1.0, max(2 * tail, 1 / samples))),
        }
    return found


def _draws(images: int, samples: int, seed: int) -> np.ndarray:
    """How often each image is drawn, float64 [samples, images]."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples).astype(np.float64)


def _resample(counts: Sequence[Counts], drawn: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy and miou of each draw, [samples]."""
    tp, fp, fn = (drawn @ np.stack([getattr(c, kind) for c in counts]) for kind in ("tp", "fp", "fn"))
    union, pixels = tp + fp + fn, drawn @ np.array([c.pixels for c in counts])
    with np.errstate(invalid="ignore", divide="ignore"):
        miou = np.where(union > 0, tp / union, 0).sum(1) / (union > 0).sum(1)
        return {"accuracy": tp.sum(1) / pixels, "miou": miou}


def _central(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
