"""Photos in, pictures out: everything that knows about image files, none of it about the method."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from scipy.ndimage import distance_transform_edt

from diffseg.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".avif"})
MIN_SIDE = 16
MAX_PIXELS = 100_000_000


class ImageError(UserError):
    """A picture that cannot be used; the message names it and says why."""


def load_image(image: Image.Image | np.ndarray | str | Path) -> np.ndarray:
    """Any picture as it should be looked at: uint8 [H, W, 3], RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit and floating-point greys are scaled to 8 bits.

    Args:
        image: a PIL image, uint8 [H, W, 3] or [H, W], or a file.

    Raises:
        ImageError: missing, unreadable or truncated file, not an image, below 16 pixels a side, above 100 megapixels.
    """
    name = str(image) if isinstance(image, str | Path) else "the image"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise ImageError(f"an image array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        image = Image.fromarray(image)
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        _check_size(name, *opened.size)
        return np.asarray(_to_rgb(ImageOps.exif_transpose(opened)))
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: too large, more than {MAX_PIXELS // 10**6} megapixels; shrink it first") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image, or of a format that Pillow cannot read") from None
    except (OSError, SyntaxError, EOFError) as error:  # Pillow's decoders raise all three on damaged files
        raise ImageError(f"{name}: damaged or unreadable ({error}); export it again") from None


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels is too small, at least {MIN_SIDE} a side are needed")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels is too large, at most {MAX_PIXELS // 10**6} megapixels; shrink it first"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image, np.float32)
        low, high = float(values.min()), float(values.max())
        if image.mode == "I" and low >= 0:  # a 16-bit grey that Pillow widened
            low, high = 0.0, 65535.0 if high > 255 else 255.0
        image = Image.fromarray(((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def palette(count: int) -> np.ndarray:
    """Colours that are easy to tell apart: uint8 [count, 3], hues a golden angle apart, alternating in brightness."""
    rows = [
        colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.75, 0.5, 0.95)[i % 3], (0.95, 1.0, 0.7)[i // 3 % 3])
        for i in range(count)
    ]
    return (np.array(rows).reshape(-1, 3) * 255).astype(np.uint8)


# From linear RGB to Oklab, in which equal distances look about equally different (Ottosson, 2020).
_TO_CONES = ((0.4122, 0.5363, 0.0514), (0.2119, 0.6807, 0.1074), (0.0883, 0.2817, 0.6300))
_TO_OKLAB = ((0.2105, 0.7936, -0.0041), (1.9780, -2.4286, 0.4506), (0.0259, 0.7828, -0.8087))


def _oklab(colours: np.ndarray) -> np.ndarray:
    """float [n, 3]: lightness, two axes of colour. colours: uint8 [n, 3], sRGB."""
    x = colours / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ np.transpose(_TO_CONES)) @ np.transpose(_TO_OKLAB)


@lru_cache
def distinct_colours(count: int) -> np.ndarray:
    """Colours for a legend, uint8 [count, 3]: each as unlike all before it as can be, none grey, the first ones fixed.

    `palette` is for neighbours that must differ; here any two must, as far as the eye and the count allow.
    """
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    places = _oklab(colours)
    chroma = np.hypot(places[:, 1], places[:, 2])
    calm = (places[:, 0] > 0.4) & (places[:, 0] < 0.9) & (chroma > 0.07) & (chroma < 0.19)
    colours, places = colours[calm], places[calm]
    chosen = [int(np.abs(colours - np.array([60, 105, 180])).sum(1).argmin())]
    gap = np.full(len(colours), np.inf)
    for _ in range(count - 1):
        gap = np.minimum(gap, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(gap.argmax()))
    return colours[chosen[:count]]


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The photo (uint8 [H, W, 3]) under its segments (int [H, W]) in colour, with white outlines."""
    colours = Image.fromarray(palette(int(labels.max()) + 1)[labels])
    mixed = np.array(Image.blend(Image.fromarray(image), colours, opacity))
    edge = np.zeros(labels.shape, bool)
    for step in range(1, max(2, round(max(labels.shape) / 400)) + 1):  # about 1/400 of the picture thick
        edge[:, step:] |= labels[:, step:] != labels[:, :-step]
        edge[step:] |= labels[step:] != labels[:-step]
    mixed[edge] = 255
    return Image.fromarray(mixed)


def write_names(picture: Image.Image, labels: np.ndarray, names: Sequence[str], size: int | None = None) -> Image.Image:
    """The picture with names[i] written where the label i (int [H, W]) is widest, once for each label that occurs.

    size: of the letters in pixels; None: to suit the picture.
    """
    size = size or max(11, round(min(picture.size) / 22))
    font, draw = ImageFont.load_default(size), ImageDraw.Draw(picture)
    step = max(1, max(labels.shape) // 256)  # a name's place need not be exact to the pixel
    small = labels[step // 2 :: step, step // 2 :: step]
    for index in np.unique(small):
        inside = distance_transform_edt(np.pad(small == index, 1))  # the picture's border is a border, too
        row, column = np.unravel_index(inside.argmax(), inside.shape)
        half = draw.textlength(names[index], font) / 2 + 2
        x = np.clip((column - 0.5) * step, half, max(picture.width - half, half))
        y = np.clip((row - 0.5) * step, size / 2 + 2, picture.height - size / 2 - 2)
        stroke = max(1, round(size / 9))
        draw.text((x, y), names[index], "white", font, "mm", stroke_width=stroke, stroke_fill="black")
    return picture


def label_image(labels: np.ndarray) -> Image.Image:
    """A label map int [H, W] as a grey PNG holds it: 8 bits where that is enough, else 16."""
    if labels.min() < 0 or labels.max() > 65535:
        raise ValueError(f"labels must be 0..65535 to be stored, got {labels.min()}..{labels.max()}")
    return Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16))
