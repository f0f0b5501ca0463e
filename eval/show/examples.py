"""Images of a run to look at: photo, truth, and segments, as thumbnails; which of them to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from diffseg.datasets.base import Dataset, read_map
from diffseg.errors import UserError
from diffseg.eval.protocols import Matching, OneToOne, Protocol, Regions
from diffseg.eval.score import read_prediction
from diffseg.eval.show.pages import percent
from diffseg.images import distinct_colours, overlay

SIDE = 320  # pixels of a thumbnail's longer side
IGNORED = (154, 160, 166)
HATCH = ((222, 224, 227), (128, 133, 139))  # of segments matched to no class
_SHOWN = 4  # best images, and as many of each other kind


def picture(dataset: Dataset, key: str, path: Path) -> Image.Image:
    """A photo, cropped as the protocol says, under the segments of a label map (of either size that can be scored)."""
    labels = dataset.crop(read_map(path))
    photo = Image.fromarray(dataset.crop(dataset.photo(key))).resize(labels.shape[::-1])
    return overlay(np.asarray(photo), labels)


def rule_of_images(dataset: Dataset, protocol: Protocol | None = None) -> Protocol:
    """What single images are shown by: the protocol if it gives segments classes, else the paper's, or `Regions`."""
    if dataset.regions:
        return Regions()
    return protocol if isinstance(protocol, Matching) else OneToOne()


@dataclass(frozen=True)
class Panel:
    """One picture of an example, or the reason why there is none. image: PIL, alt: what it shows.

    kind: how it is stored: "webp" of photos, "png" of flat colours.
    """

    title: str
    alt: str = ""
    image: Image.Image | None = None
    error: str = ""
    kind: str = "png"


@dataclass(frozen=True)
class Example:
    """An image's row of `image_scores` and what is shown of it. legend: (class, colour).

    ignored, unmatched: whether there are pixels without a label, and segments matched to no class.
    """

    row: Mapping[str, Any]
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Any], ...] = ()
    ignored: bool = False
    unmatched: bool = False


# --- which ------------------------------------------------------------------------------------------------------------


def extremes(images: pd.DataFrame, metric: str = "accuracy") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the images with the largest values, best first, and with the least, worst first; none in both."""
    rows = images.dropna(subset=metric).sort_values(metric, ascending=False, kind="stable").to_dict("records")
    best = min(_SHOWN, -(-len(rows) // 2))
    worst = min(_SHOWN, len(rows) - best)
    return rows[:best], rows[::-1][:worst]


def chosen(images: pd.DataFrame, metric: str = "accuracy") -> dict[str, list[dict[str, Any]]]:
    """The rows of images to show by kind, none of them twice; kinds without one are left out.

    Typical: those nearest to the median of all. Random: drawn with a fixed seed from those that are left, so that some
    are shown that no value has chosen.
    """
    best, worst = extremes(images, metric)
    rest = images.dropna(subset=metric)
    middle = rest[metric].median()
    rest = rest[~rest["key"].isin([row["key"] for row in best + worst])]
    nearest = (rest[metric] - middle).abs().sort_values(kind="stable").index[:_SHOWN]
    typical = rest.loc[nearest]
    left = rest.drop(nearest)
    drawn = np.random.default_rng(0).permutation(len(left))[:_SHOWN]
    kinds = {"Best": best, "Typical": typical.to_dict("records"), "Worst": worst}
    kinds["Random"] = left.iloc[drawn].to_dict("records")
    return {title: rows for title, rows in kinds.items() if rows}


# --- how --------------------------------------------------------------------------------------------------------------


def example(dataset: Dataset, row: Mapping[str, Any], path: Path, side: int = SIDE) -> Example:
    """Photo, truth, matched classes and segments of an image. What cannot be read any more is replaced by the reason.

    Of regions, the truth is the first annotation, and segments have the colours of the regions they are matched to.

    Args:
        row: of `image_scores`. path: the label map. side: pixels of the longer side of each picture.
    """
    key = row["key"]
    names = dataset.classes or [f"region {number}" for number in range(1, len(row["table"]))]
    colours = distinct_colours(len(names))
    pixels, no_photo = _attempt(lambda: dataset.crop(dataset.photo(key)))
    raw, no_truth = _attempt(lambda: dataset.raw_label(key))
    first = _photo(key, pixels, no_photo, side)
    if raw is None:  # without it the size of the map cannot be judged either
        return Example(row, (first, Panel("Truth", error=no_truth), Panel("Prediction", error=no_truth)))
    truth = dataset.fitted(raw)
    present = [int(c) for c in np.argsort(-np.bincount(truth[truth >= 0], minlength=1)) if (truth == c).any()]
    shares = ", ".join(f"{names[c]} {percent((truth == c).mean(), 0)} %" for c in present)
    painted = _paint(truth, colours, False, side)
    second = Panel("Truth", f"Truth of {key}: {shares or 'nothing labelled'}", painted)
    labels, no_map = _attempt(lambda: read_prediction(path, dataset, raw.shape))
    legend = tuple((names[c], colours[c]) for c in present if dataset.classes)
    ignored = bool((truth < 0).any())
    if labels is None:
        return Example(row, (first, second, Panel("Prediction", error=no_map)), legend, ignored)
    numbers, rank = np.unique(labels, return_inverse=True)
    matched = matched_classes(row["table"])
    if len(numbers) > len(matched):
        other = f"its label map has {len(numbers)} segments, its counts are of {len(matched)}: score the run again"
        return Example(row, (first, second, Panel("Prediction", error=other)), legend, ignored)
    matched = matched[numbers if numbers[-1] < len(matched) else np.arange(len(numbers))][rank]
    hits = ", ".join(names[c] for c in present if (matched == c).any()) or "no class"
    alt = f"Prediction for {key}: {row['segments']} segments, matched to {hits}"
    third = Panel("Matched", alt, _paint(matched, colours, True, side))
    panels = (first, second, third, _segments(key, pixels, labels, side))
    return Example(row, panels, legend, ignored, bool((matched < 0).any()))


def unlabelled_example(dataset: Dataset, row: Mapping[str, Any], path: Path, side: int = SIDE) -> Example:
    """As `example`, of an image without a truth: photo and segments. row: with key and segments."""
    pixels, no_photo = _attempt(lambda: dataset.crop(dataset.photo(row["key"])))
    labels, no_map = _attempt(lambda: dataset.crop(read_map(path)))
    second = Panel("Segments", error=no_map)
    if labels is not None:
        second = _segments(row["key"], pixels, labels, side)
    return Example(row, (_photo(row["key"], pixels, no_photo, side), second))


def _attempt(read: Callable[[], np.ndarray]) -> tuple[np.ndarray | None, str]:
    """What is read, or why it cannot be."""
    try:
        return read(), ""
    except (UserError, OSError) as error:
        return None, str(error)


def matched_classes(table: np.ndarray) -> np.ndarray:
    """The class that each segment is matched to, int64 [S]; -1 where they share no pixel.

    Args:
        table: int64 [classes + 1, S], see `diffseg.eval.score.tables_of`.
    """
    return OneToOne(absent=False).assign(table)


def _photo(key: str, pixels: np.ndarray | None, error: str, side: int) -> Panel:
    image = None if pixels is None else Image.fromarray(pixels).resize(_thumbnail(pixels.shape, side))
    return Panel("Photo", f"Photo {key}", image, error, "webp")


def _segments(key: str, pixels: np.ndarray | None, labels: np.ndarray, side: int) -> Panel:
    """The segments int [H, W] as they are, over the photo where there is one."""
    size = _thumbnail(labels.shape, side)
    small = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    photo = np.full((*small.shape, 3), 255, np.uint8) if pixels is None else Image.fromarray(pixels).resize(size)
    count = len(np.unique(labels))
    alt = f"{count} segment{'s' * (count != 1)} of {key}"
    return Panel("Segments", alt, overlay(np.asarray(photo), small), kind="webp")


def _paint(classes: np.ndarray, colours: np.ndarray, hatched: bool, side: int) -> Image.Image:
    """A thumbnail of classes int [H, W] in their colours (uint8 [n, 3]); -1 plain grey, or hatched."""
    size = _thumbnail(classes.shape, side)
    small = np.asarray(Image.fromarray(classes.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    stripe = np.add.outer(*map(np.arange, small.shape)) // 5 % 2 if hatched else 0
    rest = np.array(HATCH if hatched else [IGNORED], np.uint8)[stripe]
    return Image.fromarray(np.where((small < 0)[..., None], rest, colours[small]))


def _thumbnail(shape: Sequence[int], side: int) -> tuple[int, int]:
    """The (width, height) of a thumbnail of a picture [H, W, ...], its longer side `side`."""
    height, width = (max(1, round(side * length / max(shape[:2]))) for length in shape[:2])
    return width, height
