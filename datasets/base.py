"""What every data set offers, and how the files of one are read: strictly, naming what is wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffseg.datasets.transforms import centre_crop, image_to_pixels, nearest, resize_label
from diffseg.errors import UserError, did_you_mean, printable
from diffseg.files import content_hashes
from diffseg.images import ImageError, read_numbers, read_rgb, read_size
from diffseg.resizing import prepare, working_size
from diffseg.words import caption_of, nouns_in


class DataError(UserError):
    """A data set that is incomplete or a file that is damaged; the message names it and says what to do."""


@dataclass(frozen=True)
class Words:
    """What a prompted look says of an image. nouns: (noun in the text, class). unnamed: a number that is no class."""

    text: str
    nouns: tuple[tuple[str, int], ...]
    unnamed: int
    is_caption: bool = True  # not a list of all classes


class Dataset:
    """Photos with labels, pre-processed as the protocol says. A subclass fills keys, classes, photo and raw_label.

    keys: in evaluation order. classes: names; a label is an index into them, -1 = ignored. background: index of the
    class that stands for all else, None: there is none. labelled: whether there are labels to score against. note: what
    part of the benchmark this is, "" only for exactly the images that published numbers are of. located: the
    constructor's arguments that say where the data lies, not what it is. added: arguments that came later, with the
    value that means what was there before: at that value they are no part of a run's identity, so it keeps its name.

    prepare: what a model is shown of a photo. "crop": the middle square, size x size pixels. "squash": all of it, at
    size x size pixels. "whole": all of it in its own shape, about size x size pixels of area; then labels are made and
    compared at the photo's own size.
    regions: labels are regions without classes, of one or several annotations (`annotations`).
    """

    classes: tuple[str, ...] = ()
    background: int | None = None
    labelled: bool = True
    regions: bool = False
    note: str = ""
    prepare: str = "crop"
    size: int = 512
    keys: list[str]
    located: tuple[str, ...] = ("root", "keys")
    added: Mapping[str, object] = {"prepare": "crop"}

    def __len__(self) -> int:
        return len(self.keys)

    def choose(
        self, count: int | None = None, keys: Sequence[str] | str | Path | None = None, prepare: str | None = None
    ) -> None:
        """Checks what all data sets have, keeps a part of the images and says so in `note`: a constructor's last step.

        Args:
            count: the first so many. keys: these, in this order; or a text file with one on each line. prepare: in
                place of the usual way, which published numbers are of.

        Raises:
            DataError: a size or count out of range, a class named twice, a key that the data set does not have, a file
                that is not there.
        """
        usual, self.prepare = self.prepare, prepare or self.prepare
        if self.prepare not in ("crop", "squash", "whole"):
            raise DataError(f"prepare must be crop, squash or whole, got {self.prepare!r}")
        if type(self.size) is not int or not 8 <= self.size <= 8192:
            raise DataError(f"size must be 8 to 8192 pixels a side, got {self.size!r}")
        twice = next((name for name in self.classes if self.classes.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"classes: {twice!r} is named more than once: every class needs a name of its own")
        wrong = next((key for key in self.keys if printable(key) != key or ".." in key.split("/")), None)
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
        if self.prepare != usual:
            self.note = f"{self.note}, prepared by {self.prepare}" if self.note else f"prepared by {self.prepare}"

    def fingerprint(self) -> str:
        """Hash of the keys and of what the photos' files hold, wherever they lie (16 hex digits)."""
        return _hash_of(self.keys, {key: file for key in self.keys if (file := self.file(key))})

    def truth_fingerprint(self) -> str:
        """Hash of the keys and of what the labels' files hold (16 hex digits)."""
        return _hash_of(self.keys, self.truth_files())

    def file(self, key: str) -> Path | None:
        """The photo's file; None where there is none."""
        return None

    def truth_file(self, key: str) -> Path | None:
        """The label's file; None where there is none of its own."""
        return None

    def truth_files(self) -> dict[str, Path]:
        """All files that the labels come from, each under a name that does not say where they lie."""
        return {key: file for key in self.keys if (file := self.truth_file(key))}

    def photo(self, key: str) -> np.ndarray:
        """The photo as stored, uint8 [H, W, 3]."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its photos are read")

    def raw_label(self, key: str) -> np.ndarray:
        """The labels at the photo's own size, int [H, W], -1 = ignored."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its labels are read")

    def annotations(self, key: str) -> list[np.ndarray]:
        """The labels of each annotation at the photo's own size, int [H, W], -1 = ignored; of classes, there is one."""
        return [self.raw_label(key)]

    @property
    def nouns(self) -> Mapping[str, int]:
        """What a prompt that lists the classes calls each of them -> the class."""
        return {name.replace("_", " ").replace("-", " ").lower(): i for i, name in enumerate(self.classes)}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """What captions may call the classes, in small letters -> the class."""
        return self.nouns

    def caption_file(self) -> Path | None:
        """The file that captions are read from; None where there is none."""
        return None

    def caption(self, key: str) -> str:
        """A sentence that says what an image shows.

        Raises:
            DataError: there is none.
        """
        raise DataError(f"{type(self).__name__} has no captions: name its classes, prompts=classes")

    def words(self, key: str, prompts: str) -> Words:
        """What is said of an image to have its segments named.

        prompts: "classes", a list of all classes, the same for every image; "captions", the image's caption, whose
            nouns are those of the vocabulary.
        """
        if prompts == "classes":
            return Words(caption_of(list(self.nouns)), tuple(self.nouns.items()), len(self.classes), False)
        caption = self.caption(key)
        return Words(caption, nouns_in(caption, self.vocabulary), len(self.classes))

    def image(self, key: str, size: int | None = None, multiple: int = 1) -> torch.Tensor:
        """A photo as `prepare` says, float32 [3, h, w] in [-1, 1].

        Crops are bilinear without antialiasing, as the paper's; else antialiased, as for single photos.

        Args:
            size: in place of the data set's. multiple: what both sides of a whole photo must be multiples of.
        """
        photo, size = self.photo(key), size or self.size
        if self.prepare == "crop":
            return image_to_pixels(photo, size)
        shape = (size, size)
        if self.prepare == "whole":
            shape = working_size(photo.shape[0], photo.shape[1], size, multiple)
        return prepare(photo, shape)[0]

    def crop(self, x: np.ndarray) -> np.ndarray:
        """What is used of a photo or label map [H, W, ...], at its own scale."""
        return centre_crop(x) if self.prepare == "crop" else x

    def label(self, key: str) -> np.ndarray:
        """int32 [h, w], -1 = ignored: as predictions are."""
        return self.fitted(self.raw_label(key))

    def label_shape(self, key: str) -> tuple[int, int]:
        """The (height, width) of the predictions for a photo."""
        return self.predicted(self.photo(key).shape) if self.prepare == "whole" else (self.size, self.size)

    def predicted(self, original: tuple[int, ...]) -> tuple[int, int]:
        """The (height, width) of the predictions for a photo of the original shape (height, width, ...)."""
        return (original[0], original[1]) if self.prepare == "whole" else (self.size, self.size)

    def fitted(self, label: np.ndarray, size: int | None = None) -> np.ndarray:
        """A label map int [H, W] of a photo's own shape as it is compared, int32 [h, w]: nearest-exact.

        size: pixels a side, of whole photos about size x size of area; None: as predictions are.
        """
        if self.prepare == "crop":
            return resize_label(label, size or self.size)
        if self.prepare == "whole":
            height, width = label.shape
            return label.astype(np.int32) if size is None else nearest(label, working_size(height, width, size, 1))
        return nearest(label, (size or self.size, size or self.size))

    def check_size(self, key: str, shape: tuple[int, ...]) -> None:
        """Checks that the photo of a key, by its file's header, is of its label's shape (height, width).

        Raises:
            DataError: it is not, or the photo is missing or damaged.
        """
        file = self.file(key)
        if file is None:
            return
        with _named():
            width, height = read_size(file)
        if (height, width) != shape:
            turned = "if the photo is turned by EXIF, store it upright or draw the label on the stored pixels; else "
            raise DataError(
                f"{file} is {width} x {height} but its label {shape[1]} x {shape[0]} pixels: "
                f"{turned if (width, height) == shape else ''}one of the two files belongs to another version of the "
                f"data set; fetch both again"
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


_EXACT_FLOAT = 1 << 24  # beyond this, float32 (which Pillow also makes of float64) lacks whole numbers


def read_photo(path: Path, upright: bool = False) -> np.ndarray:
    """An image file, uint8 [H, W, 3], converted as for `diffseg segment` (`images.load_image`), of any size.

    upright: apply EXIF orientation. Labels are drawn on stored pixels, so photos with labels stay as stored.

    Raises:
        DataError: missing, damaged, not an image, above 100 megapixels, pixels that are not finite numbers.
    """
    with _named():
        return read_rgb(path, upright)


def read_map(path: Path) -> np.ndarray:
    """A label map as stored, int32 [H, W], whatever its bit depth; a palette's indices, not its colours.

    Raises:
        DataError: missing, damaged, above 100 megapixels; a picture with colours, or of several frames or pages; a
            value that is no whole number from 0 on.
    """
    with _named():
        values = read_numbers(path)
    if values.ndim != 2:
        raise DataError(
            f"{path} is a colour picture, not a label map: a label map has one channel of numbers; save the numbers of "
            f"the classes (or a palette's indices), not their colours"
        )
    if values.dtype.kind == "f":
        good = (values >= 0) & (values <= _EXACT_FLOAT) & (values == np.floor(values))
    else:
        good = values >= 0  # unsigned 32 bits arrive as signed ones: from 2,147,483,648 on, they are negative here
    if not good.all():
        most = f"{_EXACT_FLOAT:,} as floating point" if values.dtype.kind == "f" else "2,147,483,647"
        raise DataError(
            f"{path} holds the value {values[~good][0]}: a label map holds whole numbers from 0 to {most}; "
            f"write what is not to be scored as a number of its own"
        )
    return values.astype(np.int32)


@contextmanager
def _named() -> Iterator[None]:
    """A picture that cannot be used, as an error of the data set."""
    try:
        yield
    except ImageError as error:
        raise DataError(str(error)) from None


def require_folder(folder: Path, layout: str, root: Path | None = None) -> Path:
    """`folder`, which must be there.

    root: what the user named, from which `folder` was made; None: the folder above it.

    Raises:
        DataError: it is not; the message shows the layout that is expected, and a nearby folder that has it.
    """
    if folder.is_dir():
        return folder
    root = root or folder.parent
    inside = folder.relative_to(root)
    for near in (*list(root.parents)[:2], *sorted(p for p in root.glob("*/") if p.is_dir())):
        if (near / inside).is_dir():
            raise DataError(f"there is no folder {folder}; did you mean the root {near}? The layout is {layout}")
    raise DataError(f"there is no folder {folder}: the layout is {layout}")


def names_in(folder: Path, suffix: str) -> set[str]:
    """The names of a folder's files that end in `suffix`, without it: one look at the folder, none at its files."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix) and not name.startswith(".")}


def paired(photos: set[str], labels: set[str], remedy: str, what: str = "images") -> list[str]:
    """The names of photos, sorted; each must have a label, and each label a photo.

    Raises:
        DataError: one of them is alone; the message ends with the remedy.
    """
    alone = sorted(photos ^ labels)
    if alone:
        names = ", ".join(alone[:3])
        raise DataError(f"{len(alone):,} {what} lack photo or label, such as {names}: {remedy}")
    return sorted(photos)


def part_of(count: int, whole: int, what: str) -> str:
    """What part of a benchmark `count` images are, for `Dataset.note`: "" only for as many as there should be."""
    if count > whole:
        return f"{count:,} images, not the {whole:,} {what}"
    return "" if count == whole else f"{count:,} of the {whole:,} {what}"


def check_values(path: Path, values: np.ndarray, last: int, void: int | None, whose: str) -> None:
    """Checks that a label map (int [H, W], from 0 on) holds nothing but 0 to `last`, and `void` if there is such.

    Raises:
        DataError: it does; the message names the file, the value, and what `whose` maps hold.
    """
    wrong = values[(values > last) & (values != void)] if void is not None else values[values > last]
    if wrong.size:
        also = f", and {void} for void" if void is not None else ""
        raise DataError(f"{path} holds the value {wrong[0]}: {whose} maps hold 0 to {last}{also}; fetch it again")
