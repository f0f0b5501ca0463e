"""What a protocol is worth: the same label maps under every protocol, and how the order of methods changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffseg.eval.granularity import Granularity
from diffseg.eval.score import Summary
from diffseg.eval.show.tables import Shown


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
    return Shown(title, headings, cells, "* told something of the truth" if told else "")


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


def metric_label(metric: str) -> str:
    """A metric's name for people."""
    return {"miou": "mIoU", "f": "F"}.get(metric, metric)


def granularity_table(methods: Mapping[str, Mapping[str, Granularity]]) -> Shown:
    """A row per method's and protocol's curve: best common setting, best per image, area; percent, with intervals."""
    cells = []
    for method, curves in methods.items():
        for rule, curve in curves.items():
            span = f"{curve['segments'][0]:.1f} to {curve['segments'][-1]:.1f}"
            numbers = [
                _with_interval(curve["ods"], curve["ods_interval"]),
                _with_interval(curve["ois"], curve["ois_interval"]),
                _with_interval(curve["area"], curve["area_interval"]),
            ]
            name = f"{method}, {rule}" if len(methods) > 1 else rule
            cells.append([f"{name}: {metric_label(curve['metric'])}", *numbers, curve["ods_setting"], span])
    headings = ["curve over segments", "ODS %", "OIS %", "area %", "best common setting", "segments"]
    return Shown("without a chosen setting", headings, cells)


def _with_interval(value: float | None, interval: Sequence[float | None]) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    low, high = interval
    return f"{100 * value:.1f}" + ("" if low is None or high is None else f"\n({100 * low:.1f} to {100 * high:.1f})")
