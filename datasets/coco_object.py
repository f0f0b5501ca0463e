"""COCO-Object: the 80 things of COCO and a background that is all of its stuff, from COCO-Stuff's labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffseg.datasets.base import DataError
from diffseg.datasets.coco_stuff import NAMES, UNLABELLED, CocoMaps, class_table

_FIRST_STUFF = 91
OBJECTS: tuple[str, ...] = tuple(name for value, name in NAMES.items() if value < _FIRST_STUFF)
BACKGROUND = 0
# Of each value: things 1..80 in COCO's order, stuff 0.
_CLASS_OF = {value: index + 1 if value < _FIRST_STUFF else BACKGROUND for index, value in enumerate(NAMES)}


class CocoObject(CocoMaps):
    """81 classes, background first. By default the 2,175 images of COCO-Stuff-27: published numbers are of these.

    Args:
        root, split, labels, size, count, keys, prepare: see `CocoMaps`.
        void: what unlabelled pixels are: "ignored", or "background".

    Raises:
        DataError: as `CocoMaps`; another word for void.
    """

    classes = ("background", *OBJECTS)
    background = BACKGROUND
    table = class_table(_CLASS_OF)

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        labels: str = "auto",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str] | str | None = None,
        void: str = "ignored",
        prepare: str = "crop",
    ):
        if void not in ("ignored", "background"):
            raise DataError(f"void must be ignored or background, got {void!r}")
        if void == "background":
            self.table = np.where(np.arange(len(self.table)) == UNLABELLED, BACKGROUND, self.table)
        super().__init__(root, split, labels, size, count, keys, prepare)
