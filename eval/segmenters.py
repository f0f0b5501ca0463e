"""What a run can put to the test: each segmenter turns an image's attention into a label map.

A new segmenter is one class here and one file in conf/segmenter/ that names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffseg.attention import Maps
from diffseg.baselines import colour_kmeans, dbscan, kmeans, upsample_labels
from diffseg.segmentation import aggregate, anchor_distances, anchor_grid, merge, merge_batch, refine, to_labels
from diffseg.segmenter import Settings, by_area


class Batch:
    """The images of one pass of the model. What segmenters need of them is computed once, for all of them together.

    pixels: float32 [3, H, W] in [-1, 1] of each. maps: makes {(h, w): [B, h*w, h*w]}.
    """

    def __init__(self, pixels: Sequence[Tensor], maps: Callable[[], Maps]):
        self.pixels = pixels
        self._maps = maps
        self._attention: dict[tuple[float, ...] | None, Tensor] = {}
        self._distances: dict[tuple[tuple[float, ...] | None, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Observed:
        return Observed(self, range(len(self))[index])

    def __iter__(self) -> Iterator[Observed]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def maps(self) -> Maps:
        """The attention maps by resolution; the model runs when they are first asked for."""
        return self._maps()

    def attention(self, weights: tuple[float, ...] | None = None) -> Tensor:
        """Aggregated attention [B, h, w, h, w] for the weights R."""
        if weights not in self._attention:
            self._attention[weights] = aggregate(self.maps, weights)
        return self._attention[weights]

    def distances(self, weights: tuple[float, ...] | None, anchors: int) -> Tensor:
        """Distances [B, M*M, h*w] from the maps of the M x M anchors to all maps."""
        key = (weights, anchors)
        if key not in self._distances:
            self._distances[key] = anchor_distances(self.attention(weights), anchors)
        return self._distances[key]


class Observed:
    """One image of a batch, as segmenters see it."""

    def __init__(self, batch: Batch, index: int):
        self.batch, self.index = batch, index

    @property
    def pixels(self) -> Tensor:
        """float32 [3, H, W] in [-1, 1]."""
        return self.batch.pixels[self.index]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def attention(self, weights: tuple[float, ...] | None = None) -> Tensor:
        """Aggregated attention [h, w, h, w] for the weights R."""
        return self.batch.attention(weights)[self.index]

    def distances(self, weights: tuple[float, ...] | None, anchors: int) -> Tensor:
        """Distances [M*M, h*w] from the maps of the M x M anchors to all maps."""
        return self.batch.distances(weights, anchors)[self.index]

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

    def segment_batch(self, batch: Batch) -> list[np.ndarray]:
        """Labels of each image; for methods that are faster with many at a time."""
        return [self.segment(image) for image in batch]


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
            if isinstance(threshold, str) or not all(isinstance(t, int | float) for t in threshold):
                raise ValueError(f"threshold must be a number, or one for each iteration; got {threshold!r}")
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
        return self._labels(attention, proposals, image.size).to(torch.int32).cpu().numpy()

    @torch.no_grad()
    def segment_batch(self, batch: Batch) -> list[np.ndarray]:
        """As `segment`, waiting for the device once for all images."""
        if self.relative:  # thresholds of its own for each image
            return super().segment_batch(batch)
        s = self.settings
        attention = batch.attention(s.weights)
        proposals = merge_batch(attention, s.anchors, s.threshold, batch.distances(s.weights, s.anchors))
        labels = [self._labels(attention[i], proposals[i], image.size) for i, image in enumerate(batch)]
        return list(torch.stack(labels).to(torch.int32).cpu().numpy())

    def _labels(self, attention: Tensor, proposals: Tensor, size: tuple[int, int]) -> Tensor:
        if self.settings.refine:
            proposals = refine(attention, proposals)
        return by_area(to_labels(proposals, size), len(proposals))[0]


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
