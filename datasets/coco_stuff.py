"""COCO val2017 with the labels of COCO-Stuff: 27 super-categories (12 of things, then 15 of stuff), or all 171 classes.

What is common to every set of classes is `CocoMaps`: photos, fine labels, splits, captions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from rich.progress import track

from diffseg.datasets.base import DataError, Dataset, names_in, part_of, read_map, read_photo, require_folder
from diffseg.files import cache_folder, write

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

# Names of the values: of things, COCO ids 1..91 with gaps; of stuff, 92..182.
_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
_STUFF = """
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-
tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass,
gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net,
paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock,
roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-
other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()).replace("- ", "-") for name in text.split(","))


NAMES: dict[int, str] = dict(
    zip(
        [*(i - 1 for i in range(1, 92) if i not in _GAPS), *range(91, 182)],
        _names(_THINGS) + _names(_STUFF),
        strict=True,
    )
)

# What a prompt calls the classes; of two that differ by "things" or "stuff" alone, the things.
NOUNS: dict[str, int] = {}
for _index, _name in enumerate(CLASSES):
    NOUNS.setdefault(_name.partition("-")[0].replace("rawmaterial", "raw material"), _index)

# What captions call the classes: every fine name, without what tells it from its neighbours ("wall-brick": wall).
VOCABULARY: dict[str, int] = {name.partition("-")[0]: COARSE[value] for value, name in reversed(NAMES.items())}

# All 171 classes, and what a prompt calls them: "wall-brick" is a brick wall, "wall-other" a wall.
FINE: tuple[str, ...] = tuple(NAMES.values())
_PLAIN = {"playingfield": "playing field", "waterdrops": "water drops", "window-blind": "window blind"}


def _noun(name: str) -> str:
    head, _, tail = name.partition("-")
    return _PLAIN.get(name) or (f"{tail} {head}" if tail not in ("", "other", "stuff") else head)


FINE_NOUNS: dict[str, int] = {_noun(name): index for index, name in enumerate(FINE)}

UNLABELLED = 255
NO_CLASS = -2  # of values that no map of COCO-Stuff's holds: the gaps in COCO's numbers
_OTHER = 183  # the stuff category that stands for "some thing": there, and only there, instances are painted
LAYOUT = (
    "ROOT/val2017/*.jpg with ROOT/stuffthingmaps/val2017/*.png, or with ROOT/annotations/{stuff,instances}_val2017.json"
    "; make data-coco DATA=ROOT fetches photos and PNGs"
)

IMAGES = 5000  # of val2017
SPLIT_SIZE = 2175
SPLIT_SHA256 = "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655"


def class_table(class_of: Mapping[int, int]) -> np.ndarray:
    """Class of each value of the stuffthingmaps: int32 [256], -1 = unlabelled. class_of: of values that are classes."""
    table = np.full(UNLABELLED + 1, NO_CLASS, np.int32)
    table[list(class_of)] = list(class_of.values())
    table[UNLABELLED] = -1
    return table


def in_split(values: np.ndarray) -> bool:
    """Whether an image belongs to the evaluation split: at least 75 % stuff (91..181), at least 360 pixels a side."""
    stuff = (values >= 91) & (values < len(COARSE))
    return bool(stuff.mean() >= 0.75) and min(values.shape) >= 360


class CocoMaps(Dataset):
    """COCO val2017 with COCO-Stuff's labels, from a folder in COCO's own layout. keys: image ids, sorted.

    Any subset of the images works; `note` says how many of the benchmark's there are. A subclass says what the classes
    are, and which class each value of the stuffthingmaps is.

    table: int32 [256], see `class_table`. benchmark: the split that is scored in the literature.

    Args:
        root: folder that holds val2017.
        split: "stuff27", the paper's 2,175 images, found by rule; "all", every image with a label; None: `benchmark`.
        labels: "png", the stuffthingmaps; "json", the official annotations, painted by pycocotools; "auto", PNGs where
            there are any.
        count, keys: a part of the images, see `Dataset.choose`. prepare: see `Dataset`.

    Raises:
        DataError: folders or images missing, or the full val2017 gives another split than the paper's.
    """

    table: np.ndarray
    benchmark = "stuff27"

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        labels: str = "auto",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str] | str | None = None,
        prepare: str = "crop",
    ):
        split = self.benchmark if split is None else split
        if split not in ("stuff27", "all") or labels not in ("auto", "png", "json"):
            raise DataError(f"split must be stuff27 or all, labels auto, png or json; got {split!r} and {labels!r}")
        self.root, self.size = Path(root), size
        self._captions: dict[str, str] | None = None
        self._photos = require_folder(self.root / "val2017", LAYOUT)
        self._maps = self.root / "stuffthingmaps" / "val2017"
        if labels == "png" or (labels == "auto" and self._maps.is_dir()):
            self._annotations = None
            known = names_in(require_folder(self._maps, LAYOUT, self.root), ".png")
        else:
            self._annotations = _Annotations(require_folder(self.root / "annotations", LAYOUT))
            known = self._annotations.keys
        photos = names_in(self._photos, ".jpg")
        if not photos:
            raise DataError(f"{self._photos} has no .jpg photos: the layout is {LAYOUT}")
        if not known >= photos:
            lacking = sorted(photos - known)
            raise DataError(f"{len(lacking)} photos of {self._photos} have no label, such as {', '.join(lacking[:3])}")
        self.keys = sorted(photos)
        if split == "stuff27":
            self.note = "" if self.benchmark == split else f"the {SPLIT_SIZE:,} images of COCO-Stuff-27's split"
            self.keys = self._split()  # says in `note` if images of the split lack
        elif self.benchmark == split:
            self.note = part_of(len(self.keys), IMAGES, "images of val2017")
        else:
            self.note = f"all {len(self.keys):,} images, not the paper's split"
        self.choose(count, keys, prepare)

    def file(self, key: str) -> Path:
        """ROOT/val2017/KEY.jpg."""
        return self._photos / f"{key}.jpg"

    def truth_file(self, key: str) -> Path | None:
        """ROOT/stuffthingmaps/val2017/KEY.png; None where labels are painted from the official JSON."""
        return self._maps / f"{key}.png" if self._annotations is None else None

    def truth_files(self) -> dict[str, Path]:
        """The PNGs, or the JSON files that the labels are painted from."""
        if self._annotations is None:
            return super().truth_files()
        return {file.name: file for file in self._annotations.files}

    def photo(self, key: str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return read_photo(self.file(key))

    def raw_label(self, key: str) -> np.ndarray:
        """int32 [H, W], 0 to the last class, -1 = unlabelled.

        Raises:
            DataError: as `values`, or a value that is no class.
        """
        values = self.values(key)
        labels = self.table[values]
        if labels.min() == NO_CLASS:
            raise DataError(
                f"{self._source(key)} holds the value {values[labels == NO_CLASS][0]}, a gap in COCO's numbers: values "
                f"are COCO's ids less one; fetch the stuffthingmaps again"
            )
        return labels

    def caption_file(self) -> Path:
        """ROOT/annotations/captions_val2017.json, of annotations_trainval2017.zip."""
        return self.root / "annotations" / "captions_val2017.json"

    def caption(self, key: str) -> str:
        """The first of the five captions that people wrote."""
        if self._captions is None:
            self._captions = _captions(self.caption_file())
        if key not in self._captions:
            raise DataError(
                f"{self.caption_file()} has no caption of the image {key}: fetch it again, or prompts=classes"
            )
        return self._captions[key]

    def values(self, key: str) -> np.ndarray:
        """The fine labels, int32 [H, W]: 0..181, 255 = unlabelled."""
        if self._annotations is not None:
            return self._annotations.paint(key)
        path = self._source(key)
        values = read_map(path)
        wrong = values[(values >= len(COARSE)) & (values != UNLABELLED)]
        if wrong.size:
            raise DataError(
                f"{path} holds the value {wrong[0]}: COCO-Stuff's maps hold 0 to 181, and 255 for unlabelled"
            )
        return values

    def _source(self, key: str) -> Path:
        """The file that the labels of an image are read from."""
        return self._maps / f"{key}.png" if self._annotations is None else self._annotations.files[0]

    def _split(self) -> list[str]:
        """The images of the split among those there are; derived from all labels once, then remembered."""
        cache = cache_folder() / f"coco-stuff27-{self._fingerprint()}.txt"
        if cache.is_file():
            keys = cache.read_text().split()
        else:
            with ThreadPoolExecutor() as pool:
                shown = track(pool.map(self._belongs, self.keys), "deriving the split", len(self.keys), transient=True)
                keys = [key for key, belongs in zip(self.keys, shown, strict=True) if belongs]
            if len(self.keys) == 5000 and _sha256(keys) != SPLIT_SHA256:
                raise DataError(
                    f"{self.root}: the labels give {len(keys)} images that are not the paper's {SPLIT_SIZE}: "
                    f"some files differ from the official ones; fetch the stuffthingmaps again"
                )
            cache.parent.mkdir(parents=True, exist_ok=True)
            write(cache, "".join(f"{key}\n" for key in keys))
        if not keys:
            raise DataError(f"none of the {len(self.keys)} images of {self.root} belongs to the split: use split=all")
        if _sha256(keys) != SPLIT_SHA256:
            self.note = f"{len(keys)} of {SPLIT_SIZE:,} images of the split"
        return keys

    def _belongs(self, key: str) -> bool:
        return in_split(self.values(key))

    def _fingerprint(self) -> str:
        """Changes when any label file does: names, sizes and times of modification."""
        files = (
            [self._maps / f"{key}.png" for key in self.keys] if self._annotations is None else self._annotations.files
        )
        facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(repr((self.keys, facts)).encode()).hexdigest()[:16]


class CocoStuff27(CocoMaps):
    """The paper's: 27 super-categories, its 2,175 images of val2017."""

    classes = CLASSES
    nouns = NOUNS
    vocabulary = VOCABULARY
    table = class_table(dict(enumerate(COARSE)))


class CocoStuff171(CocoMaps):
    """All 171 classes of COCO-Stuff, 80 of things and then 91 of stuff, all 5,000 images of val2017."""

    classes = FINE
    nouns = FINE_NOUNS
    table = class_table({value: index for index, value in enumerate(NAMES)})
    benchmark = "all"


def _sha256(keys: list[str]) -> str:
    return hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest()


def _captions(file: Path) -> dict[str, str]:
    """The first caption of each image in one of COCO's caption files."""
    try:
        rows = json.loads(file.read_bytes())["annotations"]
        return {f"{int(row['image_id']):012d}": " ".join(str(row["caption"]).split()) for row in reversed(rows)}
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing: it is in annotations_trainval2017.zip; or name the classes, prompts=classes"
        ) from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): fetch it again") from None


class _Annotations:
    """The official JSON files, painted as the stuffthingmaps are."""

    def __init__(self, folder: Path):
        self.files = [folder / "stuff_val2017.json", folder / "instances_val2017.json"]
        for file in self.files:
            if not file.is_file():
                raise DataError(
                    f"{file} is missing: it is in annotations_trainval2017.zip or stuff_annotations_trainval2017.zip"
                )
        with redirect_stdout(StringIO()):  # pycocotools prints its progress
            self._stuff, self._instances = (COCO(str(file)) for file in self.files)
        self.keys = {f"{i:012d}" for i in self._stuff.imgs}

    def paint(self, key: str) -> np.ndarray:
        """int32 [H, W], 0..181, 255 = unlabelled: stuff by id - 1; in "other", instances in file order, no crowds."""
        number = int(key)
        size = self._stuff.imgs[number]
        values = np.full((size["height"], size["width"]), UNLABELLED, np.int32)
        things = np.zeros(values.shape, bool)
        for annotation in self._stuff.imgToAnns[number]:
            mask = self._stuff.annToMask(annotation).astype(bool)
            if annotation["category_id"] == _OTHER:
                things |= mask
            else:
                values[mask] = annotation["category_id"] - 1
        for annotation in self._instances.imgToAnns[number]:
            if not annotation["iscrowd"]:
                values[self._instances.annToMask(annotation).astype(bool) & things] = annotation["category_id"] - 1
        return values
