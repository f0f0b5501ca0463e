"""Any folder of images - photos, sketches, paintings - with or without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffseg.datasets.base import DataError, Dataset, read_map, read_photo
from diffseg.errors import printable
from diffseg.images import SUFFIXES

MOST_UNNAMED = 1024  # classes that are made of the values alone; every image has counts for each of them


class Folder(Dataset):
    """Images directly in a folder; NAME.label.png beside NAME.jpg holds its labels. keys: sorted names without suffix,
    or with it where two images differ in nothing else (a.jpg and a.png, labels a.jpg.label.png and a.png.label.png).

    Args:
        root: the folder.
        classes: names of the label values 0, 1, ...; empty: "0", "1", ... to the largest value, at most 1,023.
        ignore: label value that is not scored.
        label_suffix: what replaces the image's suffix to give its label's name.
        count, keys: a part of the images, see `Dataset.choose`. prepare: see `Dataset`.

    Raises:
        DataError: no images, or labels for some of the images only; no classes, and values too large to be theirs.
    """

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str] = (),
        ignore: int = 255,
        label_suffix: str = ".label.png",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str] | str | None = None,
        prepare: str = "crop",
    ):
        self.root, self.ignore, self.size, self._suffix = Path(root), ignore, size, label_suffix
        if not self.root.is_dir():
            raise DataError(f"there is no folder {self.root}")
        files = list(self.root.iterdir())
        photos = [p for p in files if p.suffix.lower() in SUFFIXES and not p.name.endswith(label_suffix)]
        of_stem = Counter(p.stem for p in photos)
        self._photos = {p.stem if of_stem[p.stem] == 1 else p.name: p for p in sorted(photos)}
        if not self._photos:
            raise DataError(f"the folder {self.root} has no images ({', '.join(sorted(SUFFIXES))}) directly in it")
        nameless = [p for p in self._photos.values() if printable(p.name) != p.name]
        if nameless:
            raise DataError(
                f"the name of {nameless[0]} is not UTF-8, or holds control characters, so results cannot be filed "
                f"under it: rename it"
            )
        if len(self._photos) != len(photos):
            hidden = next(p for p in photos if p not in self._photos.values())
            raise DataError(f"{hidden} has the name of another image with its suffix: rename one")
        self.keys = list(self._photos)
        there = {file.name for file in files}
        without = [key for key in self.keys if f"{key}{label_suffix}" not in there]
        self.labelled = not without
        if without and len(without) < len(self.keys):
            names = ", ".join(f"{key}{label_suffix}" for key in without[:3])
            raise DataError(
                f"{len(without)} of {len(self.keys)} images lack a label, such as {names}: add or remove all"
            )
        self.classes = tuple(classes)
        if self.labelled and not self.classes:
            self.classes = self._numbered_classes()
        self.choose(count, keys, prepare)

    def _numbered_classes(self) -> tuple[str, ...]:
        """ "0", "1", ... to the largest value of all label maps that is not ignored."""
        most = -1
        for key in self.keys:
            try:
                value = int(self.raw_label(key).max())
            except DataError as error:
                how = "or name the classes (dataset.classes=[...]) and leave it out (on_error=skip)"
                raise DataError(f"{error}; {how}") from None
            if value >= MOST_UNNAMED:
                raise DataError(
                    f"{self._label_path(key)} holds the value {value:,}: values without names are taken for numbers of "
                    f"classes, below {MOST_UNNAMED:,}; give class maps instead of instance maps, name the classes "
                    f"(dataset.classes=[...]), or say which value is not scored (dataset.ignore=...)"
                )
            most = max(most, value)
        if most < 0:
            raise DataError(f"{self.root}: every pixel of every label map is {self.ignore}, which dataset.ignore names")
        return tuple(str(value) for value in range(most + 1))

    def _label_path(self, key: str) -> Path:
        return self.root / f"{key}{self._suffix}"

    def file(self, key: str) -> Path:
        """The photo's file."""
        return self._photos[key]

    def truth_file(self, key: str) -> Path | None:
        """NAME.label.png; None: there are no labels."""
        return self._label_path(key) if self.labelled else None

    def photo(self, key: str) -> np.ndarray:
        """uint8 [H, W, 3]; as stored where there are labels, which are drawn on that, else upright (EXIF)."""
        return read_photo(self.file(key), upright=not self.labelled)

    def raw_label(self, key: str) -> np.ndarray:
        """int32 [H, W], `ignore` -> -1."""
        path = self._label_path(key)
        values = read_map(path)
        values[values == self.ignore] = -1
        if self.classes and values.max() >= len(self.classes):
            raise DataError(f"{path} holds the value {values.max()}, but there are {len(self.classes)} classes")
        return values
