"""The choice of the embedded model's defaults, and pictures of its attention: `python -m diffseg.mini.evaluate`.

Its scores are those of `diffseg-eval experiment=controls dataset.count=200`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from tqdm import tqdm

from diffseg.attention import Look, Needs
from diffseg.backbones.base import Backbone
from diffseg.datasets.coco_stuff import CLASSES
from diffseg.datasets.scenes import TEST_SEED, TUNE_SEED, Scenes, scene
from diffseg.eval.metrics import Counts, histogram, match, score_metrics, standard_errors, statistics_of, summarise
from diffseg.methods.merging import Merging
from diffseg.segmentation import aggregate
from diffseg.segmenter import DiffSeg


def tune(model: Backbone, timesteps: Sequence[int], thresholds: Sequence[float], count: int) -> list[dict]:
    """Scores of every (time step, threshold) on `count` scenes that serve nothing else, best mIoU first.

    "miou_error" is the jackknife's standard error of the mIoU over the scenes.
    """
    scenes, rows = Scenes(count, TUNE_SEED), []
    for t in timesteps:
        counts: dict[float, list[Counts]] = {tau: [] for tau in thresholds}
        for key in tqdm(scenes.keys, f"t = {t}", mininterval=5):
            image = DiffSeg(model).observe_pixels(scenes.image(key)[None], t, (512, 512))
            for tau in thresholds:
                labels = Merging(tau).segment(image)
                counts[tau].append(match(histogram(scenes.label(key), labels, len(CLASSES))))
        for tau, found in counts.items():
            error = standard_errors(statistics_of(found), score_metrics)["miou"]
            rows.append({"timestep": t, "threshold": tau} | summarise(found) | {"miou_error": error})
    return sorted(rows, key=lambda row: -row["miou"])


POINTS = ((0.15, 0.3), (0.45, 0.7), (0.65, 0.35), (0.9, 0.6))  # (row, column) as fractions


def attention_picture(model: Backbone, image: np.ndarray, timestep: int, side: int = 160) -> Image.Image:
    """One row per marked position of a photo uint8 [H, W, 3]: its attention at each resolution, and aggregated."""
    pixels = torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None].float()
    maps = model.observe(pixels, Needs(attention=True), Look(timestep)).self_attention
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


def main(
    out: Annotated[Path, typer.Argument(help="The picture's name.")] = Path("diffseg/mini/attention.png"),
    folder: Annotated[str, typer.Option(help="Model to show.")] = "mini",
    index: Annotated[int, typer.Option(help="Number of the held-out scene.")] = 4,
) -> None:
    """Draws the attention of one held-out scene."""
    model = DiffSeg.from_pretrained(folder)
    attention_picture(model.model, scene(TEST_SEED, index).image, model.settings().timestep).save(out)


if __name__ == "__main__":
    typer.run(main)
