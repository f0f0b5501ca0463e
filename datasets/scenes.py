"""Generated scenes: photo-like compositions of the 27 COCO-Stuff classes with exact labels and a caption.

A scene is fully determined by (seed, index): the same composition comes out at any size, on any machine. It is
painted back to front. Each class samples its *material* (texture, colours, variant) once per scene, so that all
regions of a class in one image look alike while the class looks different from image to image; colours overlap
between classes, and light, shadow, blur and noise are laid over the whole.

Vocabulary: a *patch* is the rectangle of the canvas an object is painted into, with coordinates u (right) and
v (down) in [-1, 1]; a *paint* function returns the colours [h, w, 3] in 0..1 and the mask [h, w] of one object.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from diffseg.datasets.base import DataError, Dataset
from diffseg.datasets.coco_stuff import CLASSES

# Series of scenes: the embedded model is trained on the first, its defaults are chosen on the second, and only the
# third is ever reported on.
TRAIN_SEED, TUNE_SEED, TEST_SEED = 0, 1, 2

_INDEX = {name.split("-")[0] + ("" if name.endswith("things") else "*"): i for i, name in enumerate(CLASSES)}


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


# --- noise, colours, shapes -------------------------------------------------------------------------------------------


def _resize(grid: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


class Patch:
    """A window of the canvas. box = (left, top, right, bottom) in fractions of the scene; it may stick out."""

    def __init__(self, size: int, box: tuple[float, float, float, float], rng: np.random.Generator):
        self.box, self.rng = box, rng
        left, top, right, bottom = (min(max(round(b * size), 0), size) for b in box)
        self.rows, self.cols = slice(top, bottom), slice(left, right)
        self.height, self.width = bottom - top, right - left
        # Fractions, not pixels: the number of random numbers drawn must not depend on the size.
        self.extent = (max(min(box[3], 1) - max(box[1], 0), 1e-3), max(min(box[2], 1) - max(box[0], 0), 1e-3))
        x = (np.arange(left, right, dtype=np.float32) + 0.5) / size
        y = (np.arange(top, bottom, dtype=np.float32) + 0.5) / size
        self.x = (2 * (x - box[0]) / (box[2] - box[0]) - 1)[None, :]
        self.y = (2 * (y - box[1]) / (box[3] - box[1]) - 1)[:, None]

    @cached_property
    def warped(self) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) [h, w] with wavy borders: coordinates displaced by a few percent of the box."""
        amount = float(self.rng.uniform(0.005, 0.022))
        cell = 0.35 * float(min(self.extent))
        return self.x + amount * self.noise(cell, 2), self.y + amount * self.noise(cell, 2)

    def noise(self, cell: float, octaves: int = 1, stretch: float = 1.0) -> np.ndarray:
        """Smooth noise [h, w], about standard normal; cell: feature size as a fraction of the scene; stretch: wider."""
        if self.height == 0 or self.width == 0:  # still draws nothing: the patch is invisible at every size
            return np.zeros((self.height, self.width), np.float32)
        total, power = np.zeros((self.height, self.width), np.float32), 0.0
        for octave in range(octaves):
            step = max(cell / 2**octave, 1 / 256)
            shape = [max(int(np.ceil(e / s)), 1) + 2 for e, s in zip(self.extent, (step, step * stretch), strict=True)]
            grid = self.rng.standard_normal(shape, dtype=np.float32)
            total += _resize(grid, self.width, self.height) / 1.6**octave
            power += 1 / 1.6 ** (2 * octave)
        return total * np.float32(1.3 / np.sqrt(power))


def _tone(rng: np.random.Generator, hue: tuple, saturation: tuple, value: tuple) -> np.ndarray:
    """A random colour, float32 [3] in 0..1; hue may leave 0..1 and wraps."""
    h, s, v = (rng.uniform(*span) for span in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v), np.float32)


def _rgb(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def _any(rng: np.random.Generator) -> np.ndarray:
    return _tone(rng, (0, 1), (0.1, 0.9), (0.15, 0.95))


def _mix(a: np.ndarray, b: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """Between colours a and b ([3] or [h, w, 3]) by t [h, w], clipped to 0..1."""
    return a + (b - a) * np.clip(np.asarray(t, np.float32), 0, 1)[..., None]


def _shift(colour: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """A neighbour of a colour: darker or lighter by up to `amount`, the hue a little off."""
    return np.clip(colour * (1 + rng.uniform(-amount, amount)) + rng.uniform(-0.06, 0.06, 3), 0, 1).astype(np.float32)


def _ellipse(u, v, cx, cy, rx, ry):
    return ((u - cx) / rx) ** 2 + ((v - cy) / ry) ** 2 < 1


def _box(u, v, left, top, right, bottom):
    return (u > left) & (u < right) & (v > top) & (v < bottom)


def _limb(u, v, x0, y0, x1, y1, radius):
    """A thick line from (x0, y0) to (x1, y1)."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
    return (u - x0 - t * dx) ** 2 + (v - y0 - t * dy) ** 2 < radius**2


def _layer(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Paints (mask, colour) parts over each other; colour is [3] or [h, w, 3]. Returns colours and the joint mask."""
    shape = parts[0][0].shape
    image, mask = np.zeros((*shape, 3), np.float32), np.zeros(shape, bool)
    for part, colour in parts:
        image = np.where(part[..., None], colour, image)
        mask |= part
    return image, mask


def _round(p: Patch, u, v, strength: float = 0.35) -> np.ndarray:
    """Shading [h, w] of a rounded body lit from the upper left."""
    return 1 + strength * np.clip(-0.5 * u - 0.7 * v, -1, 1)


# --- materials: functions of a generator that return the texture of one scene's instance of the class -----------------

Texture = Callable[[Patch], np.ndarray]


def _speckled(rng, a, b, cell, octaves=3, stretch=1.0, gain=0.6) -> Texture:
    """Two colours mixed by noise: grass, sand, fur, plaster, carpet ..."""
    return lambda p: _mix(a, b, 0.5 + gain * 0.5 * p.noise(cell, octaves, stretch))


def _planks(rng, a, b, count, vertical, gap=0.06) -> Texture:
    """Boards or bricks or slats: stripes of slightly different tone with dark gaps and grain along them."""
    tones = rng.uniform(0.75, 1.15, 64).astype(np.float32)

    def texture(p: Patch) -> np.ndarray:
        across = np.broadcast_to(p.x if vertical else p.y, (p.height, p.width))
        position = (across + 1) / 2 * count
        board = np.floor(position).astype(int) % 64
        grain = p.noise(0.02, 2, 0.15 if vertical else 8.0)
        colour = _mix(a, b, 0.5 + 0.3 * grain) * tones[board][..., None]
        return np.where(((position % 1) < gap)[..., None], colour * 0.65, colour)

    return texture


def _tiles(rng, a, b, count, joint=0.07, checker=False, brick=False) -> Texture:
    """A grid of tiles with joints: floors, walls, ceilings, bricks."""
    mortar = _shift((a + b) / 2, rng, 0.5)
    tones = rng.uniform(0.85, 1.1, (32, 32)).astype(np.float32)

    def texture(p: Patch) -> np.ndarray:
        row = (p.y + 1) / 2 * count * (2 if brick else 1)
        col = (p.x + 1) / 2 * count + (0.5 * (np.floor(row) % 2) if brick else 0)
        row, col = np.broadcast_arrays(row, col)
        i, j = np.floor(row).astype(int) % 32, np.floor(col).astype(int) % 32
        colour = (_mix(a, b, ((i + j) % 2).astype(np.float32)) if checker else a + 0 * tones[i, j][..., None]) * tones[
            i, j
        ][..., None]
        colour = colour * (1 + 0.06 * p.noise(0.02, 2))[..., None]
        return np.where((((row % 1) < joint) | ((col % 1) < joint))[..., None], mortar, colour)

    return texture


def _receding(rng, a, b, checker) -> Texture:
    """A tiled or boarded plane in perspective, far at the top."""
    count, slant = rng.uniform(2, 6), rng.uniform(-0.6, 0.6)

    def texture(p: Patch) -> np.ndarray:
        depth = 1 / (0.25 + (p.y + 1) / 2)
        col = (p.x + slant) * depth * count
        row = depth * count * 1.5 + 0 * col
        even = ((np.floor(col) + (np.floor(row) if checker else 0)) % 2).astype(np.float32)
        colour = _mix(a, b, 0.8 * even + 0.15 * p.noise(0.03, 2, 3.0) + 0.1)
        return np.where(((col % 1) < 0.05)[..., None], colour * 0.6, colour)

    return texture


def _sky(rng):
    kind = rng.integers(4)
    top = (
        _tone(rng, (0.54, 0.64), (0.25, 0.8), (0.45, 0.95))
        if kind < 3
        else _tone(rng, (-0.08, 0.12), (0.2, 0.7), (0.5, 0.9))
    )
    low = _mix(top, _rgb([1, 0.97, 0.92]), (rng.uniform(0.2, 0.8)))
    cloud, amount = _rgb([0.95, 0.95, 0.97]) * rng.uniform(0.75, 1), rng.uniform(-2.5, 0.2)

    def texture(p: Patch) -> np.ndarray:
        base = _mix(top, low, (p.y + 1) / 2 + 0 * p.x)
        return _mix(base, cloud, (p.noise(0.25, 4, 2.0) + amount) * 0.5)

    return "sky", texture


def _water(rng):
    a = _tone(rng, (0.42, 0.64), (0.15, 0.75), (0.2, 0.7))
    b = _mix(a, _rgb([1, 1, 1]), (rng.uniform(0.15, 0.6)))
    cell, gain = rng.uniform(0.008, 0.02), rng.uniform(0.4, 0.8)

    def texture(p: Patch) -> np.ndarray:
        ripple = p.noise(cell, 2, rng_stretch)
        glint = 0.15 * p.noise(0.2, 1)
        return _mix(a, b, 0.4 + gain * 0.45 * ripple * (0.5 + (p.y + 1) / 4) + glint)

    rng_stretch = float(rng.uniform(4, 10))
    return str(rng.choice(["sea", "river", "lake"])), texture


def _ground(rng):
    noun = str(rng.choice(["road", "sand", "snow", "dirt", "pavement"]))
    spans = {
        "road": ((0.5, 0.7), (0, 0.12), (0.25, 0.6)),
        "sand": ((0.07, 0.13), (0.15, 0.5), (0.55, 0.9)),
        "snow": ((0.5, 0.65), (0, 0.12), (0.8, 1.0)),
        "dirt": ((0.02, 0.1), (0.25, 0.65), (0.25, 0.6)),
        "pavement": ((0.0, 0.7), (0, 0.15), (0.45, 0.75)),
    }
    a = _tone(rng, *spans[noun])
    b = _shift(a, rng, 0.35)
    if noun == "pavement":
        return noun, _receding(rng, a, b, bool(rng.integers(2)))
    return noun, _speckled(rng, a, b, rng.uniform(0.006, 0.025), 3, rng.uniform(1, 4), rng.uniform(0.3, 0.6))


def _plant(rng):
    noun = str(rng.choice(["grass", "tree", "bush", "flower", "leaves"]))
    hue = (0.17, 0.36) if rng.random() < 0.8 else (-0.05, 0.16)
    a = _tone(rng, hue, (0.3, 0.85), (0.12, 0.45))
    b = _tone(rng, (hue[0], hue[1]), (0.25, 0.8), (0.4, 0.8))
    if noun == "grass":
        return noun, _speckled(rng, a, b, rng.uniform(0.008, 0.02), 2, rng.uniform(0.3, 0.6), rng.uniform(0.5, 1.0))
    cell = rng.uniform(0.008, 0.025)
    if noun == "flower":
        bloom = _tone(rng, (0.75, 1.2), (0.4, 0.9), (0.6, 1.0))
        green = _speckled(rng, a, b, cell, 3)
        return noun, lambda p: _mix(green(p), bloom, (p.noise(0.02, 1) - 0.6) * 3)
    return noun, _speckled(rng, a, b, cell, 3, 1.0, rng.uniform(0.5, 1.0))


def _building(rng):
    wall, glass = _tone(rng, (0, 0.7), (0.02, 0.5), (0.35, 0.9)), _tone(rng, (0.5, 0.65), (0.05, 0.5), (0.1, 0.55))
    across, down, width = rng.uniform(0.02, 0.05), rng.uniform(0.02, 0.05), rng.uniform(0.4, 0.7)

    def texture(p: Patch) -> np.ndarray:
        col = (p.x + 1) / 2 * p.extent[1] / across
        row = (p.y + 1) / 2 * p.extent[0] / down
        window = ((col % 1) < width) & ((row % 1) > 0.4)
        colour = _mix(wall, _shift(wall, np.random.default_rng(0), 0.3), 0.5 + 0.2 * p.noise(0.05, 3))
        return np.where(window[..., None], glass * (1 + 0.2 * p.noise(0.05, 1))[..., None], colour)

    return str(rng.choice(["building", "house", "skyscraper"])), texture


def _wall(rng):
    a = _tone(rng, (0, 0.7), (0.02, 0.45), (0.4, 0.95))
    b = _shift(a, rng, 0.2)
    kind = rng.integers(4)
    if kind == 0:
        return "brick wall", _tiles(
            rng, _tone(rng, (-0.02, 0.1), (0.2, 0.7), (0.35, 0.75)), b, rng.uniform(8, 16), 0.08, brick=True
        )
    if kind == 1:
        return "tile wall", _tiles(rng, a, b, rng.uniform(8, 16), 0.05, checker=rng.random() < 0.3)
    if kind == 2:
        return "panel wall", _planks(rng, a, b, rng.uniform(6, 14), True)
    return "wall", _speckled(rng, a, b, rng.uniform(0.05, 0.3), 3, 1.0, 0.4)


def _floor(rng):
    a = _tone(rng, (0.02, 0.14), (0.15, 0.65), (0.25, 0.8)) if rng.random() < 0.7 else _any(rng)
    b = _shift(a, rng, 0.4)
    kind = rng.integers(3)
    if kind == 0:
        return "carpet", _speckled(rng, a, b, 0.01, 2, 1.0, 0.8)
    return ("wooden floor", "tile floor")[kind - 1], _receding(rng, a, b, kind == 2)


def _ceiling(rng):
    a = _tone(rng, (0.05, 0.6), (0, 0.15), (0.65, 0.98))
    if rng.random() < 0.5:
        return "ceiling", _speckled(rng, a, _shift(a, rng, 0.15), 0.3, 2)
    return "ceiling", _tiles(rng, a, _shift(a, rng, 0.15), rng.uniform(3, 6), 0.04)


def _solid(rng):
    noun = str(rng.choice(["mountain", "rock", "hill", "stone"]))
    a = _tone(rng, (0.0, 0.65), (0.02, 0.35), (0.15, 0.4))
    b = _tone(rng, (0.05, 0.65), (0.02, 0.3), (0.45, 0.8))
    cell, gain = rng.uniform(0.03, 0.1), rng.uniform(0.4, 0.8)

    def texture(p: Patch) -> np.ndarray:
        ridge = 1.2 - 1.6 * np.abs(p.noise(cell, 4))
        return _mix(a, b, 0.5 + gain * 0.45 * ridge)

    return noun, texture


def _structural(rng):
    a = _any(rng) if rng.random() < 0.5 else _tone(rng, (0, 0.6), (0, 0.15), (0.4, 0.95))
    dark = a * rng.uniform(0.25, 0.7)
    step, width, cross = rng.uniform(0.015, 0.035), rng.uniform(0.35, 0.6), rng.random() < 0.5

    def texture(p: Patch) -> np.ndarray:
        col = (p.x + 1) / 2 * p.extent[1] / step
        row = (p.y + 1) / 2 * p.extent[0] / (step if cross else 4 * step)
        bar = ((col % 1) < width * (0.5 if cross else 1)) | ((row % 1) < (0.25 if cross else 0.12))
        return np.where(bar[..., None], a * (1 + 0.1 * p.noise(0.03, 2))[..., None], dark)

    return ("net" if cross else "fence"), texture


def _textile(rng):
    a = _any(rng)
    b = _shift(a, rng, 0.5) if rng.random() < 0.7 else _any(rng)
    kind, count, folds = rng.integers(3), rng.uniform(10, 24), rng.uniform(4, 12)

    def texture(p: Patch) -> np.ndarray:
        sway = 0.07 * p.noise(0.3, 1)
        x, y = p.x + sway, p.y + sway
        if kind == 0:  # a plain cloth in folds
            t = 0.2 + 0 * sway
        elif kind == 1:  # stripes
            t = (np.sin(count * np.pi * x) > 0).astype(np.float32)
        else:  # plaid
            t = 0.5 * (np.sin(count * np.pi * x) > 0) + 0.5 * (np.sin(count * np.pi * y) > 0)
        fold = 1 + 0.15 * np.sin(folds * np.pi * x + p.noise(0.3, 1))
        return _mix(a, b, t) * fold[..., None]

    return str(rng.choice(["curtain", "blanket", "cloth", "towel"])), texture


def _furniture_stuff(rng):
    a = _tone(rng, (0.02, 0.12), (0.2, 0.7), (0.2, 0.75)) if rng.random() < 0.6 else _any(rng)
    b, doors = _shift(a, rng, 0.3), rng.uniform(2, 5)
    grain = _planks(rng, a, b, doors, True, 0.04)

    def texture(p: Patch) -> np.ndarray:
        shelf = ((p.y + 1) / 2 * doors % 1) < 0.06
        return np.where((shelf & (p.x > -2))[..., None], b * 0.5, grain(p))

    return str(rng.choice(["cabinet", "cupboard", "shelf"])), texture


def _table(rng):
    a = _tone(rng, (0.02, 0.12), (0.2, 0.7), (0.25, 0.8)) if rng.random() < 0.6 else _any(rng)
    return "table", _speckled(rng, a, _shift(a, rng, 0.4), 0.02, 3, rng.uniform(4, 12), 0.6)


def _rawmaterial(rng):
    noun = str(rng.choice(["cardboard", "metal", "paper", "plastic"]))
    spans = {
        "cardboard": ((0.07, 0.1), (0.3, 0.5), (0.5, 0.8)),
        "metal": ((0.5, 0.7), (0, 0.12), (0.4, 0.8)),
        "paper": ((0.1, 0.6), (0, 0.1), (0.8, 1)),
        "plastic": ((0, 1), (0.3, 0.9), (0.4, 0.95)),
    }
    a = _tone(rng, *spans[noun])
    sheen = rng.uniform(0.1, 0.5)
    return (
        noun,
        lambda p: a * (1 + sheen * np.sin(3 * p.x + 2 * p.y + p.noise(0.3, 1)) + 0.05 * p.noise(0.01, 1))[..., None],
    )


def _window(rng):
    frame, outside = _tone(rng, (0, 0.6), (0, 0.4), (0.3, 1)), _tone(rng, (0.3, 0.62), (0.05, 0.5), (0.6, 1))
    panes, blind = rng.integers(1, 4), rng.random() < 0.35

    def texture(p: Patch) -> np.ndarray:
        if blind:
            return _mix(frame, outside, 0.5 + 0.5 * np.sign(np.sin(25 * p.y)) + 0 * p.x)
        col, row = (p.x + 1) / 2 * panes % 1, (p.y + 1) / 2 * panes % 1
        bar = (np.minimum(col, 1 - col) < 0.06 * panes / 2 + 0.03) | (np.minimum(row, 1 - row) < 0.06)
        return np.where(bar[..., None], frame, _mix(outside, outside * 0.6, 0.4 + 0.4 * p.noise(0.1, 3)))

    return ("window blind" if blind else "window"), texture


def _food_stuff(rng):
    colours = np.stack([_tone(rng, (-0.05, 0.35), (0.4, 0.95), (0.35, 0.95)) for _ in range(3)])

    def texture(p: Patch) -> np.ndarray:
        base = _mix(colours[0], colours[1], 0.5 + 1.5 * p.noise(0.05, 2))
        return _mix(base, colours[2], 2 * p.noise(0.035, 1) - 0.8)

    return str(rng.choice(["salad", "fruit", "vegetables"])), texture


STUFF = {
    "sky*": _sky,
    "water*": _water,
    "ground*": _ground,
    "plant*": _plant,
    "building*": _building,
    "wall*": _wall,
    "floor*": _floor,
    "ceiling*": _ceiling,
    "solid*": _solid,
    "structural*": _structural,
    "textile*": _textile,
    "furniture*": _furniture_stuff,
    "rawmaterial*": _rawmaterial,
    "window*": _window,
    "food*": _food_stuff,
}


# --- things: functions of a generator that return noun, width / height, and paint(patch) -> colours, mask -------------


def _person(rng):
    skin = _tone(rng, (0.03, 0.09), (0.25, 0.6), (0.35, 0.95))
    hair = _tone(rng, (0, 0.12), (0.2, 0.7), (0.05, 0.5))
    top, trousers = _any(rng), _any(rng)
    striped, other, legs = rng.random() < 0.3, _any(rng), rng.uniform(0.08, 0.25)
    arms = rng.uniform(-0.3, 0.6, 2)

    def paint(p: Patch):
        u, v = p.warped
        shirt = _mix(top, other, (np.sin(25 * v) > 0.3).astype(np.float32)) if striped else top
        shade = _round(p, u, v)[..., None]
        parts = [
            (
                _limb(u, v, -0.18, 0.1, -legs - 0.15, 0.95, 0.17) | _limb(u, v, 0.18, 0.1, legs + 0.15, 0.95, 0.17),
                trousers,
            ),
            (_limb(u, v, -0.3, -0.45, -0.7, arms[0], 0.11) | _limb(u, v, 0.3, -0.45, 0.7, arms[1], 0.11), skin),
            (_limb(u, v, 0, -0.4, 0, 0.05, 0.36), shirt),
            (_limb(u, v, 0, -0.6, 0, -0.55, 0.12), skin),
            (_ellipse(u, v, 0, -0.8, 0.26, 0.19), hair),
            (_ellipse(u, v, 0, -0.76, 0.2, 0.16), skin),
        ]
        image, mask = _layer(parts)
        return image * shade, mask

    return str(rng.choice(["man", "woman", "person", "child"])), 0.5, paint


def _animal(rng):
    noun = str(rng.choice(["dog", "cat", "horse", "sheep", "cow", "bear", "zebra", "elephant"]))
    if noun == "zebra":
        a, b = _rgb([0.92, 0.9, 0.86]), _rgb([0.08, 0.07, 0.07])
    elif noun == "sheep":
        a, b = _tone(rng, (0.05, 0.15), (0.05, 0.25), (0.7, 1)), _tone(rng, (0.05, 0.15), (0.05, 0.25), (0.5, 0.7))
    else:
        a = _tone(rng, (0.02, 0.12), (0.05, 0.7), (0.1, 0.85))
        b = _shift(a, rng, 0.6)
    spotted, facing = noun in ("cow", "dog") and rng.random() < 0.6, rng.choice([-1, 1])
    leg, head = rng.uniform(0.08, 0.13), rng.uniform(0.22, 0.32)

    def paint(p: Patch):
        u, v = p.warped
        u = u * facing
        if noun == "zebra":
            fur = _mix(a, b, 2 * np.sin(28 * u + 2 * p.noise(0.1, 1)))
        else:
            fur = _mix(a, b, (3 * p.noise(0.08, 1) if spotted else 0.5 + 0.5 * p.noise(0.012, 2, 0.5)))
        mask = _ellipse(u, v, -0.05, -0.1, 0.68, 0.42) | _ellipse(u, v, 0.68, -0.5, head, head)
        mask |= _limb(u, v, 0.45, -0.2, 0.65, -0.45, 0.2) | _limb(u, v, -0.68, -0.2, -0.9, -0.5, 0.06)
        for x in (-0.5, -0.28, 0.25, 0.47):
            mask |= _limb(u, v, x, 0, x, 0.9, leg)
        mask |= _ellipse(u, v, 0.58, -0.78, 0.08, 0.16)
        return fur * _round(p, u * facing, v, 0.3)[..., None], mask

    return noun, 1.3, paint


def _vehicle(rng):
    noun = str(rng.choice(["car", "bus", "truck", "train", "boat", "airplane"]))
    body, glass = _any(rng), _tone(rng, (0.5, 0.65), (0.05, 0.4), (0.1, 0.6))
    dark, band = _rgb([0.08, 0.08, 0.09]), _any(rng)

    def paint(p: Patch):
        u, v = p.warped
        if noun == "airplane":
            parts = [(_limb(u, v, -0.8, 0, 0.75, 0, 0.17), body), (_limb(u, v, -0.85, -0.55, -0.65, 0, 0.1), band)]
            parts += [
                (_limb(u, v, -0.3, 0.5, 0.15, 0.05, 0.08), band),
                (_box(u, v, -0.6, -0.06, 0.7, 0.02) & (np.sin(40 * u) > 0), glass),
            ]
        elif noun == "boat":
            parts = [(_box(u, v, -0.85 + 0.3 * (v > 0.6), 0.35, 0.95, 0.85) & (u < 1.4 - 0.7 * v), body)]
            parts += [
                (_box(u, v, -0.4, -0.15, 0.35, 0.36), band),
                (_box(u, v, -0.3, -0.05, 0.25, 0.15), glass),
                (_box(u, v, -0.03, -0.9, 0.03, -0.1), dark),
            ]
        else:
            tall = noun != "car"
            parts = [(_box(u, v, -0.95, -0.8 if tall else -0.1, 0.95, 0.65), body)]
            if not tall:
                parts.append((_limb(u, v, -0.35, -0.15, 0.3, -0.15, 0.45) & (v < 0), body))
            top, low = (-0.6, -0.1) if tall else (-0.5, -0.1)
            parts.append(
                (_box(u, v, -0.88 if tall else -0.55, top, 0.88 if tall else 0.5, low) & (((u * 4) % 1) > 0.15), glass)
            )
            parts.append((_box(u, v, -0.95, 0.15, 0.95, 0.28), band))
            wheels = (-0.6, 0.6) if noun != "train" else (-0.7, -0.4, 0.4, 0.7)
            for x in wheels:
                parts.append((_ellipse(u, v, x, 0.65, 0.17, 0.3), dark))
        image, mask = _layer(parts)
        return image * (1 - 0.2 * v + 0.04 * p.noise(0.02, 1))[..., None], mask

    return noun, {"car": 1.9, "bus": 1.8, "truck": 1.7, "train": 2.6, "boat": 1.5, "airplane": 2.4}[noun], paint


def _boxy(rng, noun, aspect, body, inner, inset, handle=False, legs=0.0):
    """Television, refrigerator, oven, suitcase, book, bed ...: a rounded box with an inner field."""
    accent = _shift(inner, rng, 0.6)

    def paint(p: Patch):
        u, v = p.warped
        field = _mix(inner, accent, 0.5 + 0.5 * p.noise(0.08, 2))
        parts = [(_box(u, v, -0.92, -0.92, 0.92, 0.92 - legs), body)]
        parts.append((_box(u, v, -0.92 + inset, -0.92 + inset, 0.92 - inset, 0.9 - legs - inset), field))
        if handle:
            parts.append((_box(u, v, 0.6, -0.5, 0.7, 0.1) | (np.abs(v - 0.2) < 0.03) & (np.abs(u) < 0.9), body * 0.4))
        if legs:
            parts.append((_box(u, v, -0.85, 0.5, -0.7, 0.95) | _box(u, v, 0.7, 0.5, 0.85, 0.95), body * 0.7))
        image, mask = _layer(parts)
        return image * (1 - 0.12 * u - 0.1 * v)[..., None], mask

    return noun, aspect, paint


def _electronic(rng):
    frame = _tone(rng, (0, 1), (0, 0.1), (0.05, 0.5))
    screen = _tone(rng, (0.5, 0.7), (0.1, 0.9), (0.05, 0.8))
    noun, aspect = [("television", 1.5), ("laptop", 1.3), ("cell phone", 0.55)][rng.integers(3)]
    return _boxy(rng, noun, aspect, frame, screen, 0.12)


def _appliance(rng):
    steel = _tone(rng, (0, 0.65), (0, 0.12), (0.55, 1))
    noun, aspect = [("refrigerator", 0.55), ("oven", 0.9), ("microwave", 1.6)][rng.integers(3)]
    inner = steel * 0.95 if noun == "refrigerator" else _tone(rng, (0, 1), (0, 0.2), (0.05, 0.3))
    return _boxy(rng, noun, aspect, steel, inner, 0.2, handle=True)


def _furniture(rng):
    noun = str(rng.choice(["couch", "chair", "bed", "potted plant"]))
    a, b = _any(rng), _any(rng)
    wood, leaf = _tone(rng, (0.03, 0.12), (0.3, 0.7), (0.15, 0.6)), _tone(rng, (0.2, 0.38), (0.4, 0.8), (0.2, 0.6))

    def paint(p: Patch):
        u, v = p.warped
        cloth = _mix(a, _shift(a, np.random.default_rng(1), 0.3), 0.5 + 0.3 * p.noise(0.05, 2))
        if noun == "couch":
            parts = [
                (_box(u, v, -0.85, -0.7, 0.85, 0.3), cloth),
                (_box(u, v, -0.98, -0.25, -0.7, 0.8) | _box(u, v, 0.7, -0.25, 0.98, 0.8), cloth * 0.85),
            ]
            parts += [(_box(u, v, -0.75, 0.1, 0.75, 0.8), cloth * 1.1), (_limb(u, v, -0.5, -0.1, -0.4, -0.1, 0.2), b)]
        elif noun == "chair":
            parts = [
                (_box(u, v, -0.6, -0.95, 0.6, 0.05) & ((np.abs(u) > 0.45) | (v < -0.6) | (((u * 5) % 1) < 0.5)), cloth)
            ]
            parts += [(_box(u, v, -0.75, 0.05, 0.75, 0.3), cloth * 0.9)]
            parts += [(_box(u, v, -0.7, 0.3, -0.5, 0.95) | _box(u, v, 0.5, 0.3, 0.7, 0.95), cloth * 0.7)]
        elif noun == "bed":
            parts = [
                (_box(u, v, -0.95, -0.8, -0.8, 0.9), wood),
                (_box(u, v, -0.85, -0.1, 0.95, 0.7), cloth),
                (_box(u, v, -0.75, -0.4, -0.3, 0), b),
            ]
        else:
            parts = [
                (
                    _ellipse(u, v, 0, -0.35, 0.75, 0.6) & (p.noise(0.05, 2) > -0.9),
                    _mix(leaf * 0.5, leaf * 1.3, 0.5 + 0.8 * p.noise(0.03, 2)),
                )
            ]
            parts += [(_box(u, v, -0.4 + 0.1 * (v > 0.6), 0.2, 0.4 - 0.1 * (v > 0.6), 0.95), b)]
        image, mask = _layer(parts)
        return image * (1 - 0.15 * v)[..., None], mask

    return noun, {"couch": 1.8, "chair": 0.65, "bed": 1.7, "potted plant": 0.8}[noun], paint


def _round_thing(rng, noun, aspect, colours, rings=0, stem=False, segments=0):
    """Plates, fruit, balls, umbrellas, clocks, vases: a disc or dome with rings or segments."""
    a, b = colours

    def paint(p: Patch):
        u, v = p.warped
        radius, angle = np.hypot(u, v), np.arctan2(v, u)
        t = np.zeros_like(radius)
        if rings:
            t = ((radius * rings) % 1 > 0.5).astype(np.float32)
        if segments:
            t = (np.sin(segments * angle) > 0).astype(np.float32)
        parts = [(radius < 0.93, _mix(a, b, t + 0.15 * p.noise(0.03, 2)) * _round(p, u, v)[..., None])]
        if stem:
            parts = [(parts[0][0] & (v < 0.05), parts[0][1]), (_box(u, v, -0.05, 0, 0.05, 0.9), b * 0.4)]
        return _layer(parts)

    return noun, aspect, paint


def _food(rng):
    noun = str(rng.choice(["pizza", "cake", "apple", "orange", "donut"]))
    spans = {
        "pizza": (0.05, 0.12),
        "cake": (-0.1, 0.12),
        "apple": (-0.05, 0.3),
        "orange": (0.06, 0.1),
        "donut": (0, 0.1),
    }
    a = _tone(rng, spans[noun], (0.4, 0.95), (0.45, 0.95))
    b = _tone(rng, (-0.1, 0.15), (0.3, 0.9), (0.3, 0.95)) if noun in ("pizza", "cake", "donut") else _shift(a, rng, 0.3)
    return _round_thing(
        rng, noun, rng.uniform(0.9, 1.4), (a, b), rings={"pizza": 4, "cake": 2, "donut": 2}.get(noun, 0)
    )


def _kitchen(rng):
    noun, aspect = [("plate", 1.7), ("bowl", 1.4), ("cup", 0.9), ("bottle", 0.4)][rng.integers(4)]
    a = _tone(rng, (0, 1), (0, 0.25), (0.7, 1)) if rng.random() < 0.6 else _any(rng)
    if noun == "plate":
        return _round_thing(rng, noun, aspect, (a, a * 0.85), rings=2)
    b = _shift(a, rng, 0.4)

    def paint(p: Patch):
        u, v = p.warped
        if noun == "bottle":
            mask = (
                _box(u, v, -0.7, -0.2, 0.7, 0.95)
                | _box(u, v, -0.28, -0.95, 0.28, 0)
                | _ellipse(u, v, 0, -0.2, 0.7, 0.3)
            )
            t = (_box(u, v, -0.7, 0.1, 0.7, 0.6)).astype(np.float32)
        else:
            mask = (np.abs(u) < 0.9 - 0.35 * np.clip(v, 0, 1)) & (np.abs(v) < 0.85)
            t = _ellipse(u, v, 0, -0.75, 0.8, 0.2).astype(np.float32)
        return _mix(a, b, t) * (1 - 0.35 * u)[..., None], mask

    return noun, aspect, paint


def _indoor(rng):
    kind = rng.integers(3)
    if kind == 0:
        return _boxy(rng, "book", rng.uniform(0.7, 1.5), _any(rng), _any(rng), 0.15)
    if kind == 1:
        return _round_thing(rng, "clock", 1.0, (_tone(rng, (0, 1), (0, 0.2), (0.8, 1)), _any(rng)), rings=1.1)
    return _round_thing(rng, "vase", 0.55, (_any(rng), _any(rng)), rings=3)


def _accessory(rng):
    kind = rng.integers(3)
    if kind == 0:
        return _round_thing(rng, "umbrella", 1.1, (_any(rng), _any(rng)), stem=True, segments=int(rng.integers(3, 7)))
    return _boxy(
        rng, ("suitcase", "backpack")[kind - 1], (0.75, 0.85)[kind - 1], _any(rng), _any(rng), 0.18, handle=True
    )


def _sports(rng):
    kind = rng.integers(4)
    a, b = _any(rng), _any(rng)
    if kind == 0:
        return _round_thing(rng, "sports ball", 1.0, (a, b), segments=int(rng.integers(2, 5)))
    if kind == 1:
        return _round_thing(rng, "frisbee", 2.2, (a, b), rings=2)
    noun = ("kite", "surfboard")[kind - 2]

    def paint(p: Patch):
        u, v = p.warped
        mask = (np.abs(u) + np.abs(v) < 0.95) if noun == "kite" else _ellipse(u, v, 0, 0, 0.9, 0.95)
        t = ((u > 0) ^ (v > 0)) if noun == "kite" else (np.abs(u) < 0.2)
        return _mix(a, b, t.astype(np.float32)) * _round(p, u, v, 0.2)[..., None], mask

    return noun, (0.9, 0.3)[kind - 2], paint


def _outdoor(rng):
    noun, aspect = [("traffic light", 0.4), ("fire hydrant", 0.6), ("stop sign", 0.5), ("bench", 1.9)][rng.integers(4)]
    a = {
        "traffic light": _tone(rng, (0.1, 0.5), (0.1, 0.8), (0.1, 0.4)),
        "bench": _tone(rng, (0.02, 0.4), (0.3, 0.7), (0.15, 0.6)),
    }.get(noun, _tone(rng, (-0.06, 0.16), (0.6, 1), (0.5, 0.95)))
    lamps = [_rgb(c) for c in ([0.95, 0.15, 0.1], [0.95, 0.75, 0.1], [0.1, 0.85, 0.4])]
    pole = _tone(rng, (0, 1), (0, 0.1), (0.2, 0.7))

    def paint(p: Patch):
        u, v = p.warped
        if noun == "traffic light":
            parts = [(_box(u, v, -0.12, 0, 0.12, 1), pole), (_box(u, v, -0.8, -0.95, 0.8, 0.35), a)]
            parts += [(_ellipse(u, v, 0, y, 0.5, 0.17), c) for y, c in zip((-0.7, -0.3, 0.1), lamps, strict=True)]
        elif noun == "fire hydrant":
            parts = [
                (_limb(u, v, 0, -0.4, 0, 0.7, 0.45), a),
                (_box(u, v, -0.9, -0.2, 0.9, 0.15), a * 0.8),
                (_box(u, v, -0.65, 0.75, 0.65, 0.95), a * 0.7),
            ]
        elif noun == "stop sign":
            parts = [
                (_box(u, v, -0.1, -0.2, 0.1, 1), pole),
                (
                    np.maximum(np.abs(u), np.abs(2 * v + 1.0)) + 0.4 * np.minimum(np.abs(u), np.abs(2 * v + 1.0))
                    < 0.95,
                    a,
                ),
            ]
            parts += [(_box(u, v, -0.6, -0.58, 0.6, -0.42), _rgb([0.95, 0.95, 0.95]))]
        else:
            parts = [
                (_box(u, v, -0.95, -0.8, 0.95, -0.1) & (((v * 5) % 1) < 0.75), a),
                (_box(u, v, -0.98, 0, 0.98, 0.25), a * 0.85),
            ]
            parts += [(_box(u, v, -0.85, 0.2, -0.7, 0.95) | _box(u, v, 0.7, 0.2, 0.85, 0.95), pole)]
        image, mask = _layer(parts)
        return image * _round(p, u, v, 0.3)[..., None], mask

    return noun, aspect, paint


THINGS = {
    "person": _person,
    "animal": _animal,
    "vehicle": _vehicle,
    "electronic": _electronic,
    "appliance": _appliance,
    "furniture": _furniture,
    "food": _food,
    "kitchen": _kitchen,
    "indoor": _indoor,
    "accessory": _accessory,
    "sports": _sports,
    "outdoor": _outdoor,
}


# --- the canvas and the layouts ---------------------------------------------------------------------------------------


@dataclass
class _Canvas:
    """What is painted so far, and the materials this scene has sampled. Random streams are per object, so that
    an object's detail never depends on what was painted before it."""

    size: int
    rng: np.random.Generator
    image: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)
    materials: dict = field(default_factory=dict)

    def __post_init__(self):
        self.image = np.zeros((self.size, self.size, 3), np.float32)
        self.label = np.full((self.size, self.size), -1, np.int16)

    def patch(self, box=(0.0, 0.0, 1.0, 1.0)) -> Patch:
        return Patch(self.size, box, np.random.default_rng(self.rng.integers(2**63)))

    def material(self, kind: str):
        if kind not in self.materials:
            make = STUFF.get(kind) or THINGS[kind]
            self.materials[kind] = make(np.random.default_rng(self.rng.integers(2**63)))
        return self.materials[kind]

    def stuff(self, kind: str, box=(0.0, 0.0, 1.0, 1.0), mask: Callable[[Patch], np.ndarray] | None = None):
        """Fills the box, or the part of it where mask(patch) holds, with the material of a stuff class."""
        _, texture = self.material(kind)
        p = self.patch(box)
        inside = np.ones((p.height, p.width), bool) if mask is None else np.broadcast_to(mask(p), (p.height, p.width))
        if p.height and p.width:
            self._put(p, texture(p), inside, kind)

    def thing(self, kind: str, x: float, bottom: float, height: float):
        """Stands a thing on (x, bottom), `height` tall, all as fractions of the scene; with a soft shadow under it."""
        _, aspect, paint = self.material(kind)
        width = height * aspect
        p = self.patch((x - width / 2, bottom - height, x + width / 2, bottom))
        if p.height < 2 or p.width < 2:
            return
        shadow = Patch(self.size, (x - 0.6 * width, bottom - 0.06, x + 0.6 * width, bottom + 0.04), p.rng)
        dim = 1 - 0.45 * np.clip(1.2 - shadow.x**2 - shadow.y**2, 0, 1)
        self.image[shadow.rows, shadow.cols] *= dim[..., None]
        colours, mask = paint(p)
        self._put(p, colours, mask, kind)

    def _put(self, p: Patch, colours, mask, kind):
        window = self.image[p.rows, p.cols]
        np.copyto(window, np.broadcast_to(colours, window.shape).astype(np.float32), where=mask[..., None])
        self.label[p.rows, p.cols][mask] = _INDEX[kind]


def _below(level: float, waviness: float, cell: float, slope: float = 0.0):
    """A mask function: everything below a wavy line through height `level` (fraction of the box)."""

    def mask(p: Patch) -> np.ndarray:
        line = p.noise(cell, 3)[:1] * waviness
        return (p.y + 1) / 2 > level + line + slope * p.x

    return mask


def _side(offset: float, slope: float, waviness: float, sign: int):
    """A mask function: one side of a slanted wavy line."""
    return lambda p: sign * (p.x + slope * p.y + waviness * p.noise(0.2, 3) - offset) > 0


def _heap(p: Patch) -> np.ndarray:
    return _ellipse(*p.warped, 0, 0, 0.9, 0.9)


def _slab(p: Patch) -> np.ndarray:
    return _box(*p.warped, -0.9, -0.9, 0.9, 0.9)


def _outdoors(c: _Canvas):
    rng = c.rng
    horizon = rng.uniform(0.25, 0.65)
    c.stuff("sky*")
    far = rng.choice(["solid*", "building*", "plant*", "none"], p=[0.3, 0.25, 0.3, 0.15])
    if far == "building*":
        x = rng.uniform(-0.1, 0.3)
        while x < 1:
            width, rise = rng.uniform(0.12, 0.4), rng.uniform(0.08, 0.9) * horizon
            c.stuff("building*", (x, horizon - rise, x + width, horizon + 0.1))
            x += width + max(rng.uniform(-0.2, 0.15), 0)
    elif far != "none":
        c.stuff(
            str(far),
            (0, max(horizon - rng.uniform(0.1, 0.45), 0), 1, 1),
            _below(0.3, rng.uniform(0.04, 0.16), rng.uniform(0.1, 0.5)),
        )
    near = (
        str(rng.choice(["ground*", "plant*", "water*"], p=[0.45, 0.25, 0.3]))
        if far != "plant*"
        else str(rng.choice(["ground*", "water*"]))
    )
    c.stuff(near, (0, horizon - 0.02, 1, 1), _below(0.05, 0.01, 0.3, rng.uniform(-0.03, 0.03)))
    if rng.random() < 0.5:
        second = str(rng.choice([k for k in ("ground*", "water*", "plant*", "solid*") if k not in (near, far)]))
        c.stuff(
            second,
            (0, horizon + rng.uniform(0.05, 0.15), 1, 1),
            _side(rng.uniform(-0.5, 0.5), rng.uniform(-1, 1), 0.08, int(rng.choice([-1, 1]))),
        )
    if rng.random() < 0.18:
        c.stuff("structural*", (0, horizon - rng.uniform(0.02, 0.1), 1, horizon + rng.uniform(0.08, 0.2)))
    _stand(
        c,
        rng.choice(
            ["person", "animal", "vehicle", "outdoor", "sports", "accessory"],
            2,
            replace=False,
            p=[0.28, 0.24, 0.24, 0.1, 0.07, 0.07],
        ),
        horizon,
    )


def _stand(c: _Canvas, kinds, horizon: float):
    """Places things on the ground, larger the nearer they stand; far ones first."""
    rng, places = c.rng, []
    for kind in kinds[: rng.choice([0, 1, 1, 2, 2])]:
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            near = rng.uniform(0.3, 1.0)
            places.append((horizon + (1.02 - horizon) * near, near, str(kind)))
    scale = rng.uniform(0.45, 0.8)
    for bottom, near, kind in sorted(places):
        tall = {"person": 1.0, "animal": 0.65, "vehicle": 0.7, "sports": 0.3, "accessory": 0.45, "outdoor": 0.7}.get(
            kind, 0.6
        )
        c.thing(kind, rng.uniform(0.05, 0.95), bottom, scale * tall * (0.35 + 0.85 * near) * rng.uniform(0.85, 1.15))


def _indoors(c: _Canvas):
    rng = c.rng
    line = rng.uniform(0.5, 0.8)
    c.stuff("wall*")
    if rng.random() < 0.3:
        c.stuff("ceiling*", (0, 0, 1, rng.uniform(0.1, 0.25)), lambda p: p.y < 0.9 + 0.1 * p.x)
    c.stuff("floor*", (0, line - 0.1, 1, 1), _below(0.1 / (1.1 - line), 0.0, 0.3, rng.uniform(-0.1, 0.1)))
    if rng.random() < 0.45:
        x, width = rng.uniform(0, 0.7), rng.uniform(0.2, 0.45)
        c.stuff("window*", (x, rng.uniform(0.05, 0.2), x + width, line - rng.uniform(0.1, 0.2)))
        if rng.random() < 0.5:
            c.stuff("textile*", (x - 0.1, 0.02, x + rng.uniform(0.02, 0.12), line - rng.uniform(0, 0.1)))
            c.stuff(
                "textile*", (x + width - rng.uniform(0.02, 0.12), 0.02, x + width + 0.1, line - rng.uniform(0, 0.1))
            )
    if rng.random() < 0.45:
        x, width = rng.uniform(-0.1, 0.8), rng.uniform(0.25, 0.5)
        c.stuff("furniture*", (x, line - rng.uniform(0.2, 0.6), x + width, line + rng.uniform(0.02, 0.12)))
    if rng.random() < 0.25:
        c.stuff("textile*", (0, line, 1, 1), lambda p: _ellipse(*p.warped, 0.1, 0.3, 0.6, 0.45))
    _stand_indoors(c, line)


def _stand_indoors(c: _Canvas, line: float):
    rng = c.rng
    kinds = rng.choice(
        ["person", "animal", "furniture", "electronic", "appliance", "indoor", "accessory"],
        2,
        replace=False,
        p=[0.22, 0.13, 0.3, 0.1, 0.1, 0.08, 0.07],
    )
    tall = {
        "person": 0.7,
        "animal": 0.32,
        "furniture": 0.42,
        "appliance": 0.45,
        "electronic": 0.28,
        "indoor": 0.22,
        "accessory": 0.25,
    }
    places = sorted(
        (rng.uniform(line + 0.03, 1.0), str(k))
        for k in kinds[: rng.choice([1, 1, 2, 2])]
        for _ in range(rng.choice([1, 1, 2]))
    )
    for bottom, kind in places:
        c.thing(kind, rng.uniform(0.05, 0.95), bottom, tall[kind] * rng.uniform(1.0, 1.5))


def _tabletop(c: _Canvas):
    rng = c.rng
    back = str(rng.choice(["wall*", "textile*", "window*", "furniture*", "none"], p=[0.35, 0.15, 0.15, 0.15, 0.2]))
    surface = str(rng.choice([k for k in ("furniture*", "textile*", "rawmaterial*", "floor*") if k != back]))
    edge = rng.uniform(0.15, 0.5) if back != "none" else 0.0
    if surface == "furniture*":
        c.materials["furniture*"] = _table(np.random.default_rng(rng.integers(2**63)))
    c.stuff(surface)
    if back != "none":
        slope = rng.uniform(-0.1, 0.1)
        c.stuff(back, (0, 0, 1, edge + 0.1), lambda p: (p.y + 1) / 2 * (edge + 0.1) < edge + slope * p.x * 0.5)
    kinds = rng.choice(
        ["kitchen", "food", "food*", "electronic", "indoor", "rawmaterial*", "person"],
        3,
        replace=False,
        p=[0.26, 0.2, 0.16, 0.12, 0.12, 0.08, 0.06],
    )
    for kind in map(str, kinds[: rng.choice([1, 2, 2, 3])]):
        for _ in range(rng.choice([1, 1, 2])):
            x, bottom, height = rng.uniform(0.1, 0.9), rng.uniform(edge + 0.3, 1.05), rng.uniform(0.28, 0.6)
            if kind in STUFF:
                if kind not in (surface, back):
                    box = (x - height * 0.6, bottom - height, x + height * 0.6, bottom)
                    c.stuff(kind, box, _heap if kind == "food*" else _slab)
            else:
                c.thing(kind, x, bottom, height * (1.3 if kind == "person" else 1.0))


def _patchwork(c: _Canvas):
    """Any stuff anywhere, with wavy borders: layout tells nothing about class, material everything."""
    rng = c.rng
    kinds = [str(k) for k in rng.choice([k for k in STUFF if k != "food*"], rng.integers(2, 6), replace=False)]
    c.stuff(kinds[0])
    for kind in kinds[1:]:
        if rng.random() < 0.5:
            c.stuff(kind, mask=_side(rng.uniform(-0.5, 0.6), rng.uniform(-1.2, 1.2), 0.15, int(rng.choice([-1, 1]))))
        else:
            cx, cy, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.15, 0.4)
            c.stuff(
                kind, (cx - r, cy - r, cx + r, cy + r), lambda p: _ellipse(p.warped[0], p.warped[1], 0, 0, 0.85, 0.85)
            )
    if rng.random() < 0.6:
        c.thing(str(rng.choice(list(THINGS))), rng.uniform(0.2, 0.8), rng.uniform(0.6, 1.0), rng.uniform(0.25, 0.6))


_LAYOUTS: tuple[tuple[Callable[[_Canvas], None], float], ...] = (
    (_outdoors, 0.45),
    (_indoors, 0.25),
    (_tabletop, 0.15),
    (_patchwork, 0.15),
)


def _photograph(c: _Canvas) -> np.ndarray:
    """Light, shadows, white balance, exposure, lens blur and sensor noise; returns uint8 [size, size, 3]."""
    p, rng = c.patch(), c.rng
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    light = 1 + strength * (np.cos(angle) * p.x + np.sin(angle) * p.y)
    light = light * np.exp(rng.uniform(0, 0.1) * p.noise(rng.uniform(0.3, 0.8), 2))
    light = light * (1 - rng.uniform(0, 0.25) * (p.x**2 + p.y**2) / 2)
    image = np.clip(c.image, 0, 1) * light[..., None] * rng.uniform(0.88, 1.12, 3).astype(np.float32)
    image = np.clip(image * rng.uniform(0.8, 1.15), 0, 1) ** rng.uniform(0.8, 1.25)
    radius = rng.uniform(0.3, 1.2) * c.size / 512
    image = _blur(image, radius)
    grain = rng.uniform(0.005, 0.03)
    image += grain * np.random.default_rng(rng.integers(2**63)).standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A small separable Gaussian blur, borders repeated."""
    reach = max(int(np.ceil(2 * sigma)), 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded, length = np.pad(image, pad, mode="edge"), image.shape[axis]
        image = sum(k * np.take(padded, range(i, i + length), axis) for i, k in enumerate(kernel))
    return image


def _caption(c: _Canvas) -> tuple[str, tuple[tuple[str, int], ...]]:
    """A sentence naming what covers at least 1 % of the picture, largest first."""
    areas = np.bincount(c.label.ravel(), minlength=len(CLASSES)) / c.label.size
    visible = sorted((k for k in c.materials if areas[_INDEX[k]] >= 0.01), key=lambda k: -areas[_INDEX[k]])
    nouns = tuple((c.materials[k][0], _INDEX[k]) for k in visible)
    words = [n for n, _ in nouns]
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return f"a photo of {listed}", nouns


def scene(seed: int, index: int, size: int = 512) -> Scene:
    """The scene number `index` of the series `seed`, `size` x `size` pixels.

    Scenes of different seeds are independent; the same (seed, index) gives the same composition at every size.
    """
    rng = np.random.default_rng([seed, index])
    canvas = _Canvas(size, rng)
    layouts, chances = zip(*_LAYOUTS, strict=True)
    layouts[rng.choice(len(layouts), p=chances)](canvas)
    image = _photograph(canvas)
    caption, nouns = _caption(canvas)
    return Scene(image, canvas.label, caption, nouns)


class Scenes(Dataset):
    """The generated benchmark: `count` scenes of one seed, classes of COCO-Stuff-27. keys: "000000", "000001" ..."""

    classes = CLASSES

    def __init__(self, count: int = 64, seed: int = TEST_SEED, size: int = 512):
        if count < 1:
            raise DataError(f"count must be at least 1 scene, got {count}")
        self.seed, self.size, self.keys = seed, size, [f"{i:06d}" for i in range(count)]
        self._latest: tuple[str, Scene] | None = None

    def scene(self, key: str) -> Scene:
        """The scene of a key; the latest one is kept, as image and label are asked for one after the other."""
        if self._latest is None or self._latest[0] != key:
            self._latest = key, scene(self.seed, int(key), self.size)
        return self._latest[1]

    def photo(self, key: str) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return self.scene(key).image

    def raw_label(self, key: str) -> np.ndarray:
        """int16 [size, size], 0..26."""
        return self.scene(key).label
