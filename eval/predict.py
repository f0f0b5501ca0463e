"""Data set -> label maps on disk. What is there already is kept, so a killed run continues where it was.

Images are read by worker processes and maps written by a thread, so that the model never waits; one forward pass
serves all segmenters.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from diffseg.attention import DiffusionModel, Maps
from diffseg.datasets.base import DataError, Dataset
from diffseg.eval.progress import track
from diffseg.eval.runs import Run
from diffseg.eval.segmenters import Batch, Oracle, Segmenter
from diffseg.files import write
from diffseg.images import label_image

_WAITING = 64  # maps that may wait for the disk
_WRITERS = 4  # threads: a map takes 2 ms, most of them in zlib, which lets others go on


@dataclass(frozen=True)
class Loaded:
    """One image, or what was wrong with it. pixels: float32 [3, H, W]; truth: int16 [H, W], for oracles only."""

    key: str
    pixels: np.ndarray | torch.Tensor | None = None  # an array as it comes from the reading process
    truth: np.ndarray | None = None
    error: str = ""

    def pin_memory(self) -> Loaded:
        """For a GPU: the pixels in memory from which it copies while the program goes on (called by the loader)."""
        if self.pixels is None:
            return self
        return replace(self, pixels=torch.as_tensor(self.pixels).pin_memory())


class _Loader(TorchDataset):
    """Reads images in worker processes; an image that cannot be read becomes an error, not an exception."""

    def __init__(self, dataset: Dataset, keys: Sequence[str], truth: bool):
        self.dataset, self.keys, self.truth = dataset, keys, truth

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Loaded:
        key = self.keys[index]
        try:
            truth = self.dataset.label(key) if self.truth else None
            return Loaded(key, self.dataset.image(key).numpy(), truth)
        except DataError as error:
            return Loaded(key, error=str(error))


def loader(data: TorchDataset, batch_size: int, workers: int, pin: bool = False) -> DataLoader:
    """Batches as lists, in order, read by `workers` processes (0: by this one). pin: call their `pin_memory`."""
    return DataLoader(
        data,
        batch_size,
        num_workers=workers,
        collate_fn=list,
        pin_memory=pin,
        worker_init_fn=leave_with_parent,
        # The platform's own way: in a job of joblib the default is loky's, which DataLoader cannot use.
        multiprocessing_context=multiprocessing.get_all_start_methods()[0] if workers else None,
    )


def leave_with_parent(worker: int = 0) -> None:
    """Ends this process when the one that started it is killed; blocked on a full pipe, it would wait for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def shard_of(keys: Sequence[str], shard: Sequence[int]) -> list[str]:
    """The keys that shard [i, n] is to do: every n-th from the i-th.

    Raises:
        ValueError: not two whole numbers with 0 <= i < n.
    """
    if len(shard) != 2 or not all(type(x) is int for x in shard) or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard must be [i, n], two whole numbers with 0 <= i < n, got {list(shard)}")
    return list(keys[shard[0] :: shard[1]])


def missing(run: Run, keys: Sequence[str]) -> list[str]:
    """The keys that lack the map of at least one segmenter."""
    return [key for key in keys if not all(run.map(name, key).exists() for name in run.segmenters)]


def predict(
    run: Run,
    dataset: Dataset,
    keys: Sequence[str],
    segmenters: Mapping[str, Segmenter | Oracle],
    load_model: Callable[[], DiffusionModel],
    timestep: int,
    batch_size: int = 8,
    workers: int = 2,
    skip_errors: bool = False,
) -> tuple[int, float]:
    """Writes the label maps of the keys that lack one.

    Args:
        run: where the maps go. segmenters: by name. load_model: called only if there is something to do.
        timestep: t. batch_size: images per forward pass on a GPU; on a CPU they go one by one, so that labels do not
            depend on it to the last bit. workers: reading processes.
        skip_errors: leave out images that cannot be read, and record why, instead of stopping.

    Returns:
        How many images were segmented, and in how many seconds, once the model was loaded.

    Raises:
        DataError: an image cannot be read (after all earlier ones are written). OSError: a map cannot be written.
    """
    todo = missing(run, keys)
    if not todo:
        return 0, 0.0
    model = load_model()
    for folder in {run.map(name, key).parent for name in segmenters for key in todo}:
        folder.mkdir(parents=True, exist_ok=True)
    told = any(isinstance(s, Oracle) for s in segmenters.values())
    gpu = model.device.type == "cuda"
    size = batch_size if model.device.type != "cpu" else 1
    batches = loader(_Loader(dataset, todo, told), size, workers, pin=gpu)
    done, start = 0, time.monotonic()
    with ThreadPoolExecutor(_WRITERS) as writer:
        writing: list[Future] = []
        for images in track(batches, "predict", len(todo)):
            good = [image for image in images if not image.error]
            for name, labels in _segmented(model, timestep, good, segmenters):
                for image, one in zip(good, labels, strict=True):
                    writing.append(writer.submit(_write_map, run.map(name, image.key), one))
            done += len(good)
            for image in images:
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


def _segmented(
    model: DiffusionModel, timestep: int, images: Sequence[Loaded], segmenters: Mapping[str, Segmenter | Oracle]
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(name, labels of each image) of every segmenter, from one pass of the model (none, if no segmenter needs it)."""
    pixels = [torch.as_tensor(image.pixels) for image in images]

    def maps() -> Maps:
        there = [one.to(model.device, non_blocking=True) for one in pixels]
        return model.attention(torch.stack(there), timestep).self_attention

    batch = Batch(pixels, maps)
    for name, segmenter in segmenters.items():
        yield name, segment(segmenter, batch, [image.truth for image in images]) if images else []


def segment(segmenter: Segmenter | Oracle, batch: Batch, truths: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Labels int [H, W] of each image; truths: int [H, W] of each, for an oracle."""
    if isinstance(segmenter, Oracle):
        told = [truth for truth in truths if truth is not None]
        return [segmenter.segment(image, truth) for image, truth in zip(batch, told, strict=True)]
    return segmenter.segment_batch(batch)


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
