"""Figures: what is drawn is what was measured, marks are where they belong, panels are the method's steps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffseg.eval.show.ablations import Crossed, Usual, ablation_in, read_ablations, usual_value, weights_name
from diffseg.eval.show.drawing import (
    Shown,
    by_weights,
    curves,
    drawn,
    gallery,
    inline_svg,
    observe,
    overview,
    save,
    shades,
    svg,
    weights_effect,
)
from diffseg.eval.show.figures import app, file_name, read_nouns
from diffseg.images import overlay
from diffseg.segmentation import merge
from diffseg.segmenter import DiffSeg

METHOD = {
    "_target_": "diffseg.methods.merging.Merging",
    "threshold": 0.62,
    "iterations": 3,
    "anchors": 16,
    "weights": None,
    "refine": False,
}
WEIGHTS = [None, [1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [4, 2, 1, 1]]


def scored(settings, accuracy=0.5, segments=3.0):
    """A segmenter's entry in a summary; mIoU is half the accuracy."""
    miou = accuracy / 2
    interval = {"accuracy": [accuracy - 0.1, accuracy + 0.05], "miou": [miou - 0.02, miou + 0.03]}
    own = {"settings": settings, "told": None, "images": 8}
    return {**own, "accuracy": accuracy, "miou": miou, "interval": interval, "segments": segments}


def summary_of(*tried, **run):
    """A summary whose segmenters are the method with these settings, each better than the one before."""
    found = {f"s{i}": scored({**METHOD, **t}, 0.2 + i / 50, 40 / (i + 1)) for i, t in enumerate(tried)}
    data = {"name": "scenes", "note": "", "classes": ["a"], "size": 512, "published": None, "paper_threshold": 1.1}
    base = {"dataset": data, "model": "mini", "timestep": 100, "size": 512, "images": 8, "skipped": {}}
    rules = {"protocols": {"diffseg": found}, "headlines": {"diffseg": "miou"}, "granularity": {}}
    return {**base, "run": "r", "scored_with": "", **run, "protocol": "diffseg", **rules, "segmenters": found}


def save_run(folder, summary, dataset=None):
    """A scored run on disk, as far as figures read it."""
    folder.mkdir(parents=True)
    identity = {"dataset": dataset or {"count": 8}, "segmenters": {name: {} for name in summary["segmenters"]}}
    (folder / "run.json").write_text(json.dumps({"identity": identity, "made_with": None}))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def ablation_from(*tried, **run):
    return ablation_in(summary_of(*tried, **run))


def command(*arguments):
    """Runs the command line. Returns its exit status and all that it says."""
    ran = CliRunner().invoke(app, [str(a) for a in arguments])
    return ran.exit_code, ran.output


# --- what varies ------------------------------------------------------------------------------------------------------


def test_numbers_are_in_numeric_order_with_the_models_own_value():
    found = ablation_from(*({"threshold": t} for t in (1.1, 0.2, 0.9, 0.10)))
    assert (found.key, found.values, found.numeric) == ("threshold", (0.1, 0.2, 0.9, 1.1), True)
    assert [f["accuracy"] for f in found.found] == pytest.approx([0.26, 0.22, 0.24, 0.2])
    assert found.usual.whose == "the model's own"
    assert found.title == "scenes, 8 images; mini, t = 100"


def test_the_value_otherwise_used():
    method = {**METHOD, "model": "somebody/else"}
    assert usual_value("threshold", method, 0.9) == Usual(0.9, "the paper's")
    assert usual_value("timestep", method, 0.9) == Usual(300, "the paper's")
    assert usual_value("anchors", method, 0.9) == Usual(16, "the default")
    assert usual_value("weights", method, 0.9) == Usual(None, "the default")
    assert usual_value("model", method, 0.9) is None
    assert usual_value("threshold", {**method, "relative": True}, 0.9) is None  # a fraction, not nats
    assert usual_value("clusters", {"_target_": "diffseg.methods.clustering.KMeans"}, 0.9) is None


def test_relative_thresholds_are_another_quantity():
    found = ablation_from(*({"threshold": t, "relative": True} for t in (0.1, 0.2)))
    assert (found.key, found.name, found.usual) == ("threshold", "relative-threshold", None)
    assert found.label == "threshold / median distance"


def test_other_segmenters_beside_the_first_one_do_not_count():
    summary = summary_of({"anchors": 8}, {"anchors": 4})
    summary["segmenters"]["whole"] = scored({"_target_": "diffseg.methods.controls.Whole"})
    assert ablation_in(summary).values == (4, 8)
    controls = summary_of({})
    for place in (0.0, 1.0):
        controls["segmenters"][f"{place}"] = scored(
            {"_target_": "diffseg.methods.controls.ColourKMeans", "place": place}
        )
    assert ablation_in(controls) is None


def test_weights_have_names():
    found = ablation_from(*({"weights": w} for w in WEIGHTS))
    assert not found.numeric
    names = ["proportional", "equal", "64 only", "32 only", "16 only", "8 only", "4 : 2 : 1 : 1"]
    assert [found.text(v) for v in found.values] == names
    assert weights_name([0, 2], ["64", "32"]) == "32 only"
    two = ablation_from({"weights": None}, {"weights": [0, 1]})
    assert two.text(two.values[1]) == "resolution 2 of 2 only"  # their sides cannot be told from a run


def test_runs_that_differ_in_one_setting_are_one_ablation(tmp_path):
    times = (900, 1, 100)
    runs = [save_run(tmp_path / f"run{t}", summary_of({}, timestep=t)) for t in times]
    jobs = tmp_path / "sweeps" / "now" / "jobs"
    jobs.mkdir(parents=True)
    for i, run in enumerate(runs):
        (jobs / f"{i}.json").write_text(json.dumps({"run": run.name}))
    (jobs / "9.json").write_text(json.dumps({"error": "no memory"}))
    for given in (runs, [jobs.parent]):
        (found,) = read_ablations(given)
        assert (found.key, found.values, found.usual.value) == ("timestep", (1, 100, 900), 100)
        assert found.title == "scenes, 8 images; mini"


def test_each_run_that_varies_something_is_an_ablation_of_its_own(tmp_path):
    first = save_run(tmp_path / "a", summary_of({"anchors": 8}, {"anchors": 4}))
    second = save_run(tmp_path / "b", summary_of({"iterations": 1}, {"iterations": 2}))
    assert [a.key for a in read_ablations([first, second, first])] == ["anchors", "iterations"]


def test_bad_inputs_are_one_sentence(tmp_path):
    one = save_run(tmp_path / "one", summary_of({}))
    same = save_run(tmp_path / "same", summary_of({}))
    both = save_run(tmp_path / "both", summary_of({"anchors": 8}, {"iterations": 1}))
    other = save_run(tmp_path / "other", summary_of({}, timestep=5), dataset={"count": 8, "seed": 3})
    unscored = save_run(tmp_path / "unscored", summary_of({}))
    (unscored / "summary.json").unlink()
    for given, message in (
        ([one], f"nothing varies in {one}"),
        ([one, same], "nothing varies in these runs"),
        ([both], "iterations and anchors vary at once"),
        ([one, other], "timestep and data set vary at once"),
        ([tmp_path], "holds no run"),
        ([unscored], "score the run first"),
    ):
        status, output = command("curves", *given, "--out", tmp_path / "out")
        assert (status, output.count("\n")) == (2, 1)
        assert message in output
    assert not (tmp_path / "out").exists()


# --- curves -----------------------------------------------------------------------------------------------------------


def panels_of(figure):
    """{panel's title: its Axes}."""
    return {axes.get_title("left"): axes for axes in figure.axes}


def test_a_curve_is_what_the_summary_says():
    ablation = ablation_from(*({"threshold": t} for t in (1.1, 0.2, 0.9)))
    panels = panels_of(curves(ablation))
    assert list(panels) == ["accuracy (%)", "mIoU (%)", "segments per image"]
    expected = {"accuracy (%)": [22, 24, 20], "mIoU (%)": [11, 12, 10], "segments per image": [20, 40 / 3, 40]}
    for title, axes in panels.items():
        line, usual = axes.lines
        np.testing.assert_allclose(line.get_xdata(), [0.2, 0.9, 1.1])
        np.testing.assert_allclose(line.get_ydata(), expected[title])
        assert list(usual.get_xdata()) == [ablation.usual.value] * 2
        assert axes.get_xlabel() == "threshold τ (nats)"
    shaded = panels["accuracy (%)"].collections[0].get_paths()[0].vertices
    for corner in ([0.2, 12], [0.2, 27], [0.9, 14], [0.9, 29], [1.1, 10], [1.1, 25]):
        assert np.isclose(shaded, corner).all(1).any()


def test_the_mark_is_explained_and_left_out_where_there_is_none():
    figure = curves(ablation_from({"anchors": 4}, {"anchors": 32}))
    assert [text.get_text() for text in figure.legends[0].texts] == ["the default: 16"]
    relative = curves(ablation_from(*({"threshold": t, "relative": True} for t in (0.1, 0.2))))
    assert not relative.legends
    assert all(len(axes.lines) == 1 for axes in relative.axes)


def test_numbers_of_segments_that_explode_get_a_logarithmic_scale():
    values = ablation_from(*({"threshold": (i + 1) / 10} for i in range(25)))
    assert [axes.get_yscale() for axes in curves(values).axes] == ["linear", "linear", "log"]


def test_categories_are_rows_with_names_and_the_default_marked():
    figure = curves(ablation_from(*({"weights": w} for w in WEIGHTS)))
    accuracy = figure.axes[0]
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names[:3] == ["proportional", "equal", "64 only"]
    weights = [label.get_fontweight() for label in accuracy.get_yticklabels()]
    assert weights == ["bold"] + ["normal"] * 6
    np.testing.assert_allclose(accuracy.lines[0].get_xdata(), [20 + 2 * i for i in range(7)])
    assert list(accuracy.lines[0].get_ydata()) == list(range(7))
    low, high = accuracy.get_ylim()
    assert low > high  # the first on top
    assert accuracy.patches[0].get_y() == -0.5
    assert figure.legends[0].texts[0].get_text() == "the default: proportional"


# --- heat maps --------------------------------------------------------------------------------------------------------

LAYERS = [None, *([f"up_blocks.{i}.attentions.0.attn1"] for i in range(3))]


def test_two_settings_that_vary_are_a_heat_map():
    """Each value of the one with each of the other, in any order; numbers in the columns, rising."""
    tried = [{"timestep": t, "layers": layers} for t in (300, 50) for layers in LAYERS]
    crossed = ablation_from(*tried)
    assert isinstance(crossed, Crossed)
    assert (crossed.rows.key, crossed.columns.key, crossed.columns.values) == ("layers", "timestep", (50, 300))
    assert crossed.title == "scenes, 8 images; mini"
    assert (crossed.name, crossed.label) == ("layers-timestep", "attention layers and time step t")
    figure = drawn(crossed)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "layer 0", "layer 1", "layer 2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["50", "300"]
    cells = [[14.0 + i, 10.0 + i] for i in range(4)]  # mIoU rises by 1 % from setting to setting
    np.testing.assert_allclose(axes.collections[0].get_array(), cells)
    assert [text.get_text() for text in axes.texts] == [f"{value:.1f}" for row in cells for value in row]
    (frame,) = axes.patches
    assert frame.get_xy() == (0, 3)
    assert "<image" not in inline_svg(figure)


def test_what_is_not_scored_is_an_empty_cell():
    summary = summary_of(*({"anchors": a, "iterations": i} for a in (4, 8) for i in (1, 2)))
    for scores in summary["segmenters"].values():
        scores["miou"] = None
    (axes,) = drawn(ablation_in(summary)).axes
    assert {text.get_text() for text in axes.texts} == {""}
    assert not axes.patches


def test_two_settings_without_all_their_combinations_are_no_heat_map(tmp_path):
    for tried in ([(4, 1), (8, 2)], [(4, 1), (4, 2), (8, 1)], [(4, 1), (4, 2), (8, 1), (8, 2), (8, 2)]):
        assert ablation_from(*({"anchors": a, "iterations": i} for a, i in tried)) is None
    three = [{"anchors": a, "iterations": i, "threshold": i / 2 + a} for a in (4, 8) for i in (1, 2)]
    assert ablation_from(*three) is None


def test_layers_have_short_names_and_all_is_the_default(tmp_path):
    found = ablation_from(*({"layers": layers} for layers in [*LAYERS, [-1], ["up*", 3]]))
    assert [found.text(v) for v in found.values] == ["all", "layer 0", "layer 1", "layer 2", "-1", "up*, 3"]
    assert found.usual == Usual(None, "the default")
    assert "accuracy (%)" in panels_of(drawn(found))
    runs = [save_run(tmp_path / layers[0], summary_of({}, layers=layers)) for layers in (["up"], ["mid"])]
    (found,) = read_ablations(runs)
    assert (found.key, found.values) == ("layers", (("up",), ("mid",)))


def test_files_are_the_same_each_time_and_named_by_what_they_show(tmp_path):
    run = save_run(tmp_path / "run", summary_of({"refine": False}, {"refine": True}, model="Org/some model$"))
    status, output = command("curves", run, "--out", tmp_path / "out")
    path = tmp_path / "out" / "scenes-some-model-refine.svg"
    assert (status, output.strip()) == (0, str(path))
    assert file_name(read_ablations([run])[0]) == "scenes-some-model-refine"
    assert path.read_bytes() == svg(curves(read_ablations([run])[0]))
    assert command("curves", run, "--out", tmp_path / "one.png")[0] == 0
    assert Image.open(tmp_path / "one.png").width == 1660
    status, output = command("curves", run, "--out", tmp_path / "one.jpg")
    assert (status, output.count("\n")) == (2, 1)
    assert ".svg or .png" in output


def test_a_page_gets_the_curve_in_its_own_colours():
    text = inline_svg(curves(ablation_from({"anchors": 4}, {"anchors": 8}, model="<script>$x$")))
    assert text.startswith("<svg")
    assert "<script" not in text
    assert "&lt;script&gt;$x$" in text
    assert "var(--ink)" in text
    assert "#1c2024" not in text
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|url\((?!#)|@import|<image""", text)  # nothing from elsewhere
    assert len(text) < 60_000


# --- the method -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seg():
    return DiffSeg.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def photo():
    """uint8 [96, 144, 3]: a red and a blue half, a green square, noise."""
    values = np.random.default_rng(0).integers(0, 30, (96, 144, 3))
    values[:, :72] += [190, 40, 40]
    values[:, 72:] += [40, 40, 190]
    values[30:60, 90:120] = [60, 180, 60]
    return values.astype(np.uint8)


@pytest.fixture(scope="module")
def steps(seg, photo):
    return observe(seg, photo, seg.settings(0.5, anchors=4, size=160))  # maps of 16 x 24


def test_the_steps_are_those_of_the_segmentation(seg, photo, steps):
    np.testing.assert_array_equal(steps.labels, seg.segment(photo, steps.settings).labels)
    for n, proposals in enumerate(steps.proposals, start=1):
        torch.testing.assert_close(proposals, merge(steps.attention, 4, [0.5] * n))


def test_the_overview_shows_every_step(steps):
    figure = overview(steps)
    titles = [axes.get_title() for axes in figure.axes]
    sizes = sorted(steps.maps, reverse=True)
    assert len(figure.axes) == 1 + 3 * (len(sizes) + 1) + 1 + 3 + 1
    assert [t for t in titles if "×" in t] == [f"{w} × {h}" for h, w in sizes]  # noqa: RUF001
    counts = [int(t.split("\n")[1].split()[0]) for t in titles if t.startswith("iteration")]
    assert counts == [len(merge(steps.attention, 4, [0.5] * n)) for n in (1, 2, 3)]
    segments = len(np.unique(steps.labels))
    assert titles[-1] == f"result\n{segments} segment{'s' * (segments != 1)}"
    np.testing.assert_array_equal(figure.axes[-1].images[0].get_array(), overlay(steps.photo, steps.labels))
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert len(marks) == 3
    assert len({(m.get_xdata()[0], m.get_ydata()[0]) for m in marks}) == 3


def test_proposals_wear_the_colours_of_their_segments():
    result = np.array([[0, 0, 1, 1]])
    painted = shades(np.array([[0, 2, 3, 3]]), result)
    plain = shades(result, result)
    np.testing.assert_array_equal(painted[0, 0], plain[0, 0])
    np.testing.assert_array_equal(painted[0, 2:], plain[0, 2:])
    assert (painted[0, 1] < plain[0, 1]).any()  # the second piece of segment 0: the same hue, darker
    assert (painted[0, 1] <= plain[0, 1]).all()


def test_the_effect_of_the_weights(seg, photo, steps):
    found = by_weights(seg, photo, steps.settings)
    sizes = sorted(steps.maps, reverse=True)
    assert list(found) == ["proportional", "equal", *(f"{w} × {h} only" for h, w in sizes)]  # noqa: RUF001
    np.testing.assert_array_equal(found["proportional"], steps.labels)
    figure = weights_effect(photo, found)
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes]
    assert titles == ["photo", *found]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), overlay(photo, found["equal"]))


# --- galleries --------------------------------------------------------------------------------------------------------


def test_a_gallery_has_photos_above_segments_in_rows_as_wide_as_the_sheet():
    wide, square = np.full((50, 100, 3), 200, np.uint8), np.full((60, 60, 3), 90, np.uint8)
    shown = [Shown(p, np.zeros(p.shape[:2], int)) for p in (wide, square, square)]
    sheet = np.asarray(gallery(shown, columns=2, width=314, gap=14))
    assert sheet.shape == (2 * (100 + 4 + 100) + 14, 314, 3)
    assert (sheet[50, [0, 199]] == 200).all()
    assert (sheet[50, 200:214] == 255).all()
    assert (sheet[50, [214, 313]] == 90).all()
    assert (sheet[150, 100] != 200).any()  # the overlay
    assert (sheet[218:, 100:] == 255).all()  # the last row is not blown up
    named = Shown(wide, np.zeros((50, 100), int), ["dog"])
    assert (np.asarray(gallery([named], width=314)) != np.asarray(gallery(shown[:1], width=314))).any()


def test_a_gallery_on_the_command_line(photo, tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(photo).save(file)
    common = ["--size", 128, "--threshold", 0.5, "--device", "cpu"]
    status, output = command("gallery", file, "scene:1", "--out", tmp_path / "g.png", "--nouns", "dog,sky", *common)
    assert (status, output.strip()) == (0, str(tmp_path / "g.png"))
    assert Image.open(tmp_path / "g.png").width == 1660
    for arguments, message in (
        ([file, "--nouns", "own"], "say what"),
        ([file, "--nouns", "a", "--nouns", "b"], "2 times for 1 photos"),
        (["scene:x"], "whole number"),
        ([tmp_path / "none.png"], "no such file"),
        (["scene:1", "--out", tmp_path / "g.svg"], "written as .png"),
    ):
        status, output = command("gallery", *arguments, *common)
        assert (status, output.count("\n")) == (2, 1)
        assert message in output


def test_a_scenes_own_nouns():
    nouns, caption = read_nouns("own", "scene:4")
    assert nouns
    assert all(noun in caption for noun in nouns)
    assert read_nouns("dog, grass", "x.png") == (["dog", " grass"], None)


def test_a_picture_is_whole_or_not_there(tmp_path):
    path = tmp_path / "gone" / "x.png"
    with pytest.raises(OSError, match=re.escape(str(path))):
        save(Image.new("RGB", (4, 4)), Path(path))
