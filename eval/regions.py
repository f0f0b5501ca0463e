"""Agreement of two partitions of an image into regions, from tables of shared pixels. Pure numpy.

A table is int64 [regions, segments]: pixels of each region of the truth in each segment, without unlabelled pixels. An
image with several annotations has a list of tables, one per annotation, over the same segments. Definitions are those
of BSDS500's benchmark, its figures reproduced to six digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAMES = ("pri", "vi", "ari", "mbo")  # the means over annotations in `region_scores`


def overlaps(table: np.ndarray) -> np.ndarray:
    """The best IoU that any segment has with each region, float64 [regions], 0..1; 0 for a region without pixels."""
    union = table.sum(1)[:, None] + table.sum(0) - table
    return (table / np.maximum(union, 1)).max(1, initial=0.0)


def covered(table: np.ndarray) -> float:
    """Sum over regions of area x best IoU, in pixels. Covering is this, summed, over the summed areas."""
    return float(table.sum(1) @ overlaps(table))


def mean_best_overlap(table: np.ndarray) -> float:
    """Mean over regions, large and small alike, of the best IoU: 0..1, NaN without pixels."""
    occurs = table.any(1)
    return float(overlaps(table)[occurs].mean()) if occurs.any() else float("nan")


def rand_index(table: np.ndarray) -> float:
    """Share of the n (n - 1) / 2 pairs of pixels that both maps join or both part: 0..1, 1 where there is no pair."""
    together, regions, segments, pairs = _pairs(table)
    return 1 - (regions + segments - 2 * together) / pairs if pairs else 1.0


def adjusted_rand(table: np.ndarray) -> float:
    """The Rand index less what chance gives at these sizes: at most 1, about 0 by chance, also negative.

    Both maps one region, or both single pixels: 1.
    """
    together, regions, segments, pairs = _pairs(table)
    chance = regions * segments / pairs if pairs else 0.0
    most = (regions + segments) / 2
    return (together - chance) / (most - chance) if most != chance else 1.0


def _pairs(table: np.ndarray) -> tuple[float, float, float, float]:
    """Pairs of pixels within one cell, one region, one segment, the image."""
    together, regions, segments, pixels = (
        float((n.astype(np.float64) * (n - 1)).sum() / 2) for n in (table, table.sum(1), table.sum(0), table.sum())
    )
    return together, regions, segments, pixels


def variation_of_information(table: np.ndarray) -> float:
    """H(region | segment) + H(segment | region) in bits: 0 for equal maps, no more than 2 log2 of the pixels."""
    joint, regions, segments = (_entropy(n) for n in (table.ravel(), table.sum(1), table.sum(0)))
    return max(0.0, 2 * joint - regions - segments)


def _entropy(pixels: np.ndarray) -> float:
    """Bits."""
    share = pixels[pixels > 0] / max(pixels.sum(), 1)
    return float(-(share * np.log2(share)).sum())


def region_scores(tables: Sequence[np.ndarray]) -> dict[str, float]:
    """One image against all of its annotations.

    Returns:
        covered and area: pixels, summed over annotations. pri, vi, ari, mbo: means over annotations (`rand_index`,
        `variation_of_information`, `adjusted_rand`, `mean_best_overlap`); the probabilistic Rand index is that mean.
    """
    each = [(rand_index(t), variation_of_information(t), adjusted_rand(t), mean_best_overlap(t)) for t in tables]
    area = {"covered": sum(covered(t) for t in tables), "area": float(sum(t.sum() for t in tables))}
    return area | dict(zip(NAMES, np.mean(each, axis=0).tolist(), strict=True))


def best_regions(tables: Sequence[Sequence[Sequence[np.ndarray]]]) -> dict[str, float]:
    """Covering, PRI and VI at the best setting, as BSDS500's benchmark defines them.

    Args:
        tables: [images][settings][annotations], as many settings for every image.

    Returns:
        {covering, pri, vi} x {"_ods": the one setting that is best for all images, "_ois": the best setting of each
        image, "_setting": the number, from 0, of the former}, and covering_best: each region by the best segment of
        any setting. VI is best where smallest. Means of PRI and VI are over images, covering is a ratio of sums.
    """
    scores = [[region_scores(annotations) for annotations in image] for image in tables]
    values = {name: np.array([[s[name] for s in image] for image in scores]) for name in scores[0][0]}
    area = values["area"][:, 0].sum()
    any_setting = sum(_covered_by_any(image) for image in tables)
    return (
        _best("covering", values["covered"] * len(scores) / area)
        | {"covering_best": float(any_setting / area)}
        | _best("pri", values["pri"])
        | _best("vi", values["vi"], least=True)
    )


def _best(name: str, values: np.ndarray, least: bool = False) -> dict[str, float]:
    """values: [images, settings], to be averaged over images."""
    choose = np.argmin if least else np.argmax
    setting = int(choose(values.mean(0)))
    chosen = np.take_along_axis(values, choose(values, axis=1)[:, None], 1)
    return {
        f"{name}_setting": setting,
        f"{name}_ods": float(values[:, setting].mean()),
        f"{name}_ois": float(chosen.mean()),
    }


def _covered_by_any(image: Sequence[Sequence[np.ndarray]]) -> float:
    """image: tables [settings][annotations]. Sum over annotations and regions of area x best IoU in any setting."""
    total = 0.0
    for annotation in zip(*image, strict=True):
        total += annotation[0].sum(1) @ np.max([overlaps(table) for table in annotation], axis=0)
    return float(total)
