"""Pre-processing of photos and labels. The paper's, to the pixel: centre crop to the short side, then 512 x 512.

There Pillow's resize is not used: it antialiases, and the protocol does not.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def centre_crop(x: np.ndarray) -> np.ndarray:
    """The middle square of x [H, W, ...]; an odd pixel stays below or to the right."""
    height, width = x.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[top : top + side, left : left + side]


def image_to_pixels(image: np.ndarray, size: int = 512) -> torch.Tensor:
    """A photo uint8 [H, W, 3] as float32 [3, size, size] in [-1, 1]: bilinear, half-pixel centres, no antialiasing."""
    x = torch.from_numpy(centre_crop(image).copy()).permute(2, 0, 1)[None].float()
    if x.shape[-1] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=False)
    return x[0] / 127.5 - 1


def resize_label(label: np.ndarray, size: int = 512) -> np.ndarray:
    """A label map int [H, W] as int32 [size, size]: nearest with half-pixel centres ("nearest-exact"), any int32."""
    return nearest(centre_crop(label), (size, size))


def nearest(label: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """All of a label map int [H, W] as int32 of another shape (height, width): nearest with half-pixel centres."""
    rows, columns = (_nearest(old, new) for old, new in zip(label.shape, shape, strict=True))
    return label[np.ix_(rows, columns)].astype(np.int32)


def _nearest(old: int, new: int) -> np.ndarray:
    """The position, 0..old-1, that each of `new` positions takes its label from: int64 [new]."""
    positions = torch.arange(old, dtype=torch.float32)[None, None]  # torch says which; it moves no label
    return F.interpolate(positions, new, mode="nearest-exact")[0, 0].numpy().astype(np.int64)
