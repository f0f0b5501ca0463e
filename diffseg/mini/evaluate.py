"""How good the embedded model is: scores beside controls, the choice of its defaults, pictures of its attention.

`python -m diffseg.mini.evaluate [FOLDER]`; with --coco DIR also on real photos in COCO's layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich import print
from sklearn.cluster import KMeans
from tqdm import tqdm

from diffseg.attention import DiffusionModel
from diffseg.datasets.coco_stuff import CLASSES, CocoStuff27
from diffseg.datasets.scenes import TEST_SEED, TUNE_SEED, Scenes
from diffseg.eval.metrics import Counts, histogram, match, summarise
from diffseg.eval.run import Dataset, Segmenter, diffseg, score
from diffseg.segmentation import aggregate, merge, to_labels
from diffseg.segmenter import DiffSeg

def colour_kmeans(pixels: torch.Tensor, truth: np.ndarray) -> np.ndarray:
    """The control: k-means on the pixels' colours, told the true number of classes."""
    colours = pixels.permute(1, 2, 0).numpy()
    k = max(len(np.unique(truth[truth >= 0])), 1)
    fitted = KMeans(k, n_init=3, random_state=0).fit(colours[4::8, 4::8].reshape(-1, 3))
    return fitted.predict(colours.reshape(-1, 3)).reshape(truth.shape)


def tune(model: DiffusionModel, timesteps: Iterable[int], thresholds: Iterable[float], count: int = 40) -> list[dict]:
    """Scores of every (time step, threshold) on scenes that serve nothing else, best mIoU first."""
    scenes, thresholds = Scenes(count, TUNE_SEED), list(thresholds)
    rows = []
    for t in timesteps:
        counts: dict[float, list[Counts]] = {tau: [] for tau in thresholds}
        for key in tqdm(scenes.keys, f"t = {t}", leave=False):
            attention = aggregate(model.attention(scenes.image(key)[None], t).self_attention)[0]
            for tau in thresholds:
                labels = to_labels(merge(attention, 16, [tau] * 3), (512, 512)).numpy()
                counts[tau].append(match(histogram(scenes.label(key), labels, len(CLASSES))))
        rows += [{"timestep": t, "threshold": tau, **summarise(c)} for tau, c in counts.items()]
    return sorted(rows, key=lambda row: -row["miou"])


def anchor_picture(model: DiffusionModel, pixels: torch.Tensor, timestep: int, side: int = 160) -> Image.Image:
    """For four positions (rows): the photo with the position marked, its map at each resolution, and aggregated."""
    maps = model.attention(pixels[None], timestep).self_attention
    levels = [*(m[0].view(*size, *size) for size, m in sorted(maps.items(), reverse=True)), aggregate(maps)[0]]
    photo = ((pixels.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
    sheet = Image.new("RGB", (side * (len(levels) + 1), side * 4), "white")
    for row, (y, x) in enumerate([(0.2, 0.3), (0.45, 0.7), (0.65, 0.4), (0.9, 0.6)]):
        marked = photo.copy()
        top, left = int(y * photo.shape[0]), int(x * photo.shape[1])
        marked[max(top - 10, 0) : top + 10, max(left - 10, 0) : left + 10] = (255, 0, 0)
        sheet.paste(Image.fromarray(marked).resize((side, side)), (0, row * side))
        for column, level in enumerate(levels, 1):
            h, w = level.shape[:2]
            one = level[int(y * h), int(x * w)]
            grey = (one / one.quantile(0.995)).clamp(0, 1) * 255
            sheet.paste(
                Image.fromarray(grey.byte().numpy()).resize((side, side), Image.Resampling.NEAREST),
                (column * side, row * side),
            )
    return sheet


def main(
    folder: Annotated[str, typer.Argument(help="Model to evaluate.")] = "mini",
    scenes: Annotated[int, typer.Option(help="Held-out scenes.")] = 200,
    coco: Annotated[
        Path | None, typer.Option(help="Also score on photos in COCO's layout (val2017/, stuffthingmaps/).")
    ] = None,
    controls: Annotated[bool, typer.Option(help="Also score k-means on colour.")] = True,
) -> None:
    """Scores a model with its default settings on held-out scenes (and real photos) beside the control."""
    seg = DiffSeg.from_pretrained(folder)
    sets: dict[str, Dataset] = {f"{scenes} held-out scenes": Scenes(scenes, TEST_SEED)}
    if coco:
        sets["real photos"] = CocoStuff27(coco)
    for name, dataset in sets.items():
        methods: dict[str, Segmenter] = {"DiffSeg": diffseg(seg, seg.settings())}
        if controls:
            methods["k-means on colour, true k"] = colour_kmeans
        for method, segment in methods.items():
            row = score(dataset, segment, method)
            print(
                f"{name}: {method}: accuracy {row['accuracy']:.3f}, mIoU {row['miou']:.3f}, "
                f"{row['segments']:.1f} segments"
            )


if __name__ == "__main__":
    typer.run(main)
