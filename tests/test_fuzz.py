"""Damaged and nonsensical inputs of every kind: photos, label maps, settings, JSON and YAML files, folders of runs.

Each gets a result, which is checked, or one sentence that names the file or the setting: see `tests/reliability.py`.
HYPOTHESIS_PROFILE=long tries many more, other ones each time (`make fuzz`).
"""

import contextlib
import copy
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffseg import files
from diffseg.backbones.base import EMBEDDED, recommended
from diffseg.datasets.base import read_map, read_photo
from diffseg.datasets.folder import Folder
from diffseg.datasets.scenes import scene
from diffseg.errors import printable
from diffseg.eval import run as door
from diffseg.eval import score
from diffseg.eval.check import check, read_reference
from diffseg.eval.evaluation import Experiment
from diffseg.eval.runs import find_run
from diffseg.eval.show import compare, tables
from diffseg.eval.show.ablations import read_ablations
from diffseg.images import MIN_SIDE, load_image
from tests.reliability import (
    ELSE,
    LIMIT_S,
    RESULT,
    TALLY,
    answer,
    check_peak,
    check_sentence,
    in_time,
    keep_tally,
    peak_bytes,
)
from tests.test_eval import CONF, configured, options

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
_COMMON = {
    "deadline": None,  # `reliability.in_time` has one
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate],  # a failure is told at once: making a smaller one of it takes minutes
}


def tried(examples, in_a_round):
    """The settings of a test: so many examples, always the same; or, in a round of `make fuzz`, so many by chance."""
    return settings(max_examples=in_a_round if LONG else examples, derandomize=not LONG, **_COMMON)


@pytest.fixture(scope="module", autouse=True)
def tally():
    """Counts are kept where somebody asked for them; so is a cache of the module's own."""
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        yield
    keep_tally()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder to work in, which must hold nothing half-written in the end."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        yield Path(place)
        assert not list(Path(place).rglob(f"*{files.PARTIAL}"))


# --- values that do not belong ----------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [
        *(0, 1, -1, 2, 3, 7, 8, 9, 63, 64, 65, 255, 256, 999, 1000, 65536, 2**31, 2**63, 10**30),
        *(0.5, -0.5, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, True, False),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "..", ".", "a/b", "../a", "/", "null", "nan", "1e-6", "{runs}", "$HOME"])
    | st.sampled_from(["x" * 300, "x" * 5000, "\n", "\x1b[31m", "a\0b", "\ud800", "é", "~", "a,b", "[1", "{a:1}", "1"]),
)
LEAVES = st.one_of(st.none(), NUMBERS, TEXTS)
JUNK = st.one_of(
    LEAVES,
    st.sampled_from([[], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [1, 2], ["a", "b"], [0, 1], [1.0, "a"]]),
    st.lists(LEAVES, max_size=3),
    st.dictionaries(st.text(max_size=4), LEAVES, max_size=3),
)


def paths_of(value, path=()):
    """The way to every value inside, the outermost first."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(inner, (*path, key))


def put(value, path, new):
    """A copy with another value at the end of a path; `put(value, path, DELETE)` without it."""
    if not path:
        return None if new is DELETE else new
    value = copy.deepcopy(value)
    *way, last = path
    inner = value
    for key in way:
        inner = inner[key]
    if new is DELETE:
        del inner[last]
    else:
        inner[last] = new
    return value


DELETE = object()


@st.composite
def mutated(draw, value):
    """The same data with one to three values deleted, replaced or put under another key."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths_of(value))))
        how = draw(st.sampled_from(["delete", "replace", "replace", "rename"]))
        if how == "rename" and path and isinstance(path[-1], str):
            inner = value
            for key in path:
                inner = inner[key]
            value = put(put(value, path, DELETE), (*path[:-1], draw(TEXTS)), inner)
        else:
            value = put(value, path, DELETE if how == "delete" and path else draw(JUNK))
    return value


@st.composite
def damaged(draw, content):
    """The same bytes cut off, with flipped bits, with a part twice, or in place of it none, text, zeros."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "flip", "insert", "twice", "empty", "text", "zeros", "noise"]))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    if how == "cut":
        return content[:place]
    if how == "flip":
        flipped = bytearray(content)
        near = draw(st.booleans())  # headers are where it hurts
        for _ in range(draw(st.integers(1, 4)) if content else 0):
            flipped[draw(st.integers(0, min(len(content), 120 if near else len(content)) - 1))] ^= 1 << draw(
                st.integers(0, 7)
            )
        return bytes(flipped)
    if how == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
    if how == "twice":
        return content[:place] + content[: place + 1] + content[place:]
    if how == "zeros":
        return content[:place] + bytes(len(content) - place)
    return {"empty": b"", "text": "näin é\n".encode("latin-1"), "noise": draw(st.binary(max_size=200))}[how]


# --- photos -----------------------------------------------------------------------------------------------------------

MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp", "PPM": ".ppm"}


@st.composite
def pictures(draw):
    """(bytes, suffix, (height, width), whether all pixels are numbers) of a picture that Pillow can read."""
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    mode, kind = draw(st.sampled_from(MODES)), draw(st.sampled_from(list(FORMATS)))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(pixels)
    if mode in ("I", "I;16", "F"):
        scale = draw(st.sampled_from([1, 255, -3, 1e30]))
        dtype = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            values = (pixels[..., 0].astype(float) * scale).astype(dtype)
        if mode == "F" and draw(st.booleans()):
            values.flat[0] = draw(st.sampled_from([np.nan, np.inf]))
        picture = Image.fromarray(values)
    elif mode != "RGB":
        middle = {"LAB": None, "PA": "P"}.get(mode, mode)
        picture = Image.new("LAB", picture.size) if middle is None else picture.convert(middle)
        picture = picture.convert("PA") if mode == "PA" else picture
    file = io.BytesIO()
    try:
        picture.save(file, kind)
        Image.open(file).load()
    except (OSError, ValueError):  # a format without such a mode, or YCbCr TIFF, which Pillow writes and cannot read
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
    return file.getvalue(), FORMATS[kind], (height, width), bool(np.isfinite(np.asarray(picture)).all())


@tried(120, 2000)
@given(st.data())
def test_photos(data):
    content, suffix, shape, finite = data.draw(pictures())
    whole = data.draw(st.booleans())
    kind = "photos, whole" if whole else "photos, damaged"
    if not whole:
        content = data.draw(damaged(content))
    with folder(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that it reads
        path = Path(f"photo{data.draw(st.sampled_from([suffix, '.png', '.jpg']))}")
        path.write_bytes(content)
        for read in (load_image, read_photo):
            given_answer = answer(kind, lambda read=read: read(path), path)
            image = given_answer.value
            if image is not None:
                assert image.dtype == np.uint8
                assert image.ndim == 3
                assert image.shape[2] == 3
            if whole and finite and (read is read_photo or min(shape) >= MIN_SIDE):
                assert image is not None, given_answer.sentence
                assert image.shape[:2] == shape


# --- label maps -------------------------------------------------------------------------------------------------------

VALUES = st.sampled_from([0, 1, 2, 3, 26, 27, 254, 255, 256, 4095, 4096, 65535])


@st.composite
def label_maps(draw, side=None):
    """A label map as an array of some type, some values and some size."""
    height, width = (side, side) if side else (draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    values = draw(st.lists(VALUES, min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = rng.choice(np.array(values), (height, width))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int32, bool]))
    return labels.astype(dtype)


@st.composite
def map_files(draw, side=None):
    """(bytes, array or None): a label map as a file holds it; None where the file is damaged or of another kind."""
    labels = draw(label_maps(side))
    file = io.BytesIO()
    kind = draw(st.sampled_from(["whole", "whole", "damaged", "damaged", "colour", "palette", "floats"]))
    form = draw(st.sampled_from(["PNG", "PNG", "TIFF"])) if labels.dtype != np.int32 else "TIFF"
    if kind == "colour":
        Image.fromarray(np.repeat(labels.astype(np.uint8)[..., None], 3, 2)).save(file, "PNG")
        return file.getvalue(), None
    if kind == "palette":
        picture = Image.fromarray(labels.astype(np.uint8))
        picture.putpalette(bytes(range(256)) * 3)
        picture.save(file, "PNG")
        return file.getvalue(), labels.astype(np.uint8)
    if kind == "floats":
        Image.fromarray(labels.astype(np.float32) + draw(st.sampled_from([0, 0.5, np.nan]))).save(file, "TIFF")
        return file.getvalue(), None
    Image.fromarray(labels).save(file, form)
    if kind == "damaged":
        return draw(damaged(file.getvalue())), None
    return file.getvalue(), labels


@tried(120, 2000)
@given(map_files())
def test_label_maps(made):
    content, labels = made
    with folder(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path("map.png")
        path.write_bytes(content)
        given_answer = answer("label maps, read", lambda: read_map(path), path)
        if given_answer.value is not None:
            assert given_answer.value.ndim == 2
            assert given_answer.value.dtype.kind in "iu"
        if labels is not None:
            assert given_answer.value is not None, given_answer.sentence
            np.testing.assert_array_equal(given_answer.value, labels.astype(np.int64))


@tried(60, 600)
@given(st.data())
def test_counting(data):
    """Truth and labels as arrays: the table holds every pixel once."""
    truth, labels = (data.draw(label_maps(side)) for side in data.draw(st.sampled_from([(8, 8), (8, 8), (8, 9)])))
    truth = np.where(truth == 255, -1, truth.astype(np.int32))
    signed = labels.astype(np.int64) - data.draw(st.sampled_from([0, 0, 1]))
    classes = data.draw(st.sampled_from([1, 3, 27, 4096, 65536]))
    counted = answer("label maps, counted", lambda: score.count(truth, signed, classes), "label", "segment", "truth")
    if counted.value is not None:
        assert counted.value.pixels.sum() == truth.size
        assert counted.value.pixels.shape == (classes + 1, len(np.unique(signed)))
        assert counted.value.pixels[-1].sum() == (truth < 0).sum()


@tried(40, 400)
@given(st.data())
def test_folders_of_photos_and_maps(data):
    """A data set of two photos with labels, and somebody's maps of them: counted as by hand, or told which file."""
    with folder() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("photos", "maps"):
            Path(name).mkdir()
        arrays = {}
        for key in ("a", "b"):
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(f"photos/{key}.png")
            for file in (f"photos/{key}.label.png", f"maps/{key}.png"):
                if data.draw(st.integers(0, 7)):
                    array = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 3, (16, 16), np.uint8)
                    content = io.BytesIO()
                    Image.fromarray(array).save(content, "PNG")
                    Path(file).write_bytes(content.getvalue())
                else:
                    content, array = data.draw(map_files(data.draw(st.sampled_from([16, 16, 8]))))
                    Path(file).write_bytes(content)
                arrays[file] = array
        extra = data.draw(
            st.sampled_from(["", "", "", "", "", "photos/c.jpg", "photos/a.jpg", "photos/c.png/d", "photos/b.jpg/d"])
        )
        if extra:
            Path(extra).parent.mkdir(exist_ok=True)
            Path(extra).write_bytes(b"x")
        names = data.draw(
            st.sampled_from([(), (), ("x", "y", "z"), ("x", "y", "z"), ("x",), ("x", "x"), tuple(map(str, range(70)))])
        )
        skip = data.draw(st.booleans())
        known = ["photos", "maps", "classes", "images"]
        opened = answer("folders, opened", lambda: Folder(place / "photos", names, size=16), *known)
        if opened.value is None or not opened.value.labelled:
            return

        def counted():
            return score.count_all(opened.value, ["m"], lambda _, key: place / f"maps/{key}.png", 0, skip)

        with contextlib.redirect_stderr(io.StringIO()):
            counts = answer("folders, counted", counted, *known)
        if counts.value is not None:
            rows = counts.value.images["m"]
            assert {*rows["key"], *counts.value.skipped} == set(opened.value.keys)
            for key, pixels in zip(rows["key"], rows["pixels"], strict=True):
                assert np.sum(pixels) == 16 * 16, key


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_config(tmp_path_factory):
    """(a configuration with every segmenter and protocol, every data set, model and tracker, the choices)."""
    photos = tmp_path_factory.mktemp("photos")
    for i in range(2):
        Image.fromarray(scene(5, i, 64).image).save(photos / f"p{i}.png")
        Image.fromarray(scene(5, i, 64).label.astype(np.uint8)).save(photos / f"p{i}.label.png")
    everything = [f"+segmenter@segmenters.{name}={name}" for name in options("segmenter") if name != "diffseg"]
    everything.append("+" + "protocol=[" + ",".join(options("protocol")) + "]")
    config, choices = configured(*everything[:-1])
    config["dataset"] |= {"count": 2, "size": 64}
    config["protocols"] = {
        name: yaml.safe_load((CONF / "protocol" / f"{name}.yaml").read_text()) for name in options("protocol")
    }
    sets = {
        name: yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text().replace("${data}", "data"))["dataset"]
        for name in options("dataset")
    }
    sets["folder"] |= {"root": str(photos), "size": 64}
    sets["scenes"] = config["dataset"]
    trackers = {name: yaml.safe_load((CONF / "tracker" / f"{name}.yaml").read_text()) for name in options("tracker")}
    trackers["wandb"]["folder"] = "wandb"
    return config, choices, sets, trackers


@tried(200, 1500)
@given(st.data())
def test_settings(whole_config, data):
    """Every setting of the configuration with values of right and wrong types, up to what would run."""
    config, choices, sets, trackers = whole_config
    chosen = data.draw(st.sampled_from(["scenes", "folder", "folder", *sets]))
    tracker = trackers[data.draw(st.sampled_from(["none", *(["wandb"] if LONG else [])]))]
    config = {**config, "dataset": sets[chosen], "tracker": tracker}
    ways = [path for path in paths_of(config) if path]
    path = data.draw(st.sampled_from(ways))
    how = data.draw(st.sampled_from(["value", "value", "value", "value", "delete", "more"]))
    if how == "more" and isinstance(path[-1], str):
        path = (*path[:-1], data.draw(TEXTS))
    value = DELETE if how == "delete" else data.draw(JUNK)
    changed = put(config, path, value)
    names = {str(key) for key in path} | {repr(key)[1:-1] for key in path}
    names |= {printable(value)} if isinstance(value, str) else set()
    given_answer = answer(
        "settings", lambda: door.experiment_of(changed, {**choices, "dataset": chosen}), *names, "data/", "diffseg"
    )
    experiment = given_answer.value
    if experiment is not None:
        assert isinstance(experiment, Experiment)
        assert len(experiment.dataset.made) == len(set(experiment.dataset.made.keys)) > 0
        for name in experiment.segmenters:
            assert Path(name).name == name not in ("", ".."), "a folder of the run's own"


def said(kind, arguments, *names):
    """Runs `diffseg-eval` in this process: (whether it did, what it printed). Anything but that or a sentence fails."""
    out, err = io.StringIO(), io.StringIO()
    before, status = peak_bytes(), 0
    handler, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    path, argv = list(sys.path), sys.argv
    sys.argv = ["diffseg-eval", *arguments]
    try:
        printed = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with warnings.catch_warnings(), in_time(2 * LIMIT_S), printed[0], printed[1]:
            door.main()
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        TALLY[kind, ELSE] += 1
        raise
    finally:
        sys.argv, sys.path[:] = argv, path
        signal.signal(signal.SIGTERM, handler)
        os.environ.clear()
        os.environ.update(environment)
        GlobalHydra.instance().clear()
        door.SweepTable.failed = ()
    check_peak(kind, before)
    if status in (0, None):
        TALLY[kind, RESULT] += 1
        return True, out.getvalue() + err.getvalue()
    assert status == 2
    told = err.getvalue()
    at = told.rfind("diffseg-eval: ")
    if at < 0:  # an argument that the command line itself refuses, in a box
        assert "Usage: diffseg-eval" in told
        TALLY[kind, "sentence"] += 1
        return False, told
    check_sentence(kind, told[at + len("diffseg-eval: ") :].removesuffix("\n"), *names)
    return False, told


WHOLE = ["~segmenters.diffseg", "+segmenter@segmenters.whole=whole", "+segmenter@segmenters.grid=grid", "workers=0"]
SCENES = [*WHOLE, "device=cpu", "dataset.count=2", "dataset.size=64", "runs=runs"]
SETTINGS = {  # what a run without a model can take, with values that do and do not fit
    "dataset.count": ["1", "3", "0", "-1", "null", "1.5", "true", "[1]", "1000000000000", "9" * 30],
    "dataset.size": ["8", "9", "65", "7", "0", "-8", "64.0", "null", "100000", "9" * 30, "[64]"],
    "dataset.seed": ["0", "5", "-1", "1.5", "null", "x", "9" * 30],
    "dataset.keys": ["[]", "['000000']", "['01','01']", "[x]", "keys.txt", "no.txt", "bad.txt", ".", "{}", "'???'"],
    "segmenters.grid.rows": ["1", "64", "1000", "0", "-3", "1.5", "null", "'3'", "9" * 12, "9" * 30],
    "segmenters.grid.columns": ["2", "63", "300", "9" * 8],
    "segmenters.grid": ["null", "{}", "[]", "3", "{_target_:x}", "{_target_:diffseg.methods.controls.Grid,rows:2}"],
    "+segmenters.more": ["null", "{_target_:diffseg.methods.controls.Whole}", "{_target_:os.sep}", "{_target_:''}"],
    "+segmenters.grid.size": ["1", "{}"],
    "protocol": ["[diffseg]", "[strict,regions,boundaries]", "[diffseg,names]", "[]", "[x]", "names", "dataset", "''"],
    "protocols": ["{}", "null", "[]"],
    "stages": ["[predict]", "[score]", "[report]", "[check]", "[]", "[x]", "predict", "[predict,predict]", "null"],
    "timestep": ["0", "1000", "1.5", "null", "x"],
    "run": ["mine", "keys.txt", "keys.txt/x", "''", "a/b", "x" * 300, ".", "é", "null"],
    "runs": ["other", "'${nothing}'", "'${dataset.count}'", "keys.txt", "a/b/c", "''", "x" * 300],
    "labels": ["masks", "nothing", "keys.txt", "''", "null", "."],
    "labels_suffix": [".png", ".tif", "''", "x", "null", "/x"],
    "reference": ["mini-scenes", "keys.txt", "nothing", "bad.txt", "a.yaml", "x" * 300, "null"],
    "device": ["cpu", "auto", "x", "''", "[]", "[x]", "cuda:99", "1", "null", "meta"],
    "dtype": ["float32", "bfloat16", "x", "1", "null"],
    "batch_size": ["1", "0", "1.5", "70000", "null"],
    "workers": ["-1", "5000", "null", "1.5"],
    "shard": ["[0,2]", "[1,2]", "[5,9]", "[2,2]", "[-1,2]", "[0]", "x", "[a,b]"],
    "on_error": ["skip", "x", "null"],
    "score_size": ["1", "7", "32", "64", "100", "0", "-1", "1.5", "99999"],
    "published": ["coco_stuff27", "x", "1", "null"],
    "paper_threshold": ["0.5", "x", "null", "nan", "inf"],
    "vary": ["{}", "{threshold:[1]}", "[1]", "x"],
    "tracker": ["none", "x", "null"],
    "dataset": ["scenes", "folder", "coco_stuff27", "x", "null"],
    "experiment": ["coco", "x"],
    "model": ["mini", "x"],
    "model.name": ["mini", "nothing", "''", "x" * 300, "null", "."],
}  # fmt: skip


@tried(14, 80)
@given(st.data())
@example(None)
def test_commands(data):
    """Whole commands without a model: a run that is complete, or a sentence and nothing of a run."""
    with folder() as place:
        Path("keys.txt").write_text("000001\n000000\n")
        Path("bad.txt").write_bytes(b"\xff\xfe\x00\n")
        Path("masks").mkdir()
        for key in ("000000", "000001"):
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(f"masks/{key}.png")
        overrides = []
        for _ in range(data.draw(st.integers(1, 2)) if data else 0):
            key = data.draw(st.sampled_from(list(SETTINGS)))
            value = data.draw(st.sampled_from(SETTINGS[key]) | st.text(max_size=5)) if data else ""
            overrides.append(f"{key}={value}")
        if data and not data.draw(st.integers(0, 9)):
            overrides.append(data.draw(st.text(max_size=6)))
        if any(text.startswith(("-", "/", "~/")) for o in overrides for text in (o, o.partition("=")[2])):
            return  # an option, or a place outside
        kind = "commands"
        ran, _ = said(kind, [*SCENES, *overrides])
        summaries = list(place.rglob("summary*.json"))
        for path in [*summaries, *place.rglob("run.json")]:
            json.loads(path.read_text())
        if ran and not {o.partition("=")[0] for o in overrides} & {"stages", "shard", "dataset"}:
            assert summaries
            assert list(place.rglob("report*.html"))
        again = said(kind, [*SCENES, *overrides])[0]
        assert again == ran


@tried(1, 6)
@given(st.data())
def test_sweeps(data):
    """One bad job does not end the others, and the table is written."""
    key = data.draw(
        st.sampled_from(["dataset.count", "segmenters.grid.rows", "score_size", "dataset.seed", "timestep"])
    )
    value = data.draw(st.sampled_from(SETTINGS[key][1:4]))
    with folder() as place:
        ran, text = said("sweeps", ["-m", *SCENES, f"{key}=1,{value}"], "of the sweep's 2 jobs", key)
        (file,) = place.rglob("table.csv")
        assert f"{key}" in file.read_text()
        assert ran or any(f"{n} of the sweep's 2 jobs failed" in text for n in (1, 2))


# --- files of a run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two runs and a sweep of two, as the commands make them, and what the first one's command says."""
    place = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(place):
        said("whole runs", [*SCENES, "segmenters.grid.rows=2", "run=second", "protocol=[diffseg,regions]"])
        said("whole runs", ["-m", *SCENES, "~segmenters.whole", "segmenters.grid.rows=4,5"])
        said("whole runs", [*SCENES, "run=first"])
    return place


def text_of(data, value):
    """JSON of data, sometimes with what no writer writes: cut off, twice the same key, too deep, too many digits."""
    text = json.dumps(value)
    how = data.draw(st.sampled_from(["plain"] * 6 + ["cut", "deep", "digits", "twice", "bom", "latin"]))
    place = data.draw(st.integers(0, len(text)))
    return {
        "plain": text.encode("utf-8", "surrogatepass"),
        "cut": text[:place].encode(),
        "deep": b'{"identity": ' + b"[" * 50_000,
        "digits": text.replace("1", "1" * 5000, 1).encode(),
        "twice": (text[:-1] + ", " + text[1:]).encode(),
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "latin": text.encode() + b"\xe9",
    }[how]


@contextlib.contextmanager
def copied(runs, *names):
    """A folder with copies of these of the runs."""
    with folder() as place:
        for name in names:
            shutil.copytree(runs / name, place / name)
        yield place


def shown(table):
    """A table as the terminal has it."""
    out = io.StringIO()
    door.Console(file=out, width=200).print(table)
    return out.getvalue()


@tried(30, 200)
@given(data=st.data())
def test_records(runs, data):
    """run.json through everything that reads it."""
    with copied(runs, "first") as place:
        file = place / "first" / "run.json"
        file.write_bytes(text_of(data, data.draw(mutated(json.loads(file.read_text())))))
        run = answer("run.json", lambda: find_run(file.parent), file).value
        if run is not None:
            assert run.segmenters
            assert all(Path(name).name == name not in ("", "..") for name in run.segmenters)
        assert "first" in answer("run.json", lambda: shown(tables.runs_table(place).for_terminal())).value
        answer("run.json", lambda: read_ablations([file.parent]), file.parent, "vary", "settings", "occurs")
        side = answer("run.json", lambda: compare.side(file.parent, None), file.parent).value
        if side is not None and not data.draw(st.integers(0, 3)):
            other = answer("run.json", lambda: compare.side(runs / "second", None)).value
            answer("run.json", lambda: compare.compare(side, other), file.parent)
            answer("run.json", lambda: len(door.dataset_of(side.run, "scenes", [])), file.parent, "dataset")


@tried(40, 300)
@given(data=st.data())
def test_summaries(runs, data):
    """summary.json through everything that reads it."""
    name = data.draw(st.sampled_from(["first", "second"]))
    with copied(runs, name) as place:
        file = place / name / "summary.json"
        file.write_bytes(text_of(data, data.draw(mutated(json.loads(file.read_text())))))
        run = find_run(file.parent)
        summary = answer("summary.json", lambda: score.read_summary(run), file).value
        listed = answer("summary.json", lambda: shown(tables.runs_table(place).for_terminal())).value
        assert name in listed or "second" in listed
        known = answer("summary.json", lambda: tables.summaries(place)).value
        for model in {s["model"] for s in known}:
            answer("summary.json", lambda model=model: tables.markdown(tables.measured_table(known, model)))
        answer("summary.json", lambda: tables.paper_table("coco_stuff27", known))
        answer("summary.json", lambda: read_ablations([file.parent]), file.parent, "vary", "settings", "occurs")
        if summary is not None:
            answer("summary.json", lambda: shown(tables.result_table(summary)))


REFERENCE = {
    "about": "made up",
    "run": {"dataset": "scenes", "model": "mini", "images": 2},
    "expected": [
        {"segmenter": "whole", "metric": "miou", "value": 0.5, "tolerance": "1e-1"},
        {"segmenter": "grid", "metric": "accuracy", "value": 0.3, "tolerance": 0.5, "protocol": "diffseg"},
    ],
}


@tried(40, 400)
@given(data=st.data())
def test_references(runs, data):
    summary = score.read_summary(find_run(runs / "first"))
    with folder() as place:
        file = place / "expected.yaml"
        value = data.draw(mutated(REFERENCE))
        if data.draw(st.booleans()):
            file.write_bytes(text_of(data, value))
        else:
            content = yaml.safe_dump(value).encode("utf-8", "surrogatepass")
            file.write_bytes(data.draw(damaged(content)) if data.draw(st.booleans()) else content)
        reference = answer("references", lambda: read_reference(str(file)), file).value
        if reference is not None:
            rows = answer("references", lambda: check(summary, reference), "reference").value
            if rows is not None:
                assert len(rows) == len(reference["expected"])
                assert set(rows["ok"]) <= {True, False}


@tried(30, 150)
@given(data=st.data())
@example(data=None)
def test_recommendations(data):
    """A model's diffseg.json, read alone and for a configuration."""
    own = json.loads((EMBEDDED["mini"] / "diffseg.json").read_text())
    with folder() as place:
        Path("model").mkdir()
        file = place / "model" / "diffseg.json"
        file.write_bytes(text_of(data, data.draw(mutated(own))) if data else json.dumps(own).encode())
        values = answer("diffseg.json", lambda: recommended("model"), "model/diffseg.json").value
        if values is not None:
            assert all(type(value) in (int, float) and math.isfinite(value) for value in values.values())
        if data is None or not data.draw(st.integers(0, 5)):
            said("diffseg.json", [*SCENES[1:], "model=pretrained", "model.name=model", "stages=[score]"])


@tried(30, 200)
@given(data=st.data())
def test_jobs_of_sweeps(runs, data):
    with copied(runs, "runs"):
        (sweep,) = Path("runs/sweeps").iterdir()
        file = data.draw(st.sampled_from(sorted(sweep.glob("jobs/*.json"))))
        file.write_bytes(text_of(data, data.draw(mutated(json.loads(file.read_text())))))
        found = answer("jobs of sweeps", lambda: read_ablations([sweep]), sweep, "runs", "vary").value
        assert found is None or all(len(a.values) == len(a.found) for a in found)


# --- folders of runs --------------------------------------------------------------------------------------------------


@st.composite
def harms(draw, place):
    """Does one harm to a file of a folder; returns its path."""
    file = draw(st.sampled_from(sorted(p for p in place.rglob("*") if p.is_file())))
    how = draw(st.sampled_from(["delete", "damage", "damage", "damage", "swap", "folder", "link", "copy"]))
    other = draw(st.sampled_from(sorted(p for p in place.rglob("*") if p.is_file())))
    if how == "damage":
        content = draw(damaged(file.read_bytes()))
        file.write_bytes(content)
    elif how == "swap":
        first, second = file.read_bytes(), other.read_bytes()
        file.write_bytes(second)
        other.write_bytes(first)
        return {file, other}
    elif how == "copy":
        file.write_bytes(other.read_bytes())
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
            if draw(st.booleans()):
                (file / "inside").write_text("x")
        elif how == "link":
            file.symlink_to(draw(st.sampled_from([file.name, "nowhere", "."])))
    return {file}


@tried(4, 30)
@given(data=st.data())
def test_folders_of_runs(runs, data):
    """A run with one or two harmed files: scored, listed, compared, and mended by its own command."""
    with copied(runs, "first", "second") as place:
        undamaged = json.loads((place / "first" / "summary.json").read_text())
        command = [*SCENES, "run=first"]
        harmed = set()
        for _ in range(data.draw(st.integers(1, 2))):
            harmed |= data.draw(harms(place / "first"))
        names = ["first", *(file.name for file in harmed)]
        order = [
            [*command, "stages=[score,report]"],
            ["list", "."],
            ["compare", "second", "first"],
            ["compare", "first", "second", "--a", "grid", "--b", "grid"],
        ]
        for step in data.draw(st.permutations(order))[: data.draw(st.integers(1, 4))]:
            said("folders of runs", step, *names)
        ran, text = said("folders of runs", command, *names)
        if not ran and "once more" in text:
            ran, text = said("folders of runs", command, *names)
        assert not list(place.rglob(f"*{files.PARTIAL}"))
        if ran:
            summary = json.loads((place / "first" / "summary.json").read_text())
            assert (place / "first" / "report.html").read_text().rstrip().endswith("</html>")
            if not any(file.suffix == ".png" for file in harmed):
                assert summary["segmenters"] == undamaged["segmenters"]
