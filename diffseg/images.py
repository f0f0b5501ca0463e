"""Photos in, pictures out: everything that knows about image files, none of it about the method."""

from __future__ import annotations

import colorsys
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, UnidentifiedImageError

from diffseg.errors import UserError, did_you_mean

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".avif"})
MIN_SIDE = 16
MAX_PIXELS = 100_000_000
_LIMIT = f"at most {MAX_PIXELS // 10**6} megapixels; shrink it first"


# Pillow warns from 89 megapixels on, and refuses from 179; here the limit is MAX_PIXELS, and `open_image` keeps it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(UserError):
    """A picture that cannot be used; the message names it and says why."""


def load_image(image: Image.Image | np.ndarray | str | Path) -> np.ndarray:
    """Any picture as it should be looked at: uint8 [H, W, 3], RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit and floating-point greys are scaled to 8 bits.
    Of several frames it is the first.

    Args:
        image: a PIL image, uint8 [H, W, 3], [H, W] or, with transparency, [H, W, 4], or a file.

    Raises:
        ImageError: none of these; missing, unreadable or truncated file, not an image, below 16 pixels a side, above
            100 megapixels, pixels that are not finite numbers.
    """
    if isinstance(image, str | Path):
        with open_image(image) as opened:
            return _upright(str(image), opened)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise ImageError(f"an image array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ImageError(f"an image must be a file, a PIL image or an array, got {type(image).__name__}")
    _check_not_too_large("the image", *image.size)
    return _upright("the image", image)


def decode_image(content: bytes, name: str) -> np.ndarray:
    """What `load_image` makes of a file, of what the file holds. name: what messages call it.

    Raises:
        ImageError: as `load_image`.
    """
    with _damage_named(name):
        image = Image.open(BytesIO(content))
    with image:
        _check_not_too_large(name, *image.size)
        return _upright(name, image)


def _upright(name: str, image: Image.Image) -> np.ndarray:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels is too small, at least {MIN_SIDE} a side are needed")
    with _damage_named(name):
        image = ImageOps.exif_transpose(image)
    return _rgb(name, image)


def read_rgb(path: str | Path, upright: bool = False) -> np.ndarray:
    """A file as `load_image` reads it, uint8 [H, W, 3], but of any size, and EXIF orientation applied only if upright.

    Raises:
        ImageError: as `load_image`.
    """
    with open_image(path) as image:
        if upright:
            with _damage_named(path):
                image = ImageOps.exif_transpose(image)
        return _rgb(str(path), image)


def read_numbers(path: str | Path) -> np.ndarray:
    """The numbers that a file stores: [H, W] (of a palette: indices) or [H, W, channels], of whatever type.

    Raises:
        ImageError: as `load_image`; several frames, of which nothing says which is meant.
    """
    with open_image(path) as image, _damage_named(path):
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise ImageError(f"{path} holds {frames} frames or pages: save the one that is meant by itself")
        return np.asarray(image)


def read_size(path: str | Path) -> tuple[int, int]:
    """(width, height) by the file's header.

    Raises:
        ImageError: as `load_image`, as far as a header shows it.
    """
    with open_image(path) as image:
        return image.size


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """A regular file's picture of at most MAX_PIXELS, nothing of it decoded yet.

    Raises:
        ImageError: there is no such picture; a pipe or a device is not opened, because it might never answer.
    """
    with _damage_named(path):
        kind = Path(path).stat().st_mode
        if not stat.S_ISREG(kind):
            called = "a folder" if stat.S_ISDIR(kind) else "a pipe, socket or device"
            raise ImageError(f"{path} is unreadable: it is {called}, not a file with a picture; give a regular file")
        image = Image.open(path)
    with image:
        _check_not_too_large(path, *image.size)
        yield image


def _check_not_too_large(name: str | Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels is too large, {_LIMIT}")


@contextmanager
def _damage_named(name: str | Path) -> Iterator[None]:
    """Whatever Pillow raises, as an ImageError: its decoders raise almost anything on damaged files.

    Only calls of Pillow and of the system belong inside: a mistake of this project would be called damage.
    """
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(
            f"{name} is missing, there is no such file: check the path, fetch it again, or leave it out"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} is too large, {_LIMIT}") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is damaged or not an image, at least of no format that Pillow can read: export or fetch it again"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise ImageError(f"{name} is unreadable ({error.strerror}): check the file and its permissions") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} is damaged or unreadable ({reason}): export or fetch it again") from None


def _rgb(name: str, image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a picture of any mode."""
    with _damage_named(name):
        image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_scaled(name, np.asarray(image)))
    with _damage_named(name):
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def _scaled(name: str, values: np.ndarray) -> np.ndarray:
    """int32 or float32 [H, W] as uint8: a 16-bit grey that Pillow widened by 65535, all else from least to largest."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():  # NaN in any pixel makes both NaN
        raise ImageError(f"{name} has pixels that are NaN or infinite: replace them by numbers and export it again")
    if values.dtype == np.int32 and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0 if high > 255 else 255.0
    shades = values.astype(np.float64)
    shades -= low
    shades *= 255 / max(high - low, 1e-12)
    return np.rint(shades, out=shades).astype(np.uint8)


def palette(count: int) -> np.ndarray:
    """Colours that are easy to tell apart: uint8 [count, 3], hues a golden angle apart, alternating in brightness."""
    rows = [
        colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.75, 0.5, 0.95)[i % 3], (0.95, 1.0, 0.7)[i // 3 % 3])
        for i in range(count)
    ]
    return (np.array(rows).reshape(-1, 3) * 255).astype(np.uint8)


_PLACES = 512
_ASKED = 8  # colours of `palette` that are far from each other


@lru_cache
def _places() -> np.ndarray:
    """Points (x, y) in the unit square that fill it evenly, however many are taken: float [_PLACES, 2] (Halton)."""

    def mirrored(index: int, base: int) -> float:
        value, share = 0.0, 1.0
        while index:
            share /= base
            value += index % base * share
            index //= base
        return value

    return np.array([[mirrored(i, 2), mirrored(i, 3)] for i in range(2, _PLACES + 2)])


def region_colours(labels: np.ndarray, palette: str = "regions") -> np.ndarray:
    """The colour of each label of a map int [H, W], >= 0: uint8 [max + 1, 3]; no two share one.

    A region's colour comes from its place, not from its number. Of a fixed sequence of points that fills the picture,
    each asks for one of the first eight colours; a region has the first that one of its points asks for and that no
    region with an earlier point has, or else the first that is free. So colours stay, but for few, when other regions
    merge or split, and merged regions have the colour of one of them.

    palette: one of PALETTES.
    """
    rows, columns = (_places()[:, ::-1] * labels.shape).astype(int).T
    points: dict[int, list[int]] = {}  # of each region, the regions in the order of their first points
    for index, label in enumerate(labels[rows, columns].tolist()):
        points.setdefault(label, []).append(index)
    count = int(labels.max()) + 1
    free = dict.fromkeys(range(count + _ASKED))
    chosen = np.empty(count, int)
    for label in [*points, *(label for label in range(count) if label not in points)]:
        asked = (index % _ASKED for index in points.get(label, ()))
        chosen[label] = next((colour for colour in asked if colour in free), next(iter(free)))
        del free[chosen[label]]
    return PALETTES[palette](count + _ASKED)[chosen]


# From linear RGB to Oklab, in which equal distances look about equally different (Ottosson, 2020).
_TO_CONES = ((0.4122, 0.5363, 0.0514), (0.2119, 0.6807, 0.1074), (0.0883, 0.2817, 0.6300))
_TO_OKLAB = ((0.2105, 0.7936, -0.0041), (1.9780, -2.4286, 0.4506), (0.0259, 0.7828, -0.8087))


def _oklab(colours: np.ndarray, vision: Any = None) -> np.ndarray:
    """float [n, 3]: lightness, two axes of colour. colours: [n, 3], sRGB, 0..255. vision: of linear RGB, [3, 3]."""
    x = colours / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    linear = linear if vision is None else np.clip(linear @ np.transpose(vision), 0, 1)
    return np.cbrt(linear @ np.transpose(_TO_CONES)) @ np.transpose(_TO_OKLAB)


# Linear RGB as eyes see it that lack the cones for red, and those for green (Viénot, Brettel, Mollon, 1999).
_NO_RED = ((0.1124, 0.8876, 0.0), (0.1124, 0.8876, 0.0), (0.0040, -0.0040, 1.0))
_NO_GREEN = ((0.2928, 0.7072, 0.0), (0.2928, 0.7072, 0.0), (-0.0223, 0.0223, 1.0))


@lru_cache
def distinct_colours(count: int) -> np.ndarray:
    """Colours for a legend, uint8 [count, 3]: each as unlike all before it as can be, none grey, the first ones fixed.

    `palette` is for neighbours that must differ; here any two must, as far as the eye and the count allow.
    """
    colours = _candidates()
    places = _oklab(colours)
    chroma = np.hypot(places[:, 1], places[:, 2])
    calm = (places[:, 0] > 0.4) & (places[:, 0] < 0.9) & (chroma > 0.07) & (chroma < 0.19)
    return _far_apart(colours[calm], [places[calm]], count)


@lru_cache
def safe_palette(count: int) -> np.ndarray:
    """As `distinct_colours`, also to eyes that lack the cones for red or green; after the first 128 as `palette`.

    They differ in lightness more than in hue.
    """
    colours = _candidates()
    seen = [_oklab(colours, vision) for vision in (np.eye(3), _NO_RED, _NO_GREEN)]
    visible = (seen[0][:, 0] > 0.3) & (seen[0][:, 0] < 0.95) & (np.hypot(seen[0][:, 1], seen[0][:, 2]) > 0.09)
    chosen = _far_apart(colours[visible], [places[visible] for places in seen], min(count, _SAFE))
    known = set(map(tuple, chosen.tolist()))
    more = [colour for colour in palette(count).tolist() if tuple(colour) not in known] if count > _SAFE else []
    return np.concatenate([chosen, np.array(more, np.uint8).reshape(-1, 3)])[:count]


_SAFE = 128


def _candidates() -> np.ndarray:
    """Colours to choose from, uint8 [n, 3]: a grid in RGB."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)


def _far_apart(colours: np.ndarray, seen: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The first `count` colours of uint8 [n, 3] of which each is farthest from those before it, from a blue on.

    seen: their places float [n, 3], as one or several kinds of eyes see them; the kind that sees least decides.
    """
    chosen = [int(np.abs(colours - np.array([60, 105, 180])).sum(1).argmin())]
    gap = np.full(len(colours), np.inf)
    for _ in range(count - 1):
        for places in seen:
            gap = np.minimum(gap, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(gap.argmax()))
    return colours[chosen[:count]]


PALETTES: dict[str, Callable[[int], np.ndarray]] = {"regions": palette, "safe": safe_palette}


def check_palette(name: str) -> None:
    """Raises UserError where there is no palette of this name."""
    if name not in PALETTES:
        known = " or ".join(PALETTES)
        raise UserError(f"the palette must be {known}, got {name!r}{did_you_mean(name, list(PALETTES))}")


def check_opacity(opacity: float) -> None:
    """Raises UserError where the opacity of an overlay is not 0 (the photo alone) to 1 (colours alone)."""
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity must be 0 (the photo alone) to 1 (colours alone), got {opacity:g}")


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    opacity: float = 0.5,
    palette: str = "regions",
    names: Sequence[str] | None = None,
) -> Image.Image:
    """The photo (uint8 [H, W, 3]) under its segments (int [H, W], >= 0) in colour, outlined in white with a dark rim.

    Colours are those of `region_colours`, lighter or darker where the photo has nearly the same, so that a tint is seen
    on any photo; the two-tone outline is seen on bright and on dark ones.

    Args:
        opacity: of the colours, 0 (the photo alone) to 1 (colours alone). palette: one of PALETTES. names: of the
            labels, to be written on them.

    Raises:
        UserError: opacity outside 0..1, or an unknown palette.
    """
    check_opacity(opacity)
    check_palette(palette)
    if labels.max() > 65535:  # numbers of something, not of segments: no colours for those that do not occur
        numbers, labels = np.unique(labels, return_inverse=True)
        names, labels = names and [names[n] for n in numbers], labels.reshape(image.shape[:2])
    colours = region_colours(labels, palette)
    if opacity < 1:
        colours = _off_photo(colours, image, labels)
    mixed = np.array(Image.blend(Image.fromarray(image), Image.fromarray(colours[labels]), opacity))
    width = max(1, round(max(labels.shape) / 400))
    line = _outlines(labels, width)
    around = ImageFilter.MaxFilter(2 * max(1, width // 2) + 1)
    rim = (np.asarray(Image.fromarray(line.astype(np.uint8)).filter(around)) > 0) & ~line
    mixed[rim] = mixed[rim] * _RIM
    mixed[line] = 255
    picture = Image.fromarray(mixed)
    return picture if names is None else write_names(picture, labels, names)


_RIM = 0.45  # brightness that the dark rim of an outline leaves
_NEAR = 0.16  # in Oklab: a tint this near to the photo's own colour is hardly seen


def _off_photo(colours: np.ndarray, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The colours uint8 [n, 3] of labels, halfway to white or black where the photo's mean there is nearly the same."""
    areas = np.bincount(labels.ravel(), minlength=len(colours))
    sums = [np.bincount(labels.ravel(), image[..., c].ravel(), len(colours)) for c in range(3)]
    of_photo = _oklab(np.stack(sums, 1) / np.maximum(areas, 1)[:, None])
    near = np.linalg.norm(_oklab(colours) - of_photo, axis=1) < _NEAR
    away = np.where(of_photo[:, :1] < 0.6, 255, 0)
    return np.where(near[:, None], (colours.astype(int) + away) // 2, colours).astype(np.uint8)


def _outlines(labels: np.ndarray, width: int) -> np.ndarray:
    """bool [H, W]: the pixels to the right of and below a border between labels, `width` of them."""
    edge = np.zeros(labels.shape, bool)
    for step in range(1, width + 1):
        edge[:, step:] |= labels[:, step:] != labels[:, :-step]
        edge[step:] |= labels[step:] != labels[:-step]
    return edge


def write_names(picture: Image.Image, labels: np.ndarray, names: Sequence[str], size: int | None = None) -> Image.Image:
    """The picture with names[i] written where the label i (int [H, W]) is widest, once for each label that occurs.

    size: of the letters in pixels; None: to suit the picture.
    """
    from scipy.ndimage import distance_transform_edt  # slow to import, and seldom needed

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


def heat(photo: Image.Image, amount: np.ndarray) -> Image.Image:
    """A photo in dark grey, and in a bright colour where a map float [h, w], 0 to 1, is large."""
    grown = Image.fromarray(amount.clip(0, 1).astype(np.float32)).resize(photo.size, Image.Resampling.BILINEAR)
    share = np.asarray(grown)[..., None]
    grey = np.asarray(photo.convert("L"), np.float32)[..., None] * 0.5
    return Image.fromarray(((1 - share) * grey + share * np.array(_HEAT)).round().astype(np.uint8))


_HEAT = (255.0, 196.0, 64.0)


def beside(pictures: Sequence[Image.Image], titles: Sequence[str], columns: int = 6) -> Image.Image:
    """Pictures of one size in rows of at most `columns`, each under its title, on white."""
    width, height = pictures[0].size
    letters, gap = max(11, round(width / 20)), max(2, round(width / 50))
    font, above = ImageFont.load_default(letters), round(1.6 * letters)
    rows = -(-len(pictures) // columns)
    columns = -(-len(pictures) // rows)  # as full as each other
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (above + height + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(index, columns)
        left, top = column * (width + gap), row * (above + height + gap)
        draw.text((left + width / 2, top + above / 2), title, "black", font, "mm")
        sheet.paste(picture, (left, top + above))
    return sheet


def label_image(labels: np.ndarray) -> Image.Image:
    """A label map int [H, W] as a grey PNG holds it: 8 bits where that is enough, else 16."""
    if labels.min() < 0 or labels.max() > 65535:
        raise ValueError(f"labels must be 0..65535 to be stored, got {labels.min()}..{labels.max()}")
    return Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16))


def palette_image(labels: np.ndarray, palette: str = "regions") -> Image.Image:
    """A label map int [H, W] as a PNG that shows the overlay's colours and holds the numbers, as indices of a palette.

    A PNG's palette has 256 colours: with larger numbers it is `label_image`'s, without colours.
    """
    image = label_image(labels)
    if labels.max() < 256:
        image.putpalette(region_colours(labels, palette).tobytes())
    return image
