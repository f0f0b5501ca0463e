"""One progress bar: items done, rate, remaining time; a line a minute where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

Batch = TypeVar("Batch", bound=Sized)


def say(text: str) -> None:
    """Tells the user, without disturbing what is printed as result."""
    print(text, file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s")


def track(batches: Iterable[Batch], text: str, total: int) -> Iterator[Batch]:
    """Yields the batches and shows how many of `total` images are done."""
    screen, start, told = Console(stderr=True), time.monotonic(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        done = 0
        for batch in batches:
            yield batch
            done += len(batch)
            progress.update(task, completed=done)
            now = time.monotonic()
            if not screen.is_terminal and now - told > 60:
                rate, told = done / (now - start), now
                left = (total - done) / rate / 60
                print(f"{text}: {done} of {total}, {rate:.1f} images/s, {left:.0f} min left", file=sys.stderr)
