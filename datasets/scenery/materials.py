"""Materials: functions of a generator that return the noun and the texture of one scene's instance of a stuff class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffseg.datasets.scenery.drawing import Patch, any_colour, mix, rgb, tone, vary

Texture = Callable[[Patch], np.ndarray]  # returns colours [h, w, 3]


def _speckled(a, b, cell, octaves=3, stretch=1.0, gain=0.6) -> Texture:
    """Two colours mixed by noise: grass, sand, fur, plaster, carpet ..."""
    return lambda p: mix(a, b, 0.5 + gain * 0.5 * p.noise(cell, octaves, stretch))


def _planks(rng, a, b, count, vertical, gap=0.06) -> Texture:
    """Boards or bricks or slats: stripes of slightly different tone with dark gaps and grain along them."""
    tones = rng.uniform(0.75, 1.15, 64).astype(np.float32)

    def texture(p: Patch) -> np.ndarray:
        across = np.broadcast_to(p.x if vertical else p.y, (p.height, p.width))
        position = (across + 1) / 2 * count
        board = np.floor(position).astype(int) % 64
        grain = p.noise(0.02, 2, 0.15 if vertical else 8.0)
        colour = mix(a, b, 0.5 + 0.3 * grain) * tones[board][..., None]
        return np.where(((position % 1) < gap)[..., None], colour * 0.65, colour)

    return texture


def _tiles(rng, a, b, count, joint=0.07, checker=False, brick=False) -> Texture:
    """A grid of tiles with joints: floors, walls, ceilings, bricks."""
    mortar = vary((a + b) / 2, rng, 0.5)
    tones = rng.uniform(0.85, 1.1, (32, 32)).astype(np.float32)

    def texture(p: Patch) -> np.ndarray:
        row = (p.y + 1) / 2 * count * (2 if brick else 1)
        col = (p.x + 1) / 2 * count + (0.5 * (np.floor(row) % 2) if brick else 0)
        row, col = np.broadcast_arrays(row, col)
        i, j = np.floor(row).astype(int) % 32, np.floor(col).astype(int) % 32
        tone_of_tile = tones[i, j][..., None]
        colour = (mix(a, b, ((i + j) % 2).astype(np.float32)) if checker else a + 0 * tone_of_tile) * tone_of_tile
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
        colour = mix(a, b, 0.8 * even + 0.15 * p.noise(0.03, 2, 3.0) + 0.1)
        return np.where(((col % 1) < 0.05)[..., None], colour * 0.6, colour)

    return texture


def _sky(rng):
    kind = rng.integers(4)
    top = (
        tone(rng, (0.54, 0.64), (0.25, 0.8), (0.45, 0.95))
        if kind < 3
        else tone(rng, (-0.08, 0.12), (0.2, 0.7), (0.5, 0.9))
    )
    low = mix(top, rgb([1, 0.97, 0.92]), (rng.uniform(0.2, 0.8)))
    cloud, amount = rgb([0.95, 0.95, 0.97]) * rng.uniform(0.75, 1), rng.uniform(-2.5, 0.2)

    def texture(p: Patch) -> np.ndarray:
        base = mix(top, low, (p.y + 1) / 2 + 0 * p.x)
        return mix(base, cloud, (p.noise(0.25, 4, 2.0) + amount) * 0.5)

    return "sky", texture


def _water(rng):
    a = tone(rng, (0.42, 0.64), (0.15, 0.75), (0.2, 0.7))
    b = mix(a, rgb([1, 1, 1]), (rng.uniform(0.15, 0.6)))
    cell, gain, stretch = rng.uniform(0.008, 0.02), rng.uniform(0.4, 0.8), float(rng.uniform(4, 10))

    def texture(p: Patch) -> np.ndarray:
        ripple = p.noise(cell, 2, stretch)
        glint = 0.15 * p.noise(0.2, 1)
        return mix(a, b, 0.4 + gain * 0.45 * ripple * (0.5 + (p.y + 1) / 4) + glint)

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
    a = tone(rng, *spans[noun])
    b = vary(a, rng, 0.35)
    if noun == "pavement":
        return noun, _receding(rng, a, b, bool(rng.integers(2)))
    return noun, _speckled(a, b, rng.uniform(0.006, 0.025), 3, rng.uniform(1, 4), rng.uniform(0.3, 0.6))


def _plant(rng):
    noun = str(rng.choice(["grass", "tree", "bush", "flower", "leaves"]))
    hue = (0.17, 0.36) if rng.random() < 0.8 else (-0.05, 0.16)
    a = tone(rng, hue, (0.3, 0.85), (0.12, 0.45))
    b = tone(rng, (hue[0], hue[1]), (0.25, 0.8), (0.4, 0.8))
    if noun == "grass":
        return noun, _speckled(a, b, rng.uniform(0.008, 0.02), 2, rng.uniform(0.3, 0.6), rng.uniform(0.5, 1.0))
    cell = rng.uniform(0.008, 0.025)
    if noun == "flower":
        bloom = tone(rng, (0.75, 1.2), (0.4, 0.9), (0.6, 1.0))
        green = _speckled(a, b, cell, 3)
        return noun, lambda p: mix(green(p), bloom, (p.noise(0.02, 1) - 0.6) * 3)
    return noun, _speckled(a, b, cell, 3, 1.0, rng.uniform(0.5, 1.0))


def _building(rng):
    wall, glass = tone(rng, (0, 0.7), (0.02, 0.5), (0.35, 0.9)), tone(rng, (0.5, 0.65), (0.05, 0.5), (0.1, 0.55))
    across, down, width = rng.uniform(0.02, 0.05), rng.uniform(0.02, 0.05), rng.uniform(0.4, 0.7)

    def texture(p: Patch) -> np.ndarray:
        col = (p.x + 1) / 2 * p.extent[1] / across
        row = (p.y + 1) / 2 * p.extent[0] / down
        window = ((col % 1) < width) & ((row % 1) > 0.4)
        colour = mix(wall, vary(wall, np.random.default_rng(0), 0.3), 0.5 + 0.2 * p.noise(0.05, 3))
        return np.where(window[..., None], glass * (1 + 0.2 * p.noise(0.05, 1))[..., None], colour)

    return str(rng.choice(["building", "house", "skyscraper"])), texture


def _wall(rng):
    a = tone(rng, (0, 0.7), (0.02, 0.45), (0.4, 0.95))
    b = vary(a, rng, 0.2)
    kind = rng.integers(4)
    if kind == 0:
        return "brick wall", _tiles(
            rng, tone(rng, (-0.02, 0.1), (0.2, 0.7), (0.35, 0.75)), b, rng.uniform(8, 16), 0.08, brick=True
        )
    if kind == 1:
        return "tile wall", _tiles(rng, a, b, rng.uniform(8, 16), 0.05, checker=rng.random() < 0.3)
    if kind == 2:
        return "panel wall", _planks(rng, a, b, rng.uniform(6, 14), True)
    return "wall", _speckled(a, b, rng.uniform(0.05, 0.3), 3, 1.0, 0.4)


def _floor(rng):
    a = tone(rng, (0.02, 0.14), (0.15, 0.65), (0.25, 0.8)) if rng.random() < 0.7 else any_colour(rng)
    b = vary(a, rng, 0.4)
    kind = rng.integers(3)
    if kind == 0:
        return "carpet", _speckled(a, b, 0.01, 2, 1.0, 0.8)
    return ("wooden floor", "tile floor")[kind - 1], _receding(rng, a, b, kind == 2)


def _ceiling(rng):
    a = tone(rng, (0.05, 0.6), (0, 0.15), (0.65, 0.98))
    if rng.random() < 0.5:
        return "ceiling", _speckled(a, vary(a, rng, 0.15), 0.3, 2)
    return "ceiling", _tiles(rng, a, vary(a, rng, 0.15), rng.uniform(3, 6), 0.04)


def _solid(rng):
    noun = str(rng.choice(["mountain", "rock", "hill", "stone"]))
    a = tone(rng, (0.0, 0.65), (0.02, 0.35), (0.15, 0.4))
    b = tone(rng, (0.05, 0.65), (0.02, 0.3), (0.45, 0.8))
    cell, gain = rng.uniform(0.03, 0.1), rng.uniform(0.4, 0.8)

    def texture(p: Patch) -> np.ndarray:
        ridge = 1.2 - 1.6 * np.abs(p.noise(cell, 4))
        return mix(a, b, 0.5 + gain * 0.45 * ridge)

    return noun, texture


def _structural(rng):
    a = any_colour(rng) if rng.random() < 0.5 else tone(rng, (0, 0.6), (0, 0.15), (0.4, 0.95))
    dark = a * rng.uniform(0.25, 0.7)
    step, width, cross = rng.uniform(0.015, 0.035), rng.uniform(0.35, 0.6), rng.random() < 0.5

    def texture(p: Patch) -> np.ndarray:
        col = (p.x + 1) / 2 * p.extent[1] / step
        row = (p.y + 1) / 2 * p.extent[0] / (step if cross else 4 * step)
        bar = ((col % 1) < width * (0.5 if cross else 1)) | ((row % 1) < (0.25 if cross else 0.12))
        return np.where(bar[..., None], a * (1 + 0.1 * p.noise(0.03, 2))[..., None], dark)

    return ("net" if cross else "fence"), texture


def _textile(rng):
    a = any_colour(rng)
    b = vary(a, rng, 0.5) if rng.random() < 0.7 else any_colour(rng)
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
        return mix(a, b, t) * fold[..., None]

    return str(rng.choice(["curtain", "blanket", "cloth", "towel"])), texture


def _furniture_stuff(rng):
    a = tone(rng, (0.02, 0.12), (0.2, 0.7), (0.2, 0.75)) if rng.random() < 0.6 else any_colour(rng)
    b, doors = vary(a, rng, 0.3), rng.uniform(2, 5)
    grain = _planks(rng, a, b, doors, True, 0.04)

    def texture(p: Patch) -> np.ndarray:
        shelf = ((p.y + 1) / 2 * doors % 1) < 0.06
        return np.where((shelf & (p.x > -2))[..., None], b * 0.5, grain(p))

    return str(rng.choice(["cabinet", "cupboard", "shelf"])), texture


def table(rng):
    """The furniture of a table-top: a plate of wood or of any colour."""
    a = tone(rng, (0.02, 0.12), (0.2, 0.7), (0.25, 0.8)) if rng.random() < 0.6 else any_colour(rng)
    return "table", _speckled(a, vary(a, rng, 0.4), 0.02, 3, rng.uniform(4, 12), 0.6)


def _rawmaterial(rng):
    noun = str(rng.choice(["cardboard", "metal", "paper", "plastic"]))
    spans = {
        "cardboard": ((0.07, 0.1), (0.3, 0.5), (0.5, 0.8)),
        "metal": ((0.5, 0.7), (0, 0.12), (0.4, 0.8)),
        "paper": ((0.1, 0.6), (0, 0.1), (0.8, 1)),
        "plastic": ((0, 1), (0.3, 0.9), (0.4, 0.95)),
    }
    a = tone(rng, *spans[noun])
    sheen = rng.uniform(0.1, 0.5)
    return (
        noun,
        lambda p: a * (1 + sheen * np.sin(3 * p.x + 2 * p.y + p.noise(0.3, 1)) + 0.05 * p.noise(0.01, 1))[..., None],
    )


def _window(rng):
    frame, outside = tone(rng, (0, 0.6), (0, 0.4), (0.3, 1)), tone(rng, (0.3, 0.62), (0.05, 0.5), (0.6, 1))
    panes, blind = rng.integers(1, 4), rng.random() < 0.35

    def texture(p: Patch) -> np.ndarray:
        if blind:
            return mix(frame, outside, 0.5 + 0.5 * np.sign(np.sin(25 * p.y)) + 0 * p.x)
        col, row = (p.x + 1) / 2 * panes % 1, (p.y + 1) / 2 * panes % 1
        bar = (np.minimum(col, 1 - col) < 0.06 * panes / 2 + 0.03) | (np.minimum(row, 1 - row) < 0.06)
        return np.where(bar[..., None], frame, mix(outside, outside * 0.6, 0.4 + 0.4 * p.noise(0.1, 3)))

    return ("window blind" if blind else "window"), texture


def _food_stuff(rng):
    colours = np.stack([tone(rng, (-0.05, 0.35), (0.4, 0.95), (0.35, 0.95)) for _ in range(3)])

    def texture(p: Patch) -> np.ndarray:
        base = mix(colours[0], colours[1], 0.5 + 1.5 * p.noise(0.05, 2))
        return mix(base, colours[2], 2 * p.noise(0.035, 1) - 0.8)

    return str(rng.choice(["salad", "fruit", "vegetables"])), texture


# The star tells stuff from things of the same name: "food*" is a salad, "food" an apple.
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
