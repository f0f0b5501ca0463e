"""The paper's baselines on the same aggregated attention (its section 4.2), and a control without attention.

No code was released for them. Labels are upsampled by nearest neighbour: label numbers cannot be interpolated.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import DBSCAN, KMeans
from torch import Tensor


def kmeans(attention: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """k-means over the h*w maps as points of R^(h*w): Euclidean distance, k-means++, one initialisation.

    Args:
        attention: [h, w, h, w] from `aggregate`. clusters: k, 1..h*w. seed: of the initialisation.

    Returns:
        int64 [h, w], 0..k-1.

    Raises:
        ValueError: k out of range.
    """
    h, w = attention.shape[:2]
    if not 1 <= clusters <= h * w:
        raise ValueError(f"clusters must be 1 to {h * w}, got {clusters}")
    points = attention.reshape(h * w, -1).cpu().numpy()
    fitted = KMeans(clusters, n_init=1, random_state=seed).fit(points)
    return torch.from_numpy(fitted.labels_.astype(np.int64)).view(h, w)


def pairwise_kl(attention: Tensor) -> Tensor:
    """Distances D (nats) between all pairs of the h*w maps, [h*w, h*w]; as `symmetric_kl`, at half its cost."""
    maps = attention.reshape(attention.shape[0] * attention.shape[1], -1)
    logs = maps.clamp_min(torch.finfo(maps.dtype).tiny).log_()
    cross = maps @ logs.T
    entropy = cross.diagonal()
    return ((entropy[:, None] + entropy - cross - cross.T) / 2).clamp_min_(0).fill_diagonal_(0)


def dbscan(attention: Tensor, eps: float, min_samples: int = 5) -> Tensor:
    """DBSCAN over the h*w maps with DiffSeg's own distance D.

    Positions that DBSCAN calls noise join the cluster of the nearest position that has one, since every pixel needs a
    segment; where there is no cluster at all, the image is one segment.

    Args:
        attention: [h, w, h, w]. eps: radius of a neighbourhood in nats, > 0. min_samples: maps in it, itself counted,
            that make a core.

    Returns:
        int64 [h, w], 0..K-1.
    """
    if eps <= 0 or min_samples < 1:
        raise ValueError(f"eps must be above 0 and min_samples at least 1, got {eps} and {min_samples}")
    h, w = attention.shape[:2]
    distances = pairwise_kl(attention)
    fitted = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distances.cpu().numpy())
    labels = torch.from_numpy(fitted.labels_.astype(np.int64))
    noise, clustered = (labels < 0).nonzero().flatten(), (labels >= 0).nonzero().flatten()
    if len(clustered) == 0:
        return torch.zeros(h, w, dtype=torch.int64)
    nearest = distances.cpu()[noise][:, clustered].argmin(1)
    labels[noise] = labels[clustered[nearest]]
    return labels.view(h, w)


def colour_kmeans(pixels: Tensor, clusters: int, place: float = 0.0, seed: int = 0) -> Tensor:
    """The control without attention: k-means on the pixels' colours, fitted on every eighth pixel of both axes.

    Args:
        pixels: float32 [3, H, W] in [-1, 1]. clusters: k. place: weight of the position (-1..1 on both axes) against
            the colour; 0: colour alone.

    Returns:
        int64 [H, W], 0..k-1.
    """
    _, h, w = pixels.shape
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    features = torch.cat([pixels.cpu(), place * torch.stack([rows, columns])]).permute(1, 2, 0).numpy()
    sample = features[4::8, 4::8].reshape(-1, 5)
    fitted = KMeans(min(clusters, len(sample)), n_init=3, random_state=seed).fit(sample)
    return torch.from_numpy(fitted.predict(features.reshape(-1, 5)).astype(np.int64)).view(h, w)


def upsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels int [h, w] at (H, W), by nearest neighbour with half-pixel centres."""
    return F.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].long()
