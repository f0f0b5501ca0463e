"""What a protocol is worth: the same label maps under every protocol, and how the order of methods changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffseg.eval.granularity import Granularity
from diffseg.eval.score import Summary
from diffseg.eval.show.tables import Shown, metric_heading, metric_label, metric_number, with_interval


def ranks(values: dict[str, float | None]) -> dict[str, int]:
    """The rank of each name by falling value, 1 for the best; equals share the better rank, none come last."""
    known = [value for value in values.values() if value is not None]
    return {name: 1 + sum(other > (-1 if v is None else v) for other in known) for name, v in values.items()}


def headline_values(summary: Summary) -> dict[str, dict[str, float | None]]:
    """{protocol: {segmenter: the metric that stands for the protocol, None where it is not defined}}."""
    return {
        rule: {name: scores[summary["headlines"][rule]] for name, scores in by_segmenter.items()}
        for rule, by_segmenter in summary["protocols"].items()
    }


def worth_table(summary: Summary) -> Shown:
    """A row per segmenter, a column per protocol: percent, rank, and in brackets the places gained or lost.

    Metrics with values above 1 are no fractions, and are shown as they are.

    Places are counted against the protocol that the run leads with.
    """
    values = headline_values(summary)
    first = ranks(values[summary["protocol"]])
    headings = ["segmenter", *(f"{rule}\n{metric_label(summary['headlines'][rule])}" for rule in values)]
    # A count is no fraction, so it is no percentage either.
    most = {rule: max((v for v in row.values() if v is not None), default=0) for rule, row in values.items()}
    cells = []
    for name, scores in summary["segmenters"].items():
        row = [f"{name} *" if scores["told"] else name]
        for rule, by_segmenter in values.items():
            value, rank = by_segmenter[name], ranks(by_segmenter)[name]
            moved = first[name] - rank
            places = f" ({moved:+d})" if moved else ""
            number = f"{100 * value:.1f}" if value is not None and most[rule] <= 1 else f"{value}"
            row.append("–" if value is None else f"{number}\n#{rank}{places}")  # noqa: RUF001
        cells.append(row)
    facts = summary["dataset"]
    title = f"what a protocol is worth: {facts['name']}, {summary['images']:,} images"
    told = any(scores["told"] for scores in summary["segmenters"].values())
    caption = f"#: place, in brackets how many better or worse than by {summary['protocol']}"
    return Shown(title, headings, cells, caption + "; * told something of the truth" * told)


def differences_table(summary: Summary) -> Shown:
    """A row per segmenter but the first: how much better it is than that one under each protocol, in points.

    * marks what is larger than chance: p below .05, divided by the number of methods that are compared (Bonferroni).
    """
    by_rule = summary.get("differences", {})
    first, *others = summary["segmenters"]
    headings = ["segmenter", *(f"{rule}\n{metric_label(summary['headlines'][rule])}" for rule in by_rule)]
    cells = []
    for name in others:
        row = [name]
        for found in (by_segmenter[name] for by_segmenter in by_rule.values()):
            value, (low, high), p = found["difference"], found["interval"], found["p"]
            if value is None:
                row.append("–")  # noqa: RUF001
                continue
            mark = " *" if p is not None and p < 0.05 / len(others) else ""
            span = f"\n({100 * low:+.1f} to {100 * high:+.1f})" if low is not None and high is not None else ""
            row.append(f"{100 * value:+.1f}{mark}{span}")
        cells.append(row)
    caption = (
        f"points above or below {first}, paired by image, 95 % intervals; * p < .05 over all {len(others)} methods"
    )
    facts = summary["dataset"]
    return Shown(f"beside {first}: {facts['name']}, {summary['images']:,} images", headings, cells, caption)


def _best_setting(scales: Mapping[str, Any]) -> str:
    """The best common setting; its parts end words, so that narrow tables break there."""
    return scales["ods_setting"].replace(",", ", ")


def granularity_table(methods: Mapping[str, Mapping[str, Granularity]]) -> Shown:
    """A row per method's and protocol's curve: best common setting, best per image, area; percent, with intervals."""
    cells = []
    for method, curves in methods.items():
        for rule, curve in curves.items():
            span = f"{curve['segments'][0]:.1f} to {curve['segments'][-1]:.1f}"
            name = f"{method}, {rule}"
            numbers = [
                *_scale_cells(curve, curve["metric"]),
                with_interval(curve["area"], curve["area_interval"], curve["metric"]),
            ]
            cells.append([f"{name}: {metric_label(curve['metric'])}", *numbers, _best_setting(curve), span])
            for metric, scales in curve.get("others", {}).items():
                label = metric_heading(metric).removesuffix(" %")
                cells.append([f"{name}: {label}", *_scale_cells(scales, metric), "", _best_setting(scales), span])
    headings = ["curve over segments", "ODS %", "OIS %", "area %", "best common setting", "segments"]
    caption = "method, protocol: metric. ODS: best common setting; OIS: best of each image; area: mean of the curve"
    return Shown("without a chosen setting", headings, cells, caption)


def _scale_cells(scales: Mapping[str, Any], metric: str) -> list[str]:
    """The best common setting and the best of every image, with intervals."""
    return [_scale_cell(scales, metric, kind) for kind in ("ods", "ois")]


def _scale_cell(scales: Mapping[str, Any], metric: str, kind: str) -> str:
    return with_interval(scales.get(kind), scales.get(f"{kind}_interval", (None, None)), metric)


# --- as BSDS500's benchmark -------------------------------------------------------------------------------------------

_KINDS = {"covering": ("ods", "ois"), "pri": ("ods",), "vi": ("ods",), "matched_f": ("ods", "ois")}
_SCALES = [(metric, kind) for metric, kinds in _KINDS.items() for kind in kinds]  # a column each


def scales_of(summary: Summary) -> dict[str, dict[str, Mapping[str, Any]]]:
    """{method: {metric: its best values over the settings tried, see `Scales`}}; of one setting, its value alone."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    tried: set[str] = set()
    for method, curves in summary["granularity"].items():
        for curve in curves.values():
            found.setdefault(method, {}).update({curve["metric"]: curve, **curve.get("others", {})})
            tried |= {*curve["settings"]}
    for name in (name for name in summary["segmenters"] if name not in tried):
        for by_segmenter in summary["protocols"].values():
            scores = by_segmenter[name]
            values = {m: {"ods": scores[m], "ods_interval": ends} for m, ends in scores["interval"].items()}
            found.setdefault(name, {}).update(values)
    return found


def scales_table(summaries: Sequence[Summary], published: Sequence[Mapping[str, Any]] = ()) -> Shown:
    """Published rows of BSDS500, and a row for each method of each run, by the measures of its benchmark."""
    several = len({s["model"] for s in summaries}) > 1
    cells = [[row["method"], *_published_cells(row), "", row["source"]] for row in published]
    for summary in summaries:
        for name, scales in sorted(scales_of(summary).items(), key=lambda item: -_covering(item[1])):
            setting = scales.get("covering", {}).get("ods_setting", "").removeprefix(f"{name}.")
            numbers = [_scale_cell(scales.get(metric, {}), metric, kind) for metric, kind in _SCALES]
            label = f"{name}, {summary['model']}" if several else name
            cells.append([label, *numbers, setting, "this run" if len(summaries) == 1 else summary["run"]])
    headings = ["method", *(f"{metric_heading(metric)}\n{kind.upper()}" for metric, kind in _SCALES)]
    caption = (
        "ODS: at the best common setting, by each measure; OIS: at the best setting of every image. Intervals are 95 % "
        "over images. F: boundaries matched one to one"
    )
    return Shown("as BSDS500's benchmark", [*headings, "setting of covering\nODS", "source"], cells, caption)


def _covering(scales: Mapping[str, Mapping[str, Any]]) -> float:
    return scales.get("covering", {}).get("ods") or 0.0


def _published_cells(row: Mapping[str, Any]) -> list[str]:
    """The measures of a published row, which is in percent and bits."""
    covering, boundary = row["covering"] or (None, None), row["boundary"] or (None, None)
    values = [*covering, row["pri"], row["vi"], *boundary]
    each = zip(values, (metric for metric, _ in _SCALES), strict=True)
    return [metric_number(value if value is None or metric == "vi" else value / 100, metric) for value, metric in each]
