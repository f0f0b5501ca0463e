"""A Hugging Face hub of our own on localhost: what the client asks of the real one, for folders we made."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves {(repository id, revision): folder}. asked: the paths of all files that were fetched.

    gated: repositories whose licence nobody has accepted yet.
    """

    def __init__(self, repositories: dict[tuple[str, str], Path], gated: frozenset[str] | set[str] = frozenset()):
        self.repositories, self.asked = repositories, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(send=False)

            def do_GET(self):
                self.answer(send=True)

            def answer(self, send: bool):
                path = unquote(urlsplit(self.path).path).strip("/")
                if path.startswith("api/models/"):
                    return self.info(path.removeprefix("api/models/"), send)
                repository, _, rest = path.partition("/resolve/")
                revision, _, name = rest.partition("/")
                if repository in gated:
                    return self.nothing("GatedRepo", 403)
                folder = hub.find(repository, revision)
                if folder is None or not (folder / name).is_file():
                    return self.nothing("EntryNotFound" if folder else "RepoNotFound")
                body = (folder / name).read_bytes()
                if send:
                    hub.asked.append(name)
                return self.reply(body if send else b"", len(body), commit=hub.commit(folder), body=body)

            def info(self, rest: str, send: bool):
                pattern = r"(.+?)(?:/(revision|tree)/([^/]+)(/.+)?)?"
                repository, kind, revision, inside = re.fullmatch(pattern, rest).groups()
                folder = hub.find(repository, revision or "main")
                if folder is None:
                    return self.nothing("RevisionNotFound" if hub.find(repository, "main") else "RepoNotFound")
                if inside:  # of a folder in the repository, which our models have no need for
                    return self.nothing("EntryNotFound")
                files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
                if kind == "tree":
                    tree = [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0"} for f in files]
                    body = json.dumps(tree).encode()
                    return self.reply(body if send else b"", len(body), commit=hub.commit(folder), body=body)
                facts = {"id": repository, "sha": hub.commit(folder), "siblings": [{"rfilename": f} for f in files]}
                facts |= {"private": False, "tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False}
                body = json.dumps(facts).encode()
                return self.reply(body if send else b"", len(body), commit=hub.commit(folder), body=body)

            def reply(self, sent: bytes, length: int, commit: str, body: bytes):
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "application/octet-stream")
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", commit)
                self.end_headers()
                self.wfile.write(sent)

            def nothing(self, code: str, status: int = 404):
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.handler = Handler
        self.open(0)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def open(self, port: int):
        """Serves there; 0: at a free port."""
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self.handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @contextmanager
    def away(self):
        """Meanwhile nobody answers at its address."""
        self.close()
        yield
        self.open(self.server.server_port)

    def find(self, repository: str, revision: str) -> Path | None:
        for (name, tag), folder in self.repositories.items():
            if name == repository and revision in (tag, self.commit(folder)):
                return folder
        return None

    @staticmethod
    def commit(folder: Path) -> str:
        return hashlib.sha1(str(folder).encode()).hexdigest()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
