"""Controls: what needs no model. A method has to beat them, or its attention is worth nothing."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from diffseg.attention import Needs
from diffseg.errors import UserError
from diffseg.methods.base import Oracle, Segmenter, classes_in, upsample_labels
from diffseg.observed import Observed


class ColourKMeans(Oracle):
    """The control without a model: k-means on colour (and position), told each image's number of classes."""

    needs = Needs()
    told = "the number of classes"

    def __init__(self, place: float = 0.0):
        self.place = place

    def segment(self, image: Observed, truth: np.ndarray) -> np.ndarray:
        """Labels int64 [H, W], 0..k-1."""
        labels = colour_kmeans(image.pixels, classes_in(truth), self.place)
        return upsample_labels(labels, image.size).numpy()


class Whole(Segmenter):
    """The floor: the whole image as one segment."""

    needs = Needs()

    def segment(self, image: Observed) -> np.ndarray:
        """Zeros int64 [H, W]."""
        return np.zeros(image.size, np.int64)


class Grid(Segmenter):
    """Rows x columns equal cells, whatever the image shows: a measure that such a grid does well under says little."""

    needs = Needs()

    def __init__(self, rows: int = 3, columns: int = 3):
        if rows < 1 or columns < 1:
            raise UserError(f"a grid has at least 1 row and 1 column, got {rows} and {columns}")
        if rows * columns > 65536:
            raise UserError(f"a grid has at most 65536 cells, rows x columns; got {rows} x {columns}")
        self.rows, self.columns = rows, columns

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W], 0..rows*columns-1."""
        height, width = image.size
        row, column = np.arange(height) * self.rows // height, np.arange(width) * self.columns // width
        return row[:, None] * self.columns + column


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
