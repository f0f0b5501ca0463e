"""Pascal VOC 2012, segmentation, in the layout of its own download: 20 classes and background."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255  # the line around each object
COUNTS = {"val": 1449, "train": 1464}
LAYOUT = (
    "ROOT/VOCdevkit/VOC2012/{JPEGImages/*.jpg,SegmentationClass/*.png,ImageSets/Segmentation/*.txt}; "
    "make data-voc DATA=ROOT fetches all three"
)
_REMEDY = "unpack VOCtrainval_11-May-2012.tar again"

# What prompts call the classes of Pascal's that are no words, and what else captions may call them.
WORDS = {
    "diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor", "bedclothes": "bedding",
}  # fmt: skip
ALSO = {
    "airplane": "aeroplane", "plane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "plant": "pottedplant",
    "tv": "tvmonitor", "television": "tvmonitor", "monitor": "tvmonitor", "man": "person", "woman": "person",
    "people": "person", "child": "person",
}  # fmt: skip


def nouns_of(classes: Sequence[str]) -> dict[str, int]:
    """What prompts call classes of Pascal's -> the class."""
    return {WORDS.get(name, name): index for index, name in enumerate(classes)}


def vocabulary_of(classes: Sequence[str]) -> dict[str, int]:
    """What captions may call classes of Pascal's -> the class."""
    other = {noun: classes.index(name) for noun, name in ALSO.items() if name in classes}
    return {**other, **nouns_of(classes)}


class PascalVoc(Dataset):
    """1,449 images (val), 21 classes, background first. keys: "2007_000033" ...; any subset of the images works.

    Args:
        root: folder that holds VOCdevkit. split: val or train, as the lists of ImageSets/Segmentation name them. count,
            keys: a part of the images, see `Dataset.choose`; a name that was read as a number is that name.

    Raises:
        DataError: folders or lists missing; no image of the split; an image without its label, or the reverse; an image
            that is listed for training and for validation.
    """

    classes = CLASSES
    background = 0
    nouns: Mapping[str, int] = nouns_of(CLASSES)
    vocabulary: Mapping[str, int] = vocabulary_of(CLASSES)

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str | int] | str | None = None,
        prepare: str = "crop",
    ):
        if split not in COUNTS:
            raise DataError(f"split must be val or train, got {split!r}")
        self.size = size
        self._photos = folder_of_year(Path(root), 2012, "JPEGImages", LAYOUT)
        self._labels = folder_of_year(Path(root), 2012, "SegmentationClass", LAYOUT)
        listed = _listed(folder_of_year(Path(root), 2012, "ImageSets/Segmentation", LAYOUT), split)
        photos, labels = names_in(self._photos, ".jpg") & listed, names_in(self._labels, ".png") & listed
        self.keys = paired(photos, labels, _REMEDY)
        if not self.keys:
            raise DataError(f"none of the {len(listed):,} images of {split} is in {self._photos}: {_REMEDY}")
        self.note = part_of(len(self.keys), COUNTS["val"], "images of val")
        if split != "val":
            self.note = f"{len(self.keys):,} images of {split}, not of val"
        self.choose(count, as_names(keys), prepare)

    def file(self, key: str) -> Path:
        """ROOT/VOCdevkit/VOC2012/JPEGImages/KEY.jpg."""
        return self._photos / f"{key}.jpg"

    def truth_file(self, key: str) -> Path:
        """ROOT/VOCdevkit/VOC2012/SegmentationClass/KEY.png."""
        return self._labels / f"{key}.png"

    def photo(self, key: str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return read_photo(self.file(key))

    def raw_label(self, key: str) -> np.ndarray:
        """int32 [H, W]: the palette's indices, 0..20, and -1 for the line around each object."""
        values = read_map(self.truth_file(key))
        check_values(self.truth_file(key), values, len(CLASSES) - 1, VOID, "Pascal VOC's")
        return np.where(values == VOID, -1, values)


def as_names(keys: Sequence[str | int] | str | None) -> Sequence[str] | str | None:
    """Keys as they are named: on command lines and in YAML, 2007_000033 without quotes is the number 2007000033."""
    if keys is None or isinstance(keys, str | Path):
        return keys
    return [f"{key // 10**6:04d}_{key % 10**6:06d}" if type(key) is int else str(key) for key in keys]


def folder_of_year(root: Path, year: int, part: str, layout: str) -> Path:
    """ROOT/VOCdevkit/VOCyear/part, which must be there.

    Raises:
        DataError: it is not; the message says which years are there instead.
    """
    kit = root / "VOCdevkit"
    years = sorted(path.name for path in kit.glob("VOC*"))
    if years and f"VOC{year}" not in years:
        raise DataError(
            f"{kit} has {' and '.join(years)} but no VOC{year}, and photos of another year will not do: the layout is "
            f"{layout}"
        )
    return require_folder(kit / f"VOC{year}" / part, layout, root)


def _listed(lists: Path, split: str) -> set[str]:
    """The images that a list names; none of them may be in the other one."""
    listed = {name: _read_list(lists / f"{name}.txt", is_needed=name == split) for name in COUNTS}
    both = sorted(listed["val"] & listed["train"])
    if both:
        raise DataError(f"{lists} lists {len(both):,} images in train.txt and val.txt, such as {both[0]}: {_REMEDY}")
    return listed[split]


def _read_list(file: Path, is_needed: bool) -> set[str]:
    """Names of images, one a line."""
    try:
        names = {line.strip() for line in file.read_text().splitlines()} - {""}
    except FileNotFoundError:
        if not is_needed:
            return set()
        raise DataError(f"{file} is missing, it lists the images: {_REMEDY}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise DataError(f"cannot read {file} ({reason}), it lists the images: {_REMEDY}") from None
    odd = sorted(name for name in names if not re.fullmatch(r"\d{4}_\d{6}", name))
    if odd:
        raise DataError(f"{file} lists {odd[0]!r}, which is no image of VOC (2007_000033 is one): {_REMEDY}")
    return names
