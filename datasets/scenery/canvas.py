"""The canvas of a generated scene, and the photograph that is taken of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from diffseg.datasets.coco_stuff import CLASSES
from diffseg.datasets.scenery.drawing import Patch
from diffseg.datasets.scenery.materials import STUFF
from diffseg.datasets.scenery.things import THINGS

# Class index of each kind of region: "plant*" is stuff, "person" a thing.
CLASS_INDEX = {name.split("-")[0] + ("" if name.endswith("things") else "*"): i for i, name in enumerate(CLASSES)}


@dataclass
class Canvas:
    """What is painted so far, and the materials this scene has sampled.

    Random streams are per object, so that an object's detail never depends on what was painted before it.
    """

    size: int
    rng: np.random.Generator
    image: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)
    materials: dict = field(default_factory=dict)

    def __post_init__(self):
        self.image = np.zeros((self.size, self.size, 3), np.float32)
        self.label = np.full((self.size, self.size), -1, np.int16)

    def patch(self, box=(0.0, 0.0, 1.0, 1.0)) -> Patch:
        """A window of this canvas with a random stream of its own."""
        return Patch(self.size, box, np.random.default_rng(self.rng.integers(2**63)))

    def material(self, kind: str):
        """What this scene's instance of a kind is like: (noun, texture) of stuff, (noun, aspect, paint) of a thing."""
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

        # The shadow, then the thing upon it
        shadow = Patch(self.size, (x - 0.6 * width, bottom - 0.06, x + 0.6 * width, bottom + 0.04), p.rng)
        dim = 1 - 0.45 * np.clip(1.2 - shadow.x**2 - shadow.y**2, 0, 1)
        self.image[shadow.rows, shadow.cols] *= dim[..., None]
        colours, mask = paint(p)
        self._put(p, colours, mask, kind)

    def _put(self, p: Patch, colours, mask, kind):
        window = self.image[p.rows, p.cols]
        np.copyto(window, np.broadcast_to(colours, window.shape).astype(np.float32), where=mask[..., None])
        self.label[p.rows, p.cols][mask] = CLASS_INDEX[kind]


def photograph(c: Canvas) -> np.ndarray:
    """Light, shadows, white balance, exposure, lens blur and sensor noise; returns uint8 [size, size, 3]."""
    p, rng = c.patch(), c.rng

    # Light from one side, broad shadows, dark corners
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    light = 1 + strength * (np.cos(angle) * p.x + np.sin(angle) * p.y)
    light = light * np.exp(rng.uniform(0, 0.1) * p.noise(rng.uniform(0.3, 0.8), 2))
    light = light * (1 - rng.uniform(0, 0.25) * (p.x**2 + p.y**2) / 2)

    # White balance, exposure, contrast
    image = np.clip(c.image, 0, 1) * light[..., None] * rng.uniform(0.88, 1.12, 3).astype(np.float32)
    image = np.clip(image * rng.uniform(0.8, 1.15), 0, 1) ** rng.uniform(0.8, 1.25)

    # Lens and sensor
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
        shifted = (padded[i : i + length] if axis == 0 else padded[:, i : i + length] for i in range(len(kernel)))
        image = sum(k * x for k, x in zip(kernel, shifted, strict=True))
    return image
