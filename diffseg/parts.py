"""Segments of millions of photos: a manifest names them, *parts* keep them, Parquet files in a folder or store.

A part holds the photos of some lines of the manifest, a row each. `write_part` makes one, of a job that can be sent to
any machine. `read`, `find` and `labels` give back what `diffseg segment` writes for a photo.

>>> for record in read("s3://bucket/run"):
...     print(record["photo"], len(record["segments"]), labels(record).shape)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask
from pydantic import TypeAdapter, ValidationError

from diffseg import __version__
from diffseg.ahead import ahead, side_by_side, threads
from diffseg.errors import UserError
from diffseg.files import remove_abandoned
from diffseg.images import ImageError, decode_image, load_image
from diffseg.stores import Place, StoreError, place, scheme_of

if TYPE_CHECKING:
    from diffseg.segmenter import DiffSeg, Settings

Row = dict[str, Any]
Loaded = np.ndarray | UserError  # a photo uint8 [H, W, 3], or what is wrong with it
Labelled = np.ndarray | UserError  # labels int32 [H, W], or what is wrong with the photo

SEGMENT = pa.struct([("counts", pa.string()), ("area", pa.int64()), ("bbox", pa.list_(pa.int32(), 4))])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the photo's line of the manifest
        ("height", pa.int32()),  # pixels; null where there is an error, as are
        ("width", pa.int32()),
        ("segments", pa.list_(SEGMENT)),  # the largest first: the label of each is its place, from 0 on
        ("error", pa.string()),  # what is wrong with the photo; null: nothing
    ]
)
RUN = "run.json"
METADATA = b"diffseg"  # of a part's schema: JSON
PART_SIZE = 1000
READERS = 8
BATCH = 16  # photos in one pass on a GPU; on a CPU they go one by one
_WINDOW = 2  # times as many are read before those of one shape are put together
_PARTS_AHEAD = 8  # that are read at a time, some megabytes each
_PART = re.compile(r"part-(\d{8})\.parquet")
_MOST_BYTES = 1 << 30  # of a photo's file in a store; it is read into memory
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class Run:
    """What all parts of a folder have in common: `run.json`.

    model, revision: as for `DiffSeg.from_pretrained`. fingerprint: of the model's files. dtype: its precision.
    settings: those of `diffseg.segmenter.Settings`. photos: lines of the manifest. manifest: hash of these lines.
    part_size: photos of each part but the last.
    """

    model: str
    revision: str | None
    fingerprint: str
    dtype: str
    settings: dict[str, Any]
    photos: int
    manifest: str
    part_size: int

    @property
    def parts(self) -> int:
        """How many parts are the whole."""
        return -(-self.photos // self.part_size)

    @property
    def id(self) -> str:
        """Hash of all of this, in the metadata of every part."""
        return _hash([self.as_json()])

    def as_json(self) -> str:
        """What run.json holds; the same for equal runs."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    def photos_in(self, numbers: Iterable[int]) -> int:
        """How many photos these parts hold."""
        return sum(min(self.part_size, self.photos - number * self.part_size) for number in numbers)


@dataclass(frozen=True)
class PartJob:
    """One part that is to be made, as plain data: it can be pickled and done anywhere, in any order.

    out: path or URI of the run's folder. number: of the part. keys: its photos, lines of the manifest. folder: that
    relative paths among them are relative to. device: "auto", "cpu", "cuda", ... readers: threads that read photos
    ahead of the model, each at most one photo.
    """

    out: str
    run: Run
    number: int
    keys: tuple[str, ...]
    folder: str
    device: str = "auto"
    readers: int = READERS


@dataclass(frozen=True)
class PartDone:
    """What became of a part. photos: its rows; failed: those with an error; error: the first of these, or ""."""

    number: int
    photos: int
    failed: int
    segments: int
    error: str


# --- what is to do ----------------------------------------------------------------------------------------------------


def keys_of(manifest: str) -> Iterator[str]:
    """The photos that a manifest names, a path or URI a line; empty lines are none. Read as they are asked for.

    Raises:
        UserError: there is no such file; a line that is no UTF-8, or a URI of an unknown kind. StoreError: its store
            does not answer.
    """
    source = place(manifest)
    for number, line in enumerate(source.lines(), start=1):
        try:
            key = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").rstrip(b"\r\n").decode()
            scheme_of(key)
        except UnicodeDecodeError:
            raise UserError(f"{source.name}, line {number}, is not UTF-8: give a text file, a photo a line") from None
        except UserError as error:
            raise UserError(f"{source.name}, line {number}: {error}") from None
        if key.strip():
            yield key


def scan(manifest: str) -> tuple[int, str]:
    """The number of photos in a manifest, and the hash of its lines.

    Raises:
        UserError: as `keys_of`, or it names no photo.
    """
    count, digest = 0, hashlib.sha256()
    for key in keys_of(manifest):
        count += 1
        digest.update(f"{key}\n".encode())
    if not count:
        raise UserError(f"{place(manifest).name} names no photos: write a path or URI on each line")
    return count, digest.hexdigest()[:16]


def plan(
    seg: DiffSeg,
    settings: Settings,
    scanned: tuple[int, str],
    *,
    model: str,
    revision: str | None = None,
    part_size: int | None = None,
) -> Run:
    """The run of a manifest with a model and settings; they are tried on a blank photo.

    Args:
        scanned: what `scan` says of the manifest. model, revision: what `seg` was loaded by. part_size: None: 1000.

    Raises:
        UserError: settings that do not fit the model.
    """
    seg.segment(np.zeros((settings.size, settings.size, 3), np.uint8), settings)
    plain = json.loads(json.dumps(asdict(settings)))
    return Run(model, revision, fingerprint(model), seg.model.dtype, plain, *scanned, part_size or PART_SIZE)


def begin(out: str, run: Run) -> list[int]:
    """Writes run.json, or compares what is there; lists the folder once. What killed processes left is removed.

    Returns:
        The numbers of the parts that are there.

    Raises:
        UserError: the folder is another run's. StoreError: it cannot be read or written.
    """
    folder = place(out)
    if folder.local is not None:
        remove_abandoned(folder.local)
    names = folder.names()
    done = _numbers(names)
    if RUN in names:
        before = run_of(out)
        if changes := _differences(before, run):
            raise UserError(
                f"{folder.name} holds a run that differs in {', '.join(changes)}: choose another --out, or say the same"
            )
    else:
        if done:  # it was lost: they say it, too
            part = folder.child(part_name(done[0]))
            _check_run(_metadata(part), done[0], part, run)
    if done and done[-1] >= run.parts:
        raise UserError(f"{folder.child(part_name(done[-1])).name} is of another, longer run: choose another --out")
    if RUN not in names:
        folder.child(RUN).write(run.as_json().encode())
    return done


def check(out: str, run: Run, numbers: Sequence[int]) -> tuple[list[int], int]:
    """Looks at the end of the files of these parts, some at a time: the numbers of those that are damaged, and how many
    photos of the others failed.

    Raises:
        UserError: one is of another run. StoreError: one cannot be read.
    """
    folder, damaged, failed = place(out), [], 0

    def look(number: int) -> tuple[int, int | None]:
        part = folder.child(part_name(number))
        try:
            metadata = _metadata(part)
        except StoreError:
            raise
        except UserError:
            return number, None
        return number, _check_run(metadata, number, part, run).get("failed", 0)

    with threads(4 * _PARTS_AHEAD) as pool:
        for number, found in ahead(pool, look, numbers, 4 * _PARTS_AHEAD):
            if found is None:
                damaged.append(number)
            else:
                failed += found
    return damaged, failed


def missing(run: Run, done: Collection[int], shard: tuple[int, int] = (0, 1)) -> list[int]:
    """The parts of a shard (i, n), every n-th from the i-th, that are not done."""
    known = set(done)
    return [number for number in range(shard[0], run.parts, shard[1]) if number not in known]


def jobs(manifest: str, numbers: Collection[int], out: str, run: Run, **options: Any) -> Iterator[PartJob]:
    """The jobs of these parts, one at a time: the manifest is read once more, and only these parts' lines are kept.

    options: device, readers, folder of a PartJob.

    Raises:
        UserError: as `keys_of`.
    """
    wanted, lines = set(numbers), keys_of(manifest)
    where = {"folder": str(Path.cwd())} | options
    for number in range(run.parts):
        keys = tuple(islice(lines, run.part_size))
        if number in wanted:
            yield PartJob(out, run, number, keys, **where)


def run_of(uri: str) -> Run:
    """What run.json in a folder says.

    Raises:
        UserError: there is none, or it is damaged. StoreError: it cannot be read.
    """
    file = place(uri).child(RUN)
    try:
        return TypeAdapter(Run).validate_json(file.read())
    except FileNotFoundError:
        raise UserError(f"{file.name} is missing: give the folder that diffseg segment --manifest wrote") from None
    except ValidationError as error:
        raise UserError(
            f"{file.name} is damaged ({error.errors()[0]['msg']}): remove it, and run the command of the run again, "
            f"which makes it anew"
        ) from None


def _differences(before: Run, now: Run) -> list[str]:
    """What differs, as "key (before there, now here)"."""
    old, new = ({**plain.pop("settings"), **plain} for plain in (json.loads(run.as_json()) for run in (before, now)))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return [f"{key} ({old.get(key)} there, {new.get(key)} here)" for key in keys]


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]


# --- making a part ----------------------------------------------------------------------------------------------------


def load_model(model: str, *, revision: str | None = None, device: str = "auto", dtype: Any = None) -> DiffSeg:
    """`DiffSeg.from_pretrained`; this process keeps the model, and has it at once the next time."""
    from diffseg.devices import resolve_device, resolve_dtype

    here = resolve_device(device)
    return _kept(model, revision, str(here), str(resolve_dtype(dtype, here)).removeprefix("torch."))


@lru_cache(maxsize=1)
def _kept(model: str, revision: str | None, device: str, dtype: str) -> DiffSeg:
    from diffseg.segmenter import DiffSeg

    return DiffSeg.from_pretrained(model, revision=revision, device=device, dtype=dtype)


@lru_cache(maxsize=1)
def fingerprint(model: str) -> str:
    """`diffseg.backbones.base.fingerprint`, asked once in a process."""
    from diffseg.backbones import base

    return base.fingerprint(model)


def write_part(job: PartJob, advance: Callable[[], object] | None = None) -> PartDone:
    """Segments the photos of a part and writes it; the same job gives the same part, whoever does it, however often.

    A photo that is missing or cannot be used is a row with its error.

    Args:
        advance: called after each photo.

    Raises:
        UserError: the model here is another than the run's. StoreError: the store did not answer for a minute, or
            refused; there is no such part then.
    """
    from diffseg.segmenter import Settings

    run = job.run
    seg = load_model(run.model, revision=run.revision, device=job.device, dtype=run.dtype)
    if fingerprint(run.model) != run.fingerprint:
        raise UserError(f"the model {run.model} is another here than the run's: its files differ")
    plain: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in run.settings.items()}
    settings = Settings(**plain)

    def alone(photo: Loaded) -> Labelled:
        return photo if isinstance(photo, UserError) else _labelled(seg, [photo], settings, 1)[0]

    rows: list[Row] = []
    batch = 1 if seg.model.device.type == "cpu" else BATCH
    with threads(job.readers) as readers, threads(1) as encoder:
        photos = ahead(readers, lambda key: _photo(key, job.folder), job.keys, max(job.readers, batch * _WINDOW))
        if batch > 1:
            results = _segmented(seg, photos, settings, batch)
        else:
            results = side_by_side(alone, photos, seg.model.streams((settings.size, settings.size)))
        for key, row in zip(job.keys, ahead(encoder, _columns, results, 2 * batch), strict=True):
            rows.append({"key": key, **row})
            if advance is not None:
                advance()
    place(job.out).child(part_name(job.number)).write(_parquet(rows, job))
    errors = [row["error"] for row in rows if row["error"] is not None]
    segments = sum(len(row["segments"] or ()) for row in rows)
    return PartDone(job.number, len(rows), len(errors), segments, next(iter(errors), ""))


def part_name(number: int) -> str:
    """The file of a part: its number counts from 0, by the position of its photos in the manifest."""
    return f"part-{number:08}.parquet"


def _photo(key: str, folder: str) -> Loaded:
    """A photo uint8 [H, W, 3], or what is wrong with it."""
    try:
        source = place(key, folder)
        if source.local is not None:
            return load_image(source.local)
        return decode_image(source.read(_MOST_BYTES), source.name)
    except FileNotFoundError:
        return ImageError(f"{key} is missing, there is no such object in the store: check the key, or leave it out")
    except StoreError:  # nothing that the photo could help
        raise
    except UserError as error:
        return error


def _segmented(seg: DiffSeg, photos: Iterator[Loaded], settings: Settings, batch: int) -> Iterator[Labelled]:
    """The labels of photos, or what is wrong with one. batch: most photos of one shape in one pass.

    Who shares a pass is decided by the photos alone, so that the same photos give the same labels.
    """
    while window := list(islice(photos, batch * _WINDOW)):
        labels = iter(_labelled(seg, [p for p in window if not isinstance(p, UserError)], settings, batch))
        for photo in window:
            yield photo if isinstance(photo, UserError) else next(labels)


def _labelled(seg: DiffSeg, photos: Sequence[np.ndarray], settings: Settings, batch: int) -> list[Labelled]:
    """The labels of each photo, or what is wrong with it, such as too narrow a shape for the grid of anchors."""
    import torch

    try:
        return list(seg.label_maps(photos, settings, batch))
    except (UserError, torch.OutOfMemoryError) as error:  # of one of them, or of many at once
        if len(photos) == 1:
            if isinstance(error, UserError):
                return [error]
            raise
    half = len(photos) // 2
    return [*_labelled(seg, photos[:half], settings, batch), *_labelled(seg, photos[half:], settings, batch)]


def _columns(result: Labelled) -> Row:
    """A photo's row, but for its key."""
    from diffseg.segmenter import describe_all

    if isinstance(result, UserError):
        return {"height": None, "width": None, "segments": None, "error": str(result)}
    height, width = result.shape
    segments = [
        {"counts": s["segmentation"]["counts"], "area": s["area"], "bbox": s["bbox"]}
        for s in describe_all(result, int(result.max()) + 1)
    ]
    return {"height": height, "width": width, "segments": segments, "error": None}


def _parquet(rows: Sequence[Row], job: PartJob) -> bytes:
    """A part as a file holds it."""
    facts = {
        **asdict(job.run),
        "run": job.run.id,
        "part": job.number,
        "keys": _hash(job.keys),
        "failed": sum(row["error"] is not None for row in rows),
        "versions": {"diffseg": __version__, **{name: version(name) for name in _PACKAGES}},
    }
    schema = SCHEMA.with_metadata({METADATA: json.dumps(facts, sort_keys=True)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


# --- reading parts ----------------------------------------------------------------------------------------------------


def done(uri: str) -> list[int]:
    """The numbers of the parts that are in a folder."""
    return _numbers(place(uri).names())


def _numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the parts among names of files."""
    return sorted(int(found[1]) for name in names if (found := _PART.fullmatch(name)))


def read(uri: str, keys: Collection[str] | None = None) -> Iterator[Row]:
    """The records of a run's photos, as NAME.json of `diffseg segment` holds them, in the order of the manifest.

    Photos with an error are left out; a few parts are in memory at a time.

    Args:
        uri: the run's folder. keys: the photos that are wanted; None: all.

    Raises:
        UserError: no run, or a part that is damaged or of another run. StoreError: a part cannot be read.
    """
    run = run_of(uri)
    common = {
        "model": run.model,
        "dtype": run.dtype,
        "settings": {**run.settings, "iterations": len(run.settings["threshold"])},
        "timings_s": {},  # not kept
    }
    for row in _rows(uri, run, failed=False, keys=keys):
        height, width = row["height"], row["width"]
        segments = [
            {
                "id": index,
                "area": segment["area"],
                "bbox": segment["bbox"],
                "segmentation": {"size": [height, width], "counts": segment["counts"]},
            }
            for index, segment in enumerate(row["segments"])
        ]
        yield {"photo": row["key"], "height": height, "width": width, **common, "segments": segments}


def find(uri: str, key: str) -> Row:
    """The record of one photo; the first, where the manifest names it twice. Parts are searched one after the other.

    Raises:
        UserError: as `read`; there is no such photo, or it could not be segmented.
    """
    for record in read(uri, [key]):
        return record
    for _, error in failures(uri, [key]):
        raise UserError(f"{key} could not be segmented: {error}")
    raise UserError(f"{key} is not in {place(uri).name}: give a line of its manifest, of a part that is done")


def failures(uri: str, keys: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """The photos that could not be segmented, and why, in the order of the manifest.

    Raises:
        UserError: as `read`.
    """
    for row in _rows(uri, run_of(uri), failed=True, keys=keys, columns=["key", "error"]):
        yield row["key"], row["error"]


def segmented(uri: str, keys: Collection[str] | None = None) -> Iterator[str]:
    """The photos that `read` has records of: their keys alone, which are quickly read."""
    for row in _rows(uri, run_of(uri), failed=False, keys=keys, columns=["key"]):
        yield row["key"]


def labels(record: Row) -> np.ndarray:
    """The label map int32 [H, W] of a record: that of NAME.labels.png, 0..K-1, the largest segment first."""
    whole = np.full((record["height"], record["width"]), -1, np.int32)
    for segment in record["segments"]:
        whole[coco_mask.decode(segment["segmentation"]) > 0] = segment["id"]
    return whole


def _rows(
    uri: str, run: Run, *, failed: bool, keys: Collection[str] | None, columns: Sequence[str] | None = None
) -> Iterator[Row]:
    """The rows of all parts with an error, or without. keys: of the photos that are wanted; columns: None: all."""
    folder = place(uri)
    wanted = pc.field("error").is_valid() if failed else pc.field("error").is_null()
    if keys is not None:
        wanted &= pc.field("key").isin(pa.array(list(keys), pa.string()))

    def load(number: int) -> pa.Table:
        part = folder.child(part_name(number))
        with _damage_told(part):
            table = pq.read_table(part.path, filesystem=part.files, columns=columns, filters=wanted)
        _check_run(table.schema.metadata, number, part, run)
        return table

    with threads(_PARTS_AHEAD) as pool:
        for table in ahead(pool, load, done(uri), _PARTS_AHEAD):
            yield from table.to_pylist()


def _metadata(part: Place) -> Mapping[bytes, bytes] | None:
    """What the file of a part says of itself, from its end."""
    with _damage_told(part):
        return pq.read_schema(part.path, filesystem=part.files).metadata


@contextmanager
def _damage_told(part: Place) -> Iterator[None]:
    """Says what is wrong with the file of a part."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{part.name} is damaged ({' '.join(str(error).split())}): run the command of the run again"
        ) from None
    except OSError as error:
        raise StoreError(f"{part.name} cannot be read: {' '.join(str(error).split())}") from None


def _check_run(metadata: Mapping[bytes, bytes] | None, number: int, part: Place, run: Run) -> dict[str, Any]:
    """What a part says of itself; refuses one that was made from other keys or with other settings."""
    facts: dict[str, Any] = {}
    try:
        facts = json.loads((metadata or {})[METADATA])
        same = (facts["run"], facts["part"]) == (run.id, number) and number < run.parts
    except (ValueError, TypeError, KeyError):
        same = False
    if not same:
        raise UserError(
            f"{part.name} is of another run, with other photos or settings than {RUN} says: remove it, and run the "
            f"command of the run again"
        )
    return facts
