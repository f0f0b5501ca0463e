"""Data set -> label maps on disk. What is there already is kept, so a killed run continues where it was.

Images are read by worker processes and maps written by threads. A GPU is given the next batch's pass before one batch
is merged, so that it never waits; the cores of a CPU work on several images at a time. One forward pass serves all
segmenters that look alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from diffseg.ahead import side_by_side
from diffseg.attention import Look, Needs, Observation, Size
from diffseg.backbones.base import Backbone
from diffseg.datasets.base import DataError, Dataset, Words
from diffseg.errors import UserError
from diffseg.eval.progress import track
from diffseg.eval.runs import Run
from diffseg.eval.workers import free_shared_bytes, killed_readers_told, loader
from diffseg.files import write
from diffseg.images import label_image
from diffseg.methods.base import Oracle, Segmenter, needs_by_look
from diffseg.observed import Batch, Prompt
from diffseg.words import noun_tokens

_LARGEST = 65535  # that a PNG holds
_WAITING = 64  # maps that may wait for the disk
_WRITERS = 4  # threads: a map takes 2 ms, most of them in zlib, which lets others go on


@dataclass(frozen=True)
class Loaded:
    """One image but for its pixels, or what was wrong with it.

    shape: (H, W) in pixels that labels are wanted at. truth: int32 [H, W], for oracles. words: a prompt and its (noun,
    class) pairs, for prompted looks.
    """

    key: str
    shape: Size = (0, 0)
    truth: np.ndarray | None = None
    words: Words | None = None
    error: str = ""


@dataclass(frozen=True)
class Alike:
    """Images that a model takes in one pass. pixels: float32 [B, 3, h, w], by the size that they are looked at."""

    images: Sequence[Loaded]
    pixels: Mapping[int, Tensor | np.ndarray]


@dataclass(frozen=True)
class Read:
    """Some images in order, and those of them that could be read, in groups of one shape."""

    images: Sequence[Loaded]
    groups: Sequence[Alike]

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Read:
        """For a GPU: the pixels in memory from which it copies while the program goes on (called by the loader)."""

        def pinned(group: Alike) -> Alike:
            return replace(group, pixels={s: torch.as_tensor(p).pin_memory() for s, p in group.pixels.items()})

        return replace(self, groups=[pinned(group) for group in self.groups])


def together(read: Sequence[tuple[Loaded, Mapping[int, np.ndarray]]], shared: bool = True) -> Read:
    """Images with their pixels [3, h, w] by size, as what a reading process hands over.

    shared: as tensors, which go from process to process in shared memory. An array goes through a pipe in pieces of 64
    KiB, and for each of them whoever reads it waits its turn with the thread that keeps a GPU busy.
    """
    members: dict[tuple, list[tuple[Loaded, Mapping[int, np.ndarray]]]] = {}
    for image, pixels in read:
        if not image.error:
            members.setdefault(tuple(array.shape for array in pixels.values()), []).append((image, pixels))
    groups = []
    for alike in members.values():
        stacked = {size: np.stack([pixels[size] for _, pixels in alike]) for size in alike[0][1]}
        handed = {size: torch.from_numpy(array) if shared else array for size, array in stacked.items()}
        groups.append(Alike([image for image, _ in alike], handed))
    return Read([image for image, _ in read], groups)


class _Loader(TorchDataset):
    """Reads images in worker processes; an image that cannot be read becomes an error, not an exception."""

    def __init__(
        self,
        dataset: Dataset,
        keys: Sequence[str],
        sizes: Sequence[int],
        multiple: int,
        truth: bool,
        prompts: str | None,
    ):
        self.dataset, self.keys, self.sizes, self.multiple = dataset, keys, sizes, multiple
        self.truth, self.prompts = truth, prompts

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Loaded, dict[int, np.ndarray]]:
        key = self.keys[index]
        try:
            truth = self.dataset.label(key) if self.truth else None
            words = self.dataset.words(key, self.prompts) if self.prompts else None
            pixels = {size: self.dataset.image(key, size, self.multiple).numpy() for size in self.sizes}
            return Loaded(key, self.dataset.label_shape(key), truth, words), pixels
        except (UserError, OSError) as error:
            return Loaded(key, error=str(error)), {}


def predict(
    run: Run,
    dataset: Dataset,
    keys: Sequence[str],
    segmenters: Mapping[str, Segmenter | Oracle],
    load: Callable[[], Backbone],
    look: Look,
    batch_size: int = 8,
    workers: int = 2,
    skip_errors: bool = False,
    prompts: str = "classes",
    streams: int = 1,
) -> tuple[int, float]:
    """Writes the label maps of the keys that lack one.

    Args:
        run: where the maps go. segmenters: by name. load: gives the backbone; called only if a pass is to be made.
        look: how the backbone is asked where a segmenter does not say (the time step).
        batch_size: images per forward pass on a GPU; on a CPU they go one by one, so that labels do not depend on it to
            the last bit. workers: reading processes.
        skip_errors: leave out images that cannot be read, and record why, instead of stopping.
        prompts: what prompted looks say, see `Dataset.words`. streams: images that a CPU works on at a time, each with
            its share of torch's threads.

    Returns:
        How many images were segmented, and in how many seconds, once the model was loaded.

    Raises:
        DataError: an image cannot be read (after all earlier ones are written). OSError: a map cannot be written.
    """
    todo = run.missing(keys)
    if not todo:
        return 0, 0.0
    needs = needs_by_look(segmenters.values())
    backbone = load() if any(needs.values()) else None
    for folder in {run.map(name, key).parent for name in segmenters for key in todo}:
        folder.mkdir(parents=True, exist_ok=True)
    told = any(isinstance(s, Oracle) for s in segmenters.values())
    prompted = prompts if any(asked.prompted for asked in needs) else None
    sizes = [dataset.size, *sorted({asked.size for asked in needs if asked.size} - {dataset.size})]
    on_cpu = backbone is None or backbone.device.type == "cpu"
    mapped = [asked.size or dataset.size for asked, wanted in needs.items() if wanted.attention]
    if backbone:
        side = max(mapped, default=dataset.size)
        streams = min(streams, backbone.streams((side, side), max(1, len(mapped))))
    streams = 1 if prompted else min(streams, torch.get_num_threads())
    pin = backbone is not None and backbone.device.type == "cuda"
    multiple = backbone.multiple if backbone and dataset.prepare == "whole" else 1
    images_read = _Loader(dataset, todo, sizes, multiple, told, prompted)
    at_once = 1 if on_cpu else batch_size
    held = at_once * sum(3 * 4 * size**2 for size in sizes) * (2 * workers + 2)  # bytes on their way from readers
    batches = loader(images_read, at_once, workers, partial(together, shared=held < free_shared_bytes()), pin)
    look = look.within(Look(size=dataset.size))
    done, start = 0, time.monotonic()
    with killed_readers_told(), ThreadPoolExecutor(_WRITERS) as writer:
        writing: list[Future] = []
        begin = partial(_passes, backbone, look, segmenters)
        tracked = track(batches, "predict", len(todo))
        turns = {name: Lock() for name in segmenters}
        many = _streamed(tracked, begin, streams, turns) if streams > 1 else _begun(tracked, begin, ahead=not on_cpu)
        for read, segmented in many:
            for images, name, labels in segmented:
                for image, image_labels in zip(images, labels, strict=True):
                    _check_labels(name, image.key, image_labels, image.shape)
                    writing.append(writer.submit(_write_map, run.map(name, image.key), image_labels))
            done += sum(len(group.images) for group in read.groups)
            for image in read.images:
                if image.error:
                    if not skip_errors:
                        _settle(writing, 0)
                        raise DataError(f"{image.error} (or leave such images out with on_error=skip)")
                    _note_error(run, image)
                else:
                    run.error(image.key).unlink(missing_ok=True)
            _settle(writing, _WAITING)
        _settle(writing, 0)
    return done, time.monotonic() - start


@dataclass(frozen=True)
class _Pass:
    """Images of one shape, and the segmenters that one pass of the backbone serves."""

    images: Sequence[Loaded]
    segmenters: Mapping[str, Segmenter | Oracle]
    batch: Batch

    def segmented(self, turns: Mapping[str, Lock] | None = None) -> Iterator[_Segmented]:
        """The labels of every segmenter. turns: of each by name, where other threads use it as well."""
        truths = [image.truth for image in self.images]
        for name, segmenter in self.segmenters.items():
            with nullcontext() if turns is None else turns[name]:
                labels = segment(segmenter, self.batch, truths)
            yield self.images, name, labels


_Segmented = tuple[Sequence[Loaded], str, list[np.ndarray]]  # images, the name of a segmenter, labels of each image


def _segmented(passes: list[_Pass]) -> Iterator[_Segmented]:
    """The labels that passes end in; what one pass has shown is let go before the next."""
    while passes:
        yield from passes.pop(0).segmented()


def _streamed(
    batches: Iterable[Read], begin: Callable[[Read], list[_Pass]], streams: int, turns: Mapping[str, Lock]
) -> Iterator[tuple[Read, list[_Segmented]]]:
    """Batches in order with their labels, `streams` of them at a time. Passes are made side by side; a segmenter has
    one batch at a time, so that it may keep what it likes.

    turns: a lock for each segmenter, by its name.
    """

    def segmented(begun: tuple[Read, list[_Pass]]) -> tuple[Read, list[_Segmented]]:
        labels: list[_Segmented] = []
        read, passes = begun
        while passes:
            alike = passes.pop(0)
            alike.batch.start()
            labels += alike.segmented(turns)
        return read, labels

    return side_by_side(segmented, ((read, begin(read)) for read in batches), streams)


def _begun(
    batches: Iterable[Read], begin: Callable[[Read], list[_Pass]], ahead: bool
) -> Iterator[tuple[Read, Iterator[_Segmented]]]:
    """Batches with their labels, made when asked for. ahead: the first pass of the next batch is started before one is
    handed on, so that a GPU has work while this process waits for what the batch's segments need."""
    waiting = None
    for read in batches:
        passes = begin(read)
        if not ahead:
            yield read, _segmented(passes)
            continue
        if passes:
            with suppress(
                UserError, torch.OutOfMemoryError
            ):  # of two batches at once; it is tried again when asked for
                passes[0].batch.start()
        if waiting:
            yield waiting
        waiting = read, _segmented(passes)
    if waiting:
        yield waiting


def _passes(
    backbone: Backbone | None, look: Look, segmenters: Mapping[str, Segmenter | Oracle], read: Read
) -> list[_Pass]:
    """What is to be passed through the backbone, one pass for each look; those that differ in their layers alone share
    one."""
    looks: dict[Look, dict[str, Segmenter | Oracle]] = {}
    for name, segmenter in segmenters.items():
        looks.setdefault(replace(segmenter.look.within(look), layers=None), {})[name] = segmenter
    return [
        _Pass(group.images, alike, _batch(backbone, look, group, alike))
        for group in read.groups
        for alike in looks.values()
    ]


def _batch(backbone: Backbone | None, look: Look, group: Alike, segmenters: Mapping[str, Segmenter | Oracle]) -> Batch:
    """Images of one shape, to be looked at when segmenters ask."""

    def see(asked: Look, needs: Needs) -> Observation:
        assert backbone is not None
        assert asked.size is not None
        pixels = torch.as_tensor(group.pixels[asked.size]).to(backbone.device, non_blocking=True)
        texts = [prompt.text for prompt in prompts] if asked.prompted and prompts else None
        return backbone.observe(pixels, needs, asked, texts, wait=False)

    assert look.size is not None
    prompts = _prompts(backbone, group.images)
    sizes = [image.shape for image in group.images]
    pixels = list(torch.as_tensor(group.pixels[look.size]))
    return Batch(pixels, see, look, needs_by_look(segmenters.values()), sizes, prompts)


def _prompts(backbone: Backbone | None, images: Sequence[Loaded]) -> list[Prompt] | None:
    """The prompts of images, with the tokens of their nouns; None where no look is prompted."""
    if backbone is None or any(image.words is None for image in images):
        return None
    prompts = []
    for words in (image.words for image in images):
        assert words is not None
        try:
            tokens = noun_tokens(backbone.tokenizer, words.text, [noun for noun, _ in words.nouns])
        except UserError as error:
            other = "its classes, with prompts=classes" if words.is_caption else "captions, with prompts=captions"
            raise UserError(f"{error}; prompt with {other}, or a model whose text encoder reads more") from None
        prompts.append(Prompt(words.text, tuple(number for _, number in words.nouns), tokens, words.unnamed))
    return prompts


def segment(segmenter: Segmenter | Oracle, batch: Batch, truths: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Labels int [H, W] of each image, looked at as the segmenter says; truths: int [H, W] of each, for an oracle."""
    batch = batch.within(segmenter.look)
    if isinstance(segmenter, Oracle):
        told = [truth for truth in truths if truth is not None]
        return [segmenter.segment(image, truth) for image, truth in zip(batch, told, strict=True)]
    return segmenter.segment_batch(batch)


def _check_labels(name: str, key: str, labels: Any, shape: Size) -> None:
    """Refuses what is no label map, before hours of it are written."""
    is_map = isinstance(labels, np.ndarray) and labels.shape == shape and labels.dtype.kind in "iub"
    if is_map and labels.min() >= 0 and labels.max() <= _LARGEST:
        return
    kind = f"{labels.dtype} {list(labels.shape)}" if hasattr(labels, "dtype") else ""
    wrong = ""
    if is_map:
        wrong = f", at least {labels.min()}" if labels.min() < 0 else f", at most {labels.max()}"
    raise UserError(
        f"segmenters.{name}: of the image {key} it gives a {type(labels).__name__} {kind}{wrong}; a label map is "
        f"a numpy array {list(shape)} of whole numbers from 0 to {_LARGEST}"
    )


def _write_map(path: Path, labels: np.ndarray) -> None:
    write(path, lambda file: label_image(labels).save(file, "PNG"))


def _note_error(run: Run, image: Loaded) -> None:
    path = run.error(image.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, image.error)


def _settle(writing: list[Future], leave: int) -> None:
    """Waits until at most `leave` writes are under way; raises what one of them has raised."""
    while len(writing) > leave or (writing and writing[0].done()):
        writing.pop(0).result()
