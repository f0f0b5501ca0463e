"""Files that appear whole or not at all, so that a killed process never leaves half of one under its real name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"


def write(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Writes to a temporary name beside `path` and renames it. content: text, bytes, or what writes to an open file.

    Raises:
        OSError: it cannot be written; the message names the path, and `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({error.strerror or error}); what is finished is kept") from None


def check_writable(folder: Path, remedy: str) -> None:
    """Makes the folder and writes into it once, before hours of work depend on it.

    Raises:
        OSError: it cannot be written; the message ends with the remedy.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder} ({error.strerror}): {remedy}") from None
