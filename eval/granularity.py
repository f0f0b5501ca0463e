"""Many settings of one method, compared without choosing one: how fine it segments against how well. Pure numpy.

A threshold means something else in every method; the number of segments means the same in all. So a run that varied a
setting gives a curve of each metric over the mean number of segments, and, as BSDS500's benchmark has it, the best
common setting (ODS, optimal data-set scale) and the best for every image (OIS, optimal image scale).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired

import numpy as np
from typing_extensions import TypedDict

from diffseg.eval.metrics import Statistics, intervals
from diffseg.eval.protocols import Protocol

Pair = tuple[float, float]


class Scales(TypedDict):
    """The best value of one metric over settings."""

    ods: float  # at the best common setting
    ods_setting: str
    ods_interval: Pair  # 95 % over images, of this setting: that it was chosen on the same images is not in it
    ois: float  # at the best setting of every image, chosen with its truth: a ceiling
    ois_interval: Pair


class Granularity(Scales):
    """One metric over the settings of a method, fractions unless the protocol says otherwise."""

    metric: str
    settings: list[str]  # names, in the order of their mean number of segments
    segments: list[float]  # mean number per image, of each setting
    values: list[float]  # of the metric
    others: NotRequired[dict[str, Scales]]  # of the protocol's other metrics, each at its own best settings
    area: float  # mean of the curve over the logarithm of the number of segments, from its least to its most
    area_interval: Pair


def granularity(
    names: Sequence[str],
    hists: Sequence[Sequence[np.ndarray]],
    segments: Sequence[np.ndarray],
    protocol: Protocol,
    metric: str,
    background: int | None = None,
) -> Granularity:
    """The curve of one metric of one protocol.

    Args:
        names: of the settings, two or more. hists: what the protocol reads, [settings][images]. segments: int [images],
            the number of segments of each image, for each setting. background: see `Protocol.statistics`.
    """
    order = np.argsort([counts.mean() for counts in segments], kind="stable")
    names, segments = [names[i] for i in order], [segments[i] for i in order]
    statistics = [protocol.statistics(hists[i], background) for i in order]
    joined = _joined(statistics, segments)

    def area(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"area": _area(sums, len(names), protocol, metric)}

    totals = {name: rows.sum(0, keepdims=True) for name, rows in joined.items()}
    curve: Granularity = {
        "metric": metric,
        "settings": list(names),
        "segments": [float(counts.mean()) for counts in segments],
        "values": [_whole(s, protocol, metric) for s in statistics],
        **scales(names, statistics, protocol, metric),
        "area": float(area(totals)["area"][0]),
        "area_interval": intervals(joined, area, bounds={"area": protocol.bounds.get(metric, (-np.inf, np.inf))})[
            "area"
        ],
    }
    if protocol.scales:
        curve["others"] = {other: scales(names, statistics, protocol, other) for other in protocol.scales}
    return curve


def scales(names: Sequence[str], statistics: Sequence[Statistics], protocol: Protocol, metric: str) -> Scales:
    """The best common setting and the best of every image. As the benchmark's, but that its F may lie between settings.

    Args:
        names: of the settings. statistics: of the images, for each setting.
    """
    sign = -1 if metric in protocol.small_is_good else 1
    values = [_whole(s, protocol, metric) for s in statistics]
    best = int(np.nanargmax([sign * value for value in values]))
    chosen = best_of_each(statistics, protocol, metric)

    def alone(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {metric: protocol.metrics(sums)[metric]}

    return {
        "ods": values[best],
        "ods_setting": names[best],
        "ods_interval": intervals(statistics[best], alone, bounds=protocol.bounds)[metric],
        "ois": _whole(chosen, protocol, metric),
        "ois_interval": intervals(chosen, alone, bounds=protocol.bounds)[metric],
    }


def best_of_each(statistics: Sequence[Statistics], protocol: Protocol, metric: str) -> dict[str, np.ndarray]:
    """The statistics of every image at the setting at which its own metric is best (the first of equals)."""
    sign = -1 if metric in protocol.small_is_good else 1
    own = np.stack([sign * protocol.metrics(dict(s))[metric] for s in statistics])  # [settings, images]
    best = np.where(np.isnan(own), -np.inf, own).argmax(0)
    rows = np.arange(len(best))
    return {name: np.stack([s[name] for s in statistics])[best, rows] for name in statistics[0]}


def _whole(statistics: Statistics, protocol: Protocol, metric: str) -> float:
    sums = {name: rows.sum(0, keepdims=True) for name, rows in statistics.items()}
    return float(protocol.metrics(sums)[metric][0])


def _joined(statistics: Sequence[Statistics], segments: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The statistics of all settings side by side, one row per image, with the numbers of segments."""
    joined = {f"{i} {name}": rows for i, s in enumerate(statistics) for name, rows in s.items()}
    joined |= {f"{i} segments": counts for i, counts in enumerate(segments)}
    return joined | {"count of images": np.ones(len(segments[0]))}


def _area(sums: Mapping[str, np.ndarray], settings: int, protocol: Protocol, metric: str) -> np.ndarray:
    """float64 [sets]: trapezoids over log2 of the mean number of segments, over their span; without one, the mean."""
    height = np.stack([protocol.metrics(_of(sums, i))[metric] for i in range(settings)])  # [settings, sets]
    with np.errstate(invalid="ignore", divide="ignore"):  # of a set without images, nothing is a number
        width = np.log2(np.stack([sums[f"{i} segments"] / sums["count of images"] for i in range(settings)]))
        span = width[-1] - width[0]
        steps = np.diff(width, axis=0) * (height[1:] + height[:-1]) / 2
        return np.where(span > 0, steps.sum(0) / span, height.mean(0))


def _of(sums: Mapping[str, np.ndarray], setting: int) -> dict[str, np.ndarray]:
    start = f"{setting} "
    return {name.removeprefix(start): rows for name, rows in sums.items() if name.startswith(start)}
