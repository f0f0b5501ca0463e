"""A threshold for a folder of photos: hand-made label maps whose best is known, the real command, presets."""

import csv
import math

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from diffseg import DiffSeg, presets
from diffseg.backbones.base import Backbone
from diffseg.cli import app
from diffseg.datasets.scenes import scene
from diffseg.errors import UserError
from diffseg.eval.metrics import Counts, statistics_of
from diffseg.eval.show.drawing import contact_sheet, threshold_curves
from diffseg.eval.show.tuned import as_csv, sentences, table_of
from diffseg.eval.tune import (
    Trial,
    best_of,
    best_of_draws,
    choose,
    label_files,
    read_labels,
    scores_of,
    sheet_columns,
    sheet_names,
    thresholds_around,
)

SMALL = ["--size", "128", "--anchors", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two scenes and their label maps in one folder."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        made = scene(4, i, 160)
        Image.fromarray(made.image[:120]).save(folder / f"scene{i}.png")
        truth = np.where(made.label < 0, 255, made.label)[:120].astype(np.uint8)
        Image.fromarray(truth).save(folder / f"scene{i}.label.png")
    return folder


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where presets go."""
    monkeypatch.setenv("DIFFSEG_PRESETS", str(tmp_path / "presets"))
    return tmp_path / "presets"


def run(*args: object):
    return CliRunner().invoke(app, [*map(str, args)])


# --- choosing, on label maps made by hand -----------------------------------------------------------------------------

HALVES = np.repeat([[0] * 4 + [1] * 4], 8, 0)
QUARTERS = HALVES + 2 * HALVES.T
WHOLE = np.zeros_like(HALVES)
TAUS = (0.5, 1.0, 2.0)


def tried(count: int, truths: int, sheet: int = 0) -> Trial:
    """Photos of two halves: quarters at the first threshold, right at the second, one segment at the third."""
    trial = Trial(TAUS, 2.0, [f"p{i}" for i in range(sheet)], 2)
    for i in range(count):
        found = iter([QUARTERS, HALVES, WHOLE])
        trial.add(f"p{i}", np.zeros((8, 8, 3), np.uint8), found, HALVES if i < truths else None)
    return trial


def test_the_best_is_the_one_that_was_made_right():
    tuning = tried(4, 3).result()
    scores = tuning.scores
    np.testing.assert_array_equal(tuning.median, [4, 2, 1])
    np.testing.assert_allclose(scores.miou, [0.5, 1.0, 0.25])  # a quarter of each; all; one class at a half, one at 0
    np.testing.assert_allclose(scores.accuracy, [0.5, 1.0, 0.5])
    assert (scores.photos, scores.best, scores.best_accuracy, scores.fewest) == (3, 1, 1, 1)
    assert scores.between == (1.0, 1.0)
    assert scores.share == 1
    assert scores.gain["difference"] == 0.75
    assert choose(tuning, None)[0] == 1.0
    assert choose(tuning, "1.3") == (1.3, "chosen by eye")
    said = " ".join(sentences(tuning))
    assert "tau 1, mIoU 100.0 %" in said
    assert "in 95 % of 2,000 draws of the photos it is this one" in said
    assert "3 labels are few" in said
    assert [row[-1] for row in table_of(tuning)[1]] == ["", "best, fewest", "default"]


def test_one_labelled_photo_says_nothing_of_others():
    scores = tried(1, 1).result().scores
    assert scores.between is None
    assert np.isnan(scores.miou_intervals).all()
    assert "one labelled photo" in sentences(tried(1, 1).result())[-1]


def test_no_labels_no_best():
    tuning = tried(2, 0).result()
    assert tuning.scores is None
    assert "the model's own tau 2 makes 1 segment (median)" in sentences(tuning)[0]
    with pytest.raises(UserError, match=r"--choose 0\.9"):
        choose(tuning, None)


def test_of_equal_ones_the_middle_is_the_best():
    values = np.array([[1, 0, 2.0], [1, 3, 2], [1, 3, 2], [1, 0, 1]])
    np.testing.assert_array_equal(best_of(values), [1, 1, 1])
    np.testing.assert_array_equal(best_of(values[1:]), [1, 0, 0])


def counted(right: int) -> Counts:
    """A photo of one class of 100 pixels, so many of them right: IoU right / 100."""
    return Counts(np.array([right]), np.array([0]), np.array([100 - right]), 100)


def test_two_photos_that_disagree_leave_it_open():
    """One is best at each threshold; drawn twice, either decides, and once each they are equal: the first of two."""
    drawn = best_of_draws([statistics_of([counted(90), counted(50)]), statistics_of([counted(50), counted(90)])], 4000)
    assert set(drawn) == {0, 1}
    assert math.isclose(np.mean(drawn == 1), 0.25, abs_tol=0.03)  # four standard errors


def test_fewest_is_the_largest_within_a_standard_error():
    """The best has IoU 0.80 with standard error 0.1155 (values 0.6, 0.8, 1): 0.70 is within it, 0.68 is not."""
    by_tau = [[60, 80, 100], [50, 70, 90], [48, 68, 88]]
    scores = scores_of(TAUS, 0, [statistics_of([counted(right) for right in row]) for row in by_tau])
    assert (scores.best, scores.fewest) == (0, 1)
    np.testing.assert_allclose(scores.miou, [0.8, 0.7, 0.68])


def test_usual_thresholds_hold_the_default():
    usual = thresholds_around(1.12)
    assert len(usual) == 17
    assert usual[10] == 1.12
    assert list(usual) == sorted(usual)
    assert thresholds_around(1.12, [2.0, 0.5]) == (0.5, 1.12, 2.0)
    with pytest.raises(UserError, match="above 0"):
        thresholds_around(1.12, [0])


def test_table_for_programs():
    rows = list(csv.DictReader(as_csv(tried(2, 1).result()).splitlines()))
    assert [(row["threshold"], row["median_segments"], row["p0"], row["p1"]) for row in rows] == [
        ("0.5", "4.0", "4", "4"), ("1.0", "2.0", "2", "2"), ("2.0", "1.0", "1", "1"),
    ]  # fmt: skip
    assert [float(row["miou"]) for row in rows] == [0.5, 1, 0.25]


def test_a_contact_sheet_is_bounded():
    names = [f"photo {i}" for i in range(100)]
    assert len(sheet_names(names)) == 12
    assert sheet_names(names)[0] == names[0]
    assert sheet_names(names)[-1] == names[-1]
    assert sheet_names(names[:3]) == names[:3]
    taus = thresholds_around(1.0)
    trial = Trial(taus, 1.0, ["a", "b"])
    large = np.arange(2000 * 1000).reshape(1000, 2000) % 1000 // 500
    for name in ("a", "b"):
        trial.add(name, np.zeros((1000, 2000, 3), np.uint8), iter([large] * len(taus)))
    tuning = trial.result()
    assert sheet_columns(tuning)[0] == 0
    assert {tuning.default, len(taus) - 1} <= set(sheet_columns(tuning))
    sheet = contact_sheet(tuning)
    assert sheet.width <= 8 * 250
    assert sheet.height <= 2 * 150 + 40
    assert threshold_curves(tuning).axes


# --- label maps -------------------------------------------------------------------------------------------------------


def test_label_maps_go_by_the_photo_and_its_values(tmp_path):
    for name, values in {"a.label.png": [[0, 7], [255, 7]], "b.png": [[3, 3], [0, 0]], "other.png": [[9, 9]]}.items():
        Image.fromarray(np.array(values, np.uint8)).save(tmp_path / name)
    files = label_files(
        {"a": tmp_path / "x" / "a.jpg", "b": tmp_path / "x" / "b.jpg", "c": tmp_path / "c.jpg"}, tmp_path
    )
    assert {name: path.name for name, path in files.items()} == {"a": "a.label.png", "b": "b.png"}
    maps, classes = read_labels(files, 255)
    assert classes == 3  # 0, 3, 7; no class 1 to 6 is there that segments could fall to
    np.testing.assert_array_equal(maps["a"], [[0, 2], [-1, 2]])
    np.testing.assert_array_equal(maps["b"], [[1, 1], [0, 0]])
    with pytest.raises(UserError, match="a label map for none of the 1 photos"):
        label_files({"b": tmp_path / "b.png"}, tmp_path)  # the photo is not its own label map


@pytest.mark.parametrize(
    ("values", "said"), [([[255, 255]], "every pixel is 255"), ([[2000, 0]], "2,000: values are numbers of classes")]
)
def test_useless_label_maps(tmp_path, values, said):
    Image.fromarray(np.array(values, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=said):
        read_labels({"a": tmp_path / "a.png"}, 255)


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_folder_with_labels_becomes_a_preset(photos, kept, tmp_path, monkeypatch):
    passes, observe = [], Backbone.observe
    monkeypatch.setattr(Backbone, "observe", lambda self, *a, **k: passes.append(1) or observe(self, *a, **k))
    out = tmp_path / "out"
    ran = run("tune", photos, "--labels", photos, "--thresholds", "0.3,0.6", "--save", "toy", "--out", out, *SMALL)
    assert ran.exit_code == 0, ran.output
    assert len(passes) == 2
    assert "2 labels are few" in ran.stdout
    assert sorted(path.name for path in out.iterdir()) == ["sheet.jpg", "tune.csv", "tune.svg"]
    table = {float(row["threshold"]): row for row in csv.DictReader((out / "tune.csv").read_text().splitlines())}
    assert list(table) == [0.3, 0.6, 1.12]
    seg = DiffSeg.from_pretrained("mini", device="cpu")
    for tau, row in table.items():  # what `diffseg segment` makes
        found = [len(seg(photos / f"scene{i}.png", threshold=tau, size=128, anchors=8)) for i in range(2)]
        assert found == [int(row["scene0"]), int(row["scene1"])]

    best = max(table, key=lambda tau: float(table[tau]["miou"]))
    toy = presets.load("toy")
    assert toy.model == "mini"
    assert toy.options == {
        "threshold": best, "anchors": 8, "timestep": seg.settings().timestep, "refine": False, "size": 128,
    }  # fmt: skip
    assert toy.made["photos"] == f"2 in {photos}"
    assert "toy" in run("presets").stdout

    def labels(*options: object) -> np.ndarray:
        assert run("segment", photos / "scene0.png", "--out", out, "--device", "cpu", *options).exit_code == 0
        return np.asarray(Image.open(out / "scene0.labels.png"))

    np.testing.assert_array_equal(labels("--preset", "toy"), labels(*SMALL, "--threshold", best))
    np.testing.assert_array_equal(labels("--preset", "toy"), seg(photos / "scene0.png", **toy.options).labels)
    record = yaml.safe_load((out / "scene0.json").read_text())
    assert record["settings"]["threshold"] == [best] * 3
    labels("--preset", "toy", "--model", "mini", "--threshold", "0.9,2", "--size", "64")  # what is said wins
    record = yaml.safe_load((out / "scene0.json").read_text())
    assert (record["settings"]["threshold"], record["settings"]["size"]) == ([0.9, 2.0], 64)
    assert record["settings"]["anchors"] == 8
    labelled = run("label", photos / "scene0.png", "--nouns", "a,b", "--preset", "toy", "--out", out, "--device", "cpu")
    assert labelled.exit_code == 0
    assert yaml.safe_load((out / "scene0.json").read_text())["settings"]["size"] == 128


def test_without_labels_a_look_decides(photos, kept, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.open(photos / "scene0.png").save(tmp_path / "scene0.png")
    ran = run("tune", tmp_path, "--thresholds", "0.6", "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 1  # one photo could not be used
    assert "broken.png" in ran.stderr
    assert "keep one with --choose TAU --save NAME" in ran.stdout
    chosen = run("tune", tmp_path, "--choose", "0.7", "--save", "seen", *SMALL)
    assert chosen.exit_code == 0
    assert presets.load("seen").options["threshold"] == 0.7
    assert presets.load("seen").made["why"] == "chosen by eye for 2 photos"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--save", "x"], "without labels nothing says"),
        (["--choose", "0.9"], "give both, or leave both out"),
        (["--choose", "most", "--save", "x"], "takes best, fewest or a threshold"),
        (["--choose", "0.9", "--save", "a/b"], "cannot be called 'a/b'"),
        (["--thresholds", "0.5,x"], "--thresholds takes numbers"),
        (["--thresholds", "0.5,-1"], "above 0"),
        (["--labels", "nowhere"], "no folder nowhere"),
    ],
)
def test_requests_that_make_no_sense(photos, kept, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    ran = run("tune", photos, *options, *SMALL)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_label_map_of_another_size(photos, tmp_path):
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "scene0.png")
    ran = run("tune", photos, "--labels", tmp_path, "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 2
    assert "10 x 10 pixels and its photo, upright, 160 x 120" in ran.stderr


# --- presets ----------------------------------------------------------------------------------------------------------


def test_presets_come_back_as_they_were(kept):
    assert presets.names() == []
    first = presets.Preset("mini", None, {"threshold": [0.5, 0.9], "weights": [1.0, 0.5], "refine": True}, {"by": "me"})
    presets.save("höhle", first)
    presets.save("b", presets.Preset("owner/model", "1234567", {"threshold": 1}))
    assert presets.names() == ["b", "höhle"]
    assert presets.load("höhle") == first
    assert presets.load("b") == presets.Preset("owner/model", "1234567", {"threshold": 1})


def test_where_presets_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("DIFFSEG_PRESETS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert presets.folder() == tmp_path / "diffseg" / "presets"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert presets.folder() == tmp_path / ".config" / "diffseg" / "presets"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("threshold: 1", "names no model"),
        ("[", "is no YAML"),
        ("model: mini\nthresold: 1", "did you mean threshold"),
        ("model: mini\nthreshold: high", "threshold must be a number or a list of numbers, got 'high'"),
        ("model: mini\nrefine: 1", "refine must be true or false"),
        ("model: mini\nrevision: 12", "revision must be a text"),
        ("model: mini\nsize: 5", "size must be 64 to 4096"),
    ],
)
def test_a_damaged_preset_is_one_sentence(kept, photos, content, said):
    kept.mkdir()
    (kept / "p.yaml").write_text(content)
    ran = run("segment", photos / "scene0.png", "--preset", "p")
    assert ran.exit_code == 2
    assert said in ran.stderr


def test_presets_that_do_not_fit(kept, photos):
    assert "no presets in" in run("presets").stdout
    presets.save("holiday", presets.Preset("owner/model", options={"threshold": 0.5}))
    unknown = run("segment", photos / "scene0.png", "--preset", "holidays")
    assert "no preset 'holidays'" in unknown.stderr
    assert "did you mean holiday?; known: holiday" in unknown.stderr
    other = run("segment", photos / "scene0.png", "--model", "mini", "--preset", "holiday")
    assert other.exit_code == 2
    assert "is for the model owner/model, not for mini" in other.stderr
    assert run("presets").exit_code == 0
