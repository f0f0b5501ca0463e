"""The report of a real run: opened in a real browser, with hostile names, and with pieces of the data gone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from diffseg.datasets.folder import Folder
from diffseg.eval.evaluation import evaluate
from diffseg.eval.protocols import OneToOne
from diffseg.eval.run import experiment_of
from diffseg.eval.runs import find_run
from diffseg.eval.show.examples import extremes, matched_classes, picture
from diffseg.eval.show.report import class_rows, spreads, write_report
from diffseg.images import distinct_colours

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
    """A function that runs headless Chromium on a page and returns what it prints."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("neither chromium nor google-chrome is installed")
    command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"]

    def open_page(page, *options):
        ran = subprocess.run(
            [*command, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120
        )
        return ran.stdout

    return open_page


COUNT_IMAGES = """<script>
onload = () => {
  const loaded = [...document.images].filter(i => i.complete && i.naturalWidth && i.alt)
  document.title = loaded.length + " of " + document.images.length
}
</script>"""


def test_a_browser_shows_every_number_and_picture(scenes, browser, tmp_path):
    run, summary, page = scenes
    dom = browser(run.report, "--dump-dom")
    for found in summary["segmenters"].values():
        for fraction in (found["accuracy"], found["miou"], *found["interval"]["miou"], *found["ties"]):
            assert f"{100 * fraction:.1f}" in dom
    probe = tmp_path / "probe.html"
    probe.write_text(page.replace("</body>", COUNT_IMAGES + "</body>"))
    assert "<title>15 of 15</title>" in browser(probe, "--dump-dom")  # five images, none of them twice


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_draws_the_page_without_overflow(scenes, browser, tmp_path, width):
    run, _, page = scenes
    shot = tmp_path / "shot.png"
    browser(run.report, f"--screenshot={shot}", f"--window-size={width},2000")
    assert len(Image.open(shot).convert("RGB").getcolors(1 << 24)) > 100
    probe = tmp_path / "probe.html"
    measure = "<script>onload = () => document.title = document.documentElement.scrollWidth - innerWidth</script>"
    probe.write_text(page.replace("</body>", measure + "</body>"))
    wide = re.search(r"<title>(-?\d+)</title>", browser(probe, "--dump-dom", f"--window-size={width},2000"))
    assert int(wide[1]) <= 0


def test_a_browser_runs_nothing_that_a_name_contains(masks, browser):
    run, _, _ = reported(masks, "folder")
    dom = browser(run.report, "--dump-dom")
    assert "<script" not in dom
    assert "<b>bold" not in dom


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_no_network(scenes):
    page = scenes[2]
    assert not re.search(r"""(src|href|srcset)\s*=\s*["'](?!data:)|url\(|@import|<link|<script""", page)
    assert len(page) < 1_000_000


def test_a_run_that_varies_one_setting_shows_its_curve(scenes, tmp_path):
    varied = ["vary={anchors:[8,2,4]}", "dataset.count=2", "dataset.size=64", f"runs={tmp_path}"]
    _, summary, page = reported(configured(*varied), "scenes")
    section = re.search(r"<h2>By anchors M.*?</section>", page, re.DOTALL)[0]
    assert list(summary["segmenters"]) == ["anchors=8", "anchors=2", "anchors=4"]
    assert [tick for tick in re.findall(r">(\d+)</text>", section) if tick in "248"][:3] == ["2", "4", "8"]
    assert "scenes, 2 images; mini" in section
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)|url\((?!#)|@import|<link|<script""", page)
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
    assert page.count("data:image/png") == 4  # truth and prediction of both images
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
