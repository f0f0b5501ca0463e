"""A number is never older than what made it: data, truth, code, settings. And a bug is never told as advice."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from diffseg import DiffSeg, cli, files
from diffseg.backbones.base import EMBEDDED
from diffseg.datasets import cityscapes, coco_stuff
from diffseg.datasets.base import DataError
from diffseg.datasets.cityscapes import Cityscapes
from diffseg.datasets.coco_stuff import CocoStuff27
from diffseg.datasets.folder import Folder
from diffseg.datasets.scenes import Scenes, scene
from diffseg.errors import UserError
from diffseg.eval import evaluation, score
from diffseg.eval.runs import commit_of, find_run
from diffseg.eval.show import compare
from tests.fresh import ROOT
from tests.test_eval import evaluated

WHOLE = ["~segmenters.diffseg", "+segmenter@segmenters.whole=whole", "device=cpu", "workers=0"]  # needs no model
SCENES = [*WHOLE, "dataset.count=3", "dataset.size=64"]
BUG = "np.ones(3) + np.ones(4)"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def save(path, pixels, level=0):
    """A PNG; at level 0 its size in bytes follows from its shape alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, compress_level=level)


def settle(folder):
    """As if all files were an hour old: what is known of them is then remembered."""
    for path in folder.rglob("*.png"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))


@pytest.fixture
def photos(tmp_path):
    """A folder data set of three scenes with labels, all photos, and all labels, of one size in bytes."""
    for i in range(3):
        made = scene(5, i, 64)
        save(tmp_path / "photos" / f"p{i}.png", made.image)
        save(tmp_path / "photos" / f"p{i}.label.png", made.label)
    settle(tmp_path / "photos")
    return tmp_path / "photos"


def folder_data(root):
    return [
        "dataset=folder",
        f"dataset.root={root}",
        f"dataset.classes=[{','.join(coco_stuff.CLASSES)}]",
        "dataset.size=64",
    ]


def on(photos, *overrides, methods=WHOLE, runs=None):
    return evaluated(runs or photos.parent / "runs", *folder_data(photos), *methods, *overrides)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*/labels/*.png")}


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 9], ids=["same size in bytes", "another size"])
@pytest.mark.parametrize("masks", [False, True], ids=["predicted", "masks"])
def test_a_replaced_truth_gives_new_scores_and_no_new_predictions(photos, level, masks, capfd):
    methods = WHOLE
    if masks:
        for i in range(3):
            save(photos.parent / "masks" / f"p{i}.png", np.zeros((64, 64)))
        methods = ["workers=0", f"labels={photos.parent / 'masks'}"]
    before = on(photos, methods=methods)
    maps, size = stamps(before["folder"]), (photos / "p1.label.png").stat().st_size
    save(photos / "p1.label.png", np.full((64, 64), 3), level)
    assert ((photos / "p1.label.png").stat().st_size == size) is (level == 0)
    capfd.readouterr()
    after = on(photos, methods=methods)
    said = capfd.readouterr().err
    assert ("predict: nothing to do, every label map is there" in said) is not masks
    assert "score: nothing to do" not in said
    assert (after["folder"], stamps(after["folder"])) == (before["folder"], maps)
    (scores,) = after["segmenters"].values()
    assert scores["iou"]["furniture-things"] > 0
    assert scores != next(iter(before["segmenters"].values()))
    assert after["segmenters"] == on(photos, methods=methods, runs=photos.parent / "elsewhere")["segmenters"]
    assert json.loads((Path(after["folder"]) / "summary.json").read_text())["segmenters"] == after["segmenters"]


def test_a_replaced_label_map_is_noticed(photos):
    path = Path(on(photos)["folder"]) / "whole" / "labels" / "p2.png"
    save(path, np.zeros((64, 64)))
    before, size = on(photos), path.stat().st_size
    save(path, np.repeat([0, 1], 32)[:, None].repeat(64, 1))
    assert path.stat().st_size == size
    after = on(photos)
    assert after["segmenters"]["whole"]["segments"] == pytest.approx(4 / 3)
    assert after["segmenters"]["whole"]["miou"] != before["segmenters"]["whole"]["miou"]
    save(path, np.zeros((64, 64)))
    assert on(photos) == before


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package, to edit."""
    place = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "diffseg", place / "diffseg", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (place / "diffseg" / "mini" / "weights").symlink_to(EMBEDDED["mini"])
    return place


@pytest.fixture
def edited(package):
    """A function that edits a source of the copy until the test ends: (its path, text, what replaces it)."""
    whole: dict[Path, str] = {}

    def edit(name, old="", new="# edited\n"):
        path = package / "diffseg" / name
        text = whole.setdefault(path, path.read_text())
        assert text.count(old) >= 1
        path.write_text(text.replace(old, new, 1) if old else text + new)

    def undo():
        for path, text in whole.items():
            path.write_text(text)

    edit.undo = undo
    yield edit
    undo()


# What is edited, and the number that then is another: (protocol, metric).
METRICS = {
    "eval/protocols.py": ('"accuracy": _ratio(', '"accuracy": 0.5 * _ratio(', "diffseg", "accuracy"),
    "eval/metrics.py": ("maximize=True", "maximize=False", "diffseg", "accuracy"),
    "eval/regions.py": ('{"covered": sum(', '{"covered": 0.5 * sum(', "regions", "covering"),
    "eval/score.py": ("np.where(truth < 0,", "np.where(truth <= 12,", "regions", "covering"),
    "eval/evaluation.py": ("map(len).mean()", "map(len).sum()", "", "segments"),
}


def test_changed_metrics_give_new_numbers_of_old_predictions(commands, package, edited, tmp_path):
    """Each edit of the code gives another number from the same label maps; without it the first one is there again."""
    command = [*SCENES, "runs=runs", "protocol=[diffseg,regions]"]

    def numbers():
        ran = commands(*command, cwd=tmp_path, path=[package])
        assert ran.returncode == 0, ran.stderr
        (folder,) = (tmp_path / "runs").iterdir()
        summary = json.loads((folder / "summary.json").read_text())
        protocols = {**summary["protocols"], "": summary["segmenters"]}
        wanted = {(rule, metric): protocols[rule]["whole"][metric] for _, _, rule, metric in METRICS.values()}
        return wanted, ran.stderr

    first, said = numbers()
    maps = stamps(tmp_path)
    assert "predict: 3 images segmented" in said
    for path, (old, new, rule, metric) in METRICS.items():
        edited(path, old, new)
        changed, said = numbers()
        assert "predict: nothing to do" in said
        assert "score: nothing to do" not in said, path
        assert changed[rule, metric] != first[rule, metric], path
        edited.undo()
    again, said = numbers()
    assert again == first
    assert "score: nothing to do" not in said
    assert numbers()[1].count("nothing to do") == 2
    assert stamps(tmp_path) == maps


def reference(tmp_path, **expected):
    tolerance = "1e-6"  # YAML takes this for text
    rows = [{"segmenter": "whole", "metric": m, "value": v, "tolerance": tolerance} for m, v in expected.items()]
    path = tmp_path / "expected.yaml"
    path.write_text(yaml.safe_dump({"run": {"dataset": "scenes", "images": 3}, "expected": rows}))
    return f"reference={path}"


def tamper(summary):
    """Other numbers in summary.json and other counts in images.parquet, under the hashes of the right ones."""
    run = find_run(Path(summary["folder"]))
    images, facts = score.read_counts(run, "whole")
    images["pixels"] = [np.sort(pixels)[::-1] for pixels in images["pixels"]]
    score.write_counts(run, score.Counts({"whole": images}, {}), {"whole": facts["counted_with"]})
    stored = json.loads(run.summary.read_text())
    for scores in (stored["segmenters"], *stored["protocols"].values()):
        scores["whole"] |= {"accuracy": 0.99, "miou": 0.99}
    run.summary.write_text(json.dumps(stored))


@pytest.mark.parametrize("before", ["", "score,", "report,", "predict,score,report,"])
def test_a_check_believes_nothing_on_disk(tmp_path, capfd, before):
    command = [*SCENES, f"runs={tmp_path / 'runs'}"]
    summary = evaluated(tmp_path / "runs", *SCENES)
    right = {metric: summary["segmenters"]["whole"][metric] for metric in ("accuracy", "miou")}
    tamper(summary)
    kept = evaluated(tmp_path / "runs", *SCENES)
    assert kept["segmenters"]["whole"]["miou"] == 0.99  # nobody asked: the file says it is of just this
    stages = f"stages=[{before}check]"
    capfd.readouterr()
    with pytest.raises(evaluation.MovedError, match="2 of 2 metrics moved"):
        evaluated(tmp_path / "runs", *command, stages, reference(tmp_path, accuracy=0.99, miou=0.99))
    assert capfd.readouterr().out.count("MOVED") == 2
    assert evaluated(tmp_path / "runs", *SCENES) == summary  # and what it has counted is kept
    tamper(summary)
    evaluated(tmp_path / "runs", *command, stages, reference(tmp_path, **right))
    assert capfd.readouterr().out.count("ok") >= 2
    page = (Path(summary["folder"]) / "report.html").read_text()
    assert "99.0" not in page


def test_a_check_that_fails_ends_with_status_1(commands, tmp_path):
    command = [*SCENES, "runs=runs", "stages=[predict,score,check]", reference(tmp_path, miou=0.99)]
    tamper(evaluated(tmp_path / "runs", *SCENES))
    ran = commands(*command, cwd=tmp_path)
    assert ran.returncode == 1
    assert ran.stdout.count("MOVED") == 1
    assert "diffseg-eval: 1 of 1 metrics moved by more than their tolerance" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_numbers_of_the_version_before_are_made_anew_or_refused(photos, capfd):
    """images.parquet and summary.json as they were before counting and scoring were parted."""
    right = on(photos, "protocol=[diffseg]")
    run = find_run(Path(right["folder"]))
    classes = len(coco_stuff.CLASSES)
    old = {
        "key": ["p0", "p1", "p2"], "pixels": [4096] * 3, "segments": [1] * 3,
        "accuracy": [0.99] * 3, "miou": [0.99] * 3,
        "tp": [[1] * classes] * 3, "fp": [[0] * classes] * 3, "fn": [[0] * classes] * 3,
        "histogram": [[1] * classes**2] * 3, "columns": [classes] * 3,
    }  # fmt: skip
    numbers = {"accuracy": 0.99, "miou": 0.99, "interval": {"accuracy": [0.9, 1], "miou": [0.9, 1]}, "ties": [0.9, 1]}
    numbers |= {"settings": {}, "segments": 1.0, "images": 3, "iou": dict.fromkeys(coco_stuff.CLASSES, 0.99)}
    facts = {"name": "folder", "note": "", "classes": list(coco_stuff.CLASSES)}
    summary = {"run": run.name, "scored_with": "0123456789ab", "dataset": facts, "model": "mini", "timestep": 300}
    summary |= {"size": 64, "images": 3, "skipped": {}, "segmenters": {"whole": numbers}}

    def as_before():
        pd.DataFrame(old).to_parquet(run.images("whole"))
        run.summary.write_text(json.dumps(summary))

    as_before()
    with pytest.raises(
        DataError, match=r"summary.json is damaged, or of an earlier version of diffseg \(.*\): score the run again"
    ):
        score.read_summary(run)
    with pytest.raises(
        DataError, match=r"images.parquet is damaged, or was counted by an earlier version of diffseg: score the run"
    ):
        score.read_counts(run, "whole")
    with pytest.raises(DataError, match=r"^[^\n]*summary.json is damaged, or of an earlier version[^\n]*$"):
        on(photos, "stages=[report]")
    assert on(photos) == right
    as_before()
    (run.summary).unlink()
    assert on(photos) == right
    shutil.copytree(run.folder, run.folder.with_name("other"))
    as_before()
    with pytest.raises(UserError, match=r"^[^\n]*was counted by an earlier version of diffseg: score the run again$"):
        compare.side(run.folder, None)


def test_what_was_left_out_counts_again_once_it_is_mended(photos):
    whole = on(photos, "on_error=skip")
    assert (whole["images"], whole["skipped"]) == (3, {})
    folder, label = Path(whole["folder"]), photos / "p1.label.png"
    content = label.read_bytes()
    label.write_bytes(content[:2000])
    without = on(photos, "on_error=skip")
    assert (without["folder"], without["images"], list(without["skipped"])) == (str(folder), 2, ["p1"])
    label.write_bytes(content)
    assert on(photos, "on_error=skip") == whole

    (folder / "errors").mkdir()
    (folder / "errors" / "p1.txt").write_text("p1.png could not be read")
    for path in folder.rglob("labels/*.png"):
        path.unlink()
    on(photos, "on_error=skip", "shard=[0,2]", "stages=[predict]")  # p0 and p2
    without = on(photos, "on_error=skip", "stages=[score,report]")
    assert (without["images"], without["skipped"]) == (2, {"p1": "p1.png could not be read"})
    assert on(photos, "on_error=skip") == whole
    assert not list((folder / "errors").iterdir())


# --- identity ---------------------------------------------------------------------------------------------------------

UNRELATED = [
    "datasets/folder.py", "datasets/cityscapes.py", "diffseg/methods/clustering.py", "diffseg/methods/controls.py",
    "eval/score.py", "eval/metrics.py", "eval/protocols.py", "eval/evaluation.py", "eval/run.py", "eval/show/report.py",
    "diffseg/cli.py", "diffseg/semantic.py", "diffseg/captions.py", "diffseg/__init__.py",
]  # fmt: skip
RELATED = [
    "diffseg/methods/merging.py", "diffseg/segmentation.py", "diffseg/backbones/diffusion.py", "datasets/scenes.py",
    "datasets/scenery/things.py", "eval/predict.py",
]  # fmt: skip


def test_a_run_is_its_own_code_and_no_other(commands, package, edited, tmp_path):
    def name():
        ran = commands("dataset.count=3", "stages=[score]", "runs=runs", cwd=tmp_path, path=[package])
        assert ran.returncode == 2
        return re.fullmatch(r"diffseg-eval: there is no run runs/(\S+): predict first, .*\n", ran.stderr).group(1)

    first = name()
    new = [package / "diffseg" / f"{place}/new.py" for place in ("datasets", "methods", "backbones", "eval")]
    for path in new:
        path.write_text("")
    for path in UNRELATED:
        edited(path.removeprefix("diffseg/"))
    assert name() == first
    names = [first]
    for path in RELATED:  # one edit after the other
        edited(path.removeprefix("diffseg/"))
        names.append(name())
    assert len(set(names)) == 1 + len(RELATED)
    edited.undo()
    assert name() == first
    for path in new:
        path.unlink()


MINE = """
import numpy as np

import helper
from diffseg.attention import Needs
from diffseg.methods.base import Segmenter


class Mine(Segmenter):
    needs = Needs()

    def segment(self, image):
        labels = np.zeros(image.size, int)
        labels[:, helper.COLUMN :] = 1
        return labels
"""


def test_somebodys_own_segmenter_is_predicted_anew_when_its_code_changes(commands, tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    command = [*SCENES[1:], "~segmenters.diffseg", "runs=runs", "+segmenters.mine._target_=mine.Mine"]
    command.remove("+segmenter@segmenters.whole=whole")
    steps = [
        ({"mine.py": MINE, "helper.py": "COLUMN = 16\n"}, True, (0, 1, 16)),
        ({"unrelated.py": "COLUMN = 5\n"}, False, (0, 1, 16)),
        ({"mine.py": MINE.replace("] = 1\n", "] = 7\n# seven\n")}, True, (0, 7, 16)),
        ({"helper.py": "COLUMN = 32  # half\n"}, True, (0, 7, 32)),
        ({"mine.py": MINE, "helper.py": "COLUMN = 16\n"}, False, (0, 1, 16)),
    ]
    names = set()
    for sources, is_new, (left, right, column) in steps:
        for name, text in sources.items():
            (code / name).write_text(text)
        ran = commands(*command, cwd=tmp_path, path=[code])
        assert ran.returncode == 0, ran.stderr
        assert ("predict: 3 images segmented" in ran.stderr) is is_new
        assert ("predict: nothing to do" in ran.stderr) is not is_new
        folder = tmp_path / re.search(r"-> (runs/\S+)", ran.stderr).group(1)
        names.add(folder.name)
        expected = np.where(np.arange(64) < column, left, right)[None].repeat(64, 0)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "mine" / "labels" / "000001.png")), expected)
    assert len(names) == 3


# --- where things lie -------------------------------------------------------------------------------------------------


def test_data_is_what_it_holds_not_where_it_lies(photos, monkeypatch, capfd):
    monkeypatch.chdir(photos.parent)
    shutil.copytree(photos, photos.parent / "else" / "where")
    runs = photos.parent / "runs"
    first = on(photos, runs=runs)
    for root in ("photos", "./photos", "else/../photos", "else/where", photos):
        capfd.readouterr()
        assert on(Path(), f"dataset.root={root}", runs=runs) == first
        assert "predict: nothing to do" in capfd.readouterr().err
    assert len(list(runs.iterdir())) == 1


def test_another_photo_of_the_same_size_in_bytes_is_another_run(photos):
    first, size = on(photos), (photos / "p1.png").stat().st_size
    save(photos / "p1.png", scene(6, 1, 64).image)
    assert (photos / "p1.png").stat().st_size == size
    second = on(photos)
    assert second["folder"] != first["folder"]
    save(photos / "p1.png", scene(5, 1, 64).image)
    assert on(photos) == first


def test_a_model_is_what_its_files_hold_not_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("models/net", "else/where/net"):
        shutil.copytree(EMBEDDED["mini"], tmp_path / place)
    names = {
        evaluated(tmp_path / "runs", *SCENES, "model=pretrained", f"model.name={name}")["folder"]
        for name in ("models/net", "./models/net", f"{tmp_path}/models/net", "else/where/net", "models/net/")
    }
    assert len(names) == 1
    assert Path(names.pop()).name.startswith("scenes-3-net-whole-")
    settings = tmp_path / "models" / "net" / "diffseg.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "threshold": 7}))
    evaluated(tmp_path / "runs", *SCENES, "model=pretrained", "model.name=models/net")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_masks_are_what_they_hold_not_where_they_lie(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    for i in range(3):
        save(photos.parent / "masks" / f"p{i}.png", np.full((64, 64), i))
    shutil.copytree("masks", "else/where")
    runs = photos.parent / "runs"
    first = on(photos, "labels=masks", methods=["workers=0"])
    for folder in ("./masks", photos.parent / "masks", "else/where"):
        assert on(photos, f"labels={folder}", methods=["workers=0"]) == first
    assert len(list(runs.iterdir())) == 1
    save(photos.parent / "masks" / "p1.png", np.repeat([0, 1], 32)[None].repeat(64, 0))
    second = on(photos, "labels=masks", methods=["workers=0"])
    assert len(list(runs.iterdir())) == 2
    assert second["segmenters"]["labels"]["segments"] == pytest.approx(4 / 3)


# --- files ------------------------------------------------------------------------------------------------------------


def git(folder, *arguments):
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    ran = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path):
    installed = tmp_path / "project" / "lib"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("A = 1\n")
    assert commit_of(installed) is None
    git(tmp_path / "project", "init")
    assert commit_of(tmp_path / "project") is None  # no commit yet
    git(tmp_path / "project", "add", ".")
    git(tmp_path / "project", "commit", "-m", "first")
    commit = git(tmp_path / "project", "rev-parse", "HEAD")
    assert commit_of(tmp_path / "project") == commit
    assert commit_of(installed) is None  # inside another project's checkout
    (tmp_path / "link").symlink_to(tmp_path / "project")
    assert commit_of(tmp_path / "link") == commit
    (tmp_path / "project" / "untracked.txt").write_text("")
    assert commit_of(tmp_path / "project") == commit
    (installed / "module.py").write_text("A = 2\n")
    assert commit_of(tmp_path / "project") == f"{commit}+"


def partial_name(folder):
    """The name under which a file is being written."""
    names = []
    files.write(folder / "whole.txt", lambda file: names.append(Path(file.name).name))
    return names[0]


def test_temporary_names_differ_between_machines_and_calls(tmp_path, monkeypatch):
    """Two machines that share a disk may run processes of one number."""
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    names = [partial_name(tmp_path), partial_name(tmp_path)]
    monkeypatch.setattr(socket, "gethostname", lambda: "second")
    names.append(partial_name(tmp_path))
    assert len(set(names)) == 3
    assert [name.split("-")[1] for name in names] == [str(os.getpid())] * 3
    assert names[0].split("-")[0] == names[1].split("-")[0] != names[2].split("-")[0]
    assert [p.name for p in tmp_path.iterdir()] == ["whole.txt"]


def test_only_what_nobody_writes_is_removed(tmp_path, monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = partial_name(tmp_path)
    dead = mine.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    elsewhere = partial_name(tmp_path).replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    monkeypatch.undo()
    folder = tmp_path / "method" / "labels"
    old = elsewhere.replace(".partial", "0.partial")
    for name in (mine, dead, elsewhere, old, "p0.png", "photo.partial"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("half")
    day_ago = (folder / old).stat().st_mtime - 86_500
    for name in (old, "p0.png"):
        os.utime(folder / name, (day_ago, day_ago))
    files.remove_abandoned(tmp_path)
    assert {p.name for p in folder.iterdir()} == {mine, elsewhere, "p0.png", "photo.partial"}


def test_a_file_is_written_whole_or_left_as_it_was(tmp_path):
    files.write(tmp_path / ("k" * 236 + ".png"), "of 240 characters")
    (tmp_path / ("k" * 236 + ".png")).unlink()
    path = tmp_path / ("k" * 251 + ".png")  # as long as a name may be
    files.write(path, "first")
    assert path.read_text() == "first"

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=rf"cannot write {path} \(No space left on device\); what is finished is kept"):
        files.write(path, full)

    def wrong(file):
        file.write(b"half")
        raise ValueError("no label map")

    with pytest.raises(ValueError, match="no label map"):
        files.write(path, wrong)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    files.write(path, b"second")
    assert path.read_text() == "second"
    with pytest.raises(OSError, match=r"File name too long"):
        files.write(tmp_path / ("k" * 300), "")


# --- bugs and sentences -----------------------------------------------------------------------------------------------

SEGMENTERS = f"""
import numpy as np

from diffseg.attention import Needs
from diffseg.errors import UserError
from diffseg.methods.base import Segmenter


class Segments(Segmenter):
    needs = Needs()

    def segment(self, image):
        return {BUG}


class Starts(Segments):
    def __init__(self):
        {BUG}


class Told(Segments):
    def segment(self, image):
        raise UserError("the moon is not full: wait")


class Begins(Segments):
    def __init__(self, moon=0.5):
        raise UserError(f"the moon must be full, got {{moon}}")
"""
DATA = f"""
import numpy as np

from diffseg.datasets.scenes import Scenes
from diffseg.errors import UserError


class Photo(Scenes):
    def photo(self, key):
        return {BUG}


class Label(Scenes):
    def raw_label(self, key):
        return {BUG}


class Told(Scenes):
    def photo(self, key):
        raise UserError(f"the lens was covered at {{key}}: take off its cap")


class Gone(Scenes):
    def photo(self, key):
        with open("nowhere.raw") as file:
            return file.read()


class ToldLabel(Scenes):
    def raw_label(self, key):
        raise UserError(f"nobody has labelled {{key}}: do so")
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder with somebody's own classes, right and wrong."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "segmenters.py").write_text(SEGMENTERS)
    (folder / "data.py").write_text(DATA)
    (folder / "broken.py").write_text(f"import numpy as np\n\n{BUG}\n")
    (folder / "misspelt.py").write_text("import numpy as np\n\nnp.onse(3)\n")
    (folder / "lacking.py").write_text("import a_library_that_nobody_has\n")
    return folder


def segmenter(target):
    return [*SCENES, "+segmenters.mine._target_=" + target]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (segmenter("segmenters.Segments"), "in segment"),
        (segmenter("segmenters.Starts"), "in __init__"),
        (segmenter("broken.Mine"), "broken.py"),
        ([*SCENES, "dataset._target_=data.Photo"], "in photo"),
        ([*SCENES, "dataset._target_=data.Photo", "workers=1", "on_error=skip"], "in photo"),
        ([*SCENES, "dataset._target_=data.Label", "on_error=skip"], "in raw_label"),
        (["-m", "dataset.seed=2,3", *segmenter("segmenters.Segments")], "in segment"),
    ],
    ids=lambda x: " ".join(x[len(SCENES) :]) if isinstance(x, list) else "",
)
def test_a_bug_keeps_its_traceback(commands, others, tmp_path, overrides, line):
    ran = commands(*overrides, "runs=runs", cwd=tmp_path, path=[others])
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()
    assert last[-1] == "ValueError: operands could not be broadcast together with shapes (3,) (4,) "[:-1]
    assert any(line in text for text in last)
    assert any(BUG in text for text in last)
    assert "diffseg-eval: " not in ran.stderr


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (segmenter("segmenters.Told"), "the moon is not full: wait"),
        (
            [*segmenter("segmenters.Begins"), "+segmenters.mine.moon=0.2"],
            "segmenters.mine: the moon must be full, got 0.2",
        ),
        (
            [*segmenter("segmenters.Begins"), "+segmenters.mine.sun=1"],
            "segmenters.mine has no setting sun; it takes moon",
        ),
        (segmenter("segmenters.Mine"), "segmenters.mine: {others}/segmenters.py has no Mine"),
        (
            segmenter("nowhere.Mine"),
            "segmenters.mine: there is no nowhere.Mine to import (No module named 'nowhere'): looked in the current "
            f"folder {{here}}, on PYTHONPATH and among the installed packages of {sys.prefix}",
        ),
        (
            segmenter("lacking.Mine"),
            "segmenters.mine: there is no lacking.Mine to import (No module named 'a_library_that_nobody_has')",
        ),
        (
            [*SCENES, "dataset._target_=data.Told", "workers=1"],
            "the lens was covered at 000000: take off its cap (or leave such images out with on_error=skip)",
        ),
        (
            [*SCENES, "dataset._target_=data.Gone", "workers=1"],
            "[Errno 2] No such file or directory: 'nowhere.raw' (or leave such images out with on_error=skip)",
        ),
        (
            [*SCENES, "dataset._target_=data.ToldLabel", "workers=1"],
            "3 of 3 images cannot be scored (leave them out with on_error=skip):",
        ),
    ],
    ids=lambda x: " ".join(x[len(SCENES) :]) if isinstance(x, list) else "",
)
def test_what_a_user_can_mend_is_one_sentence(commands, others, tmp_path, overrides, sentence):
    ran = commands(*overrides, "runs=runs", cwd=tmp_path, path=[others])
    assert (ran.returncode, ran.stdout) == (2, "")
    told = [line for line in ran.stderr.splitlines() if line.startswith("diffseg-eval: ")]
    assert told == [f"diffseg-eval: {sentence.format(others=others, here=tmp_path)}"]
    assert "Traceback" not in ran.stderr


def test_the_command_for_photos_tells_bugs_from_sentences(photos, monkeypatch):
    """In the method's place: a bug, and what a user can mend."""
    model = DiffSeg.from_pretrained("mini", device="cpu")
    monkeypatch.setattr(DiffSeg, "from_pretrained", lambda *args, **options: model)

    def told(error):
        def segment(self, photo, settings):
            raise error

        monkeypatch.setattr(DiffSeg, "segment", segment)
        command = ["segment", str(photos / "p0.png"), "--out", str(photos.parent / "out"), "--device", "cpu"]
        return CliRunner().invoke(cli.app, command)

    bug = ValueError("operands could not be broadcast together")
    ran = told(bug)
    assert (ran.exit_code, ran.exception) == (1, bug)
    ran = told(UserError("the moon is not full: wait"))
    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[1:] == ["diffseg: the moon is not full: wait"]
    ran = told(OSError(28, "No space left on device"))
    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[1:] == ["diffseg: [Errno 28] No space left on device"]


# --- a part of the images ---------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """Five images in COCO's layout; the fourth is not of the split."""
    for i in range(1, 6):
        values = np.full((360, 370), 16 if i == 4 else 123)
        save(tmp_path / "coco" / "stuffthingmaps" / "val2017" / f"{i:012d}.png", values, 9)
        (tmp_path / "coco" / "val2017").mkdir(exist_ok=True)
        Image.new("RGB", (370, 360), (0, 40 * i, 0)).save(tmp_path / "coco" / "val2017" / f"{i:012d}.jpg")
    return tmp_path / "coco"


@pytest.fixture
def streets(tmp_path):
    """Three frames in Cityscapes' layout, of two cities."""
    for key in ("bonn/bonn_000000_000019", "bonn/bonn_000001_000019", "ulm/ulm_000000_000019"):
        save(tmp_path / "streets" / "leftImg8bit" / "val" / f"{key}_leftImg8bit.png", np.zeros((32, 64, 3)))
        save(tmp_path / "streets" / "gtFine" / "val" / f"{key}_gtFine_labelIds.png", np.full((32, 64), 7))
    return tmp_path / "streets"


PARTS = {
    "scenes": (
        lambda r, **part: Scenes(**{"count": 3, "size": 64, **part}),
        [f"{i:06d}" for i in range(3)],
        "",
        "3 images",
    ),
    "folder": (lambda r, **part: Folder(r["photos"], size=64, **part), ["p0", "p1", "p2"], "", "3 images"),
    "coco": (
        lambda r, **part: CocoStuff27(r["coco"], **part),
        [f"{i:012d}" for i in (1, 2, 3, 5)],
        "4 of 2,175 images of the split",
        "4 of 2,175 images of the split",
    ),
    "all of coco": (
        lambda r, **part: CocoStuff27(r["coco"], split="all", **part),
        [f"{i:012d}" for i in range(1, 6)],
        "all 5 images, not the paper's split",
        "all 5 images, not the paper's split",
    ),
    "cityscapes": (
        lambda r, **part: Cityscapes(r["streets"], **part),
        ["bonn/bonn_000000_000019", "bonn/bonn_000001_000019", "ulm/ulm_000000_000019"],
        "3 of the 500 frames of val",
        "3 of the 500 frames of val",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_the_images_is_as_asked_and_says_so(name, photos, coco, streets, tmp_path):
    make, keys, note, whole = PARTS[name]
    roots = {"photos": photos, "coco": coco, "streets": streets}
    data = make(roots)
    assert (data.keys, data.note) == (keys, note)
    chosen = [keys[2], keys[0]]
    (tmp_path / "keys.txt").write_text(f"\n{chosen[0]}\n  {chosen[1]}\n\n")
    for given in (chosen, [*chosen, chosen[0]], str(tmp_path / "keys.txt"), tmp_path / "keys.txt"):
        part = make(roots, keys=given)
        assert (part.keys, part.note) == (chosen, f"2 chosen of {whole}")
        assert part.fingerprint() == make(roots, keys=chosen).fingerprint() != data.fingerprint()
        np.testing.assert_array_equal(part.label(keys[2]), data.label(keys[2]))
    assert make(roots, keys=keys).note != ""  # named, not the benchmark as it is
    wrong = keys[1] + keys[1][-1]
    with pytest.raises(DataError, match=rf"^keys: there is no image '{wrong}'; did you mean {keys[1]}\?$"):
        make(roots, keys=[keys[0], wrong])
    with pytest.raises(DataError, match=r"^keys: no image is named$"):
        make(roots, keys=[])
    with pytest.raises(DataError, match=r"^keys: cannot read nowhere.txt \(No such file or directory\): give a list"):
        make(roots, keys="nowhere.txt")
    (tmp_path / "keys.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"^keys: cannot read .*keys.txt \(not a text file\): give a list"):
        make(roots, keys=tmp_path / "keys.txt")
    if name == "scenes":  # as many as asked for are the benchmark
        assert (make(roots, count=2).keys, make(roots, count=2).note) == (keys[:2], "")
        bad = [0, -1, 1.5, "2", True]
    else:
        assert (make(roots, count=2).keys, make(roots, count=2).note) == (keys[:2], f"the first 2 of {whole}")
        assert (make(roots, count=len(keys)).keys, make(roots, count=len(keys)).note) == (keys, note)
        both = make(roots, keys=chosen, count=1)
        assert (both.keys, both.note) == (chosen[:1], f"the first 1 of 2 chosen of {whole}")
        bad = [0, -1, len(keys) + 1, 1.5, "2", True]
    for count in bad:
        with pytest.raises(
            DataError, match=rf"^count must be .* images?, got {count!r}$|^count must be .*, got {count!r}$"
        ):
            make(roots, count=count)


def test_parts_reach_the_data_from_the_command_line(coco, tmp_path):
    """Keys that look like numbers stay what they are."""
    (tmp_path / "keys.txt").write_text("000000000003\n000000000001\n")
    data = ["dataset=coco_stuff27", f"dataset.root={coco}", "dataset.size=64", *WHOLE]
    names = set()
    for keys in ("[000000000003,000000000001]", f"{tmp_path}/keys.txt"):
        summary = evaluated(tmp_path / "runs", *data, f"dataset.keys={keys}")
        assert summary["dataset"]["note"] == "2 chosen of 4 of 2,175 images of the split"
        assert list(score.read_counts(find_run(Path(summary["folder"])), "whole")[0]["key"]) == [
            "000000000003",
            "000000000001",
        ]
        names.add(summary["folder"])
    assert len(names) == 1  # however the keys are given
    with pytest.raises(DataError, match=r"there is no image '000000000004'; did you mean"):  # not of the split
        evaluated(tmp_path / "runs", *data, "dataset.keys=[000000000004]")


def test_published_rows_stand_beside_the_whole_benchmark_alone(coco, streets, monkeypatch, tmp_path):
    """The made-up folders are declared to be whole; less than all of them never is."""
    monkeypatch.setattr(coco_stuff, "SPLIT_SHA256", coco_stuff._sha256([f"{i:012d}" for i in (1, 2, 3, 5)]))
    monkeypatch.setattr(cityscapes, "FRAMES", 3)
    row = "DiffSeg, SD 1.4"  # of both data sets, at 512 pixels

    def is_beside(*overrides):
        summary = evaluated(tmp_path / "runs", *WHOLE, "dataset.size=64", "score_size=512", *overrides)
        page = find_run(Path(summary["folder"]), 512).report.read_text()
        shown = f'<tr class="published"><th scope="row">{row}</th>' in page
        assert not (shown and summary["dataset"]["note"])
        return shown

    photos = ["dataset=coco_stuff27", f"dataset.root={coco}"]
    assert is_beside(*photos)
    assert not is_beside(*photos, "dataset.count=3")
    assert not is_beside(*photos, "dataset.keys=[000000000001]")
    assert not is_beside(*photos, "dataset.split=all")
    assert not is_beside(*photos, "dataset.split=all", "dataset.count=4")
    frames = ["dataset=cityscapes", f"dataset.root={streets}"]
    assert is_beside(*frames)
    assert not is_beside(*frames, "dataset.count=2")
    (coco / "val2017" / "000000000002.jpg").write_bytes(b"no photo")
    assert not is_beside(*photos, "on_error=skip")  # one of the images lacks


# --- from one command to the other ------------------------------------------------------------------------------------


def test_the_labels_of_the_command_for_photos_can_be_scored(tmp_path, capfd):
    """They are of whole photos, and beside them lie overlays: both is said."""
    for i in range(2):
        made = scene(4, i, 128)
        save(tmp_path / "photos" / f"scene{i}.png", made.image[:96])
        save(tmp_path / "photos" / f"scene{i}.label.png", made.label[:96])
    out = tmp_path / "out"
    photos = [str(tmp_path / "photos" / f"scene{i}.png") for i in range(2)]
    ran = CliRunner().invoke(
        cli.app, ["segment", *photos, "--out", str(out), "--size", "64", "--anchors", "4", "--device", "cpu"]
    )
    assert ran.exit_code == 0, ran.output
    data = [*folder_data(tmp_path / "photos"), "workers=0", f"labels={out}"]
    with pytest.raises(
        UserError,
        match=rf"^the folder {out} holds no label map named KEY.png \(these are named KEY.labels.png: "
        rf"labels_suffix=.labels.png\)$",
    ):
        evaluated(tmp_path / "runs", *data)
    assert not (tmp_path / "runs").exists()
    capfd.readouterr()
    summary = evaluated(tmp_path / "runs", *data, "labels_suffix=.labels.png")
    assert (
        "score: the label maps of 2 images are of whole photos. Only the middle square of each is scored, as the "
        "protocol has it: figures differ from those of maps that were made of this square alone\n"
    ) in capfd.readouterr().err
    assert summary["images"] == 2
    counts, _ = score.read_counts(find_run(Path(summary["folder"])), "labels")
    for row in counts.itertuples():
        labels = np.asarray(Image.open(out / f"{row.key}.labels.png"))
        assert labels.shape == (96, 128)
        assert list(row.segments) == sorted(np.unique(labels[:, 16:112]))
