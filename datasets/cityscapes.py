"""Cityscapes, fine annotations, in the layout of its own downloads; the paper's 27 classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from diffseg.datasets.base import DataError, Dataset, read_map, read_photo, require_folder

# labelIds 7..33, in order.
CLASSES = (
    "road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
_FIRST, _LAST = 7, 33
FRAMES = 500
DOWNLOADS = "https://www.cityscapes-dataset.com/downloads/"
HINT = "; make data-cityscapes says where to get it"
LAYOUT = "ROOT/leftImg8bit/val/CITY/*_leftImg8bit.png with ROOT/gtFine/val/CITY/*_gtFine_labelIds.png" + HINT


class Cityscapes(Dataset):
    """500 frames (val) of 2048 x 1024; the centre crop keeps the middle 1024 x 1024. keys: "city/city_000000_000019".

    Args:
        root: folder that holds leftImg8bit and gtFine. split: val, train. count, keys: a part of the frames, see
            `Dataset.choose`.

    Raises:
        DataError: no frames, or frames without their partner.
    """

    classes = CLASSES

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str] | str | None = None,
    ):
        self.size = size
        self._photos = require_folder(Path(root) / "leftImg8bit" / split, LAYOUT)
        self._labels = require_folder(Path(root) / "gtFine" / split, LAYOUT)
        photos = _keys(self._photos, "_leftImg8bit.png")
        labels = _keys(self._labels, "_gtFine_labelIds.png")
        if not photos and not labels:
            raise DataError(f"{self._photos} has no frames: the layout is {LAYOUT}")
        if photos != labels:
            alone = sorted(photos ^ labels)
            raise DataError(
                f"{len(alone)} frames lack photo or label, such as {', '.join(alone[:3])}: "
                f"fetch leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip again"
            )
        self.keys = sorted(photos)
        if split != "val":
            self.note = f"{len(self.keys):,} frames of {split}, not of val"
        elif len(self.keys) != FRAMES:
            self.note = f"{len(self.keys)} of the {FRAMES} frames of val"
        self.choose(count, keys)

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
        """int32 [1024, 2048]: labelIds 7..33 -> 0..26, all else -1."""
        ids = read_map(self.truth_file(key))
        return np.where((ids >= _FIRST) & (ids <= _LAST), ids - _FIRST, -1)


def _keys(folder: Path, suffix: str) -> set[str]:
    return {p.relative_to(folder).as_posix().removesuffix(suffix) for p in folder.glob(f"*/*{suffix}")}


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
