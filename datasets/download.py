"""Fetches COCO val2017 with its stuff labels: `make data-coco`, or `python -m diffseg.datasets.download ROOT`.

An interrupted transfer continues where it broke; archives are checked against the length the server announces and,
while they are unpacked, against the checksums inside them; what is complete is not fetched again.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import requests
import typer
from requests.adapters import HTTPAdapter
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn, track
from urllib3.util import Retry

from diffseg.datasets.base import DataError


@dataclass(frozen=True)
class Archive:
    """A zip file to fetch: the members `suffix` below a folder `part` are unpacked to ROOT/target, `count` of them."""

    url: str
    part: str
    suffix: str
    target: str
    count: int

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


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


def fetch(archive: Archive, folder: Path) -> Path:
    """Downloads an archive into `folder`, continuing what an earlier call began; returns its path.

    Raises:
        DataError: the server cannot be reached, or sends something else than it announced.
    """
    path, partial = folder / archive.name, folder / f"{archive.name}.partial"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    session = requests.Session()
    session.mount("http", HTTPAdapter(max_retries=Retry(4, backoff_factor=0.5, status_forcelist=[500, 502, 503, 504])))
    try:
        _transfer(session, archive, partial)
    except requests.RequestException as error:
        raise DataError(
            f"cannot fetch {archive.url} ({type(error).__name__}): check the network and run this again, it continues "
            f"where it broke; or fetch the file elsewhere and put it at {path}"
        ) from error
    partial.replace(path)
    return path


def _transfer(session: requests.Session, archive: Archive, partial: Path) -> None:
    """Appends to `partial` what it lacks, and checks its length."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(archive.url, headers=headers, stream=True, timeout=60) as answer:
        if answer.status_code == 416:  # nothing beyond what is there: it was complete but for its name
            total = int(answer.headers.get("Content-Range", f"*/{have}").rsplit("/", 1)[-1])
        else:
            answer.raise_for_status()
            if answer.status_code != 206:  # the server starts from the beginning
                have = 0
            total = have + int(answer.headers.get("Content-Length", 0))
            columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
            with partial.open("ab" if have else "wb") as file, Progress(*columns, transient=True) as progress:
                task = progress.add_task(archive.name, total=total or None, completed=have)
                for chunk in answer.iter_content(1 << 16):  # at most this much is lost when it breaks off
                    file.write(chunk)
                    progress.advance(task, len(chunk))
    if total and partial.stat().st_size != total:
        size = partial.stat().st_size
        if size > total:
            partial.unlink()
        raise DataError(f"{archive.url} broke off at {size:,} of {total:,} bytes: run this again, it continues")


def unpack(path: Path, archive: Archive, root: Path) -> int:
    """Unpacks the wanted members of a zip file to root/target; returns how many are there then.

    Only the last part of a member's name is used, so nothing can land outside the target.

    Raises:
        DataError: the archive is damaged (it is removed, to be fetched again) or lacks members.
    """
    target = root / archive.target
    target.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as opened:
            members = [
                m
                for m in opened.infolist()
                if m.filename.endswith(archive.suffix) and archive.part in m.filename.split("/")[:-1]
            ]
            for member in track(members, f"unpacking {archive.name}", transient=True):
                place = target / Path(member.filename).name
                if place.is_file() and place.stat().st_size == member.file_size:
                    continue
                partial = place.with_suffix(".partial")
                with opened.open(member) as source, partial.open("wb") as file:
                    shutil.copyfileobj(source, file)
                partial.replace(place)
    except (zipfile.BadZipFile, EOFError) as error:
        path.unlink()
        raise DataError(f"{path} is damaged ({error}) and was removed: run this again to fetch it anew") from error
    if len(members) != archive.count:
        raise DataError(f"{path} holds {len(members)} {archive.suffix} files of {archive.part}, not {archive.count}")
    return len(members)


def download(root: Path, archives: tuple[Archive, ...] = COCO) -> None:
    """Fetches and unpacks what root lacks; archives are kept in root/archives until all is unpacked."""
    for archive in archives:
        target = root / archive.target
        if target.is_dir() and len(list(target.glob(f"*{archive.suffix}"))) >= archive.count:
            typer.echo(f"{target}: complete")
            continue
        count = unpack(fetch(archive, root / "archives"), archive, root)
        typer.echo(f"{target}: {count} files")
    shutil.rmtree(root / "archives", ignore_errors=True)


def main(root: Annotated[Path, typer.Argument(help="Folder to hold val2017 and stuffthingmaps.")]) -> None:
    """Fetches COCO val2017 photos and stuff labels (about 1.5 GB) into a folder."""
    try:
        download(root)
    except (DataError, OSError) as error:
        typer.echo(f"download: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
