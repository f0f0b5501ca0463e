"""Whole photos at the sizes that models take: about so much area, the photo's own shape."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F


def working_size(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """The (height, width) nearest to the photo's shape with about size x size area, both multiples of `multiple`.

    Photos more than 16 times as long as wide are shortened to that: the grid of anchors needs some positions a side.
    """
    ratio = min(max(height / width, 1 / 16), 16)
    sides = (size * math.sqrt(ratio), size / math.sqrt(ratio))
    h, w = (max(round(side / multiple), 1) * multiple for side in sides)
    return h, w


def prepare(photo: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A photo uint8 [H, W, 3] as the model takes it: float32 [1, 3, h, w] in [-1, 1], resized with antialiasing."""
    x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return x / 127.5 - 1
