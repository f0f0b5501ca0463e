"""Files wherever they lie: in folders, and in S3 or Google Cloud Storage by URI, through pyarrow.

A transient error of a store is waited out for about a minute before it is an error here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from diffseg.errors import UserError
from diffseg.files import write

SCHEMES = ("file", "s3", "gs")
_ATTEMPTS = 9  # of each request to S3: its client waits between them, longer and longer, 20 s at most, a minute in all
_S3_OPTIONS = {"region", "scheme", "endpoint_override"}
_PLAIN = "/:?&=%@[]+,;!$'()*~"  # of a URI, what stays as it is; % begins an encoded character


class StoreError(UserError):
    """A store that does not answer, or refuses; the message says which and why."""


@dataclass(frozen=True)
class Place:
    """A file or folder. files: the file system; path: in it; name: as messages call it, without options."""

    files: FileSystem
    path: str
    name: str

    @property
    def local(self) -> Path | None:
        """The path on this machine's file systems; None: it lies in a store."""
        return Path(self.path) if isinstance(self.files, LocalFileSystem) else None

    def child(self, name: str) -> Place:
        """What is called `name` in this folder."""
        return Place(self.files, f"{self.path.rstrip('/')}/{name}", f"{self.name.rstrip('/')}/{name}")

    def read(self, most_bytes: int | None = None) -> bytes:
        """What the file holds. most_bytes: a larger file is refused; None: any size is read.

        Raises:
            FileNotFoundError: there is no such file. UserError: it is too large. StoreError: it cannot be read.
        """
        if self.path.endswith("/") or "/" not in self.path:  # a folder, a bucket
            raise FileNotFoundError(self.name)
        with _told(f"read {self.name}"), self.files.open_input_file(self.path) as file:
            if most_bytes is not None and file.size() > most_bytes:
                raise UserError(f"{self.name} is too large, {file.size():,} bytes, at most {most_bytes:,} are read")
            return file.readall()

    def write(self, content: bytes) -> None:
        """Writes the file, which appears whole or not at all; its folder is made where it is missing.

        Raises:
            StoreError: it cannot be written.
        """
        if self.local is None:
            with _told(f"write {self.name}"), self.files.open_output_stream(self.path) as file:
                file.write(content)  # in one call: a store has nothing before the stream is closed
            return
        with _told(f"make the folder of {self.name}"):
            self.local.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(self.local, content)
        except OSError as error:
            raise StoreError(f"{error}: run the same command again") from None

    def names(self) -> set[str]:
        """The names of the files directly in this folder; none where there is no folder.

        Raises:
            StoreError: it cannot be listed.
        """
        with _told(f"list {self.name}"):
            listed = self.files.get_file_info(FileSelector(self.path, allow_not_found=True))
            return {info.base_name for info in listed if info.type == FileType.File}

    def lines(self) -> Iterator[bytes]:
        """The lines of a text file, read as they are asked for; one that is called .gz or .zst is decompressed.

        Raises:
            UserError: there is no such file. StoreError: it cannot be read.
        """
        try:
            if self.local is not None and self.local.is_dir():
                raise IsADirectoryError
            with _told(f"read {self.name}"), self.files.open_input_stream(self.path) as stream:
                yield from io.BufferedReader(stream, 1 << 20)
        except FileNotFoundError:
            raise UserError(f"{self.name} is missing, there is no such file: check the path") from None
        except IsADirectoryError:
            raise UserError(f"{self.name} is a folder: give a text file that names photos") from None
        except StoreError as error:
            if self.path.endswith((".gz", ".zst")) and any(word in str(error) for word in ("inflate", "ZSTD")):
                raise UserError(f"{self.name} is not compressed as its name says: compress or rename it") from None
            raise


def scheme_of(text: str) -> str | None:
    """The scheme of a URI; None: the text is a path.

    Raises:
        UserError: a scheme that no store here has.
    """
    scheme, separator, _ = text.partition("://")
    if not separator or "/" in scheme:
        return None
    if scheme not in SCHEMES:
        raise UserError(f"{text} is of no store that is known: use a path, or {', '.join(f'{s}://' for s in SCHEMES)}")
    return scheme


def without_options(uri: str) -> str:
    """A path as it is, a URI without what follows ?."""
    return uri if scheme_of(uri) is None else uri.partition("?")[0]


def place(uri: str, folder: str | Path = "") -> Place:
    """Where a path or URI leads.

    Args:
        uri: a path, file:///path, s3://bucket/key or gs://bucket/key. %, ? and # of a key are written %25, %3F and %23.
            Options may follow: s3://bucket/key?scheme=http&endpoint_override=localhost:9000, ?region=eu-west-1.
        folder: that relative paths are relative to; "": the current one.

    Raises:
        UserError: a URI that cannot be understood. StoreError: its store does not answer.
    """
    scheme = scheme_of(uri)
    if scheme is None:
        return Place(LocalFileSystem(), str(Path(folder, uri).absolute()), uri)
    quoted, name = quote(uri, safe=_PLAIN), without_options(uri)
    if scheme == "file":
        with _told(f"use {name}"):
            files, path = FileSystem.from_uri(quoted)
        return Place(files, path, name)
    split = urlsplit(quoted)
    if not split.netloc:
        raise UserError(f"{name} names no bucket: write {scheme}://bucket/key")
    with _told(f"use {name}"):
        files, bucket = _bucket(scheme, split.netloc, split.query)
    return Place(files, bucket + unquote(split.path), name)


@lru_cache(maxsize=256)  # a client keeps its connections
def _bucket(scheme: str, netloc: str, query: str) -> tuple[FileSystem, str]:
    """The file system of a bucket, and its path in it."""
    if scheme == "gs":
        wait = "" if "retry_limit_seconds" in query else f"{'&' * bool(query)}retry_limit_seconds=60"
        return FileSystem.from_uri(f"gs://{netloc}?{query}{wait}")
    if "@" in netloc:
        raise UserError("credentials in a URI would be in every log: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    options = dict(parse_qsl(query))
    if unknown := options.keys() - _S3_OPTIONS:
        raise UserError(f"s3://{netloc} takes the options {', '.join(sorted(_S3_OPTIONS))}, not {min(unknown)}")
    return _s3(netloc, options), netloc


def _s3(bucket: str, options: dict[str, str]) -> FileSystem:
    """A client of S3, or of a server like it: that of `endpoint_override`, or of AWS_ENDPOINT_URL."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in options:
        scheme, _, server = endpoint.rpartition("://")
        options = {"scheme": scheme or "https", "endpoint_override": server.rstrip("/")} | options
    if not {"endpoint_override", "region"} & options.keys():
        options["region"] = resolve_s3_region(bucket)
    retries = AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
    # A small file is one request, not the beginning of an upload that a killed process leaves open.
    return S3FileSystem(**options, retry_strategy=retries, allow_delayed_open=True)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """What goes wrong in a file system, in one sentence, but for a file that is missing."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise UserError(f"cannot {doing} ({_reason(error)}): give a folder") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"cannot {doing}: {_reason(error)}") from None
    except OSError as error:
        raise StoreError(
            f"cannot {doing} ({_reason(error)}); what is finished is kept: run the same command again"
        ) from None


def _reason(error: Exception) -> str:
    """What an error of pyarrow says, without the request that it was about."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text.partition("AWS Error ")[2] or text
