"""DiffSeg as users see it: a backbone and settings turn a photo into a Segmentation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask

from diffseg.attention import Look, Needs, Observation, Size
from diffseg.backbones.base import PAPER_TIMESTEP
from diffseg.errors import UserError
from diffseg.files import check_writable, is_file_name
from diffseg.images import load_image, overlay
from diffseg.methods.base import as_numpy
from diffseg.methods.merging import Settings, label_maps, labels_of, proposals
from diffseg.observed import Batch, Observed
from diffseg.outputs import write_results
from diffseg.resizing import prepare, working_size

if TYPE_CHECKING:
    from diffseg.backbones.base import Backbone
    from diffseg.explorer import Explorer
    from diffseg.semantic import LabelledSegmentation

PAPER_THRESHOLD = 1.1


@dataclass(frozen=True)
class Segmentation:
    """The segments of one photo.

    labels: int32 [H, W] at the photo's own size, 0..K-1, compact, larger segments first. proposals: float32 [K, h, w],
    the distribution behind each label, each sums to 1. image: the photo, uint8 [H, W, 3]. model, dtype: what it was
    made with, and in which precision. settings: the hyper-parameters. timings_s: seconds per stage. source: the file
    that the photo was read from; None: it was no file.
    """

    labels: np.ndarray
    proposals: np.ndarray
    image: np.ndarray
    model: str
    dtype: str
    settings: Settings
    timings_s: dict[str, float]
    source: str | None = None

    def __len__(self) -> int:
        return len(self.proposals)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        taus = ", ".join(dict.fromkeys(f"{tau:g}" for tau in self.settings.threshold))
        segments = f"{len(self)} segment{'s' * (len(self) != 1)}"
        return f"Segmentation({segments}, {width} x {height} pixels, model {self.model}, threshold {taus})"

    def overlay(self, opacity: float = 0.5, numbers: bool = False, palette: str = "regions") -> Image.Image:
        """The photo with its segments in colour and outlined.

        Args:
            opacity: of the colours, 0 (the photo alone) to 1. numbers: write each segment's number on it.
            palette: "regions", or "safe", whose colours also differ to eyes that lack the cones for red or green.

        Raises:
            UserError: opacity outside 0..1, or an unknown palette.
        """
        names = [str(number) for number in range(len(self))] if numbers else None
        return overlay(self.image, self.labels, opacity, palette, names)

    def save(self, folder: str | Path, name: str | None = None, **drawing: Any) -> Path:
        """Writes what `diffseg segment` writes, NAME.labels.png, NAME.overlay.png and NAME.json, into a folder.

        Args:
            folder: made where it is missing. name: None: that of the photo's file, "photo" where it was no file.
            drawing: opacity, numbers, palette of the overlay.

        Returns:
            Folder / NAME.

        Raises:
            UserError: a name that no file can have. OSError: the folder cannot be written.
        """
        return save_results(self, folder, name, self.source, drawing)

    def segments(self) -> list[dict[str, Any]]:
        """Per segment: id, area (pixels), bbox [x, y, width, height] and segmentation (compressed COCO RLE)."""
        return [{"id": index, **facts} for index, facts in enumerate(describe_all(self.labels, len(self)))]

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

    def __repr__(self) -> str:
        return f"DiffSeg({self.model.name!r}, {self.model.device}, {self.model.dtype})"

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
        return replace(self.segment(load_image(image), chosen), source=_source(image))

    @torch.no_grad()
    def many(
        self, images: Iterable[Image.Image | np.ndarray | str | Path], *, batch: int = 4, **options: Any
    ) -> list[Segmentation]:
        """Segments photos as a call does each; those that the model sees at one size go through it together.

        The first photo of a batch has the pass in its timings.

        Args:
            images: PIL images, uint8 [H, W, 3], or files. batch: most photos in one pass; memory grows with it.
            options: threshold, anchors, iterations, weights, timestep, refine, size, as for a call.

        Returns:
            One for each photo, in the order given.

        Raises:
            ImageError: a photo cannot be used. UserError: a setting is out of range.
        """
        if batch < 1:
            raise UserError(f"batch must be at least 1 photo, got {batch}")
        chosen, given = self.settings(**options), list(images)
        photos = [load_image(image) for image in given]
        found: dict[int, Segmentation] = {}
        for indices, seen in self._batches(photos, chosen, batch):
            for i, one in zip(indices, seen, strict=True):
                found[i] = replace(self.segment_observed(photos[i], one, chosen), source=_source(given[i]))
        return [found[i] for i in range(len(given))]

    @torch.no_grad()
    def label_maps(self, photos: Sequence[np.ndarray], settings: Settings, batch: int = 1) -> list[np.ndarray]:
        """The labels alone, int32 [H, W], of photos uint8 [H, W, 3]; up to `batch` of one shape in one pass.

        A GPU is waited for once a batch.

        Raises:
            UserError: a photo's shape does not suit the settings, or the memory is too small for the batch.
        """
        found: dict[int, np.ndarray] = {}
        for indices, seen in self._batches(photos, settings, batch):
            found |= zip(indices, label_maps(seen, settings), strict=True)
        return [found[i] for i in range(len(photos))]

    def _batches(
        self, photos: Sequence[np.ndarray], settings: Settings, batch: int
    ) -> Iterator[tuple[list[int], Batch]]:
        """Photos of one working shape, `batch` at most: which they are, and as methods see them."""
        alike: dict[Size, list[int]] = {}
        for index, photo in enumerate(photos):
            height, width = photo.shape[:2]
            alike.setdefault(working_size(height, width, settings.size, self.model.multiple), []).append(index)
        for shape, indices in alike.items():
            for start in range(0, len(indices), batch):
                together = indices[start : start + batch]
                pixels = [prepare(photos[i], shape)[0] for i in together]
                sizes = [(photos[i].shape[0], photos[i].shape[1]) for i in together]
                yield together, Batch(pixels, self._see(torch.stack(pixels)), Look(settings.timestep), sizes=sizes)

    def _see(self, pixels: torch.Tensor) -> Callable[[Look, Needs], Observation]:
        """What a pass shows of pixels [B, 3, h, w], for a `Batch` looked at in its own size, without prompts."""
        return lambda look, needs: self.model.observe(pixels.to(self.model.device), needs, look)

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

    def explore(
        self,
        image: Image.Image | np.ndarray | str | Path,
        nouns: Sequence[str] | None = None,
        *,
        caption: str | None = None,
        timestep: int | None = None,
        size: int = 512,
    ) -> Explorer:
        """Looks at a photo once, for an interface: see `diffseg.explorer.Explorer`.

        >>> explorer = seg.explore("photo.jpg")
        >>> len(explorer.segmentation(0.5)), explorer.attention_at(120, 80).aggregated
        """
        from diffseg.explorer import Explorer

        return Explorer(self, image, nouns, caption=caption, timestep=timestep, size=size)

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
    return _facts(coco_mask.encode(np.asfortranarray(mask).astype(np.uint8)))


def describe_all(labels: np.ndarray, count: int) -> list[dict[str, Any]]:
    """What `describe` says of the mask of each label 0..count-1 of a map int [H, W], from one look at it."""
    (height, width), flat = labels.shape, labels.ravel(order="F")  # COCO's runs go down the columns
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    ends = np.append(starts[1:], flat.size)
    by_label = np.argsort(flat[starts], kind="stable")
    firsts = np.searchsorted(flat[starts][by_label], np.arange(count + 1))
    described = []
    for first, last in pairwise(firsts):
        runs = by_label[first:last]
        borders = np.stack([starts[runs], ends[runs]], 1).ravel()
        counts = np.diff(borders, prepend=0, append=flat.size)  # outside and inside by turns
        counts = counts if counts[-1] else counts[:-1]
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        described.append(_facts(rle))
    return described


def _facts(rle: Any) -> dict[str, Any]:
    """A mask as pycocotools encodes it, for JSON."""
    return {
        "area": int(coco_mask.area(rle)),
        "bbox": [int(x) for x in coco_mask.toBbox(rle)],
        "segmentation": {"size": [int(x) for x in rle["size"]], "counts": rle["counts"].decode("ascii")},
    }


def _source(image: object) -> str | None:
    return str(image) if isinstance(image, str | Path) else None


def save_results(
    made: Segmentation | LabelledSegmentation,
    folder: str | Path,
    name: str | None,
    source: str | None,
    drawing: dict[str, Any],
) -> Path:
    """Writes a photo's results into a folder, under a name (None: that of its source). Returns folder / name."""
    name = (Path(source).stem if source else "photo") if name is None else name
    if not is_file_name(name):
        raise UserError(f"{name!r} cannot be the name of a file: give another, such as name='photo'")
    check_writable(Path(folder), "choose another folder")
    stem = Path(folder) / name
    write_results(made, stem, source or name, **drawing)
    return stem


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
