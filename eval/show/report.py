"""report.html of a run: one page that needs no network. How it looks is in report.html beside this file."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from diffseg.datasets.base import DataError, Dataset, read_map
from diffseg.errors import UserError
from diffseg.eval.protocols import Matching, OneToOne, Protocol, Regions
from diffseg.eval.runs import Run, read_circumstances
from diffseg.eval.score import Summary, image_scores, read_counts, read_prediction
from diffseg.eval.show.ablations import ablation_in
from diffseg.eval.show.published import SOURCES, published_beside
from diffseg.eval.show.tables import is_whole, leading_metrics, metric_heading, metric_label, metric_number
from diffseg.eval.show.worth import differences_table, granularity_table, scales_table, worth_table
from diffseg.files import write
from diffseg.images import distinct_colours, overlay

_SHOWN = 4  # best images, and as many of the worst
_SIDE = 320  # pixels of a thumbnail
_BINS = 20
_IGNORED = (154, 160, 166)
_HATCH = ((222, 224, 227), (128, 133, 139))  # of segments matched to no class
_METRICS = ("accuracy", "miou", "segments")  # of each image
_OF_REGIONS = ("covering", "pri", "segments")  # where there are no classes


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


def write_report(run: Run, dataset: Dataset, summary: Summary, protocol: Protocol) -> Path:
    """Writes RUN/report.html and returns its path.

    Args:
        summary: of a scored run. protocol: the one it leads with; see `rule_of_images`.

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
    best, worst = extremes(images[first], of_image[0])
    leading = leading_metrics(summary)
    ablation = ablation_in(summary) if "miou" in leading else None
    beside = published_beside(summary["dataset"]["published"], summary["protocol"], summary["size"])
    beside = beside if is_whole(summary) else []
    worth = len(summary["protocols"]) > 1 and not summary["granularity"]
    page = (
        environment()
        .get_template("report.html")
        .render(
            run=run,
            summary=summary,
            labels=run.masks.folder if run.masks else None,
            told={found["told"] for found in summary["segmenters"].values() if found["told"]},
            leading=leading,
            of_image=of_image,
            regions=dataset.regions,
            published=[row for row in beside if not row["covering"]],
            scales=scales_table([summary], beside) if dataset.regions else None,
            sources=SOURCES,
            ablation=ablation,
            curve=svg_of("drawn", ablation) if ablation else "",
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
                for title, rows in (("Best", best), ("Worst", worst))
                if rows
            ],
            ignored=_css(_IGNORED),
            hatch=[_css(c) for c in _HATCH],
            config=_config(run),
            record=read_circumstances(run),
        )
    )
    write(run.report, page)
    return run.report


def _config(run: Run) -> str:
    """config.yaml, for people; the page does not depend on it."""
    try:
        return (run.folder / "config.yaml").read_text(errors="replace")
    except OSError as error:
        return f"config.yaml cannot be read ({error.strerror})"


def svg_of(figure: str, data: Any) -> str:
    """A figure of `drawing`, by its name there, as an element of a page."""
    from diffseg.eval.show import drawing  # matplotlib, which other pages do not need

    return drawing.inline_svg(getattr(drawing, figure)(data))


def environment() -> Environment:
    """What fills the templates beside this file. Keys, class names and paths come from users: everything is escaped."""
    folder = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"percent": _percent, "share": _share, "data_uri": data_uri, "css": _css}
    made.filters |= {"heading": metric_heading, "label": metric_label, "value": metric_number}
    return made


def _percent(fraction: float | None, digits: int = 1) -> str:
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"  # noqa: RUF001


def _share(fraction: float) -> str:
    return "0" if fraction == 0 else "< 0.1" if fraction < 0.0005 else _percent(fraction)


def _css(colour: Sequence[int]) -> str:
    return "#" + bytes(int(x) for x in colour).hex()


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
        show = _percent
    bars = [(n, low if low == high else f"{low} to {high}") for n, (low, high) in zip(counts, bins, strict=True)]
    if not len(values):
        return Spread(metric, bars, peak, "–", "–", (bins[0][0], bins[-1][1]))  # noqa: RUF001
    span = f"{show(float(values.min()))} to {show(float(values.max()))}"
    return Spread(metric, bars, peak, show(float(np.median(values))), span, (bins[0][0], bins[-1][1]))


# --- examples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One picture of an example, or the reason why there is none. image: PIL, alt: what it shows."""

    title: str
    alt: str = ""
    image: Image.Image | None = None
    error: str = ""


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


def extremes(images: pd.DataFrame, metric: str = "accuracy") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the images with the largest values, best first, and with the least, worst first; none in both."""
    rows = images.dropna(subset=metric).sort_values(metric, ascending=False, kind="stable").to_dict("records")
    best = min(_SHOWN, -(-len(rows) // 2))
    worst = min(_SHOWN, len(rows) - best)
    return rows[:best], rows[::-1][:worst]


def example(dataset: Dataset, row: Mapping[str, Any], path: Path) -> Example:
    """Photo, truth and prediction of an image. What cannot be read any more is replaced by the reason.

    Of regions, the truth is the first annotation, and segments have the colours of the regions they are matched to.

    Args:
        row: of `image_scores`. path: the label map.
    """
    key = row["key"]
    names = dataset.classes or [f"region {number}" for number in range(1, len(row["table"]))]
    colours = distinct_colours(len(names))
    pixels, no_photo = _attempt(lambda: dataset.crop(dataset.photo(key)))
    raw, no_truth = _attempt(lambda: dataset.raw_label(key))
    photo = None if pixels is None else Image.fromarray(pixels).resize(_thumbnail(pixels.shape))
    first = Panel("Photo", f"Photo {key}", photo, no_photo)
    if raw is None:  # without it the size of the map cannot be judged either
        return Example(row, (first, Panel("Truth", error=no_truth), Panel("Prediction", error=no_truth)))
    truth = dataset.fitted(raw)
    present = [int(c) for c in np.argsort(-np.bincount(truth[truth >= 0], minlength=1)) if (truth == c).any()]
    shares = ", ".join(f"{names[c]} {_percent((truth == c).mean(), 0)} %" for c in present)
    second = Panel("Truth", f"Truth of {key}: {shares or 'nothing labelled'}", _paint(truth, colours, hatched=False))
    labels, no_map = _attempt(lambda: read_prediction(path, dataset, raw.shape))
    third, unmatched = Panel("Prediction", error=no_map), False
    if labels is not None:
        numbers, rank = np.unique(labels, return_inverse=True)
        matched = matched_classes(row["table"])
        matched = matched[numbers if numbers[-1] < len(matched) else np.arange(len(numbers))][rank]
        hits = ", ".join(names[c] for c in present if (matched == c).any()) or "no class"
        alt = f"Prediction for {key}: {row['segments']} segments, matched to {hits}"
        third, unmatched = Panel("Prediction", alt, _paint(matched, colours, hatched=True)), bool((matched < 0).any())
    legend = tuple((names[c], colours[c]) for c in present if dataset.classes)
    return Example(row, (first, second, third), legend, bool((truth < 0).any()), unmatched)


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


def _paint(classes: np.ndarray, colours: np.ndarray, hatched: bool) -> Image.Image:
    """A thumbnail of classes int [H, W] in their colours (uint8 [n, 3]); -1 plain grey, or hatched."""
    size = _thumbnail(classes.shape)
    small = np.asarray(Image.fromarray(classes.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    stripe = np.add.outer(*map(np.arange, small.shape)) // 5 % 2 if hatched else 0
    rest = np.array(_HATCH if hatched else [_IGNORED], np.uint8)[stripe]
    return Image.fromarray(np.where((small < 0)[..., None], rest, colours[small]))


def _thumbnail(shape: Sequence[int]) -> tuple[int, int]:
    """The (width, height) of a thumbnail of a picture [H, W, ...], its longer side `_SIDE`."""
    height, width = (max(1, round(_SIDE * side / max(shape[:2]))) for side in shape[:2])
    return width, height


def data_uri(image: Image.Image, kind: str) -> str:
    """The image inside an address: JPEG for photos, PNG for flat colours (smaller, and its edges stay sharp)."""
    file = io.BytesIO()
    image.save(file, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
