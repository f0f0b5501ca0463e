"""Layouts: what is painted where on the canvas of a generated scene, from back to front."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffseg.datasets.scenery.canvas import Canvas
from diffseg.datasets.scenery.drawing import Patch, ellipse, rect
from diffseg.datasets.scenery.materials import STUFF, table
from diffseg.datasets.scenery.things import THINGS


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
    """A mask: a round heap of food."""
    return ellipse(*p.warped, 0, 0, 0.9, 0.9)


def _slab(p: Patch) -> np.ndarray:
    """A mask: a slab of raw material."""
    return rect(*p.warped, -0.9, -0.9, 0.9, 0.9)


def _outdoors(c: Canvas):
    """Sky, something far, ground, a few things."""
    rng = c.rng
    horizon = rng.uniform(0.25, 0.65)
    c.stuff("sky*")

    # What rises behind the horizon
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

    # The ground, and another one to a side
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

    # A fence, then the things
    if rng.random() < 0.18:
        c.stuff("structural*", (0, horizon - rng.uniform(0.02, 0.1), 1, horizon + rng.uniform(0.08, 0.2)))
    kinds = rng.choice(
        ["person", "animal", "vehicle", "outdoor", "sports", "accessory"],
        2,
        replace=False,
        p=[0.28, 0.24, 0.24, 0.1, 0.07, 0.07],
    )
    _stand(c, kinds, horizon)


def _stand(c: Canvas, kinds, horizon: float):
    """Places things on the ground, larger the nearer they stand; far ones first."""
    rng = c.rng

    # Where they stand: (bottom, nearness, kind)
    places = []
    for kind in kinds[: rng.choice([0, 1, 1, 2, 2])]:
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            near = rng.uniform(0.3, 1.0)
            places.append((horizon + (1.02 - horizon) * near, near, str(kind)))

    # From far to near
    scale = rng.uniform(0.45, 0.8)
    for bottom, near, kind in sorted(places):
        tall = {"person": 1.0, "animal": 0.65, "vehicle": 0.7, "sports": 0.3, "accessory": 0.45, "outdoor": 0.7}.get(
            kind, 0.6
        )
        c.thing(kind, rng.uniform(0.05, 0.95), bottom, scale * tall * (0.35 + 0.85 * near) * rng.uniform(0.85, 1.15))


def _indoors(c: Canvas):
    """A room: wall, floor, perhaps a ceiling, a window, furniture, a carpet, a few things."""
    rng = c.rng
    line = rng.uniform(0.5, 0.8)

    # The room
    c.stuff("wall*")
    if rng.random() < 0.3:
        c.stuff("ceiling*", (0, 0, 1, rng.uniform(0.1, 0.25)), lambda p: p.y < 0.9 + 0.1 * p.x)
    c.stuff("floor*", (0, line - 0.1, 1, 1), _below(0.1 / (1.1 - line), 0.0, 0.3, rng.uniform(-0.1, 0.1)))

    # On the wall, before the wall, on the floor
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
        c.stuff("textile*", (0, line, 1, 1), lambda p: ellipse(*p.warped, 0.1, 0.3, 0.6, 0.45))
    _stand_indoors(c, line)


def _stand_indoors(c: Canvas, line: float):
    """Places things on the floor, which begins at `line`; far ones first."""
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


def _tabletop(c: Canvas):
    """A surface seen from near, with food and kitchen things on it."""
    rng = c.rng

    # The surface, and what is behind its edge
    back = str(rng.choice(["wall*", "textile*", "window*", "furniture*", "none"], p=[0.35, 0.15, 0.15, 0.15, 0.2]))
    surface = str(rng.choice([k for k in ("furniture*", "textile*", "rawmaterial*", "floor*") if k != back]))
    edge = rng.uniform(0.15, 0.5) if back != "none" else 0.0
    if surface == "furniture*":
        c.materials["furniture*"] = table(np.random.default_rng(rng.integers(2**63)))
    c.stuff(surface)
    if back != "none":
        slope = rng.uniform(-0.1, 0.1)
        c.stuff(back, (0, 0, 1, edge + 0.1), lambda p: (p.y + 1) / 2 * (edge + 0.1) < edge + slope * p.x * 0.5)

    # What lies on it
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


def _patchwork(c: Canvas):
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
                kind, (cx - r, cy - r, cx + r, cy + r), lambda p: ellipse(p.warped[0], p.warped[1], 0, 0, 0.85, 0.85)
            )
    if rng.random() < 0.6:
        c.thing(str(rng.choice(list(THINGS))), rng.uniform(0.2, 0.8), rng.uniform(0.6, 1.0), rng.uniform(0.25, 0.6))


# (layout, its share of the scenes)
LAYOUTS: tuple[tuple[Callable[[Canvas], None], float], ...] = (
    (_outdoors, 0.45),
    (_indoors, 0.25),
    (_tabletop, 0.15),
    (_patchwork, 0.15),
)
