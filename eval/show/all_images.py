"""images.html of a run: every image once, sorted by score, segments or name; a click enlarges its pictures.

The page holds its pictures itself. So that it stays below some 20 MB whatever the data set, they are smaller where
there are many, and beyond MOST images only that many have pictures, evenly drawn from the worst to the best; the others
are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffseg.datasets.base import Dataset
from diffseg.eval.runs import Run
from diffseg.eval.show.examples import HATCH, IGNORED, Example
from diffseg.eval.show.pages import css, environment
from diffseg.files import write

MOST = 1000  # images with pictures
_SIDES = ((150, 256), (400, 192), (MOST, 128))  # up to so many images: pixels of a picture's longer side

Draw = Callable[[Dataset, Mapping[str, Any], Path, int], Example]


def side_of(count: int) -> int:
    """Pixels of the longer side of each picture, where `count` images have some."""
    return next(side for most, side in _SIDES if count <= most)


def pictured(images: pd.DataFrame, metric: str) -> np.ndarray:
    """Positions of the images that have pictures, int64 [at most MOST], by falling value: evenly from best to worst."""
    order = np.argsort(-images[metric].to_numpy(float), kind="stable")  # images without a value come last
    return order[np.linspace(0, len(order) - 1, min(len(order), MOST)).round().astype(int)]


def write_images(
    run: Run, dataset: Dataset, images: pd.DataFrame, segmenter: str, metrics: tuple[str, ...], draw: Draw
) -> Path:
    """Writes RUN/images.html and returns its path.

    Args:
        images: a row per image: key, segments, and the metrics, of which the first is the one to sort by at first.
        draw: gives the pictures of a row: (data set, row, label map, side).

    Raises:
        OSError: the page cannot be written.
    """
    chosen = pictured(images, metrics[0])
    rows, side = images.to_dict("records"), side_of(len(chosen))

    shown = set(chosen.tolist())
    examples = []
    for position in chosen.tolist():
        row = rows[position]
        examples.append(draw(dataset, row, run.map(segmenter, row["key"]), side))
    page = (
        environment()
        .get_template("images.html")
        .render(
            name=run.name,
            report=run.report.name,
            segmenter=segmenter,
            metrics=metrics,
            examples=examples,
            rest=[row for position, row in enumerate(rows) if position not in shown],
            count=len(rows),
            regions=dataset.regions,
            labelled=dataset.labelled,
            ignored=css(IGNORED),
            hatch=[css(c) for c in HATCH],
        )
    )
    write(run.pictures, page)
    return run.pictures
