"""Very many photos on the command line: `diffseg segment --manifest` makes parts, `diffseg merge` reads them."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from diffseg import outputs, parts
from diffseg.errors import UserError, printable
from diffseg.eval.cluster import Cluster, LostError, device_lent, scatter, still_alive
from diffseg.eval.progress import counting, say
from diffseg.files import OUTPUTS, check_writable, name_outputs, write
from diffseg.images import palette_image
from diffseg.stores import place, without_options

if TYPE_CHECKING:
    from diffseg.segmenter import DiffSeg, Settings

_PHOTO_S = 900.0  # on a cluster: a part in which no photo is done for so long is given up, and made elsewhere


@dataclass(frozen=True)
class Request:
    """What `diffseg segment --manifest` is asked, besides model and settings.

    manifest, out: paths or URIs. shard: (i, n). part_size, readers: None: the usual. ray: address of a cluster, or
    "local"; None: this process makes the parts.
    """

    manifest: str
    out: str
    shard: tuple[int, int]
    part_size: int | None
    device: str
    readers: int | None
    ray: str | None = None


def shard_of(text: str | None) -> tuple[int, int]:
    """The (i, n) of "i/n"; None: all is one shard.

    Raises:
        UserError: not two whole numbers with 0 <= i < n.
    """
    numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", text or "0/1")
    if numbers is None or int(numbers[1]) >= int(numbers[2]):
        raise UserError(f"--shard takes i/n, two whole numbers with 0 <= i < n, such as 0/8, got {text!r}")
    return int(numbers[1]), int(numbers[2])


def segment(
    request: Request, load: Callable[[Callable[..., DiffSeg]], tuple[DiffSeg, Settings]], options: Mapping[str, Any]
) -> bool:
    """Makes the parts of a shard that are missing, one after the other or on a cluster, and tells.

    Args:
        load: (loader) -> the model and its settings. options: "model" and "revision".

    Returns:
        Whether all of them are there now.

    Raises:
        UserError: the manifest, the settings, the folder or the cluster cannot be used.
    """
    try:
        return _segment(request, load, options)
    except parts.StoreError as error:
        say(f"diffseg: {error}")
        return False


def _segment(
    request: Request, load: Callable[[Callable[..., DiffSeg]], tuple[DiffSeg, Settings]], options: Mapping[str, Any]
) -> bool:
    """`segment`, but for a store that does not answer before the first part."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C
    scanned = parts.scan(request.manifest)
    cluster = (
        None if request.ray is None else Cluster(None if request.ray == "local" else request.ray, timeout_s=_PHOTO_S)
    )
    device = cluster.device(request.device) if cluster else request.device
    seg, settings = load(partial(_loaded_for, device) if cluster else parts.load_model)
    named = {key: options[key] for key in ("model", "revision")}
    run = parts.plan(seg, settings, scanned, part_size=request.part_size, **named)
    done = parts.begin(request.out, run)
    share, todo = parts.missing(run, (), request.shard), parts.missing(run, done, request.shard)
    damaged, failed = parts.check(request.out, run, sorted(set(share) - set(todo)))
    if damaged:
        say(f"damaged, and made again: {_named(damaged)} of {place(request.out).name}")
        todo = sorted([*todo, *damaged])
    total, left = run.photos_in(share), run.photos_in(todo)
    if not todo:
        lost = f"; {_photos(failed)} could not be segmented: diffseg merge names them" if failed else ""
        say(f"nothing to do: no part is missing of {len(share):,}{lost}" if share else "this shard has no parts")
        return True
    ready = len(share) - len(todo)
    there = f", {_parts(ready)} {'is' if ready == 1 else 'are'} there already" if ready else ""
    say(f"segmenting {_photos(left)}, {_parts(len(todo))} of {len(share)}, with {named['model']}{there}")

    ended: list[parts.PartDone] = []
    trouble, start = "", time.perf_counter()
    where = {"device": device, "readers": request.readers or parts.READERS}
    jobs = parts.jobs(request.manifest, todo, request.out, run, **where)
    with counting("segmenting", total, total - left, "photos") as advance:
        try:
            for part in _on(cluster, device, jobs, advance) if cluster else _here(jobs, advance):
                ended.append(part)
                _tell_useless(part)
        except (parts.StoreError, LostError) as error:
            trouble = str(error)
        except KeyboardInterrupt:
            say("diffseg: stopped; parts that are there are kept: run the same command again to go on")
            raise

    _tell(ended, time.perf_counter() - start, place(request.out).name)
    if trouble:
        say(f"diffseg: {trouble}")
    return not trouble


def _here(jobs: Iterable[parts.PartJob], advance: Callable[[int], None]) -> Iterator[parts.PartDone]:
    """The parts, made by this process one after the other."""
    for job in jobs:
        yield parts.write_part(job, lambda: advance(1))


def _on(
    cluster: Cluster, device: str, jobs: Iterable[parts.PartJob], advance: Callable[[int], None]
) -> Iterator[parts.PartDone]:
    """The parts, made on a cluster as they come."""
    scattered = scatter(_part_of, None, jobs, cluster, device, lambda job: parts.part_name(job.number))
    for _, part in scattered:
        advance(part.photos)
        yield part


def _part_of(_: None, job: parts.PartJob) -> parts.PartDone:
    """In a worker: `write_part` on the device that is lent to it."""
    return parts.write_part(replace(job, device=device_lent() if job.device == "cuda" else "cpu"), still_alive)


def _loaded_for(cluster_device: str, model: str, *, dtype: Any = None, **options: Any) -> DiffSeg:
    """The model as workers load it, on this machine's device: settings are tried with it."""
    import torch

    from diffseg.devices import resolve_dtype

    usual = str(resolve_dtype(None, torch.device(cluster_device))).removeprefix("torch.")
    return parts.load_model(model, **{**options, "device": "auto", "dtype": dtype or usual})


def _tell_useless(part: parts.PartDone) -> None:
    """Warns of a part without any segments: the manifest may be of another folder or store."""
    if part.failed == part.photos:
        say(f"no photo of {parts.part_name(part.number)} could be segmented: {part.error}")


def _tell(ended: list[parts.PartDone], seconds: float, out: str) -> None:
    """A summary of the parts that were made."""
    if not ended:
        return
    photos, failed = sum(part.photos for part in ended), sum(part.failed for part in ended)
    segments = sum(part.segments for part in ended)
    rate = f"{photos / seconds:.1f} photos/s"
    made = f"{_photos(photos)}, {segments} segment{'s' * (segments != 1)}"
    typer.echo(f"{made} in {seconds:.1f} s ({rate}) -> {printable(out)}")
    if failed:
        first = next(part.error for part in ended if part.failed)
        say(f"{failed} could not be segmented, such as: {printable(first)}")


def merge(
    uri: str, chosen: list[str], keys_file: str | None, coco: Path | None, labels: Path | None, partial: bool
) -> bool:
    """Tells what is in a run's parts, and writes a COCO file and label maps of its photos.

    Args:
        uri: the run's folder. chosen, keys_file: photos to choose; none: all. coco, labels: None: not wanted. partial:
            also of a run whose parts are not all there.

    Returns:
        Whether all parts are there, or need not be.

    Raises:
        UserError: there are no such photos, or parts are missing and not allowed to be.
    """
    run, done = parts.run_of(uri), parts.done(uri)
    absent = len(parts.missing(run, done))
    lacking = f"{_parts(absent)} of {run.parts} missing in {place(uri).name}" if absent else ""
    if keys_file is not None:
        parts.scan(keys_file)  # refuses one without photos
    keys = [*chosen, *(parts.keys_of(keys_file) if keys_file is not None else ())]
    wanted = list(dict.fromkeys(keys)) if keys else None
    if absent and (coco or labels) and wanted is None and not partial:
        raise UserError(
            f"{lacking}: run diffseg segment --manifest again, or add --partial to merge those that are there"
        )
    failed = dict(parts.failures(uri, wanted))
    if wanted is not None:
        _check_found(uri, wanted, failed, lacking)
    if labels is not None:
        _write_labels(uri, wanted, labels)
    if coco is not None:
        _write_coco(uri, wanted, coco)
    count = run.photos_in(done) if wanted is None else len(wanted)
    typer.echo(f"{_photos(count)}, {len(failed)} of them failed; {len(done)} of {run.parts} parts are there")
    for key, error in list(failed.items())[:_TOLD]:
        say(f"{printable(key)}: {printable(error)}")
    return partial or wanted is not None or not absent


_TOLD = 10  # failed photos, damaged parts that are named


def _check_found(uri: str, wanted: list[str], failed: Collection[str], lacking: str) -> None:
    """Refuses photos that no part has. lacking: which parts are missing, in words."""
    unknown = set(wanted) - set(parts.segmented(uri, wanted)) - set(failed)
    if unknown:
        first = next(key for key in wanted if key in unknown)
        raise UserError(
            f"of the photos to choose {len(unknown)} are not in {place(uri).name}, such as {first!r}: give lines of "
            f"its manifest{f'; {lacking}' if lacking else ''}"
        )


def _write_labels(uri: str, wanted: list[str] | None, folder: Path) -> None:
    """NAME.labels.png of each photo, as `diffseg segment` writes it."""
    check_writable(folder, "choose another with --labels")
    paths = dict.fromkeys(_path(key) for key in parts.segmented(uri, wanted))
    names = {path: name for name, path in name_outputs(list(paths)).items()}
    with counting("label maps", len(names), unit="photos") as advance:
        for record in parts.read(uri, wanted):
            stored = BytesIO()
            palette_image(parts.labels(record)).save(stored, "PNG")
            name = names[_path(record["photo"])]
            write(folder / f"{name}{OUTPUTS[0]}", stored.getvalue())
            advance(1)
    typer.echo(f"{len(names)} label map{'s' * (len(names) != 1)} -> {printable(folder)}")


def _path(key: str) -> Path:
    """A photo of a manifest, for its name: the same for all ways to write one file."""
    return Path(without_options(key).removeprefix("file://")).absolute()


def _write_coco(uri: str, wanted: list[str] | None, file: Path) -> None:
    check_writable(file.parent, "choose another with --coco")
    records = [{**record, "photo": without_options(record["photo"])} for record in parts.read(uri, wanted)]
    write(file, json.dumps(outputs.coco(records)) + "\n")
    typer.echo(f"{_photos(len(records))} -> {printable(file)}")


def _named(numbers: Sequence[int]) -> str:
    """The files of parts, the first of them by name."""
    more = f" and {len(numbers) - _TOLD} more" if len(numbers) > _TOLD else ""
    return ", ".join(map(parts.part_name, numbers[:_TOLD])) + more


def _parts(count: int) -> str:
    return f"{count:,} part{'s' * (count != 1)}"


def _photos(count: int) -> str:
    return f"{count:,} photo{'s' * (count != 1)}"
