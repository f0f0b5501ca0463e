"""The whole paper in one command: end to end on two scenes, killed in the middle and resumed; what is missing; what
a step costs; a step that fails; what the page says of numbers."""

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diffseg.eval import paper
from diffseg.eval.run import composed
from diffseg.eval.runs import Run
from diffseg.eval.show import paper as pages
from diffseg.eval.show.tables import PAPER_MODEL
from tests.browser import Browser
from tests.test_tables import summary

# 256 pixels: the finest attention must have room for 32 anchors a side.
WHOLE = ["paper", "--model", "mini", "--count", "2", "dataset.size=256", "device=cpu", "workers=0"]
WITHOUT_MODEL = ("~segmenters.diffseg", "+segmenter@segmenters.grid=grid", "dataset.size=64", "device=cpu", "workers=0")


def maps_in(runs):
    return {path: path.stat().st_mtime_ns for path in runs.glob("*/*/labels/*.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, commands):
    """(folder of the page, folder of the runs, what it printed) of a call that was killed, and one that went on."""
    place = tmp_path_factory.mktemp("paper")
    runs = place / "results" / "runs"
    first = commands.start(*WHOLE, cwd=place)
    wait_for(lambda: len(maps_in(runs)) >= 5)  # of the four methods of the first step
    first.kill()
    first.communicate()  # its pipes close when the last of its processes has left
    before = {path: when for path, when in maps_in(runs).items() if path.name == "000000.png"}
    assert len(before) == 4
    ended = commands.start(*WHOLE, cwd=place)
    said, told = ended.communicate()
    assert ended.returncode == 0, told
    after = maps_in(runs)
    assert before.items() <= after.items()  # a finished image is not made again
    assert not list(runs.rglob("*.partial"))
    return place / "results" / "paper" / "mini-2", runs, said + told


def wait_for(there, most_s=120):
    end = time.monotonic() + most_s
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_step_is_done_after_a_kill_and_a_second_call(whole):
    _, runs, said = whole
    made = [json.loads(path.read_text()) for path in sorted(runs.glob("*/summary.json"))]
    assert [len(s["segmenters"]) for s in made] == [33, 7, 4, 2]
    assert {s["images"] for s in made} == {2}
    assert len(list(runs.glob("*/summary-320.json"))) == 1
    commands = re.findall(r"^  (diffseg-eval .*)", said, re.MULTILINE)
    assert len(commands) == 5
    assert all("dataset=scenes model=mini" in line for line in commands)


def test_the_page_stands_alone_and_says_what_it_is_not(whole):
    out, runs, said = whole
    page = (out / "paper.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "url(http" not in page
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for words in (
        "Whether the paper reproduces is not answered here: this is mini on scenes, 2 images, seen at 256 pixels",
        "Generated scenes stand in for the data sets.",
        "Not to be compared: published on COCO-Stuff-27, 2,175 images of val2017",
        "There is no reference for these runs",
        "segments have the names that were found for them",
        "diffseg-eval experiment=baselines dataset=scenes",
    ):
        assert words in text
    for heading in ("Threshold", "Weights R", "Anchors M", "Iterations N", "Refinement", "Time step t"):
        assert f"<h3>{heading}" in page
    assert page.count("data:image/jpeg") == 4  # three figures of the method, one gallery
    (made,) = (s for p in runs.glob("*/summary.json") if len((s := json.loads(p.read_text()))["segmenters"]) == 4)
    assert f"{100 * made['segmenters']['kmeans_s']['miou']:.1f}" in text
    assert "not answered here" in said
    assert "72.5" in (out / "scenes.md").read_text()


def test_a_browser_shows_the_page_without_overflow(whole):
    path = whole[0] / "paper.html"
    with Browser() as browser:
        page = browser.open(path.as_uri(), width=1000)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert (page.problems, page.requests) == ([], [path.as_uri()])


# --- steps and what is missing ----------------------------------------------------------------------------------------


def test_scenes_stand_in_with_the_embedded_model_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paper.data_sets("mini", None, None) == {"coco_stuff27": ["dataset=scenes"]}
    assert list(paper.data_sets("sd14", None, None)) == ["coco_stuff27", "cityscapes"]
    elsewhere = paper.data_sets("sd14", Path("there"), None, ["device=cpu", "data=/some", "data=/all"])
    assert elsewhere["cityscapes"] == ["dataset=cityscapes", "dataset.root=/all/cityscapes"]
    assert elsewhere["coco_stuff27"] == ["dataset=coco_stuff27", "dataset.root=there"]
    assert paper.data_sets("mini", None, Path("there")) == {"cityscapes": ["dataset=cityscapes", "dataset.root=there"]}
    Path("data/coco").mkdir(parents=True)
    assert list(paper.data_sets("mini", None, None)) == ["coco_stuff27"]


def test_the_steps_are_the_papers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = paper.steps_of("sd14", paper.data_sets("sd14", None, None), Path("runs"), 8, ["dtype=bfloat16"])
    assert [step.name for step in steps] == ["coco_stuff27", "cityscapes", "naming", "ablations", "timesteps"]
    assert all(step.arguments[-2:] == ("dataset.count=8", "dtype=bfloat16") for step in steps)
    assert steps[0].commands[1] == [*steps[0].arguments, "score_size=320"]
    assert "prompts=classes" in steps[2].arguments
    captions = Path("data/coco/annotations/captions_val2017.json")
    captions.parent.mkdir(parents=True)
    captions.touch()
    steps = paper.steps_of("sd14", paper.data_sets("sd14", None, None), Path("runs"))
    assert "prompts=captions" in steps[2].arguments
    assert not any("count" in argument for step in steps for argument in step.arguments)
    with_mini = paper.steps_of("mini", {"coco_stuff27": ["dataset=scenes"]}, Path("runs"))
    assert [step.arguments[-1] for step in with_mini] == ["dataset.count=64", *["dataset.count=24"] * 3]


def test_all_that_is_missing_is_told_at_once_in_its_own_words(tmp_path, monkeypatch):
    def unreachable(name, revision):
        raise OSError(f"cannot load {name!r}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paper, "kind_of", unreachable)
    steps = paper.steps_of("sd14", paper.data_sets("sd14", None, None), Path("runs"))
    planned, missing = paper.plan(composed, steps, ["model=sd14"])
    weights, coco, cityscapes = missing.items()
    assert not planned
    assert weights == (f"cannot load {PAPER_MODEL!r}", [step.name for step in steps])
    assert "data/coco/val2017" in coco[0]
    assert "make data-coco" in coco[0]
    assert coco[1] == ["coco_stuff27", "naming", "ablations", "timesteps"]
    assert "make data-cityscapes" in cityscapes[0]
    assert cityscapes[1] == ["cityscapes"]
    assert not list(tmp_path.iterdir())


def test_nothing_is_done_where_something_is_missing(tmp_path, commands):
    ended = commands("paper", "--model", "mini", "--cityscapes", "nowhere", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(
        "diffseg-eval: something is missing, so nothing was done:\n  there is no folder nowhere/"
    )
    assert not list(tmp_path.iterdir())


# --- costs ------------------------------------------------------------------------------------------------------------


def grids(runs, count, *more):
    """A step without a model's pass."""
    arguments = (*WITHOUT_MODEL, f"runs={runs}", f"dataset.count={count}", *more)
    return paper.Step("grids", "cells", "coco_stuff27", arguments, (None, 32), True)


def test_costs_are_measured_on_three_images_and_remembered(tmp_path):
    runs, memory = tmp_path / "runs", tmp_path / "costs.json"
    planned, missing = paper.plan(composed, [grids(runs, 1000)], ["model=mini"])
    assert not missing
    assert not runs.exists()
    (one,), problems = paper.measured(composed, planned, memory)
    assert not problems
    assert not runs.exists()
    assert one.left == one.images == 1000
    assert one.seconds == pytest.approx(one.cost.once_s + 1000 * one.cost.image_s)
    assert 0 < one.cost.image_s < 5
    assert 500 < one.cost.image_bytes < 20_000
    shown = paper.plan_table([one]).cells
    assert shown[0][2:4] == ["scenes, 1,000", "0"]
    assert shown[-1][5:] == [paper.duration(one.seconds), paper.size_of(one.size)]
    memory.write_text(
        json.dumps({key: {**cost, "image_s": 7.0} for key, cost in json.loads(memory.read_text()).items()})
    )
    (again,), _ = paper.measured(composed, planned, memory)
    assert again.cost.image_s == 7.0
    assert replace(again, left=0, scored=True).seconds == 0


def test_times_and_sizes_are_for_people():
    assert [paper.duration(s) for s in (4, 89, 150, 12_000)] == ["4 s", "89 s", "2 min", "3 h 20 min"]
    assert [paper.size_of(b) for b in (4e5, 2.34e9)] == ["0.4 MB", "2.3 GB"]


# --- steps that fail --------------------------------------------------------------------------------------------------


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def wrong():
    raise RuntimeError("a bug")


def test_a_process_that_ends_otherwise_is_told():
    with pytest.raises(paper.UserError, match="its process was killed by signal 9"):
        paper.apart(killed)
    with pytest.raises(paper.UserError, match="its process ended with exit status 1, see above"):
        paper.apart(wrong)


def test_a_failed_step_takes_no_other_with_it(tmp_path, capfd):
    (tmp_path / "file").touch()
    steps = [replace(grids(tmp_path / "file" / "runs", 2), name="bad"), grids(tmp_path / "runs", 2)]
    planned, _ = paper.plan(composed, steps, ["model=mini"])
    assert [one.step.name for one in planned] == ["bad", "grids"]
    bad, good = paper.do_steps(composed, planned)
    assert "cannot write to the output folder" in bad.wrong
    assert not bad.summaries
    assert list(good.summaries) == [None, 32]
    assert "bad failed" in capfd.readouterr().err
    (again,), _ = paper.plan(composed, steps[1:], ["model=mini"])
    assert again.is_done
    page = pages.write_page(tmp_path, [bad, replace(good, is_table=False)], {"no weights": ["x"]}, {"bad": bad.wrong})
    text = " ".join(page.read_text().split())
    assert "bad: failed, cannot write to the output folder" in text
    assert "x: left out, no weights" in text


# --- what is said of numbers ------------------------------------------------------------------------------------------


def outcome(benchmark="coco_stuff27", **facts):
    made = {None: summary(dataset=benchmark, **facts), 320: summary(dataset=benchmark, size=320, **facts)}
    return pages.Outcome(benchmark, "", benchmark, True, [], Run(Path("r"), {}, ("diffseg",)), None, made)


def test_a_number_reproduces_if_it_lies_in_the_interval():
    """Made-up runs have accuracy 70 to 75 and mIoU 42 to 46 %."""
    known = {(n.method, n.size, n.metric): n for n in pages.numbers([outcome()]) if n.benchmark == "coco_stuff27"}
    assert known["DiffSeg", 512, "miou"].verdict == "reproduces"
    assert "published 43.6 (quoted), measured 44.0 (42.0 to 46.0): reproduces" in known["DiffSeg", 512, "miou"].sentence
    assert known["K-Means-C", 512, "miou"].verdict == "not run"
    made = [outcome(), outcome("cityscapes")]
    of_city = {(n.size, n.metric): n for n in pages.numbers(made) if n.benchmark == "cityscapes"}
    assert of_city[512, "miou"].verdict == "is off by +22.8 points, 20.8 beyond the interval"
    assert of_city[512, "accuracy"].verdict == "is off by -3.0 points, 1.0 beyond the interval"
    assert pages.verdict(made).startswith("It reproduces in part: 4 of 8 published numbers lie in the 95 % interval")
    assert "6 others were not run" in pages.verdict(made)
    assert pages.verdict([outcome()]).startswith("It reproduces: 4 of 4")


@pytest.mark.parametrize("facts", [{"model": "mini"}, {"note": "the first 8 of 2,175"}])
def test_nothing_else_is_compared(facts):
    made = [outcome(**facts)]
    assert pages.compared(made) == []
    assert "not answered here" in pages.verdict(made)
    (table,) = pages.tables(made)
    row = dict(zip(table.headings, table.cells[0], strict=True))
    assert (row["mIoU\npublished"], row["mIoU\nhere"], row["mIoU\ndifference"]) == ("43.6", "44.0\n(42.0 to 46.0)", "")
    assert table.caption.startswith("Not to be compared")


def test_the_gate_is_asked_where_a_reference_speaks_of_the_run():
    def gate(images, accuracy):
        made = outcome(accuracy=accuracy)
        made.summaries[None]["images"] = images
        return pages.gates([made])

    assert gate(8, 0.73) == []
    (holds,), (moved,) = gate(2175, 0.73), gate(2175, 0.60)
    assert holds.holds
    assert "gate coco_stuff27: holds (diffseg accuracy 0.7300, expected 0.7250 within 0.02" in holds.sentence
    assert not moved.holds
    assert "does not hold" in moved.sentence
