"""DiffCut (arXiv 2406.02842): recursive normalized cut of a layer's features, then each pixel to the nearest segment.

Unlike DiffSeg it looks at features, not attention, of a photo of 1024 pixels with a little noise: its look is its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from diffseg.attention import Look, Needs, Size
from diffseg.errors import UserError
from diffseg.methods.base import Grouping, as_numpy, upsample_labels
from diffseg.methods.ncut import CutTree, check_alpha, check_threshold, cosine_affinity, partitions
from diffseg.observed import Observed


class ByFeatures(Grouping):
    """Groups the positions of a layer's grid; then each pixel takes the group whose mean feature is nearest to its own.

    layer: whose output is the feature, by its name in the network or an alias (`Backbone.aliases`). timestep, noise,
    size: how the backbone is asked (`Look`); None: as the run does. upsample: how many times finer than the grid
    pixels are told apart, a side.
    """

    def __init__(
        self,
        layer: str = "encoder",
        timestep: int | None = 50,
        noise: int | None = 42,
        size: int | None = 1024,
        upsample: int = 4,
    ):
        if upsample < 1:
            raise UserError(f"upsample must be at least 1, got {upsample}")
        self.look, self.needs = Look(timestep, noise, size=size), Needs(features=frozenset({layer}))
        self.layer, self.upsample = layer, upsample

    def tokens(self, image: Observed) -> Tensor:
        """The grid's features [h*w, C], row by row."""
        return image.features(self.layer, self.look).flatten(1).T

    def pixels_of(self, image: Observed, groups: Tensor) -> np.ndarray:
        """Each pixel to the nearest group, at `upsample` times the grid's size."""
        h, w = groups.shape
        labels = concepts(self.tokens(image), groups, (h * self.upsample, w * self.upsample))
        return as_numpy(upsample_labels(labels, image.size))


class DiffCut(ByFeatures):
    """Recursive normalized cut of features; defaults are the release's, for SSD-1B at 1024 pixels.

    threshold, alpha, faithful: as for `ncut.recursive_ncut`; the others as for `ByFeatures`.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        alpha: float = 10,
        faithful: bool = True,
        layer: str = "encoder",
        timestep: int | None = 50,
        noise: int | None = 42,
        size: int | None = 1024,
        upsample: int = 4,
    ):
        super().__init__(layer, timestep, noise, size, upsample)
        check_threshold(threshold)
        check_alpha(alpha)
        self.threshold, self.alpha, self.faithful = threshold, alpha, faithful

    def groups(self, images: Sequence[Observed]) -> list[Tensor]:
        """Recursive normalized cut of each grid, int64 [h, w]."""
        found = partitions([self._tree(image) for image in images], self.threshold)
        sizes = [image.features(self.layer, self.look).shape[1:] for image in images]
        return [labels.view(size) for labels, size in zip(found, sizes, strict=True)]

    def _tree(self, image: Observed) -> CutTree:
        """The image's bisections, which all thresholds share."""
        key = ("cut tree", self.layer, self.look, self.alpha, self.faithful, image.index)
        return image.batch.once(key, lambda: CutTree(cosine_affinity(self.tokens(image), self.alpha), self.faithful))


def concepts(features: Tensor, groups: Tensor, size: Size) -> Tensor:
    """Each pixel to the nearest group, by the product of its feature with the group's (DiffCut's section 3.3).

    A pixel's feature is unit features interpolated bilinearly; a group's is the mean of its unit features, which is no
    unit vector: groups that agree less among themselves attract less. Products are interpolated instead of features,
    which is the same, as both are linear.

    Args:
        features: [h*w, C], row by row. groups: int64 [h, w], 0..K-1, each number in use. size: (H, W).

    Returns:
        int64 [H, W], 0..K-1; a group may have no pixel.
    """
    unit = F.normalize(features.float(), dim=1).double()
    members = F.one_hot(groups.flatten()).T.to(unit.dtype)  # [K, h*w]
    means = members @ unit / members.sum(1, keepdim=True)
    scores = (means @ unit.T).unflatten(1, groups.shape)[None]
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)[0].argmax(0)
