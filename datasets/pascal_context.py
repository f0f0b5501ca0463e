"""Pascal Context: photos of VOC2010, labels from the annotations' own JSON; 59 classes and background."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from diffseg.datasets.base import DataError, Dataset, names_in, part_of, read_photo
from diffseg.datasets.pascal_voc import as_names, folder_of_year, nouns_of, vocabulary_of
from diffseg.images import MAX_PIXELS

# The 59 most frequent of the annotations' categories, by their ids; all others are background.
# fmt: off
NAMES: dict[int, str] = {
    2: "aeroplane", 9: "bag", 18: "bed", 19: "bedclothes", 22: "bench", 23: "bicycle", 25: "bird", 31: "boat", 33:
    "book", 34: "bottle", 44: "building", 45: "bus", 46: "cabinet", 59: "car", 65: "cat", 68: "ceiling", 72:
    "chair", 80: "cloth", 85: "computer", 98: "cow", 104: "cup", 105: "curtain", 113: "dog", 115: "door", 144:
    "fence", 158: "floor", 159: "flower", 162: "food", 187: "grass", 189: "ground", 207: "horse", 220: "keyboard",
    232: "light", 258: "motorbike", 259: "mountain", 260: "mouse", 284: "person", 295: "plate", 296: "platform",
    308: "pottedplant", 324: "road", 326: "rock", 347: "sheep", 349: "shelves", 354: "sidewalk", 355: "sign", 360:
    "sky", 366: "snow", 368: "sofa", 397: "table", 415: "track", 416: "train", 420: "tree", 424: "truck", 427:
    "tvmonitor", 440: "wall", 445: "water", 454: "window", 458: "wood",
}
# fmt: on
CLASSES = ("background", *NAMES.values())
IMAGES = 5105
UNLABELLED = "2010_001606"  # an image that some lists leave out
LAYOUT = "ROOT/VOCdevkit/VOC2010/{JPEGImages/*.jpg,trainval_merged.json}; make data-context DATA=ROOT fetches both"


class PascalContext(Dataset):
    """5,105 images (val), 60 classes, background first. keys: "2008_000002" ...; any subset of the photos works.

    Args:
        root: folder that holds VOCdevkit. count, keys, prepare: see `PascalVoc`.
        images: 5105, all of val; 5104, without 2010_001606, as in the list of mmsegmentation.

    Raises:
        DataError: folders or annotations missing; annotations damaged; photos of another year than 2010; no photo.
    """

    classes = CLASSES
    background = 0
    nouns: Mapping[str, int] = nouns_of(CLASSES)
    vocabulary: Mapping[str, int] = vocabulary_of(CLASSES)

    def __init__(
        self,
        root: str | Path,
        size: int = 512,
        images: int = IMAGES,
        count: int | None = None,
        keys: Sequence[str | int] | str | None = None,
        prepare: str = "crop",
    ):
        if type(images) is not int or images not in (IMAGES, IMAGES - 1):
            raise DataError(f"images must be {IMAGES}, or {IMAGES - 1} to leave out {UNLABELLED}; got {images!r}")
        self.size = size
        self._photos = folder_of_year(Path(root), 2010, "JPEGImages", LAYOUT)
        self._file = self._photos.with_name("trainval_merged.json")
        photos = names_in(self._photos, ".jpg")
        later = sorted(name for name in photos if name[:4].isdecimal() and int(name[:4]) > 2010)
        if later:
            raise DataError(
                f"{self._photos} holds {later[0]}.jpg, which is of a later year: the labels are of VOC2010's photos; "
                f"unpack VOCtrainval_03-May-2010.tar there"
            )
        self._images = _read(self._file)
        self.keys = sorted(self._images.keys() & photos - ({UNLABELLED} if images < IMAGES else set()))
        if not self.keys:
            raise DataError(
                f"{self._photos} has none of the {len(self._images):,} photos of val: the layout is {LAYOUT}"
            )
        self.note = part_of(len(self.keys), images, "images of val")
        if images != IMAGES:
            self.note = f"{self.note or f'{images:,} images of val'}, without {UNLABELLED}"
        self.choose(count, as_names(keys), prepare)

    def file(self, key: str) -> Path:
        """ROOT/VOCdevkit/VOC2010/JPEGImages/KEY.jpg."""
        return self._photos / f"{key}.jpg"

    def truth_files(self) -> dict[str, Path]:
        """ROOT/VOCdevkit/VOC2010/trainval_merged.json."""
        return {self._file.name: self._file}

    def photo(self, key: str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return read_photo(self.file(key))

    def raw_label(self, key: str) -> np.ndarray:
        """int32 [H, W], 0..59: segments painted in the file's order; what none covers is background.

        Raises:
            DataError: a segment that is damaged, or of another size than its image.
        """
        image = self._images[key]
        labels = np.zeros((image.height, image.width), np.int32)
        for category, size, counts in image.segments:
            if size != labels.shape:
                raise DataError(
                    f"{self._file}: a segment of {key} is {size[1]} x {size[0]} but the image {image.width} x "
                    f"{image.height} pixels: fetch the file again"
                )
            if _pixels(counts) != labels.size:  # pycocotools would fill up a code that is too short with anything
                raise DataError(f"{self._file}: a segment of {key} is damaged: fetch the file again")
            is_inside = rle.decode({"size": list(size), "counts": counts}).astype(bool)
            labels[is_inside] = _CLASS_OF.get(category, 0)
        return labels


def _pixels(counts: str) -> int:
    """How many pixels a run-length code of COCO's is of; -1: it is no such code.

    A run is written in digits of five bits, least first, as characters from "0" on; 32 says that another digit follows,
    16 in the last one that the number is negative. From the third on it is the difference to the run before the last.
    """
    runs: list[int] = []
    number = shift = 0
    for digit in (ord(character) - ord("0") for character in counts):
        if not 0 <= digit < 64:
            return -1
        number |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            number -= (digit & 16 and 1) << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return sum(runs) if min(runs, default=-1) >= 0 and not shift else -1


_CLASS_OF = {category: index + 1 for index, category in enumerate(NAMES)}


@dataclass(frozen=True)
class _Image:
    """What is annotated of an image. segments: category, (height, width), COCO's run-length code."""

    height: int
    width: int
    segments: list[tuple[int, tuple[int, int], str]]


def _read(file: Path) -> dict[str, _Image]:
    """The images of val by name; all else in the file, such as training and parts, is not kept.

    Raises:
        DataError: the file is missing or damaged, or numbers the classes otherwise.
    """
    try:
        whole = json.loads(file.read_bytes())
        _check_categories(file, whole["categories"])
        by_id = {row["image_id"]: row for row in whole["images"] if row["phase"] == "val"}
        images = {number: _Image(int(row["height"]), int(row["width"]), []) for number, row in by_id.items()}
        for row in whole["annos_segmentation"]:
            if row["image_id"] in images:
                code = row["segmentation"]
                height, width = code["size"]
                segment = int(row["category_id"]), (int(height), int(width)), str(code["counts"])
                images[row["image_id"]].segments.append(segment)
        named = {_name(file, row["file_name"]): images[number] for number, row in by_id.items()}
        if any(min(i.height, i.width) < 1 or i.height * i.width > MAX_PIXELS for i in images.values()):
            raise ValueError("an image of impossible size")
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{file} is missing, it holds the labels: the layout is {LAYOUT}") from None
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror}): check the file and its permissions") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): fetch it again") from None
    return named


def _name(file: Path, file_name: str) -> str:
    """2008_000002 of 2008_000002.jpg."""
    name = file_name.removesuffix(".jpg")
    if not re.fullmatch(r"\d{4}_\d{6}", name):
        raise DataError(
            f"{file} names {file_name!r}, which is no photo of VOC (2008_000002.jpg is one): fetch it again"
        )
    return name


def _check_categories(file: Path, rows: Sequence[Mapping]) -> None:
    """Ids must not mean another of the 59 classes than they should, as in files that count from another number."""
    for row in rows:
        number, name = row["category_id"], row["name"]
        if name in CLASSES[1:] and NAMES.get(number) != name:
            raise DataError(
                f"{file} calls the category {number} {name!r}, which is not its number in the official file: fetch "
                f"trainval_merged.json again"
            )
