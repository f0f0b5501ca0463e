"""Label maps and ground truth -> counts -> scores. Never needs a model or a GPU.

Counting knows no protocol: SEGMENTER/images.parquet has a row for each image, with

    key        the image
    segments   list: the numbers of the segments in the label map, rising
    pixels     list, [classes + 1, segments] flattened: pixels of each class, and of void (no label), in each segment
    boundaries list, where a protocol asks for them: see `diffseg.eval.boundaries.boundary_counts`
    rows       list, where labels are regions without classes: regions + 1 of each annotation; `pixels` then holds one
               table after the other, and boundaries what `diffseg.eval.boundaries.matched_counts` says

grid.parquet has the same of GRID x GRID equal cells in place of a segmenter; its sums are the counts of one segment. A
method has to beat both.

Protocols conclude: summary.json holds what `Summary` says. Both carry a hash of what made them, so that a number is
never older than its maps, its truth, its code or its settings.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NotRequired, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import TypeAdapter
from torch.utils.data import Dataset as TorchDataset
from typing_extensions import TypedDict

from diffseg.datasets.base import DataError, Dataset, read_map
from diffseg.datasets.transforms import nearest
from diffseg.errors import UserError
from diffseg.eval.boundaries import boundaries, boundary_counts, matched_counts, thinned
from diffseg.eval.granularity import Granularity
from diffseg.eval.metrics import intervals, paired_intervals, tie_sensitivity
from diffseg.eval.progress import track
from diffseg.eval.protocols import Matching, OneToOne, Protocol, paired_table
from diffseg.eval.runs import Run, digest, in_a_line
from diffseg.eval.workers import killed_readers_told, loader
from diffseg.files import is_file_name, write

MapPath = Callable[[str, str], Path]  # (segmenter, key) -> its label map
Tables: TypeAlias = np.ndarray | list[np.ndarray]  # of one image: of classes, or of the regions of each annotation

GRID = 3  # cells a side, as `methods.controls.Grid` has by itself
_SHOWN = 10  # complaints that one message lists
_LARGEST = 4096  # numbers of segments from here on are counted under their rank: their value says nothing


class SegmenterScores(TypedDict):
    """The metrics of one segmenter of a run under its first protocol, which may have others; fractions are 0..1."""

    settings: dict[str, Any]  # what made it, "_target_" included; of label maps of others, what tells them apart
    told: str | None  # what it is told of the truth; None: nothing, so that it is a fair comparison
    accuracy: NotRequired[float | None]  # None: nothing is labelled
    miou: NotRequired[float | None]  # mean over the classes that occur
    interval: dict[str, tuple[float | None, float | None]]  # 95 % over images; None: of one image there is none
    ties: NotRequired[
        tuple[float | None, float | None]
    ]  # smallest and largest mIoU over the ties that the solver breaks by position
    segments: float  # mean number per image
    images: int
    classes: NotRequired[int]  # that occur, so that their IoU counts
    iou: NotRequired[dict[str, float | None]]  # by class; None: it does not occur


class DatasetFacts(TypedDict):
    """What was evaluated."""

    name: str
    note: str  # what part of the benchmark it is; "": exactly the images that published numbers are of
    classes: list[str]
    size: int  # pixels a side at which label maps were made
    published: str | None  # which published numbers are of this data set
    paper_threshold: float | None  # tau that the paper has for it


class Difference(TypedDict):
    """How much better a segmenter is than the run's first one, by the headline of a protocol, image by image."""

    difference: float | None
    interval: tuple[float | None, float | None]  # 95 % over images
    p: float | None  # of Student's t test


class Summary(TypedDict):
    """summary.json."""

    run: str
    scored_with: str  # hash of the counts and the protocol
    protocol: str
    dataset: DatasetFacts
    model: str | None  # None: label maps of others
    timestep: int | None
    layers: NotRequired[list[str | int]]  # of self-attention that take part, where they were chosen
    size: int | None  # pixels a side at which maps and truth were compared; None: whole photos, each at its own size
    images: int
    skipped: dict[str, str]  # why, by key
    segmenters: dict[str, SegmenterScores]  # under the first protocol
    protocols: dict[str, dict[str, dict[str, Any]]]  # metrics of each segmenter under each protocol
    headlines: dict[str, str]  # the metric that stands for each protocol
    differences: NotRequired[dict[str, dict[str, Difference]]]  # by protocol, of each segmenter but the first
    controls: NotRequired[dict[str, dict[str, dict[str, Any]]]]  # metrics of what shows nothing, by protocol and name
    granularity: dict[str, dict[str, Granularity]]  # by method of which several settings were tried, and protocol


_SUMMARY = TypeAdapter(Summary)


# --- counting ---------------------------------------------------------------------------------------------------------


class DamagedMapError(DataError):
    """A label map that cannot be read."""


@dataclass(frozen=True)
class Counted:
    """The tables of one image by segmenter, or errors. cropped: the maps were of the whole photo's size.

    grid: pixels alone, under a grid.
    """

    key: str
    tables: dict[str, Table] = field(default_factory=dict)
    grid: Table | None = None
    cropped: bool = False
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Pixels of each class, and of void, in each segment.

    segments: int64 [S], their numbers, rising. pixels: int64 [classes + 1, S]. boundaries: int64 [6], where asked for.
    rows: where labels are regions, regions + 1 of each annotation, whose tables then stand below each other in pixels;
    boundaries are int64 [4].
    """

    segments: np.ndarray
    pixels: np.ndarray
    boundaries: np.ndarray | None = None
    rows: np.ndarray | None = None

    def of_annotations(self) -> list[np.ndarray]:
        """`dense` of each annotation."""
        assert self.rows is not None
        if self.rows.sum() != len(self.pixels):
            raise ValueError(f"rows of {self.rows.tolist()} do not make up {len(self.pixels)}")
        parts = np.split(self.pixels, np.cumsum(self.rows)[:-1])
        return [Table(self.segments, part).dense() for part in parts]

    def as_row(self) -> dict[str, np.ndarray]:
        """What images.parquet says of it."""
        row = {"segments": self.segments, "pixels": self.pixels.ravel()}
        more = {"boundaries": self.boundaries, "rows": self.rows}
        return row | {name: values for name, values in more.items() if values is not None}

    def dense(self) -> np.ndarray:
        """int64 [classes + 1, largest number + 1]; where numbers are too large to mean anything, by their rank."""
        if not len(self.segments) or self.segments[-1] >= _LARGEST:
            return self.pixels
        table = np.zeros((len(self.pixels), int(self.segments[-1]) + 1), np.int64)
        table[:, self.segments] = self.pixels
        return table


def count(truth: np.ndarray, labels: np.ndarray, classes: int, boundaries: bool = False) -> Table:
    """Counts one image: pixels of each class, and of void, in each segment. No opinion.

    Args:
        truth: int [H, W], 0..classes-1, negative = void. labels: int [H, W], segment numbers >= 0. boundaries: count
            their pixels, too (5 ms at 512 x 512).

    Raises:
        UserError: different shapes, a label >= classes, or a negative segment.
    """
    _check_map(truth, labels)
    if truth.size and truth.max() >= classes:
        raise UserError(f"label {truth.max()} found, but there are {classes} classes (0 to {classes - 1})")
    segments, rank = _ranked(labels)
    along = boundary_counts(truth, labels) if boundaries else None
    return Table(segments.astype(np.int64), _shared(truth, rank, classes, len(segments)), along)


def count_grid(truths: Sequence[np.ndarray], classes: int | None, predicted: tuple[int, int]) -> Table:
    """`count`, pixels alone, of a grid of equal cells numbered row by row, as `methods.controls.Grid` gives them.

    By bins of each cell, so that it costs a run little: 2 ms at 512 x 512.

    Args:
        truths: int [H, W], one, or where labels are regions (classes: None) of each annotation. predicted: the shape of
            label maps, in which the cells are equal.
    """
    shape = truths[0].shape
    down, right = (_cells(side, onto) for side, onto in zip(predicted, shape, strict=True))
    full = [i * GRID + j for i in range(GRID) for j in range(GRID) if down[i] < down[i + 1] and right[j] < right[j + 1]]
    tables = []
    for truth in truths:
        most = int(truth.max(initial=0)) + 1 if classes is None else classes
        rows = np.where(truth >= 0, truth, most)
        parts = [rows[down[c // GRID] : down[c // GRID + 1], right[c % GRID] : right[c % GRID + 1]] for c in full]
        tables.append(np.stack([np.bincount(part.ravel(), minlength=most + 1) for part in parts], 1))
    rows_of = np.array([len(table) for table in tables], np.int64) if classes is None else None
    return Table(np.array(full, np.int64), np.concatenate(tables), None, rows_of)


def _cells(side: int, onto: int) -> np.ndarray:
    """Where the cells of `side` pixels begin, brought onto `onto` pixels as label maps are: int [GRID + 1]."""
    cells = np.arange(side)[:, None] * GRID // side
    return np.searchsorted((cells if side == onto else nearest(cells, (onto, 1)))[:, 0], np.arange(GRID + 1))


def _ranked(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique` with its inverse, of labels int [H, W], >= 0; without sorting where the numbers are small."""
    if not labels.size or labels.max() > 65535:
        segments, rank = np.unique(labels, return_inverse=True)
        return segments, rank.reshape(labels.shape)
    segments = np.flatnonzero(np.bincount(labels.ravel()))
    rank = np.zeros(int(segments[-1]) + 1, np.int64)
    rank[segments] = np.arange(len(segments))
    return segments, rank[labels]


def _check_map(truth: np.ndarray, labels: np.ndarray) -> None:
    """Refuses a label map that cannot be counted against a truth."""
    if truth.shape != labels.shape:
        raise UserError(f"the truth is {truth.shape} but the label map {labels.shape}: they must be of one size")
    if labels.size and labels.min() < 0:
        raise UserError(f"segment {labels.min()} found: segment numbers start at 0")


def _shared(truth: np.ndarray, rank: np.ndarray, classes: int, segments: int) -> np.ndarray:
    """Pixels of each class, and of void, int64 [classes + 1, segments], in segments of rank int [H, W]."""
    rows = np.where(truth < 0, classes, truth).astype(np.int64)
    pixels = np.bincount((rows * segments + rank).ravel(), minlength=(classes + 1) * segments)
    return pixels.reshape(classes + 1, segments)


class Annotations:
    """The annotations of one image, whose regions have no classes; made once for all label maps of the image.

    Args:
        truths: int [H, W] of each annotation, regions 0, 1, ...; negative = void. with_boundaries: count their pixels,
            too (up to 30 ms an annotation and label map).
    """

    def __init__(self, truths: Sequence[np.ndarray], with_boundaries: bool = False):
        self.truths = truths
        self.edges = [thinned(boundaries(t, t >= 0)) for t in truths] if with_boundaries else None

    def count(self, labels: np.ndarray) -> Table:
        """As `count`, of each annotation: a label map int [H, W]."""
        _check_map(self.truths[0], labels)
        segments, rank = _ranked(labels)
        tables = [_shared(truth, rank, int(truth.max(initial=0)) + 1, len(segments)) for truth in self.truths]
        along = None if self.edges is None else matched_counts(self.edges, boundaries(labels))
        rows = np.array([len(table) for table in tables], np.int64)
        return Table(segments.astype(np.int64), np.concatenate(tables), along, rows)


class _Counter(TorchDataset):
    """Reads truth and maps and counts, in worker processes."""

    def __init__(
        self,
        dataset: Dataset,
        keys: Sequence[str],
        segmenters: Sequence[str],
        path: MapPath,
        size: int | None,
        boundaries: bool,
        own: bool,
    ):
        self.dataset, self.keys, self.segmenters, self.path = dataset, keys, segmenters, path
        self.size, self.boundaries, self.own = size, boundaries, own

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Counted:
        key = self.keys[index]
        try:
            raw = self.dataset.annotations(key)
            self.dataset.check_size(key, raw[0].shape)
            truths = [self.dataset.fitted(annotation, self.size) for annotation in raw]
            counted = self._counting(truths)
            classes = None if self.dataset.regions else len(self.dataset.classes)
            grid = count_grid(truths, classes, self.dataset.predicted(raw[0].shape))
        except (UserError, OSError) as error:
            return Counted(key, errors=(str(error),))
        tables, errors, cropped = {}, [], False
        for name in self.segmenters:
            try:
                stored = _stored_map(self.path(name, key), self.dataset, raw[0].shape)
                labels = _as_predicted(stored, self.dataset, raw[0].shape)
                if labels.shape != truths[0].shape:
                    labels = nearest(labels, truths[0].shape)
                tables[name] = counted(labels)
                cropped |= self.dataset.prepare == "crop" and stored.shape[0] != stored.shape[1]
            except DamagedMapError as error:
                errors.append(str(error))
                if self.own:  # what the run made itself, it makes again
                    self.path(name, key).unlink(missing_ok=True)
                    errors[-1] += "; it is removed now: run the stage predict once more"
            except (DataError, OSError) as error:
                errors.append(str(error))
            except UserError as error:
                errors.append(f"{self.path(name, key)}: {error}")
        return Counted(key, tables, grid, cropped, tuple(errors))

    def _counting(self, truths: Sequence[np.ndarray]) -> Callable[[np.ndarray], Table]:
        """What counts label maps against the truths of an image."""
        if self.dataset.regions:
            return Annotations(truths, self.boundaries).count
        classes = len(self.dataset.classes)
        return lambda labels: count(truths[0], labels, classes, self.boundaries)


def read_prediction(path: Path, dataset: Dataset, original: tuple[int, ...]) -> np.ndarray:
    """A label map as predicted, int [h, w]; one of the photo's original size is brought to that as the truth is.

    Raises:
        DataError: missing, damaged, or of neither size.
    """
    return _as_predicted(_stored_map(path, dataset, original), dataset, original)


def _stored_map(path: Path, dataset: Dataset, original: tuple[int, ...]) -> np.ndarray:
    if not path.exists():
        raise DataError(f"the label map {path} is missing")
    try:
        labels = read_map(path)
    except DataError as error:
        raise DamagedMapError(str(error).removesuffix(": fetch it again")) from None
    predicted = dataset.predicted(original)
    if labels.shape not in (predicted, original):
        other = f"{predicted[1]} x {predicted[0]}, or " if predicted != original else ""
        raise DataError(
            f"{path} is {labels.shape[1]} x {labels.shape[0]} pixels: a label map must be {other}"
            f"{original[1]} x {original[0]} like the photo"
        )
    return labels


def _as_predicted(labels: np.ndarray, dataset: Dataset, original: tuple[int, ...]) -> np.ndarray:
    return labels if labels.shape == dataset.predicted(original) else dataset.fitted(labels)


@dataclass(frozen=True)
class Counts:
    """What counting gives. images: {segmenter: a row per image}. skipped: {key: why}. cropped: images whose maps were
    of the whole photo's size and lost its ends. grid: a row per image; None: not counted."""

    images: dict[str, pd.DataFrame]
    skipped: dict[str, str]
    cropped: int = 0
    grid: pd.DataFrame | None = None


def count_all(
    dataset: Dataset,
    segmenters: Sequence[str],
    path: MapPath,
    workers: int = 2,
    skip_errors: bool = False,
    left_out: Mapping[str, str] | None = None,
    size: int | None = None,
    boundaries: bool = False,
    own: bool = False,
) -> Counts:
    """Counts label maps against the truth, image by image.

    Args:
        segmenters: names. path: where a segmenter's map of a key is. workers: processes.
        skip_errors: leave out images whose map or truth is missing or damaged, instead of stopping.
        left_out: {key: why} of images known to have no map.
        size: pixels a side at which to compare, maps and truth by nearest-exact; None: as predicted.
        boundaries: count their pixels, too. own: the maps are a run's own, so that damaged ones may be removed.

    Raises:
        DataError: names every missing, damaged or wrong-sized file (the first ten).
    """
    skipped = dict(left_out or {}) if skip_errors else {}
    keys = [key for key in dataset.keys if key not in skipped]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in segmenters}
    of_grid: list[dict[str, Any]] = []
    cropped = 0
    counter = _Counter(dataset, keys, segmenters, path, size, boundaries, own)
    with killed_readers_told():
        for image in itertools.chain.from_iterable(track(loader(counter, 1, workers), "score", len(keys))):
            if image.errors:
                skipped[image.key] = "; ".join(image.errors)
                continue
            cropped += image.cropped
            assert image.grid is not None
            of_grid.append({"key": image.key, **image.grid.as_row()})
            for name, table in image.tables.items():
                rows[name].append({"key": image.key, **table.as_row()})
    if skipped and not skip_errors:
        complaints = [*skipped.values()][:_SHOWN] + ["..."] * (len(skipped) > _SHOWN)
        raise DataError(
            f"{len(skipped)} of {len(dataset)} images cannot be scored (leave them out with on_error=skip):\n  "
            + "\n  ".join(complaints)
        )
    if not any(rows.values()):
        raise DataError(f"none of the {len(dataset)} images could be scored: {next(iter(skipped.values()))}")
    images = {name: pd.DataFrame(r) for name, r in rows.items()}
    return Counts(images, dict(sorted(skipped.items())), cropped, pd.DataFrame(of_grid))


# --- counts on disk ---------------------------------------------------------------------------------------------------


def write_counts(run: Run, counts: Counts, counted_with: Mapping[str, str]) -> None:
    """Writes SEGMENTER/images.parquet of each segmenter, and grid.parquet where there is one.

    counted_with: {segmenter: hash of what made the counts}; those of the grid go with all of them.
    """
    files = {run.images(name): (rows, counted_with[name]) for name, rows in counts.images.items()}
    if counts.grid is not None:
        files[run.grid] = (counts.grid, _of_all(counted_with))
    for path, (rows, made_of) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"counted_with": made_of, "skipped": counts.skipped}
        table = pa.Table.from_pandas(rows, preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"diffseg": json.dumps(facts).encode()})
        # With checksums, so that a flipped bit is no count.
        write(path, lambda file, table=table: pq.write_table(table, file, write_page_checksum=True))  # type: ignore[misc]


def _of_all(counted_with: Mapping[str, str]) -> str:
    return digest(dict(counted_with))


def read_all_counts(run: Run, counted_with: Mapping[str, str], boundaries: bool) -> Counts | None:
    """The counts on disk; None: they are not there, or were made of something else, or lack boundaries.

    counted_with: as for `write_counts`. boundaries: whether these are needed.
    """
    try:
        stored = {name: read_counts(run, name) for name in run.segmenters}
        grid, of_grid = _read_table(run.grid)
    except DataError:
        return None
    known = all(facts["counted_with"] == counted_with[name] for name, (_, facts) in stored.items())
    enough = all("boundaries" in images or not boundaries for images, _ in stored.values())
    if not (known and enough and of_grid["counted_with"] == _of_all(counted_with)):
        return None
    return Counts({name: images for name, (images, _) in stored.items()}, of_grid["skipped"], grid=grid)


def name_of_data(run: Run) -> str:
    """The name of a run's data set, which its scores have; without them it may be a folder of photos without labels."""
    is_folder = run.identity["dataset"].get("_target_") == "diffseg.datasets.folder.Folder"
    return "folder" if is_folder and not run.summary.exists() else read_summary(run)["dataset"]["name"]


def read_counts(run: Run, segmenter: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """SEGMENTER/images.parquet of a run, and what was written with it: "counted_with", "skipped".

    Raises:
        DataError: missing, damaged, or of an earlier version of this project.
    """
    return _read_table(run.images(segmenter))


def _read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is missing or damaged ({in_a_line(error)}): score the run again") from None
    try:
        facts = json.loads((table.schema.metadata or {})[b"diffseg"])
        columns = ["key", "segments", "pixels", *({"boundaries", "rows"} & set(table.column_names))]
        images = table.select(columns).to_pandas()
        facts["counted_with"], dict(facts["skipped"])
        _check_tables(tables_of(images))
        return images, facts
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, pa.ArrowException):
        raise DataError(
            f"{path} is damaged, or was counted by an earlier version of diffseg: score the run again"
        ) from None


def _check_tables(tables: Sequence[Tables]) -> None:
    """Refuses what was never counted: no image, different numbers of classes, or counts below 0."""
    of_regions = [table for image in tables if isinstance(image, list) for table in image]
    of_classes = [image for image in tables if isinstance(image, np.ndarray)]
    if not tables or len({len(table) for table in of_classes}) > 1:
        raise ValueError("no image, or different numbers of classes")
    if any((table < 0).any() for table in (*of_classes, *of_regions)):
        raise ValueError("counts below 0")


def tables_of(images: pd.DataFrame) -> list[Tables]:
    """int64 [classes + 1, S] of each row: column = segment number, last row = void.

    Of regions, a list for each row: int64 [regions + 1, S] of each annotation.
    """
    if "rows" in images:
        return [
            Table(np.asarray(segments), np.asarray(pixels).reshape(-1, len(segments)), rows=rows).of_annotations()
            for segments, pixels, rows in zip(images["segments"], images["pixels"], images["rows"], strict=True)
        ]
    return [
        Table(np.asarray(segments), np.asarray(pixels).reshape(-1, len(segments))).dense()
        for segments, pixels in zip(images["segments"], images["pixels"], strict=True)
    ]


def counts_for(images: pd.DataFrame, protocol: Protocol) -> list[Any]:
    """What a protocol reads of each image: its table, or its boundary counts."""
    if protocol.counts == "pixels":
        return tables_of(images)
    return [np.asarray(counts) for counts in images[protocol.counts]]


# --- scores -----------------------------------------------------------------------------------------------------------


def image_scores(images: pd.DataFrame, protocol: Protocol, background: int | None = None) -> pd.DataFrame:
    """A row per image: key, pixels (labelled), segments (their number), table, and the protocol's metrics.

    table: see `tables_of`; of regions, that of the first annotation.
    """
    tables = tables_of(images)
    scores = protocol.metrics(protocol.statistics(counts_for(images, protocol), background))
    first = [table if isinstance(table, np.ndarray) else table[0] for table in tables]
    return pd.DataFrame(
        {
            "key": images["key"],
            "pixels": [int(table[:-1].sum()) for table in first],
            "segments": images["segments"].map(len),
            "table": first,
            **scores,
        }
    )


def scores_of(
    images: pd.DataFrame, classes: Sequence[str], protocol: Protocol, background: int | None = None
) -> dict[str, Any]:
    """The metrics of one segmenter under one protocol, from its counts; see `SegmenterScores`.

    classes and iou only under protocols that give segments classes, ties only under the paper's.
    """
    tables = counts_for(images, protocol)
    statistics = protocol.statistics(tables, background)
    sums = {name: values.sum(0, keepdims=True) for name, values in statistics.items()}
    scores: dict[str, Any] = {name: float(values[0]) for name, values in protocol.metrics(sums).items()}
    scores["interval"] = intervals(statistics, protocol.metrics, bounds=protocol.bounds)
    if isinstance(protocol, Matching):
        iou = [None if np.isnan(x) else float(x) for x in protocol.iou(sums)[0]]
        scores |= {"classes": sum(x is not None for x in iou), "iou": dict(zip(classes, iou, strict=True))}
    if protocol == OneToOne():
        scores["ties"] = tie_sensitivity([paired_table(table[:-1]) for table in tables])
    return scores


def controls_of(counts: Counts, classes: Sequence[str], protocol: Protocol, background: int | None = None) -> dict:
    """{name: metrics as `scores_of`, and segments} of one segment and of a grid; {} under a protocol that reads names,
    or more than pixels."""
    if counts.grid is None or protocol.needs_names or protocol.counts != "pixels":
        return {}
    sums = [
        np.asarray(pixels).reshape(-1, len(n)).sum(1)
        for n, pixels in zip(counts.grid["segments"], counts.grid["pixels"], strict=True)
    ]
    whole = counts.grid.assign(pixels=sums, segments=[np.zeros(1, np.int64)] * len(sums))
    return {
        name: {"segments": float(rows["segments"].map(len).mean()), **scores_of(rows, classes, protocol, background)}
        for name, rows in (("one segment", whole), (f"a grid of {GRID} x {GRID}", counts.grid))
    }


def differences_of(
    images: Mapping[str, pd.DataFrame], protocol: Protocol, metric: str, background: int | None = None
) -> dict[str, dict[str, Any]]:
    """The paired differences of each segmenter to the first one, in one metric of a protocol; see `Difference`."""
    first, *others = [protocol.statistics(counts_for(rows, protocol), background) for rows in images.values()]

    def alone(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {metric: protocol.metrics(sums)[metric]}

    return {
        name: paired_intervals(first, other, alone)[metric]
        for name, other in zip(list(images)[1:], others, strict=True)
    }


def known_protocols() -> dict[str, Protocol]:
    """The protocols of conf/protocol by name, as they are there."""
    made = {}
    for file in sorted((Path(__file__).parents[1] / "conf" / "protocol").glob("*.yaml")):
        settings = yaml.safe_load(file.read_text())
        made[file.stem] = resolve_name(settings.pop("_target_"))(**settings)
    return made


def read_summary(run: Run) -> Summary:
    """summary.json of a run.

    Raises:
        DataError: missing or damaged.
    """
    return summary_of(run.summary)


def summary_of(path: Path) -> Summary:
    """A summary.json.

    Raises:
        DataError: missing or damaged.
    """
    try:
        summary = json.loads(path.read_bytes())
        _SUMMARY.validate_python(summary)
        _check_names(summary)
        return summary
    except FileNotFoundError:
        raise DataError(f"{path} is missing: score the run first") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged, or of an earlier version of diffseg ({in_a_line(error)}): score the run again"
        ) from None


def _check_names(summary: Summary) -> None:
    """Checks that names which one part of a summary gives are those of the others."""
    names, protocols = summary["segmenters"].keys(), summary["protocols"]
    if not names or not all(map(is_file_name, names)):
        raise ValueError("segmenters must have names that folders can have")
    if summary["protocol"] not in protocols or protocols.keys() != summary["headlines"].keys():
        raise ValueError("protocol, protocols and headlines do not go together")
    for rule, by_segmenter in protocols.items():
        if by_segmenter.keys() != names or any(summary["headlines"][rule] not in s for s in by_segmenter.values()):
            raise ValueError(f"protocols.{rule} has other segmenters, or lacks its headline")
    classes = summary["dataset"]["classes"]
    if any(scores["iou"].keys() != set(classes) for scores in summary["segmenters"].values() if "iou" in scores):
        raise ValueError("iou is of other classes than the data set's")
