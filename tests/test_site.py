"""The documentation site's own code, docs/conf.py: links, docstrings, the check of built pages."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx", reason="make docs needs the extra docs")
from sphinx.errors import SphinxError

DOCS = Path(__file__).parents[1] / "docs"
CONF = runpy.run_path(str(DOCS / "conf.py"))

PAGE = """<html><head><link rel="stylesheet" href="_static/a.css?v=1"></head>
<body id="top"><a href="#top">x</a><a href="two.html#there">y</a><a href="https://example.org">z</a></body></html>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "a.css").write_text("a { background: url(data:image/png;base64,AA) }")
    (tmp_path / "one.html").write_text(PAGE)
    (tmp_path / "two.html").write_text("<p id=there>")
    return tmp_path


def check(site: Path) -> None:
    CONF["check_pages"](SimpleNamespace(builder=SimpleNamespace(name="html"), outdir=str(site)), None)


def test_a_whole_site_passes(site):
    check(site)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('<a href="three.html">', "three.html, which is not there"),
        ('<a href="two.html#elsewhere">', "no such place"),
        ('<a href="#elsewhere">', "no such place"),
        ('<img src="lost.png">', "lost.png, which is not there"),
        ('<img srcset="https://example.org/a.png">', "loads https://example.org/a.png"),
        ('<script src="//cdn.example.org/a.js"></script>', "loads //cdn.example.org/a.js"),
        ('<link href="https://fonts.example.org/a.css" rel="stylesheet">', "loads https://fonts.example.org"),
    ],
)
def test_a_broken_link_and_a_request_to_outside_stop_the_build(site, wrong, said):
    (site / "two.html").write_text(f"<p id=there>{wrong}")
    with pytest.raises(SphinxError, match=r"two\.html") as caught:
        check(site)
    assert said in str(caught.value)


@pytest.mark.parametrize("rule", ["@import 'https://example.org/a.css'", "src: url(//example.org/font.woff)"])
def test_a_style_that_loads_from_outside_stops_the_build(site, rule):
    (site / "_static" / "a.css").write_text(rule)
    with pytest.raises(SphinxError, match=r"a\.css loads"):
        check(site)


def test_docstrings_keep_their_words():
    lines = [
        "`code` of a_ * b|",
        "",
        "Args:",
        "    a: A. b, c: both `x_`",
        "        go on. d: D. Note: no.",
        "",
        "End. e: e",
    ]
    CONF["plain_docstring"](None, "", "", None, None, lines)
    assert lines == [
        r"``code`` of a\_ \* b\|", "", "Args:",
        "    a: A.", "    b, c: both ``x_``", "        go on.", "    d: D. Note: no.", "", "End. e: e",
    ]  # fmt: skip


def test_links_to_outside_the_pages(tmp_path):
    app = SimpleNamespace(env=SimpleNamespace(doc2path=lambda name: DOCS / f"{name}.md"))
    text = ["[a](../conf/model) [`conf`](../conf) [b](../LICENSE) [c](methods.md) ![d](../LICENSE) [e](../nowhere)"]
    CONF["links_outside"](app, "page", text)
    assert text == ["a (`conf/model`) `conf` [b](path:../LICENSE) [c](methods.md) ![d](../LICENSE) [e](../nowhere)"]
