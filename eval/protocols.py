"""Scoring protocols: what segments without names are worth against a truth. Pure numpy and scipy.

All of them but `Boundaries` read one table per image: int64 [classes + 1, segments], the pixels each class shares with
each segment; the last row is void, the unlabelled pixels. A segment's column is its number. Scoring is in two steps, so
that one resampling of images serves every protocol: `statistics` of each image, which add up, and `metrics` of sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffseg.eval import metrics
from diffseg.eval.boundaries import EXACT, FAST, f_measure
from diffseg.eval.regions import NAMES, region_scores

FRACTION = (0.0, 1.0)


class Protocol(ABC):
    """One way of scoring. Fractions 0..1 unless a class says otherwise; NaN where there is nothing to score."""

    version: ClassVar[int] = 1  # goes into the hash of scores: to be raised when the definition changes
    counts: ClassVar[str] = "pixels"  # what it reads of each image: this table, or "boundaries"
    needs_names: ClassVar[bool] = False  # True: the labels' numbers are read as those of classes
    needs_classes: ClassVar[bool] = True  # False: it also scores regions without classes, of several annotations
    headline: ClassVar[str] = "miou"  # the metric that stands for it where there is room for one; large is good
    small_is_good: ClassVar[frozenset[str]] = frozenset()  # of its metrics, those whose best value is the least
    scales: ClassVar[tuple[str, ...]] = ()  # metrics, more than the headline, wanted at the best of several settings
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}  # least and most of each metric, where there is such

    @abstractmethod
    def statistics(self, hists: Sequence[np.ndarray], background: int | None = None) -> dict[str, np.ndarray]:
        """What adds up, of each image: {name: [images, ...]}.

        Args:
            hists: int64 [classes + 1, segments] per image, the last row void; segments may differ between images.
            background: index of the class that stands for everything else, if the data set has one.
        """

    @abstractmethod
    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores of sums of `statistics` over any images, drawn repeatedly or not: {name: [draws, ...]} to [draws]."""

    def score(self, hists: Sequence[np.ndarray], background: int | None = None) -> dict[str, float]:
        """`metrics` of all images, each once."""
        sums = {name: values.sum(0, keepdims=True) for name, values in self.statistics(hists, background).items()}
        return {name: float(values[0]) for name, values in self.metrics(sums).items()}


class Matching(Protocol):
    """A protocol that gives segments classes and counts pixels per class.

    accuracy: true positives of all classes / labelled pixels. miou: mean of tp / (tp + fp + fn) over the classes that
    occur, which are those with any of the three above 0 in the images taken.
    """

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"accuracy": FRACTION, "miou": FRACTION}

    @abstractmethod
    def assign(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        """The class of each segment, int64 [segments]; -1: none, so that its pixels are nobody's false positives."""

    def counted(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        """The table that is counted, int64 [classes, segments]: without void."""
        return hist[:-1]

    def classes_of(self, hists: Sequence[np.ndarray], background: int | None = None) -> list[np.ndarray]:
        """The class of each segment of each image, as `assign`."""
        return [self.assign(hist, background) for hist in hists]

    def statistics(self, hists: Sequence[np.ndarray], background: int | None = None) -> dict[str, np.ndarray]:
        """tp, fp, fn int64 [images, classes], pixels int64 [images]."""
        classes = self.classes_of(hists, background)
        each = [_tally(self.counted(hist, background), c) for hist, c in zip(hists, classes, strict=True)]
        return {kind: np.stack([getattr(c, kind) for c in each]) for kind in ("tp", "fp", "fn", "pixels")}

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """accuracy and miou."""
        iou = self.iou(sums)
        occurs = ~np.isnan(iou)
        return {
            "accuracy": _ratio(sums["tp"].sum(-1), sums["pixels"]),
            "miou": _ratio(np.where(occurs, iou, 0).sum(-1), occurs.sum(-1)),
        }

    def iou(self, sums: dict[str, np.ndarray]) -> np.ndarray:
        """IoU per class, [draws, classes], NaN where the class does not occur."""
        return _ratio(sums["tp"], sums["tp"] + sums["fp"] + sums["fn"])


@dataclass(frozen=True)
class OneToOne(Matching):
    """diffseg, the paper's: in every image segments and classes are paired so that the most pixels match.

    `metrics.match` of the same image gives the same counts. With fewer segments than classes the table is padded; the
    segments beyond the number of classes get none and cost only false negatives. An assignment is of every class, so
    surplus segments of an image fall to classes absent from it, and to present ones they share no pixel with, and count
    there as false positives: one class cut in three scores below 1/3. Which class that is gains nothing, so the solver
    settles it by position; mIoU depends on it, accuracy does not (`metrics.tie_sensitivity`).

    absent=False, strict: only a pair that shares pixels counts. A segment left over charges no class; its pixels are
    false negatives of theirs. The rest is the same pairing.
    """

    absent: bool = True
    version: ClassVar[int] = 1

    def assign(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        classes = _paired(hist[:-1])
        if not self.absent:
            classes[hist[classes, np.arange(len(classes))] == 0] = -1
        return classes


@dataclass(frozen=True)
class BackgroundMerged(Matching):
    """diffcut: what falls to no object becomes one background before scoring; without a background class, `OneToOne`.

    1. Foreground classes are paired with segments as in `OneToOne`, over their own pixels alone.
    2. The segments of foreground classes that the image has are kept; all others become one segment. So it uses the
       truth, and forgives any division of the background: a content-free grid gains much by it.
    3. Void counts as background, also in accuracy.
    4. The remaining segments are paired with all classes as in `OneToOne`, background being the last of them; the
       merged one may end with any class, or none.

    A present class that others leave no segment takes one it shares no pixel with, which the solver picks by position,
    and which thereby stays out of the background: as in the method's release. Published figures are at 128 x 128.
    """

    version: ClassVar[int] = 1

    def assign(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        """The class of each segment after merging; merged ones share theirs. background: None: as `OneToOne`."""
        if background is None:
            return OneToOne().assign(hist)
        order = np.append(np.delete(np.arange(len(hist) - 1), background), background)
        table, used = self.counted(hist, background)[order], hist.any(0)
        last = _width(hist)
        merged = used & ~self._kept(hist[order[:-1]], last)
        remaining = np.where(merged, 0, table)[:, :last]
        if merged.any():
            remaining = np.column_stack([remaining, table[:, merged].sum(1)])
        paired = _paired(remaining, remaining.shape[1])
        classes = np.full(hist.shape[1], -1)
        classes[:last] = paired[:last]
        classes[merged] = paired[-1]
        return np.where(classes >= 0, order[classes], -1)

    @staticmethod
    def _kept(foreground: np.ndarray, last: int) -> np.ndarray:
        """bool [segments]: paired with a class of `foreground` [classes - 1, segments] that has pixels."""
        classes = _paired(foreground, last)
        return (classes >= 0) & (foreground.sum(1)[classes] > 0)

    def counted(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        table = hist[:-1].copy()
        if background is not None:
            table[background] += hist[-1]
        return table


@dataclass(frozen=True)
class Majority(Matching):
    """majority: each segment takes the class of most of its labelled pixels, of equals the first.

    Its accuracy is the achievable segmentation accuracy (ASA), the ceiling of any naming of the segments. It never
    falls when segments are divided, and reaches 1 with single pixels, so it says nothing without their number.
    """

    version: ClassVar[int] = 1
    headline: ClassVar[str] = "accuracy"

    def assign(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        return np.where(hist[:-1].any(0), hist[:-1].argmax(0), -1)


@dataclass(frozen=True)
class OverDataset(Matching):
    """dataset: one pairing of segment numbers and classes for all images, from their summed table (IIC, PiCIE, STEGO).

    For segments whose numbers mean the same in every image, such as clusters of features; numbers that only tell
    segments apart score near chance. It is paired as `OneToOne` pairs one image, surplus numbers included.

    The pairing is made once, from all images that `statistics` is given, so the statistics of a part of them taken
    alone need not add up to those of the whole, and draws of images keep the pairing of the whole.
    """

    version: ClassVar[int] = 1

    def assign(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        """hist: the summed table."""
        return OneToOne().assign(hist)

    def classes_of(self, hists: Sequence[np.ndarray], background: int | None = None) -> list[np.ndarray]:
        total = np.zeros((len(hists[0]), max(hist.shape[1] for hist in hists)), np.int64)
        for hist in hists:
            total[:, : hist.shape[1]] += hist
        classes = self.assign(total, background)
        return [classes[: hist.shape[1]] for hist in hists]


@dataclass(frozen=True)
class Named(Matching):
    """names: a segment's number is its class (Semantic DiffSeg, supervised methods); numbers beyond them are no class.

    A class named in an image that lacks it counts as false positives there.
    """

    version: ClassVar[int] = 1
    needs_names: ClassVar[bool] = True

    def assign(self, hist: np.ndarray, background: int | None = None) -> np.ndarray:
        numbers = np.arange(hist.shape[1])
        return np.where(numbers < len(hist) - 1, numbers, -1)


@dataclass(frozen=True)
class Regions(Protocol):
    """regions: two partitions of an image compared, without classes; definitions in `regions`.

    covering: sum over regions of area x best IoU, over the summed areas of all images. pri: (probabilistic) Rand index,
    ari: adjusted Rand index (at most 1, also negative), mbo: mean best overlap, vi: variation of information in *bits*,
    small is good: means over images with labelled pixels.

    An image's regions are the rows of its table, void left out. From a table of classes, a class is one region however
    many parts or objects it has: right for no data set with several objects of a class, and harsh on methods that part
    them. An image with several annotations is a list of tables, all with a void row, in place of one: areas are summed
    over them, the means taken first over them.
    """

    version: ClassVar[int] = 1
    needs_classes: ClassVar[bool] = False
    headline: ClassVar[str] = "covering"
    small_is_good: ClassVar[frozenset[str]] = frozenset({"vi"})
    scales: ClassVar[tuple[str, ...]] = ("pri", "vi")
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **dict.fromkeys(("covering", "pri", "mbo"), FRACTION),
        "vi": (0, np.inf),
        "ari": (-1, 1),
    }

    def statistics(
        self, hists: Sequence[np.ndarray | Sequence[np.ndarray]], background: int | None = None
    ) -> dict[str, np.ndarray]:
        """covered and area (pixels), pri, vi, ari, mbo and images (1 or 0): float64 [images]."""
        each = [self._image([h] if isinstance(h, np.ndarray) else h) for h in hists]
        return {name: np.array([scores[name] for scores in each]) for name in each[0]}

    @staticmethod
    def _image(tables: Sequence[np.ndarray]) -> dict[str, float]:
        labelled = [table[:-1] for table in tables if table[:-1].any()]
        if not labelled:
            return dict.fromkeys(("covered", "area", *NAMES, "images"), 0.0)
        return region_scores(labelled) | {"images": 1.0}

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """covering, pri, vi, ari, mbo."""
        means = {name: _ratio(sums[name], sums["images"]) for name in NAMES}
        return {"covering": _ratio(sums["covered"], sums["area"])} | means


@dataclass(frozen=True)
class Boundaries(Protocol):
    """boundaries: how well boundaries lie, whatever is on their sides; definitions in `boundaries`.

    f, precision, recall: by dilation as DAVIS, the mean over images of each image's value. With no boundary in one of
    the two maps, F is 0; with none in both, or nothing labelled, 1. boundary_iou: pixels near a boundary of both maps
    over those near one of either, summed over images; its bands have no sides, and so many boundaries that all pixels
    are near one score the truth's share of the image. matched_f, matched_precision, matched_recall: one to one as
    BSDS500, of sums over images, where counts include them. An image with several annotations has these alone.
    """

    version: ClassVar[int] = 1
    needs_classes: ClassVar[bool] = False
    headline: ClassVar[str] = "f"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("f", "precision", "recall", "boundary_iou", "matched_f", "matched_precision", "matched_recall"), FRACTION
    )
    counts: ClassVar[str] = "boundaries"

    def statistics(self, hists: Sequence[np.ndarray], background: int | None = None) -> dict[str, np.ndarray]:
        """float64 [images] each; images: 1.

        Args:
            hists: int64 [6] or [10] per image, from `boundary_counts`, or [4], from `matched_counts`.
        """
        counts = np.stack(hists).astype(np.float64)
        if counts.shape[1] == len(EXACT):
            return dict(zip(EXACT, counts.T, strict=True))
        columns = dict(zip((*FAST, *EXACT), counts.T, strict=False))
        recalled, truth, precise, labels = (columns[name] for name in FAST[:4])
        recall = np.where(truth > 0, recalled / np.maximum(truth, 1), 1)
        precision = np.where(labels > 0, precise / np.maximum(labels, 1), 1)
        means = {"f": f_measure(precision, recall), "precision": precision, "recall": recall}
        summed = {name: column for name, column in columns.items() if name not in FAST[:4]}
        return means | {"images": np.ones(len(counts))} | summed

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """f, precision, recall, boundary_iou, and of exact counts matched_f, matched_precision, matched_recall."""
        scores: dict[str, np.ndarray] = {}
        if "images" in sums:
            scores |= {name: _ratio(sums[name], sums["images"]) for name in ("f", "precision", "recall")}
            scores["boundary_iou"] = _ratio(sums["band_both"], sums["band_either"])
        if EXACT[0] in sums:
            recalled, truth, precise, labels = (np.asarray(sums[name]) for name in EXACT)
            precision, recall = _ratio(precise, labels), _ratio(recalled, truth)
            f = f_measure(np.nan_to_num(precision), np.nan_to_num(recall))
            scores |= {"matched_f": f, "matched_precision": precision, "matched_recall": recall}
        return scores


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.divide(part, whole), np.nan)


def _tally(table: np.ndarray, classes: np.ndarray) -> metrics.Counts:
    """Counts of a table [classes, segments] whose segments have these classes, int64 [segments], -1: none."""
    named = np.flatnonzero(classes >= 0)
    tp, assigned = (np.zeros(len(table), np.int64) for _ in range(2))
    np.add.at(tp, classes[named], table[classes[named], named])
    np.add.at(assigned, classes[named], table[:, named].sum(0))
    return metrics.Counts(tp, assigned - tp, table.sum(1) - tp, int(table.sum()))


def _width(table: np.ndarray) -> int:
    """The largest number of a segment with pixels, + 1."""
    return int(np.flatnonzero(table.any(0)).max(initial=-1)) + 1


def _paired(table: np.ndarray, width: int | None = None) -> np.ndarray:
    """The class of each segment in the one-to-one assignment of a table [classes, segments]: int64 [segments], or -1.

    The solver settles ties by position and size, so it is given exactly the table that `metrics.histogram` makes: as
    wide as the segments in use, or `width`, and no narrower than the classes.
    """
    segments = table.shape[1]
    padded = paired_table(table, width)
    chosen = np.full(max(padded.shape[1], segments), -1)
    chosen[metrics.assign(padded)] = np.arange(len(table))
    return chosen[:segments]


def paired_table(table: np.ndarray, width: int | None = None) -> np.ndarray:
    """A table [classes, segments] as it is paired, int64 [classes, columns]: as `metrics.histogram` makes it."""
    width = _width(table) if width is None else width
    padded = np.zeros((len(table), max(len(table), width)), np.int64)
    padded[:, : min(width, table.shape[1])] = table[:, :width]
    return padded
