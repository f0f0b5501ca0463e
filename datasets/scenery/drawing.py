"""What every part of a generated scene is drawn with: a patch of the canvas with its noise, colours, shapes.

Coordinates and masks are arrays that broadcast to the patch's [h, w]; colours are float32, [3] or [h, w, 3], in 0..1.
"""

from __future__ import annotations

import colorsys
from functools import cached_property

import numpy as np
from PIL import Image


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


def tone(rng: np.random.Generator, hue: tuple, saturation: tuple, value: tuple) -> np.ndarray:
    """A random colour, float32 [3] in 0..1; hue may leave 0..1 and wraps."""
    h, s, v = (rng.uniform(*span) for span in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v), np.float32)


def rgb(values: list[float]) -> np.ndarray:
    """A given colour, float32 [3]."""
    return np.array(values, np.float32)


def any_colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour of any hue, neither black nor white."""
    return tone(rng, (0, 1), (0.1, 0.9), (0.15, 0.95))


def mix(a: np.ndarray, b: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """Between colours a and b ([3] or [h, w, 3]) by t [h, w], clipped to 0..1."""
    return a + (b - a) * np.clip(np.asarray(t, np.float32), 0, 1)[..., None]


def vary(colour: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """A neighbour of a colour: darker or lighter by up to `amount`, the hue a little off."""
    return np.clip(colour * (1 + rng.uniform(-amount, amount)) + rng.uniform(-0.06, 0.06, 3), 0, 1).astype(np.float32)


def ellipse(u, v, cx, cy, rx, ry) -> np.ndarray:
    """The mask of an ellipse around (cx, cy) with half-axes rx and ry."""
    return ((u - cx) / rx) ** 2 + ((v - cy) / ry) ** 2 < 1


def rect(u, v, left, top, right, bottom) -> np.ndarray:
    """The mask of a rectangle."""
    return (u > left) & (u < right) & (v > top) & (v < bottom)


def limb(u, v, x0, y0, x1, y1, radius) -> np.ndarray:
    """The mask of a thick line from (x0, y0) to (x1, y1)."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
    return (u - x0 - t * dx) ** 2 + (v - y0 - t * dy) ** 2 < radius**2


def layered(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Paints (mask, colour) parts over each other; colour is [3] or [h, w, 3]. Returns colours and the joint mask."""
    shape = parts[0][0].shape
    image, mask = np.zeros((*shape, 3), np.float32), np.zeros(shape, bool)
    for part, colour in parts:
        image = np.where(part[..., None], colour, image)
        mask |= part
    return image, mask


def roundness(u, v, strength: float = 0.35) -> np.ndarray:
    """Shading [h, w] of a rounded body lit from the upper left."""
    return 1 + strength * np.clip(-0.5 * u - 0.7 * v, -1, 1)
