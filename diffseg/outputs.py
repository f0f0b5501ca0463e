"""What is kept of a segmented photo: its files, and annotations of many photos in the formats that tools import.

A *record* is what NAME.json holds: the photo's path, its height and width, the model, and the segments as COCO RLE.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from pycocotools import mask as coco_mask

from diffseg import __version__
from diffseg.files import ATTENTION, OUTPUTS, write
from diffseg.images import palette_image

if TYPE_CHECKING:
    from diffseg.segmenter import Segmentation
    from diffseg.semantic import LabelledSegmentation

CATEGORY = "segment"  # of segments without names
_TOLERANCE = 1.0  # pixels: a polygon's side passes the corners of the outline by less; a slanted line's steps are


def write_results(
    made: Segmentation | LabelledSegmentation, stem: Path, photo: str | Path, attention: bool = False, **drawing: Any
) -> dict[str, Any]:
    """Writes NAME.labels.png, NAME.overlay.png and, last, NAME.json; each appears whole or not at all.

    Args:
        stem: folder / NAME. photo: its path, for the record. attention: of a LabelledSegmentation, NAME.nouns.png,
            too: its sheet. drawing: how the overlay is drawn (`made.overlay`).

    Returns:
        The record.

    Raises:
        OSError: a file cannot be written.
    """
    labels, picture, record = (stem.with_name(stem.name + suffix) for suffix in OUTPUTS)
    held = {"photo": str(photo), **made.as_dict()}
    colours = drawing.get("palette", "regions")
    write(labels, lambda f: palette_image(made.labels, colours).save(f, "PNG"))
    write(picture, lambda f: made.overlay(**drawing).save(f, "PNG"))
    if attention:
        sheet = made.sheet()  # type: ignore[union-attr]
        write(stem.with_name(stem.name + ATTENTION), lambda f: sheet.save(f, "PNG"))
    write(record, json.dumps(held, indent=1) + "\n")
    return held


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(records: Sequence[dict[str, Any]], polygons: bool = False) -> dict[str, Any]:
    """The segments of many photos as one COCO data set, ready for JSON: info, images, annotations, categories.

    Ids count from 1, in the order given. Areas and boxes are those of the pixels in either form.

    Args:
        records: of the photos. polygons: segments as polygons (`polygons_of`) in place of compressed RLE.
    """
    categories = _categories(records)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (record, name) in enumerate(zip(records, file_names(records), strict=True), start=1):
        images.append({"id": image_id, "file_name": name, "height": record["height"], "width": record["width"]})
        for segment in record["segments"]:
            rle = segment["segmentation"]
            score = {"score": segment["score"]} if "score" in segment else {}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[segment.get("noun", CATEGORY)],
                    "segmentation": polygons_of(coco_mask.decode(rle) > 0) if polygons else rle,
                    "area": segment["area"],
                    "bbox": segment["bbox"],
                    "iscrowd": 0,
                }
                | score
            )
    models = ", ".join(dict.fromkeys(record["model"] for record in records))
    return {
        "info": {"description": f"segments by diffseg with {models}", "version": __version__},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in categories.items()],
    }


def _categories(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """{name: id from 1 on}: the nouns of all photos, whether or not a segment took them, in the order given."""
    names = (name for record in records for name in record.get("nouns", [CATEGORY]))
    return {name: index for index, name in enumerate(dict.fromkeys(names), start=1)}


def _places(records: Sequence[dict[str, Any]]) -> tuple[Path, list[PurePath]]:
    """The innermost folder that holds all photos, and each photo's path inside it."""
    paths = [Path(os.path.abspath(record["photo"])) for record in records]  # noqa: PTH100 - links are not followed
    folder = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    return folder, [path.relative_to(folder) for path in paths]


def file_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """Each photo's path inside the innermost folder that holds all of them, with forward slashes."""
    return [inside.as_posix() for inside in _places(records)[1]]


def polygons_of(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask, bool [H, W], as COCO's polygons [x0, y0, x1, y1, ...], one for each connected piece.

    Pixel (x, y) is the square from (x, y) to (x + 1, y + 1). Rasterised again, only pixels that touch the boundary may
    differ. COCO's polygons have no holes: each is joined to the outline around it by a cut without width, so that it
    stays empty.
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(mask, 1).astype(np.float64)  # the picture's border is an outline, too
    filled: Any = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2)
    found = []
    for points, offsets in zip(*filled, strict=True):
        rings = [points[a : b - 1] - 0.5 for a, b in pairwise(offsets)]  # the last point is the first
        outline, *holes = (_simplified(_corners(ring)) for ring in rings)
        for hole in holes:
            outline = _joined(outline, hole)
        found.append(outline.ravel().tolist())
    return found


def _corners(middles: np.ndarray) -> np.ndarray:
    """The corners float [n, 2] of an outline along pixels' sides, of the middles of these sides in order."""
    following = np.roll(middles, -1, axis=0)
    upright = middles[:, 0] % 1 == 0  # sides between a pixel and its neighbour to the left or right
    turns = upright != np.roll(upright, -1)
    x = np.where(upright, middles[:, 0], following[:, 0])
    y = np.where(upright, following[:, 1], middles[:, 1])
    return np.stack([x, y], 1)[turns]


def _simplified(ring: np.ndarray) -> np.ndarray:
    """A closed ring float [n, 2] without corners that are nearer to its sides than _TOLERANCE (Douglas, Peucker).

    A ring so thin that nothing would be left of it stays as it is.
    """
    closed = np.concatenate([ring, ring[:1]])
    far = int(np.linalg.norm(ring - ring[0], axis=1).argmax())
    kept, todo = {0, far}, [(0, far), (far, len(ring))]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        start, side = closed[first], closed[last] - closed[first]
        along = np.clip((closed[first + 1 : last] - start) @ side / max(side @ side, 1e-12), 0, 1)
        away = np.linalg.norm(closed[first + 1 : last] - start - along[:, None] * side, axis=1)
        if away.max() >= _TOLERANCE:
            middle = first + 1 + int(away.argmax())
            kept.add(middle)
            todo += [(first, middle), (middle, last)]
    fewer = ring[sorted(kept)]
    return fewer if len(fewer) > 2 and _area(fewer) > 0 else ring


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _joined(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One ring of two, float [n, 2]: to the hole where it is nearest, around it, and back the same way."""
    from scipy.spatial import KDTree  # slow to import, and seldom needed

    distances, nearest = KDTree(outline).query(hole)
    j = int(distances.argmin())
    i = int(nearest[j])
    return np.concatenate([outline[: i + 1], hole[j:], hole[: j + 1], outline[i:]])


# --- Label Studio -----------------------------------------------------------------------------------------------------

_RUN_BITS = (3, 4, 8, 16)  # the four lengths of number that a run's length may be written with


def label_studio(records: Sequence[dict[str, Any]], polygons: bool = False) -> list[dict[str, Any]]:
    """The segments of many photos as tasks with predictions that Label Studio imports, ready for JSON.

    Photos are named as files of its local storage, whose document root is the folder above the innermost one that
    holds all of them.

    Args:
        records: of the photos. polygons: PolygonLabels in place of BrushLabels.
    """
    folder, inside = _places(records)
    return [
        {
            "data": {"image": f"/data/local-files/?d={quote(os.fsencode((folder.name / path).as_posix()))}"},
            "predictions": [{"model_version": record["model"], "result": list(_regions(record, polygons))}],
        }
        for record, path in zip(records, inside, strict=True)
    ]


def _regions(record: dict[str, Any], polygons: bool) -> Iterator[dict[str, Any]]:
    height, width = record["height"], record["width"]
    kind = "polygonlabels" if polygons else "brushlabels"
    for segment in record["segments"]:
        mask = coco_mask.decode(segment["segmentation"]) > 0
        values: list[dict[str, Any]] = [{"format": "rle", "rle": brush_rle(mask)}]
        if polygons:
            percent = np.array([100 / width, 100 / height])
            rings = [np.reshape(ring, (-1, 2)) * percent for ring in polygons_of(mask)]
            values = [{"points": ring.round(4).tolist(), "closed": True} for ring in rings]
        for piece, value in enumerate(values):
            yield {
                "id": f"segment-{segment['id']}-{piece}",
                "type": kind,
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value | {kind: [segment.get("noun", CATEGORY)]},
            } | ({"score": segment["score"]} if "score" in segment else {})


def brush_rle(mask: np.ndarray) -> list[int]:
    """A mask, bool [H, W], as Label Studio's brush stores it: the bytes of an RGBA picture's run-length code.

    The bits: 32, the number of values; 5, the bits of a value less 1; four times 4, the bits of a run's length less 1;
    then for each run 1, which of the four (2 bits), the length less 1, and the value.
    """
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1) + 1
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    start = 0
    for end in ends.tolist():
        value = f"{values[start]:08b}"
        while start < end:
            length = min(end - start, 1 << _RUN_BITS[-1])
            which = next(i for i, size in enumerate(_RUN_BITS) if length <= 1 << size)
            bits += ["1", f"{which:02b}", f"{length - 1:0{_RUN_BITS[which]}b}", value]
            start += length
    whole = "".join(bits)
    whole += "0" * (-len(whole) % 8)
    return list(int(whole, 2).to_bytes(len(whole) // 8))
