"""Work that threads begin before it is asked for; its results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose work is dropped when an error leaves the block: it may be waiting for a store."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Iterator[Result]:
    """The results of work on items, in order; at most `most` are begun or done before they are asked for."""
    begun: deque[Future[Result]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) > most:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], streams: int) -> Iterator[Result]:
    """The results of work on items, in order, `streams` at a time, each in a thread with its share of torch's.

    Two cores are busier with two images than with one: small layers do not fill both. 1: here, when asked for.
    """
    if streams == 1:
        yield from map(work, items)
        return
    import torch

    from diffseg.devices import full_float32

    all_threads = torch.get_num_threads()
    own = partial(torch.set_num_threads, max(1, all_threads // streams))
    with full_float32(), ThreadPoolExecutor(streams, initializer=own) as pool:  # what it sets is set for all threads
        try:
            yield from ahead(pool, work, items, streams)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(all_threads)
