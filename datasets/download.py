"""Fetches data sets that need no account: `make data-coco`, or `python -m diffseg.datasets.download ROOT coco`.

Likewise voc, context and ade20k, in the layout that each has when its own archives are unpacked.

Connections that fail and servers that answer 5xx are tried again a few times; an interrupted transfer continues where
it broke. Archives are checked against the length the server announces, against the official file's checksum where that
is known, against what they should hold, and, while they are unpacked, against the checksums inside them: one that fails
is removed, so that the next call fetches it anew. What is complete is not fetched again.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Annotated

import requests
import typer
from requests.adapters import HTTPAdapter
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn, track
from urllib3.util import Retry

from diffseg.datasets.base import DataError, names_in
from diffseg.errors import did_you_mean

# Archives have up to 2 GB (VOC 2012) and some 123,000 members (COCO-Stuff); these limits leave room.
MOST_PACKED_BYTES = 8 << 30
MOST_MEMBERS = 1_000_000
_PIECE_BYTES = 1 << 16
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python unpacks others in pieces of any size


@dataclass(frozen=True)
class Archive:
    """A file to fetch. Of a .zip or .tar, the members `suffix` below a folder `part` are unpacked to ROOT/target.

    Any other file is itself what is wanted, and is put there. Several parts of a file are several archives of one url.

    count: of members. or_more: whether there may be more. most_bytes: what they may take unpacked. checksum: of the
    official file, "md5:..." or "sha1:..."; "": not known.
    """

    url: str
    part: str
    suffix: str
    target: str
    count: int
    most_bytes: int = 4 << 30
    or_more: bool = False
    checksum: str = ""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def has_all(self, count: int) -> bool:
        """Whether so many members are as many as there should be."""
        return count == self.count or (self.or_more and count > self.count)


COCO = (
    Archive("http://images.cocodataset.org/zips/val2017.zip", "val2017", ".jpg", "val2017", 5000),
    Archive(
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
        "val2017",
        ".png",
        "stuffthingmaps/val2017",
        5000,
    ),
)
_VOC_2012 = functools.partial(
    Archive,
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
)
VOC = (
    _VOC_2012("JPEGImages", ".jpg", "VOCdevkit/VOC2012/JPEGImages", 17125),
    _VOC_2012("SegmentationClass", ".png", "VOCdevkit/VOC2012/SegmentationClass", 2913),
    _VOC_2012("Segmentation", ".txt", "VOCdevkit/VOC2012/ImageSets/Segmentation", 3),
)
CONTEXT = (
    Archive(
        "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
        "",
        ".json",
        "VOCdevkit/VOC2010",
        1,
        checksum="md5:3c2d0c0656b7be9eb61928ffe885d8ce",
    ),
    Archive(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
        "JPEGImages",
        ".jpg",
        "VOCdevkit/VOC2010/JPEGImages",
        10103,  # as many are annotated
        or_more=True,
        checksum="md5:da459979d0c395079b5c75ee67908abb",
    ),
)
_ADE = functools.partial(
    Archive,
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    "validation",
    checksum="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
)
ADE20K = (_ADE(".jpg", "images/validation", 2000), _ADE(".png", "annotations/validation", 2000))
SETS = {"coco": COCO, "voc": VOC, "context": CONTEXT, "ade20k": ADE20K}


def fetch(archive: Archive, folder: Path) -> Path:
    """Downloads an archive into `folder`, continuing what an earlier call began; returns its path.

    Raises:
        DataError: the server cannot be reached, or sends something else than it announced.
    """
    path, partial = folder / archive.name, folder / f"{archive.name}.partial"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _session() as session:
            _transfer(session, archive, partial)
    except requests.RequestException as error:
        status = f" {error.response.status_code}" if error.response is not None else ""
        raise DataError(
            f"cannot fetch {archive.url} ({type(error).__name__}{status}): check the network and run this again, it "
            f"continues where it broke; or fetch the file elsewhere and put it at {path}"
        ) from error
    _check_sum(partial, archive)
    partial.replace(path)
    return path


def _check_sum(partial: Path, archive: Archive) -> None:
    """Removes what has been fetched, and says so, if it is not the official file."""
    if not archive.checksum:
        return
    kind, _, expected = archive.checksum.partition(":")
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        partial.unlink()
        raise DataError(
            f"{archive.url} is not the official file, or was damaged on its way ({kind} {found}, not {expected}), and "
            f"was removed: run this again to fetch it anew, or put a file that you trust at {partial.with_suffix('')}"
        )


def _session() -> requests.Session:
    """Tries again what fails before an answer begins, after 0, 1, 2 and 4 seconds, whatever time a server asks for."""
    retry = Retry(4, backoff_factor=0.5, status_forcelist=[500, 502, 503, 504], respect_retry_after_header=False)
    session = requests.Session()
    for scheme in ("http://", "https://"):  # as long as those of requests itself: a shorter prefix would lose to them
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers["Accept-Encoding"] = "identity"  # packed on the way, lengths and places would be of something else
    return session


def _transfer(session: requests.Session, archive: Archive, partial: Path) -> None:
    """Appends to `partial` what it lacks, and checks its length."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(archive.url, headers=headers, stream=True, timeout=60) as answer:
        packed = answer.headers.get("Content-Encoding", "identity").lower() != "identity"
        place, _, whole = answer.headers.get("Content-Range", f"bytes {have}-/").partition("/")
        if have and answer.status_code == 416:  # nothing beyond what is there: it was complete but for its name
            total = _number(whole) or have
        elif have and answer.status_code == 206 and (packed or not place.startswith(f"bytes {have}-")):
            partial.unlink()  # another part than the one asked for, or a part of packed bytes: it continues nothing
            return _transfer(session, archive, partial)
        else:
            answer.raise_for_status()
            if answer.status_code != 206:  # the server starts from the beginning
                have = 0
            announced = _number(answer.headers.get("Content-Length", ""))
            total = have + announced if announced and not packed else 0
            try:
                _receive(answer, archive, partial, have, total)
            except BaseException:
                if packed:  # unpacked bytes, whose number says nothing to the server
                    partial.unlink(missing_ok=True)
                raise
    if total and partial.stat().st_size != total:
        size = partial.stat().st_size
        if size > total:
            partial.unlink()
        raise DataError(f"{archive.url} broke off at {size:,} of {total:,} bytes: run this again, it continues")


def _receive(answer: requests.Response, archive: Archive, partial: Path, have: int, total: int) -> None:
    """Writes an answer to `partial`, after the `have` bytes that are there; total: bytes in the end, 0: unknown."""
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with partial.open("ab" if have else "wb") as file, Progress(*columns, transient=True) as progress:
        task = progress.add_task(archive.name, total=total or None, completed=have)
        for piece in answer.iter_content(_PIECE_BYTES):  # at most this much is lost when it breaks off
            have += len(piece)
            if max(have, total) > MOST_PACKED_BYTES:
                partial.unlink()
                raise DataError(f"{archive.url} sends more than {MOST_PACKED_BYTES:,} bytes: that is no {archive.name}")
            file.write(piece)
            progress.advance(task, len(piece))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else 0


def unpack(path: Path, archive: Archive, root: Path) -> int:
    """Unpacks the wanted members of a zip or tar file to root/target; returns how many are there then.

    Only the last part of a member's name is used, so nothing can land outside the target. A file that is no archive is
    copied there as it is.

    Raises:
        DataError: the archive is damaged, lacks members or would unpack to more than `most_bytes`. It is removed, to be
            fetched again.
    """
    target = root / archive.target
    target.mkdir(parents=True, exist_ok=True)
    with _removed_if_bad(path), _opened(path) as opened:
        members = _members(opened, archive)
        left_bytes = archive.most_bytes
        for name, member in track(members.items(), f"unpacking {archive.name}", transient=True):
            place = target / name
            if place.is_file() and place.stat().st_size == member.file_size:
                continue
            partial = place.with_suffix(".partial")
            try:
                with opened.open(member) as source, partial.open("wb") as file:
                    for piece in iter(lambda source=source: source.read(_PIECE_BYTES), b""):  # type: ignore[misc]
                        left_bytes -= len(piece)
                        if left_bytes < 0:
                            raise _ArchiveError(f"unpacks to more than {archive.most_bytes:,} bytes")
                        file.write(piece)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
    return len(members)


class _Tar:
    """A tar file, or a file by itself, with what `unpack` uses of a `ZipFile`. Links and devices are no members."""

    def __init__(self, path: Path):
        self._path = path
        self._tar = tarfile.open(path, "r:") if path.suffix == ".tar" else None  # noqa: SIM115 (closed by __exit__)
        self._places: dict[str, tarfile.TarInfo] = {}

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tar:
            self._tar.close()

    def infolist(self) -> list[zipfile.ZipInfo]:
        """The members; of a tar file at most one more than there may be."""
        if self._tar is None:
            return [_info(self._path.name, self._path.stat().st_size)]
        self._places = {m.name: m for m in islice(self._tar, MOST_MEMBERS + 1) if m.isreg() and "\0" not in m.name}
        return [_info(m.name, m.size) for m in self._places.values()]

    def open(self, member: zipfile.ZipInfo) -> IO[bytes]:
        if self._tar is None:
            return self._path.open("rb")
        source = self._tar.extractfile(self._places[member.filename])
        assert source is not None  # of a regular file there is one
        return source


def _info(name: str, size_bytes: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.file_size = size_bytes
    return info


def _opened(path: Path) -> zipfile.ZipFile | _Tar:
    return zipfile.ZipFile(path) if path.suffix == ".zip" else _Tar(path)


class _ArchiveError(Exception):
    """What is wrong with an archive."""


def _members(opened: zipfile.ZipFile | _Tar, archive: Archive) -> dict[str, zipfile.ZipInfo]:
    """The wanted members by the last part of their names: as many as there should be, and not too large."""
    everything = opened.infolist()
    if len(everything) > MOST_MEMBERS:
        raise _ArchiveError(f"holds {len(everything):,} members, more than {MOST_MEMBERS:,}")
    members = {
        Path(m.filename).name: m
        for m in everything
        if m.filename.endswith(archive.suffix) and (not archive.part or archive.part in m.filename.split("/")[:-1])
    }
    if not archive.has_all(len(members)):
        least = "at least " if archive.or_more else ""
        raise _ArchiveError(
            f"holds {len(members)} {archive.suffix} files of {archive.part}, not {least}{archive.count}"
        )
    size = sum(m.file_size for m in members.values())
    if size > archive.most_bytes:
        raise _ArchiveError(f"unpacks to {size:,} bytes, more than {archive.most_bytes:,}")
    odd = next((m for m in members.values() if m.compress_type not in _READABLE or m.flag_bits & 1), None)
    if odd is not None:
        raise _ArchiveError(f"holds {odd.filename} encrypted, or packed in an unusual way")
    return members


@contextmanager
def _removed_if_bad(path: Path) -> Iterator[None]:
    """What is wrong with an archive, as one sentence; it is removed."""
    try:
        yield
    except _ArchiveError as error:
        reason = str(error)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, ValueError) as error:
        reason = f"is damaged ({error})"
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place outside the file; all else is the disk's trouble
            raise
        reason = "is damaged (it names places outside itself)"
    else:
        return
    path.unlink()
    raise DataError(f"{path} {reason}, and was removed: run this again to fetch it anew")


def download(root: Path, archives: tuple[Archive, ...] = COCO) -> None:
    """Fetches and unpacks what root lacks; archives are kept in root/archives until all is unpacked.

    Where nothing could be fetched, no folder is left that was not there: `make paper` would take it for data.
    """
    made = [folder for folder in (root / "archives", root) if not folder.exists()]
    try:
        _complete(root, archives)
    finally:
        for folder in made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()
    shutil.rmtree(root / "archives", ignore_errors=True)


def _complete(root: Path, archives: tuple[Archive, ...]) -> None:
    """`download`, but for what is cleared away in the end."""
    for archive in archives:
        target = root / archive.target
        if target.is_dir() and len(names_in(target, archive.suffix)) >= archive.count:
            typer.echo(f"{target}: complete")
            continue
        count = unpack(fetch(archive, root / "archives"), archive, root)
        typer.echo(f"{target}: {count} files")


def main(
    root: Annotated[Path, typer.Argument(help="Folder to hold the data set, in the layout of its own download.")],
    data: Annotated[str, typer.Argument(help=f"Which: {', '.join(SETS)}.")] = "coco",
) -> None:
    """Fetches COCO val2017 with stuff labels (1.5 GB), Pascal VOC 2012 or Pascal Context (2 GB each), ADE20K (1 GB)."""
    try:
        if data not in SETS:
            raise DataError(
                f"there is no {data!r} to fetch{did_you_mean(data, list(SETS))}: it must be {', '.join(SETS)} "
                f"(for Cityscapes, make data-cityscapes says where to get it)"
            )
        download(root, SETS[data])
    except (DataError, OSError) as error:
        typer.echo(f"download: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
