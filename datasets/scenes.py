"""Generated scenes: photo-like compositions of the 27 COCO-Stuff classes with exact labels and a caption.

A scene is fully determined by (seed, index): the same composition comes out at any size, on any machine. It is
painted back to front. Each class samples its *material* (texture, colours, variant) once per scene, so that all
regions of a class in one image look alike while the class looks different from image to image; colours overlap
between classes, and light, shadow, blur and noise are laid over the whole. What a scene is made of lies in `scenery/`.

Vocabulary: a *patch* is the rectangle of the canvas an object is painted into, with coordinates u (right) and
v (down) in [-1, 1]; a *paint* function returns the colours [h, w, 3] in 0..1 and the mask [h, w] of one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.datasets.base import DataError, Dataset, Words
from diffseg.datasets.coco_stuff import CLASSES, NOUNS
from diffseg.datasets.scenery.canvas import CLASS_INDEX, Canvas, photograph
from diffseg.datasets.scenery.layouts import LAYOUTS

# Series of scenes: the embedded model is trained on the first, its defaults are chosen on the second, and only the
# third is ever reported on.
TRAIN_SEED, TUNE_SEED, TEST_SEED = 0, 1, 2
_MOST = 1_000_000  # scenes: what a key of six digits can count


@dataclass(frozen=True)
class Scene:
    """One generated scene.

    image: uint8 [size, size, 3]. label: int16 [size, size], COCO-Stuff-27 class of each pixel. caption: a sentence
    naming what is visible. nouns: (noun, class index) of each visible kind of region, in the caption's order.
    """

    image: np.ndarray
    label: np.ndarray
    caption: str
    nouns: tuple[tuple[str, int], ...]


def _caption(c: Canvas) -> tuple[str, tuple[tuple[str, int], ...]]:
    """A sentence naming what covers at least 1 % of the picture, largest first."""
    areas = np.bincount(c.label.ravel(), minlength=len(CLASSES)) / c.label.size
    visible = sorted((k for k in c.materials if areas[CLASS_INDEX[k]] >= 0.01), key=lambda k: -areas[CLASS_INDEX[k]])
    nouns = tuple((c.materials[k][0], CLASS_INDEX[k]) for k in visible)
    words = [n for n, _ in nouns]
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return f"a photo of {listed}", nouns


def scene(seed: int, index: int, size: int = 512) -> Scene:
    """The scene number `index` of the series `seed`, `size` x `size` pixels.

    Scenes of different seeds are independent; the same (seed, index) gives the same composition at every size.
    """
    rng = np.random.default_rng([seed, index])
    canvas = Canvas(size, rng)
    layouts, chances = zip(*LAYOUTS, strict=True)
    layouts[rng.choice(len(layouts), p=chances)](canvas)
    image = photograph(canvas)
    caption, nouns = _caption(canvas)
    return Scene(image, canvas.label, caption, nouns)


class Scenes(Dataset):
    """The generated benchmark: `count` scenes of one seed, classes of COCO-Stuff-27. keys: "000000", "000001" ...

    keys: only these of them, see `Dataset.choose`.
    """

    classes = CLASSES
    nouns = NOUNS

    def __init__(
        self, count: int = 64, seed: int = TEST_SEED, size: int = 512, keys: Sequence[str] | str | None = None
    ):
        if type(count) is not int or count < 1:
            raise DataError(f"count must be at least 1 scene, got {count!r}")
        if count > _MOST:
            raise DataError(f"count must be at most {_MOST:,} scenes, got {count}")
        if type(seed) is not int or seed < 0:
            raise DataError(f"seed must be a whole number, at least 0, got {seed!r}")
        self.seed, self.size, self.keys = seed, size, [f"{i:06d}" for i in range(count)]
        self.choose(keys=keys)
        self._latest: tuple[str, Scene] | None = None

    def scene(self, key: str) -> Scene:
        """The scene of a key; the latest one is kept, as image and label are asked for one after the other."""
        if self._latest is None or self._latest[0] != key:
            self._latest = key, scene(self.seed, int(key), self.size)
        return self._latest[1]

    def words(self, key: str, prompts: str) -> Words:
        """As of every data set; a scene's caption names what is visible, and its classes are known."""
        if prompts == "classes":
            return super().words(key, prompts)
        return Words(self.scene(key).caption, self.scene(key).nouns, len(self.classes))

    def photo(self, key: str) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return self.scene(key).image

    def raw_label(self, key: str) -> np.ndarray:
        """int16 [size, size], 0..26."""
        return self.scene(key).label
