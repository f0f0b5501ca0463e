"""The errors that a user can mend. Only these, and the system's own OSError, are shown as one sentence.

Any other exception is a bug, here or in somebody's own class, and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and what to do."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: object) -> str:
    """Text that every stream and file takes: bytes of a file's name that are not UTF-8 are written as \\udcXX."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The known name that was probably meant, as the end of a sentence; "" where none is near.

    It is one that ends with the name (threshold: segmenters.diffseg.threshold), or is spelt almost the same.
    """
    inner = [key for key in known if key.endswith(f".{name}")]
    close = inner[:1] or get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""
