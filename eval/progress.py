"""One progress bar: items done, rate, remaining time; a line a minute where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

Batch = TypeVar("Batch", bound=Sized)


def say(text: str) -> None:
    """Tells the user, without disturbing what is printed as result."""
    print(text, file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} {self.unit}/s")


def track(batches: Iterable[Batch], text: str, total: int) -> Iterator[Batch]:
    """Yields the batches and shows how many of `total` images are done."""
    with counting(text, total) as advance:
        for batch in batches:
            yield batch
            advance(len(batch))


@contextmanager
def counting(text: str, total: int, before: int = 0, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A function that is told how many more of `total` are done, and shows it. before: that many were done already."""
    screen, start, told = Console(stderr=True), time.monotonic(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    done = before

    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(text, total=total, completed=before)

        def advance(more: int) -> None:
            nonlocal done, told
            done += more
            progress.update(task, completed=done)
            now = time.monotonic()
            if not screen.is_terminal and now - told > 60:
                rate, told = (done - before) / (now - start), now
                left = (total - done) / rate / 60
                say(f"{text}: {done} of {total}, {rate:.1f} {unit}/s, {left:.0f} min left")

        yield advance
