"""What every method offers: an observed image in, a label map out. `look` and `needs` say what passes it wants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg.attention import Look, Needs
from diffseg.observed import Batch, Observed


class Segmenter(ABC):
    """Segments without ever seeing the truth.

    look: how the backbone is asked; needs: what is kept of the pass; names: whether its labels are numbers of classes,
    not just of segments. Attributes of the class or of an instance.
    """

    look: Look = Look()
    needs: Needs = Needs(attention=True)
    names: bool = False

    def passes(self) -> Mapping[Look, Needs]:
        """What the method asks of each look; more than its own where it stands on another method."""
        return {self.look: self.needs}

    @abstractmethod
    def segment(self, image: Observed) -> np.ndarray:
        """Labels int [H, W] of the image's size, >= 0."""

    def segment_batch(self, batch: Batch) -> list[np.ndarray]:
        """Labels of each image; for methods that are faster with many at a time."""
        return [self.segment(image) for image in batch]


class Grouping(Segmenter):
    """Groups positions of a grid, all images of a batch at once where that is faster; pixels follow their groups."""

    @abstractmethod
    def groups(self, images: Sequence[Observed]) -> list[Tensor]:
        """The group of each position of the grid, int64 [h, w], 0..K-1, of each image."""

    @abstractmethod
    def pixels_of(self, image: Observed, groups: Tensor) -> np.ndarray:
        """Labels int32 [H, W] of the image's size, of its groups int64 [h, w]."""

    @torch.no_grad()
    def segment(self, image: Observed) -> np.ndarray:
        """Labels int32 [H, W], 0..K-1; a group that no pixel follows has none."""
        return self.pixels_of(image, self.groups([image])[0])

    @torch.no_grad()
    def segment_batch(self, batch: Batch) -> list[np.ndarray]:
        """As `segment`, the groups of all images at once."""
        images = list(batch)
        return [self.pixels_of(image, groups) for image, groups in zip(images, self.groups(images), strict=True)]


class Oracle(ABC):
    """A control that is told something about the truth; its figures are no fair comparison, and reports say so.

    told: what it is told, as results name it.
    """

    look: Look = Look()
    needs: Needs = Needs(attention=True)
    told: str = "something of the truth"

    def passes(self) -> Mapping[Look, Needs]:
        """What the method asks of each look."""
        return {self.look: self.needs}

    @abstractmethod
    def segment(self, image: Observed, truth: np.ndarray) -> np.ndarray:
        """Labels int [H, W] of the image's size, >= 0; truth: int [H, W], -1 = ignored."""


def needs_by_look(methods: Iterable[Segmenter | Oracle]) -> dict[Look, Needs]:
    """What the methods together ask of each look."""
    wanted: dict[Look, Needs] = {}
    for method in methods:
        for look, needs in method.passes().items():
            wanted[look] = wanted.get(look, Needs()) | needs
    return wanted


def classes_in(truth: np.ndarray) -> int:
    """The number of classes of a label map int [H, W], -1 = ignored; at least 1."""
    return max(len(np.unique(truth[truth >= 0])), 1)


def upsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels int [h, w] at (H, W), by nearest neighbour with half-pixel centres; label numbers are no quantities."""
    return F.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].long()


def as_numpy(labels: Tensor) -> np.ndarray:
    """Labels, >= 0, on any device as int32 [..., H, W]."""
    if labels.is_cuda and labels.numel() and labels.max() < 256:  # a quarter of the way
        labels = labels.to(torch.uint8)
    return labels.cpu().to(torch.int32).numpy()
