"""MaskCut (arXiv 2301.11320) and TokenCut (arXiv 2202.11539): objects by normalized cut, one after the other.

Made for the keys of a self-supervised vision transformer; any layer of any backbone serves.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from diffseg.attention import Look, Needs, Size
from diffseg.devices import full_float32
from diffseg.errors import UserError
from diffseg.methods.base import Segmenter, as_numpy, upsample_labels
from diffseg.methods.ncut import relaxations
from diffseg.observed import Observed

_WEAK = 1e-5  # affinity of two positions that are not alike


class MaskCut(Segmenter):
    """Cuts off one object after the other; what is left is one segment. TokenCut is `masks=1, threshold=.2`.

    threshold: tau, the cosine above which two positions are alike. masks: N, how many objects are looked for. layer,
    timestep, noise, size: as for `diffcut.ByFeatures`.
    """

    def __init__(
        self,
        threshold: float = 0.15,
        masks: int = 3,
        layer: str = "keys",
        timestep: int | None = None,
        noise: int | None = None,
        size: int | None = None,
    ):
        if not -1 <= threshold < 1:
            raise UserError(f"threshold must be a cosine, -1 to 1, got {threshold:g}")
        if masks < 1:
            raise UserError(f"masks must be at least 1, got {masks}")
        self.look, self.needs = Look(timestep, noise, size=size), Needs(features=frozenset({layer}))
        self.layer, self.threshold, self.masks = layer, threshold, masks

    @torch.no_grad()
    def segment(self, image: Observed) -> np.ndarray:
        """Labels int32 [H, W]: the objects in the order they were found, and last the rest."""
        features = image.features(self.layer, self.look)  # [C, h, w]
        size = (features.shape[1], features.shape[2])
        key = ("objects", self.layer, self.look, self.threshold, image.index)
        found: list[Tensor] = image.batch.once(key, list)
        labels = objects(features.flatten(1).T, size, self.threshold, self.masks, found)
        return as_numpy(upsample_labels(labels, image.size))


def objects(features: Tensor, size: Size, threshold: float, masks: int, found: list[Tensor] | None = None) -> Tensor:
    """Objects, one after the other, each cut from what the ones before have left.

    Args:
        features: [h*w, C], row by row. size: (h, w). threshold: tau. masks: N. found: the first objects, bool [h*w]
            each, as far as they are known; those that lack are added.

    Returns:
        int64 [h, w]: 0 for the first object, 1 for the second ..., then the rest; without gaps.
    """
    found = [] if found is None else found
    left = torch.ones(len(features), dtype=torch.bool, device=features.device)
    labels = torch.full_like(left, masks, dtype=torch.int64)
    for index in range(masks):
        if index == len(found):
            found.append(salient_object(features * left[:, None], size, threshold) & left)
        labels[found[index]] = index
        left = left & ~found[index]
    return labels.unique(return_inverse=True)[1].view(size)


def salient_object(features: Tensor, size: Size, threshold: float) -> Tensor:
    """The most salient object, bool [h*w], of a grid of features.

    Affinity is 1 between positions whose cosine is above the threshold, else 1e-5. The second generalised eigenvector
    is cut at its mean. The object is the side of its largest magnitude, or the other one if that holds three of the
    grid's corners or more; of it, the connected part around its largest entry.

    Args:
        features: [h*w, C], row by row; rows of zeros are like nothing. size: (h, w). threshold: tau.
    """
    unit = F.normalize(features.float(), dim=1)
    with full_float32():
        cosines = unit @ unit.T
    affinity = torch.where(cosines > threshold, 1.0, _WEAK).double()
    grid = relaxations(affinity[None])[0].view(size).cpu().numpy()
    object_ = grid > grid.mean()
    if object_[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        object_, grid = ~object_, -grid
    parts, _ = ndimage.label(object_)
    return torch.from_numpy(parts == parts.flat[grid.argmax()]).flatten().to(features.device)
