"""A real browser for tests of pages: headless Chromium, driven by its DevTools protocol over a pipe.

    with Browser() as browser:
        page = browser.open(path.as_uri(), width=1200)
        page.click("thead button")
        assert page.evaluate("document.title") == "..."
        assert page.problems == [] and page.requests == [path.as_uri()]

Nothing but the standard library. Clicks and keys go through the browser's own input, so that what covers an element,
or holds the focus, gets them as a person's would.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

_WAIT_S = 60  # for one answer: a busy machine takes long to start a browser
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage",
)  # fmt: skip
_KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Escape": 27,
    "Enter": 13,
    "Tab": 9,
    "Home": 36,
    "End": 35,
}


def chromium() -> str:
    """The browser's program; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    return program


class Browser:
    """A browser of its own, with an empty profile; skips the test where there is none."""

    def __init__(self) -> None:
        program = chromium()
        self._profile = tempfile.mkdtemp(prefix="browser-")
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (reads, writes)]  # neither is 3 or 4

        def place() -> None:  # Chromium reads commands from 3 and answers on 4
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        command = [program, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=place, close_fds=False, **silent)
        for fd in (reads, writes, *theirs):
            os.close(fd)
        self._number, self._unread = 0, b""
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, RuntimeError, TimeoutError):
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False, phone: bool = False) -> Page:
        """A new page at this address, once it has loaded. width, height: CSS pixels. phone: touch, 2 dots a pixel."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        scale = 2 if phone else 1
        page.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.send("Emulation.setEmulatedMedia", features=features)
        page.send("Page.navigate", url=url)
        page.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")
        return page

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its result; events that come meanwhile are told to their pages.

        Raises:
            RuntimeError: the browser refuses the command. TimeoutError: it does not answer.
        """
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        text = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text) :]
        until = time.monotonic() + _WAIT_S
        while (answer := self._receive(until)).get("id") != number:
            page = self._pages.get(answer.get("sessionId", ""))
            if page is not None and "method" in answer:
                page.hear(answer["method"], answer["params"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self, until: float) -> dict[str, Any]:
        """The next message of the browser."""
        while b"\0" not in self._unread:
            if not select.select([self._from], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"the browser has not answered for {_WAIT_S} s")
            more = os.read(self._from, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._unread += more
        text, _, self._unread = self._unread.partition(b"\0")
        return json.loads(text)


class Page:
    """A page in a browser. problems: what its console complained of, uncaught exceptions, and requests that failed.
    requests: addresses that it asked for, but for those that hold their data themselves (data:, blob:)."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session
        self.problems: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol for this page; see `Browser.send`."""
        return self._browser.send(method, self._session, **parameters)

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        """Notes what the page did."""
        if event == "Network.requestWillBeSent":
            url = facts["request"]["url"]
            if not url.startswith(("data:", "blob:", "about:")):
                self.requests.append(url)
        elif event == "Network.loadingFailed":
            self.problems.append(f"a request failed: {facts['errorText']}")
        elif event == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in facts["args"]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.problems.append(facts["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise, as JSON can hold it.

        Raises:
            RuntimeError: it throws.
        """
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"].get("exception", {}).get("description", expression))
        return told["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Waits until a JavaScript expression is true.

        Raises:
            TimeoutError: it never is.
        """
        until = time.monotonic() + _WAIT_S
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > until:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Clicks on the middle of the first element that a CSS selector finds, scrolled into view.

        Raises:
            RuntimeError: there is none.
        """
        place = self.evaluate(
            f"""(() => {{
              const e = document.querySelector({json.dumps(selector)});
              e.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
              const r = e.getBoundingClientRect();
              return [r.x + r.width / 2, r.y + r.height / 2];
            }})()"""
        )
        self.click_at(*place)

    def click_at(self, x: float, y: float) -> None:
        """Clicks on a place of the window, in CSS pixels from its upper left."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frame()

    def press(self, key: str, shift: bool = False) -> None:
        """Presses a key by its name: a, Enter, Escape, ArrowLeft ..."""
        code, modifiers = _KEYS.get(key, ord(key[0].upper())), 8 * shift
        facts: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "code": key if key in _KEYS else ""}
        facts["modifiers"] = modifiers
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **facts)
        self.frame()

    def frame(self) -> None:
        """Waits until what was asked for is drawn, or the page is left for another."""
        with suppress(RuntimeError):
            self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Writes what is seen, or the whole page, as PNG (or as JPEG by the file's suffix)."""
        kind = {"format": "jpeg", "quality": 85} if path.suffix == ".jpg" else {"format": "png"}
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **kind, **self._all_of_it(whole))
        path.write_bytes(base64.b64decode(picture["data"]))

    def _all_of_it(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
