"""DiffSeg as users see it: a backbone and settings turn a photo into a Segmentation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask

from diffseg.attention import Look, Needs, Size
from diffseg.backbones.base import PAPER_TIMESTEP
from diffseg.images import load_image, overlay
from diffseg.methods.base import as_numpy
from diffseg.methods.merging import Settings, labels_of, proposals
from diffseg.observed import Batch, Observed
from diffseg.resizing import prepare, working_size

if TYPE_CHECKING:
    from diffseg.backbones.base import Backbone

PAPER_THRESHOLD = 1.1


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
    """Segments photos with the self-attention of a backbone, such as a diffusion model.

    >>> seg = DiffSeg.from_pretrained("mini")
    >>> out = seg("photo.jpg")
    >>> out.overlay().save("overlay.png")
    """

    def __init__(self, model: Backbone):
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
        """Loads a diffusion model by name, folder or hub id; see `diffseg.backbones.pretrained`."""
        from diffseg.backbones.pretrained import from_pretrained

        return cls(from_pretrained(name, revision=revision, device=device, dtype=dtype))

    def settings(
        self, threshold: float | Sequence[float] | None = None, timestep: int | None = None, **rest
    ) -> Settings:
        """Settings with the model's own defaults (the paper's, tau = 1.1 and t = 300, where it has none)."""
        defaults = {"threshold": PAPER_THRESHOLD, "timestep": PAPER_TIMESTEP, **self.model.defaults}
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
            ImageError: the photo cannot be used. UserError: a setting is out of range.
        """
        chosen = self.settings(
            threshold, timestep, anchors=anchors, iterations=iterations, weights=weights, refine=refine, size=size
        )
        return self.segment(load_image(image), chosen)

    @torch.no_grad()
    def segment(self, photo: np.ndarray, settings: Settings) -> Segmentation:
        """Segments a photo, uint8 [H, W, 3], with given settings."""
        return self.segment_observed(photo, self.observe_as(photo, settings), settings)

    def observe(
        self,
        image: Image.Image | np.ndarray | str | Path,
        *,
        size: int = 512,
        timestep: int | None = None,
        prompt: str | None = None,
    ) -> Observed:
        """Looks at a photo once; every method of `diffseg.methods`, with any settings, then goes without a new pass.

        >>> seen = seg.observe("photo.jpg")
        >>> coarse, fine = Merging(threshold=1.2).segment(seen), Merging(threshold=0.6).segment(seen)

        Args:
            image: PIL image, uint8 [H, W, 3], or a file. size, timestep: as for a call.
            prompt: what the photo shows, in place of the empty prompt; cross-attention over its tokens is kept, too.

        Returns:
            The photo as methods see it; labels come at the photo's own size.

        Raises:
            ImageError: the photo cannot be used. UserError: a setting is out of range.
        """
        return self.observe_as(load_image(image), self.settings(timestep=timestep, size=size), prompt)

    def observe_as(self, photo: np.ndarray, settings: Settings, prompt: str | None = None) -> Observed:
        """`observe` for a photo uint8 [H, W, 3], with the size and time step of settings."""
        height, width = photo.shape[:2]

        def pixels_at(size: int) -> torch.Tensor:
            return prepare(photo, working_size(height, width, size, self.model.multiple))

        return self._observed(pixels_at, settings.size, settings.timestep, (height, width), prompt)

    def observe_pixels(self, pixels: torch.Tensor, timestep: int, size: Size, prompt: str | None = None) -> Observed:
        """`observe` for pixels float [1, 3, h, w] in [-1, 1], multiples of the model's; labels at `size` (H, W)."""
        own = round(math.sqrt(pixels.shape[2] * pixels.shape[3]))

        def pixels_at(size: int) -> torch.Tensor:
            if size == own:
                return pixels
            shape = working_size(pixels.shape[2], pixels.shape[3], size, self.model.multiple)
            return F.interpolate(pixels, shape, mode="bilinear", align_corners=False, antialias=True)

        return self._observed(pixels_at, own, timestep, size, prompt)

    def _observed(
        self, pixels_at: Callable[[int], torch.Tensor], own: int, timestep: int, size: Size, prompt: str | None
    ) -> Observed:
        """A photo as methods see it; pixels_at: (size) -> pixels [1, 3, h, w] of about size x size of area."""
        look, pixels = Look(timestep, prompted=prompt is not None), pixels_at(own)

        def see(asked: Look, needs: Needs):
            prompts = [prompt or ""] if asked.prompted else None
            shown = pixels if asked.size is None else pixels_at(asked.size)
            return self.model.observe(shown.to(self.model.device), needs, asked, prompts)

        needs = {look: Needs(attention=True, cross=prompt is not None)}
        return Batch([pixels[0]], see, look, needs, [size])[0]

    @torch.no_grad()
    def segment_observed(self, photo: np.ndarray, image: Observed, settings: Settings) -> Segmentation:
        """Segments an observed photo, uint8 [H, W, 3]; the pass, if it is still to come, is part of the timings."""
        clock = _Clock(self.model.device)
        with clock("attention"):
            image.batch.seen()
        with clock("aggregate"):
            image.attention(settings.weights)
        with clock("merge"):
            merged = proposals(image, settings)
        with clock("labels"):
            by_area, behind = labels_of(merged, image.size)
            labels = as_numpy(by_area)
            kept = behind[: int(labels.max()) + 1].float().cpu().numpy()
        return Segmentation(labels, kept, photo, self.model.name, self.model.dtype, settings, clock.seconds)


def describe(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], for JSON: area (pixels), bbox [x, y, width, height], segmentation (compressed COCO RLE)."""
    rle = coco_mask.encode(np.asfortranarray(mask).astype(np.uint8))
    return {
        "area": int(coco_mask.area(rle)),
        "bbox": [int(x) for x in coco_mask.toBbox(rle)],
        "segmentation": {"size": [int(x) for x in rle["size"]], "counts": rle["counts"].decode("ascii")},
    }


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
