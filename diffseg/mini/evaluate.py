"""How good the embedded model is: scores beside controls, the choice of its defaults, pictures of its attention.

`python -m diffseg.mini.evaluate [FOLDER]`; with --coco DIR also on real photos in COCO's layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich import print
from rich.console import Console
from rich.progress import track
from sklearn.cluster import KMeans

from diffseg.attention import DiffusionModel
from diffseg.datasets.base import Dataset
from diffseg.datasets.coco_stuff import CLASSES, CocoStuff27
from diffseg.datasets.scenes import TEST_SEED, TUNE_SEED, Scenes, scene
from diffseg.eval.metrics import Counts, histogram, match, summarise
from diffseg.eval.run import Segmenter, diffseg, score
from diffseg.segmentation import aggregate, anchor_distances, merge, to_labels
from diffseg.segmenter import DiffSeg


def colour_kmeans(pixels: torch.Tensor, truth: np.ndarray) -> np.ndarray:
    """The control: k-means on the pixels' colours, told the true number of classes."""
    colours = pixels.permute(1, 2, 0).numpy()
    k = max(len(np.unique(truth[truth >= 0])), 1)
    fitted = KMeans(k, n_init=3, random_state=0).fit(colours[4::8, 4::8].reshape(-1, 3))
    return fitted.predict(colours.reshape(-1, 3)).reshape(truth.shape)


def tune(model: DiffusionModel, timesteps: Sequence[int], thresholds: Sequence[float], count: int) -> list[dict]:
    """Scores of every (time step, threshold) on `count` scenes that serve nothing else, best mIoU first."""
    scenes, rows = Scenes(count, TUNE_SEED), []
    for t in timesteps:
        counts: dict[float, list[Counts]] = {tau: [] for tau in thresholds}
        for key in track(scenes.keys, f"t = {t}", console=Console(stderr=True), transient=True):
            attention = aggregate(model.attention(scenes.image(key)[None], t).self_attention)[0]
            distances = anchor_distances(attention, 16)
            for tau in thresholds:
                labels = to_labels(merge(attention, 16, [tau] * 3, distances), (512, 512)).cpu().numpy()
                counts[tau].append(match(histogram(scenes.label(key), labels, len(CLASSES))))
        rows += [{"timestep": t, "threshold": tau} | summarise(c) for tau, c in counts.items()]
    return sorted(rows, key=lambda row: -row["miou"])


GALLERY = (4, 1, 3, 7, 9, 12)  # held-out scenes to show; the first one with its attention
POINTS = ((0.15, 0.3), (0.45, 0.7), (0.65, 0.35), (0.9, 0.6))  # (row, column) as fractions


def attention_picture(model: DiffusionModel, image: np.ndarray, timestep: int, side: int = 160) -> Image.Image:
    """One row per marked position of a photo uint8 [H, W, 3]: its attention at each resolution, and aggregated."""
    pixels = torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None].float()
    maps = model.attention(pixels, timestep).self_attention
    levels = [maps[size][0].view(*size, *size) for size in sorted(maps, reverse=True)] + [aggregate(maps)[0]]
    sheet = Image.new("RGB", (side * (len(levels) + 1), side * len(POINTS)), "white")
    for row, (y, x) in enumerate(POINTS):
        marked = image.copy()
        top, left = int(y * image.shape[0]), int(x * image.shape[1])
        marked[max(top - 10, 0) : top + 10, max(left - 10, 0) : left + 10] = (255, 0, 0)
        shown = [Image.fromarray(marked).resize((side, side))]
        for level in levels:
            one = level[int(y * level.shape[0]), int(x * level.shape[1])]
            grey = (one / one.quantile(0.995)).clamp(0, 1) * 255
            shown.append(Image.fromarray(grey.byte().cpu().numpy()).resize((side, side), Image.Resampling.NEAREST))
        for column, picture in enumerate(shown):
            sheet.paste(picture, (column * side, row * side))
    return sheet


def gallery(seg: DiffSeg, indices: Iterable[int], side: int = 200) -> Image.Image:
    """Held-out scenes above their segments."""
    images = [scene(TEST_SEED, i).image for i in indices]
    sheet = Image.new("RGB", (side * len(images), side * 2), "white")
    for column, image in enumerate(images):
        sheet.paste(Image.fromarray(image).resize((side, side)), (column * side, 0))
        sheet.paste(seg(image).overlay().resize((side, side)), (column * side, side))
    return sheet


def _with_interval(row: dict, name: str) -> str:
    low, high = row["interval"][name]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"


def main(
    folder: Annotated[str, typer.Argument(help="Model to evaluate.")] = "mini",
    scenes: Annotated[int, typer.Option(help="Held-out scenes.")] = 200,
    coco: Annotated[
        Path | None, typer.Option(help="Also score on photos in COCO's layout (val2017/, stuffthingmaps/).")
    ] = None,
    controls: Annotated[bool, typer.Option(help="Also score k-means on colour.")] = True,
    pictures: Annotated[Path | None, typer.Option(help="Write gallery.png and attention.png to this folder.")] = None,
) -> None:
    """Scores a model with its default settings on held-out scenes (and real photos) beside the control."""
    seg = DiffSeg.from_pretrained(folder)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        gallery(seg, GALLERY).save(pictures / "gallery.png")
        shown = scene(TEST_SEED, GALLERY[0]).image
        attention_picture(seg.model, shown, seg.settings().timestep).save(pictures / "attention.png")
    sets: dict[str, Dataset] = {f"{scenes} held-out scenes": Scenes(scenes, TEST_SEED)}
    if coco:
        sets["real photos"] = CocoStuff27(coco, split="all")
    for name, dataset in sets.items():
        methods: dict[str, Segmenter] = {"DiffSeg": diffseg(seg, seg.settings())}
        if controls:
            methods["k-means on colour, true k"] = colour_kmeans
        for method, segment in methods.items():
            row = score(dataset, segment, method)
            print(
                f"{name}: {method}: accuracy {_with_interval(row, 'accuracy')}, mIoU {_with_interval(row, 'miou')}, "
                f"{row['segments']:.1f} segments"
            )


if __name__ == "__main__":
    typer.run(main)
