"""What a run can put to the test: each segmenter turns one image's attention into a label map.

A new segmenter is one class here and one file in conf/segmenter/ that names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffseg.attention import Maps
from diffseg.baselines import colour_kmeans, dbscan, kmeans, upsample_labels
from diffseg.segmentation import aggregate, anchor_distances, anchor_grid, merge, refine, to_labels
from diffseg.segmenter import Settings, by_area


class Observed:
    """One image as segmenters see it. What several of them need is computed once.

    pixels: float32 [3, H, W] in [-1, 1]. maps: {(h, w): [h*w, h*w]}, from one pass of the model.
    """

    def __init__(self, pixels: Tensor, maps: Callable[[], Maps]):
        self.pixels = pixels
        self._maps = maps
        self._attention: dict[tuple[float, ...] | None, Tensor] = {}
        self._distances: dict[tuple[tuple[float, ...] | None, int], Tensor] = {}

    @cached_property
    def maps(self) -> Maps:
        """The attention maps by resolution; the model runs when they are first asked for."""
        return self._maps()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def attention(self, weights: tuple[float, ...] | None = None) -> Tensor:
        """Aggregated attention [h, w, h, w] for the weights R."""
        if weights not in self._attention:
            self._attention[weights] = aggregate({size: m[None] for size, m in self.maps.items()}, weights)[0]
        return self._attention[weights]

    def distances(self, weights: tuple[float, ...] | None, anchors: int) -> Tensor:
        """Distances [M*M, h*w] from the maps of the M x M anchors to all maps."""
        key = (weights, anchors)
        if key not in self._distances:
            self._distances[key] = anchor_distances(self.attention(weights), anchors)
        return self._distances[key]

    def scale(self, weights: tuple[float, ...] | None = None, anchors: int = 16) -> float:
        """Median distance in nats between two different anchors: how far apart this image's maps are."""
        h, w = self.attention(weights).shape[:2]
        anchors = min(anchors, h, w)
        grid = anchor_grid(anchors, (h, w))
        between = self.distances(weights, anchors)[:, (grid[:, 0] * w + grid[:, 1]).to(self.attention(weights).device)]
        rows, columns = torch.triu_indices(len(grid), len(grid), offset=1)
        return float(between[rows, columns].median()) if len(rows) else 1.0


class Segmenter(ABC):
    """Segments without ever seeing the truth."""

    @abstractmethod
    def segment(self, image: Observed) -> np.ndarray:
        """Labels int [H, W], >= 0."""


class Oracle(ABC):
    """A control that is told something about the truth; its figures are no fair comparison, and reports say so."""

    @abstractmethod
    def segment(self, image: Observed, truth: np.ndarray) -> np.ndarray:
        """Labels int [H, W], >= 0; truth: int [H, W], -1 = ignored."""


class DiffSeg(Segmenter):
    """The paper's method. Arguments as for `diffseg.DiffSeg`; labels by falling area.

    relative: thresholds are fractions of the image's own median distance between anchors (`Observed.scale`), because
    an absolute tau does not carry over from model to model.
    """

    def __init__(
        self,
        threshold: float | Sequence[float],
        iterations: int | None = None,
        anchors: int = 16,
        weights: Sequence[float] | None = None,
        refine: bool = False,
        relative: bool = False,
    ):
        if not isinstance(threshold, int | float):
            threshold = list(threshold)
            iterations = len(threshold) if len(threshold) > 1 else iterations
        self.settings = Settings.make(threshold, iterations, weights, anchors=anchors, refine=refine)
        self.relative = relative

    @torch.no_grad()
    def segment(self, image: Observed) -> np.ndarray:
        """Labels int32 [H, W], 0..K-1."""
        s = self.settings
        attention = image.attention(s.weights)
        unit = image.scale(s.weights) if self.relative else 1.0
        thresholds = [t * unit for t in s.threshold]
        proposals = merge(attention, s.anchors, thresholds, image.distances(s.weights, s.anchors))
        if s.refine:
            proposals = refine(attention, proposals)
        labels, _ = by_area(to_labels(proposals, image.size), proposals)
        return labels.to(torch.int32).cpu().numpy()


class KMeans(Segmenter):
    """K-Means-C: k-means on the aggregated attention with one k for every image."""

    def __init__(self, clusters: int, weights: Sequence[float] | None = None):
        if clusters < 1:
            raise ValueError(f"clusters must be at least 1, got {clusters}")
        self.clusters, self.weights = clusters, None if weights is None else tuple(weights)

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W], 0..k-1."""
        return upsample_labels(kmeans(image.attention(self.weights), self.clusters), image.size).numpy()


class KMeansOracle(Oracle):
    """K-Means-S: k-means on the aggregated attention, told each image's number of classes."""

    def __init__(self, weights: Sequence[float] | None = None):
        self.weights = None if weights is None else tuple(weights)

    def segment(self, image: Observed, truth: np.ndarray) -> np.ndarray:
        """Labels int64 [H, W], 0..k-1."""
        found = kmeans(image.attention(self.weights), classes_in(truth))
        return upsample_labels(found, image.size).numpy()


class Dbscan(Segmenter):
    """DBSCAN on the aggregated attention. eps: a fraction of the image's median distance between anchors."""

    def __init__(self, eps: float, min_samples: int = 5, weights: Sequence[float] | None = None):
        if eps <= 0 or min_samples < 1:
            raise ValueError(f"eps must be above 0 and min_samples at least 1, got {eps} and {min_samples}")
        self.eps, self.min_samples = eps, min_samples
        self.weights = None if weights is None else tuple(weights)

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W], 0..K-1."""
        eps = self.eps * image.scale(self.weights)
        return upsample_labels(dbscan(image.attention(self.weights), eps, self.min_samples), image.size).numpy()


class ColourKMeans(Oracle):
    """The control without a model: k-means on colour (and position), told each image's number of classes."""

    def __init__(self, place: float = 0.0):
        self.place = place

    def segment(self, image: Observed, truth: np.ndarray) -> np.ndarray:
        """Labels int64 [H, W], 0..k-1."""
        return colour_kmeans(image.pixels, classes_in(truth), self.place).numpy()


class Whole(Segmenter):
    """The floor: the whole image as one segment."""

    def segment(self, image: Observed) -> np.ndarray:
        """Zeros int64 [H, W]."""
        return np.zeros(image.size, np.int64)


def classes_in(truth: np.ndarray) -> int:
    """The number of classes of a label map int [H, W], -1 = ignored; at least 1."""
    return max(len(np.unique(truth[truth >= 0])), 1)
