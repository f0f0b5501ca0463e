"""Figures for papers and pages: data in, a matplotlib Figure or a PIL image out; the commands are in figures.py.

matplotlib is imported when something is drawn, and never pyplot: a Figure needs no screen.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from diffseg.attention import Maps
from diffseg.errors import UserError
from diffseg.eval.granularity import Granularity
from diffseg.eval.score import Summary
from diffseg.eval.show.ablations import Ablation, Crossed, weights_name
from diffseg.eval.show.worth import headline_values, metric_label
from diffseg.eval.tune import Scores, Tuning, marks, sheet_columns
from diffseg.files import write
from diffseg.images import overlay, region_colours, write_names
from diffseg.methods.merging import Settings, labels_of, proposals
from diffseg.segmentation import anchor_grid, to_labels
from diffseg.segmenter import DiffSeg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_WIDTH = 8.3  # inches: a README's width at 100 dots an inch
_DPI = 200  # of PNGs: sharp on screens with two pixels for each
GALLERY_WIDTH = round(_WIDTH * _DPI)
_SIDE = 512  # pixels of a picture inside a figure, at most
_INK, _MUTED, _LINE = "#1c2024", "#636b74", "#dfe2e6"  # the colours of report.html
_MARKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito: apart for colour-blind eyes, too
_EMPTY = ("diffseg.methods.controls.Grid", "diffseg.methods.controls.Whole")  # show nothing of the image
_METRICS = (("accuracy", "accuracy (%)", 100), ("miou", "mIoU (%)", 100), ("segments", "segments per image", 1))


@contextmanager
def _style(text_as_text: bool = False) -> Iterator[None]:
    """The look of all figures, for drawing and for saving. text_as_text: not outlines, but letters for the reader."""
    import matplotlib

    options: Any = {
        "axes.edgecolor": _MUTED,
        "axes.grid": True,
        "axes.labelcolor": _INK,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 9,
        "font.size": 9,
        "grid.color": _LINE,
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "svg.fonttype": "none" if text_as_text else "path",
        "svg.hashsalt": "diffseg",  # the same figure gives the same file
        "text.color": _INK,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "xtick.color": _MUTED,
        "xtick.labelcolor": _INK,
        "ytick.color": _MUTED,
        "ytick.labelcolor": _INK,
    }
    with matplotlib.rc_context(options):
        yield


def _figure(height: float, width: float = _WIDTH) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


# --- curves -----------------------------------------------------------------------------------------------------------


def drawn(ablation: Ablation | Crossed) -> Figure:
    """Curves over the key that varies; a heat map where two do."""
    return heat_map(ablation) if isinstance(ablation, Crossed) else curves(ablation)


def heat_map(crossed: Crossed) -> Figure:
    """mIoU over the values of two keys that vary, a cell for each pair; the best is framed."""
    rows, columns = crossed.rows, crossed.columns
    miou = np.array([[crossed.found[r, c]["miou"] for c in columns.values] for r in rows.values], float) * 100
    with _style():
        figure = _figure(1.0 + 0.24 * len(rows.values))
        axes = figure.subplots()
        mesh = axes.pcolormesh(miou, cmap="viridis", edgecolor="white", linewidth=0.5)
        axes.set_yticks(np.arange(len(rows.values)) + 0.5, [rows.text(value) for value in rows.values])
        axes.set_xticks(np.arange(len(columns.values)) + 0.5, [columns.text(value) for value in columns.values])
        axes.set_ylabel(rows.label)
        axes.set_xlabel(columns.label)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        best = np.unravel_index(np.nanargmax(miou), miou.shape) if np.isfinite(miou).any() else None
        if len(columns.values) <= 24:  # else the numbers would touch
            for (row, column), value in np.ndenumerate(miou):
                shade = mesh.to_rgba(value)
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    "" if math.isnan(value) else f"{value:.1f}",
                    ha="center",
                    va="center",
                    fontweight="bold" if (row, column) == best else "normal",
                    color="white" if np.dot(shade[:3], (0.299, 0.587, 0.114)) < 0.5 else "black",
                )
        if best is not None:
            from matplotlib.patches import Rectangle

            corner = int(best[1]), int(best[0])
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_MARKS[1], linewidth=2.5))
        title = "; ".join(filter(None, ["mIoU (%)", crossed.title]))
        figure.suptitle(title, x=0.005, ha="left", fontsize=9, color=_MUTED)
    return figure


def curves(ablation: Ablation) -> Figure:
    """Accuracy, mIoU (with their 95 % intervals) and mean number of segments over the values of the key that varies.

    Numbers make curves, with the value otherwise used as a dashed line; other values make one row each, and the value
    otherwise used has a grey band and bold letters. The best accuracy and the best mIoU have a ring.
    """
    draw = _scale if ablation.numeric else _rows
    with _style():
        figure = _figure(2.5 if ablation.numeric else 1.15 + 0.24 * len(ablation.values))
        panels = figure.subplots(1, 3, sharex=ablation.numeric, sharey=not ablation.numeric)
        for axes, (metric, title, unit), colour in zip(panels, _METRICS, _MARKS, strict=False):
            axes.set_title(title, loc="left")
            found = np.array([f[metric] for f in ablation.found], float) * unit
            missing = [[math.nan, math.nan]] * len(found)
            spread = [f["interval"][metric] for f in ablation.found] if metric != "segments" else missing
            draw(axes, ablation, found, np.array(spread, float) * unit, colour)
            if metric != "segments" and np.isfinite(found).any() and len(found) > 1:
                best = int(np.nanargmax(found))
                place = (ablation.values[best], found[best]) if ablation.numeric else (found[best], best)
                axes.scatter(*place, s=80, facecolors="none", edgecolors=_INK, zorder=4)
        _head(figure, ablation, panels[0])
    return figure


def _scale(axes: Axes, ablation: Ablation, found: np.ndarray, spread: np.ndarray, colour: str) -> None:
    """A curve. found: [values]. spread: [values, 2], low and high; NaN: there is none."""
    axes.fill_between(ablation.values, spread[:, 0], spread[:, 1], color=colour, alpha=0.2, linewidth=0)
    axes.plot(ablation.values, found, color=colour, marker="o", label=ablation.key)
    axes.set_xlabel(ablation.label)
    if min(np.diff(ablation.values)) > 0.12 * np.ptp(ablation.values):  # else the numbers would touch
        axes.set_xticks(ablation.values, [ablation.text(v) for v in ablation.values])
    if 0 < 20 * found.min() < found.max():  # numbers of segments explode at small thresholds
        _log_scale(axes)
    else:
        axes.set_ylim(0, 1.06 * np.nanmax([found.max(), *spread[:, 1]]))  # from 0, or small differences look large
    if ablation.usual:
        axes.axvline(ablation.usual.value, color=_INK, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1.9)


def _log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.minorticks_off()


def _rows(axes: Axes, ablation: Ablation, found: np.ndarray, spread: np.ndarray, colour: str) -> None:
    """A point with its interval for each value, the first on top; arguments as for `_scale`."""
    rows = np.arange(len(found))
    axes.hlines(rows, spread[:, 0], spread[:, 1], color=colour, alpha=0.35, linewidth=4)
    axes.plot(found, rows, color=colour, marker="o", markersize=6, linestyle="")
    axes.set_yticks(rows, [ablation.text(v) for v in ablation.values])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.06 * np.nanmax([found.max(), *spread[:, 1]]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    if ablation.usual and ablation.usual.value in ablation.values:
        usual = ablation.values.index(ablation.usual.value)
        axes.axhspan(usual - 0.5, usual + 0.5, color=_LINE, alpha=0.6, linewidth=0, zorder=0)
        if labels := axes.get_yticklabels():  # the first panel's, which the others share
            labels[usual].set_fontweight("bold")


def _head(figure: Figure, ablation: Ablation, axes: Axes) -> None:
    """One line above the panels: what was measured, and what the marks stand for."""
    key = "" if ablation.numeric else ablation.label
    parts = filter(None, [key, ablation.title, "with 95 % intervals; ring: the best"])
    figure.suptitle("; ".join(parts), x=0.005, ha="left", fontsize=9, color=_MUTED)
    if ablation.usual and (ablation.numeric or ablation.usual.value in ablation.values):
        marks = axes.lines[-1:] if ablation.numeric else axes.patches[-1:]
        text = f"{ablation.usual.whose}: {ablation.text(ablation.usual.value)}"
        figure.legend(marks, [text], loc="upper right", frameon=False, borderpad=0, borderaxespad=0.3, fontsize=9)


def protocols(summary: Summary) -> Figure:
    """A line for each segmenter over the protocols: how far a number moves, and who overtakes whom.

    Controls that show nothing of the image are dashed and grey, those that are told something of the truth dotted.
    """
    values = headline_values(summary)
    with _style():
        figure = _figure(3.6)
        axes = figure.subplots()
        ends = []
        for index, name in enumerate(summary["segmenters"]):
            heights = [math.nan if v[name] is None else 100 * float(v[name] or 0) for v in values.values()]
            scores = summary["segmenters"][name]
            empty = scores["settings"].get("_target_", "").startswith(_EMPTY)
            look: dict[str, Any] = {"linestyle": ":"} if scores["told"] else {}
            look |= {"color": _MUTED, "linestyle": (0, (4, 3))} if empty else {}
            axes.plot(range(len(values)), heights, marker="o", **{"color": _MARKS[index % len(_MARKS)], **look})
            ends.append((heights[-1], name))
        for height, name in _apart(ends, 5):
            axes.annotate(name, (len(values) - 1, height), (8, 0), textcoords="offset points", va="center")
        labels = [f"{rule}\n{metric_label(summary['headlines'][rule])}" for rule in values]
        axes.set_xticks(range(len(values)), labels)
        axes.set_ylim(0, 100)
        axes.set_ylabel("%")
        axes.grid(axis="x", visible=False)
        facts = summary["dataset"]
        title = f"The same label maps under {len(values)} protocols: {facts['name']}, {summary['images']:,} images"
        figure.suptitle(title, x=0.005, ha="left", fontsize=9, color=_MUTED)
    return figure


def _apart(ends: Sequence[tuple[float, str]], gap: float) -> list[tuple[float, str]]:
    """Heights of labels, moved up so that no two are nearer than `gap`."""
    placed: list[tuple[float, str]] = []
    for height, name in sorted(ends):
        lowest = placed[-1][0] + gap if placed else -math.inf
        placed.append((max(height, lowest), name))
    return placed


def granularities(curves: Mapping[str, Mapping[str, Granularity]]) -> Figure:
    """A panel for each protocol that all have: its metric over the mean number of segments, one curve for each name.

    The best common setting of each is marked.
    """
    rules = [rule for rule in next(iter(curves.values())) if all(rule in own for own in curves.values())]
    with _style():
        figure = _figure(2.9)
        panels = figure.subplots(1, len(rules), sharex=True, squeeze=False)[0]
        for axes, rule in zip(panels, rules, strict=True):
            for (name, own), colour in zip(curves.items(), itertools.cycle(_MARKS), strict=False):
                curve = own[rule]
                axes.plot(curve["segments"], [100 * v for v in curve["values"]], "o-", color=colour, label=name)
                best = curve["segments"][curve["settings"].index(curve["ods_setting"])]
                axes.plot(best, 100 * curve["ods"], "o", color=colour, markersize=8, markerfacecolor="none")
            axes.set_xscale("log", base=2)
            every = [count for own in curves.values() for count in own[rule]["segments"]]
            axes.set_xticks(np.geomspace(min(every), max(every), 4), minor=False)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:.1f}" if x < 10 else f"{x:.0f}")
            axes.minorticks_off()
            axes.set_ylim(0, 100)
            axes.set_title(f"{rule}: {metric_label(next(iter(curves.values()))[rule]['metric'])} (%)", loc="left")
            axes.set_xlabel("segments per image")
        if len(curves) > 1:
            panels[0].legend(frameon=False)
    return figure


# --- thresholds -------------------------------------------------------------------------------------------------------


def threshold_curves(tuning: Tuning) -> Figure:
    """Segments over tau, each photo and the median; where some have labels, mIoU with its 95 % and accuracy beside."""
    taus, scores = tuning.thresholds, tuning.scores
    with _style():
        figure = _figure(2.9)
        panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
        left = panels[0]
        many = len(tuning.segments) > 1
        for counts in tuning.segments.values():
            left.plot(taus, counts, color=_MARKS[0], alpha=0.25 if many else 1, linewidth=0.8)
        if many:
            left.plot(taus, tuning.median, "o-", color=_MARKS[0], label="median")
        left.set_yscale("log")
        left.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        left.yaxis.set_minor_formatter(lambda y, _: "")
        left.set_title("segments per photo", loc="left")
        if scores:
            _threshold_scores(panels[1], taus, scores)
        for axes in panels:
            axes.axvline(taus[tuning.default], color=_MUTED, linestyle="--", linewidth=0.8, label="the model's own")
            axes.set_xlabel("tau (nats)")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.legend(frameon=False, fontsize=7)
    return figure


def _threshold_scores(axes: Axes, taus: Sequence[float], scores: Scores) -> None:
    """mIoU with its interval, and accuracy, over tau; the best is marked."""
    axes.plot(taus, 100 * scores.miou, "o-", color=_MARKS[1], label="mIoU, 95 % over photos")
    axes.fill_between(taus, *(100 * scores.miou_intervals.T), color=_MARKS[1], alpha=0.15, linewidth=0)
    axes.plot(taus, 100 * scores.accuracy, "o-", color=_MARKS[2], label="accuracy")
    axes.axvline(taus[scores.best], color=_INK, linewidth=0.8, label="best mIoU")
    axes.set_ylim(0, 100)
    axes.set_title(f"scores on {_count(scores.photos, 'labelled photo')} (%)", loc="left")


def contact_sheet(tuning: Tuning, gap: int = 6, line: int = 18) -> Image.Image:
    """Some photos down, some thresholds across, in each place the overlay and its number of segments.

    Args:
        gap: between pictures, in pixels. line: height of a line of text.
    """
    columns, marked = sheet_columns(tuning), marks(tuning)
    width = max(strip.photo.shape[1] for strip in tuning.strips.values()) + gap
    heights = [strip.photo.shape[0] + line + gap for strip in tuning.strips.values()]
    sheet = Image.new("RGB", ((len(columns) + 1) * width, 2 * line + sum(heights)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, index in enumerate(columns, start=1):
        draw.text((column * width, 2), f"tau {tuning.thresholds[index]:g}", _INK, font)
        draw.text((column * width, 2 + line), marked.get(index, ""), _MUTED, font)
    top = 2 * line
    for (name, strip), height in zip(tuning.strips.items(), heights, strict=True):
        letters = next(n for n in range(len(name), -1, -1) if draw.textlength(name[:n], font) <= width - gap)
        draw.text((0, top), name[:letters], _MUTED, font)
        sheet.paste(Image.fromarray(strip.photo), (0, top + line))
        for column, index in enumerate(columns, start=1):
            count = _count(int(tuning.segments[name][index]), "segment")
            draw.text((column * width, top), count, _MUTED, font)
            sheet.paste(overlay(strip.photo, strip.labels[index]), (column * width, top + line))
        top += height
    return sheet


# --- how the method works ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """What the method makes of one photo, step by step.

    photo: uint8 [H, W, 3]. maps: {(h, w): [h*w, h*w]}. attention: [h, w, h, w], aggregated. proposals: [K, h, w] after
    each iteration. labels: int [H, W], the result, larger segments first. settings: what it was made with.
    """

    photo: np.ndarray
    maps: Maps
    attention: Tensor
    proposals: tuple[Tensor, ...]
    labels: np.ndarray
    settings: Settings


@torch.no_grad()
def observe(seg: DiffSeg, photo: np.ndarray, settings: Settings) -> Steps:
    """Segments a photo uint8 [H, W, 3] and keeps every step. One pass of the UNet."""
    image = seg.observe_as(photo, settings)
    plain = replace(settings, refine=False)
    merged = [proposals(image, plain, settings.threshold[:n]) for n in range(1, len(settings.threshold) + 1)]
    labels, _ = labels_of(proposals(image, settings), image.size)
    flat = {size: maps[0].cpu() for size, maps in image.batch.seen().self_attention.items()}
    attention = image.attention(settings.weights).cpu()
    return Steps(photo, flat, attention, tuple(p.cpu() for p in merged), labels.cpu().numpy(), settings)


def overview(steps: Steps, count: int = 3) -> Figure:
    """The method at a glance: attention of `count` anchors by resolution, aggregated, proposals merging, segments."""
    steps = _shrunk(steps)
    ratio = steps.photo.shape[0] / steps.photo.shape[1]
    sizes = sorted(steps.maps, key=lambda size: -size[0] * size[1])
    below = len(steps.proposals) + 2
    with _style():
        cell = _WIDTH / (len(sizes) + 1 + count)  # the photo is as high as all rows, so about `count` cells wide
        heights = count * cell * ratio + 0.6, _WIDTH / below * ratio + 0.6
        figure = _figure(sum(heights))
        parts: Any = figure.subfigures(2, 1, height_ratios=heights)
        _attention_panels(parts[0], steps, sizes, _anchors_to_show(steps, count))
        _merging_panels(parts[1], steps)
    return figure


def _shrunk(steps: Steps) -> Steps:
    """With photo and labels of at most the size that a figure needs."""
    photo, labels = _fit(steps.photo, steps.labels)
    return Steps(photo, steps.maps, steps.attention, steps.proposals, labels, steps.settings)


def _fit(photo: np.ndarray, labels: np.ndarray, side: int = _SIDE) -> tuple[np.ndarray, np.ndarray]:
    """A photo and its labels, no longer than `side`."""
    shrink = min(1, side / max(photo.shape[:2]))
    return _resized(photo, labels, (round(photo.shape[1] * shrink), round(photo.shape[0] * shrink)))


def _resized(photo: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A photo and its labels at a size (width, height)."""
    small = Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)), np.asarray(small)


def _anchors_to_show(steps: Steps, count: int) -> list[tuple[int, int]]:
    """(row, column) on the finest map of an anchor deep inside each of the `count` largest segments.

    Where there are fewer segments, the next ones lie far from those before.
    """
    size = steps.attention.shape[0], steps.attention.shape[1]
    grid = anchor_grid(steps.settings.anchors, size).numpy()
    labels = np.asarray(Image.fromarray(steps.labels.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST))
    chosen: list[int] = []
    for index in range(min(count, len(grid))):
        inside = np.pad(labels == index, 1)  # the picture's border is a border, too
        depth = distance_transform_edt(inside)[grid[:, 0] + 1, grid[:, 1] + 1]
        if not depth.any():
            gaps = np.linalg.norm(grid[:, None] - grid[chosen], axis=-1)
            depth = gaps.min(1)
        depth[chosen] = -1
        chosen.append(int(depth.argmax()))
    return [(int(row), int(column)) for row, column in grid[chosen]]


def _attention_panels(
    figure: SubFigure, steps: Steps, sizes: Sequence[tuple[int, int]], anchors: Sequence[tuple[int, int]]
) -> None:
    """The photo with the anchors marked; a row of maps for each anchor, by resolution, then aggregated."""
    _section(
        figure, f"Self-attention of {len(anchors)} anchors, from one pass of the UNet at t = {steps.settings.timestep}"
    )
    wide = len(anchors) + 0.25  # as high as the rows and the gaps between them
    grid = figure.add_gridspec(len(anchors), len(sizes) + 2, width_ratios=[wide] + [1] * (len(sizes) + 1))
    photo = figure.add_subplot(grid[:, 0], anchor="N")
    _picture(photo, steps.photo, "photo")
    h, w = steps.attention.shape[:2]
    for row, (y, x) in enumerate(anchors):
        colour = _MARKS[row % len(_MARKS)]
        spot = (x + 0.5) / w * steps.photo.shape[1], (y + 0.5) / h * steps.photo.shape[0]
        photo.plot(*spot, "o", markersize=13, color=colour, markeredgecolor="white", markeredgewidth=1.2)
        photo.annotate(f"{row + 1}", spot, color="white", weight="bold", size=8, ha="center", va="center_baseline")
        levels = [steps.maps[n].view(*n, *n) for n in sizes] + [steps.attention]
        names = [f"{c} × {r}" for r, c in sizes] + ["aggregated"]  # noqa: RUF001
        for column, (level, name) in enumerate(zip(levels, names, strict=True), start=1):
            axes = figure.add_subplot(grid[row, column])
            one = level[int((y + 0.5) / h * level.shape[0]), int((x + 0.5) / w * level.shape[1])]
            _picture(axes, _heat(one), name if row == 0 else "", steps.photo.shape, colour)


def _heat(one: Tensor) -> np.ndarray:
    """A map [h, w] in colours uint8 [h, w, 3], the brightest half percent alike: single peaks would hide the rest."""
    import matplotlib

    shade = (one / one.quantile(0.995)).clamp(0, 1).numpy()
    return (matplotlib.colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8)


def _merging_panels(figure: SubFigure, steps: Steps) -> None:
    """The anchors, the proposals after each iteration, and the segments."""
    m, taus = steps.settings.anchors, steps.settings.threshold
    same = f"τ = {taus[0]:g}" if len(set(taus)) == 1 else "τ = " + ", ".join(f"{t:g}" for t in taus)
    _section(figure, f"Merging of {m} × {m} anchors, {same}; a pixel belongs to the proposal that is largest there")  # noqa: RUF001
    start, *panels, end = figure.subplots(1, len(steps.proposals) + 2)
    height, width = steps.labels.shape
    _picture(start, steps.photo, f"anchors\n{m * m} maps")
    h, w = steps.attention.shape[:2]
    rows, columns = anchor_grid(m, (h, w)).numpy().T
    start.plot((columns + 0.5) / w * width, (rows + 0.5) / h * height, "o", color="white", markersize=1.6)
    for number, (axes, merged) in enumerate(zip(panels, steps.proposals, strict=True), start=1):
        labels = to_labels(merged, (height, width)).numpy()
        _picture(axes, shades(labels, steps.labels), f"iteration {number}\n{_count(len(merged), 'proposal')}")
    found = len(np.unique(steps.labels))
    refined = "refined" if steps.settings.refine else "result"
    _picture(end, np.asarray(overlay(steps.photo, steps.labels)), f"{refined}\n{_count(found, 'segment')}")


def shades(labels: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Labels int [H, W] in the colours of the segments they are on the way to, uint8 [H, W, 3].

    Each has the colour that most of its pixels have in the result (int [H, W], colours of `overlay`), in another
    brightness for each piece of a segment.
    """
    shared = np.zeros((labels.max() + 1, result.max() + 1), np.int64)
    np.add.at(shared, (labels, result), 1)
    owner = shared.argmax(1)
    piece = (np.tril(owner[:, None] == owner, -1) & shared.any(1)).sum(1)  # 0, 1, 2 ... within its segment
    light = 1 - 0.5 * (piece * 0.618034 % 1)
    return (region_colours(result)[owner] * light[:, None]).astype(np.uint8)[labels]


def _section(figure: SubFigure, text: str) -> None:
    figure.suptitle(text, x=0.005, ha="left", fontsize=9.5)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _picture(
    axes: Axes, picture: np.ndarray, title: str, shape: Sequence[int] | None = None, frame: str | None = None
) -> None:
    """A picture uint8 [H, W, 3] without ticks; drawn in the shape of another [H, W, ...], and framed, where asked."""
    height, width = (shape or picture.shape)[:2]
    axes.imshow(picture, interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axes.set_title(title, fontsize=8.5, linespacing=1.3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=1.2)


# --- the weights R ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_weights(seg: DiffSeg, photo: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """Labels int [H, W] of a photo uint8 [H, W, 3] with R proportional, equal, and each resolution alone, by name."""
    image = seg.observe_as(photo, settings)
    sizes = sorted(image.batch.seen().self_attention, key=lambda size: -size[0] * size[1])
    names = [f"{c}" if r == c else f"{c} × {r}" for r, c in sizes]  # noqa: RUF001
    alone = [[float(one == size) for one in sizes] for size in sizes]
    found = {}
    for weights in (None, [1.0] * len(sizes), *(alone if len(sizes) > 1 else [])):
        weighted = replace(settings, weights=None if weights is None else tuple(weights))
        labels, _ = labels_of(proposals(image, weighted), image.size)
        found[weights_name(weights, names)] = labels.cpu().numpy()
    return found


def weights_effect(photo: np.ndarray, found: Mapping[str, np.ndarray]) -> Figure:
    """A photo uint8 [H, W, 3] beside its segmentations (labels int [H, W]) with different weights R, by name."""
    columns = math.ceil(len(found) / 2)
    with _style():
        cell = _WIDTH / (columns + 2)
        figure = _figure(2 * (cell * photo.shape[0] / photo.shape[1] + 0.4))
        grid = figure.add_gridspec(2, columns + 2)
        _picture(figure.add_subplot(grid[:, :2], anchor="N"), _fit(photo, photo[..., 0])[0], "photo")
        for index, (name, labels) in enumerate(found.items()):
            axes = figure.add_subplot(grid[index // columns, 2 + index % columns])
            shown = overlay(*_fit(photo, labels))
            _picture(axes, np.asarray(shown), f"{name}\n{_count(len(np.unique(labels)), 'segment')}")
    return figure


# --- galleries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A photo uint8 [H, W, 3] and its labels int [H, W]; names: of the labels, to be written on them."""

    photo: np.ndarray
    labels: np.ndarray
    names: Sequence[str] = ()


def gallery(shown: Sequence[Shown], columns: int = 4, width: int = GALLERY_WIDTH, gap: int = 12) -> Image.Image:
    """Photos above their segments, `columns` side by side; whole photos, all of a row equally high, in pixels."""
    if not shown:
        raise UserError("a gallery needs at least one photo")
    rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    heights = [_row_height(row, width, gap) for row in rows]
    if len(rows) > 1 and len(rows[-1]) < columns:  # a row that is not full is not blown up
        heights[-1] = min(heights[-1], round(sum(heights[:-1]) / len(heights[:-1])))
    sheet = Image.new("RGB", (width, sum(2 * h + gap // 3 for h in heights) + gap * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for one in row:
            size = min(round(height * one.photo.shape[1] / one.photo.shape[0]), width - left), height
            photo, labels = _resized(one.photo, one.labels, size)
            sheet.paste(Image.fromarray(photo), (left, top))
            sheet.paste(_named(overlay(photo, labels), labels, one.names), (left, top + height + gap // 3))
            left += size[0] + gap
        top += 2 * height + gap // 3 + gap
    return sheet


def _row_height(row: Sequence[Shown], width: int, gap: int) -> int:
    """The height at which the photos of a row, side by side, are as wide as the sheet; a single one no higher."""
    shapes = sum(one.photo.shape[1] / one.photo.shape[0] for one in row)
    return min(round((width - gap * (len(row) - 1)) / shapes), width // 2)


def _named(picture: Image.Image, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    return write_names(picture, labels, names, size=26) if names else picture


# --- to files ---------------------------------------------------------------------------------------------------------


def save(figure: Figure | Image.Image, path: Path) -> None:
    """Writes a figure, SVG or PNG by the suffix of the name; a PIL image, PNG or (a tenth of the size) JPEG.

    Raises:
        UserError: another suffix. OSError: it cannot be written.
    """
    kinds = (".png", ".jpg") if isinstance(figure, Image.Image) else (".svg", ".png")
    if path.suffix not in kinds:
        raise UserError(f"{path}: this figure is written as {' or '.join(kinds)}")
    if isinstance(figure, Image.Image):
        kind = "PNG" if path.suffix == ".png" else "JPEG"
        write(path, lambda file: figure.save(file, kind, quality=88, optimize=True))
    elif path.suffix == ".svg":
        write(path, svg(figure))
    else:
        with _style():
            write(path, lambda file: figure.savefig(file, format="png", dpi=_DPI))


def svg(figure: Figure, text_as_text: bool = False) -> bytes:
    """A figure as SVG, the same bytes each time."""
    file = io.BytesIO()
    with _style(text_as_text):
        figure.savefig(file, format="svg", metadata={"Date": None}, dpi=_DPI)
    return file.getvalue()


def inline_svg(figure: Figure) -> str:
    """A figure as an element of a page that has the variables --ink, --muted and --line: light or dark as the page."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    text = svg(figure, text_as_text=True).decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, name in ((_INK, "ink"), (_MUTED, "muted"), (_LINE, "line")):
        text = text.replace(colour, f"var(--{name})")
    return text
