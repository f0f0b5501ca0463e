"""report.html of a run on images without labels: how many segments there are, how large, and what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffseg.datasets.base import Dataset, read_map
from diffseg.eval.runs import Run, read_circumstances
from diffseg.eval.show.all_images import write_images
from diffseg.eval.show.examples import HATCH, IGNORED, chosen, unlabelled_example
from diffseg.eval.show.pages import css, environment
from diffseg.eval.show.report import config_of, spreads
from diffseg.eval.show.settings import Fact, made_facts, method_facts
from diffseg.files import write

_METRICS = ("segments", "largest", "median")
_HEADS = ("segments", "largest segment", "median segment")
_PREPARED = {"crop": "of the middle square", "squash": "whatever the shape", "whole": "of a square of equal area"}
_SMALL = 0.01  # of the image: the share of the segments below it is told


def areas_of(run: Run, dataset: Dataset, segmenter: str, keys: Sequence[str]) -> pd.DataFrame:
    """A row per image: key, segments (their number), areas (fractions of the image, falling), largest, median.

    Raises:
        DataError: a label map is missing or damaged.
    """
    rows = []
    for key in keys:
        labels = dataset.crop(read_map(run.map(segmenter, key)))
        pixels = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
        areas = pixels / labels.size
        rows.append(
            {"key": key, "segments": len(areas), "areas": areas, "largest": areas[0], "median": float(np.median(areas))}
        )
    return pd.DataFrame(rows)


def table_rows(images: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """A row per segmenter: segments (mean, least, most), areas of the largest and of the median segment (means over
    images), small (share of all segments that are below 1 % of their image)."""
    rows = []
    for name, found in images.items():
        areas = np.concatenate(list(found["areas"]))
        count = found["segments"]
        facts = {"name": name, "segments": float(count.mean()), "least": int(count.min()), "most": int(count.max())}
        means = {metric: float(found[metric].mean()) for metric in ("largest", "median")}
        rows.append({**facts, **means, "small": float((areas < _SMALL).mean())})
    return rows


def write_unlabelled(run: Run, dataset: Dataset, keys: Sequence[str], what: Sequence[str], command: str = "") -> Path:
    """Writes RUN/report.html and RUN/images.html of images without labels, and returns the path of the first.

    Args:
        keys: of the images that have maps. what: names of the data set and of the model, "" for label maps of others.
            command: that makes it again.

    Raises:
        DataError: a label map is missing or damaged. OSError: a page cannot be written.
    """
    images = {segmenter: areas_of(run, dataset, segmenter, keys) for segmenter in run.segmenters}
    first = run.segmenters[0]
    record = read_circumstances(run)
    kinds = {"Best": "Most segments", "Worst": "Fewest segments"}
    page = (
        environment()
        .get_template("unlabelled.html")
        .render(
            run=run,
            name=what[0],
            settings=_facts(run, dataset, keys, what, record),
            command=command,
            skipped=run.skipped(),
            rows=table_rows(images),
            spreads=spreads(images, _METRICS),
            heads=_HEADS,
            first=first,
            examples=[
                (kinds.get(kind, kind), [unlabelled_example(dataset, row, run.map(first, row["key"])) for row in rows])
                for kind, rows in chosen(images[first], "segments").items()
            ],
            ignored=css(IGNORED),
            hatch=[css(c) for c in HATCH],
            config=config_of(run),
            record=record,
        )
    )
    write_images(run, dataset, images[first], first, ("segments", "largest"), unlabelled_example)
    write(run.report, page)
    return run.report


def _facts(
    run: Run, dataset: Dataset, keys: Sequence[str], what: Sequence[str], record: Mapping[str, Any]
) -> list[Fact]:
    name, model = what
    left_out = len(dataset) - len(keys)
    facts: list[Fact] = [
        ("Data", name, dataset.note),
        ("Images", f"{len(keys):,}", f"{left_out} left out" if left_out else "without labels"),
        ("Size", f"{dataset.size} pixels a side", _PREPARED[dataset.prepare]),
    ]
    if not model:
        facts.append(("Label maps", "from a folder", str(run.masks.folder) if run.masks else ""))
    else:
        facts += [("Model", model, ""), ("Time step t", str(run.identity["timestep"]), "")]
        segmenter, settings = next(iter(run.identity["segmenters"].items()))
        others = f"{segmenter}, the first of {len(run.segmenters)}" if len(run.segmenters) > 1 else ""
        facts += method_facts(settings, others)
    return facts + made_facts(run, record)
