"""report.html of a run: one page that needs no network. How it looks is in report.html beside this file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffseg.datasets.base import DataError, Dataset
from diffseg.eval.protocols import Matching, Protocol
from diffseg.eval.runs import Run, read_circumstances
from diffseg.eval.score import GRID, Summary, image_scores, read_counts
from diffseg.eval.show.ablations import ablation_in, best_of
from diffseg.eval.show.all_images import write_images
from diffseg.eval.show.confusion import HeatMap, confusion, heat_map
from diffseg.eval.show.examples import HATCH, IGNORED, chosen, example, rule_of_images
from diffseg.eval.show.pages import css, environment, percent, svg_of
from diffseg.eval.show.published import SOURCES, published_beside
from diffseg.eval.show.settings import run_facts
from diffseg.eval.show.tables import is_whole, leading_metrics
from diffseg.eval.show.worth import differences_table, granularity_table, scales_table, worth_table
from diffseg.files import write
from diffseg.images import distinct_colours

_BINS = 20
_METRICS = ("accuracy", "miou", "segments")  # of each image
_OF_REGIONS = ("covering", "pri", "segments")  # where there are no classes


def write_report(run: Run, dataset: Dataset, summary: Summary, protocol: Protocol, command: str = "") -> Path:
    """Writes RUN/report.html and RUN/images.html, and returns the path of the first.

    Args:
        summary: of a scored run. protocol: the one it leads with; see `rule_of_images`. command: that makes it again.

    Raises:
        DataError: an images.parquet is missing or damaged. OSError: the page cannot be written.
    """
    rule = rule_of_images(dataset, protocol)
    images = {name: image_scores(read_counts(run, name)[0], rule, dataset.background) for name in summary["segmenters"]}
    classes = summary["dataset"]["classes"]
    if classes != list(dataset.classes):
        raise DataError(f"{run.summary} is of other classes than the data set has now: score the run again")
    for name, rows in images.items():
        if not dataset.regions and len(rows["table"][0]) != len(classes) + 1:
            raise DataError(f"{run.images(name)} is of other classes than {run.summary.name}: score the run again")
    first = next(iter(images))
    of_image = _OF_REGIONS if dataset.regions else _METRICS
    leading = leading_metrics(summary)
    ablation = ablation_in(summary) if "miou" in leading else None
    beside = published_beside(summary["dataset"]["published"], summary["protocol"], summary["size"])
    beside = beside if is_whole(summary) else []
    worth = len(summary["protocols"]) > 1 and not summary["granularity"]
    record = read_circumstances(run)
    page = (
        environment()
        .get_template("report.html")
        .render(
            run=run,
            summary=summary,
            settings=run_facts(summary, run, dataset, record),
            command=command,
            labels=run.masks.folder if run.masks else None,
            controls=controls_beside(summary),
            told={found["told"] for found in summary["segmenters"].values() if found["told"]},
            leading=leading,
            of_image=of_image,
            regions=dataset.regions,
            published=[row for row in beside if not row["covering"]],
            scales=scales_table([summary], beside) if dataset.regions else None,
            sources=SOURCES,
            ablation=ablation,
            curve=svg_of("drawn", ablation) if ablation else "",
            best=best_of(ablation) if ablation else "",
            confused=confused_in(images[first], classes, protocol, dataset.background),
            worth=worth_table(summary) if worth else None,
            protocols=svg_of("protocols", summary) if worth else "",
            differences=differences_table(summary) if len(summary["segmenters"]) > 1 else None,
            granularity=granularity_table(summary["granularity"]) if summary["granularity"] else None,
            granularities=svg_of("granularities", summary["granularity"]) if summary["granularity"] else "",
            classes=[] if dataset.regions else class_rows(summary, images),
            absent=absent_classes(summary),
            spreads=spreads(images, of_image),
            first=first,
            examples=[
                (title, [example(dataset, row, run.map(first, row["key"])) for row in rows])
                for title, rows in chosen(images[first], of_image[0]).items()
            ],
            ignored=css(IGNORED),
            hatch=[css(c) for c in HATCH],
            config=config_of(run),
            record=record,
        )
    )
    write_images(run, dataset, images[first], first, of_image, example)
    write(run.report, page)
    return run.report


def config_of(run: Run) -> str:
    """config.yaml, for people; the page does not depend on it."""
    try:
        return (run.folder / "config.yaml").read_text(errors="replace")
    except OSError as error:
        return f"config.yaml cannot be read ({error.strerror})"


_EMPTY = {  # settings of methods that are what a control counts
    "one segment": {"_target_": "diffseg.methods.controls.Whole"},
    f"a grid of {GRID} x {GRID}": {"_target_": "diffseg.methods.controls.Grid", "rows": GRID, "columns": GRID},
}


def controls_beside(summary: Summary) -> dict[str, dict[str, Any]]:
    """Scores of what shows nothing of the images, under the leading protocol, unless it is among the segmenters."""
    controls = summary.get("controls", {}).get(summary["protocol"], {})
    tried = [scores["settings"] for scores in summary["segmenters"].values()]
    return {name: scores for name, scores in controls.items() if _EMPTY.get(name) not in tried}


def confused_in(
    images: pd.DataFrame, classes: Sequence[str], protocol: Protocol, background: int | None
) -> HeatMap | None:
    """Which class is taken for which; None under a protocol that gives no classes, or where nothing is counted.

    images: of `image_scores`.
    """
    if not isinstance(protocol, Matching):
        return None
    pixels = confusion(list(images["table"]), protocol, background)
    return heat_map(pixels, classes) if pixels.any() and len(classes) > 1 else None


# --- classes and distributions ----------------------------------------------------------------------------------------


def class_rows(summary: Summary, images: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """A row per class that occurs, the first segmenter's best first: name, colour, share of the pixels, ious."""
    classes = summary["dataset"]["classes"]
    rows = next(iter(images.values()))
    pixels = np.stack([table[:-1].sum(1) for table in rows["table"]]).sum(0)  # [classes]
    shares = pixels / max(pixels.sum(), 1)
    found = []
    for name, colour, share in zip(classes, distinct_colours(len(classes)), shares, strict=True):
        ious = [scores["iou"].get(name) for scores in summary["segmenters"].values() if "iou" in scores]
        if any(iou is not None for iou in ious):
            found.append({"name": name, "colour": colour, "share": float(share), "ious": ious})
    return sorted(found, key=lambda row: (-(row["ious"][0] or 0), -row["share"]))


def absent_classes(summary: Summary) -> list[str]:
    """The classes that occur under none of the segmenters; [] under a protocol that gives no classes."""
    known = [scores["iou"] for scores in summary["segmenters"].values() if "iou" in scores]
    return [name for name in summary["dataset"]["classes"] if known and all(iou[name] is None for iou in known)]


@dataclass(frozen=True)
class Spread:
    """How a metric is spread over images. bars: (how many images, "from to" of the bin); peak: of all segmenters."""

    metric: str
    bars: list[tuple[int, str]]
    peak: int
    median: str
    span: str
    axis: tuple[str, str]


def spreads(images: Mapping[str, pd.DataFrame], metrics: Sequence[str] = _METRICS) -> dict[str, list[Spread]]:
    """{segmenter: a spread for each of two fractions and the number of segments}; one scale for all segmenters."""
    found: dict[str, list[Spread]] = {name: [] for name in images}
    for metric in metrics:
        values = {name: rows[metric].dropna().to_numpy(float) for name, rows in images.items()}
        edges = _edges(metric, values)
        counts = {name: np.histogram(v, edges)[0].tolist() for name, v in values.items()}
        peak = max(max(c) for c in counts.values()) or 1
        for name in images:
            found[name].append(_spread(metric, values[name], edges, counts[name], peak))
    return found


def _edges(metric: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Edges of the bins: twentieths of a fraction; whole numbers of segments."""
    if metric != "segments":
        return np.linspace(0, 1, _BINS + 1)
    most = max([int(v.max()) for v in values.values() if len(v)], default=1)
    width = -(-most // _BINS)
    return np.arange(0, -(-most // width) + 1) * width + 0.5


def _spread(metric: str, values: np.ndarray, edges: np.ndarray, counts: list[int], peak: int) -> Spread:
    if metric == "segments":
        bins = [(f"{low + 0.5:.0f}", f"{high - 0.5:.0f}") for low, high in itertools.pairwise(edges)]
        show: Callable[[float], str] = "{:g}".format
    else:
        bins = [(f"{100 * low:.0f}", f"{100 * high:.0f} %") for low, high in itertools.pairwise(edges)]
        show = percent
    bars = [(n, low if low == high else f"{low} to {high}") for n, (low, high) in zip(counts, bins, strict=True)]
    if not len(values):
        return Spread(metric, bars, peak, "–", "–", (bins[0][0], bins[-1][1]))  # noqa: RUF001
    span = f"{show(float(values.min()))} to {show(float(values.max()))}"
    return Spread(metric, bars, peak, show(float(np.median(values))), span, (bins[0][0], bins[-1][1]))
