"""What every data set offers, and how the files of one are read: strictly, naming what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffseg.datasets.transforms import image_to_pixels, resize_label


class DataError(ValueError):
    """A data set that is incomplete or a file that is damaged; the message names it and says what to do."""


class Dataset:
    """Photos with labels, pre-processed as the protocol says. A subclass fills keys, classes, photo and raw_label.

    keys: in evaluation order. classes: names; a label is an index into them, -1 = ignored. labelled: whether there are
    labels to score against. note: one sentence on what part of the benchmark this is, or "".
    """

    classes: tuple[str, ...] = ()
    labelled: bool = True
    note: str = ""
    size: int = 512
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def fingerprint(self) -> str:
        """Changes with the keys and with the photos' files (sha256 of keys and file sizes, 16 hex digits)."""
        facts = [(key, file.stat().st_size if (file := self.file(key)) and file.is_file() else 0) for key in self.keys]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def file(self, key: str) -> Path | None:
        """The photo's file; None where there is none."""
        return None

    def photo(self, key: str) -> np.ndarray:
        """The photo as stored, uint8 [H, W, 3]."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its photos are read")

    def raw_label(self, key: str) -> np.ndarray:
        """The labels at the photo's own size, int [H, W], -1 = ignored."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its labels are read")

    def image(self, key: str) -> torch.Tensor:
        """float32 [3, size, size] in [-1, 1]: centre crop, bilinear without antialiasing."""
        return image_to_pixels(self.photo(key), self.size)

    def label(self, key: str) -> np.ndarray:
        """int16 [size, size], -1 = ignored: centre crop, nearest-exact."""
        return resize_label(self.raw_label(key), self.size)

    def check_size(self, key: str, shape: tuple[int, ...]) -> None:
        """Checks that the photo of a key, by its file's header, is of its label's shape (height, width).

        Raises:
            DataError: it is not, or the photo is missing or damaged.
        """
        file = self.file(key)
        if file is None:
            return
        width, height = _read_size(file)
        if (height, width) != shape:
            raise DataError(
                f"{file} is {width} x {height} but its label {shape[1]} x {shape[0]} pixels: one of the two files "
                f"belongs to another version of the data set; fetch both again"
            )


def read_photo(path: Path) -> np.ndarray:
    """An image file as stored, uint8 [H, W, 3]; EXIF orientation is not applied: labels are drawn on stored pixels.

    Raises:
        DataError: missing, damaged or not an image.
    """
    return _read(path, "RGB")


def read_map(path: Path) -> np.ndarray:
    """A label PNG as stored, int [H, W], whatever its bit depth; a palette's indices, not its colours.

    Raises:
        DataError: missing, damaged, or a picture with colours.
    """
    values = _read(path, None)
    if values.ndim != 2:
        raise DataError(f"{path} is a colour picture, not a label map: a label map has one channel of numbers")
    return values.astype(np.int32)


def _read(path: Path, mode: str | None) -> np.ndarray:
    with _named(path), Image.open(path) as image:
        return np.asarray(image.convert(mode) if mode else image)


def _read_size(path: Path) -> tuple[int, int]:
    """(width, height) by the file's header."""
    with _named(path), Image.open(path) as image:
        return image.size


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading a picture, as one sentence that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} is missing: fetch it again, or remove its partner") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise DataError(f"{path} is damaged or not an image ({error}): fetch it again") from None


def require_folder(folder: Path, layout: str) -> Path:
    """`folder`, which must be there.

    Raises:
        DataError: it is not; the message shows the layout that is expected, and a nearby folder that has it.
    """
    if folder.is_dir():
        return folder
    for near in (folder.parent.parent, *sorted(p for p in folder.parent.glob("*/") if p.is_dir())):
        if (near / folder.name).is_dir():
            raise DataError(f"there is no folder {folder}; did you mean the root {near}? The layout is {layout}")
    raise DataError(f"there is no folder {folder}: the layout is {layout}")
