"""Photos as one page of HTML: what an `Explorer` knows of each, packed so that a browser alone can show it.

A photo takes 1 to 1.5 MB: the photo, a label map for each of some forty thresholds, and attention maps in sixteen
steps. The page loads nothing, and its Content-Security-Policy forbids it to.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from diffseg import __version__
from diffseg.attention import Size
from diffseg.errors import printable
from diffseg.explorer import Explorer
from diffseg.images import region_colours
from diffseg.methods.merging import Settings

SIDE = 768  # pixels of a photo's longer side in the page
STEPS = 15  # of the square root of attention, relative to the map's peak
_THRESHOLDS = 40
_MOST = 64  # segments at the least threshold, about
_NUMBERS = 256  # of segments, that a byte holds
_ENTRIES = 2_400_000  # of one resolution's maps, at most; there are fewer maps where they would be more
_BARS = 48  # of the histogram of distances


class Level(TypedDict):
    """The attention maps of one resolution. A map is (steps / STEPS)^2 of its peak.

    size: [h, w]. share: of R, all sum to 1. rows, columns: there are maps of the positions in these, row by row. peaks:
    float32 [maps], packed. steps: uint8 [maps, h, w], packed.
    """

    size: list[int]
    share: float
    rows: list[int]
    columns: list[int]
    peaks: str
    steps: str


class Photo(TypedDict):
    """What the page knows of a photo. Packed: zlib, as base64.

    name, credit: to be shown. width, height: of the original. size: [h, w] of picture and labels. picture: JPEG, as an
    address. thresholds: ascending; start: index of the one to begin with. counts: segments at each. labels: uint8
    [thresholds, h, w], packed. colours: uint8 [sum of counts, 3], packed. bars: how many of the distances between two
    anchors fall between neighbours of edges. names: of each segment at each threshold; None: there are none.
    """

    name: str
    credit: str
    width: int
    height: int
    size: list[int]
    picture: str
    thresholds: list[float]
    start: int
    counts: list[int]
    labels: str
    colours: str
    edges: list[float]
    bars: list[int]
    levels: list[Level]
    names: list[list[str]] | None


def photo_data(explorer: Explorer, settings: Settings, name: str, credit: str = "") -> Photo:
    """What the page knows of a photo.

    Args:
        settings: M, N, R; its first threshold is the one to begin with. name, credit: as shown.

    Raises:
        UserError: settings that do not fit the model's maps.
    """
    picture = Image.fromarray(explorer.image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    size = (picture.height, picture.width)
    taus, maps = label_maps(explorer, settings, size)
    counts = [int(labels.max()) + 1 for labels in maps]
    edges, bars = _histogram(explorer.distances(settings.anchors, settings.weights), taus)
    return {
        "name": printable(name),
        "credit": printable(credit),
        "width": explorer.image.shape[1],
        "height": explorer.image.shape[0],
        "size": list(size),
        "picture": _jpeg(picture),
        "thresholds": taus,
        "start": int(np.abs(np.log(taus) - math.log(settings.threshold[0])).argmin()),
        "counts": counts,
        "labels": packed(np.stack(maps)),
        "colours": packed(np.concatenate([region_colours(labels) for labels in maps])),
        "edges": edges,
        "bars": bars,
        "levels": _levels(explorer, settings),
        "names": [_names(explorer, labels) for labels in maps] if explorer.nouns else None,
    }


def label_maps(explorer: Explorer, settings: Settings, size: Size) -> tuple[list[float], list[np.ndarray]]:
    """Thresholds for the slider, ascending, and the labels uint8 [h, w] that each gives at a size (h, w)."""
    rest = (settings.anchors, len(settings.threshold), settings.weights)
    taus = sorted({*explorer.thresholds(_THRESHOLDS, _MOST, *rest), settings.threshold[0]})
    maps = {tau: explorer.labels_at(size, explorer.settings(tau, *rest)) for tau in taus}
    kept = {tau: labels.astype(np.uint8) for tau, labels in maps.items() if labels.max() < _NUMBERS}
    return list(kept), list(kept.values())


def _names(explorer: Explorer, labels: np.ndarray) -> list[str]:
    return [printable(explorer.nouns[index]) for index in explorer.scores_of(labels).argmax(1)]


def _histogram(distances: np.ndarray, taus: Sequence[float]) -> tuple[list[float], list[int]]:
    """Edges, evenly spaced in their logarithm over the thresholds, and the numbers of distances between them."""
    edges = np.geomspace(taus[0], max(taus[-1], taus[0] * 1.01), _BARS + 1)
    return [float(f"{edge:.4g}") for edge in edges], np.histogram(distances, edges)[0].tolist()


# --- attention --------------------------------------------------------------------------------------------------------


def _levels(explorer: Explorer, settings: Settings) -> list[Level]:
    sizes = explorer.sizes
    weights = settings.weights or [math.sqrt(h * w) for h, w in sizes]
    return [
        _level(explorer.maps_of(size), size, weight / sum(weights)) for size, weight in zip(sizes, weights, strict=True)
    ]


def _level(maps: np.ndarray, size: Size, share: float) -> Level:
    """maps: float32 [h, w, h, w]."""
    stride = next(
        s for s in range(1, max(size) + 1) if math.prod(map(len, places(size, s))) * math.prod(size) <= _ENTRIES
    )
    rows, columns = places(size, stride)
    steps, peaks = in_steps(maps[np.ix_(rows, columns)].reshape(-1, *size))
    return {
        "size": list(size),
        "share": round(share, 6),
        "rows": rows,
        "columns": columns,
        "peaks": packed(peaks),
        "steps": packed(steps),
    }


def places(size: Size, stride: int) -> tuple[list[int], list[int]]:
    """Rows and columns of one of every `stride` positions, in the middle of their squares."""
    rows, columns = (list(range(min(stride // 2, side - 1), side, stride)) for side in size)
    return rows, columns


def in_steps(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps float32 [n, h, w] as steps uint8 [n, h, w], 0..STEPS, and peaks float32 [n]: about peak * (steps / STEPS)^2.

    The square root keeps what is faint apart.
    """
    peaks = maps.max((1, 2)).astype(np.float32)
    relative = maps / np.maximum(peaks, np.finfo(np.float32).tiny)[:, None, None]
    return np.rint(np.sqrt(relative) * STEPS).astype(np.uint8), peaks


# --- the page ---------------------------------------------------------------------------------------------------------


def packed(array: np.ndarray) -> str:
    """An array's bytes, little-endian, deflated, as base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 9)).decode()


def _jpeg(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def page_of(photos: Sequence[Photo], model: str, settings: Settings, opacity: float = 0.5) -> str:
    """The page, whole. opacity: of the segments' colours at the start."""
    folder = Path(__file__).parent
    made = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    script, style = ((folder / name).read_text() for name in ("explore.js", "explore.css"))
    return made.get_template("explore.html").render(
        photos=photos,
        script=script,
        style=style,
        policy=f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        model=printable(model),
        settings=settings,
        steps=STEPS,
        opacity=opacity,
        version=__version__,
    )


def _hash(content: str) -> str:
    """What allows a script or a style of just this content in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
