"""Work on a Ray cluster, or on all devices of one machine: stateless tasks, done again where a machine is lost.

A fixed pool of workers stands still when a machine goes; tasks go on elsewhere. What is slow to make, the model above
all, stays in the process that did one task and serves the next. The only module that knows Ray.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import pickle
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any, TypeVar

from diffseg.errors import UserError
from diffseg.eval.progress import say

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")

_SLOTS_S = 5.0  # machines may come and go: so often they are counted
_AHEAD = 2  # tasks handed out for each that can run at a time: a worker that is done finds the next at its door
_QUIET = {
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of tasks that are given up because another has failed
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    # A process that is used again may be lent another GPU, and CUDA reads the variable only once: see `device_lent`.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
}


class LostError(UserError):
    """A job whose process or machine was lost again and again."""


@dataclass(frozen=True)
class Cluster:
    """Where tasks run, and what each may take.

    address: of a running cluster, "auto" (the one that this machine is part of) or "HOST:PORT"; None: this machine
    alone, for as long as this process runs. gpus: of each task, parts allowed; None: one where there are any. cpus: of
    each task, and its threads. chunk: images a task; None: as many as `images_a_task` says. readers: processes of each
    task that read images; None: as many as `readers_of` says. retries: how often a task may be lost. timeout_s: a task
    that takes longer is given up, and counts as lost.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: float = 1
    chunk: int | None = None
    readers: int | None = None
    retries: int = 5
    timeout_s: float = 1800

    def connect(self) -> None:
        """Connects this process to the cluster, or starts one; once, and until the process ends.

        Raises:
            UserError: Ray is not installed, or there is no cluster at this address.
        """
        if find_spec("ray") is None:
            raise UserError('a cluster needs Ray: pip install "diffseg[ray]"')
        os.environ |= {name: os.environ.get(name, value) for name, value in _QUIET.items()}
        import ray

        if ray.is_initialized():
            return
        self._check_reachable()
        if self.address is not None:
            say(f"connecting to the Ray cluster at {self.address}")
        options: dict[str, Any] = {"runtime_env": {"env_vars": dict(_QUIET)}}
        if self.address is None:
            options = {"include_dashboard": False}
        try:
            ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise self._not_there(str(error).strip().splitlines()[0]) from None

    def _check_reachable(self) -> None:
        """Refuses an address at which nobody listens, which Ray would try for minutes."""
        host, colon, port = (self.address or "").rpartition(":")
        if not colon or "/" in host:
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise self._not_there(str(error)) from None

    def _not_there(self, reason: str) -> UserError:
        return UserError(
            f"there is no Ray cluster at the address {self.address} ({reason}): start one with ray start --head, or "
            f"leave the address out to use this machine (--ray local in diffseg segment). If there is one, it may ask "
            f"for a token: RAY_AUTH_MODE=token, and the file ~/.ray/auth_token of the machine that started it"
        )

    def device(self, asked: str) -> str:
        """Where tasks compute if `asked` is what the user wants: "cpu" or "cuda".

        Raises:
            UserError: GPUs are asked for and the cluster has none; a single GPU is named.
        """
        if asked not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"on a Ray cluster, device must be auto, cpu or cuda, and Ray lends GPUs by itself; got {asked}"
            )
        self.connect()
        import ray

        there = ray.cluster_resources().get("GPU", 0)
        if asked != "cpu" and self.gpus and not there:
            raise UserError(f"ray.gpus={self.gpus:g} for each task, and the Ray cluster has no GPUs: leave it out")
        if asked == "cpu" or self.gpus == 0 or (asked == "auto" and not there):
            return "cpu"
        if not there:
            raise UserError("device=cuda, and the Ray cluster has no GPUs: use device=cpu or auto")
        return "cuda"

    def slots(self, device: str) -> int:
        """How many tasks can run at a time, as many machines as there are now; at least one."""
        import ray

        there = ray.cluster_resources()
        return max(1, int(min(there.get(name, 0) / share for name, share in self.takes(device).items() if share)))

    def takes(self, device: str) -> dict[str, float]:
        """What a task takes, in Ray's words."""
        gpus = 1 if self.gpus is None else self.gpus
        return {"CPU": self.cpus, "GPU": gpus if device == "cuda" else 0}

    def check_room(self, device: str) -> None:
        """Says so where no machine can do a task now: another may join.

        Raises:
            UserError: none will, since this machine is the cluster.
        """
        import ray

        takes = self.takes(device)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(has.get(name, 0) >= share for name, share in takes.items()) for has in machines):
            return
        asked = " and ".join(f"{share:g} {name}s" for name, share in takes.items() if share)
        if self.address is None:
            raise UserError(f"a task takes {asked}, which this machine has not: set ray.cpus and ray.gpus")
        say(f"no machine of the cluster has the {asked} that a task takes: waiting for one (ray.cpus, ray.gpus)")

    def images_a_task(self, images: int, device: str) -> int:
        """The chunk that was asked for; else half a minute's work, less where there are few images for all slots."""
        usual = 1024 if device == "cuda" else 32
        return self.chunk or max(1, min(usual, -(-images // (2 * self.slots(device)))))

    def readers_of(self, device: str) -> int:
        """Those that were asked for; else four for a GPU, which is faster than one of them, and none beside a CPU."""
        return (4 if device == "cuda" else 0) if self.readers is None else self.readers


def scatter(
    work: Callable[[Shared, Job], Result],
    shared: Shared,
    jobs: Iterable[Job],
    cluster: Cluster,
    device: str = "cpu",
    name_of: Callable[[Job], str] = str,
) -> Iterator[tuple[Job, Result]]:
    """Does all jobs on a cluster; gives (job, result) as they are done, in any order.

    Jobs are taken one by one, as many as are under way and a few more, so that memory does not grow with their number.
    A job whose machine or process is lost is done again elsewhere; what it did before must do no harm then.

    Args:
        work: a function of a module that the workers can import. shared: what every job needs; it is sent to each
            machine once, and unpickled once in each process. cluster: where. device: "cpu" or "cuda", for `slots`.
        name_of: what messages call a job.

    Raises:
        UserError: `work` raised one, or an OSError. LostError: a job was lost too often. Whatever else `work` raises.
    """
    cluster.connect()
    import ray

    cluster.check_room(device)
    takes = cluster.takes(device)
    task = ray.remote(
        num_cpus=takes["CPU"],
        num_gpus=takes["GPU"],
        max_calls=0,  # otherwise a process ends with its first task that has a GPU, and the model with it
        max_retries=cluster.retries,
    )(_guarded)
    sent, token = ray.put(pickle.dumps(shared)), uuid.uuid4().hex
    return _collected(
        jobs,
        lambda job: task.remote(work, token, sent, job, cluster.timeout_s),
        lambda: cluster.slots(device),
        lambda job, kind: LostError(
            f"{name_of(job)} was lost {cluster.retries + 1} times with the process that did it ({kind}): it takes more "
            f"memory than there is, longer than ray.timeout_s={cluster.timeout_s:g}, or kills the process; what is "
            f"done is kept, Ray's logs are in /tmp/ray/session_latest/logs of that machine"
        ),
    )


def _collected(
    jobs: Iterable[Job], submit: Callable[[Job], Any], slots: Callable[[], int], lost: Callable[[Job, str], Exception]
) -> Iterator[tuple[Job, Any]]:
    """(job, result) of jobs that `submit` hands out, as many at a time as `slots` says now and some behind them."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    waiting: dict[Any, Job] = {}
    ahead = iter(jobs)
    left, room, asked = True, 0, -math.inf
    try:
        while left or waiting:
            if time.monotonic() - asked > _SLOTS_S:
                room, asked = _AHEAD * slots(), time.monotonic()
            for job in islice(ahead, room - len(waiting)) if room > len(waiting) else ():
                waiting[submit(job)] = job
            left = len(waiting) >= room
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=_SLOTS_S) if waiting else ([], [])
            for reference in done:
                job = waiting.pop(reference)
                try:
                    result, refusal = ray.get(reference)
                except RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                except RayError as error:  # the process or machine died, more often than retries allow
                    raise lost(job, type(error).__name__) from None
                if refusal:
                    raise refusal
                yield job, result
    finally:
        for reference in waiting:
            with suppress(RayError, ValueError):
                ray.cancel(reference, force=True)


def _guarded(
    work: Callable[[Any, Any], Any], token: str, shared: bytes, job: Any, timeout_s: float
) -> tuple[Any, UserError | None]:
    """In a worker: (result, None), or (None, what a user can mend). After timeout_s the process ends, come what may."""
    _watched["timeout_s"] = timeout_s
    still_alive()
    try:
        return work(_unpickled(token, shared), job), None
    except UserError as error:
        return None, error
    except OSError as error:
        return None, UserError(str(error))
    finally:
        faulthandler.cancel_dump_traceback_later()


_watched = {"timeout_s": math.inf}


def still_alive() -> None:
    """In a worker: the task goes on, and may take as long as a whole one from now."""
    if _watched["timeout_s"] < math.inf:
        faulthandler.dump_traceback_later(_watched["timeout_s"], exit=True, file=2)


_kept: dict[str, Any] = {}


def _unpickled(token: str, shared: bytes) -> Any:
    """What all jobs of a `scatter` need; kept from task to task."""
    if token not in _kept:
        _kept.clear()
        _kept[token] = pickle.loads(shared)
    return _kept[token]


def device_lent() -> str:
    """In a worker: the device that the task at work may use, "cpu" or "cuda:N" as torch counts in this process."""
    import ray

    return _as_torch_counts(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _as_torch_counts(lent: list[Any], visible: str | None) -> str:
    """Ray's GPUs of a task -> torch's device. visible: the GPUs that this process sees, in torch's order; None: all."""
    if not lent:
        return "cpu"
    number = str(lent[0])
    return f"cuda:{visible.split(',').index(number) if visible else int(number)}"
