"""The paper's baselines on the same aggregated attention (its section 4.2): K-Means-C, K-Means-S, DBSCAN.

No code was released for them. Labels are upsampled by nearest neighbour: label numbers cannot be interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import DBSCAN
from sklearn.cluster import KMeans as SklearnKMeans
from torch import Tensor

from diffseg.errors import UserError
from diffseg.methods.base import Oracle, Segmenter, classes_in, upsample_labels
from diffseg.observed import Observed


class KMeans(Segmenter):
    """K-Means-C: k-means on the aggregated attention with one k for every image."""

    def __init__(self, clusters: int, weights: Sequence[float] | None = None):
        if clusters < 1:
            raise UserError(f"clusters must be at least 1, got {clusters}")
        self.clusters, self.weights = clusters, None if weights is None else tuple(weights)

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W], 0..k-1."""
        return upsample_labels(kmeans(image.attention(self.weights, self.look), self.clusters), image.size).numpy()


class KMeansOracle(Oracle):
    """K-Means-S: k-means on the aggregated attention, told each image's number of classes."""

    told = "the number of classes"

    def __init__(self, weights: Sequence[float] | None = None):
        self.weights = None if weights is None else tuple(weights)

    def segment(self, image: Observed, truth: np.ndarray) -> np.ndarray:
        """Labels int64 [H, W], 0..k-1."""
        found = kmeans(image.attention(self.weights, self.look), classes_in(truth))
        return upsample_labels(found, image.size).numpy()


class Dbscan(Segmenter):
    """DBSCAN on the aggregated attention. eps: a fraction of the image's median distance between anchors."""

    def __init__(self, eps: float, min_samples: int = 5, weights: Sequence[float] | None = None):
        if eps <= 0 or min_samples < 1:
            raise UserError(f"eps must be above 0 and min_samples at least 1, got {eps} and {min_samples}")
        self.eps, self.min_samples = eps, min_samples
        self.weights = None if weights is None else tuple(weights)

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W], 0..K-1."""
        eps = self.eps * image.scale(self.weights, self.look)
        key = ("pairwise distances", self.weights, self.look, image.index)
        attention = image.attention(self.weights, self.look)
        distances = image.batch.once(key, lambda: pairwise_kl(attention))  # which all eps share
        found = dbscan(distances, eps, self.min_samples)
        return upsample_labels(found.view(attention.shape[:2]), image.size).numpy()


def kmeans(attention: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """k-means over the h*w maps as points of R^(h*w): Euclidean distance, k-means++, one initialisation.

    Args:
        attention: [h, w, h, w] from `aggregate`. clusters: k, 1..h*w. seed: of the initialisation.

    Returns:
        int64 [h, w], 0..k-1.

    Raises:
        UserError: k out of range.
    """
    h, w = attention.shape[:2]
    if not 1 <= clusters <= h * w:
        raise UserError(f"clusters must be 1 to {h * w}, got {clusters}")
    points = attention.reshape(h * w, -1).cpu().numpy()
    fitted = SklearnKMeans(clusters, n_init=1, random_state=seed).fit(points)
    return torch.from_numpy(fitted.labels_.astype(np.int64)).view(h, w)


def pairwise_kl(attention: Tensor) -> Tensor:
    """Distances D (nats) between all pairs of the h*w maps, [h*w, h*w]; as `symmetric_kl`, at half its cost."""
    maps = attention.reshape(attention.shape[0] * attention.shape[1], -1)
    logs = maps.clamp_min(torch.finfo(maps.dtype).tiny).log_()
    cross = maps @ logs.T
    entropy = cross.diagonal()
    return ((entropy[:, None] + entropy - cross - cross.T) / 2).clamp_min_(0).fill_diagonal_(0)


def dbscan(distances: Tensor, eps: float, min_samples: int = 5) -> Tensor:
    """DBSCAN over positions by their distances: of their maps, DiffSeg's own D (`pairwise_kl`).

    Positions that DBSCAN calls noise join the cluster of the nearest position that has one, since every pixel needs a
    segment; where there is no cluster at all, the image is one segment.

    Args:
        distances: [N, N]. eps: radius of a neighbourhood, > 0. min_samples: positions in it, itself counted, that make
            a core.

    Returns:
        int64 [N], 0..K-1.
    """
    if eps <= 0 or min_samples < 1:
        raise UserError(f"eps must be above 0 and min_samples at least 1, got {eps} and {min_samples}")
    fitted = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distances.cpu().numpy())
    labels = torch.from_numpy(fitted.labels_.astype(np.int64))
    noise, clustered = (labels < 0).nonzero().flatten(), (labels >= 0).nonzero().flatten()
    if len(clustered) == 0:
        return torch.zeros(len(labels), dtype=torch.int64)
    nearest = distances.cpu()[noise][:, clustered].argmin(1)
    labels[noise] = labels[clustered[nearest]]
    return labels
