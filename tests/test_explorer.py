"""One photo explored: labels as plain calls make them, attention as the pass showed it, and the page in a browser."""

import base64
import html
import json
import re
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffseg import DiffSeg, presets
from diffseg.cli import app
from diffseg.datasets.scenes import scene
from diffseg.errors import UserError
from diffseg.explorer import Explorer
from diffseg.images import region_colours
from diffseg.page.explore import SIDE, STEPS, in_steps, label_maps, page_of, photo_data, places
from diffseg.segmentation import aggregate
from diffseg.semantic import label
from tests.browser import Browser, Page

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;"
SMALL = ["--size", "128", "--anchors", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def seg():
    return DiffSeg.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def photo():
    return scene(4, 0, 160).image[:112]


@pytest.fixture(scope="module")
def explorer(seg, photo):
    return seg.explore(photo, size=128)


# --- segments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": 0.2},
        {"threshold": 0.2, "anchors": 8},
        {"threshold": [0.5, 0.3]},
        {"threshold": 0.4, "iterations": 5, "weights": [1, 2, 3, 4]},
        {"threshold": 0.3, "iterations": 1},
        {"threshold": 0.3, "refine": True},
    ],
)
def test_labels_are_those_of_a_plain_call(seg, photo, explorer, settings):
    settings = {"anchors": 8} | settings
    plain, explored = seg(photo, size=128, **settings), explorer.segmentation(**settings)
    np.testing.assert_array_equal(explored.labels, plain.labels)
    np.testing.assert_array_equal(explored.proposals, plain.proposals)
    assert explored.settings == plain.settings
    np.testing.assert_array_equal(explorer.overlay(**settings), plain.overlay())
    np.testing.assert_array_equal(explorer.labels_at(photo.shape[:2], explored.settings), plain.labels)


def test_the_model_looks_once(seg, photo, monkeypatch):
    passes, observe = [], seg.model.observe
    monkeypatch.setattr(seg.model, "observe", lambda *args: passes.append(args) or observe(*args))
    explorer = seg.explore(photo, ["sky", "grass"], size=128)
    for threshold in (0.1, 0.5, 1.0):
        explorer.named(threshold, anchors=8)
        explorer.overlay(threshold, anchors=4, weights=[1, 1, 1, 1])
    explorer.attention_at(3, 4)
    explorer.curve([0.5, 0.6], anchors=8)
    assert len(passes) == 1


def test_names_are_those_of_semantic_diffseg(seg, photo):
    explorer = seg.explore(photo, ["sky", "grass"], size=128)
    for voting in ("mean", "majority"):
        settings = explorer.settings(0.3, anchors=8)
        named = explorer.named(0.3, anchors=8, voting=voting)
        plain = label(seg, photo, ["sky", "grass"], settings=settings, voting=voting)
        np.testing.assert_array_equal(named.labels, plain.labels)
        np.testing.assert_array_equal(named.scores, plain.scores)
        assert named.caption == plain.caption
        names = explorer.names(0.3, anchors=8, voting=voting)
        assert [names[k] for k in explorer.segmentation(0.3, anchors=8).labels.flat] == [
            named.nouns[k] for k in named.labels.flat
        ]


def test_what_cannot_be_asked_is_one_sentence(seg, photo, explorer):
    with pytest.raises(UserError, match="there are no names: explore the photo with nouns"):
        explorer.names(0.3, anchors=8)
    with pytest.raises(UserError, match="lies outside the photo of 160 x 112 pixels"):
        explorer.attention_at(160, 0)
    with pytest.raises(UserError, match="weights: 2 given"):
        explorer.segmentation(weights=[1, 2])
    with pytest.raises(UserError, match="anchors must be 1 to"):
        explorer.segmentation(anchors=99)
    with pytest.raises(UserError, match="a caption alone names nothing"):
        seg.explore(photo, caption="a dog")


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y", "share"), [(0, 0, (0, 0)), (159, 111, (0.999, 0.999)), (80, 28, (0.25, 0.5))])
def test_attention_of_a_point_is_what_the_pass_has_shown(seg, photo, explorer, x, y, share):
    seen, point = seg.observe(photo, size=128), explorer.attention_at(x, y)
    maps = seen.batch.seen().self_attention
    assert list(point.levels) == sorted(maps, reverse=True)
    for (h, w), level in point.levels.items():
        row, column = int(share[0] * h), int(share[1] * w)
        assert point.positions[h, w] == (row, column)
        np.testing.assert_array_equal(level, maps[h, w][0, row * w + column].view(h, w))
        assert level.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(point.aggregated, seen.attention()[point.positions[explorer.sizes[0]]])
    assert point.aggregated.sum() == pytest.approx(1, abs=1e-5)
    weighted = explorer.attention_at(x, y, weights=[1, 0, 0, 0])
    np.testing.assert_allclose(weighted.aggregated, point.levels[explorer.sizes[0]], rtol=1e-5)


def test_distances_are_those_between_two_anchors(seg, photo, explorer):
    distances = explorer.distances(8)
    assert distances.shape == (64 * 63 // 2,)
    assert (np.diff(distances) >= 0).all()
    assert distances[(len(distances) - 1) // 2] == pytest.approx(seg.observe(photo, size=128).scale(anchors=8))
    assert explorer.distances(1).shape == (0,)


def test_the_curve_counts_segments(explorer):
    curve = explorer.curve([1.0, 0.1, 0.3], anchors=8)
    assert curve.thresholds == (0.1, 0.3, 1.0)
    assert curve.segments == tuple(len(explorer.segmentation(tau, anchors=8)) for tau in curve.thresholds)
    everything = float(explorer._distances(None, 8).max()) * 1.01  # nothing is that far from anything
    assert explorer.curve([everything], anchors=8).segments == (1,)


def test_thresholds_reach_from_many_segments_to_one(explorer):
    taus = explorer.thresholds(12, 20, 8)
    assert list(taus) == sorted(set(taus))
    assert explorer.settings().threshold[0] in taus
    counts = explorer.curve(taus, 8).segments
    assert counts[-1] == 1
    assert counts[0] > 5


def test_one_anchor_is_one_segment(explorer):
    assert set(explorer.curve(explorer.thresholds(3, anchors=1), anchors=1).segments) == {1}


# --- memory -----------------------------------------------------------------------------------------------------------


def test_only_the_latest_aggregated_attention_is_kept(seg, photo):
    explorer = seg.explore(photo, size=128)
    explorer.segmentation(anchors=8)
    first = weakref.ref(explorer._attention(None))
    explorer.segmentation(0.5, anchors=8)
    assert first() is not None
    explorer.segmentation(anchors=8, weights=[1, 1, 1, 1])
    assert first() is None


def test_a_photo_that_is_let_go_is_gone_at_once(seg, photo):
    explorer = seg.explore(photo, size=128)
    explorer.segmentation(anchors=8)
    kept = weakref.ref(explorer._attention(None))
    positions = [h * w for h, w in explorer.sizes]
    assert explorer.seen_bytes == sum(4 * n * n for n in positions)
    del explorer
    assert kept() is None


# --- what the page holds ----------------------------------------------------------------------------------------------


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def test_steps_by_hand():
    maps = np.array([[[0.0, 0.04], [0.01, 0.16]]], np.float32)  # roots relative to the peak's: 0, 0.5, 0.25, 1
    steps, peaks = in_steps(maps)
    assert STEPS == 15
    assert steps.tolist() == [[[0, 8], [4, 15]]]
    assert peaks.tolist() == [np.float32(0.16)]


def test_places_lie_in_the_middle_of_their_squares():
    assert places((4, 6), 1) == ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5])
    assert places((4, 6), 3) == ([1], [1, 4])
    assert places((2, 9), 5) == ([1], [2, 7])


@pytest.fixture(scope="module")
def data(explorer):
    return photo_data(explorer, explorer.settings(0.3, anchors=8), f"{HOSTILE}.png", "somebody's")


def test_a_photo_holds_labels_colours_and_counts(explorer, data):
    taus, maps = label_maps(explorer, explorer.settings(0.3, anchors=8), (112, 160))
    assert data["thresholds"] == taus
    assert taus[data["start"]] == 0.3
    np.testing.assert_array_equal(unpacked(data["labels"], "u1").reshape(-1, 112, 160), maps)
    colours = np.split(unpacked(data["colours"], "u1").reshape(-1, 3), np.cumsum(data["counts"])[:-1])
    for tau, labels, count, palette in zip(taus, maps, data["counts"], colours, strict=True):
        out = explorer.segmentation(tau, anchors=8)
        np.testing.assert_array_equal(labels, out.labels)
        np.testing.assert_array_equal(palette, region_colours(out.labels))
        assert count == len(out)
    assert sum(data["bars"]) <= len(explorer.distances(8))
    assert data["names"] is None


def test_a_large_photo_is_shrunk_in_the_page(seg):
    large = np.asarray(Image.fromarray(scene(4, 0, 160).image).resize((1000, 400)))
    data = photo_data(seg.explore(large, size=64), seg.settings(anchors=4, size=64), "large")
    assert data["size"] == [round(SIDE * 0.4), SIDE]
    assert (data["width"], data["height"]) == (1000, 400)


def test_the_page_asks_for_nothing(explorer, data):
    page = page_of([data], "mini", explorer.settings(anchors=8))
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href|srcset)\s*=\s*["'](?!data:)|url\(|@import|fetch\(|XMLHttp|WebSocket""", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert HOSTILE not in page
    assert "<img src=x" not in page


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(seg, photo, explorer, data, tmp_path_factory):
    named = seg.explore(photo, ["sky", "grass"], size=128)
    settings = explorer.settings(0.3, anchors=8)
    path = tmp_path_factory.mktemp("page") / "explore.html"
    path.write_text(page_of([data, photo_data(named, settings, "second.png")], "mini", settings))
    with Browser() as browser:
        tab = opened(browser, path)
        yield tab
        assert tab.requests == [path.as_uri()]
        assert tab.problems == []


def opened(browser: Browser, path: Path, **window) -> Page:
    page = browser.open(path.as_uri(), **window)
    page.evaluate("diffseg.ready.then(() => 0)")
    return page


@pytest.fixture
def fresh(tab):
    """The first photo, as it is at the start."""
    tab.evaluate("diffseg.show(0).then(() => 0)")
    return tab


def test_the_browser_decodes_every_label(fresh, explorer, data):
    maps = label_maps(explorer, explorer.settings(0.3, anchors=8), (112, 160))[1]
    for index, labels in enumerate(maps):
        decoded = fresh.evaluate(f"Array.from(diffseg.now.labels[{index}])")
        np.testing.assert_array_equal(np.reshape(decoded, labels.shape), labels)


def test_the_browser_adds_attention_up_as_the_paper_does(fresh, data):
    levels = {}
    for level in data["levels"]:
        size = tuple(level["size"])
        assert [level["rows"], level["columns"]] == [list(range(n)) for n in size]  # all: so small are they here
        roots = unpacked(level["steps"], "u1").reshape(-1, size[0] * size[1]) / STEPS
        levels[size] = torch.from_numpy(roots**2 * unpacked(level["peaks"], "f4")[:, None])[None]
    finest = max(levels)
    expected = aggregate({size: maps / maps.sum(2, keepdim=True) for size, maps in levels.items()})[0]
    for row, column in ((0, 0), (5, 7), (finest[0] - 1, finest[1] - 1)):
        u, v = (column + 0.5) / finest[1], (row + 0.5) / finest[0]
        maps = fresh.evaluate(f"diffseg.attention({{u: {u}, v: {v}}}).map(m => Array.from(m.values))")
        np.testing.assert_allclose(np.reshape(maps[0], finest), expected[row, column], atol=1e-6)
        np.testing.assert_allclose(maps[1], levels[finest][0, row * finest[1] + column], atol=1e-7)


def test_the_keyboard_moves_the_threshold_and_the_point(fresh, data):
    start = data["start"]
    assert fresh.evaluate("diffseg.state.tau") == start
    fresh.press("ArrowRight")
    assert fresh.evaluate("diffseg.state.tau") == start + 1
    fresh.press("ArrowLeft")
    fresh.press("ArrowLeft")
    assert fresh.evaluate("diffseg.state.tau") == start - 1
    count = "document.getElementById('count').textContent"
    assert fresh.evaluate(count).split() == [str(data["counts"][start - 1]), "segments"]
    fresh.press("End")
    assert fresh.evaluate(count) == "1 segment"
    assert fresh.evaluate("document.getElementById('tau').value") == str(len(data["counts"]) - 1)
    fresh.press("Home")
    assert fresh.evaluate("diffseg.state.tau") == 0
    fresh.evaluate("document.getElementById('tau').focus()")
    fresh.press("ArrowRight")  # the slider's own step, not a second one
    assert fresh.evaluate("diffseg.state.tau") == 1
    fresh.press("d")
    assert fresh.evaluate("diffseg.state.tau") == start
    fresh.press("ArrowRight", shift=True)
    width = data["levels"][0]["size"][1]
    assert fresh.evaluate("diffseg.state.point.u") == pytest.approx(0.5 + 1 / width)
    assert fresh.evaluate("diffseg.state.pinned")
    fresh.press("Escape")
    assert not fresh.evaluate("diffseg.state.pinned")


def test_letters_switch_layers(fresh):
    def displayed(name: str) -> bool:
        return fresh.evaluate(f"getComputedStyle(document.getElementById('{name}')).display") != "none"

    assert [displayed(name) for name in ("tint", "lines", "heat")] == [True, True, False]
    fresh.press("s")
    assert not displayed("tint")
    fresh.press("o")
    assert not displayed("lines")
    fresh.press("2")
    assert displayed("heat")
    pressed = "[...document.querySelectorAll('#tiles button')].map(b => b.getAttribute('aria-pressed'))"
    assert fresh.evaluate(pressed) == ["false", "true", "false", "false", "false"]
    fresh.press("2")
    assert not displayed("heat")
    for key in "so":
        fresh.press(key)
    assert [displayed(name) for name in ("tint", "lines", "heat")] == [True, True, False]


def test_a_click_keeps_a_point_and_tells_its_segment(fresh, explorer, data):
    box = fresh.evaluate(
        "(r => [r.left, r.top, r.width, r.height])(document.getElementById('stage').getBoundingClientRect())"
    )
    u, v = 0.25, 0.75
    fresh.click_at(box[0] + u * box[2], box[1] + v * box[3])
    assert fresh.evaluate("diffseg.state.pinned")
    assert fresh.evaluate("diffseg.state.point") == pytest.approx({"u": u, "v": v}, abs=0.01)
    labels = explorer.segmentation(0.3, anchors=8).labels
    told = fresh.evaluate("document.getElementById('where').textContent")
    at = labels[int(v * 112), int(u * 160)]
    assert told == f"segment {at + 1} of {labels.max() + 1}, {100 * (labels == at).mean():.1f} % of the photo"
    fresh.click_at(box[0] + 0.9 * box[2], box[1] + 0.1 * box[3])
    assert fresh.evaluate("diffseg.state.point") == pytest.approx({"u": 0.9, "v": 0.1}, abs=0.01)


def test_the_next_photo_comes_with_its_names(fresh):
    fresh.press("n")
    fresh.evaluate(
        "new Promise(done => (function look() { diffseg.now.photo.names ? done() : setTimeout(look, 5) })())"
    )
    fresh.frame()
    assert re.match("(sky|grass): segment ", fresh.evaluate("document.getElementById('where').textContent"))
    pressed = "[...document.querySelectorAll('#picker button')].map(b => b.getAttribute('aria-pressed'))"
    assert fresh.evaluate(pressed) == ["false", "true"]


def test_a_hostile_name_is_text(fresh):
    assert fresh.evaluate("document.getElementById('credit').textContent") == f"{HOSTILE}.png: somebody's"
    assert fresh.evaluate("document.querySelectorAll('img[src=x]').length") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_fits_and_can_be_read(data, explorer, tmp_path, width, dark):
    path = tmp_path / "explore.html"
    path.write_text(page_of([data], "mini", explorer.settings(anchors=8)))
    with Browser() as browser:
        tab = opened(browser, path, width=width, height=700, dark=dark)
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        colours = tab.evaluate(
            "['ink', 'muted', 'accent', 'paper'].map(n => getComputedStyle(document.body).getPropertyValue(`--${n}`))"
        )
    ink, muted, accent, paper = (luminance(colour.strip()) for colour in colours)
    assert (paper < ink) == dark
    for colour in (ink, muted, accent):
        lighter, darker = max(colour, paper), min(colour, paper)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG's AA


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    x = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return float(np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


# --- the command ------------------------------------------------------------------------------------------------------


def run(*args: object):
    return CliRunner().invoke(app, ["explore", *map(str, args)])


def photos_in(page: str) -> list[dict]:
    return [json.loads(block) for block in re.findall(r'class="photo">(.*?)</script>', page, re.S)]


def test_the_command_writes_one_page_and_names_what_is_broken(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "good.png")
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(photo).resize((9, 9)).save(tmp_path / "tiny.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    page = tmp_path / "out" / "page.html"
    ran = run(tmp_path, "--out", page, "--nouns", "sky,grass", "--threshold", "0.25", *SMALL)
    assert ran.exit_code == 1
    assert ran.stdout.startswith("2 photos in ")
    assert "2 could not be explored" in ran.stderr
    for name in ("tiny.png: 9 x 9 pixels is too small", "cut.png is damaged"):
        assert name in ran.stderr
    held = photos_in(page.read_text())
    assert [data["name"] for data in held] == ["good.png", "print.jpg"]
    for data in held:
        assert data["thresholds"][data["start"]] == 0.25
        assert [len(names) for names in data["names"]] == data["counts"]


def test_nothing_is_written_where_no_photo_can_be_used(tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    ran = run(tmp_path / "no.png", "--out", tmp_path / "page.html", *SMALL)
    assert ran.exit_code == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "no photos are given"),
        (["p.png", "--demo"], "--demo brings its own photos"),
        (["p.png", "--threshold", "0.5,0.6"], "explore takes one --threshold"),
        (["p.png", "--opacity", "2"], "opacity must be 0"),
        (["p.png", "--out", "p.png"], "is also one of the photos"),
        (["p.png", "--out", "."], "is a folder: give a file"),
        (["p.png", "--out", "page"], "give a file that ends in .html, such as page.html"),
        (["p.png", "--nouns", ","], "noun"),
    ],
)
def test_what_is_wrong_with_options_is_one_sentence(options, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.png").touch()
    ran = run(*options)
    assert ran.exit_code == 2
    assert reason in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_explorer_is_what_explore_returns(explorer):
    assert isinstance(explorer, Explorer)
    assert repr(explorer) == "Explorer(160 x 112 pixels, model mini)"


def test_a_preset_says_where_the_slider_starts(photo, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSEG_PRESETS", str(tmp_path / "presets"))
    presets.save("fine", presets.Preset("mini", options={"threshold": 0.3, "anchors": 8, "size": 128}))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    ran = run(tmp_path / "photo.png", "--preset", "fine", "--out", tmp_path / "page.html", "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    (data,) = photos_in((tmp_path / "page.html").read_text())
    assert data["thresholds"][data["start"]] == 0.3
