"""AutoSC: spectral clustering that chooses its own number of segments and the sharpness of its affinity.

As described with DiffCut (arXiv 2406.02842). It looks as DiffCut does and names pixels as DiffCut does; between the
two, all segments are found at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffseg.methods.diffcut import ByFeatures
from diffseg.methods.ncut import cluster_qr, cosine_affinity, normalised
from diffseg.observed import Observed

ALPHAS = (1, 5, 10, 15)


class AutoSC(ByFeatures):
    """Spectral clustering at the exponent and the number of segments of the largest relative gap between eigenvalues.

    Arguments as for `ByFeatures`.
    """

    def groups(self, images: Sequence[Observed]) -> list[Tensor]:
        """The spectral clusters of each grid, int64 [h, w]."""
        return [self._clusters(image).view(image.features(self.layer, self.look).shape[1:]) for image in images]

    def _clusters(self, image: Observed) -> Tensor:
        """The image's clusters, which all settings share, refined or not."""
        key = ("clusters", self.layer, self.look, image.index)
        return image.batch.once(key, lambda: auto_clusters(self.tokens(image)))


@torch.no_grad()
def auto_clusters(features: Tensor, alphas: Sequence[float] = ALPHAS) -> Tensor:
    """Spectral clusters int64 [N], 0..k-1, of features [N, C]: as many as the exponent with the largest gap says.

    (DiffCut's release keeps the eigenvectors of the last exponent instead, by mistake.)
    """
    gaps = []
    for alpha in alphas:
        matrix = normalised(cosine_affinity(features, alpha).double())
        gaps.append((*largest_gap(1 - torch.linalg.eigvalsh(matrix).flip(0)), alpha))
    _, clusters, alpha = max(gaps, key=lambda found: found[0])  # the first of equals
    matrix = normalised(cosine_affinity(features, alpha).double())
    return cluster_qr(torch.linalg.eigh(matrix)[1].flip(1)[:, :clusters])


def largest_gap(eigenvalues: Tensor) -> tuple[float, int]:
    """The largest relative gap, and how many eigenvalues lie before it.

    The gap before the i-th of l_1 <= l_2 <= ... is (l_i - mean(l_1..l_i)) / (mean(l_1..l_i) + 1e-6).

    Args:
        eigenvalues: of a normalised Laplacian, [N] in rising order, N > 1; the first is 0.
    """
    means = eigenvalues.cumsum(0) / torch.arange(1, len(eigenvalues) + 1, device=eigenvalues.device)
    gaps = (eigenvalues - means) / (means + 1e-6)
    before = int(gaps[1:].argmax()) + 1
    return float(gaps[before]), before
