"""What every data set offers, and how the files of one are read: strictly, naming what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffseg.datasets.transforms import centre_crop, image_to_pixels, resize_label
from diffseg.errors import UserError, did_you_mean
from diffseg.files import content_hashes


class DataError(UserError):
    """A data set that is incomplete or a file that is damaged; the message names it and says what to do."""


class Dataset:
    """Photos with labels, pre-processed as the protocol says. A subclass fills keys, classes, photo and raw_label.

    keys: in evaluation order. classes: names; a label is an index into them, -1 = ignored. background: index of the
    class that stands for all else, None: there is none. labelled: whether there are labels to score against. note: what
    part of the benchmark this is, "" only for exactly the images that published numbers are of. located: the
    constructor's arguments that say where the data lies, not what it is.
    """

    classes: tuple[str, ...] = ()
    background: int | None = None
    labelled: bool = True
    note: str = ""
    size: int = 512
    keys: list[str]
    located: tuple[str, ...] = ("root", "keys")

    def __len__(self) -> int:
        return len(self.keys)

    def choose(self, count: int | None = None, keys: Sequence[str] | str | Path | None = None) -> None:
        """Checks what all data sets have, keeps a part of the images and says so in `note`: a constructor's last step.

        Args:
            count: the first so many. keys: these, in this order; or a text file with one on each line.

        Raises:
            DataError: a size or count out of range, a class named twice, a key that the data set does not have, a file
                that is not there.
        """
        if type(self.size) is not int or not 8 <= self.size <= 8192:
            raise DataError(f"size must be 8 to 8192 pixels a side, got {self.size!r}")
        twice = next((name for name in self.classes if self.classes.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"classes: {twice!r} is named more than once: every class needs a name of its own")
        wrong = next((key for key in self.keys if not key.isprintable() or ".." in key.split("/")), None)
        if wrong is not None:
            raise DataError(f"the image {wrong!r} has a name that is no text in UTF-8, or leads elsewhere: rename it")
        whole = self.note or f"{len(self.keys):,} images"
        if keys is not None:
            wanted = _read_keys(keys)
            known = set(self.keys)
            unknown = [key for key in wanted if key not in known]
            if unknown or not wanted:
                near = did_you_mean(unknown[0], self.keys) if unknown else ""
                raise DataError(
                    f"keys: there is no image {unknown[0]!r}{near}" if unknown else "keys: no image is named"
                )
            self.keys = list(dict.fromkeys(wanted))
            self.note = f"{len(self.keys):,} chosen of {whole}"
        if count is not None:
            if type(count) is not int or not 1 <= count <= len(self.keys):
                raise DataError(f"count must be 1 to {len(self.keys)} images, got {count!r}")
            if count < len(self.keys):
                self.keys = self.keys[:count]
                self.note = f"the first {count:,} of {self.note or whole}"

    def fingerprint(self) -> str:
        """Hash of the keys and of what the photos' files hold, wherever they lie (16 hex digits)."""
        return _hash_of(self.keys, {key: file for key in self.keys if (file := self.file(key))})

    def truth_fingerprint(self) -> str:
        """Hash of the keys and of what the labels' files hold (16 hex digits)."""
        return _hash_of(self.keys, {key: file for key in self.keys if (file := self.truth_file(key))})

    def file(self, key: str) -> Path | None:
        """The photo's file; None where there is none."""
        return None

    def truth_file(self, key: str) -> Path | None:
        """The label's file; None where there is none of its own."""
        return None

    def photo(self, key: str) -> np.ndarray:
        """The photo as stored, uint8 [H, W, 3]."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its photos are read")

    def raw_label(self, key: str) -> np.ndarray:
        """The labels at the photo's own size, int [H, W], -1 = ignored."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its labels are read")

    def image(self, key: str, size: int | None = None) -> torch.Tensor:
        """float32 [3, size, size] in [-1, 1]: centre crop, bilinear without antialiasing.

        size: in place of the data set's.
        """
        return image_to_pixels(self.photo(key), size or self.size)

    def square(self, key: str) -> np.ndarray:
        """The photo as it is cropped, at its own scale: uint8 [S, S, 3]."""
        return centre_crop(self.photo(key))

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


def _hash_of(keys: Sequence[str], files: dict[str, Path]) -> str:
    facts = [list(keys), sorted(content_hashes(files).items())]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _read_keys(keys: Sequence[str] | str | Path) -> list[str]:
    if not isinstance(keys, str | Path):
        return [str(key) for key in keys]
    try:
        return [key.strip() for key in Path(keys).read_text().splitlines() if key.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise DataError(
            f"keys: cannot read {keys} ({reason}): give a list, or a file with a key on each line"
        ) from None


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
