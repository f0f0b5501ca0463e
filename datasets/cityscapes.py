"""Cityscapes, fine annotations, in the layout of its own downloads; the paper's 27 classes, or the benchmark's 19."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from diffseg.datasets.base import (
    DataError,
    Dataset,
    check_values,
    names_in,
    paired,
    part_of,
    read_map,
    read_photo,
    require_folder,
)

# labelIds 7..33, in order.
CLASSES = (
    "road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
_FIRST, _LAST = 7, 33
# The classes that the benchmark's own evaluation leaves out; the other 19, in the same order, are its trainIds 0..18.
_RARE = frozenset({
    "parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer",
})  # fmt: skip
CLASSES_19 = tuple(name for name in CLASSES if name not in _RARE)
FRAMES = 500
DOWNLOADS = "https://www.cityscapes-dataset.com/downloads/"
HINT = "; make data-cityscapes says where to get it"
LAYOUT = "ROOT/leftImg8bit/val/CITY/*_leftImg8bit.png with ROOT/gtFine/val/CITY/*_gtFine_labelIds.png" + HINT


class Cityscapes(Dataset):
    """500 frames (val) of 2048 x 1024; the centre crop keeps the middle 1024 x 1024. keys: "city/city_000000_000019".

    Args:
        root: folder that holds leftImg8bit and gtFine. split: val, train. count, keys: a part of the frames, see
            `Dataset.choose`. prepare: see `Dataset`; "whole" is the whole 2:1 frame.
        classes: 27, as the paper, labelIds 7..33; 19, those that Cityscapes itself scores (trainIds), all else ignored.

    Raises:
        DataError: no frames, or frames without their partner; another number of classes.
    """

    classes: tuple[str, ...] = CLASSES
    added: Mapping[str, object] = {**Dataset.added, "classes": 27}  # runs were made with it before there was a choice

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str] | str | None = None,
        classes: int = 27,
        prepare: str = "crop",
    ):
        if type(classes) is not int or classes not in (27, 19):
            raise DataError(f"classes must be 27 (the paper's) or 19 (those that Cityscapes scores), got {classes!r}")
        self.size, self.classes = size, CLASSES if classes == 27 else CLASSES_19
        self._class_of_id = np.full(256, -1, np.int32)  # all that a labelIds PNG of 8 bits can hold
        self._class_of_id[_FIRST : _LAST + 1] = [
            self.classes.index(name) if name in self.classes else -1 for name in CLASSES
        ]
        self._photos = require_folder(Path(root) / "leftImg8bit" / split, LAYOUT, Path(root))
        self._labels = require_folder(Path(root) / "gtFine" / split, LAYOUT, Path(root))
        photos = _keys(self._photos, "_leftImg8bit.png")
        labels = _keys(self._labels, "_gtFine_labelIds.png")
        if not photos and not labels:
            raise DataError(f"{self._photos} has no frames: the layout is {LAYOUT}")
        remedy = "fetch leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip again"
        self.keys = paired(photos, labels, remedy, "frames")
        self.note = part_of(len(self.keys), FRAMES, "frames of val")
        if split != "val":
            self.note = f"{len(self.keys):,} frames of {split}, not of val"
        if classes != 27:
            self.note = f"{self.note or f'all {FRAMES} frames of val'}, with {classes} classes instead of 27"
        self.choose(count, keys, prepare)

    def file(self, key: str) -> Path:
        """ROOT/leftImg8bit/SPLIT/KEY_leftImg8bit.png."""
        return self._photos / f"{key}_leftImg8bit.png"

    def truth_file(self, key: str) -> Path:
        """ROOT/gtFine/SPLIT/KEY_gtFine_labelIds.png."""
        return self._labels / f"{key}_gtFine_labelIds.png"

    def photo(self, key: str) -> np.ndarray:
        """uint8 [1024, 2048, 3]."""
        return read_photo(self.file(key))

    def raw_label(self, key: str) -> np.ndarray:
        """int32 [1024, 2048]: labelIds to 0..26 or 0..18, all else -1."""
        ids = read_map(self.truth_file(key))
        check_values(self.truth_file(key), ids, 255, None, "labelIds")
        return self._class_of_id[ids]


def _keys(folder: Path, suffix: str) -> set[str]:
    """CITY/FRAME of all cities: one look at each folder."""
    cities = [city.name for city in folder.iterdir() if city.is_dir()]
    return {f"{city}/{name}" for city in cities for name in names_in(folder / city, suffix)}


def main(root: Annotated[Path, typer.Argument(help="Folder that holds leftImg8bit and gtFine.")]) -> None:
    """Checks that a Cityscapes folder is complete; says what is missing and where to get it."""
    try:
        data = Cityscapes(root)
    except DataError as error:
        typer.echo(
            f"{str(error).removesuffix(HINT)}\n"
            "Cityscapes is free for research but needs an account: fetch leftImg8bit_trainvaltest.zip "
            f"(11 GB) and gtFine_trainvaltest.zip (241 MB) at {DOWNLOADS} and unpack both into {root}",
            err=True,
        )
        raise typer.Exit(2) from None
    typer.echo(f"{root}: {data.note or 'all 500 frames of val, each with its labels'}")


if __name__ == "__main__":
    typer.run(main)
