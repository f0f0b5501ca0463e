"""What the fast paths compute, as it reads: slow, obvious, and kept beside them to be compared with."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg.attention import Maps
from diffseg.segmentation import anchor_grid


def straightforward_aggregate(maps: Maps) -> Tensor:
    """Aggregation as the equation reads: every map upsampled, repeated and stored whole; [h, w, h, w]."""
    sizes = sorted(maps, reverse=True)
    h, w = sizes[0]
    total = torch.zeros(h, w, h, w)
    for r, c in sizes:
        up = F.interpolate(maps[r, c].view(-1, 1, r, c), (h, w), mode="bilinear", align_corners=False)
        up = (up / up.sum((2, 3), keepdim=True)).view(r, c, h, w)
        up = up.repeat_interleave(h // r, 0).repeat_interleave(w // c, 1)
        total += up * (r / sum(size[0] for size in sizes))
    return total


def straightforward_merge(attention: Tensor, anchors: int, thresholds: list[float]) -> Tensor:
    """Merging as the algorithm reads: one pair of distributions against another by broadcasting; [K, h, w]."""
    h, w = attention.shape[:2]
    maps = attention.reshape(h * w, -1)

    def distance(p: Tensor, q: Tensor) -> Tensor:
        return ((p * (p.log() - q.log())).sum(1) + (q * (q.log() - p.log())).sum(1)) / 2

    grid = anchor_grid(anchors, (h, w))
    proposals = [maps[distance(maps[y * w + x][None], maps) < thresholds[0]].mean(0) for y, x in grid.tolist()]
    for threshold in thresholds[1:]:
        stacked, matched, merged = torch.stack(proposals), set(), []
        for i in range(len(stacked)):
            if i not in matched:
                near = distance(stacked[i][None], stacked) < threshold
                matched.update(near.nonzero().flatten().tolist())
                merged.append(stacked[near].mean(0))
        proposals = merged
    return torch.stack(proposals).view(-1, h, w)


def straightforward_ncut(affinity: np.ndarray, threshold: float, faithful: bool = True) -> np.ndarray:
    """Recursive normalized cut as it reads: all eigenvectors, and a quadratic form for each of 100 thresholds; int [N].

    affinity: [N, N]. threshold, faithful: as for `diffseg.methods.ncut`.
    """
    labels, segments = np.zeros(len(affinity), int), 0
    left_out = (affinity == 0).any(1) if faithful else np.zeros(len(affinity), bool)
    waiting = [(np.arange(len(affinity)), True)]
    while waiting:
        tokens, is_first = waiting.pop()
        considered = tokens if is_first else tokens[~left_out[tokens]]
        if len(considered) > 1:
            value, side = straightforward_bisection(affinity[np.ix_(considered, considered)].astype(np.float64))
            if value < threshold:
                waiting += [(np.setdiff1d(tokens, considered[side]), False), (considered[side], False)]
                continue
        labels[tokens] = segments
        segments += 1
    return labels


def straightforward_bisection(affinity: np.ndarray) -> tuple[float, np.ndarray]:
    """The least NCut of 100 thresholds on the second eigenvector, and its side, bool [n]; affinity: float64 [n, n]."""
    degrees = affinity.sum(1)
    roots = np.diag(degrees**-0.5)
    _, vectors = scipy.linalg.eigh(roots @ (np.diag(degrees) - affinity) @ roots)
    y = roots @ vectors[:, 1]
    y = y * np.sign(y[np.abs(y).argmax()])
    best, side = np.inf, np.zeros(len(y), bool)
    for theta in np.linspace(0.99 * y.min(), 0.99 * y.max(), 100):
        inside = (y > theta).astype(float)
        cut = inside @ affinity @ (1 - inside)
        volumes = degrees @ inside, degrees @ (1 - inside)
        if min(volumes) > 0 and cut / volumes[0] + cut / volumes[1] < best:
            best, side = cut / volumes[0] + cut / volumes[1], inside > 0
    return best, side
