"""Pixel counts along the boundaries of two label maps, from which boundary scores follow. Pure numpy and scipy.

Three definitions, all blind to which label lies on which side:

- dilation (DAVIS): a boundary pixel counts if one of the other map's is within .008 of the diagonal;
- band (Boundary IoU): pixels within .02 of the diagonal of a boundary, of both maps over of either;
- matching (BSDS500): boundaries thinned and paired one to one, at most .0075 of the diagonal apart.

For images of 512 pixels the first two together take 5 ms, whatever the maps. Matching is exact and takes another 4 to
25 ms on photographs' labels, up to 100 ms on noise, so `boundary_counts` does it only when asked.

Unlabelled pixels are left out: a boundary lies between two labelled neighbours, in either map, so what is predicted
inside or at the edge of void costs and earns nothing. Where void was drawn along the contours themselves (Pascal VOC),
that leaves hardly a boundary to score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

DILATION, BAND, MATCHING = 0.008, 0.02, 0.0075  # of the diagonal
FAST = ("dilation_recalled", "dilation_truth", "dilation_precise", "dilation_labels", "band_both", "band_either")
EXACT = ("matched_recalled", "matched_truth", "matched_precise", "matched_labels")


def boundary_counts(truth: np.ndarray, labels: np.ndarray, exact: bool = False) -> np.ndarray:
    """Boundary pixels of one image.

    Args:
        truth, labels: int [H, W]; negative truth = void. exact: also match one to one.

    Returns:
        int64 [6], named by `FAST`, or [10], then `EXACT`. recalled: boundary pixels of the truth near those of the
        labels, of all: truth; precise: those of the labels near the truth's, of all: labels. band: pixels near a
        boundary of both, of either.

    Raises:
        ValueError: maps of different shapes.
    """
    if truth.shape != labels.shape:
        raise ValueError(f"truth is {truth.shape} but labels are {labels.shape}: they must be of one size")
    labelled = truth >= 0
    counts = [_dilated(truth, labels, labelled), _bands(truth, labels, labelled)]
    if exact:
        counts.append(matched_counts([boundaries(truth, labelled)], boundaries(labels, labelled)))
    return np.concatenate(counts)


def boundaries(labels: np.ndarray, labelled: np.ndarray | None = None) -> np.ndarray:
    """Pixels whose label differs from that on the right, below or below on the right: bool [H, W].

    So a boundary is marked on one of its sides, and a pixel wide except at steps.

    Args:
        labels: int [H, W]. labelled: bool [H, W], pixels to compare; None: all.
    """
    marked = np.zeros(labels.shape, bool)
    for this, other in _neighbours()[:3]:
        marked[this] |= _differ(labels, labelled, this, other)
    return marked


def _neighbours() -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Slices of each pixel and its neighbour: right, below, below right, below left."""
    every, fore, hind = slice(None), slice(None, -1), slice(1, None)
    return [
        ((every, fore), (every, hind)),
        ((fore, every), (hind, every)),
        ((fore, fore), (hind, hind)),
        ((fore, hind), (hind, fore)),
    ]


def _differ(labels: np.ndarray, labelled: np.ndarray | None, this: tuple, other: tuple) -> np.ndarray:
    differ = labels[this] != labels[other]
    return differ if labelled is None else differ & labelled[this] & labelled[other]


# --- dilation ---------------------------------------------------------------------------------------------------------


def _dilated(truth: np.ndarray, labels: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """int64 [4]: the first four of `FAST`. Boundaries are not thinned here."""
    radius = math.ceil(DILATION * math.hypot(*truth.shape))
    a, b = boundaries(truth, labelled), boundaries(labels, labelled)
    near_a, near_b = dilate(a, radius), dilate(b, radius)
    return np.array([np.count_nonzero(m) for m in (a & near_b, a, b & near_a, b)], np.int64)


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels at most `radius` pixels (Euclidean) from a pixel of the mask: bool [H, W]."""
    h, w = mask.shape
    padded = np.pad(mask, radius)
    row, reached = padded[:, radius : radius + w].copy(), 0  # the mask, dilated so far along its rows
    near = np.zeros((h, w), bool)
    for dy in range(radius, -1, -1):  # the disc's rows: from its ends, a pixel wide, to its middle
        reach = math.isqrt(radius**2 - dy**2)
        for dx in range(reached + 1, reach + 1):
            row |= padded[:, radius - dx : radius - dx + w]
            row |= padded[:, radius + dx : radius + dx + w]
        reached = reach
        near |= row[radius - dy : radius - dy + h]
        near |= row[radius + dy : radius + dy + h]
    return near


# --- band -------------------------------------------------------------------------------------------------------------


def _bands(truth: np.ndarray, labels: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """int64 [2]: the last two of `FAST`."""
    width = max(1, round(BAND * math.hypot(*truth.shape)))
    a, b = band(truth, width, labelled), band(labels, width, labelled)
    return np.array([np.count_nonzero(a & b), np.count_nonzero(a | b)], np.int64)


def band(labels: np.ndarray, width: int, labelled: np.ndarray | None = None) -> np.ndarray:
    """Pixels with another label at most `width` rows and columns away: bool [H, W].

    What eroding every region `width` times by 3 x 3 pixels takes away, except that the image's own edge is no boundary.
    """
    sides = np.zeros(labels.shape, np.uint8)
    for this, other in _neighbours():
        differ = _differ(labels, labelled, this, other)
        sides[this] |= differ
        sides[other] |= differ
    for axis in (0, 1):
        sides = maximum_filter1d(sides, 2 * width - 1, axis, mode="constant")
    return sides.astype(bool) if labelled is None else sides.astype(bool) & labelled


# --- matching ---------------------------------------------------------------------------------------------------------


def matched_counts(truths: Sequence[np.ndarray], labels: np.ndarray, tolerance: float = MATCHING) -> np.ndarray:
    """One map of boundaries against those of one or several annotations, as BSDS500's benchmark counts.

    All are thinned and each annotation is matched on its own. A pixel of the labels is precise if any annotation
    matches it; recalled and truth are summed over annotations.

    Args:
        truths, labels: bool [H, W] from `boundaries`. tolerance: of the image's diagonal.

    Returns:
        int64 [4], named by `EXACT`.
    """
    thin, radius = thinned(labels), tolerance * math.hypot(*labels.shape)
    precise = np.zeros(np.count_nonzero(thin), bool)
    recalled = total = 0
    for truth in map(thinned, truths):
        matched = match_pixels(thin, truth, radius, nearest=len(truths) > 1)
        precise |= matched
        recalled += int(matched.sum())
        total += int(truth.sum())
    return np.array([recalled, total, np.count_nonzero(precise), len(precise)], np.int64)


def match_pixels(a: np.ndarray, b: np.ndarray, radius: float, nearest: bool = True) -> np.ndarray:
    """Pairs as many pixels of one mask with pixels of the other as possible, one to one, at most `radius` apart.

    Args:
        a, b: bool [H, W]. nearest: of all such pairings one with the smallest sum of distances; without, any of them,
            several times faster, and as many.

    Returns:
        bool [pixels of a, row by row]: which of them are paired.
    """
    paired = np.zeros(np.count_nonzero(a), bool)
    i, j, distances = _pairs_within(a, b, radius)
    if not len(i):
        return paired
    costs = distances + 1 if nearest else np.ones(len(i))
    pixels, i = np.unique(i, return_inverse=True)  # only pixels with a neighbour take part
    others, j = np.unique(j, return_inverse=True)
    if len(pixels) <= len(others):
        paired[pixels[_assigned(i, j, costs) >= 0]] = True
    else:
        partners = _assigned(j, i, costs)
        paired[pixels[partners[partners >= 0]]] = True
    return paired


def _assigned(rows: np.ndarray, columns: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The column of each row, int64 [rows], -1: none, in the largest matching of least cost on a sparse graph.

    Each row has also a column of its own, dearer than all else together, that stands for no partner.
    """
    n, m = int(rows.max()) + 1, int(columns.max()) + 1
    none = np.arange(n)
    dear = costs.max() * (n + 1)
    values = np.concatenate([costs, np.full(n, dear)])
    places = np.concatenate([rows, none]), np.concatenate([columns, m + none])
    chosen = min_weight_full_bipartite_matching(csr_array((values, places), shape=(n, m + n)))[1]
    return np.where(chosen < m, chosen, -1)


def _pairs_within(a: np.ndarray, b: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the pixels (row by row) of all pairs at most `radius` apart, and their distances: three [pairs]."""
    margin = int(radius)
    dy, dx = np.mgrid[-margin : margin + 1, -margin : margin + 1].reshape(2, -1)
    distances = np.hypot(dy, dx)
    within = distances <= radius
    a, b = np.pad(a, margin), np.pad(b, margin).ravel()
    number = np.where(b, np.cumsum(b) - 1, -1)
    around = number[np.flatnonzero(a)[:, None] + (dy * a.shape[1] + dx)[within]]
    i, offset = np.nonzero(around >= 0)
    return i, around[i, offset], distances[within][offset]


def thinned(mask: np.ndarray) -> np.ndarray:
    """Boundaries thinned to lines a pixel wide with nothing torn: bool [H, W].

    Guo and Hall's parallel thinning (1989, with two subiterations), repeated until nothing changes; the annotations'
    own boundaries of BSDS500 are exactly this of `boundaries`.
    """
    padded = np.pad(mask, 1)
    width, flat = padded.shape[1], padded.ravel()
    around = np.array([1, 1 - width, -width, -width - 1, -1, width - 1, width, width + 1])  # right, then anticlockwise
    unseen = np.stack([flat, flat])  # pixels whose neighbours have changed since each subiteration last looked
    while unseen.any():
        for removable, pending in zip(_REMOVABLE, unseen, strict=True):
            pixels = np.flatnonzero(pending)
            pending[pixels] = False
            gone = pixels[removable[flat[pixels[:, None] + around] @ _BITS]]
            flat[gone] = False
            near = (gone[:, None] + around).ravel()
            unseen[:, near[flat[near]]] = True
            unseen[:, gone] = False
    return padded[1:-1, 1:-1]


_BITS = 1 << np.arange(8)


def _removable() -> np.ndarray:
    """Whether a pixel may go, by its 8 neighbours as bits: bool [2 subiterations, 256]."""
    x = (np.arange(256)[:, None] & _BITS) > 0  # x[:, 0]: right, then anticlockwise; even: sides, odd: corners
    sides, corners, following = x[:, ::2], x[:, 1::2], np.roll(x[:, ::2], -1, axis=1)
    branches = (~sides & (corners | following)).sum(1)
    width = np.minimum((sides | corners).sum(1), (corners | following).sum(1))
    thick = (branches == 1) & (width >= 2) & (width <= 3)
    first = (x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0]
    second = (x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4]
    return np.stack([thick & ~first, thick & ~second])


_REMOVABLE = _removable()


# --- scores -----------------------------------------------------------------------------------------------------------


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Harmonic mean, 0 where both are 0."""
    both = precision + recall
    return 2 * precision * recall / np.where(both > 0, both, 1)


def best_boundaries(counts: np.ndarray) -> dict[str, float]:
    """Precision, recall and F at the best setting, as BSDS500's benchmark defines them.

    Args:
        counts: [images, settings, 4] of `matched_counts`, settings in their order, for the curve is taken to run
            straight from each to the next.

    Returns:
        {precision, recall, f} x {"_ods": where on that curve F of the summed counts is largest, "_ois": of the counts
        at each image's own best setting, summed}; "setting": that of ODS, from 0, a fraction between two; "ap": area
        under the curve, 0 beyond its ends.
    """
    recall, precision = _rates(counts.sum(0))  # the curve, [settings]
    last = len(recall) - 1
    place = np.linspace(0, last, 99 * last + 1)
    along_recall, along_precision = (np.interp(place, np.arange(last + 1), v) for v in (recall, precision))
    top = f_measure(along_precision, along_recall).argmax()
    each_recall, each_precision = _rates(counts)
    own = f_measure(each_precision, each_recall).argmax(1)
    recall_ois, precision_ois = _rates(counts[np.arange(len(counts)), own].sum(0, keepdims=True))
    return (
        {"setting": float(place[top])}
        | _named("ods", along_recall[top], along_precision[top])
        | _named("ois", recall_ois[0], precision_ois[0])
        | {"ap": _area(recall, precision)}
    )


def _named(kind: str, recall: float, precision: float) -> dict[str, float]:
    f = f_measure(np.asarray(precision), np.asarray(recall))
    return {f"recall_{kind}": float(recall), f"precision_{kind}": float(precision), f"f_{kind}": float(f)}


def _rates(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of counts [..., 4]; 0 where there is nothing to count."""
    recalled, truth, precise, labels = np.moveaxis(counts, -1, 0)
    return recalled / np.maximum(truth, 1), precise / np.maximum(labels, 1)


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    places, first = np.unique(recall, return_index=True)
    if len(places) < 2:
        return 0.0
    return float(np.interp(np.linspace(0, 1, 101), places, precision[first], left=0, right=0).sum() / 100)
