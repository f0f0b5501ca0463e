"""One evaluation, stage by stage: predict, score, report, check. Nothing here sees a configuration, only objects.

An `Experiment` holds them, with the plain data that they were made from: what results say, and what says whether an
earlier result is still true.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from rich.console import Console

from diffseg.attention import Look
from diffseg.backbones.base import Backbone, fingerprint
from diffseg.datasets.base import DataError, Dataset
from diffseg.devices import resolve_device, resolve_dtype, slow_dtype
from diffseg.errors import UserError
from diffseg.eval.check import Reference, check, check_table
from diffseg.eval.cluster import Cluster, device_lent, scatter
from diffseg.eval.granularity import Granularity, granularity
from diffseg.eval.predict import predict
from diffseg.eval.progress import say, track
from diffseg.eval.protocols import Protocol
from diffseg.eval.runs import Masks, Run, differences, digest, folder_name, open_run, versions
from diffseg.eval.score import (
    Counts,
    Summary,
    controls_of,
    count_all,
    counts_for,
    differences_of,
    read_all_counts,
    read_summary,
    scores_of,
    write_counts,
)
from diffseg.eval.sharing import turn_on
from diffseg.eval.show.report import write_report
from diffseg.eval.show.tables import result_table
from diffseg.eval.show.tracker import Tracker
from diffseg.eval.show.unlabelled import write_unlabelled
from diffseg.eval.show.worth import granularity_table, scales_table, worth_table
from diffseg.eval.sources import source_hash
from diffseg.eval.workers import shard_of
from diffseg.files import content_hashes, write
from diffseg.methods.base import Oracle, Segmenter, needs_by_look

Made = TypeVar("Made")
STAGES = ("predict", "score", "report", "check")


class MovedError(UserError):
    """Metrics that are not what the reference expects."""


@dataclass(frozen=True)
class Part(Generic[Made]):
    """Something that an experiment is made of.

    made: the object, or what makes it. name: what results call it. settings: what it was made from, ready for JSON.
    modules: where the classes of the object, and of those inside it, are written.
    """

    made: Made
    name: str
    settings: dict[str, Any]
    modules: tuple[str, ...]

    @property
    def code(self) -> str:
        """Hash of its source code and of all of its own that this imports."""
        return source_hash(self.modules)


@dataclass(frozen=True)
class Experiment:
    """What to evaluate, and how far."""

    dataset: Part[Dataset]
    segmenters: Mapping[str, Part[Segmenter | Oracle]]
    protocols: Mapping[str, Part[Protocol]]  # the first is the one that tables and reports lead with
    origins: Mapping[str, str] = field(default_factory=dict)  # the method that each tried setting is one of
    model: Part[Callable[[str], Backbone]] | None = None  # loads the backbone on a device; None: masks are scored
    masks: Masks | None = None
    tracker: Tracker = field(default_factory=Tracker)
    look: Look = Look()  # how the backbone is asked where a segmenter does not say
    prompts: str = "classes"  # what prompted looks say of an image: see `Dataset.words`
    dtype: str | None = None  # of the backbone's weights; None: what suits the device
    stages: Sequence[str] = ("predict", "score", "report")  # some of STAGES
    runs: Path = Path("results/runs")  # where runs are kept
    folder: Path | None = None  # of this run; None: one of `runs`, named after what it is
    device: str = "auto"
    batch_size: int = 8  # images per forward pass; on a CPU always one by one
    workers: int = 2  # processes that read images
    streams: int = 1  # images that a CPU works on at a time
    cluster: Cluster | None = None  # where label maps are made; None: in this process
    workers_write: bool = False  # in the run's folder, which they share with this process; or it writes what they send
    shard: Sequence[int] = (0, 1)  # [i, n]: every n-th image, from the i-th
    skip_errors: bool = False  # leave out what cannot be read, instead of stopping
    score_size: int | None = None  # pixels a side at which maps and truth are compared; None: as predicted
    reference: Reference | None = None  # to check the metrics against
    published: str | None = None  # which published numbers are of this data set
    paper_threshold: float | None = None  # the paper's tau for it
    record: dict[str, Any] = field(default_factory=dict)  # all settings as plain data, to be kept
    command: str = ""  # of the shell, that makes this again; "": not known

    @property
    def predicts(self) -> bool:
        """Whether label maps are to be made."""
        return "predict" in self.stages and self.masks is None


def evaluate(experiment: Experiment) -> dict[str, Any]:
    """The stages asked for, each only as far as it is not done yet.

    Returns:
        The run's `Summary` and its "folder", or {} where nothing was scored yet.

    Raises:
        UserError, OSError: one sentence that says what is wrong and what to do.
    """
    if experiment.device == "all":
        raise UserError("device=all is no more: workers=ray uses all GPUs of this machine")
    dataset = experiment.dataset.made
    keys = shard_of(dataset.keys, experiment.shard)
    _check_protocols(experiment)
    if experiment.masks:
        _check_masks(experiment.masks, dataset, experiment.skip_errors)
    run = open_folder(experiment)
    say(f"{dataset_line(experiment.dataset.name, dataset)} -> {run.folder}")

    if experiment.predicts:
        _predict(experiment, run, keys)

    summary: Summary | None = None
    if "score" in experiment.stages and _can_score(experiment, run):
        summary = _score(experiment, run)
        experiment.tracker.track(run, experiment.record, summary, dataset)
    elif experiment.reference is not None:  # a check believes no number on disk
        summary = _score(experiment, run)

    if "report" in experiment.stages and (summary or run.summary.exists()):
        summary = summary or read_summary(run)
        _print(summary, dataset)
        rule = next(iter(experiment.protocols.values())).made
        say(f"report: {write_report(run, dataset, summary, rule, experiment.command)}")
    elif "report" in experiment.stages and not dataset.labelled:
        _report_unlabelled(experiment, run)

    if summary and experiment.reference is not None:
        _check(summary, experiment.reference)
    return {**summary, "folder": str(run.folder)} if summary else {}


def _report_unlabelled(experiment: Experiment, run: Run) -> None:
    """The page of a data set without labels, once every image has its maps or was left out."""
    data, model = experiment.dataset, experiment.model
    keys = data.made.keys
    missing = set(run.missing(keys))
    if any(not run.error(key).exists() for key in missing):
        return
    keys = [key for key in keys if key not in missing]
    if keys:
        what = (data.name, model.name if model else "")
        say(f"report: {write_unlabelled(run, data.made, keys, what, experiment.command)}")


def _print(summary: Summary, dataset: Dataset) -> None:
    """The tables of a run on the terminal."""
    if dataset.regions:
        tables = [scales_table([summary]).for_terminal()]
    elif summary["granularity"]:
        tables = [result_table(summary), granularity_table(summary["granularity"]).for_terminal()]
    elif len(summary["protocols"]) > 1:
        tables = [result_table(summary), worth_table(summary).for_terminal()]
    else:
        tables = [result_table(summary)]
    for table in tables:
        Console().print(table)


def dataset_line(name: str, dataset: Dataset) -> str:
    """What is evaluated: "scenes, 64 images", with the note on subsets."""
    return f"{name}, {len(dataset):,} images" + (f" ({dataset.note})" if dataset.note else "")


def _check_protocols(experiment: Experiment) -> None:
    """Refuses protocols that need classes on labels that are regions without; says where names are read of none."""
    data = experiment.dataset
    wrong = [rule for rule, part in experiment.protocols.items() if part.made.needs_classes]
    if data.made.regions and wrong:
        raise UserError(
            f"the protocol {wrong[0]} needs classes, and the labels of {data.name} are regions without: choose "
            f"protocol=[regions,boundaries]"
        )
    named = [rule for rule, part in experiment.protocols.items() if part.made.needs_names]
    unnamed = [name for name, part in experiment.segmenters.items() if not getattr(part.made, "names", False)]
    if named and len(unnamed) == len(experiment.segmenters) and not experiment.masks:
        say(
            f"the protocol {named[0]} reads labels as numbers of classes, and those of {', '.join(unnamed)} number "
            f"segments: its figures of them mean nothing (a segmenter of the kind naming gives names)"
        )


# --- identity ---------------------------------------------------------------------------------------------------------


def identity_of(experiment: Experiment) -> dict[str, Any]:
    """Everything that changes the label maps: what the data and the model are, not where they lie; settings; code."""
    data, methods = experiment.dataset, experiment.segmenters
    unsaid = data.made.added.items()
    what = {k: v for k, v in data.settings.items() if k not in data.made.located and (k, v) not in unsaid}
    identity: dict[str, Any] = {"dataset": {**what, "fingerprint": data.made.fingerprint()}}
    code: dict[str, Any] = {"dataset": data.code}
    if experiment.masks:
        maps = {key: experiment.masks.path(key) for key in data.made.keys}
        identity["segmenters"] = {"labels": {"maps": digest(sorted(content_hashes(maps).items()))}}
        return json.loads(json.dumps({**identity, "code": code}))
    made_by = _model_and_code(experiment)
    identity["model"] = made_by["model"]
    identity |= {"timestep": experiment.look.timestep, "dtype": experiment.dtype}
    if experiment.look.noise is not None:  # so that runs without keep their names
        identity["noise"] = experiment.look.noise
    if experiment.look.layers is not None:
        identity["layers"] = experiment.look.layers
    identity["segmenters"] = {name: part.settings for name, part in methods.items()}
    if any(isinstance(part.made, Oracle) for part in methods.values()) and data.made.labelled:
        identity["truth"] = data.made.truth_fingerprint()
    if any(look.prompted for part in methods.values() for look in part.made.passes()):
        captions = data.made.caption_file() if experiment.prompts == "captions" else None
        identity["prompts"] = [experiment.prompts, content_hashes({"captions": captions}) if captions else {}]
    return json.loads(json.dumps({**identity, "code": code | made_by["code"]}))


def _model_and_code(experiment: Experiment) -> dict[str, Any]:
    """What the model is - of a local one, its files: not where they lie -, and hashes of the code that makes maps."""
    assert experiment.model is not None
    model = dict(experiment.model.settings)
    if model.get("name"):
        model["name"] = fingerprint(model["name"])
    code = {
        "dataset": experiment.dataset.code,
        "model": experiment.model.code,
        "segmenters": {name: part.code for name, part in experiment.segmenters.items()},
        "predict": source_hash(["diffseg.eval.predict"], follow=False),
    }
    return {"model": model, "code": code}


def folder_of(experiment: Experiment, identity: dict[str, Any]) -> Path:
    """The folder of a run; its name says what it is and ends with the hash of what changes its labels."""
    data = experiment.dataset
    source = experiment.model.name if experiment.model else "labels"
    if experiment.model and Path(source).is_dir():  # what it is called, not where it lies
        source = Path(source).resolve().name
    parts = (data.name, str(len(data.made)), source)
    methods = [] if experiment.masks else experiment.segmenters
    return experiment.folder or experiment.runs / folder_name(parts, methods, identity)


def run_of(experiment: Experiment) -> Run:
    """The run of an experiment, whether or not it is on disk; nothing is written."""
    identity = identity_of(experiment)
    names = tuple(identity["segmenters"])
    return Run(folder_of(experiment, identity), identity, names, experiment.score_size, experiment.masks)


def open_folder(experiment: Experiment) -> Run:
    """The run of an experiment, made on disk if it is new."""
    identity = identity_of(experiment)
    folder = folder_of(experiment, identity)
    made_with = None
    if experiment.predicts:
        cluster = experiment.cluster
        place = torch.device(cluster.device(experiment.device)) if cluster else resolve_device(experiment.device)
        dtype = resolve_dtype(experiment.dtype, place)
        slow = slow_dtype(dtype, place)
        if slow:
            say(slow)
        made_with = {"device": place.type, "dtype": str(dtype).removeprefix("torch.")}
    create = experiment.predicts or experiment.masks is not None
    record = yaml.safe_dump(experiment.record, sort_keys=False, allow_unicode=True)
    return open_run(folder, identity, record, made_with, create, experiment.score_size, experiment.masks)


# --- predict ----------------------------------------------------------------------------------------------------------


def _predict(experiment: Experiment, run: Run, keys: Sequence[str]) -> None:
    dataset = experiment.dataset.made
    oracles = any(isinstance(part.made, Oracle) for part in experiment.segmenters.values())
    if oracles and not dataset.labelled:
        raise UserError("a segmenter that is told the truth needs labels, and this data set has none")
    _check_told(experiment)
    damaged = run.remove_damaged(keys)
    if damaged:
        say(f"predict: {damaged} damaged label maps are made again")
    todo = run.missing(keys)
    if 0 < len(todo) < len(keys):
        say(f"continuing: {len(keys) - len(todo)} of {len(keys)} label maps are there")
    start = time.monotonic()
    if experiment.cluster and todo:
        done, taken_s = _predict_on_cluster(experiment, experiment.cluster, run, todo)
        took_s = time.monotonic() - start
    else:
        with turn_on(_computes_on(experiment) if todo else torch.device("cpu")):
            done, taken_s = _predicted(experiment, run, todo, experiment.device)
        took_s = taken_s
    left_out = len(run.missing(keys))
    if done:
        run.add_time(experiment.shard, done, taken_s)
        say(f"predict: {_images(done)} segmented in {took_s:.1f} s ({done / max(took_s, 1e-9):.2f} images/s)")
    elif not left_out:
        say("predict: nothing to do, every label map is there")
    if left_out:
        say(f"predict: {_images(left_out)} left out, see {run.folder / 'errors'}")
    if not run.missing(dataset.keys):
        run.remove_partials()


def _check_told(experiment: Experiment) -> None:
    """Refuses oracles where there is not one truth with classes."""
    oracles = [name for name, part in experiment.segmenters.items() if isinstance(part.made, Oracle)]
    if oracles and experiment.dataset.made.regions:
        raise UserError(
            f"the segmenter {oracles[0]} is told the truth, and {experiment.dataset.name} has several truths an image, "
            f"none with classes: leave it out with '~segmenters.{oracles[0]}'"
        )


def _computes_on(experiment: Experiment) -> torch.device:
    """Where this process makes label maps; methods that ask no model make them on the CPU."""
    asks = any(needs_by_look(part.made for part in experiment.segmenters.values()).values())
    return resolve_device(experiment.device) if asks else torch.device("cpu")


def _predicted(experiment: Experiment, run: Run, keys: Sequence[str], device: str) -> tuple[int, float]:
    """`predict` in this process: how many images were segmented, and in how many seconds."""

    def load() -> Backbone:
        assert experiment.model is not None
        return experiment.model.made(device)

    return predict(
        run,
        experiment.dataset.made,
        keys,
        {name: part.made for name, part in experiment.segmenters.items()},
        load,
        experiment.look,
        experiment.batch_size,
        experiment.workers,
        experiment.skip_errors,
        experiment.prompts,
        experiment.streams,
    )


# --- on a cluster -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Common:
    """What every chunk of images needs. here: what the driver has, `_what_is_here`. folder: of the run, where workers
    write into it."""

    experiment: Experiment
    here: dict[str, Any]
    folder: Path | None


@dataclass(frozen=True)
class _Chunk:
    """Images of one task. hashes: of the files that `_read` names."""

    keys: list[str]
    hashes: dict[str, str]

    def __str__(self) -> str:
        return f"the chunk of {len(self.keys)} images {self.keys[0]} to {self.keys[-1]}"


@dataclass(frozen=True)
class _Done:
    """What a task has done: images segmented, in how many seconds; files of the run by their paths inside it, where the
    driver writes them."""

    keys: list[str]
    images: int
    seconds: float
    files: dict[str, bytes]

    def __len__(self) -> int:
        return len(self.keys)


def _predict_on_cluster(experiment: Experiment, cluster: Cluster, run: Run, todo: Sequence[str]) -> tuple[int, float]:
    """The label maps of these images, chunk by chunk; how many were made, and in how many seconds of all workers."""
    device = cluster.device(experiment.device)
    size = cluster.images_a_task(len(todo), device)
    hashes = content_hashes(_read(experiment, todo))
    chunks = (todo[i : i + size] for i in range(0, len(todo), size))
    jobs = (_Chunk(list(keys), {name: hashes[name] for name in _read(experiment, keys)}) for keys in chunks)
    readers = cluster.readers_of(device)
    alone = replace(experiment, device=device, workers=readers, tracker=Tracker(), record={}, cluster=None)
    common = _Common(alone, _what_is_here(experiment), run.folder.resolve() if experiment.workers_write else None)
    say(f"predict: {len(todo)} images, {size} a task, {cluster.slots(device)} at a time, on {device}")
    images, seconds = 0, 0.0
    done_chunks = (done for _, done in scatter(predict_chunk, common, jobs, cluster, device))
    for done in track(done_chunks, "predict", len(todo)):
        for name, content in done.files.items():
            (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(run.folder / name, content)
        for key in done.keys if common.folder is None else ():
            if run.error(key).relative_to(run.folder).as_posix() not in done.files:
                run.error(key).unlink(missing_ok=True)
        images, seconds = images + done.images, seconds + done.seconds
    return images, seconds


def predict_chunk(common: _Common, chunk: _Chunk) -> _Done:
    """In a worker: segments the images of one chunk.

    Raises:
        UserError: code, model or photos are not those that the driver has; as `predict` does.
    """
    experiment = common.experiment
    machine = platform.node()
    different = differences(common.here, _what_is_here(experiment))
    if different:
        raise UserError(
            f"the worker {machine} has another {different[0].partition(':')[0]} than the driver "
            f"({'; '.join(different[:3])}): install the same there"
        )
    files = _read(experiment, chunk.keys)
    hashes = content_hashes(files, remember=False)
    wrong = next((name for name, content in chunk.hashes.items() if hashes.get(name) != content), None)
    if wrong is not None:
        raise UserError(
            f"{wrong} is {'another' if hashes.get(wrong) else 'not there'} on the worker {machine} ({files[wrong]}): "
            f"give all machines the same data"
        )
    device = device_lent() if experiment.device == "cuda" else "cpu"
    names = tuple(experiment.segmenters)
    if common.folder:
        images, seconds = _predicted(experiment, Run(common.folder, {}, names), chunk.keys, device)
        return _Done(chunk.keys, images, seconds, {})
    with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
        images, seconds = _predicted(experiment, Run(Path(folder), {}, names), chunk.keys, device)
        made = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return _Done(chunk.keys, images, seconds, made)


def _read(experiment: Experiment, keys: Sequence[str]) -> dict[str, Path]:
    """The files that images are read from, under names for messages: photos, and for oracles their truth."""
    dataset = experiment.dataset.made
    files = {f"the photo {key}": dataset.file(key) for key in keys}
    if any(isinstance(part.made, Oracle) for part in experiment.segmenters.values()):
        files |= {f"the truth of {key}": dataset.truth_file(key) for key in keys}
    return {name: file for name, file in files.items() if file}


def _what_is_here(experiment: Experiment) -> dict[str, Any]:
    """What must be the same on all machines for a run to be one: code, the model's files, versions of libraries."""
    return json.loads(json.dumps({**_model_and_code(experiment), "versions": versions()}))


# --- score ------------------------------------------------------------------------------------------------------------


def _can_score(experiment: Experiment, run: Run) -> bool:
    """Whether scoring makes sense now; says why not."""
    if not experiment.dataset.made.labelled:
        say("score: this data set has no labels, so there is nothing to score")
        return False
    if experiment.masks:
        return True
    lacking = [key for key in run.missing(experiment.dataset.made.keys) if not run.error(key).exists()]
    if lacking and experiment.shard[1] > 1 and "predict" in experiment.stages:
        say(f"score: waits for the other shards, which lack {len(lacking)} images; then: stages=[score,report]")
        return False
    return True


def counted_with(experiment: Experiment, run: Run, segmenter: str, truth: str) -> str:
    """Hash of what a segmenter's counts are made of: data, maps, truth, size, code, and whether images may lack.

    truth: its fingerprint.
    """
    data = experiment.dataset.made
    maps = content_hashes({key: run.map(segmenter, key) for key in data.keys}, remember=run.masks is not None)
    facts = {
        "dataset": {**run.identity["dataset"], "code": experiment.dataset.code},
        "classes": list(data.classes),
        "truth": truth,
        "maps": sorted(maps.items()),
        "sizes": [data.size, run.score_size],
        "code": source_hash(["diffseg.eval.score", "diffseg.eval.boundaries"], follow=False),
        "skip": experiment.skip_errors,
    }
    return digest(facts)


def _counts(experiment: Experiment, run: Run, hashes: Mapping[str, str]) -> Counts:
    """The counts on disk if they were made of just this; made anew otherwise, and whenever numbers are checked."""
    boundaries = any(part.made.counts == "boundaries" for part in experiment.protocols.values())
    if experiment.reference is None:
        stored = read_all_counts(run, hashes, boundaries)
        if stored:
            return stored
    left_out = {} if run.masks else run.skipped()
    counts = count_all(
        experiment.dataset.made,
        run.segmenters,
        run.map,
        experiment.workers,
        experiment.skip_errors,
        left_out,
        run.score_size,
        boundaries,
        own=run.masks is None,
    )
    write_counts(run, counts, hashes)
    if counts.cropped:
        say(
            f"score: the label maps of {counts.cropped} images are of whole photos. Only the middle square of each is "
            f"scored, as the protocol has it: figures differ from those of maps that were made of this square alone"
        )
    return counts


def _score(experiment: Experiment, run: Run) -> Summary:
    """Scores unless that is done, writes images.parquet and summary.json, returns the summary."""
    truth = experiment.dataset.made.truth_fingerprint()
    hashes = {name: counted_with(experiment, run, name, truth) for name in run.segmenters}
    protocols = experiment.protocols
    rules = {name: [part.settings, part.made.version, part.code] for name, part in protocols.items()}
    code = source_hash([__name__], follow=False)
    scored_with = digest([hashes, list(protocols), rules, facts_of(experiment), code])
    if experiment.reference is None and run.summary.exists():
        try:
            before = read_summary(run)
        except DataError:
            before = None
        if before and before["scored_with"] == scored_with:
            say(f"score: nothing to do, {run.summary.name} is there")
            return before
    counts = _counts(experiment, run, hashes)
    data, model = experiment.dataset.made, experiment.model
    scores = {
        rule: {
            name: scores_of(images, data.classes, part.made, data.background) for name, images in counts.images.items()
        }
        for rule, part in protocols.items()
    }
    headlines = {
        rule: headline_of(part.made, next(iter(scores[rule].values()))["interval"]) for rule, part in protocols.items()
    }
    summary = {
        "run": run.name,
        "scored_with": scored_with,
        "protocol": next(iter(protocols)),
        "dataset": facts_of(experiment),
        "model": model.name if model else None,
        "timestep": experiment.look.timestep if model else None,
        **({"layers": experiment.look.layers} if experiment.look.layers is not None else {}),
        "size": run.score_size or (None if data.prepare == "whole" else data.size),
        "images": len(data) - len(counts.skipped),
        "skipped": counts.skipped,
        "segmenters": {
            name: {
                "settings": run.identity["segmenters"][name],
                "told": told(experiment.segmenters.get(name)),
                "segments": float(images["segments"].map(len).mean()),
                "images": len(images),
                **scores[next(iter(protocols))][name],
            }
            for name, images in counts.images.items()
        },
        "protocols": scores,
        "headlines": headlines,
        "differences": {
            rule: differences_of(counts.images, part.made, headlines[rule], data.background)
            for rule, part in protocols.items()
        },
        "controls": {
            rule: controls_of(counts, data.classes, part.made, data.background) for rule, part in protocols.items()
        },
        "granularity": _granularity(experiment, counts, headlines),
    }
    whole: Summary = json.loads(json.dumps(_without_nan(summary)))
    write(run.summary, json.dumps(whole, indent=1) + "\n")
    if counts.skipped:
        shown = "\n  ".join(f"{key}: {why}" for key, why in list(counts.skipped.items())[:10])
        say(f"score: {_images(len(counts.skipped))} left out:\n  {shown}")
    return whole


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def headline_of(protocol: Protocol, metrics: Mapping[str, Any]) -> str:
    """The metric that stands for a protocol: the one it names, or the first of those it has."""
    return protocol.headline if protocol.headline in metrics else next(iter(metrics))


def _granularity(
    experiment: Experiment, counts: Counts, headlines: Mapping[str, str]
) -> dict[str, dict[str, Granularity]]:
    """The curves over the number of segments, by method and protocol, where several settings were tried."""
    background, curves = experiment.dataset.made.background, {}
    for method in dict.fromkeys(experiment.origins.values()):
        tried = [name for name in counts.images if experiment.origins.get(name) == method]
        if len(tried) < 2:
            continue
        segments = [counts.images[name]["segments"].map(len).to_numpy() for name in tried]
        curves[method] = {
            rule: granularity(
                tried,
                [counts_for(counts.images[name], part.made) for name in tried],
                segments,
                part.made,
                headlines[rule],
                background,
            )
            for rule, part in experiment.protocols.items()
        }
    return curves


def facts_of(experiment: Experiment) -> dict[str, Any]:
    """What results say of the data set: see `DatasetFacts`."""
    data = experiment.dataset
    return {
        "name": data.name,
        "note": data.made.note,
        "classes": list(data.made.classes),
        "size": data.made.size,
        "published": experiment.published,
        "paper_threshold": experiment.paper_threshold,
    }


def told(part: Part[Segmenter | Oracle] | None) -> str | None:
    """What a segmenter is told of the truth; None: nothing, or it is not known (label maps of others)."""
    return part.made.told if part and isinstance(part.made, Oracle) else None


def _without_nan(value: Any) -> Any:
    """JSON knows null, not NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _check_masks(masks: Masks, dataset: Dataset, skip: bool) -> None:
    """Refuses label maps that belong to no image: probably of another data set, or keys that are named otherwise."""
    root, suffix = masks.folder, masks.suffix
    keys = set(dataset.keys)
    names = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    there = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    if not there & keys:
        other = _suffix_in(names, dataset.keys)
        remedy = f"these are named KEY{other}: labels_suffix={other}" if other else "other names: labels_suffix=..."
        raise UserError(f"the folder {root} holds no label map named KEY{suffix} ({remedy})")
    extra = sorted(there - keys)
    if extra:
        text = f"{len(extra)} label maps in {root} belong to no image of the data set, such as {', '.join(extra[:3])}"
        if not skip:
            raise UserError(f"{text}: remove them, or pass them over with on_error=skip")
        say(text)


def _suffix_in(names: set[str], keys: Sequence[str]) -> str:
    """What follows the keys in the names of the PNG files that most probably are label maps; "": nothing does."""
    suffixes = {name.removeprefix(key) for key in keys[:50] for name in names if name.startswith(key)}
    return min((s for s in suffixes if s.endswith(".png")), key=lambda s: ("label" not in s, len(s), s), default="")


# --- check ------------------------------------------------------------------------------------------------------------


def _check(summary: Summary, reference: Reference) -> None:
    rows = check(summary, reference)
    Console().print(check_table(rows))
    if not rows["ok"].all():
        raise MovedError(f"{(~rows['ok']).sum()} of {len(rows)} metrics moved by more than their tolerance")
