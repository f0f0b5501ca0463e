"""Normalized cut (Shi and Malik 2000), recursive as DiffCut has it (arXiv 2406.02842): exact, and fast.

Of an affinity's eigenvectors only the second is needed, by Lanczos' method; all thresholds are tried at once, by
cumulative sums over the tokens between them. A set of tokens is bisected alike whatever the threshold on the value of
a cut, so a `CutTree` keeps its bisections and serves every threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg.attention import Size
from diffseg.devices import full_float32
from diffseg.errors import UserError

THRESHOLDS = 100  # at which a vector is cut, from .99 of its least to .99 of its largest entry
_TOLERANCE = 1e-11  # residual of an eigenvector, where the largest eigenvalue is 1
_MOST_STEPS = 256  # of Lanczos' method, before all eigenvectors are computed instead
_SMALL = 128  # rows of a matrix of which all eigenvectors are computed as fast
_EXHAUSTED = 1e-13  # length of a new direction that is but rounding


def recursive_ncut(
    features: Tensor, size: Size, threshold: float = 0.5, alpha: float = 10, faithful: bool = True
) -> Tensor:
    """DiffCut's segments of a grid of features, before they are upsampled (its section 3).

    Args:
        features: [h*w, C], row by row. size: (h, w). threshold: tau, the largest NCut that still divides, 0..2.
        alpha: exponent of the affinity. faithful: see `CutTree`.

    Returns:
        int64 [h, w], 0..K-1.

    Raises:
        UserError: threshold or alpha out of range.
    """
    tree = CutTree(cosine_affinity(features, alpha), faithful)
    return partitions([tree], threshold)[0].view(size)


def cosine_affinity(features: Tensor, alpha: float = 10) -> Tensor:
    """Cosines between all tokens, stretched to 0..1 over the whole matrix, to the power alpha: float32 [..., N, N].

    Args:
        features: [..., N, C].
    """
    check_alpha(alpha)
    unit = F.normalize(features.float(), dim=-1)
    with full_float32():
        cosines = unit @ unit.mT
    least, largest = cosines.amin((-2, -1), keepdim=True), cosines.amax((-2, -1), keepdim=True)
    stretched = cosines.sub_(least).div_((largest - least).clamp_min_(torch.finfo(cosines.dtype).tiny))
    return stretched.add_((largest <= least).float()).pow_(alpha)  # all alike: 1, so one segment


# --- bisections -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Node:
    """A set of tokens. tokens: int64 [n]. value: NCut of its best bisection, None until that is known; inf: it has
    none. sides: of that bisection."""

    tokens: Tensor
    value: float | None = None
    sides: tuple[Node, ...] = field(default=(), repr=False)


class CutTree:
    """The best bisections of all tokens of an image, of the sides of that, and so on, as far as they were needed.

    Args:
        affinity: [N, N], symmetric, >= 0, with a positive sum in every row.
        faithful: from the second bisection on, leave out the tokens that have no affinity at all to another one, and
            give them to the side of the smaller entries, as DiffCut's release does: its stretched affinities are 0 for
            the least similar pair of the image, and it takes zeros for pairs that were divided before.
    """

    def __init__(self, affinity: Tensor, faithful: bool = True):
        self.affinity = affinity
        self.root = Node(torch.arange(len(affinity), device=affinity.device))
        self.left_out = (affinity == 0).any(1) if faithful else torch.zeros_like(affinity[0], dtype=torch.bool)

    def considered(self, node: Node) -> Tensor:
        """The tokens of a node that its bisection is computed of, int64 [n]."""
        return node.tokens if node is self.root else node.tokens[~self.left_out[node.tokens]]

    def labels(self, threshold: float) -> Tensor:
        """The segments int64 [N] at a threshold, all of whose bisections are known; see `partitions`."""
        labels = torch.zeros(len(self.affinity), dtype=torch.int64, device=self.affinity.device)
        waiting, segments = [self.root], 0
        while waiting:
            node = waiting.pop()
            if is_divided(node, threshold):
                waiting += reversed(node.sides)
            else:
                labels[node.tokens] = segments
                segments += 1
        return labels


def is_divided(node: Node, threshold: float) -> bool:
    """Whether a node whose bisection is known is divided at this threshold."""
    assert node.value is not None
    return node.value < threshold


def check_alpha(alpha: float) -> None:
    """Refuses what is no exponent of an affinity."""
    if not 0 < alpha < math.inf:
        raise UserError(f"alpha must be above 0, got {alpha:g}")


def check_threshold(threshold: float) -> None:
    """Refuses what no NCut can be compared with: it lies between 0 and 2."""
    if not 0 < threshold <= 2:
        raise UserError(f"the threshold of a normalized cut must be above 0 and at most 2, got {threshold:g}")


@torch.no_grad()
def partitions(trees: Sequence[CutTree], threshold: float) -> list[Tensor]:
    """Recursive normalized cut of several images: a bisection is accepted if its NCut is below the threshold.

    On a CPU one set of tokens goes after the other; elsewhere all sets of a level of all images go at once.

    Args:
        threshold: tau, above 0 and at most 2.

    Returns:
        int64 [N] of each tree, 0..K-1.

    Raises:
        UserError: the threshold is out of range.
    """
    check_threshold(threshold)
    level = [(tree, tree.root) for tree in trees]
    while level:
        unknown = [(tree, node) for tree, node in level if node.value is None]
        at_once = len(unknown) if unknown and unknown[0][0].affinity.device.type != "cpu" else 1
        for start in range(0, len(unknown), max(at_once, 1)):
            _bisect(unknown[start : start + at_once])
        level = [(tree, side) for tree, node in level if is_divided(node, threshold) for side in node.sides]
    return [tree.labels(threshold) for tree in trees]


def _bisect(nodes: Sequence[tuple[CutTree, Node]]) -> None:
    """Finds the best bisection of each node, padded to the largest and all at once."""
    considered = [tree.considered(node) for tree, node in nodes]
    for (_, node), tokens in zip(nodes, considered, strict=True):
        if len(tokens) < 2:
            node.value = math.inf
    todo = [(tree, node, tokens) for (tree, node), tokens in zip(nodes, considered, strict=True) if len(tokens) > 1]
    if not todo:
        return
    most = max(len(tokens) for _, _, tokens in todo)
    parts = [
        (a if len(tokens) == len(a) else a.index_select(0, tokens).index_select(1, tokens)).double()
        for a, tokens in ((tree.affinity, tokens) for tree, _, tokens in todo)
    ]
    padded = [F.pad(part, [0, most - len(part)] * 2) if len(part) < most else part for part in parts]
    affinities = padded[0][None] if len(padded) == 1 else torch.stack(padded)
    values, sides = best_bisections(affinities)
    for (tree, node, tokens), value, side in zip(todo, values.tolist(), sides, strict=True):
        first = torch.zeros_like(tree.left_out)
        first[tokens[side[: len(tokens)]]] = True
        inside = first[node.tokens]
        node.value, node.sides = value, (Node(node.tokens[inside]), Node(node.tokens[~inside]))


def best_bisections(affinities: Tensor) -> tuple[Tensor, Tensor]:
    """The bisection of each set of tokens with the least NCut of those that its second eigenvector offers.

    With the affinity A, d = A 1 and v the second smallest eigenvector of D^-1/2 (D - A) D^-1/2, y = D^-1/2 v has its
    largest entry by magnitude positive; {y > theta} is tried for 100 theta from .99 min y to .99 max y, the first of
    equals is taken. NCut = cut / volume of one side + cut / volume of the other.

    Args:
        affinities: float64 [B, n, n], symmetric, >= 0; rows and columns of zeros at the end are padding.

    Returns:
        NCut float64 [B], inf where nothing is divided, and {y > theta}, bool [B, n].
    """
    degrees = affinities.sum(-1)
    real = degrees > 0
    y = relaxations(affinities)

    least, largest = (0.99 * y.masked_fill(~real, fill).aminmax(dim=1)[at] for at, fill in ((0, 9e9), (1, -9e9)))
    steps = torch.arange(THRESHOLDS, device=y.device, dtype=y.dtype) / (THRESHOLDS - 1)
    thetas = least[:, None] + (largest - least)[:, None] * steps
    above = torch.searchsorted(thetas, y.contiguous())  # how many thetas lie below each entry: 0..100
    values = _ncuts(affinities, degrees, above)
    best = values.min(1)
    chosen = (values == best.values[:, None]).int().argmax(1)  # the first of equals
    return best.values, (above > chosen[:, None]) & real


def _ncuts(affinities: Tensor, degrees: Tensor, above: Tensor) -> Tensor:
    """NCut float64 [B, 100] of {tokens that more than j thresholds lie below}, for each j; inf where a side is empty.

    affinities: [B, n, n]. degrees: [B, n]. above: int64 [B, n], 0..100.
    """
    between = _sums_of_rows(_sums_of_rows(affinities, above).mT, above)  # [B, 101, 101]: of the tokens of two bins
    volumes = _sums_of_rows(degrees[..., None], above)[..., 0]
    within = between.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2).diagonal(dim1=1, dim2=2)  # of bins j, j + 1, ...
    volume = volumes.flip(1).cumsum(1).flip(1)
    cut = (volume - within)[:, 1:].clamp_min(0)
    inside, outside = volume[:, 1:], volume[:, :1] - volume[:, 1:]
    return torch.where((inside > 0) & (outside > 0), cut / inside + cut / outside, math.inf)


def _sums_of_rows(rows: Tensor, bins: Tensor) -> Tensor:
    """Sums [B, 101, m] of those rows [B, n, m] that are in each bin; bins: int64 [B, n], 0..100."""
    if rows.device.type != "cpu":  # adding in place has no fixed order there
        return F.one_hot(bins, THRESHOLDS + 1).to(rows.dtype).mT @ rows
    sums = rows.new_zeros(len(rows), THRESHOLDS + 1, rows.shape[2])
    for total, these, where in zip(sums, rows, bins, strict=True):
        total.index_add_(0, where, these)
    return sums


# --- eigenvectors -----------------------------------------------------------------------------------------------------


def relaxations(affinities: Tensor) -> Tensor:
    """The vector y [B, n] that is cut: (D - A) y = l D y with the second smallest l; its largest entry is positive.

    affinities: float64 [B, n, n], symmetric, >= 0; rows of zeros are padding, and y is 0 there.
    """
    degrees = affinities.sum(-1)
    roots = torch.where(degrees > 0, degrees, 1.0) ** -0.5
    y = second_eigenvectors(affinities, roots, F.normalize(degrees.sqrt(), dim=-1)) * roots
    return y * torch.where(y.gather(1, y.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)


def normalised(affinities: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2 [..., n, n]; affinities: [..., n, n], symmetric, >= 0; rows of zeros stay so."""
    degrees = affinities.sum(-1)
    roots = torch.where(degrees > 0, degrees, 1.0) ** -0.5
    return (affinities * roots[..., None]).mul_(roots[..., None, :])


def second_eigenvectors(affinities: Tensor, roots: Tensor, first: Tensor) -> Tensor:
    """The eigenvector of D^-1/2 A D^-1/2 with the largest eigenvalue but one: unit, float64 [B, n].

    Lanczos' method with full orthogonalisation from a fixed start. All eigenvectors are computed where matrices are
    small, or where it does not converge because eigenvalues are next to equal.

    Args:
        affinities: float64 [B, n, n], symmetric. roots: [B, n], D^-1/2. first: [B, n], the leading eigenvector, unit;
            where it is 0, so are the rows and columns of the affinities.
    """
    batch, count = first.shape
    steps, scale = _MOST_STEPS if count > _SMALL else 0, roots[..., None]
    basis = first.new_zeros(batch, steps + 1, count)
    basis[:, 0] = first
    start = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(first.device)
    vector = F.normalize(_orthogonal((start * (first > 0))[..., None], basis[:, :1]), dim=1)  # [B, n, 1]
    goes_on = first.new_ones(batch)  # 0 where the whole space has been seen
    diagonal: list[Tensor] = []  # of the matrix plus 1, so that nothing is below the 0 of a space that is exhausted
    beside: list[Tensor] = []
    for step in range(1, steps + 1):
        basis[:, step] = vector[..., 0]
        image = torch.bmm(affinities, vector * scale).mul_(scale)
        product = torch.bmm(vector.mT, image)
        diagonal.append(product[:, 0, 0] + goes_on)
        image = _orthogonal(image.addcmul_(vector, product, value=-1), basis[:, : step + 1])
        length = torch.linalg.vector_norm(image, dim=(1, 2))
        if step % 8 == 0:
            vectors, residuals = _largest(diagonal, beside, length)
            if bool((residuals < _TOLERANCE).all()):
                return F.normalize((vectors[:, None] @ basis[:, 1 : step + 1])[:, 0], dim=1)
        beside.append(length)
        goes_on = (length > _EXHAUSTED).to(length.dtype)
        vector = image.mul_((goes_on / length.clamp_min(_EXHAUSTED))[:, None, None])
    return torch.linalg.eigh(normalised(affinities) - 3 * first[..., None] * first[:, None])[1][..., -1]


def _orthogonal(vectors: Tensor, basis: Tensor) -> Tensor:
    """Vectors [B, n, 1] less what lies in the span of an orthonormal basis [B, m, n]."""
    return torch.baddbmm(vectors, basis.mT, torch.bmm(basis, vectors), alpha=-1)


def _largest(diagonal: Sequence[Tensor], beside: Sequence[Tensor], length: Tensor) -> tuple[Tensor, Tensor]:
    """The leading eigenvectors [B, m] of tridiagonal matrices, and the residuals [B] of what they stand for."""
    matrix = torch.diag_embed(torch.stack(list(diagonal), 1))
    if beside:
        off = torch.diag_embed(torch.stack(list(beside), 1), 1)
        matrix = matrix + off + off.mT
    vectors = torch.linalg.eigh(matrix)[1][..., -1]
    return vectors, length * vectors[:, -1].abs()


def cluster_qr(vectors: Tensor) -> Tensor:
    """Clusters int64 [N], 0..k-1, of the k leading eigenvectors [N, k] of an affinity, without initialisation.

    Damle, Minden, Ying 2019: the k positions that a pivoted QR decomposition picks stand for the clusters; the
    orthogonal matrix nearest to their rows turns the eigenvectors into indicators of these.
    """
    rows = vectors.double().cpu().numpy()
    k = rows.shape[1]
    _, pivots = scipy.linalg.qr(rows.T, mode="r", pivoting=True)
    left, _, right = scipy.linalg.svd(rows[pivots[:k]].T)
    labels = np.abs(rows @ (left @ right)).argmax(1)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(-1)).to(vectors.device)
