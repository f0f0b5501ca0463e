"""Scores segmenters on data sets: `make eval`, the embedded model on generated scenes it has never seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffseg.datasets.base import Dataset
from diffseg.eval.metrics import bootstrap, histogram, match, summarise, tie_sensitivity
from diffseg.segmenter import DiffSeg, Settings

Segmenter = Callable[[torch.Tensor, np.ndarray], np.ndarray]  # pixels [3, H, W], truth [H, W] -> labels [H, W]


def diffseg(seg: DiffSeg, settings: Settings) -> Segmenter:
    """DiffSeg, which never looks at the truth but for its size."""
    return lambda pixels, truth: seg.segment_pixels(pixels[None], settings, (truth.shape[0], truth.shape[1]))[0]


def score(dataset: Dataset, segment: Segmenter, name: str) -> dict[str, Any]:
    """Scores a segmenter on a data set by the paper's protocol.

    Returns:
        `summarise`'s accuracy, miou and iou; interval: {"accuracy", "miou": (low, high)}, 95 % over images; ties: the
        smallest and largest mIoU that other orders of classes give; segments: their mean number per image.
    """
    hists, segments = [], 0
    screen = Console(stderr=True)
    for key in track(dataset.keys, name, console=screen, transient=True, disable=not screen.is_terminal):
        truth = dataset.label(key)
        labels = segment(dataset.image(key), truth)
        hists.append(histogram(truth, labels, len(dataset.classes)))
        segments += len(np.unique(labels))
    counts = [match(hist) for hist in hists]
    return summarise(counts) | {
        "interval": bootstrap(counts),
        "ties": tie_sensitivity(hists),
        "segments": segments / len(counts),
    }


def table(dataset: Dataset, result: dict[str, Any], title: str) -> Table:
    """The result of `score` for the terminal, in percent; classes that do not occur are left out."""

    def percent(name: str) -> str:
        low, high = result["interval"][name]
        return f"{100 * result[name]:.1f} ({100 * low:.1f} to {100 * high:.1f})"

    shown = Table(title=title, show_footer=True)
    shown.add_column("class", "mIoU\npixel accuracy\nsegments per image")
    shown.add_column(
        "IoU %  (95 % interval over images)",
        f"{percent('miou')}\n{percent('accuracy')}\n{result['segments']:.1f}",
        justify="right",
    )
    for name, iou in zip(dataset.classes, result["iou"], strict=True):
        if not np.isnan(iou):
            shown.add_row(name, f"{100 * iou:.1f}")
    return shown


def main(
    model: Annotated[str, typer.Option(help="Embedded model, hub id or folder.")] = "mini",
    scenes: Annotated[int, typer.Option(min=1, help="Number of held-out scenes.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Segments held-out generated scenes, matches per image, prints accuracy, mIoU and IoU per class."""
    from diffseg.datasets.scenes import Scenes

    seg, dataset = DiffSeg.from_pretrained(model, device=device), Scenes(scenes)
    settings = seg.settings()
    typer.echo(f"segmenting {scenes} scenes with {model}", err=True)
    result = score(dataset, diffseg(seg, settings), "segmenting scenes")
    title = f"{model} on {scenes} generated scenes\nt = {settings.timestep}, threshold = {settings.threshold[0]:g}"
    Console().print(table(dataset, result, title))
    low, high = (100 * x for x in result["ties"])
    Console().print(f"mIoU {low:.1f} to {high:.1f} %, depending on how the matching breaks its ties")


if __name__ == "__main__":
    typer.run(main)
