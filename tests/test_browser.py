"""The browser of the other tests: that it sees what a page does wrong, and that clicks and keys reach it."""

import pytest
from PIL import Image

from tests.browser import Browser

PAGE = """<!DOCTYPE html><title>start</title>
<style>body { background: #00f } #cover { position: fixed; inset: 0 }</style>
<button id=free onclick="document.title = 'clicked'" style="margin-top: 3000px">x</button>
<script>addEventListener("keydown", e => document.title = e.key)</script>"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def test_clicks_keys_and_pictures(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    page = browser.open(path.as_uri(), width=400, height=300)
    assert (page.problems, page.requests) == ([], [path.as_uri()])
    page.click("#free")  # out of sight: it is scrolled to
    assert page.evaluate("document.title") == "clicked"
    for key in ("a", "Escape", "ArrowLeft"):
        page.press(key)
        assert page.evaluate("document.title") == key
    page.evaluate("document.title = ''; document.body.insertAdjacentHTML('beforeend', '<div id=cover></div>')")
    page.click("#free")  # a person's click would meet the cover
    assert page.evaluate("document.title") == ""
    page.screenshot(tmp_path / "seen.png")
    page.screenshot(tmp_path / "all.png", whole=True)
    sizes = [_size(tmp_path / name) for name in ("seen.png", "all.png")]
    assert sizes[0] == (400, 300)
    assert sizes[1][1] > 3000


def _size(path):
    with Image.open(path) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
        return picture.size


def test_what_goes_wrong_is_seen(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('told'); nothing.here</script><img src=absent.png>")
    page = browser.open(path.as_uri())
    assert page.requests == [path.as_uri(), (tmp_path / "absent.png").as_uri()]
    assert any("told" in problem for problem in page.problems)
    assert any("nothing is not defined" in problem for problem in page.problems)
    assert any("absent.png" in problem or "request failed" in problem for problem in page.problems)
    with pytest.raises(RuntimeError, match="here is not defined"):
        page.evaluate("here")


def test_light_and_dark(browser):
    for dark in (False, True):
        page = browser.open("data:text/html,<title>x</title>", dark=dark)
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
