"""Pixel-adaptive mask refinement (PAMR, arXiv 2005.08104): labels flow to neighbours of like colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg.attention import Look, Needs
from diffseg.errors import UserError
from diffseg.methods.base import Segmenter, as_numpy, upsample_labels
from diffseg.observed import Batch, Observed

DILATIONS = (1, 2, 4, 8)


class Refined(Segmenter):
    """Another method, its labels refined by the photo.

    of: the method. iterations: of PAMR. size: labels and photo are refined at about size x size pixels of area,
    keeping their shape (DiffCut's rows: 128); None: at the image's own size.
    """

    def __init__(self, of: Segmenter, iterations: int = 10, size: int | None = 128):
        if not isinstance(of, Segmenter):
            raise UserError(f"of must be a method whose labels are to be refined, got {type(of).__name__}")
        if not 0 <= iterations <= 1000:
            raise UserError(f"iterations must be 0 to 1000, got {iterations}")
        if size is not None and not 8 <= size <= 4096:
            raise UserError(f"size must be 8 to 4096 pixels, got {size}")
        self.of, self.iterations, self.size = of, iterations, size
        self.look, self.needs, self.names = of.look, of.needs, of.names

    def passes(self) -> Mapping[Look, Needs]:
        """Those of the method."""
        return self.of.passes()

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int32 [H, W], those of the method."""
        return self._refined(image, self.of.segment(image))

    def segment_batch(self, batch: Batch) -> list[np.ndarray]:
        """As `segment`, the method's own labels of all images at once."""
        return [self._refined(image, labels) for image, labels in zip(batch, self.of.segment_batch(batch), strict=True)]

    def _refined(self, image: Observed, labels: np.ndarray) -> np.ndarray:
        scale = 1.0 if self.size is None else min(1.0, self.size / (labels.shape[0] * labels.shape[1]) ** 0.5)
        size = tuple(max(round(side * scale), 1) for side in labels.shape)
        small = upsample_labels(torch.from_numpy(labels.astype(np.int64)), size)
        pixels = F.interpolate(image.pixels[None].float().cpu(), size, mode="bilinear", align_corners=False)[0]
        photo = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        refined = torch.from_numpy(pamr(small.numpy(), photo, self.iterations).astype(np.int64))
        return as_numpy(upsample_labels(refined, labels.shape))


@torch.no_grad()
def pamr(
    labels: np.ndarray, photo: np.ndarray, iterations: int = 10, dilations: Sequence[int] = DILATIONS
) -> np.ndarray:
    """Labels that have flowed to neighbours of like colour.

    A pixel's affinity to its eight neighbours at each distance is softmax(-mean over channels of |difference| / (0.1
    standard deviation around it)); so often, each pixel's scores become the mean of its neighbours', weighted so. The
    label of the largest score is taken.

    Args:
        labels: int [H, W], >= 0. photo: uint8 [H, W, 3]. iterations: how often. dilations: the distances in pixels.

    Returns:
        int [H, W], of the numbers that occur in labels.
    """
    numbers, ranks = np.unique(labels, return_inverse=True)
    weights = affinities(torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255, dilations)
    scores = F.one_hot(torch.from_numpy(ranks.reshape(labels.shape)), len(numbers)).permute(2, 0, 1).float()
    for _ in range(iterations):
        spread = torch.zeros_like(scores)
        for weight, neighbours in zip(weights, around(scores, dilations), strict=True):
            spread.addcmul_(weight, neighbours)
        scores = spread
    return numbers[scores.argmax(0).numpy()]


def affinities(photo: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weights [8 * dilations, H, W] of each pixel's neighbours, which sum to 1; photo: [3, H, W] in 0..1."""
    neighbours = torch.stack(list(around(photo, dilations)))  # [P, 3, H, W]
    itself = photo.expand(len(dilations), *photo.shape)  # once at each distance
    deviation = torch.cat([neighbours, itself]).std(0)
    return (-(neighbours - photo).abs_() / (1e-8 + 0.1 * deviation)).mean(1).softmax(0)


def around(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The values [C, H, W] of the eight neighbours at each distance; beyond the border, those of the border."""
    _, height, width = values.shape
    for distance in dilations:
        padded = F.pad(values[None], [distance] * 4, mode="replicate")[0]
        for row in (0, distance, 2 * distance):
            for column in (0, distance, 2 * distance):
                if (row, column) != (distance, distance):
                    yield padded[:, row : row + height, column : column + width]
