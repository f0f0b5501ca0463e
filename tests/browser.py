"""A real browser for tests: headless Chromium, driven through its DevTools protocol over a pipe. No network is used."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Puts the pipes where Chromium looks for them, and becomes it.
_CONNECT = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Escape": 27}


@contextmanager
def opened(page: Path, width: int = 1280, height: int = 800, dark: bool = False) -> Iterator[Tab]:
    """A page in a window of its own. Skips the test where no Chromium is installed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("neither chromium nor google-chrome is installed")
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--hide-scrollbars", "about:blank"]
        pipes = [str(to_browser), str(from_browser)]
        process = subprocess.Popen(
            [sys.executable, "-c", _CONNECT, *pipes, *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            with open(commands, "wb", 0) as write, open(answers, "rb") as read:  # noqa: PTH123 - descriptors
                tab = Tab(write, read)
                tab.open(page, width, height, dark)
                yield tab
        finally:
            process.kill()
            process.wait()


class Tab:
    """A page in the browser.

    requests: addresses that it has asked for, itself first. errors: exceptions, errors and warnings of its console, and
    what its Content-Security-Policy has blocked.
    """

    def __init__(self, write: Any, read: Any):
        self._write, self._read, self._count, self._session = write, read, 0, ""
        self._held = b""
        self.requests: list[str] = []
        self.errors: list[str] = []

    def open(self, page: Path, width: int, height: int, dark: bool) -> None:
        """Loads a file and waits until its script says that it is ready."""
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        asked = {"targetId": target["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", **asked)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        loaded = "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
        self.value(loaded)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what happened meanwhile is noted."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            part = self._read.read1(1 << 20)
            assert part, "the browser is gone"
            self._held += part
        first, _, self._held = self._held.partition(b"\0")
        return json.loads(first)

    def _note(self, event: str | None, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent" and not told["request"]["url"].startswith("data:"):
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(told["entry"]["text"])

    def value(self, expression: str) -> Any:
        """What a JavaScript expression evaluates to, a promise's value when it is kept; it must be JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, shift: bool = False) -> None:
        """A key of the keyboard, pressed and let go."""
        told = {"key": key, "modifiers": 8 * shift, "windowsVirtualKeyCode": _KEYS.get(key, ord(key[0].upper()))}
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)
        self.frame()

    def click(self, x: float, y: float) -> None:
        """A click of the mouse at a place of the window."""
        place = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", buttons=1, **place)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **place)
        self.frame()

    def frame(self) -> None:
        """Waits until what was asked for is drawn."""
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
