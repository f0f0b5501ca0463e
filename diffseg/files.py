"""Files that appear whole or not at all, and hashes of what files hold, wherever they lie."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from diffseg.errors import UserError, printable

OUTPUTS = (".labels.png", ".overlay.png", ".json")  # what the results of a photo add to its name,
ATTENTION = ".nouns.png"  # and the sheet of its nouns' attention
PARTIAL = ".partial"
_NAME_BYTES = 255 - max(map(len, (*OUTPUTS, ATTENTION)))  # file systems take names of 255 bytes
_LONGEST_NAME = 200  # bytes; file systems have room for 255, and suffixes may follow
_ABANDONED_S = 86_400  # a temporary file that nobody has touched for a day belongs to nobody
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)
_AT_ONCE = 1024  # files that threads are told to hash
_SETTLED_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its clock


def write(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Writes to a temporary name beside `path` and renames it. content: text, bytes, or what writes to an open file.

    Raises:
        OSError: it cannot be written; the message names the path, and `path` is as it was.
    """
    # The name is of this machine, process and call, and short, however long the path's own name is.
    partial = path.with_name(f".{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                # A name that is no UTF-8 shows its bytes.
                file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}); what is finished is kept") from None
    finally:  # also of what `content` raises
        with suppress(OSError):
            partial.unlink()


def is_file_name(name: object) -> bool:
    """Whether something can be the name of a file or folder that lies directly in another."""
    if not isinstance(name, str) or printable(name) != name or "/" in name or "\\" in name:
        return False
    return name not in ("", ".", "..") and len(name.encode()) <= _LONGEST_NAME


def name_outputs(photos: list[Path]) -> dict[str, Path]:
    """Result name -> photo: the photo's name without suffix; where that is taken twice, with suffix, then with as many
    folders as keep names apart.

    A name that would be too long for a file system, with what results add to it, is cut and ends with its hash.

    Raises:
        UserError: a photo that is there twice.
    """
    depth = max((len(p.absolute().parts) for p in photos), default=0)
    names: list[Callable[[Path], str]] = [
        lambda p: p.stem,
        lambda p: p.name,
        *(lambda p, last=last: "_".join(p.absolute().parts[1:][-last:]) for last in range(2, depth)),
    ]
    jobs: dict[str, Path] = {}
    for name in names:
        if not photos:
            break
        short = {p: _shortened(name(p)) for p in photos}
        count = Counter([*jobs, *short.values()])
        jobs.update({result: p for p, result in short.items() if count[result] == 1})
        photos = [p for p in photos if count[short[p]] > 1]
    if photos:
        both = _shortened(names[-1](photos[0]))
        other = next((p for p in photos[1:] if _shortened(names[-1](p)) == both), jobs.get(both))
        raise UserError(f"{photos[0]} and {other} would both be written as {both}: give each photo once")
    return dict(sorted(jobs.items()))


def _shortened(name: str) -> str:
    stored = os.fsencode(name)
    if len(stored) <= _NAME_BYTES:
        return name
    mark = f"-{hashlib.sha256(stored).hexdigest()[:8]}"
    return stored[: _NAME_BYTES - len(mark)].decode("utf-8", "ignore") + mark  # no half of a character at the cut


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left under temporary names; never what another one, or machine, may be writing."""
    for path in folder.rglob(f".*{PARTIAL}"):
        machine, _, rest = path.name.removeprefix(".").partition("-")
        pid = rest.partition("-")[0]
        dead = machine == _machine() and pid.isdecimal() and not _runs(int(pid))
        try:
            if dead or time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
        except FileNotFoundError:
            continue


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


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


def cache_folder() -> Path:
    """Where what can be made again is kept between calls: $XDG_CACHE_HOME/diffseg, or ~/.cache/diffseg."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffseg"


def content_hashes(files: Mapping[str, Path], remember: bool = True) -> dict[str, str]:
    """sha256 (16 hex digits) of what each file holds, by its key; "" where there is none that can be read.

    Pipes, devices and what permissions close count as none: whoever reads them next says so. Reading one could hang.

    remember: keep hashes by path, size and time of modification, so that a large data set is read once, not once a run.
    """
    if not files:
        return {}
    here = os.getcwd()  # noqa: PTH109 - texts: Paths of many files would take ten times their memory
    places = {key: os.path.join(here, path) for key, path in files.items()}  # noqa: PTH118
    known = cache_folder() / "hashes" / f"{_digest(os.path.commonpath(list(places.values())))}.json"
    remembered: dict[str, list] = {}
    if remember:
        with suppress(OSError, ValueError, TypeError):
            remembered = dict(json.loads(known.read_text()))

    def hashed(path: str) -> tuple[str, list | None]:
        """The hash, and what to remember of it: size, time, hash; None: nothing, the file may still change."""
        try:
            facts = os.stat(path)  # noqa: PTH116
            if not stat.S_ISREG(facts.st_mode):  # to read a pipe or a device might never end
                return "", None
            before = remembered.get(path)
            if before and before[:2] == [facts.st_size, facts.st_mtime_ns]:
                return before[2], before
            with open(path, "rb") as file:  # noqa: PTH123
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return "", None
        settled = time.time_ns() - facts.st_mtime_ns > _SETTLED_NS
        return content, [facts.st_size, facts.st_mtime_ns, content] if settled else None

    with ThreadPoolExecutor() as pool:
        keys, results = list(places), dict[str, tuple[str, list | None]]()
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            results.update(zip(some, pool.map(hashed, (places[key] for key in some)), strict=True))
    fresh = {places[key]: facts for key, (_, facts) in results.items() if facts}
    if remember and any(remembered.get(path) != facts for path, facts in fresh.items()):
        with suppress(OSError):  # no cache: slower, not wrong
            known.parent.mkdir(parents=True, exist_ok=True)
            write(known, json.dumps(remembered | fresh))
    return {key: content for key, (content, _) in results.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
