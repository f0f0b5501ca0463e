"""Jobs side by side on one machine: the GPU that each takes, whose turn it is on one, and how many cores each has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from diffseg.eval.progress import say

_PLACE = Path("/tmp")  # of locks: the machine's own, whatever TMPDIR a scheduler gives each job
_POLL_S = 0.5


def gpu_of(device: str, job: int) -> str:
    """The device of one of several jobs: where a GPU is asked for without a number, the jobs take turns over all."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return f"cuda:{job % gpus}" if gpus > 1 else device


def cores(jobs: int = 1) -> int:
    """Cores for each of some jobs side by side: those that this process was given, shared evenly; at least one.

    jobs: as joblib counts them, -1 for as many as there are cores, -2 for one less.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = min(allowed, int(os.environ.get("SLURM_CPUS_PER_TASK", allowed)))
    return max(1, given // (jobs if jobs > 0 else max(1, given + 1 + jobs)))


def limit_threads(most: int) -> None:
    """Lets torch use at most so many threads in this process."""
    if torch.get_num_threads() > most:
        torch.set_num_threads(most)


@contextmanager
def turn_on(device: torch.device) -> Iterator[None]:
    """Keeps a GPU for this process; the user's other processes wait for it here. On the CPU nobody waits."""
    if device.type != "cuda":
        yield
        return
    with turn(str(torch.cuda.get_device_properties(device).uuid), str(device), _PLACE):
        try:
            yield
        finally:
            torch.cuda.empty_cache()  # the next one measures what is free


@contextmanager
def turn(name: str, shown: str, place: Path) -> Iterator[None]:
    """Holds what is called `name` while no other process of this user does; says so if it has to wait.

    The operating system takes it back from a process that dies.

    Args:
        shown: the name in the message. place: the folder of the lock's file, on a disk of this machine.
    """
    lock = FileLock(place / f"diffseg-{os.getuid()}-{name}.lock", poll_interval=_POLL_S)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"predict: {shown} is making label maps for another process: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
