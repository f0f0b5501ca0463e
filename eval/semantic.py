"""How often the names of Semantic DiffSeg are right, given the nouns of what there is to see.

`python -m diffseg.eval.semantic`: on generated scenes with their own captions, or on photos of COCO with the nouns of
their labels. Names decide, so nothing is matched: a pixel is right if its segment's noun is of its true class.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffseg.datasets.base import Dataset, Words
from diffseg.datasets.coco_stuff import FINE_NOUNS, CocoStuff27, CocoStuff171
from diffseg.datasets.scenes import Scenes
from diffseg.eval.metrics import Counts, histogram, intervals, score_metrics, statistics_of, summarise
from diffseg.methods.naming import VOTINGS, noun_maps, vote
from diffseg.options import one_sentence
from diffseg.segmenter import DiffSeg, Settings
from diffseg.words import caption_of, noun_tokens

CONTROL, BOUND = "random noun", "true noun"


def named(hist: np.ndarray, classes: np.ndarray) -> tuple[Counts, Counts]:
    """Counts of one image whose segments have been given classes.

    Args:
        hist: int64 [classes, >= segments], `histogram` of truth and segments. classes: int [segments].

    Returns:
        Pixels per class; and segments, as one class: tp are those named as the largest part of their pixels is, fn the
        others.
    """
    hist = hist[:, : len(classes)]
    tp, claimed = np.zeros(len(hist), np.int64), np.zeros(len(hist), np.int64)
    np.add.at(tp, classes, hist[classes, np.arange(len(classes))])
    np.add.at(claimed, classes, hist.sum(0))
    right = int((hist.argmax(0) == classes).sum())
    segments = Counts(np.array([right]), np.array([0]), np.array([len(classes) - right]), len(classes))
    return Counts(tp, claimed - tp, hist.sum(1) - tp, int(hist.sum())), segments


class NamedPhotos(CocoStuff27):
    """Photos of COCO; what a person would say of one is what covers at least 1 % of it, by COCO-Stuff's 171 names."""

    def words(self, key: str, prompts: str) -> Words:
        """A caption that lists what there is to see, largest first, whatever prompts says."""
        nouns, fine = list(FINE_NOUNS), self.fitted(self.values(key))
        values, counts = np.unique(fine[self.label(key) >= 0], return_counts=True)
        largest = [i for i in (-counts).argsort(kind="stable") if counts[i] >= 0.01 * fine.size]
        named = tuple((nouns[CocoStuff171.table[v]], int(CocoStuff27.table[v])) for v in values[largest])
        return Words(caption_of([noun for noun, _ in named]), named, len(self.classes))


def choices(
    seg: DiffSeg, data: Dataset, key: str, settings: Settings, seed: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One pass over one image: its histogram, and the classes [segments] that each way of naming gives.

    The control gives each segment a random noun of the caption; the bound gives it the class of most of its pixels.

    Args:
        data: whose images are squares (`prepare: crop`) and have captions. seed: of the random nouns.
    """
    words, truth = data.words(key, "captions"), data.label(key)
    classes = np.array([index for _, index in words.nouns])
    tokens = noun_tokens(seg.model.tokenizer, words.text, [noun for noun, _ in words.nouns])
    size = (truth.shape[0], truth.shape[1])
    image = seg.observe_pixels(data.image(key)[None], settings.timestep, size, words.text)
    segmentation = seg.segment_observed(data.photo(key), image, settings)
    labels, segments = segmentation.labels, len(segmentation)
    cross = image.batch.seen().cross_attention
    maps, hist = list(noun_maps(cross, tokens, size)), histogram(truth, labels, len(data.classes))
    found = {voting: classes[vote(labels, maps, voting).argmax(1)] for voting in VOTINGS}
    random = np.random.default_rng([seed, int(key)]).choice(classes, segments)
    return hist, found | {CONTROL: random, BOUND: hist[:, :segments].argmax(0)}


def score(seg: DiffSeg, data: Dataset, settings: Settings) -> dict[str, dict[str, Any]]:
    """Per way of naming: accuracy (of pixels), miou, iou, segment_accuracy, and interval: {each: (low, high)}."""
    pixels: dict[str, list[Counts]] = defaultdict(list)
    segments: dict[str, list[Counts]] = defaultdict(list)
    screen = Console(stderr=True)
    seed = data.seed if isinstance(data, Scenes) else 0
    for key in track(data.keys, "naming", console=screen, transient=True, disable=not screen.is_terminal):
        hist, ways = choices(seg, data, key, settings, seed)
        for way, classes in ways.items():
            of_pixels, of_segments = named(hist, classes)
            pixels[way].append(of_pixels)
            segments[way].append(of_segments)
    return {way: _summary(pixels[way], segments[way]) for way in pixels}


def _summary(pixels: list[Counts], segments: list[Counts]) -> dict[str, Any]:
    of_segments = intervals(statistics_of(segments), score_metrics)["accuracy"]
    interval = intervals(statistics_of(pixels), score_metrics) | {"segment_accuracy": of_segments}
    return summarise(pixels) | {"segment_accuracy": summarise(segments)["accuracy"], "interval": interval}


def table(result: dict[str, dict[str, Any]], title: str) -> Table:
    """The result of `score` for the terminal, in percent, with 95 % intervals over images."""
    caption = f"by the mean attention in a segment, or by the noun of most of its pixels; {CONTROL}: of the caption's; "
    caption += f"{BOUND}: the class of most of its pixels; 95 % intervals over images"
    shown = Table(title=title, caption=caption)
    for heading in ("noun by", "segments right %", "pixels right %", "mIoU %"):
        shown.add_column(heading, justify="left" if heading == "noun by" else "right")
    for way, row in result.items():
        cells = [way]
        for name in ("segment_accuracy", "accuracy", "miou"):
            low, high = row["interval"][name]
            cells.append(f"{100 * row[name]:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        shown.add_row(*cells)
    return shown


def main(
    model: Annotated[str, typer.Option(help="Embedded model, hub id or folder.")] = "mini",
    scenes: Annotated[int, typer.Option(min=1, help="Number of held-out scenes.")] = 50,
    photos: Annotated[
        Path | None,
        typer.Option(help="In their place all photos of a folder like data/coco, with the nouns of their labels."),
    ] = None,
    timestep: Annotated[int | None, typer.Option(help="t, 0 to 999. (default: the model's own)")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    json_: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Names the segments of images by the nouns of what they show; prints how often that is right."""
    with one_sentence("semantic"):
        data = NamedPhotos(photos, split="all") if photos else Scenes(scenes)
        seg = DiffSeg.from_pretrained(model, device=device)
        settings = seg.settings(timestep=timestep)
        what = f"{len(data.keys)} {'photos' if photos else 'generated scenes'}"
        typer.echo(f"naming the segments of {what} with {model}", err=True)
        result = score(seg, data, settings)
    title = f"{model} on {what}\nt = {settings.timestep}, threshold = {settings.threshold[0]:g}"
    Console().print(table(result, title))
    if json_:
        # A class that does not occur has no IoU: JSON knows null, not NaN.
        rows = {way: row | {"iou": [None if np.isnan(x) else x for x in row["iou"]]} for way, row in result.items()}
        record = {"model": model, "images": what, "timestep": settings.timestep, "threshold": settings.threshold}
        json_.write_text(json.dumps(record | {"naming": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
