"""The command as a user runs it: real processes for what matters most, the same code in-process for the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from diffseg import DiffSeg
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.cli import app, find_photos, name_outputs
from diffseg.datasets.scenes import scene
from diffseg.eval.metrics import agreement

SMALL = ["--size", "128", "--anchors", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        Image.fromarray(scene(4, i, 160).image[:120]).save(folder / f"scene{i}.png")
    return folder


def run(*args: object):
    return CliRunner().invoke(app, ["segment", *map(str, args)])


def test_a_folder_in_a_real_process(photos, tmp_path, commands):
    out = tmp_path / "out"
    ran = commands("segment", photos, "--out", out, *SMALL, module="diffseg.cli", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("2 photos, ")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"scene{i}{suffix}" for i in range(2) for suffix in (".labels.png", ".overlay.png", ".json")
    )
    labels = np.asarray(Image.open(out / "scene0.labels.png"))
    assert labels.shape == (120, 160)
    assert Image.open(out / "scene0.overlay.png").size == (160, 120)
    record = json.loads((out / "scene0.json").read_text())
    assert record["settings"]["anchors"] == 8
    assert record["model"] == "mini"
    assert sum(s["area"] for s in record["segments"]) == labels.size
    for segment in record["segments"]:
        np.testing.assert_array_equal(coco_mask.decode(segment["segmentation"]) > 0, labels == segment["id"])
    again = commands("segment", photos, "--out", out, *SMALL, module="diffseg.cli", cwd=tmp_path)
    assert again.returncode == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out / "scene0.labels.png")), labels)


def test_broken_files_are_named_and_the_rest_is_done(photos, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes((photos / "scene0.png").read_bytes()[:2000])
    ran = run(cut, photos / "scene1.png", tmp_path / "none.jpg", "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 1
    assert ran.stdout.startswith("1 photo, ")
    assert "2 could not be segmented" in ran.stderr
    assert str(cut) in ran.stderr
    assert "none.jpg" in ran.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "scene1.json", "scene1.labels.png", "scene1.overlay.png"
    ]  # fmt: skip


def test_settings_reach_the_result(photos, tmp_path):
    options = ["--threshold", "0.5,0.6", "--weights", "4,3,2,1", "--timestep", "100", "--refine"]
    ran = run(photos / "scene0.png", "--out", tmp_path, *options, *SMALL)
    assert ran.exit_code == 0, ran.output
    assert json.loads((tmp_path / "scene0.json").read_text())["settings"] == {
        "threshold": [0.5, 0.6], "anchors": 8, "weights": [4, 3, 2, 1], "timestep": 100, "refine": True, "size": 128,
        "iterations": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "0"], "threshold must be above 0"),
        (["--threshold", "a"], "numbers separated by commas"),
        (["--threshold", "1,1", "--iterations", "3"], "2 thresholds given for 3 iterations"),
        (["--anchors", "17"], "anchors must be 1 to"),
        (["--weights", "1,2"], "2 given, but there are 4 resolutions"),
        (["--weights", "0,0,0,0"], "sum above 0"),
        (["--weights", "1e308,1e308,1e308,1e308"], "finite sum above 0"),
        (["--weights", "nan,1,1,1"], "finite sum above 0"),
        (["--weights", "inf,1,1,1"], "finite sum above 0"),
        (["--iterations", "100000000"], "iterations must be at most 100, got 100,000,000"),
        (["--threshold", ",".join(["1"] * 101)], "iterations must be at most 100, got 101"),
        (["--model", "nothing"], "embedded model (mini)"),
        (["--device", "cuda:7"], "is not there"),
        (["--dtype", "float8"], "dtype must be one of float32, float16, bfloat16, got 'float8'"),
        (["--timestep", "-1"], "0 to 999"),
    ],
)
def test_bad_options_are_one_sentence_and_write_nothing(photos, tmp_path, options, words):
    ran = run(photos / "scene0.png", "--out", tmp_path / "out", *SMALL, *options)
    assert ran.exit_code == 2
    assert words in ran.stderr
    assert len([line for line in ran.stderr.splitlines() if line.startswith("diffseg: ")]) == 1
    assert "Traceback" not in ran.stderr
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("options", [["--device", "cuda:7"], ["--dtype", "float8"], ["--threshold", "0"]], ids=str)
def test_refused_options_leave_no_output_folder(photos, tmp_path, options):
    assert run(photos / "scene0.png", "--out", tmp_path / "out", *options).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_one_threshold_is_for_all_three_iterations(photos, tmp_path):
    assert run(photos / "scene0.png", "--out", tmp_path, "--threshold", "0.4", *SMALL).exit_code == 0
    seg = DiffSeg.from_pretrained("mini", device="cpu")
    out = seg(photos / "scene0.png", threshold=0.4, anchors=8, size=128)
    assert json.loads((tmp_path / "scene0.json").read_text())["settings"]["threshold"] == [0.4, 0.4, 0.4]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "scene0.labels.png")), out.labels)


def test_half_precision_gives_almost_the_same_segments(photos, tmp_path):
    maps = []
    for dtype in ("float32", "bfloat16"):
        assert run(photos / "scene0.png", "--out", tmp_path / dtype, "--dtype", dtype, *SMALL).exit_code == 0
        assert json.loads((tmp_path / dtype / "scene0.json").read_text())["dtype"] == dtype
        maps.append(np.asarray(Image.open(tmp_path / dtype / "scene0.labels.png")))
    assert agreement(*maps) > 0.9


def test_empty_folder(tmp_path):
    ran = run(tmp_path)
    assert ran.exit_code == 2
    assert f"the folder {tmp_path} has no photos" in ran.stderr


def test_unwritable_output(photos, tmp_path):
    """A file where the folder should be; as root, permissions would stop nobody."""
    (tmp_path / "out").write_text("")
    ran = run(photos, "--out", tmp_path / "out")
    assert ran.exit_code == 2
    assert f"cannot write to the output folder {tmp_path / 'out'}" in ran.stderr


def test_a_full_disk_leaves_no_half_written_file(photos, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    ran = run(photos / "scene0.png", "--out", tmp_path, *SMALL)
    assert ran.exit_code == 2
    assert "No space left on device" in ran.stderr
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_names_never_collide():
    names = name_outputs([Path("a/x.jpg"), Path("a/x.png"), Path("b/x.png"), Path("a/y.jpg")])
    assert {name: str(p) for name, p in names.items()} == {
        "y": "a/y.jpg", "x.jpg": "a/x.jpg", "a_x.png": "a/x.png", "b_x.png": "b/x.png"
    }  # fmt: skip
    assert list(name_outputs([Path("1/a/x.png"), Path("2/a/x.png")])) == ["1_a_x.png", "2_a_x.png"]
    with pytest.raises(ValueError, match="give each photo once"):
        name_outputs([Path("a/x.png"), Path("a/x.png").absolute()])


def test_a_result_never_takes_the_name_of_another():
    """x.jpg.png would be x.jpg, as x.jpg is where there is an x.png."""
    photos = [Path("a/x.jpg.png"), Path("a/x.jpg"), Path("a/x.png")]
    assert sorted(name_outputs(photos).values()) == sorted(photos)


def test_long_names_are_cut_and_stay_apart():
    """File systems take 255 bytes; a character may have several, and none is cut in half."""
    photos = [Path(f"a/{'n' * 250}{i}.png") for i in range(2)] + [Path(f"a/{'é' * 124}.png"), Path("a/" + "m" * 243)]
    names = name_outputs(photos)
    assert sorted(names.values()) == sorted(photos)
    assert all(len(f"{name}.overlay.png".encode()) <= 255 for name in names)
    assert "m" * 243 in names
    assert names == name_outputs(photos[::-1])


def test_a_batch_goes_on_after_a_long_name_and_what_cannot_be_read(photos, tmp_path, monkeypatch):
    whole = (photos / "scene0.png").read_bytes()
    long = tmp_path / f"{'n' * 251}.png"
    for path in (long, tmp_path / "closed.png"):
        path.write_bytes(whole)
    opened = Image.open

    def closed(path, *args):  # as root, permissions would stop nobody
        if Path(path).name == "closed.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args)

    monkeypatch.setattr(Image, "open", closed)
    too_long = tmp_path / f"{'x' * 300}.png"
    ran = run(tmp_path / "closed.png", too_long, long, photos / "scene1.png", "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 1, ran.exception
    assert ran.stdout.startswith("2 photos, ")
    assert f"skipped: {tmp_path / 'closed.png'} is unreadable (Permission denied)" in ran.stderr
    assert f"skipped: {too_long} is unreadable (File name too long)" in ran.stderr
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_photos_that_are_not_there_or_in_folders_of_a_folder_are_told(photos, tmp_path, capsys):
    ran = run(tmp_path / "none.jpg", tmp_path / "nothing", "--out", tmp_path / "out")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == f"diffseg: {tmp_path / 'none.jpg'} is missing: there is no such file or folder\n"
    inner, empty = tmp_path / "holiday" / "sea", tmp_path / "holiday" / "notes"
    for folder in (inner, empty):
        folder.mkdir(parents=True)
    for place in (inner, inner.parent):
        (place / "photo.png").write_bytes((photos / "scene0.png").read_bytes())
    assert find_photos([inner.parent]) == [inner.parent / "photo.png"]
    assert capsys.readouterr().err == f"photos in {inner} are left out: name it, too, to have them\n"
    assert find_photos([inner.parent, inner]) == [inner.parent / "photo.png", inner / "photo.png"]
    assert capsys.readouterr().err == ""


def test_what_was_done_before_a_stop_is_told(photos, tmp_path, monkeypatch):
    segment, done = DiffSeg.segment, []

    def once(*args):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return segment(*args)

    monkeypatch.setattr(DiffSeg, "segment", once)
    monkeypatch.setattr(DiffusionModel, "streams", lambda *args: 1)
    ran = run(photos, "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 130
    assert f"diffseg: stopped; 1 photo of 2 done, kept in {tmp_path / 'out'}" in ran.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_names_that_are_not_utf8_can_be_printed(photos, tmp_path, commands):
    folder = os.fsencode(tmp_path / "caf") + b"\xe9"
    os.mkdir(folder)  # noqa: PTH102
    for name, content in ((b"\xff.png", (photos / "scene0.png").read_bytes()), (b"bad\xff.png", b"no picture")):
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(content)
    given = ["segment", os.fsdecode(folder), "--out", os.fsdecode(folder + b"/out"), *SMALL]
    ran = commands(*given, module="diffseg.cli", cwd=tmp_path)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert r"bad\udcff.png is damaged or not an image" in ran.stderr
    assert ran.stdout.startswith("1 photo, ")
    assert r"caf\udce9" in ran.stdout


ENDS = """
import atexit, sys, threading, time
from diffseg import start

def command():
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    atexit.register(print, "registered")
    {end}

start._run(command)
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [("sys.exit(3)", 3, ""), ("sys.exit('why')", 1, "why\n"), ("", 0, ""), ("1 / 0", 1, "Zero")],
)
def test_a_command_ends_quickly_but_not_before_its_threads_and_what_is_registered(end, status, said):
    ran = subprocess.run([sys.executable, "-c", ENDS.format(end=end)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (status, "thread\nregistered\n")
    assert said in ran.stderr


def test_help_is_quick_and_names_the_options():
    code = "import sys, diffseg.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    ran = CliRunner().invoke(app, ["segment", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    for option in ("--threshold", "--anchors", "--iterations", "--weights", "--timestep", "--refine", "--device"):
        assert option in ran.stdout
