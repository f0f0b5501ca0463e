"""Things: functions of a generator that return noun, width / height, and paint(patch) -> colours, mask."""

from __future__ import annotations

import numpy as np

from diffseg.datasets.scenery.drawing import (
    Patch,
    any_colour,
    ellipse,
    layered,
    limb,
    mix,
    rect,
    rgb,
    roundness,
    tone,
    vary,
)


def _person(rng):
    skin = tone(rng, (0.03, 0.09), (0.25, 0.6), (0.35, 0.95))
    hair = tone(rng, (0, 0.12), (0.2, 0.7), (0.05, 0.5))
    top, trousers = any_colour(rng), any_colour(rng)
    striped, other, legs = rng.random() < 0.3, any_colour(rng), rng.uniform(0.08, 0.25)
    arms = rng.uniform(-0.3, 0.6, 2)

    def paint(p: Patch):
        u, v = p.warped
        shirt = mix(top, other, (np.sin(25 * v) > 0.3).astype(np.float32)) if striped else top
        shade = roundness(u, v)[..., None]
        parts = [
            (
                limb(u, v, -0.18, 0.1, -legs - 0.15, 0.95, 0.17) | limb(u, v, 0.18, 0.1, legs + 0.15, 0.95, 0.17),
                trousers,
            ),
            (limb(u, v, -0.3, -0.45, -0.7, arms[0], 0.11) | limb(u, v, 0.3, -0.45, 0.7, arms[1], 0.11), skin),
            (limb(u, v, 0, -0.4, 0, 0.05, 0.36), shirt),
            (limb(u, v, 0, -0.6, 0, -0.55, 0.12), skin),
            (ellipse(u, v, 0, -0.8, 0.26, 0.19), hair),
            (ellipse(u, v, 0, -0.76, 0.2, 0.16), skin),
        ]
        image, mask = layered(parts)
        return image * shade, mask

    return str(rng.choice(["man", "woman", "person", "child"])), 0.5, paint


def _animal(rng):
    noun = str(rng.choice(["dog", "cat", "horse", "sheep", "cow", "bear", "zebra", "elephant"]))
    if noun == "zebra":
        a, b = rgb([0.92, 0.9, 0.86]), rgb([0.08, 0.07, 0.07])
    elif noun == "sheep":
        a, b = tone(rng, (0.05, 0.15), (0.05, 0.25), (0.7, 1)), tone(rng, (0.05, 0.15), (0.05, 0.25), (0.5, 0.7))
    else:
        a = tone(rng, (0.02, 0.12), (0.05, 0.7), (0.1, 0.85))
        b = vary(a, rng, 0.6)
    spotted, facing = noun in ("cow", "dog") and rng.random() < 0.6, rng.choice([-1, 1])
    leg, head = rng.uniform(0.08, 0.13), rng.uniform(0.22, 0.32)

    def paint(p: Patch):
        u, v = p.warped
        u = u * facing
        if noun == "zebra":
            fur = mix(a, b, 2 * np.sin(28 * u + 2 * p.noise(0.1, 1)))
        else:
            fur = mix(a, b, (3 * p.noise(0.08, 1) if spotted else 0.5 + 0.5 * p.noise(0.012, 2, 0.5)))
        mask = ellipse(u, v, -0.05, -0.1, 0.68, 0.42) | ellipse(u, v, 0.68, -0.5, head, head)
        mask |= limb(u, v, 0.45, -0.2, 0.65, -0.45, 0.2) | limb(u, v, -0.68, -0.2, -0.9, -0.5, 0.06)
        for x in (-0.5, -0.28, 0.25, 0.47):
            mask |= limb(u, v, x, 0, x, 0.9, leg)
        mask |= ellipse(u, v, 0.58, -0.78, 0.08, 0.16)
        return fur * roundness(u * facing, v, 0.3)[..., None], mask

    return noun, 1.3, paint


def _vehicle(rng):
    noun = str(rng.choice(["car", "bus", "truck", "train", "boat", "airplane"]))
    body, glass = any_colour(rng), tone(rng, (0.5, 0.65), (0.05, 0.4), (0.1, 0.6))
    dark, band = rgb([0.08, 0.08, 0.09]), any_colour(rng)

    def paint(p: Patch):
        u, v = p.warped
        if noun == "airplane":
            parts = [(limb(u, v, -0.8, 0, 0.75, 0, 0.17), body), (limb(u, v, -0.85, -0.55, -0.65, 0, 0.1), band)]
            parts += [
                (limb(u, v, -0.3, 0.5, 0.15, 0.05, 0.08), band),
                (rect(u, v, -0.6, -0.06, 0.7, 0.02) & (np.sin(40 * u) > 0), glass),
            ]
        elif noun == "boat":
            parts = [(rect(u, v, -0.85 + 0.3 * (v > 0.6), 0.35, 0.95, 0.85) & (u < 1.4 - 0.7 * v), body)]
            parts += [
                (rect(u, v, -0.4, -0.15, 0.35, 0.36), band),
                (rect(u, v, -0.3, -0.05, 0.25, 0.15), glass),
                (rect(u, v, -0.03, -0.9, 0.03, -0.1), dark),
            ]
        else:
            tall = noun != "car"

            # The body, with the roof of a car
            parts = [(rect(u, v, -0.95, -0.8 if tall else -0.1, 0.95, 0.65), body)]
            if not tall:
                parts.append((limb(u, v, -0.35, -0.15, 0.3, -0.15, 0.45) & (v < 0), body))

            # Windows, band and wheels
            top, low = (-0.6, -0.1) if tall else (-0.5, -0.1)
            parts.append(
                (rect(u, v, -0.88 if tall else -0.55, top, 0.88 if tall else 0.5, low) & (((u * 4) % 1) > 0.15), glass)
            )
            parts.append((rect(u, v, -0.95, 0.15, 0.95, 0.28), band))
            wheels = (-0.6, 0.6) if noun != "train" else (-0.7, -0.4, 0.4, 0.7)
            for x in wheels:
                parts.append((ellipse(u, v, x, 0.65, 0.17, 0.3), dark))
        image, mask = layered(parts)
        return image * (1 - 0.2 * v + 0.04 * p.noise(0.02, 1))[..., None], mask

    return noun, {"car": 1.9, "bus": 1.8, "truck": 1.7, "train": 2.6, "boat": 1.5, "airplane": 2.4}[noun], paint


def _boxy(rng, noun, aspect, body, inner, inset, handle=False, legs=0.0):
    """Television, refrigerator, oven, suitcase, book, bed ...: a rounded box with an inner field."""
    accent = vary(inner, rng, 0.6)

    def paint(p: Patch):
        u, v = p.warped
        field = mix(inner, accent, 0.5 + 0.5 * p.noise(0.08, 2))
        parts = [(rect(u, v, -0.92, -0.92, 0.92, 0.92 - legs), body)]
        parts.append((rect(u, v, -0.92 + inset, -0.92 + inset, 0.92 - inset, 0.9 - legs - inset), field))
        if handle:
            parts.append((rect(u, v, 0.6, -0.5, 0.7, 0.1) | (np.abs(v - 0.2) < 0.03) & (np.abs(u) < 0.9), body * 0.4))
        if legs:
            parts.append((rect(u, v, -0.85, 0.5, -0.7, 0.95) | rect(u, v, 0.7, 0.5, 0.85, 0.95), body * 0.7))
        image, mask = layered(parts)
        return image * (1 - 0.12 * u - 0.1 * v)[..., None], mask

    return noun, aspect, paint


def _electronic(rng):
    frame = tone(rng, (0, 1), (0, 0.1), (0.05, 0.5))
    screen = tone(rng, (0.5, 0.7), (0.1, 0.9), (0.05, 0.8))
    noun, aspect = [("television", 1.5), ("laptop", 1.3), ("cell phone", 0.55)][rng.integers(3)]
    return _boxy(rng, noun, aspect, frame, screen, 0.12)


def _appliance(rng):
    steel = tone(rng, (0, 0.65), (0, 0.12), (0.55, 1))
    noun, aspect = [("refrigerator", 0.55), ("oven", 0.9), ("microwave", 1.6)][rng.integers(3)]
    inner = steel * 0.95 if noun == "refrigerator" else tone(rng, (0, 1), (0, 0.2), (0.05, 0.3))
    return _boxy(rng, noun, aspect, steel, inner, 0.2, handle=True)


def _furniture(rng):
    noun = str(rng.choice(["couch", "chair", "bed", "potted plant"]))
    a, b = any_colour(rng), any_colour(rng)
    wood, leaf = tone(rng, (0.03, 0.12), (0.3, 0.7), (0.15, 0.6)), tone(rng, (0.2, 0.38), (0.4, 0.8), (0.2, 0.6))

    def paint(p: Patch):
        u, v = p.warped
        cloth = mix(a, vary(a, np.random.default_rng(1), 0.3), 0.5 + 0.3 * p.noise(0.05, 2))
        if noun == "couch":
            parts = [
                (rect(u, v, -0.85, -0.7, 0.85, 0.3), cloth),
                (rect(u, v, -0.98, -0.25, -0.7, 0.8) | rect(u, v, 0.7, -0.25, 0.98, 0.8), cloth * 0.85),
            ]
            parts += [(rect(u, v, -0.75, 0.1, 0.75, 0.8), cloth * 1.1), (limb(u, v, -0.5, -0.1, -0.4, -0.1, 0.2), b)]
        elif noun == "chair":
            parts = [
                (rect(u, v, -0.6, -0.95, 0.6, 0.05) & ((np.abs(u) > 0.45) | (v < -0.6) | (((u * 5) % 1) < 0.5)), cloth)
            ]
            parts += [(rect(u, v, -0.75, 0.05, 0.75, 0.3), cloth * 0.9)]
            parts += [(rect(u, v, -0.7, 0.3, -0.5, 0.95) | rect(u, v, 0.5, 0.3, 0.7, 0.95), cloth * 0.7)]
        elif noun == "bed":
            parts = [
                (rect(u, v, -0.95, -0.8, -0.8, 0.9), wood),
                (rect(u, v, -0.85, -0.1, 0.95, 0.7), cloth),
                (rect(u, v, -0.75, -0.4, -0.3, 0), b),
            ]
        else:
            parts = [
                (
                    ellipse(u, v, 0, -0.35, 0.75, 0.6) & (p.noise(0.05, 2) > -0.9),
                    mix(leaf * 0.5, leaf * 1.3, 0.5 + 0.8 * p.noise(0.03, 2)),
                )
            ]
            parts += [(rect(u, v, -0.4 + 0.1 * (v > 0.6), 0.2, 0.4 - 0.1 * (v > 0.6), 0.95), b)]
        image, mask = layered(parts)
        return image * (1 - 0.15 * v)[..., None], mask

    return noun, {"couch": 1.8, "chair": 0.65, "bed": 1.7, "potted plant": 0.8}[noun], paint


def _round_thing(noun, aspect, colours, rings=0, stem=False, segments=0):
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
        parts = [(radius < 0.93, mix(a, b, t + 0.15 * p.noise(0.03, 2)) * roundness(u, v)[..., None])]
        if stem:
            parts = [(parts[0][0] & (v < 0.05), parts[0][1]), (rect(u, v, -0.05, 0, 0.05, 0.9), b * 0.4)]
        return layered(parts)

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
    a = tone(rng, spans[noun], (0.4, 0.95), (0.45, 0.95))
    b = tone(rng, (-0.1, 0.15), (0.3, 0.9), (0.3, 0.95)) if noun in ("pizza", "cake", "donut") else vary(a, rng, 0.3)
    return _round_thing(noun, rng.uniform(0.9, 1.4), (a, b), rings={"pizza": 4, "cake": 2, "donut": 2}.get(noun, 0))


def _kitchen(rng):
    noun, aspect = [("plate", 1.7), ("bowl", 1.4), ("cup", 0.9), ("bottle", 0.4)][rng.integers(4)]
    a = tone(rng, (0, 1), (0, 0.25), (0.7, 1)) if rng.random() < 0.6 else any_colour(rng)
    if noun == "plate":
        return _round_thing(noun, aspect, (a, a * 0.85), rings=2)
    b = vary(a, rng, 0.4)

    def paint(p: Patch):
        u, v = p.warped
        if noun == "bottle":
            mask = rect(u, v, -0.7, -0.2, 0.7, 0.95) | rect(u, v, -0.28, -0.95, 0.28, 0)
            mask |= ellipse(u, v, 0, -0.2, 0.7, 0.3)
            t = (rect(u, v, -0.7, 0.1, 0.7, 0.6)).astype(np.float32)
        else:
            mask = (np.abs(u) < 0.9 - 0.35 * np.clip(v, 0, 1)) & (np.abs(v) < 0.85)
            t = ellipse(u, v, 0, -0.75, 0.8, 0.2).astype(np.float32)
        return mix(a, b, t) * (1 - 0.35 * u)[..., None], mask

    return noun, aspect, paint


def _indoor(rng):
    kind = rng.integers(3)
    if kind == 0:
        return _boxy(rng, "book", rng.uniform(0.7, 1.5), any_colour(rng), any_colour(rng), 0.15)
    if kind == 1:
        return _round_thing("clock", 1.0, (tone(rng, (0, 1), (0, 0.2), (0.8, 1)), any_colour(rng)), rings=1.1)
    return _round_thing("vase", 0.55, (any_colour(rng), any_colour(rng)), rings=3)


def _accessory(rng):
    kind, a, b = rng.integers(3), any_colour(rng), any_colour(rng)
    if kind == 0:
        return _round_thing("umbrella", 1.1, (a, b), stem=True, segments=int(rng.integers(3, 7)))
    return _boxy(rng, ("suitcase", "backpack")[kind - 1], (0.75, 0.85)[kind - 1], a, b, 0.18, handle=True)


def _sports(rng):
    kind = rng.integers(4)
    a, b = any_colour(rng), any_colour(rng)
    if kind == 0:
        return _round_thing("sports ball", 1.0, (a, b), segments=int(rng.integers(2, 5)))
    if kind == 1:
        return _round_thing("frisbee", 2.2, (a, b), rings=2)
    noun = ("kite", "surfboard")[kind - 2]

    def paint(p: Patch):
        u, v = p.warped
        mask = (np.abs(u) + np.abs(v) < 0.95) if noun == "kite" else ellipse(u, v, 0, 0, 0.9, 0.95)
        t = ((u > 0) ^ (v > 0)) if noun == "kite" else (np.abs(u) < 0.2)
        return mix(a, b, t.astype(np.float32)) * roundness(u, v, 0.2)[..., None], mask

    return noun, (0.9, 0.3)[kind - 2], paint


def _outdoor(rng):
    noun, aspect = [("traffic light", 0.4), ("fire hydrant", 0.6), ("stop sign", 0.5), ("bench", 1.9)][rng.integers(4)]
    a = {
        "traffic light": tone(rng, (0.1, 0.5), (0.1, 0.8), (0.1, 0.4)),
        "bench": tone(rng, (0.02, 0.4), (0.3, 0.7), (0.15, 0.6)),
    }.get(noun, tone(rng, (-0.06, 0.16), (0.6, 1), (0.5, 0.95)))
    lamps = [rgb(c) for c in ([0.95, 0.15, 0.1], [0.95, 0.75, 0.1], [0.1, 0.85, 0.4])]
    pole = tone(rng, (0, 1), (0, 0.1), (0.2, 0.7))

    def paint(p: Patch):
        u, v = p.warped
        if noun == "traffic light":
            parts = [(rect(u, v, -0.12, 0, 0.12, 1), pole), (rect(u, v, -0.8, -0.95, 0.8, 0.35), a)]
            parts += [(ellipse(u, v, 0, y, 0.5, 0.17), c) for y, c in zip((-0.7, -0.3, 0.1), lamps, strict=True)]
        elif noun == "fire hydrant":
            parts = [
                (limb(u, v, 0, -0.4, 0, 0.7, 0.45), a),
                (rect(u, v, -0.9, -0.2, 0.9, 0.15), a * 0.8),
                (rect(u, v, -0.65, 0.75, 0.65, 0.95), a * 0.7),
            ]
        elif noun == "stop sign":
            parts = [
                (rect(u, v, -0.1, -0.2, 0.1, 1), pole),
                (
                    np.maximum(np.abs(u), np.abs(2 * v + 1.0)) + 0.4 * np.minimum(np.abs(u), np.abs(2 * v + 1.0))
                    < 0.95,
                    a,
                ),
            ]
            parts += [(rect(u, v, -0.6, -0.58, 0.6, -0.42), rgb([0.95, 0.95, 0.95]))]
        else:
            parts = [
                (rect(u, v, -0.95, -0.8, 0.95, -0.1) & (((v * 5) % 1) < 0.75), a),
                (rect(u, v, -0.98, 0, 0.98, 0.25), a * 0.85),
            ]
            parts += [(rect(u, v, -0.85, 0.2, -0.7, 0.95) | rect(u, v, 0.7, 0.2, 0.85, 0.95), pole)]
        image, mask = layered(parts)
        return image * roundness(u, v, 0.3)[..., None], mask

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
