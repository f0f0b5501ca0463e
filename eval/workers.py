"""Who does the work in this process' place: processes that read images ahead of the model. Shards of a data set."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from diffseg.errors import UserError


def loader(
    data: TorchDataset, batch_size: int, workers: int, together: Callable[[list], Any] = list, pin: bool = False
) -> DataLoader:
    """Batches in order, read by `workers` processes (0: by this one).

    together: makes a batch of a list of what was read. pin: call the batches' `pin_memory`.
    """
    return DataLoader(
        data,
        batch_size,
        num_workers=workers,
        collate_fn=together,
        pin_memory=pin,
        worker_init_fn=leave_with_parent,
        # The platform's own way: in a job of joblib the default is loky's, which DataLoader cannot use.
        multiprocessing_context=multiprocessing.get_all_start_methods()[0] if workers else None,
    )


def _leave_when_told(seconds: float = 5.0) -> None:
    """Waits for a SIGTERM. The parent's ends this process at once; after another's the parent has some seconds."""
    parent = multiprocessing.parent_process()
    if signal.sigwaitinfo([signal.SIGTERM]).si_pid != (parent.pid if parent else os.getppid()):
        signal.sigtimedwait([signal.SIGTERM], seconds)
    os._exit(0)


def free_shared_bytes(place: Path = Path("/dev/shm")) -> float:
    """Room for what processes share, in bytes; containers often have 64 MiB of it."""
    return shutil.disk_usage(place).free if place.is_dir() else math.inf


@contextmanager
def killed_readers_told() -> Iterator[None]:
    """Around work on batches: torch tells of a killed reading process in the middle of whatever runs then.

    Raises:
        UserError: one was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise UserError(
            "a reading process was killed, perhaps because memory ran out; what is done is kept: run the same command "
            "again, with workers=0 or a smaller number"
        ) from None


def leave_with_parent(worker: int = 0) -> None:
    """Ends this process when the one that started it is killed; blocked on a full pipe, it would wait for ever.

    A scheduler's warning and its SIGTERM, which may reach all processes of a job, are that one's to answer: what it
    does then, this one would have inherited. Until it has, this one goes on, for some seconds at most.
    """
    for warning in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which macOS lacks
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_leave_when_told, daemon=True).start()

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def shard_of(keys: Sequence[str], shard: Sequence[int]) -> list[str]:
    """The keys that shard [i, n] is to do: every n-th from the i-th.

    Raises:
        UserError: not two whole numbers with 0 <= i < n.
    """
    if len(shard) != 2 or not all(type(x) is int for x in shard) or not 0 <= shard[0] < shard[1]:
        raise UserError(f"shard must be [i, n], two whole numbers with 0 <= i < n, got {list(shard)}")
    return list(keys[shard[0] :: shard[1]])
