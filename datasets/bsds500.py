"""BSDS500: photos that several people divided into regions each, without classes and as finely as they saw fit."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from diffseg.datasets.base import DataError, Dataset, read_photo

SPLITS = {"train": 200, "val": 100, "test": 200}  # images
SOURCE = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"
ARCHIVE = "BSR_bsds500.tgz"
HINT = "; make data-bsds says where to get it"
LAYOUT = "ROOT/BSDS500/data/images/test/*.jpg with ROOT/BSDS500/data/groundTruth/test/*.mat" + HINT
_COMPRESSED = 15  # MATLAB's number of this kind of element
_ABOVE = (".", "data", "BSDS500/data", "BSR/BSDS500/data")  # from the root to images and groundTruth
_MOST_BYTES = 1 << 28  # of a file unpacked
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, MatReadError, zlib.error)


class Bsds500(Dataset):
    """The 200 test images, 481 x 321 or 321 x 481 pixels, each with 4 to 9 annotations. keys: image numbers as text.

    Args:
        root: folder that holds BSDS500/data, or one between it and images and groundTruth. split: test, val, train.
        prepare: see `Dataset`. count, keys: a part of the images, see `Dataset.choose`.

    Raises:
        DataError: no images, or images without annotations.
    """

    regions = True
    prepare = "whole"
    added: Mapping[str, object] = {}

    def __init__(
        self,
        root: str | Path,
        split: str = "test",
        prepare: str = "whole",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str] | str | None = None,
    ):
        if split not in SPLITS:
            raise DataError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        self.size = size
        data = _data_folder(Path(root))
        self._photos, self._truths = data / "images" / split, data / "groundTruth" / split
        photos, truths = {p.stem for p in self._photos.glob("*.jpg")}, {p.stem for p in self._truths.glob("*.mat")}
        if not photos and not truths:
            raise DataError(f"{self._photos} has no images: the layout is {LAYOUT}")
        if photos != truths:
            alone = sorted(photos ^ truths)
            raise DataError(
                f"{len(alone)} images of {data} lack photo or annotations, such as {', '.join(alone[:3])}: unpack "
                f"{ARCHIVE} again"
            )
        self.keys = sorted(photos)
        if split != "test":
            self.note = f"{len(self.keys)} images of {split}, not of test"
        elif len(self.keys) != SPLITS[split]:
            self.note = f"{len(self.keys)} of the {SPLITS[split]} images of test"
        self.choose(count, keys, prepare)

    def file(self, key: str) -> Path:
        """ROOT/BSDS500/data/images/SPLIT/KEY.jpg."""
        return self._photos / f"{key}.jpg"

    def truth_file(self, key: str) -> Path:
        """ROOT/BSDS500/data/groundTruth/SPLIT/KEY.mat."""
        return self._truths / f"{key}.mat"

    def photo(self, key: str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return read_photo(self.file(key))

    def annotations(self, key: str) -> list[np.ndarray]:
        """int32 [H, W] of each annotation: regions 0, 1, ...; -1 where it has none."""
        return read_annotations(self.truth_file(key))

    def raw_label(self, key: str) -> np.ndarray:
        """The first annotation, for pictures."""
        return self.annotations(key)[0]


def _data_folder(root: Path) -> Path:
    """The folder that holds images and groundTruth.

    Raises:
        DataError: there is none at or below the root.
    """
    for above in _ABOVE:
        if (root / above / "images").is_dir() and (root / above / "groundTruth").is_dir():
            return root / above
    raise DataError(f"there are no folders images and groundTruth of BSDS500 in {root}: the layout is {LAYOUT}")


def read_annotations(path: Path) -> list[np.ndarray]:
    """All annotations of one of the benchmark's MATLAB files: int32 [H, W] each, regions 0, 1, ... without gaps.

    The file holds a cell array groundTruth, each cell with a matrix Segmentation of region numbers from 1; 0, which
    the benchmark does not use, becomes -1.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: unpack {ARCHIVE} again")
    try:
        content = loadmat(io.BytesIO(_intact(path.read_bytes())))
        stored = [cell["Segmentation"][0, 0] for cell in content["groundTruth"].ravel()]
        whole = all(s.ndim == 2 and s.size and (s == np.floor(s)).all() and s.min() >= 0 for s in stored)
    except _UNREADABLE as error:
        raise DataError(f"{path} is damaged ({_reason(error)}): unpack {ARCHIVE} again") from None
    if not stored or not whole or len({s.shape for s in stored}) > 1:
        raise DataError(
            f"{path} must hold one annotation or more, all of one size, of whole numbers from 0: unpack {ARCHIVE} again"
        )
    return [_numbered(s) for s in stored]


def _intact(file: bytes) -> bytes:
    """The bytes of a MATLAB file (version 5) of one compressed variable, as the benchmark's all are, its sum checked.

    On damaged content scipy's reader may end the whole process, so it is shown none.

    Raises:
        ValueError: the file is another one, cut off, or too large. zlib.error: it is damaged.
    """
    kind, length = struct.unpack("<II", file[128:136].ljust(8, b"\0"))
    if kind != _COMPRESSED or len(file) != 136 + length:
        raise ValueError("cut off, or not MATLAB's format 5 with one compressed variable")
    unpacked = zlib.decompressobj()
    unpacked.decompress(file[136:], _MOST_BYTES)
    if not unpacked.eof:
        raise ValueError(f"cut off, or above {_MOST_BYTES >> 20} MB")
    return file


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _numbered(stored: np.ndarray) -> np.ndarray:
    """Region numbers without gaps, int32 [H, W]: the least above 0 becomes 0; 0 becomes -1."""
    numbers, rank = np.unique(stored, return_inverse=True)
    return (rank.reshape(stored.shape) - int(numbers[0] == 0)).astype(np.int32)


def main(root: Annotated[Path, typer.Argument(help="Folder that holds BSDS500/data.")]) -> None:
    """Checks that a BSDS500 folder is complete; says what is missing and where to get it."""
    try:
        data = Bsds500(root)
        for key in data.keys:
            data.annotations(key)
    except DataError as error:
        typer.echo(
            f"{str(error).removesuffix(HINT)}\n"
            f"BSDS500 is free for research: fetch {ARCHIVE} (70 MB) at {SOURCE} and unpack it into {root}",
            err=True,
        )
        raise typer.Exit(2) from None
    typer.echo(f"{root}: {data.note or 'all 200 images of test, each with its annotations'}")


if __name__ == "__main__":
    typer.run(main)
