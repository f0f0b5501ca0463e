"""DiffSeg's segmentation (the paper's section 3) on attention maps: aggregate, merge, to_labels. Pure torch.

Shapes: B images, maps of h x w positions (the finest resolution), K proposals. A *map* is the attention of one
position: a probability distribution over all h * w positions. Nothing here assumes squares, powers of two or a
particular set of resolutions. Computations keep float64 where it comes in and use float32 otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg.devices import full_float32, slice_bytes
from diffseg.errors import UserError

_CHUNK_BYTES = 64 << 20  # upper bound for temporary arrays in to_labels


def aggregate(maps: dict[tuple[int, int], Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Combines the attention of all resolutions into one distribution per finest position (the paper's equation 1).

    The keys of each resolution are upsampled bilinearly to the finest one and renormalised, its queries are repeated,
    and the results are added with the weights R; from coarse to fine, so that each repetition is of the sum so far.

    Args:
        maps: {(h, w): [B, h*w, h*w]}, each row a distribution over keys.
        weights: R, one per resolution from finest to coarsest, >= 0, scaled to sum to 1.
            None: proportional to the resolution, sqrt(h * w).

    Returns:
        [B, h, w, h, w] (query row, query column, key row, key column), each [b, i, j] sums to 1.

    Raises:
        UserError: no maps, or weights of the wrong number, negative, or without a finite sum above 0.
    """
    if not maps:
        raise UserError("aggregate needs the attention maps of at least one resolution")
    sizes = sorted(maps, key=lambda size: -size[0] * size[1])
    shares = _shares(sizes, weights)
    finest = sizes[0]
    batch = len(maps[finest])
    total, odd = None, []
    for size, share in reversed(list(zip(sizes, shares, strict=True))):
        if share == 0 and size != finest:
            continue
        part = _share_of(maps[size], size, finest, share).view(batch, *size, *finest)
        if total is not None and all(n % coarse == 0 for n, coarse in zip(size, total.shape[1:3], strict=True)):
            _add_repeated(part, total)
        elif total is not None:  # sizes that do not divide each other: straight to the finest
            odd.append(total)
        total = part
    assert total is not None
    for part in odd:
        _add_repeated(total, part)
    return total


def _share_of(keys: Tensor, size: tuple[int, int], finest: tuple[int, int], share: float) -> Tensor:
    """Maps [B, h*w, h*w] of one size with their keys upsampled to the finest, each summing to `share`; [rows, keys]."""
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32)).reshape(-1, *size)
    if size == finest:
        upsampled = keys.view(len(keys), -1)
        out = torch.empty_like(upsampled)  # what came in is the caller's
    else:
        out = upsampled = _upsampled(keys, finest).view(len(keys), -1)
    for rows in _slices(out):
        torch.mul(upsampled[rows], share / upsampled[rows].sum(1, keepdim=True), out=out[rows])
    return out


@full_float32()
def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [N, r, c] bilinearly at [N, h, w], half-pixel centres: along each axis the product with that axis' weights.

    As `F.interpolate` does it, several times as fast on a CPU.
    """
    down, across = (
        F.interpolate(torch.eye(n, dtype=maps.dtype, device=maps.device)[None], to, mode="linear")[0]
        for n, to in zip(maps.shape[1:], size, strict=True)
    )
    return down.T @ (maps @ across)


def _slices(x: Tensor) -> Iterator[slice]:
    """Slices of the rows of [..., N, D], of `slice_bytes` each."""
    count = x.shape[-2]
    step = max(1, slice_bytes(x.device) * count // max(1, x.numel() * x.element_size()))
    for start in range(0, count, step):
        yield slice(start, start + step)


def _shares(sizes: list[tuple[int, int]], weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        weights = [(h * w) ** 0.5 for h, w in sizes]
    names = ", ".join(f"{h}x{w}" for h, w in sizes)
    if len(weights) != len(sizes):
        raise UserError(
            f"weights: {len(weights)} given, but there are {len(sizes)} resolutions ({names}), finest first"
        )
    total = sum(weights)
    if not all(x >= 0 for x in weights) or not 0 < total < float("inf"):
        raise UserError(f"weights must be at least 0, with a finite sum above 0, got {list(weights)} for {names}")
    return [x / total for x in weights]


def _add_repeated(total: Tensor, part: Tensor) -> None:
    """Adds part [B, r, c, ...] to total [B, h, w, ...], repeating its queries to the nearest of the r x c."""
    b, h, w = total.shape[:3]
    r, c = part.shape[1:3]
    if h % r == 0 and w % c == 0:  # a view: no repeated copy is ever stored
        total.view(b, r, h // r, c, w // c, *total.shape[3:]).add_(part[:, :, None, :, None])
    else:
        row = ((torch.arange(h, device=part.device) + 0.5) * r / h).long()
        column = ((torch.arange(w, device=part.device) + 0.5) * c / w).long()
        total.add_(part[:, row[:, None], column])


def anchor_grid(anchors: int, size: tuple[int, int]) -> Tensor:
    """Positions (row, column) of the M x M anchors, int64 [M*M, 2], evenly spaced and centred on an h x w map.

    For M = 16 on 64 x 64: 1, 5, ..., 61 on both axes.

    Raises:
        UserError: M < 1, or more anchors than positions on a side.
    """
    if not 1 <= anchors <= min(size):
        raise UserError(
            f"anchors must be 1 to {min(size)} per side on attention maps of {size[0]}x{size[1]}, got {anchors}"
        )
    axes = []
    for n in size:
        step = (n - 1) // (anchors - 1) if anchors > 1 else 0
        start = (n - 1 - step * (anchors - 1)) // 2
        axes.append(start + step * torch.arange(anchors))
    return torch.cartesian_prod(*axes).view(-1, 2)


@full_float32()
def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Distance D(p, q) = (KL(p||q) + KL(q||p)) / 2 in nats between all pairs (the paper's equation 3).

    As matrix products: 2 D = sum p log p + sum q log q - p . log q - log p . q. An exact 0 contributes 0 log 0 = 0;
    under the other side's logarithm it counts as the smallest positive normal number, because a probability that
    underflowed is tiny, not impossible: the result is never NaN or infinite.

    Args:
        p: [..., P, D] distributions. q: [..., Q, D] distributions.

    Returns:
        [..., P, Q], >= 0.
    """
    log_p = _log(p)
    entropy = (p * log_p).sum(-1, keepdim=True)
    out = p.new_empty(*p.shape[:-1], q.shape[-2])
    for rows in _slices(q):
        part = q[..., rows, :]
        log_q = _log(part)
        crossed = p @ log_q.mT
        crossed += log_p @ part.mT
        out[..., rows] = (entropy + log_q.mul_(part).sum(-1)[..., None, :]).sub_(crossed)
    return out.clamp_min_(0).div_(2)


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(torch.finfo(p.dtype).tiny).log_()


def anchor_distances(attention: Tensor, anchors: int) -> Tensor:
    """Distances [..., M*M, h*w] in nats from the maps of the M x M anchors to all maps of attention [..., h, w, h, w].

    They do not depend on the thresholds: computed once, they serve `merge` with many.
    """
    h, w = attention.shape[-2:]
    maps = attention.reshape(*attention.shape[:-4], h * w, h * w)
    grid = anchor_grid(anchors, (h, w)).to(attention.device)
    chosen = grid[:, 0] * w + grid[:, 1]
    distances = symmetric_kl(maps[..., chosen, :], maps)
    # D(p, p) = 0, whatever the rounding
    distances[..., torch.arange(len(chosen), device=distances.device), chosen] = 0
    return distances


def merge(attention: Tensor, anchors: int, thresholds: Sequence[float], distances: Tensor | None = None) -> Tensor:
    """Iterative attention merging (the paper's algorithm 1): from M x M anchors to K proposals.

    Iteration 1 replaces each anchor by the mean of all maps nearer than tau_1. Each later iteration walks the
    proposals in order: one that is not yet matched becomes the mean of all proposals nearer than tau_i (matched ones
    too), and marks them matched. Distances are those at the start of the iteration.

    Args:
        attention: [h, w, h, w] from `aggregate`, one image.
        anchors: M.
        thresholds: tau_1 ... tau_N in nats, each > 0; their number is N >= 1.
        distances: `anchor_distances(attention, anchors)`, where they are at hand.

    Returns:
        Proposals [K, h, w], each sums to 1, K <= M * M.

    Raises:
        UserError: no thresholds, one that is not above 0, or M that does not fit the map.
    """
    return merge_batch(attention[None], anchors, thresholds, None if distances is None else distances[None])[0]


def merge_batch(
    attention: Tensor, anchors: int, thresholds: Sequence[float], distances: Tensor | None = None
) -> list[Tensor]:
    """`merge` for a batch of images at once: the device is waited for once an iteration, not once an image.

    Args:
        attention: [B, h, w, h, w]. distances: [B, M*M, h*w]. The rest as for `merge`.

    Returns:
        Proposals [K, h, w] of each image.
    """
    if not thresholds or not all(t > 0 for t in thresholds):
        raise UserError(f"thresholds must be one or more numbers above 0, got {list(thresholds)}")
    batch, h, w = attention.shape[:3]
    distances = anchor_distances(attention, anchors) if distances is None else distances
    proposals = _means(distances < thresholds[0], attention.reshape(batch, h * w, h * w))
    counts = [anchors * anchors] * batch  # what an image has beyond its count is padding
    for threshold in thresholds[1:]:
        near = symmetric_kl(proposals, proposals) < threshold
        near.diagonal(dim1=1, dim2=2).fill_(True)
        groups = [_groups(mine[:k, :k]) for mine, k in zip(near.cpu().numpy(), counts, strict=True)]
        counts = [len(g) for g in groups]
        members = near.new_zeros(batch, max(counts), near.shape[2], device="cpu")
        for i, group in enumerate(groups):
            members[i, : len(group), : group.shape[1]] = torch.from_numpy(group)
            members[i, len(group) :, 0] = True
        proposals = _means(members.to(near.device), proposals)
    return [p[:k].reshape(-1, h, w) for p, k in zip(proposals, counts, strict=True)]


@full_float32()
def _means(members: Tensor, maps: Tensor) -> Tensor:
    """Mean of the maps [..., Q, D] that each row of members (bool [..., P, Q]) selects; [..., P, D]."""
    chosen = members.to(maps.dtype)
    return (chosen @ maps).div_(chosen.sum(-1, keepdim=True))


def _groups(near: np.ndarray) -> np.ndarray:
    """Walks the rows of near (bool [K, K]) in order; those in no earlier row's group lead one: [K', K]."""
    matched = np.zeros(len(near), bool)
    leaders = []
    while not matched.all():
        leaders.append(int(matched.argmin()))  # the first that is not; a row is always near itself
        matched |= near[leaders[-1]]
    return near[leaders]


def refine(attention: Tensor, proposals: Tensor, iterations: int = 300, tolerance: float = 1e-4) -> Tensor:
    """k-means over all maps, started at the proposals (the paper's optional refinement).

    Lloyd's algorithm, squared Euclidean distance; stops when no assignment changes, or when the centres' summed
    squared movement falls to `tolerance` times the mean variance of a map's entries.

    Args:
        attention: [h, w, h, w]. proposals: [K, h, w].

    Returns:
        [K', h, w], K' <= K: the means of the clusters that have members; each sums to 1.
    """
    h, w = attention.shape[:2]
    maps, centres = attention.reshape(h * w, h * w), proposals.reshape(len(proposals), h * w)
    enough = tolerance * maps.var(0, correction=0).mean()
    assigned = None
    for _ in range(iterations):
        previous, assigned = assigned, _nearest(maps, centres)
        if previous is not None and torch.equal(assigned, previous):
            break
        present = assigned.unique()
        centres, before = _means(present[:, None] == assigned, maps), centres[present]
        assigned = torch.searchsorted(present, assigned)
        if (centres - before).square().sum() <= enough:
            break
    return centres.view(-1, h, w)


@full_float32()
def _nearest(maps: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(1) - 2 * (maps @ centres.T)).argmin(1)


def to_labels(proposals: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsamples the proposals bilinearly and gives each pixel the one with the largest value (the first, if equal).

    Args:
        proposals: [K, h, w]. size: (H, W) of the picture in pixels.

    Returns:
        int64 [H, W], index of the proposal, 0..K-1. A proposal that wins nowhere does not occur.
    """
    best = torch.full(size, -torch.inf, dtype=proposals.dtype, device=proposals.device)
    labels = torch.zeros(size, dtype=torch.int64, device=proposals.device)
    step = max(1, _CHUNK_BYTES // (best.numel() * best.element_size()))
    for start in range(0, len(proposals), step):
        part = F.interpolate(proposals[None, start : start + step], size, mode="bilinear", align_corners=False)[0]
        value, index = part.max(0)
        better = value > best
        best = torch.where(better, value, best)
        labels = torch.where(better, index + start, labels)
    return labels


def by_area(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Renumbers labels int64 [H, W], 0..count-1, by falling area, without waiting for the device.

    Returns:
        The labels, 0..K-1, and the old numbers int64 [count] in the new order, those of no pixel last.
    """
    areas = _areas(labels.flatten(), count)
    order = torch.argsort(areas, descending=True, stable=True)
    new = torch.empty_like(order)
    new[order] = torch.arange(count, device=labels.device)
    return new[labels], order


def _areas(labels: Tensor, count: int) -> Tensor:
    """How often each of 0..count-1 occurs in labels int64 [N]: int64 [count], without waiting for the device."""
    if labels.device.type == "cpu":
        return torch.bincount(labels, minlength=count)
    each = torch.arange(count, device=labels.device)[:, None]  # on a GPU, additions to few places wait for each other
    step = max(1, _CHUNK_BYTES // labels.numel())
    return torch.cat([(labels == each[start : start + step]).sum(1) for start in range(0, count, step)])
