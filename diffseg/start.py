"""The doors of the commands: what torch's threads and memory need is said before it is loaded, and the end is quick."""

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def _settle() -> None:
    """Lets OpenMP's threads sleep while they wait and torch ask for large pages; what the user has set stays.

    Threads spin otherwise, and two programs on one machine take each other's cores. Of small pages an image needs
    70,000, which the system clears one by one: docs/performance.md.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage among the objects of thousands of modules while these are imported: a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(command: Callable[[], None]) -> None:
    """Runs a command and ends without taking the interpreter apart, which would be a second after torch.

    What is registered for the end is done; an error keeps its traceback.
    """
    status = 0
    try:
        command()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise
        status = ended.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, and ends pools of processes
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def segment() -> None:
    """The command `diffseg`."""
    _settle()
    from diffseg.cli import main

    _run(main)


def evaluate() -> None:
    """The command `diffseg-eval`."""
    _settle()
    with uncollected():
        from diffseg.eval.run import main

    _run(main)
