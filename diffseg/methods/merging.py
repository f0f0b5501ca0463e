"""DiffSeg: iterative attention merging (the paper's section 3) as a method, with its settings.

Everything that segments by merging goes through `proposals` and `labels_of`: the user's interface, runs, figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffseg.attention import Look, Size
from diffseg.errors import UserError
from diffseg.methods.base import Segmenter, as_numpy
from diffseg.observed import Batch, Observed
from diffseg.segmentation import by_area, merge_batch, refine, to_labels

_ITERATIONS = 3  # N, where nobody says
MOST_ITERATIONS = 100  # the paper's figures end at 7; proposals that no longer merge stay as they are


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of one segmentation, in the paper's terms.

    threshold: tau, one per iteration, nats. anchors: M, of the M x M grid. weights: R, finest resolution first; None:
    proportional to the resolution. timestep: t. refine: the optional k-means. size: the photo is resized to about
    size x size pixels of area, keeping its shape.
    """

    threshold: tuple[float, ...]
    anchors: int = 16
    weights: tuple[float, ...] | None = None
    timestep: int = 300
    refine: bool = False
    size: int = 512

    def __post_init__(self):
        if not self.threshold or not all(0 < t < math.inf for t in self.threshold):
            given = ", ".join(dict.fromkeys(f"{t:g}" for t in self.threshold)) or "none"
            raise UserError(f"threshold must be above 0, got {given}")
        if len(self.threshold) > MOST_ITERATIONS:
            raise UserError(f"iterations must be at most {MOST_ITERATIONS}, got {len(self.threshold):,} thresholds")
        if self.anchors < 1:
            raise UserError(f"anchors must be at least 1, got {self.anchors}")
        if not 0 <= self.timestep <= 999:
            raise UserError(f"timestep must be 0 to 999, got {self.timestep}")
        if not 64 <= self.size <= 4096:
            raise UserError(f"size must be 64 to 4096 pixels, got {self.size}")

    @classmethod
    def make(
        cls,
        threshold: float | Sequence[float],
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        **rest,
    ) -> Settings:
        """Settings from one threshold for all iterations (default 3) or one for each.

        Raises:
            UserError: a value out of range, what is no number, or thresholds that are not as many as the iterations.
        """
        if iterations is not None and iterations < 1:
            raise UserError(f"iterations must be at least 1, got {iterations}")
        if iterations is not None and iterations > MOST_ITERATIONS:
            raise UserError(f"iterations must be at most {MOST_ITERATIONS}, got {iterations:,}")
        thresholds = (
            tuple(threshold)
            if isinstance(threshold, Sequence)
            else (threshold,) * (_ITERATIONS if iterations is None else iterations)
        )
        if iterations is not None and len(thresholds) == 1:
            thresholds *= iterations
        if iterations is not None and len(thresholds) != iterations:
            raise UserError(
                f"{len(thresholds)} thresholds given for {iterations} iterations: give one, or one for each"
            )
        return cls(
            _numbers("threshold", thresholds), weights=None if weights is None else _numbers("weights", weights), **rest
        )


def _numbers(name: str, values: Iterable[Any]) -> tuple[float, ...]:
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError):
        raise UserError(f"{name} takes a number or several, got {values!r}") from None


class Merging(Segmenter):
    """The paper's method. Arguments as for `diffseg.DiffSeg`; labels by falling area.

    relative: thresholds are fractions of the image's own median distance between anchors (`Observed.scale`), because
    an absolute tau does not carry over from model to model.
    """

    def __init__(
        self,
        threshold: float | Sequence[float],
        iterations: int | None = None,
        anchors: int = 16,
        weights: Sequence[float] | None = None,
        refine: bool = False,
        relative: bool = False,
    ):
        if isinstance(threshold, Sequence) and len(threshold) > 1:
            if iterations not in (None, _ITERATIONS, len(threshold)):
                raise UserError(
                    f"{len(threshold)} thresholds and {iterations} iterations: give as many, or one threshold"
                )
            iterations = len(threshold)
        self.settings = Settings.make(threshold, iterations, weights, anchors=anchors, refine=refine)
        self.relative = relative

    @torch.no_grad()
    def segment(self, image: Observed) -> np.ndarray:
        """Labels int32 [H, W], 0..K-1."""
        unit = image.scale(self.settings.weights, self.look) if self.relative else 1.0
        thresholds = [t * unit for t in self.settings.threshold]
        merged = proposals(image, self.settings, thresholds, self.look)
        return as_numpy(labels_of(merged, image.size)[0])

    @torch.no_grad()
    def segment_batch(self, batch: Batch) -> list[np.ndarray]:
        """As `segment`, waiting for the device once for all images."""
        if self.relative:  # thresholds of its own for each image
            return super().segment_batch(batch)
        return label_maps(batch, self.settings, self.look)


def proposals_of(
    batch: Batch, settings: Settings, thresholds: Sequence[float] | None = None, look: Look = Look()
) -> list[Tensor]:
    """The proposals [K, h, w] of each image of a batch, each sums to 1 (the paper's algorithm 1, and refinement).

    thresholds: in place of the settings'.
    """
    attention = batch.attention(settings.weights, look)
    anchors = _fitting(settings.anchors, attention, look.within(batch.look))
    distances = batch.distances(settings.weights, anchors, look)
    merged = merge_batch(attention, anchors, thresholds or settings.threshold, distances)
    return [refine(a, p) for a, p in zip(attention, merged, strict=True)] if settings.refine else merged


def proposals(
    image: Observed, settings: Settings, thresholds: Sequence[float] | None = None, look: Look = Look()
) -> Tensor:
    """`proposals_of` for one image of a batch."""
    attention = image.attention(settings.weights, look)
    anchors = _fitting(settings.anchors, attention, look.within(image.batch.look))
    distances = image.distances(settings.weights, anchors, look)
    (merged,) = merge_batch(attention[None], anchors, thresholds or settings.threshold, distances[None])
    return refine(attention, merged) if settings.refine else merged


def _fitting(anchors: int, attention: Tensor, look: Look) -> int:
    """M; of layers that were chosen, which may all be coarse, no more than their maps have positions a side."""
    return anchors if look.layers is None else min(anchors, *attention.shape[-2:])


def label_maps(batch: Batch, settings: Settings, look: Look = Look()) -> list[np.ndarray]:
    """The labels int32 [H, W], 0..K-1, of each image of a batch; those of one size come from the device together."""
    merged = proposals_of(batch, settings, look=look)
    labels = [labels_of(p, size)[0] for p, size in zip(merged, batch.sizes, strict=True)]
    if len({label.shape for label in labels}) > 1:
        return [as_numpy(label) for label in labels]
    return list(as_numpy(torch.stack(labels)))


def labels_of(merged: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Labels int64 [H, W], 0..K-1 by falling area, of proposals [K', h, w], and the proposals behind them [K', h, w].

    Proposals that win no pixel come last among the proposals and have no label.
    """
    labels, order = by_area(to_labels(merged, size), len(merged))
    return labels, merged[order]
