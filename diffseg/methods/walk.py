"""Attention as a random walk: from a position to those that it attends to. Segments are what the walk seldom leaves.

`Walk` cuts the walk of several steps recursively; it is this project's own. `Spectral` is the plain baseline: k-way
spectral clustering with one k for every image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg.errors import UserError
from diffseg.methods.base import Grouping, as_numpy, upsample_labels
from diffseg.methods.ncut import CutTree, check_threshold, cluster_qr, normalised, partitions
from diffseg.observed import Observed
from diffseg.segmentation import by_area, to_labels


class ByWalk(Grouping):
    """Groups positions by a walk over the aggregated attention; pixels then as DiffSeg's, by the groups' mean maps.

    steps: of the walk. grid: positions a side at most, which finer attention is pooled to. weights: R.
    """

    def __init__(self, steps: int, grid: int, weights: Sequence[float] | None):
        if not 1 <= steps <= 1024:
            raise UserError(f"steps must be 1 to 1024, got {steps}")
        if not 2 <= grid <= 128:
            raise UserError(f"grid must be 2 to 128 positions a side, got {grid}")
        self.steps, self.grid = steps, grid
        self.weights = None if weights is None else tuple(weights)

    def affinity(self, image: Observed) -> Tensor:
        """float64 [N, N] between pooled positions, symmetric."""
        return walk_affinity(image.attention(self.weights, self.look), self.steps, self.grid)

    def key(self, what: str, image: Observed) -> tuple:
        """The name of something of an image that other settings of the method share."""
        return (what, self.weights, self.look, self.steps, self.grid, image.index)

    def pixels_of(self, image: Observed, groups: Tensor) -> np.ndarray:
        """Each pixel to the largest of the groups' mean maps; numbers by falling area."""
        attention = image.attention(self.weights, self.look)
        h, w = attention.shape[:2]
        members = F.one_hot(upsample_labels(groups, (h, w)).flatten()).T.to(attention.dtype)  # [K, h*w]
        maps = (members @ attention.reshape(h * w, -1) / members.sum(1, keepdim=True)).view(-1, h, w)
        return as_numpy(by_area(to_labels(maps, image.size), len(maps))[0])


class Walk(ByWalk):
    """Recursive normalized cut of the walk's affinity. threshold: tau, the largest NCut that still divides, 0..2."""

    def __init__(self, threshold: float = 0.5, steps: int = 1, grid: int = 32, weights: Sequence[float] | None = None):
        super().__init__(steps, grid, weights)
        check_threshold(threshold)
        self.threshold = threshold

    def groups(self, images: Sequence[Observed]) -> list[Tensor]:
        """Recursive normalized cut of each walk."""
        trees = [self._tree(image) for image in images]
        sizes = [pooled(image.attention(self.weights, self.look).shape[:2], self.grid) for image in images]
        return [labels.view(size) for labels, size in zip(partitions(trees, self.threshold), sizes, strict=True)]

    def _tree(self, image: Observed) -> CutTree:
        """The image's bisections, which all thresholds share."""
        return image.batch.once(self.key("walk tree", image), lambda: CutTree(self.affinity(image), False))


class Spectral(ByWalk):
    """Plain spectral clustering of the walk's affinity: k eigenvectors, assigned by pivoted QR. clusters: k."""

    def __init__(self, clusters: int = 6, steps: int = 1, grid: int = 32, weights: Sequence[float] | None = None):
        super().__init__(steps, grid, weights)
        if clusters < 1:
            raise UserError(f"clusters must be at least 1, got {clusters}")
        self.clusters = clusters

    def groups(self, images: Sequence[Observed]) -> list[Tensor]:
        """The spectral clusters of each walk."""
        return [self._clusters(image) for image in images]

    def _clusters(self, image: Observed) -> Tensor:
        def eigenvectors() -> Tensor:
            return torch.linalg.eigh(normalised(self.affinity(image)))[1].flip(1)

        vectors = image.batch.once(self.key("walk eigenvectors", image), eigenvectors)
        if self.clusters > len(vectors):
            raise UserError(f"clusters must be 1 to {len(vectors)}, got {self.clusters}")
        size = pooled(image.attention(self.weights, self.look).shape[:2], self.grid)
        return cluster_qr(vectors[:, : self.clusters]).view(size)


def pooled(size: Sequence[int], grid: int) -> tuple[int, int]:
    """The size (h, w) of attention, with both sides at most `grid`."""
    return min(size[0], grid), min(size[1], grid)


def walk_affinity(attention: Tensor, steps: int, grid: int) -> Tensor:
    """How much two positions belong together: (P + P^T) / 2, P the probabilities of a walk of so many steps.

    Args:
        attention: [h, w, h, w], each [i, j] sums to 1. steps: of the walk. grid: positions a side at most; finer
            attention is pooled, by the mean over where a walk is and the sum over where it goes.

    Returns:
        float64 [g*g', g*g'].
    """
    h, w = attention.shape[:2]
    size = pooled((h, w), grid)
    goes = F.adaptive_avg_pool2d(attention.reshape(1, h * w, h, w), size).flatten(2)  # [1, h*w, g*g']
    step = F.adaptive_avg_pool2d(goes.mT.reshape(1, -1, h, w), size).flatten(2)[0].T.double()
    walk = torch.linalg.matrix_power(step / step.sum(1, keepdim=True), steps)
    return (walk + walk.T) / 2
