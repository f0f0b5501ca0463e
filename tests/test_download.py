"""Fetching data: whole, broken off, damaged and hostile archives, from a server on localhost."""

import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffseg.datasets.base import DataError
from diffseg.datasets.download import Archive, download, fetch, unpack


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
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

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
