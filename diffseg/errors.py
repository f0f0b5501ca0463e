"""The errors that a user can mend. Only these, and the system's own OSError, are shown as one sentence.

Any other exception is a bug, here or in somebody's own class, and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

# Control characters, marks that turn the direction of writing, halves of characters; but no line of a list.
_UNSEEN = re.compile("(?!\\n  )[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


class UserError(ValueError):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and what to do.

    Names of files and values may hold anything; what would break the line or steer a terminal is shown escaped. A list
    may follow, each line of it indented by two spaces.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: object) -> str:
    """Text that every stream and file takes, with escapes for what would break its line or steer a terminal.

    Bytes of a file's name that are not UTF-8 are written as \\udcXX.
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The known name that was probably meant, as the end of a sentence; "" where none is near.

    It is spelt almost the same, as a whole or in what follows its last dot (threshold: segmenters.diffseg.threshold).
    """
    spelt = {key.rpartition(".")[2]: key for key in reversed(known)} | {key: key for key in known}
    close = get_close_matches(name, spelt, 1, 0.6)
    return f"; did you mean {spelt[close[0]]}?" if close else ""
