"""Fetching data: whole, broken off, damaged and hostile archives, from a server on localhost."""

import gzip
import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner
from urllib3.util import Retry

from diffseg.datasets import download as module
from diffseg.datasets.base import DataError
from diffseg.datasets.download import SETS, Archive, download, fetch, unpack


def zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, body in members.items():
            file.writestr(name, body)
    return made.getvalue()


class Server:
    """Serves one body at any address; breaks off after `limit` bytes of an answer. ranges: what was asked for."""

    def __init__(self, body: bytes):
        self.body, self.limit, self.ranges = body, len(body), []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                server.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if start >= len(server.body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(server.body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(server.body) - start))
                self.end_headers()
                self.wfile.write(server.body[start : start + server.limit])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def archive(self, count: int = 3) -> Archive:
        return Archive(f"http://127.0.0.1:{self.http.server_port}/maps.zip", "val2017", ".png", "maps/val2017", count)


@pytest.fixture
def server():
    members = {f"maps/val2017/{i}.png": bytes([i]) * 150_000 for i in range(3)}
    made = Server(zipped(members | {"maps/train2017/9.png": b"not wanted", "val2017/readme.txt": b"neither"}))
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_fetched_and_unpacked_once(server, tmp_path):
    download(tmp_path, (server.archive(),))
    target = tmp_path / "maps" / "val2017"
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {f"{i}.png": bytes([i]) * 150_000 for i in range(3)}
    assert not (tmp_path / "archives").exists()
    download(tmp_path, (server.archive(),))
    assert len(server.ranges) == 1


def test_a_broken_transfer_continues(server, tmp_path):
    server.limit, have = 150_000, 0
    for _ in range(2):
        with pytest.raises(DataError, match="continues"):
            fetch(server.archive(), tmp_path)
        before, have = have, (tmp_path / "maps.zip.partial").stat().st_size
        assert have > before
    server.limit = len(server.body)
    assert fetch(server.archive(), tmp_path).read_bytes() == server.body
    assert server.ranges[-1] == f"bytes={have}-"


def test_complete_but_for_its_name(server, tmp_path):
    (tmp_path / "maps.zip.partial").write_bytes(server.body)
    assert fetch(server.archive(), tmp_path).read_bytes() == server.body


def test_a_damaged_archive_is_removed_and_named(server, tmp_path):
    at = server.body.index(b"\x01" * 100)
    server.body = server.body[:at] + b"x" + server.body[at + 1 :]
    path = fetch(server.archive(), tmp_path)
    with pytest.raises(DataError, match=r"maps.zip is damaged"):
        unpack(path, server.archive(), tmp_path)
    assert not path.exists()
    assert not (tmp_path / "maps" / "val2017" / "1.png").exists()


def test_nothing_lands_outside(server, tmp_path):
    root = tmp_path / "root"
    server.body = zipped({"../../val2017/../evil.png": b"1", "/etc/val2017/evil2.png": b"2", "val2017/fine.png": b"3"})
    unpack(fetch(server.archive(), root / "archives"), server.archive(3), root)
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["evil.png", "evil2.png", "fine.png"]
    assert all(p.parent == root / "maps" / "val2017" for p in tmp_path.rglob("*.png"))


def test_an_archive_of_something_else_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=r"holds 3 .png files of val2017, not 5000"):
        download(tmp_path, (server.archive(5000),))


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("diffseg.datasets.download.Retry", lambda *args, **kwargs: 0)
    nowhere = Archive("http://127.0.0.1:9/maps.zip", "val2017", ".png", "maps", 1)
    with pytest.raises(DataError, match="put it at") as caught:
        fetch(nowhere, tmp_path)
    assert "\n" not in str(caught.value)


# --- servers and archives that misbehave ------------------------------------------------------------------------------


class Misbehaving:
    """A server on localhost that answers its requests one after the other as told, and the last way ever after."""

    def __init__(self, *answers):
        self.answers, self.requests, server = list(answers), [], self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append(dict(self.headers))
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def archive(self, count: int = 3, **limits) -> Archive:
        url = f"http://127.0.0.1:{self.http.server_port}/maps.zip"
        return Archive(url, "val2017", ".png", "maps/val2017", count, **limits)


@pytest.fixture
def misbehaving():
    servers = []

    def start(*answers):
        servers.append(Misbehaving(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def answer(status: int, body: bytes = b"", send: int | None = None, **headers: str):
    """An answer; `send`: only the first bytes of the body, then the connection ends. Headers: A_b for A-b."""

    def give(handler):
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body[:send])
        handler.close_connection = True

    return give


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


MEMBERS = {f"maps/val2017/{i}.png": bytes([i]) * 5_000 for i in range(3)}


@pytest.fixture
def impatient(monkeypatch):
    """The same number of attempts, without the waiting."""
    monkeypatch.setattr(Retry, "get_backoff_time", lambda self: 0)


@pytest.mark.parametrize("trouble", [answer(503, Retry_After="86400"), answer(500), hang_up], ids=["503", "500", "end"])
def test_what_fails_at_first_is_tried_again(misbehaving, tmp_path, impatient, trouble):
    server = misbehaving(trouble, trouble, answer(200, zipped(MEMBERS)))
    download(tmp_path, (server.archive(),))
    assert len(list((tmp_path / "maps" / "val2017").iterdir())) == 3
    assert len(server.requests) == 3


def test_where_nothing_could_be_fetched_no_folder_is_left(misbehaving, tmp_path):
    (tmp_path / "mine").mkdir()
    for root in (tmp_path / "coco", tmp_path / "mine"):
        with pytest.raises(DataError, match="HTTPError 404"):
            download(root, (misbehaving(answer(404)).archive(),))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_what_always_fails_is_tried_a_few_times(misbehaving, tmp_path, impatient):
    server = misbehaving(answer(503))
    with pytest.raises(DataError, match=r"cannot fetch http://127.0.0.1.*run this again"):
        fetch(server.archive(), tmp_path)
    assert len(server.requests) == 5
    for status in (404, 416):
        refusing = misbehaving(answer(status))
        with pytest.raises(DataError, match=f"HTTPError {status}"):
            fetch(refusing.archive(), tmp_path)
        assert len(refusing.requests) == 1


def test_the_waiting_is_bounded():
    from diffseg.datasets.download import _session

    retry = _session().get_adapter("http://127.0.0.1").max_retries
    waits = []
    for _ in range(retry.total):
        retry = retry.increment("GET", "/", error=OSError())
        waits.append(retry.get_backoff_time())
    assert waits == [0, 1, 2, 4]
    assert not retry.respect_retry_after_header


def test_an_answer_packed_on_the_way(misbehaving, tmp_path):
    body = zipped({name: bytes(50_000) for name in MEMBERS})
    packed = gzip.compress(body)
    assert len(packed) < len(body) / 10
    whole = answer(200, packed, Content_Encoding="gzip")
    server = misbehaving(answer(200, packed, len(packed) // 2, Content_Encoding="gzip"), whole)
    with pytest.raises(DataError, match="run this again"):
        fetch(server.archive(), tmp_path)
    assert not list(tmp_path.iterdir())  # to continue would mix two ways of counting
    assert fetch(server.archive(), tmp_path).read_bytes() == body
    assert server.requests[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {"Content_Range": "bytes 7-99/100"}], ids=str)
def test_a_part_that_continues_nothing(misbehaving, tmp_path, headers):
    body = zipped(MEMBERS)
    (tmp_path / "maps.zip.partial").write_bytes(body[:100])
    server = misbehaving(answer(206, gzip.compress(body[100:]), **headers), answer(200, body))
    assert fetch(server.archive(), tmp_path).read_bytes() == body
    assert "Range" not in server.requests[1]


def test_headers_that_are_no_numbers(misbehaving, tmp_path):
    (tmp_path / "maps.zip.partial").write_bytes(zipped(MEMBERS))
    server = misbehaving(answer(416, Content_Range="bytes */*"))
    assert fetch(server.archive(), tmp_path).read_bytes() == zipped(MEMBERS)


def test_an_answer_without_end(misbehaving, tmp_path, monkeypatch):
    monkeypatch.setattr("diffseg.datasets.download.MOST_PACKED_BYTES", 300_000)
    packed = gzip.compress(bytes(10_000_000))
    for endless in (answer(200, packed, Content_Encoding="gzip"), answer(200, bytes(500_000), Content_Length="")):
        with pytest.raises(DataError, match=r"sends more than 300,000 bytes"):
            fetch(misbehaving(endless).archive(), tmp_path)
        assert not list(tmp_path.iterdir())


def lied(body: bytes, size: int) -> bytes:
    """The zip file with the size of its first member said to be another."""
    changed = bytearray(body)
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = body.index(signature) + place
        changed[at : at + 4] = size.to_bytes(4, "little")
    return bytes(changed)


def bomb(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name in MEMBERS:
            file.writestr(name, bytes(2_000_000))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (bomb(), "unpacks to 6,000,000 bytes, more than 3,000,000"),
        (lied(bomb(), 100), "is damaged"),
        (bomb(zipfile.ZIP_BZIP2), "packed in an unusual way"),
        (zipped(dict(list(MEMBERS.items())[:2])), "holds 2 .png files of val2017, not 3"),
        (zipped({f"train/{i}": b"" for i in range(60)} | MEMBERS), "holds 63 members, more than 50"),
        (b"<html>", "is damaged"),
    ],
    ids=["bomb", "lies", "bzip2", "few", "many", "html"],
)
def test_a_refused_archive_is_removed_and_fetched_again(misbehaving, tmp_path, monkeypatch, body, words):
    monkeypatch.setattr("diffseg.datasets.download.MOST_MEMBERS", 50)
    server = misbehaving(answer(200, body), answer(200, zipped(MEMBERS)))
    archive = server.archive(most_bytes=3_000_000 if "unpacks" in words else 7_000_000)
    with pytest.raises(DataError, match=words) as caught:
        download(tmp_path, (archive,))
    assert "maps.zip" in str(caught.value)
    assert "run this again" in str(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    download(tmp_path, (archive,))
    assert len(list((tmp_path / "maps" / "val2017").iterdir())) == 3


def test_the_limit_holds_while_unpacking(tmp_path, monkeypatch):
    """Whatever the sizes say that the archive tells beforehand."""
    path = tmp_path / "maps.zip"
    path.write_bytes(bomb())
    archive = Archive("http://127.0.0.1/maps.zip", "val2017", ".png", "maps", 3, most_bytes=2_500_000)
    unchecked = {f"{i}.png": info for i, info in enumerate(zipfile.ZipFile(path).infolist())}
    monkeypatch.setattr("diffseg.datasets.download._members", lambda opened, archive: unchecked)
    with pytest.raises(DataError, match="unpacks to more than 2,500,000 bytes"):
        unpack(path, archive, tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["0.png"]


# --- tar files, files by themselves, checksums ------------------------------------------------------------------------


def tarred(members: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        for name, body in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            file.addfile(member, io.BytesIO(body))
        for member in others:
            file.addfile(member)
    return made.getvalue()


def no_file(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


KIT = {f"VOCdevkit/VOC2012/JPEGImages/{i}.jpg": bytes([i]) * 70_000 for i in range(3)}
LISTS = {"VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt": b"1\n", "VOCdevkit/VOC2012/ImageSets/Main/val.txt": b"2\n"}


def kit_parts(server, **more) -> tuple[Archive, Archive]:
    url = f"http://127.0.0.1:{server.http.server_port}/kit.tar"
    photos = Archive(url, "JPEGImages", ".jpg", "VOCdevkit/VOC2012/JPEGImages", 3, **more)
    return photos, Archive(url, "Segmentation", ".txt", "VOCdevkit/VOC2012/ImageSets/Segmentation", 1, **more)


def test_two_parts_of_a_tar_file_are_fetched_once(server, tmp_path):
    server.body = tarred(KIT | LISTS)
    parts = kit_parts(server, checksum=f"md5:{hashlib.md5(server.body).hexdigest()}")
    for _ in range(2):
        download(tmp_path, parts)
        written = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        assert written == {name: body for name, body in (KIT | LISTS).items() if "Main" not in name}
    assert len(server.ranges) == 1


def test_nothing_of_a_tar_file_lands_outside(server, tmp_path):
    root, folder = tmp_path / "root", "VOCdevkit/VOC2012/JPEGImages"
    evil = {f"../../{folder}/../evil.jpg": b"1", f"/{folder}/evil2.jpg": b"2", f"{folder}/fine.jpg": b"3"}
    links = [
        no_file(f"{folder}/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        no_file(f"{folder}/hard.jpg", tarfile.LNKTYPE, f"{folder}/fine.jpg"),
        no_file(f"{folder}/pipe.jpg", tarfile.FIFOTYPE),
        no_file(f"{folder}/folder.jpg", tarfile.DIRTYPE),
    ]
    server.body = tarred(evil, *links)
    photos, _ = kit_parts(server)
    unpack(fetch(photos, root / "archives"), photos, root)
    written = [p for p in tmp_path.rglob("*") if p.name.endswith(".jpg")]
    assert sorted(p.name for p in written) == ["evil.jpg", "evil2.jpg", "fine.jpg"]
    assert all(p.parent == root / folder and p.is_file() and not p.is_symlink() for p in written)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (tarred(KIT)[:100_000], "kit.tar is damaged"),
        (b"<html>" * 200, "kit.tar is damaged"),
        (tarred(dict(list(KIT.items())[:2])), "holds 2 .jpg files of JPEGImages, not 3"),
        (tarred({f"train/{i}": b"" for i in range(60)} | KIT), "holds 51 members, more than 50"),
        (tarred({name: bytes(2_000_000) for name in KIT}), "unpacks to 6,000,000 bytes, more than 3,000,000"),
        (gzip.compress(tarred(KIT)), "kit.tar is damaged"),
    ],
    ids=["cut", "html", "few", "many", "large", "packed"],
)
def test_a_refused_tar_file_is_removed_and_fetched_again(server, tmp_path, monkeypatch, body, words):
    monkeypatch.setattr("diffseg.datasets.download.MOST_MEMBERS", 50)
    photos, _ = kit_parts(server, most_bytes=3_000_000)
    server.body, server.limit = body, len(body)
    with pytest.raises(DataError, match=words) as caught:
        download(tmp_path, (photos,))
    assert "run this again" in str(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    server.body, server.limit = tarred(KIT), 1 << 30
    download(tmp_path, (photos,))
    assert len(list((tmp_path / photos.target).iterdir())) == 3


def test_more_than_there_must_be(server, tmp_path):
    server.body = tarred(KIT)
    photos, _ = kit_parts(server)
    download(tmp_path, (replace(photos, count=2, or_more=True),))
    assert len(list((tmp_path / photos.target).iterdir())) == 3
    with pytest.raises(DataError, match=r"holds 3 .jpg files of JPEGImages, not at least 4"):
        download(tmp_path, (replace(photos, count=4, or_more=True),))


def test_a_file_by_itself(server, tmp_path):
    server.body, server.limit = b'{"images": []}' * 5_000, 66_000
    url = f"http://127.0.0.1:{server.http.server_port}/labels.json"
    labels = Archive(url, "", ".json", "VOCdevkit/VOC2010", 1, checksum=f"sha1:{hashlib.sha1(server.body).hexdigest()}")
    with pytest.raises(DataError, match="it continues where it broke"):
        download(tmp_path, (labels,))
    for _ in range(2):
        download(tmp_path, (labels,))
    assert (tmp_path / "VOCdevkit" / "VOC2010" / "labels.json").read_bytes() == server.body
    assert not (tmp_path / "archives").exists()
    assert len(server.ranges) == 2


def test_what_is_not_the_official_file_is_removed(server, tmp_path):
    archive = replace(server.archive(), checksum="md5:" + "0" * 32)
    with pytest.raises(
        DataError, match=r"is not the official file, .*md5 [0-9a-f]{32}, not 0{32}.*run this again"
    ) as told:
        fetch(archive, tmp_path)
    assert not list(tmp_path.iterdir())
    assert str(tmp_path / "maps.zip") in str(told.value)
    (tmp_path / "maps.zip").write_bytes(server.body)  # a user's own: what is in it is looked at as ever
    assert unpack(fetch(archive, tmp_path), archive, tmp_path) == 3


def test_the_command_fetches_what_is_named(server, tmp_path, monkeypatch):
    app = module.typer.Typer()
    app.command()(module.main)
    server.body = tarred(KIT | LISTS)
    monkeypatch.setitem(SETS, "voc", kit_parts(server))
    ran = CliRunner().invoke(app, [str(tmp_path), "voc"])
    assert ran.exit_code == 0, ran.output
    assert "JPEGImages: 3 files" in ran.stdout
    assert CliRunner().invoke(app, [str(tmp_path), "voc"]).stdout.count("complete") == 2
    ran = CliRunner().invoke(app, [str(tmp_path), "voc2012"])
    assert (ran.exit_code, ran.stderr.count("\n")) == (2, 1)
    assert "there is no 'voc2012' to fetch; did you mean voc?" in ran.stderr


def test_official_addresses_fit_the_layouts_that_are_read():
    for name, archives in SETS.items():
        assert len({(a.target, a.suffix) for a in archives}) == len(archives), name
        for archive in archives:
            kind, _, digest = archive.checksum.partition(":")
            assert len(digest) == {"": 0, "md5": 32, "sha1": 40}[kind]
            assert archive.url.startswith("http")
    assert {a.target for a in SETS["voc"]} == {
        f"VOCdevkit/VOC2012/{part}" for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    }
    assert {a.target for a in SETS["ade20k"]} == {"images/validation", "annotations/validation"}
