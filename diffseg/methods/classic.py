"""The classics before networks: Felzenszwalb and Huttenlocher's graph cut, and SLIC superpixels. By scikit-image.

Both see the photo alone, at the size that labels are wanted at. scikit-image is not installed with the rest: it comes
with the extra `classic`.
"""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch.nn.functional as F

from diffseg.attention import Needs
from diffseg.errors import UserError
from diffseg.methods.base import Segmenter
from diffseg.observed import Observed


class Felzenszwalb(Segmenter):
    """Efficient graph-based segmentation (Felzenszwalb and Huttenlocher 2004).

    scale: k, for colours from 0 to 255: the larger, the larger the segments. sigma: of the Gaussian that the photo is
    smoothed with, in pixels. min_size: pixels of the smallest segment.
    """

    needs = Needs()

    def __init__(self, scale: float = 500, sigma: float = 0.8, min_size: int = 50):
        _check_installed("felzenszwalb")
        if not 0 < scale < math.inf or not 0 <= sigma <= 100 or min_size < 1:
            raise UserError(
                f"scale must be above 0, sigma 0 to 100 and min_size at least 1; got {scale}, {sigma} and {min_size}"
            )
        self.scale, self.sigma, self.min_size = scale, sigma, min_size

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W], 0..K-1."""
        from skimage.segmentation import felzenszwalb

        return felzenszwalb(colours(image), self.scale, self.sigma, self.min_size)


class Slic(Segmenter):
    """Superpixels: k-means on colour and place (Achanta et al. 2012).

    n_segments: about so many. compactness: how much place weighs against colour (CIELAB).
    """

    needs = Needs()

    def __init__(self, n_segments: int = 30, compactness: float = 10):
        _check_installed("slic")
        if not 1 <= n_segments <= 65535 or not 0 < compactness < math.inf:
            raise UserError(
                f"n_segments must be 1 to 65535 and compactness above 0; got {n_segments} and {compactness}"
            )
        self.n_segments, self.compactness = n_segments, compactness

    def segment(self, image: Observed) -> np.ndarray:
        """Labels int64 [H, W], 0..K-1."""
        from skimage.segmentation import slic

        return slic(colours(image), self.n_segments, self.compactness, start_label=0)


def colours(image: Observed) -> np.ndarray:
    """The photo at the size that labels are wanted at, float64 [H, W, 3] in 0..1."""
    pixels = image.pixels.detach().float().cpu()[None]
    if pixels.shape[2:] != tuple(image.size):
        pixels = F.interpolate(pixels, image.size, mode="bilinear", align_corners=False, antialias=True)
    return ((pixels[0].permute(1, 2, 0).double() + 1) / 2).clamp(0, 1).numpy()


def _check_installed(name: str) -> None:
    if importlib.util.find_spec("skimage") is None:
        raise UserError(f'{name} needs scikit-image: pip install "diffseg[classic]"')
