"""DiffSeg as users see it: a model and settings turn a photo into a Segmentation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask

from diffseg.attention import DiffusionModel, Maps
from diffseg.images import load_image, overlay
from diffseg.segmentation import aggregate, merge, refine, to_labels


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
            raise ValueError(f"threshold must be above 0, got {', '.join(f'{t:g}' for t in self.threshold) or 'none'}")
        if self.anchors < 1:
            raise ValueError(f"anchors must be at least 1, got {self.anchors}")
        if not 0 <= self.timestep <= 999:
            raise ValueError(f"timestep must be 0 to 999, got {self.timestep}")
        if not 64 <= self.size <= 4096:
            raise ValueError(f"size must be 64 to 4096 pixels, got {self.size}")

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
            ValueError: a value out of range, or thresholds that are not as many as the iterations.
        """
        thresholds = (
            tuple(threshold)
            if isinstance(threshold, Sequence)
            else (threshold,) * (3 if iterations is None else iterations)
        )
        if iterations is not None and iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if iterations is not None and len(thresholds) == 1:
            thresholds *= iterations
        if iterations is not None and len(thresholds) != iterations:
            raise ValueError(
                f"{len(thresholds)} thresholds given for {iterations} iterations: give one, or one for each"
            )
        return cls(
            tuple(map(float, thresholds)), weights=None if weights is None else tuple(map(float, weights)), **rest
        )


@dataclass(frozen=True)
class Segmentation:
    """The segments of one photo.

    labels: int32 [H, W] at the photo's own size, 0..K-1, compact, larger segments first. proposals: float32 [K, h, w],
    the distribution behind each label, each sums to 1. image: the photo, uint8 [H, W, 3]. model, dtype: what it was
    made with, and in which precision. settings: the hyper-parameters. timings_s: seconds per stage.
    """

    labels: np.ndarray
    proposals: np.ndarray
    image: np.ndarray
    model: str
    dtype: str
    settings: Settings
    timings_s: dict[str, float]

    def __len__(self) -> int:
        return len(self.proposals)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The photo with its segments in colour and outlined."""
        return overlay(self.image, self.labels, opacity)

    def segments(self) -> list[dict[str, Any]]:
        """Per segment: id, area (pixels), bbox [x, y, width, height] and segmentation (compressed COCO RLE)."""
        return [{"id": index, **describe(self.labels == index)} for index in range(len(self))]

    def as_dict(self) -> dict[str, Any]:
        """All but the pixels, ready for JSON."""
        return {
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "model": self.model,
            "dtype": self.dtype,
            "settings": {**asdict(self.settings), "iterations": len(self.settings.threshold)},
            "timings_s": {k: round(v, 4) for k, v in self.timings_s.items()},
            "segments": self.segments(),
        }


class DiffSeg:
    """Segments photos with the self-attention of a diffusion model.

    >>> seg = DiffSeg.from_pretrained("mini")
    >>> out = seg("photo.jpg")
    >>> out.overlay().save("overlay.png")
    """

    def __init__(self, model: DiffusionModel):
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        name: str = "mini",
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str | None = None,
    ) -> DiffSeg:
        """Loads a model by name, folder or hub id; see `DiffusionModel.from_pretrained`."""
        return cls(DiffusionModel.from_pretrained(name, revision=revision, device=device, dtype=dtype))

    def settings(
        self, threshold: float | Sequence[float] | None = None, timestep: int | None = None, **rest
    ) -> Settings:
        """Settings with the model's own defaults (the paper's, tau = 1.1 and t = 300, where it has none)."""
        defaults = {"threshold": 1.1, "timestep": 300, **self.model.defaults}
        threshold = defaults["threshold"] if threshold is None else threshold
        timestep = int(defaults["timestep"]) if timestep is None else timestep
        return Settings.make(threshold, timestep=timestep, **rest)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray | str | Path,
        *,
        threshold: float | Sequence[float] | None = None,
        anchors: int = 16,
        iterations: int | None = None,
        weights: Sequence[float] | None = None,
        timestep: int | None = None,
        refine: bool = False,
        size: int = 512,
    ) -> Segmentation:
        """Segments a photo: the whole of it, at its own size and shape.

        Args:
            image: PIL image, uint8 [H, W, 3], or a file.
            threshold: tau in nats, one for all iterations or one for each; None: the model's own default.
            anchors: M, of the M x M grid. iterations: N; None: as many as thresholds, else 3.
            weights: R, one per resolution from finest to coarsest; None: proportional to the resolution.
            timestep: t; None: the model's own default. refine: k-means on the result.
            size: side, in pixels, of the square whose area the photo is resized to for the model.

        Raises:
            ImageError: the photo cannot be used. ValueError: a setting is out of range.
        """
        chosen = self.settings(
            threshold, timestep, anchors=anchors, iterations=iterations, weights=weights, refine=refine, size=size
        )
        return self.segment(load_image(image), chosen)

    @torch.no_grad()
    def segment(self, photo: np.ndarray, settings: Settings) -> Segmentation:
        """Segments a photo, uint8 [H, W, 3], with given settings."""
        height, width = photo.shape[:2]
        pixels = prepare(photo, working_size(height, width, settings.size, self.model.multiple))
        labels, proposals, timings_s = self.segment_pixels(pixels, settings, (height, width))
        return Segmentation(labels, proposals, photo, self.model.name, self.model.dtype, settings, timings_s)

    @torch.no_grad()
    def segment_pixels(
        self, pixels: torch.Tensor, settings: Settings, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """The method itself: pixels float [1, 3, h, w] in [-1, 1], multiples of the model's, to labels of any size.

        Returns:
            labels int32 [H, W] of the given size, proposals float32 [K, h', w'], seconds per stage.
        """
        return self.segment_prompted(pixels, settings, size)[:3]

    @torch.no_grad()
    def segment_prompted(
        self, pixels: torch.Tensor, settings: Settings, size: tuple[int, int], prompt: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float], Maps]:
        """As `segment_pixels`, with a prompt in place of the empty one.

        Returns:
            Also, where there is a prompt, the same pass' cross-attention over its tokens: {(h, w): [1, h*w, tokens]}.
        """
        clock = _Clock(self.model.device)
        with clock("attention"):
            maps = self.model.attention(
                pixels.to(self.model.device), settings.timestep, [prompt or ""], cross=prompt is not None
            )
        with clock("aggregate"):
            attention, cross = aggregate(maps.self_attention, settings.weights)[0], maps.cross_attention
            del maps
        with clock("merge"):
            proposals = merge(attention, settings.anchors, settings.threshold)
            if settings.refine:
                proposals = refine(attention, proposals)
        with clock("labels"):
            labels, order = by_area(to_labels(proposals, size), len(proposals))
            kept = proposals[order[: int(labels.max()) + 1]]
            found = labels.to(torch.int32).cpu().numpy(), kept.float().cpu().numpy()
        return *found, clock.seconds, cross


def describe(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], for JSON: area (pixels), bbox [x, y, width, height], segmentation (compressed COCO RLE)."""
    rle = coco_mask.encode(np.asfortranarray(mask).astype(np.uint8))
    return {
        "area": int(coco_mask.area(rle)),
        "bbox": [int(x) for x in coco_mask.toBbox(rle)],
        "segmentation": {"size": [int(x) for x in rle["size"]], "counts": rle["counts"].decode("ascii")},
    }


def working_size(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """The (height, width) nearest to the photo's shape with about size x size area, both multiples of `multiple`.

    Photos more than 16 times as long as wide are shortened to that: the grid of anchors needs some positions a side.
    """
    ratio = min(max(height / width, 1 / 16), 16)
    sides = (size * math.sqrt(ratio), size / math.sqrt(ratio))
    h, w = (max(round(side / multiple), 1) * multiple for side in sides)
    return h, w


def prepare(photo: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A photo uint8 [H, W, 3] as the model takes it: float32 [1, 3, h, w] in [-1, 1], resized with antialiasing."""
    x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return x / 127.5 - 1


def by_area(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Renumbers labels int64 [H, W], 0..count-1, by falling area, without waiting for the device.

    Returns:
        The labels, 0..K-1, and the old numbers int64 [count] in the new order, those of no pixel last.
    """
    flat = labels.flatten()
    areas = torch.zeros(count, dtype=torch.int64, device=labels.device).index_add_(0, flat, torch.ones_like(flat))
    order = torch.argsort(areas, descending=True, stable=True)
    new = torch.empty_like(order)
    new[order] = torch.arange(count, device=labels.device)
    return new[labels], order


class _Clock:
    """Seconds per stage, waiting for the device at each end."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[stage] = self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
