"""One photo, looked at once, then explored: any threshold, any point's attention, names, without another pass.

What an interface needs, and nothing of any interface. What settings share is computed once: aggregated attention for
the weights R, distances for the anchors M, proposals for a whole setting.

Memory of a photo, bounded by h x w, the finest maps' size (64 x 64 for 512 x 512 pixels of Stable Diffusion 1, or of
`mini`): the pass (68 MiB there), aggregated attention of the latest weights (64 MiB), distances of the latest two grids
of anchors (4 MiB for M = 16), the latest proposals (at most as much). What other methods make of `observed` stays as
long as the photo (the walk's own aggregated attention, 64 MiB). All is float32: in half precision, labels would no
longer be those of a plain call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffseg.attention import Size
from diffseg.errors import UserError
from diffseg.images import load_image
from diffseg.methods.base import as_numpy
from diffseg.methods.merging import Settings, labels_of
from diffseg.segmentation import aggregate, anchor_distances, anchor_grid, merge, refine
from diffseg.segmenter import DiffSeg, Segmentation
from diffseg.semantic import LabelledSegmentation, caption_of, distinct, noun_maps, noun_tokens, vote

_BISECTIONS = 7


@dataclass(frozen=True)
class PointAttention:
    """What one point of a photo attends to; each map is >= 0 and sums to 1.

    levels: {(h, w): float32 [h, w]}, finest first, the map of the position that the point lies in at each resolution.
    aggregated: float32 [h, w] of the finest resolution. positions: {(h, w): (row, column)} of the point.
    """

    levels: dict[Size, np.ndarray]
    aggregated: np.ndarray
    positions: dict[Size, tuple[int, int]]


@dataclass(frozen=True)
class Curve:
    """thresholds: tau in nats, ascending. segments: how many each gives."""

    thresholds: tuple[float, ...]
    segments: tuple[int, ...]


class Explorer:
    """A photo that the model has seen.

    >>> explorer = DiffSeg.from_pretrained("mini").explore("photo.jpg")
    >>> explorer.overlay(0.5).save("fine.png")
    >>> explorer.attention_at(120, 80).aggregated

    image: the photo, uint8 [H, W, 3]. observed: what other methods of `diffseg.methods` segment. source: its file;
    None: it was none. sizes: (h, w) of the attention maps, finest first. nouns, caption: what segments may be called,
    and the prompt; () and None where no nouns were given.

    Args:
        seg: the model. image: PIL image, uint8 [H, W, 3], or a file. nouns: what segments may be called; with them,
            the caption is the prompt of the pass, and labels are those of `diffseg.semantic.label`.
        caption: a sentence with all the nouns; None: "a photo of ..." them. timestep, size: as for a call of `DiffSeg`.

    Raises:
        ImageError: the photo cannot be used. UserError: a setting is out of range; a caption without nouns, or nouns
            that `diffseg.semantic.label` would not take.
    """

    def __init__(
        self,
        seg: DiffSeg,
        image: Image.Image | np.ndarray | str | Path,
        nouns: Sequence[str] | None = None,
        *,
        caption: str | None = None,
        timestep: int | None = None,
        size: int = 512,
    ):
        if nouns is None and caption is not None:
            raise UserError("a caption alone names nothing: give the nouns in it, too")
        self.seg, self.source = seg, str(image) if isinstance(image, str | Path) else None
        self.nouns = () if nouns is None else distinct(nouns)
        self.caption = (caption or caption_of(self.nouns)) if self.nouns else None
        tokens = noun_tokens(seg.model.tokenizer, self.caption, self.nouns) if self.caption else []
        self._look = seg.settings(timestep=timestep, size=size)
        self.image = load_image(image)

        self.observed = seg.observe_as(self.image, self._look, self.caption)
        seen = self.observed.batch.seen()
        maps = dict(sorted(seen.self_attention.items(), key=lambda item: -item[0][0] * item[0][1]))
        self._maps, self._cross, self._tokens = maps, seen.cross_attention, tokens
        self.sizes = list(maps)

        # The caches hold nothing of self, so that a photo that is let go is gone at once.
        attention = lru_cache(1)(lambda weights: aggregate(maps, weights)[0])
        distances = lru_cache(2)(lambda weights, anchors: anchor_distances(attention(weights), anchors))
        self._attention, self._distances = attention, distances
        self._proposals = lru_cache(1)(lambda settings: _merged(settings, attention, distances))

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"Explorer({width} x {height} pixels, model {self.seg.model.name})"

    # --- segments -----------------------------------------------------------------------------------------------------

    def settings(
        self,
        threshold: float | Sequence[float] | None = None,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        refine: bool = False,
    ) -> Settings:
        """Settings of a segmentation, with the time step and the size of this photo's pass; all as for `DiffSeg`."""
        look = {"timestep": self._look.timestep, "size": self._look.size}
        return self.seg.settings(
            threshold, anchors=anchors, iterations=iterations, weights=weights, refine=refine, **look
        )

    @torch.no_grad()
    def segmentation(
        self,
        threshold: float | Sequence[float] | None = None,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        refine: bool = False,
    ) -> Segmentation:
        """What a call of `DiffSeg` with these arguments makes of the photo, label for label.

        Args:
            threshold: tau in nats; None: the model's own default. anchors: M. iterations: N. weights: R.

        Raises:
            UserError: a setting is out of range, or does not fit the model's maps.
        """
        settings, start = self.settings(threshold, anchors, iterations, weights, refine), time.perf_counter()
        labels, behind = labels_of(self._proposals(settings), self._size)
        numbers = as_numpy(labels)
        kept = behind[: int(numbers.max()) + 1].float().cpu().numpy()
        seconds = {"merge": time.perf_counter() - start}
        model = self.seg.model
        return Segmentation(numbers, kept, self.image, model.name, model.dtype, settings, seconds, self.source)

    def overlay(
        self,
        threshold: float | Sequence[float] | None = None,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        refine: bool = False,
        *,
        opacity: float = 0.5,
        numbers: bool = False,
        palette: str = "regions",
    ) -> Image.Image:
        """The photo with its segments in colour and outlined; a region mostly keeps its colour when settings change.

        Args:
            threshold, anchors, iterations, weights, refine: as for `segmentation`. opacity, numbers, palette: as for
                `Segmentation.overlay`.
        """
        return self.segmentation(threshold, anchors, iterations, weights, refine).overlay(opacity, numbers, palette)

    @torch.no_grad()
    def labels_at(self, size: Size, settings: Settings) -> np.ndarray:
        """Labels uint16 [H, W], 0..K-1 by falling area, at another size than the photo's: (H, W) in pixels.

        At the photo's own size they are those of `segmentation`.
        """
        return labels_of(self._proposals(settings), size)[0].cpu().numpy().astype(np.uint16)

    # --- names --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def named(
        self,
        threshold: float | Sequence[float] | None = None,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        refine: bool = False,
        *,
        voting: str = "mean",
    ) -> LabelledSegmentation:
        """The segments with their nouns, those of one noun merged, as `diffseg.semantic.label` makes them.

        Raises:
            UserError: the photo was looked at without nouns; as `segmentation`; no such voting.
        """
        made = self.segmentation(threshold, anchors, iterations, weights, refine)
        scores, caption = self.scores_of(made.labels, voting), str(self.caption)
        merged = scores.argmax(1).astype(np.int32)[made.labels]
        attention = np.stack(list(noun_maps(self._cross, self._tokens, max(self._cross))))
        return LabelledSegmentation(merged, self.nouns, scores, made, caption, voting, attention)

    @torch.no_grad()
    def scores_of(self, labels: np.ndarray, voting: str = "mean") -> np.ndarray:
        """How much each segment is of each noun, float32 [K, nouns]; see `diffseg.methods.naming.vote`.

        Args:
            labels: int [H, W] of any size, 0..K-1, each of which occurs.

        Raises:
            UserError: the photo was looked at without nouns; no such voting.
        """
        if self.caption is None:
            raise UserError("there are no names: explore the photo with nouns")
        size = labels.shape[0], labels.shape[1]
        return vote(labels, noun_maps(self._cross, self._tokens, size), voting)

    def names(
        self,
        threshold: float | Sequence[float] | None = None,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        refine: bool = False,
        *,
        voting: str = "mean",
    ) -> tuple[str, ...]:
        """The noun of each segment of `segmentation`, in their order; arguments and errors as for `named`."""
        scores = self.named(threshold, anchors, iterations, weights, refine, voting=voting).scores
        return tuple(self.nouns[index] for index in scores.argmax(1))

    # --- attention ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def attention_at(self, x: float, y: float, weights: Sequence[float] | None = None) -> PointAttention:
        """What a point attends to, at each resolution and aggregated.

        Args:
            x, y: in pixels of the photo, from its upper left corner, 0 <= x < W, 0 <= y < H. weights: R.

        Raises:
            UserError: the point lies outside the photo; weights that do not fit.
        """
        height, width = self._size
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"the point ({x:g}, {y:g}) lies outside the photo of {width} x {height} pixels")
        positions = {(h, w): (int(y * h / height), int(x * w / width)) for h, w in self.sizes}
        levels = {
            (h, w): maps[0, row * w + column].view(h, w).float().cpu().numpy().copy()
            for ((h, w), maps), (row, column) in zip(self._maps.items(), positions.values(), strict=True)
        }
        whole = self._attention(_floats(weights))
        row, column = positions[self.sizes[0]]
        return PointAttention(levels, whole[row, column].float().cpu().numpy().copy(), positions)

    def maps_of(self, size: Size) -> np.ndarray:
        """The maps of all positions at one of `sizes`: float32 [h, w, h, w], each [i, j] sums to 1."""
        return self._maps[size][0].view(*size, *size).float().cpu().numpy()

    @torch.no_grad()
    def distances(self, anchors: int = 16, weights: Sequence[float] | None = None) -> np.ndarray:
        """The distances in nats between any two anchors' maps: float32 [M * M * (M * M - 1) / 2], ascending.

        They are what merging compares with tau; those below it are of anchors that are alike.
        """
        h, w = self.sizes[0]
        grid = anchor_grid(anchors, (h, w))
        whole = self._distances(_floats(weights), anchors)
        between = whole[:, (grid[:, 0] * w + grid[:, 1]).to(whole.device)]
        rows, columns = torch.triu_indices(len(grid), len(grid), offset=1)
        return between[rows, columns].float().sort().values.cpu().numpy()

    # --- thresholds ---------------------------------------------------------------------------------------------------

    def curve(
        self,
        thresholds: Sequence[float] | None = None,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        refine: bool = False,
    ) -> Curve:
        """How many segments each threshold gives; it costs as much as that many segmentations.

        The number mostly falls as tau rises, but it may rise as well: merging takes proposals in order.

        Args:
            thresholds: tau in nats; None: those of `thresholds`. The rest as for `segmentation`.
        """
        rest = (anchors, iterations, weights, refine)
        taus = self.thresholds(24, 64, *rest) if thresholds is None else tuple(sorted(map(float, thresholds)))
        return Curve(taus, tuple(self._count(tau, rest, self._size) for tau in taus))

    def thresholds(
        self,
        count: int = 48,
        most: int = 64,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        refine: bool = False,
    ) -> tuple[float, ...]:
        """Thresholds worth a slider: from about `most` segments to one, evenly spaced in their logarithm, ascending.

        Args:
            count: how many, besides the model's own default, which is among them. most: segments at the least
                threshold, about. The rest as for `segmentation`.
        """
        rest = (anchors, iterations, weights, refine)
        default = self.settings().threshold[0]
        farthest = _rounded(1.01 * max(default, float(self._distances(_floats(weights), anchors).max())))
        nearest = float(np.quantile(self.distances(anchors, weights), 0.001)) if anchors > 1 else default
        nearest = max(min(nearest, default), farthest * 1e-4)
        low = self._crossing(nearest, farthest, most, rest)
        high = self._crossing(low, farthest, 1, rest)
        taus = {_rounded(tau) for tau in np.geomspace(low, high, count)}
        return tuple(sorted(taus | {default}))

    def _crossing(self, low: float, high: float, most: int, rest: tuple) -> float:
        """About the least threshold between two that gives at most `most` segments; `high` must."""
        for _ in range(_BISECTIONS):
            middle = _rounded(math.sqrt(low * high))
            if self._count(middle, rest, self.sizes[0]) > most:  # at the maps' size: quick, whatever the photo's
                low = middle
            else:
                high = middle
        return high

    @torch.no_grad()
    def _count(self, threshold: float, rest: tuple, size: Size) -> int:
        """The number of segments that have a pixel at a size (H, W)."""
        return int(labels_of(self._proposals(self.settings(threshold, *rest)), size)[0].max()) + 1

    # --- memory -------------------------------------------------------------------------------------------------------

    @property
    def seen_bytes(self) -> int:
        """Memory of what the pass has shown; aggregated attention takes as much as its finest maps, once more."""
        return sum(maps.nbytes for maps in (*self._maps.values(), *self._cross.values()))

    @property
    def _size(self) -> Size:
        return self.image.shape[0], self.image.shape[1]


def _floats(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if weights is None else tuple(map(float, weights))


def _rounded(threshold: float) -> float:
    """To three digits, as a slider shows it."""
    return float(f"{threshold:.3g}")


def _merged(settings: Settings, attention, distances) -> Tensor:
    """The proposals [K, h, w] of settings, from functions of R, and of R and M."""
    whole = attention(settings.weights)
    merged = merge(whole, settings.anchors, settings.threshold, distances(settings.weights, settings.anchors))
    return refine(whole, merged) if settings.refine else merged
