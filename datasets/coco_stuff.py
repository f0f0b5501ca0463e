"""The 27 classes of COCO-Stuff-27: the super-categories of COCO-Stuff, 12 of things and then 15 of stuff."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffseg.datasets.transforms import image_to_pixels, resize_label
from diffseg.images import load_image

CLASSES: tuple[str, ...] = (
    "electronic-things",
    "appliance-things",
    "food-things",
    "furniture-things",
    "indoor-things",
    "kitchen-things",
    "accessory-things",
    "animal-things",
    "outdoor-things",
    "person-things",
    "sports-things",
    "vehicle-things",
    "ceiling-stuff",
    "floor-stuff",
    "food-stuff",
    "furniture-stuff",
    "rawmaterial-stuff",
    "textile-stuff",
    "wall-stuff",
    "window-stuff",
    "building-stuff",
    "ground-stuff",
    "plant-stuff",
    "sky-stuff",
    "solid-stuff",
    "structural-stuff",
    "water-stuff",
)

# Class of each value 0..181 of the stuffthingmaps PNGs (value v is COCO id v + 1).
# fmt: off
COARSE = (
    9, 11, 11, 11, 11, 11, 11, 11, 11, 8, 8, 8, 8, 8, 8, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6,
    6, 6, 6, 6, 6, 6, 6, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 5, 5, 5, 5, 5, 5, 5, 5, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 1,
    1, 1, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4, 17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17,
    17, 23, 15, 15, 17, 15, 21, 15, 25, 13, 13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15,
    17, 16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20, 17, 14, 21, 26, 15,
    23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18, 18, 18, 18, 26, 26, 19, 19, 24,
)
# fmt: on

# 255 and every other value is unlabelled.
_TO_COARSE = np.full(256, -1, np.int16)
_TO_COARSE[: len(COARSE)] = COARSE


class CocoStuff27:
    """COCO val2017 with COCO-Stuff labels, from a folder in COCO's own layout.

    root/val2017/*.jpg are the photos, root/stuffthingmaps/val2017/*.png the labels. keys: sorted image ids that have
    both.
    """

    classes = CLASSES

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._photos, self._labels = self.root / "val2017", self.root / "stuffthingmaps" / "val2017"
        self.keys = sorted({p.stem for p in self._photos.glob("*.jpg")} & {p.stem for p in self._labels.glob("*.png")})
        if not self.keys:
            raise ValueError(f"{self.root} has no val2017/*.jpg with stuffthingmaps/val2017/*.png of the same names")

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, key: str) -> torch.Tensor:
        """float32 [3, 512, 512] in [-1, 1]."""
        return image_to_pixels(load_image(self._photos / f"{key}.jpg"))

    def label(self, key: str) -> np.ndarray:
        """int16 [512, 512], 0..26, -1 = unlabelled."""
        return resize_label(_TO_COARSE[np.asarray(Image.open(self._labels / f"{key}.png"))])
