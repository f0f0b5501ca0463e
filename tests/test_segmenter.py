"""DiffSeg on whole photos: shapes, numbering, settings, determinism, the shape of the package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from diffseg import DiffSeg, Settings
from diffseg.datasets.scenes import scene
from diffseg.eval.metrics import histogram, match, summarise
from diffseg.methods.clustering import KMeans
from diffseg.methods.diffcut import DiffCut
from diffseg.methods.merging import Merging
from diffseg.segmentation import by_area
from diffseg.segmenter import describe, describe_all, prepare, working_size


@pytest.fixture(scope="session")
def seg():
    return DiffSeg.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="session")
def photo():
    return scene(4, 0, 320).image[:200]  # 200 x 320


def test_the_whole_photo_at_its_own_size(seg, photo):
    out = seg(photo, size=256)
    assert out.labels.shape == (200, 320)
    assert out.labels.dtype == np.int32
    areas = np.bincount(out.labels.ravel())
    assert len(areas) == len(out)
    assert (areas > 0).all()
    assert (np.diff(areas) <= 0).all()
    h, w = working_size(200, 320, 256, 64)
    assert out.proposals.shape == (len(out), h // 8, w // 8)
    np.testing.assert_allclose(out.proposals.sum((1, 2)), 1, rtol=1e-4)
    assert out.overlay().size == (320, 200)
    assert set(out.timings_s) == {"attention", "aggregate", "merge", "labels"}


def test_all_segments_at_once_are_those_of_each_mask():
    """Every way that runs can begin, end and go around a column, labels without pixels too."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        (h, w), count = draw.integers(1, 8, 2), int(draw.integers(1, 6))
        labels = draw.integers(0, count, (h, w)).astype(np.int32)
        assert describe_all(labels, count) == [describe(labels == index) for index in range(count)]


def test_segments_are_the_labels(seg, photo):
    out = seg(photo, size=256)
    for segment in out.segments():
        mask = out.labels == segment["id"]
        np.testing.assert_array_equal(coco_mask.decode(segment["segmentation"]).astype(bool), mask)
        assert segment["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        x, y, width, height = segment["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())


def test_the_same_photo_gives_the_same_segments(seg, photo):
    first, again = seg(photo, size=256), seg(photo.copy(), size=256)
    np.testing.assert_array_equal(first.labels, again.labels)


def test_thresholds_iterations_refinement(seg, photo):
    tau = seg.settings().threshold[0]
    assert len(seg(photo, size=256, threshold=100.0)) == 1
    kept = seg(photo, size=256, threshold=tau, iterations=1, anchors=5)
    assert kept.settings.threshold == (tau,)
    assert kept.settings.anchors == 5
    assert len(seg(photo, size=256, threshold=[tau / 2, tau, tau], anchors=8)) >= 1
    assert len(seg(photo, size=256, refine=True)) >= 1


def test_better_than_one_segment_on_a_scene(seg):
    made = scene(4, 1, 256)
    ours = match(histogram(made.label, seg(made.image, size=256).labels, 27))
    trivial = match(histogram(made.label, np.zeros_like(made.label), 27))
    assert summarise(ours)["accuracy"] > summarise(trivial)["accuracy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"threshold": float("nan")}, "threshold must be above 0"),
        ({"threshold": [1.0, 1.0], "iterations": 3}, "2 thresholds given for 3 iterations"),
        ({"threshold": []}, "threshold must be above 0"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"anchors": 0}, "anchors must be at least 1"),
        ({"anchors": 65}, "1 to 24 per side"),
        ({"weights": [1, 2]}, "2 given, but there are 4 resolutions"),
        ({"weights": [0, 0, 0, 0]}, "sum above 0"),
        ({"timestep": 1000}, "0 to 999"),
        ({"size": 10}, "size must be"),
    ],
)
def test_bad_settings_are_one_sentence(seg, photo, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        seg(photo, **{"size": 256, **options})
    assert "\n" not in str(caught.value)


def test_settings_from_one_or_many_thresholds():
    assert Settings.make(0.5).threshold == (0.5,) * 3
    assert Settings.make(0.5, 2).threshold == (0.5, 0.5)
    assert Settings.make([0.5], 2).threshold == (0.5, 0.5)
    assert Settings.make([0.5, 0.7]).threshold == (0.5, 0.7)
    assert Settings.make(0.5, weights=[2, 1]).weights == (2.0, 1.0)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (512, 512)),
        (480, 640, (448, 576)),
        (640, 480, (576, 448)),
        (3000, 4000, (448, 576)),
        (20, 4000, (128, 2048)),
    ],
)
def test_working_size(height, width, expected):
    assert working_size(height, width, 512, 64) == expected


def test_prepare_is_the_identity_at_the_models_size():
    photo = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    np.testing.assert_allclose(prepare(photo, (64, 128))[0].permute(1, 2, 0), photo / 127.5 - 1, atol=1e-6)
    assert prepare(photo, (64, 64)).shape == (1, 3, 64, 64)


def test_by_area():
    labels, order = by_area(torch.tensor([[3, 3, 1], [3, 1, 0]]), 5)
    assert labels.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert order.tolist() == [3, 1, 0, 2, 4]


def test_one_import_root(tmp_path):
    """From any directory, the project's folders never shadow other packages named datasets, eval or conf."""
    code = (
        "import diffseg.datasets.scenes, diffseg.eval.metrics, importlib.util as u;"
        "spec = u.find_spec('datasets'); print(spec is None or 'diffseg' not in str(spec.origin))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"


def test_a_program_beside_a_folder_called_diffseg_as_a_clone_is(tmp_path):
    (tmp_path / "diffseg").mkdir()
    (tmp_path / "snip.py").write_text("from diffseg import DiffSeg, Settings; print(DiffSeg.__module__)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "snip.py"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "diffseg.segmenter"), ran.stderr


def test_a_photo_is_looked_at_once_for_any_threshold_and_method(seg, photo, monkeypatch):
    passes = []
    observe = type(seg.model).observe
    monkeypatch.setattr(type(seg.model), "observe", lambda *a, **k: passes.append(1) or observe(*a, **k))
    seen = seg.observe(photo, size=256)
    for tau in (0.4, 1.1):
        expected = seg(photo, size=256, threshold=tau).labels
        np.testing.assert_array_equal(Merging(tau).segment(seen), expected)
    assert len(passes) == 3  # one for all that follows, one for each call
    clustered = KMeans(4).segment(seen)
    assert clustered.shape == (200, 320)
    assert len(np.unique(clustered)) == 4
    assert len(passes) == 3


def test_a_method_with_a_look_of_its_own_sees_the_photo_at_its_own_size(seg, photo, monkeypatch):
    """DiffCut beside DiffSeg on one observed photo: a second pass, of other pixels, time step and noise."""
    passes = []
    observe = type(seg.model).observe

    def watched(model, images, needs, look, *rest):
        passes.append((tuple(images.shape[2:]), look.timestep, look.noise))
        return observe(model, images, needs, look, *rest)

    monkeypatch.setattr(type(seg.model), "observe", watched)
    seen = seg.observe(photo, size=256)
    for threshold in (0.3, 0.7):
        assert DiffCut(threshold, size=384).segment(seen).shape == (200, 320)
    Merging(0.5).segment(seen)
    assert passes == [
        (working_size(200, 320, 384, 64), 50, 42),
        (working_size(200, 320, 256, 64), seg.settings().timestep, None),
    ]


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    """The folders at the top level and the embedded model travel inside the package."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(tmp_path.glob("diffseg-*.whl"))) as wheel:
        names = wheel.namelist()
    for name in (
        "datasets/scenes.py",
        "datasets/scenery/drawing.py",
        "backbones/diffusion.py",
        "methods/merging.py",
        "conf/protocol/diffseg.yaml",
        "eval/metrics.py",
        "eval/show/report.html",
        "page/explore.html",
        "page/explore.css",
        "page/explore.js",
        "mini/README.md",
        "py.typed",
        "mini/weights/model_index.json",
    ):
        assert f"diffseg/{name}" in names
    assert "diffseg/mini/weights/unet/diffusion_pytorch_model.safetensors" in names
    assert all(name.startswith("diffseg") for name in names), "nothing lands beside the package"
