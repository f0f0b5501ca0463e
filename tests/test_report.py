"""The pages of real runs: opened in a real browser, with hostile names, and with pieces of the data gone."""

import html
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

import diffseg
from diffseg.datasets.folder import Folder
from diffseg.datasets.transforms import nearest
from diffseg.eval.evaluation import evaluate
from diffseg.eval.protocols import Matching, OneToOne
from diffseg.eval.run import command_of, experiment_of, hydras
from diffseg.eval.runs import find_run
from diffseg.eval.score import Annotations, count, count_grid, known_protocols
from diffseg.eval.show import all_images
from diffseg.eval.show.confusion import confusion, heat_map
from diffseg.eval.show.examples import chosen, example, extremes, matched_classes, picture
from diffseg.eval.show.report import class_rows, spreads, write_report
from diffseg.eval.show.sweep import write_sweep
from diffseg.images import distinct_colours
from diffseg.methods.controls import Grid
from tests.browser import Browser

CONTROLS = ["~segmenter@segmenters.diffseg", "+segmenter@segmenters.whole=whole", "+segmenter@segmenters.colour=colour"]
SCRIPT, QUOTED = "<script>alert(1)</script>", 'it\'s "odd" & <b>bold'


def configured(*overrides):
    with initialize_config_module("diffseg.conf", version_base="1.3"):
        return OmegaConf.to_container(compose("config", [*overrides, "workers=0", "device=cpu"]), resolve=True)


def reported(config, name):
    """Makes a run with its report. Returns the Run, its summary and the page."""
    summary = evaluate(experiment_of(config, {"dataset": name, "model": "mini"}))
    run = find_run(Path(config["runs"]) / summary["run"], config["score_size"])
    return run, summary, run.report.read_text()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Five scenes under two controls, one of them an oracle, with published rows."""
    runs = tmp_path_factory.mktemp("runs")
    data = ["dataset.count=5", "dataset.size=64", "score_size=512", "published=coco_stuff27", f"runs={runs}"]
    return reported(configured(*CONTROLS, *data), "scenes")


def save_folder(root, size=(90, 60)):
    """Two photos, half of one class and half of another, a corner unlabelled; masks that put a third segment below."""
    (root / "photos").mkdir()
    (root / "masks").mkdir()
    truth = np.zeros(size[::-1], np.uint8)
    truth[:, size[0] // 2 :] = 1
    truth[:5, -30:] = 255
    for key in ("plain", QUOTED):
        photo = np.where(truth[..., None] == 0, [200, 40, 40], [40, 40, 200]).astype(np.uint8)
        Image.fromarray(photo).save(root / "photos" / f"{key}.png")
        Image.fromarray(truth).save(root / "photos" / f"{key}.label.png")
        mask = np.where(truth == 0, 7, 3).astype(np.uint8)
        mask[-10:, :] = 5
        Image.fromarray(mask).save(root / "masks" / f"{key}_mask.png")


@pytest.fixture
def masks(tmp_path):
    """Somebody's masks at the photos' own size, for classes and keys with hostile names."""
    save_folder(tmp_path)
    config = configured(
        "dataset=folder",
        f"dataset.root={tmp_path / 'photos'}",
        f"labels={tmp_path / 'masks'}",
        "labels_suffix=_mask.png",
        f"runs={tmp_path / 'runs'}",
    )
    config["dataset"] |= {"classes": [SCRIPT, "second", "third", "never"], "size": 64}
    return config


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def test_a_browser_shows_every_number_and_picture(scenes, browser):
    run, summary, _ = scenes
    page = browser.open(run.report.as_uri())
    text = page.evaluate("document.body.innerText")
    for found in summary["segmenters"].values():
        for fraction in (found["accuracy"], found["miou"], *found["interval"]["miou"], *found["ties"]):
            assert f"{100 * fraction:.1f}" in text
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].filter(i => i.naturalWidth && i.alt).length") == 20  # 4 of each image
    assert (page.problems, page.requests) == ([], [run.report.as_uri()])


@pytest.mark.parametrize(("width", "phone"), [(1200, False), (390, True)])
@pytest.mark.parametrize("name", ["report", "pictures"])
def test_a_browser_draws_the_pages_without_overflow(scenes, browser, tmp_path, name, width, phone):
    for dark in (False, True):
        page = browser.open(getattr(scenes[0], name).as_uri(), width=width, phone=phone, dark=dark)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.screenshot(tmp_path / f"{dark}.png")
    corners = [Image.open(tmp_path / f"{dark}.png").convert("L").getpixel((2, 2)) for dark in (False, True)]
    assert corners[0] > 200 > 60 > corners[1]


def test_a_browser_runs_nothing_that_a_name_contains(masks, browser):
    run, _, _ = reported(masks, "folder")
    for path in (run.report, run.pictures):
        page = browser.open(path.as_uri())
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.querySelectorAll('b').length") == page.evaluate(
            "document.querySelectorAll('.bars b, .meter b').length"
        )
        assert page.problems == []


def test_a_page_runs_no_script_but_its_own(scenes, browser, tmp_path):
    hostile = tmp_path / "hostile.html"
    hostile.write_text(scenes[2].replace("</body>", "<script>document.title = 'taken'</script></body>"))
    page = browser.open(hostile.as_uri())
    assert page.evaluate("document.title") != "taken"
    assert any("Content Security Policy" in problem for problem in page.problems)


def column(page, table, index):
    """The texts of a column, row by row."""
    return page.evaluate(f"[...document.querySelector('{table}').tBodies[0].rows].map(r => r.cells[{index}].innerText)")


def test_a_browser_sorts_a_table(scenes, browser):
    page = browser.open(scenes[0].report.as_uri())
    before = column(page, "table.classes", 0)
    page.click("table.classes th:nth-child(2) button")
    shares = [float(text.strip("< ")) for text in column(page, "table.classes", 1)]
    assert shares == sorted(shares, reverse=True)
    page.click("table.classes th:nth-child(2) button")
    rising = [float(text.strip("< ")) for text in column(page, "table.classes", 1)]
    assert rising == sorted(rising)
    page.click("table.classes th:nth-child(1) button")
    assert column(page, "table.classes", 0) == sorted(before)
    assert page.evaluate("document.querySelectorAll('table.classes [aria-sort]').length") == 1
    assert page.problems == []


def test_a_browser_enlarges_goes_on_and_comes_back(scenes, browser):
    page = browser.open(scenes[0].pictures.as_uri(), height=700)
    keys = page.evaluate("[...document.querySelectorAll('.cards .example')].map(e => e.dataset.key)")
    assert len(keys) == 5
    opened = "document.querySelector('dialog').open"
    shown = "document.querySelector('dialog strong').innerText"
    assert not page.evaluate(opened)
    page.click(".cards .example:nth-child(2) .panels")
    assert page.evaluate(opened)
    assert page.evaluate(shown) == keys[1]
    assert page.evaluate("document.querySelectorAll('dialog img').length") == 4
    assert page.evaluate("[...document.querySelectorAll('dialog figcaption')].map(c => c.innerText)") == [
        "Photo", "Truth", "Matched", "Segments",
    ]  # fmt: skip
    for key, expected in (("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 4)):
        page.press(key)
        assert page.evaluate(shown) == keys[expected]
    page.press("Escape")
    assert not page.evaluate(opened)
    page.wait_for(f"document.activeElement.closest('.example')?.dataset.key === '{keys[4]}'")  # it was shown last
    page.press("Enter")
    assert page.evaluate(shown) == keys[4]
    page.click("dialog nav button:last-child")
    assert not page.evaluate(opened)
    assert (page.problems, page.requests) == ([], [scenes[0].pictures.as_uri()])


def test_a_browser_orders_and_finds_images(scenes, browser):
    page = browser.open(scenes[0].pictures.as_uri())
    cards = "[...document.querySelectorAll('.cards .example')].filter(e => !e.hidden)"
    accuracies = page.evaluate(f"{cards}.map(e => Number(e.dataset.accuracy))")
    assert accuracies == sorted(accuracies, reverse=True)

    def choose(order):
        page.evaluate(
            f"document.forms[0].order.value = '{order}'; document.forms[0].order.dispatchEvent(new Event('change'))"
        )

    choose("segments rises")
    segments = page.evaluate(f"{cards}.map(e => Number(e.dataset.segments))")
    assert segments == sorted(segments)
    choose("key rises")
    keys = page.evaluate(f"{cards}.map(e => e.dataset.key)")
    assert keys == sorted(keys)
    page.click("input[name=find]")
    for letter in keys[3]:
        page.press(letter)
    assert page.evaluate(f"{cards}.map(e => e.dataset.key)") == [keys[3]]
    assert page.evaluate("document.querySelector('output').innerText") == "1 of 5"


# --- all images -------------------------------------------------------------------------------------------------------


def test_every_image_is_listed_once(scenes, monkeypatch):
    """With pictures, or in the table of those for which there is no room; evenly from the best to the worst."""
    run, summary, _ = scenes
    dataset = instantiate(configured(*CONTROLS, "dataset.count=5", "dataset.size=64")["dataset"])

    def listed():
        page = run.pictures.read_text()
        return re.findall(r'<article class="example" data-key="(\d+)"', page), re.findall(
            r'<tr><th scope="row">(\d+)</th>', page
        )

    cards, rest = listed()
    assert (sorted(cards), rest) == (sorted(dataset.keys), [])
    monkeypatch.setattr(all_images, "MOST", 3)
    write_report(run, dataset, summary, OneToOne())
    few, rest = listed()
    assert sorted(few + rest) == sorted(dataset.keys)
    assert few == [cards[0], cards[2], cards[4]]  # falling by accuracy: the best, the middle, the worst
    monkeypatch.undo()
    write_report(run, dataset, summary, OneToOne())


@pytest.mark.parametrize("count", [1, 150, 151, 400, 1000])
def test_pictures_are_smaller_where_there_are_many(count):
    """Their pixels, four pictures of an image, stay below 64 million: some 20 MB as they are stored."""
    assert 4 * count * all_images.side_of(count) ** 2 <= 66e6
    images = pd.DataFrame({"accuracy": np.random.default_rng(0).random(count)})
    assert sorted(all_images.pictured(images, "accuracy")) == list(range(count))


def test_images_without_a_score_are_pictured_last():
    images = pd.DataFrame({"accuracy": [0.5, np.nan, 0.9]})
    assert all_images.pictured(images, "accuracy").tolist() == [2, 0, 1]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_no_network(scenes):
    page = scenes[2]
    links = re.findall(r"""(?:src|href|srcset)\s*=\s*["']((?!data:)[^"']*)""", page)
    assert links == ["images-512.html"]  # the page beside it, when it is clicked
    assert not re.search(r"""url\(|@import|<link|<script src""", page)
    assert page.count("<script>") == 1
    assert len(page) < 1_000_000


def test_a_run_that_varies_one_setting_shows_its_curve(scenes, tmp_path):
    varied = ["vary={anchors:[8,2,4]}", "dataset.count=2", "dataset.size=64", f"runs={tmp_path}"]
    _, summary, page = reported(configured(*varied), "scenes")
    section = re.search(r"<h2>By anchors M.*?</section>", page, re.DOTALL)[0]
    assert list(summary["segmenters"]) == ["anchors=8", "anchors=2", "anchors=4"]
    assert [tick for tick in re.findall(r">(\d+)</text>", section) if tick in "248"][:3] == ["2", "4", "8"]
    assert "scenes, 2 images; mini" in section
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']((?!#|data:)[^"']*)""", page)) == {"images.html"}
    assert not re.search(r"""url\((?!#)|@import|<link|<script src""", page)
    best = max(summary["segmenters"].items(), key=lambda item: item[1]["miou"])
    assert f"Best mIoU: {100 * best[1]['miou']:.1f} at {best[0].removeprefix('anchors=')}" in section
    assert "<svg" not in scenes[2]


def test_the_page_tells_what_was_told_and_published(scenes):
    page = scenes[2]
    assert page.count("told the number of classes</span>") == 1
    assert re.search(r"DiffSeg, SD 1\.4.*?72\.5.*?43\.6.*?quoted", page, re.DOTALL)
    assert "STEGO" not in page  # matched once for the data set: another protocol


def test_names_are_escaped_and_masks_of_the_photos_size_shown(masks):
    _, summary, page = reported(masks, "folder")
    assert summary["model"] is None
    assert summary["segmenters"]["labels"]["accuracy"] == pytest.approx(0.83, abs=0.03)  # segment 5 is left over
    assert html.escape(SCRIPT) in page
    assert SCRIPT not in page
    assert "<b>" not in re.findall(r"<article.*?</article>", page, re.DOTALL)[0]
    assert QUOTED in html.unescape(page)
    assert page.count("data:image/png") == 4  # truth and matched classes of both images
    assert "matched to no class" in page
    assert "not labelled" in page
    absent = [name for name, iou in summary["segmenters"]["labels"]["iou"].items() if iou is None]
    assert f"do not occur: {', '.join(absent)}." in page
    assert "Published" not in page


def test_what_cannot_be_read_is_replaced_by_the_reason(masks, tmp_path):
    run, summary, _ = reported(masks, "folder")
    dataset = Folder(tmp_path / "photos", masks["dataset"]["classes"], size=64)
    (tmp_path / "photos" / "plain.png").unlink()
    (tmp_path / "masks" / f"{QUOTED}_mask.png").write_bytes(b"no picture")
    page = write_report(run, dataset, summary, OneToOne()).read_text()
    reasons = [html.unescape(r) for r in re.findall(r'<p class="reason">(.*?)</p>', page)]
    assert len(reasons) == 2
    assert sum("plain.png is missing" in r for r in reasons) == 1
    assert sum("_mask.png is damaged" in r for r in reasons) == 1
    (tmp_path / "photos" / "plain.label.png").unlink()
    page = write_report(run, dataset, summary, OneToOne()).read_text()
    assert page.count("plain.label.png is missing") == 2  # truth and prediction


def test_counts_of_another_map_are_told(masks, tmp_path):
    """A map of three segments beside counts of one."""
    dataset = Folder(tmp_path / "photos", masks["dataset"]["classes"], size=64)
    row = {"key": "plain", "segments": 1, "table": np.zeros((len(dataset.classes) + 1, 1), int)}
    panels = example(dataset, row, tmp_path / "masks" / "plain_mask.png").panels
    assert panels[-1].error == "its label map has 3 segments, its counts are of 1: score the run again"


def test_images_left_out_are_named(scenes):
    run, summary, _ = scenes
    config = configured(*CONTROLS, "dataset.count=5", "dataset.size=64")
    left_out = {**summary, "skipped": {"k<1>": "truncated & gone"}}
    page = write_report(run, instantiate(config["dataset"]), left_out, OneToOne()).read_text()
    assert "1 of 6 images were left out" in page
    assert "<strong>k&lt;1&gt;</strong>: truncated &amp; gone" in page


def test_a_picture_of_masks_of_the_photos_size_is_cropped(masks, tmp_path):
    dataset = Folder(tmp_path / "photos", masks["dataset"]["classes"], size=64)
    assert picture(dataset, "plain", tmp_path / "masks" / "plain_mask.png").size == (60, 60)


# --- its pieces -------------------------------------------------------------------------------------------------------


def test_matched_classes_by_hand():
    classes = [[0, 9, 0, 0, 0, 0], [5, 1, 0, 3, 0, 0], [0] * 6]  # class 2 is absent, segment 3 left over
    void = [0, 0, 0, 0, 7, 7]  # segments 4 and 5 are on ignored pixels only
    assert matched_classes(np.array([*classes, void])).tolist() == [1, 0, -1, -1, -1, -1]


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0)), (2, (1, 1)), (5, (3, 2)), (8, (4, 4)), (50, (4, 4))])
def test_no_image_is_among_both_the_best_and_the_worst(count, sizes):
    rows = pd.DataFrame({"key": [str(i) for i in range(count)], "accuracy": np.linspace(1, 0, count)})
    best, worst = extremes(pd.concat([rows, pd.DataFrame({"key": ["unlabelled"], "accuracy": [np.nan]})]))
    assert (len(best), len(worst)) == sizes
    assert not {r["key"] for r in best} & {r["key"] for r in worst}
    assert best[0]["key"] == "0"
    assert not worst or worst[0]["key"] == str(count - 1)


def test_typical_and_random_images_by_hand():
    """Twenty images; the median is 9.5, so 9 and 10 are nearest, then 8 and 11. Best and worst take the ends."""
    rows = pd.DataFrame({"key": [str(i) for i in range(20)], "accuracy": np.arange(20.0)})
    kinds = {title: [row["key"] for row in found] for title, found in chosen(rows).items()}
    assert list(kinds) == ["Best", "Typical", "Worst", "Random"]
    assert kinds["Best"] == ["19", "18", "17", "16"]
    assert kinds["Typical"] == ["9", "10", "8", "11"]
    assert kinds["Worst"] == ["0", "1", "2", "3"]
    assert len(set(kinds["Random"])) == 4
    assert set(kinds["Random"]) <= {"4", "5", "6", "7", "12", "13", "14", "15"}
    assert kinds["Random"] == [row["key"] for row in chosen(rows)["Random"]]
    assert [len(found) for found in chosen(rows[:9]).values()] == [4, 1, 4]
    assert list(chosen(rows[:1])) == ["Best"]


def test_spreads_by_hand():
    rows = pd.DataFrame({"accuracy": [0.51, 0.52, 1.0, np.nan], "miou": [0.0] * 4, "segments": [1, 3, 3, 45]})
    accuracy, miou, segments = spreads({"one": rows})["one"]
    assert [(n, where) for n, where in accuracy.bars if n] == [(2, "50 to 55 %"), (1, "95 to 100 %")]
    assert (accuracy.median, accuracy.span, accuracy.peak) == ("52.0", "51.0 to 100.0", 2)
    assert miou.bars[0] == (4, "0 to 5 %")
    assert [(n, where) for n, where in segments.bars if n] == [(3, "1 to 3"), (1, "43 to 45")]
    few = spreads({"few": rows[:3]})["few"][2]
    assert few.bars == [(1, "1"), (0, "2"), (2, "3")]


def test_classes_come_with_their_share():
    rows = pd.DataFrame({"table": [np.array([[3, 0], [0, 1], [0, 0], [5, 5]])]})  # the last row is void
    summary = {"dataset": {"classes": ["a", "b", "c"]}, "segmenters": {"x": {"iou": {"a": 0.5, "b": 0.9, "c": None}}}}
    assert [(r["name"], r["share"]) for r in class_rows(summary, {"x": rows})] == [("b", 0.25), ("a", 0.75)]


def test_colours_of_classes_differ_and_stay():
    colours = distinct_colours(27).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(27)
    assert apart.min() > 40
    assert (np.ptp(colours, axis=1) > 30).all()  # none is grey
    assert (distinct_colours(60)[:27] == colours).all()


def test_the_configuration_and_circumstances_are_on_the_page(scenes):
    run, _, page = scenes
    record = json.loads((run.folder / "run.json").read_text())
    assert (run.folder / "config.yaml").read_text() in html.unescape(page)
    assert f"torch {record['versions']['torch']}" in page
    assert record["identity"]["dataset"]["fingerprint"] in page


# --- confusion --------------------------------------------------------------------------------------------------------

SKY, SEA, SAND, VOID = [70, 0, 0], [0, 40, 10], [0, 5, 20], [3, 3, 3]
BEACH = np.array([SKY, SEA, SAND, VOID])  # each segment is matched to the class of its own number
STORM = np.array([[0, 30, 0], [20, 0, 0], [0, 0, 0], [0, 0, 9]])  # sky is segment 1, sea segment 0; 2 has void alone


def test_confusion_by_hand():
    strict = OneToOne(absent=False)
    pixels = confusion([BEACH, STORM], strict)
    assert pixels.tolist() == [[100, 0, 0, 0], [0, 60, 10, 0], [0, 5, 20, 0]]
    shown = heat_map(pixels, ["sky", "sea", "sand"])
    assert shown.rows == shown.columns == ["sky", "sea", "sand"]
    np.testing.assert_allclose(shown.values, [[1, 0, 0], [0, 6 / 7, 1 / 7], [0, 0.2, 0.8]])
    assert [(p.truth, p.taken, round(p.of_class, 3), round(p.of_all, 3)) for p in shown.pairs] == [
        ("sea", "sand", 0.143, 0.051),
        ("sand", "sea", 0.2, 0.026),
    ]


def test_what_no_class_takes_is_a_column_of_its_own():
    split = np.array([[50, 30], [0, 0], [0, 0]])  # one class in two segments: the smaller is left over
    shown = heat_map(confusion([split], OneToOne(absent=False)), ["sky", "sea"])
    assert (shown.rows, shown.columns) == (["sky"], ["sky", "no class"])
    assert shown.values.tolist() == [[0.625, 0.375]]
    assert [(p.truth, p.taken) for p in shown.pairs] == [("sky", "")]
    charged = heat_map(confusion([split], OneToOne()), ["sky", "sea"])  # the paper's: it falls to an absent class
    assert (charged.rows, charged.columns) == (["sky"], ["sky", "sea"])


@pytest.mark.parametrize("rule", [rule for rule in known_protocols().values() if isinstance(rule, Matching)])
def test_the_diagonal_and_the_rows_are_what_a_protocol_counts(rule):
    rng = np.random.default_rng(0)
    tables = [rng.integers(0, 50, (5, rng.integers(1, 7))) for _ in range(4)]
    statistics = rule.statistics(tables, 0)
    pixels = confusion(tables, rule, 0)
    np.testing.assert_array_equal(np.diag(pixels), statistics["tp"].sum(0))
    np.testing.assert_array_equal(pixels.sum(1), (statistics["tp"] + statistics["fn"]).sum(0))
    np.testing.assert_array_equal(pixels[:, :-1].sum(0), (statistics["tp"] + statistics["fp"]).sum(0))


def test_the_largest_classes_are_shown_where_there_are_many():
    pixels = np.diag(np.arange(1, 61))
    shown = heat_map(np.column_stack([pixels, np.zeros(60, int)]), [str(i) for i in range(60)])
    assert shown.rows == [str(i) for i in range(59, 19, -1)]
    assert shown.left_out == 20


# --- what has to be beaten --------------------------------------------------------------------------------------------


def test_controls_are_those_that_methods_measure(tmp_path):
    """Counted from the truth alone they have the scores of label maps of one segment and of a grid; shown once."""
    as_methods = [
        "~segmenter@segmenters.diffseg",
        "+segmenter@segmenters.whole=whole",
        "+segmenter@segmenters.grid=grid",
    ]
    data = ["dataset.count=3", "dataset.size=64", "protocol=[]", f"runs={tmp_path}"]
    rules = [f"+protocol@protocols.{name}={name}" for name in ("diffseg", "majority", "regions", "names", "boundaries")]
    for size in ([], ["score_size=100"]):
        _, summary, page = reported(configured(*as_methods, *data, *rules, *size), "scenes")
        assert summary["controls"]["names"] == summary["controls"]["boundaries"] == {}
        for rule in ("diffseg", "majority", "regions"):
            for name, method in (("one segment", "whole"), ("a grid of 3 x 3", "grid")):
                counted = dict(summary["controls"][rule][name])
                assert counted.pop("segments") == summary["segmenters"][method]["segments"]
                assert counted == summary["protocols"][rule][method]
        assert "a grid of 3 x 3" not in page
    _, _, page = reported(configured(*CONTROLS, *data, rules[0]), "scenes")
    assert page.count('<tr class="control">') == 1  # the grid; one segment is a method of this run
    assert "A grid of 3 x 3 show" in html.unescape(page) or "a grid of 3 x 3" in page


@pytest.mark.parametrize("shape", [(64, 64), (2, 5), (37, 53)])
@pytest.mark.parametrize("onto", [None, (20, 20), (90, 41)])
def test_a_grid_is_counted_as_its_label_map_would_be(shape, onto):
    rng = np.random.default_rng(0)
    grid = Grid().segment(SimpleNamespace(size=shape))
    grid = grid if onto is None else nearest(grid, onto)
    first, second = (rng.integers(-1, 4, grid.shape) for _ in range(2))
    expected, counted = count(first, grid, 4), count_grid([first], 4, shape)
    assert counted.segments.tolist() == expected.segments.tolist()
    np.testing.assert_array_equal(counted.pixels, expected.pixels)
    expected, counted = Annotations([first, second]).count(grid), count_grid([first, second], None, shape)
    np.testing.assert_array_equal(counted.pixels, expected.pixels)
    np.testing.assert_array_equal(counted.rows, expected.rows)


def test_controls_by_hand(tmp_path):
    """Both photos are half one class, half another: a single segment is right on half of what is labelled."""
    save_folder(tmp_path)
    config = configured("dataset=folder", f"dataset.root={tmp_path / 'photos'}", f"labels={tmp_path / 'masks'}",
                        "labels_suffix=_mask.png", f"runs={tmp_path / 'runs'}")  # fmt: skip
    config["dataset"] |= {"classes": ["first", "second"], "size": 60}  # the middle square, 30 columns of each
    _, summary, page = reported(config, "folder")
    corner = 5 * 15  # unlabelled, of the second class
    labelled = 3600 - corner
    assert summary["controls"]["diffseg"]["one segment"]["accuracy"] == pytest.approx(1800 / labelled)
    assert f"{100 * 1800 / labelled:.1f}" in re.search(r'<tr class="control">.*?</tr>', page, re.DOTALL)[0]


def test_controls_are_counted_anew_with_the_truth(tmp_path):
    save_folder(tmp_path)
    config = configured("dataset=folder", f"dataset.root={tmp_path / 'photos'}", f"labels={tmp_path / 'masks'}",
                        "labels_suffix=_mask.png", f"runs={tmp_path / 'runs'}")  # fmt: skip
    config["dataset"] |= {"classes": ["first", "second"], "size": 60}
    reported(config, "folder")
    for key in ("plain", QUOTED):
        Image.fromarray(np.zeros((60, 90), np.uint8)).save(tmp_path / "photos" / f"{key}.label.png")
    _, summary, _ = reported(config, "folder")
    assert summary["controls"]["diffseg"]["one segment"]["accuracy"] == 1


# --- settings and command ---------------------------------------------------------------------------------------------


def test_the_settings_are_at_the_top(scenes, tmp_path):
    config = configured("dataset.count=2", "dataset.size=64", "segmenters.diffseg.anchors=4", f"runs={tmp_path}")
    run, summary, page = reported(config, "scenes")
    text = html.unescape(re.search(r'<dl class="facts">.*?</dl>', page, re.DOTALL)[0])
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<", text))
    threshold = summary["segmenters"]["diffseg"]["settings"]["threshold"]
    record = json.loads((run.folder / "run.json").read_text())
    assert facts == {
        "Data": "scenes", "Images": "2", "Classes": "27", "Protocol": "diffseg", "Scored at": "64 pixels a side",
        "Model": "mini", "Time step t": str(summary["timestep"]), "Method": "DiffSeg",
        "Threshold τ": f"{threshold:g} nats", "Iterations N": "3", "Anchors M": "4 \u00d7 4",
        "Weights R": "proportional", "Refinement": "off", "diffseg": diffseg.__version__, "Begun": record["begun"][:10],
        "Prediction": f"{run.seconds_per_image:.2g} s per image", "Run": run.name,
    }  # fmt: skip
    assert "To make it again" not in page  # made without a command line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "diffseg-eval"),
        (["dataset=folder", "dataset.root=my photos"], "diffseg-eval dataset=folder 'dataset.root=my photos'"),
        (["protocol=[]", "+protocol@protocols.a=a", "+protocol@protocols.b=b"], "diffseg-eval 'protocol=[a,b]'"),
        (["stages=[score,report]", "shard=[0,2]", "model=mini"], "diffseg-eval model=mini"),
    ],
)
def test_the_command_that_makes_it_again(overrides, expected):
    assert command_of(overrides) == expected
    again = shlex.split(expected)[1:]
    kept = [text for text in overrides if not text.startswith(("stages=", "shard="))]
    assert hydras(again) == kept


def test_the_command_of_a_run_is_on_its_page(tmp_path, commands):
    small = ["dataset.count=2", "dataset.size=64", "~segmenter@segmenters.diffseg", "+segmenter@segmenters.grid=grid"]
    assert commands(*small, "protocol=[strict]", f"runs={tmp_path / 'my runs'}", cwd=tmp_path).returncode == 0
    (report,) = tmp_path.glob("my runs/*/report.html")
    told = html.unescape(re.search(r'<div class="command"><pre><code>(.*?)</code>', report.read_text())[1])
    before = report.read_bytes()
    again = commands(*shlex.split(told)[1:], cwd=tmp_path)
    assert "nothing to do, every label map is there" in again.stderr + again.stdout
    assert report.read_bytes() == before


# --- without labels ---------------------------------------------------------------------------------------------------


def test_images_without_labels_have_a_page(tmp_path, browser):
    """Two photos, halves and one third; the masks' areas are worked out by hand."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    halves, thirds = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
    halves[:, 30:] = 4
    thirds[:30, 30:], thirds[30:, 30:] = 1, 2
    for key, mask in (("a", halves), ("b", thirds)):
        Image.fromarray(np.full((60, 60, 3), 100, np.uint8)).save(tmp_path / "photos" / f"{key}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{key}.png")
    config = configured("dataset=folder", f"dataset.root={tmp_path / 'photos'}", f"labels={tmp_path / 'masks'}",
                        f"runs={tmp_path / 'runs'}", "dataset.size=60")  # fmt: skip
    assert evaluate(experiment_of(config, {"dataset": "folder", "model": "mini"})) == {}
    (report,) = tmp_path.glob("runs/*/report.html")
    page = browser.open(report.as_uri())
    rows = page.evaluate("[...document.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.innerText))")
    # The largest segment is half of either image, the median one half of the first, and a quarter of the second.
    assert rows == [["labels", "2.5\n2 to 3", "50.0", "37.5", "0.0"]]
    assert page.evaluate("[...document.querySelectorAll('.example')].map(e => e.dataset.key)") == ["b", "a"]
    assert "no labels" in page.evaluate("document.body.innerText")
    assert (page.problems, page.requests) == ([], [report.as_uri()])
    page.click("a[href='images.html']")
    page.wait_for("document.querySelectorAll('.cards .example').length === 2")
    assert page.problems == []


# --- sweeps -----------------------------------------------------------------------------------------------------------


def job(threshold, anchors, miou, run="x"):
    """A sweep's job, as far as its page reads it."""
    settings = {"_target_": "diffseg.methods.merging.Merging", "threshold": threshold, "anchors": anchors}
    interval = {"accuracy": (0.4, 0.6), "miou": (miou - 0.1, miou + 0.1)}
    scores = {"settings": settings, "told": None, "accuracy": 0.5, "miou": miou, "interval": interval, "segments": 3.0}
    facts = {"name": "scenes", "note": "", "classes": [], "size": 64, "published": None, "paper_threshold": None}
    return {
        "overrides": [f"segmenters.diffseg.threshold={threshold}", f"segmenters.diffseg.anchors={anchors}"],
        "run": run, "dataset": facts, "model": "mini", "timestep": 100, "size": 64, "images": 4,
        "segmenters": {"diffseg": scores},
    }  # fmt: skip


def sweep_page(folder, jobs):
    folder.mkdir(parents=True)
    return html.unescape(write_sweep(folder, jobs, {}, "diffseg-eval -m a=1,2").read_text())


def test_a_sweep_over_one_setting_is_a_curve(tmp_path):
    jobs = [job(0.5, 8, 0.3), job(0.7, 8, 0.5), job(0.9, 8, 0.4), {"overrides": ["x=1"], "error": "it <broke>"}]
    page = sweep_page(tmp_path / "sweeps" / "s", jobs)
    assert "By threshold τ (nats)" in page
    assert "Best mIoU: 50.0 at 0.7." in page
    assert "40.0 to 60.0" in page  # its interval
    assert re.findall(r'<tr class="best"><td>.*?</td>', page) == ['<tr class="best"><td>0.7</td>']
    assert "failed: it <broke>" in page
    assert page.count("<svg") == 1
    assert "diffseg-eval -m a=1,2" in page


def test_a_sweep_over_two_settings_is_a_heat_map(tmp_path):
    jobs = [job(t, a, t * a / 20) for t in (0.5, 0.7) for a in (8, 16)]
    page = sweep_page(tmp_path / "sweeps" / "s", jobs)
    assert "By threshold τ (nats) and anchors M" in page
    assert re.search(r"Best mIoU: 56\.0 at .*0\.7", page)
    assert "threshold, anchors" in page


def test_a_sweep_ends_with_its_page(tmp_path, browser, commands):
    small = ["dataset.count=2", "dataset.size=64", "segmenter@segmenters.diffseg=grid", f"runs={tmp_path}"]
    ran = commands("-m", *small, "segmenters.diffseg.rows=1,2,3", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (path,) = tmp_path.glob("sweeps/*/sweep.html")
    page = browser.open(path.as_uri())
    assert column(page, "table.sortable", 0) == ["1", "2", "3"]
    assert page.evaluate("document.querySelectorAll('svg').length") == 1
    told = page.evaluate("document.querySelector('.command code').innerText")
    assert shlex.split(told) == ["diffseg-eval", "-m", *small, "segmenters.diffseg.rows=1,2,3"]
    assert (page.problems, page.requests) == ([], [path.as_uri()])
    page.click("table.sortable tbody a")
    page.wait_for("document.title.includes('accuracy')")  # a job's own report
    assert page.problems == []
