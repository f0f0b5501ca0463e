"""Which classes are taken for which: truth against matched class, from the counts on disk. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.eval.protocols import Matching

_MOST = 40  # classes that a heat map shows
_PAIRS = 12  # pairs that are listed


def confusion(tables: Sequence[np.ndarray], protocol: Matching, background: int | None = None) -> np.ndarray:
    """Pixels of each class (rows) by the class that the protocol gave their segment: int64 [classes, classes + 1].

    The last column: segments that it gave no class. The diagonal is what it counts as right, a row all that it counts
    of a class.

    Args:
        tables: int64 [classes + 1, S] of each image, the last row void. background: see `Protocol.statistics`.
    """
    counted = [protocol.counted(table, background) for table in tables]
    pixels = np.zeros((len(counted[0]), len(counted[0]) + 1), np.int64)
    for table, classes in zip(counted, protocol.classes_of(tables, background), strict=True):
        np.add.at(pixels.T, classes, table.T)  # -1, no class, is the last column
    return pixels


@dataclass(frozen=True)
class Confused:
    """Pixels of one class that were taken for another. of_class, of_all: their share of the class, and of all pixels.

    taken: "": for none.
    """

    truth: str
    taken: str
    of_class: float
    of_all: float


@dataclass(frozen=True)
class HeatMap:
    """Rows of truth, columns of matched classes, falling by pixels. values: float [rows, columns], of each row's sum.

    left_out: how many classes occur, but are of too few pixels to be shown. pairs: the worst, worst first.
    """

    rows: list[str]
    columns: list[str]
    values: np.ndarray
    left_out: int
    pairs: list[Confused]


def heat_map(pixels: np.ndarray, names: Sequence[str]) -> HeatMap:
    """`confusion` as it is shown: classes that occur or were taken for one, in percent of each row.

    Args:
        pixels: int64 [classes, classes + 1]. names: of the classes.
    """
    truth, taken = pixels.sum(1), pixels.sum(0)
    order = np.argsort(-truth, kind="stable")
    occurring = [int(c) for c in order if truth[c]]
    rows = occurring[:_MOST]
    extra = [int(c) for c in np.argsort(-taken[:-1], kind="stable") if taken[c] and not truth[c]]
    columns = rows + extra[: max(0, _MOST - len(rows))] + [len(names)] * bool(taken[-1])
    shares = pixels / np.maximum(truth, 1)[:, None]
    labels = [*names, "no class"]
    return HeatMap(
        [labels[c] for c in rows],
        [labels[c] for c in columns],
        shares[np.ix_(rows, columns)],
        len(occurring) - len(rows),
        _worst(pixels, names),
    )


def _worst(pixels: np.ndarray, names: Sequence[str]) -> list[Confused]:
    """The pairs of different classes of the most pixels."""
    wrong = pixels.copy()
    np.fill_diagonal(wrong, 0)
    found = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]:
        row, column = map(int, np.unravel_index(flat, wrong.shape))
        if wrong[row, column]:
            taken = names[column] if column < len(names) else ""
            share = wrong[row, column] / pixels[row].sum()
            found.append(Confused(names[row], taken, float(share), float(wrong[row, column] / pixels.sum())))
    return found
