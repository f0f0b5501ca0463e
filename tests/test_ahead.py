"""Work side by side: in order, each with its share of the threads; the same results, whatever the number of streams."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffseg.ahead import ahead, side_by_side, threads
from diffseg.attention import Look
from diffseg.backbones import base
from diffseg.cli import app
from diffseg.datasets.scenes import scene
from diffseg.segmenter import DiffSeg


@pytest.fixture(autouse=True)
def four_threads():
    """Of torch's, whatever the machine."""
    usual = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(usual)


def test_no_more_is_begun_than_allowed():
    """A gate shuts after the third: the fourth item is taken when the first result has been."""
    begun: list[int] = []
    with threads(8) as pool:
        results = ahead(pool, lambda item: begun.append(item) or item, iter(range(100)), 3)
        for expected, result in enumerate(results):
            assert result == expected
            assert len(begun) <= expected + 4
    assert sorted(begun) == list(range(100))


def test_results_come_in_order_though_later_ones_are_done_first():
    def work(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number, torch.get_num_threads(), threading.get_ident()

    results = list(side_by_side(work, range(12), 2))
    assert [number for number, _, _ in results] == list(range(12))
    assert {count for _, count, _ in results} == {2}
    assert len({thread for _, _, thread in results}) == 2
    assert torch.get_num_threads() == 4


def test_one_stream_works_here_and_not_before_it_is_asked():
    begun = []
    results = side_by_side(lambda number: begun.append(threading.get_ident()) or number, range(3), 1)
    assert not begun
    assert next(results) == 0
    assert begun == [threading.get_ident()]


def test_an_error_comes_in_its_turn_and_leaves_the_threads_as_they_were():
    def work(number):
        return 1 // (number - 3)

    results = side_by_side(work, range(8), 4)
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == 4


def test_as_many_images_at_a_time_as_memory_and_threads_allow(monkeypatch):
    mini = DiffSeg.from_pretrained("mini", device="cpu").model
    an_image = base._OF_MAPS * base.maps_bytes([(64, 64), (32, 32), (16, 16), (8, 8)], 1)
    for free, expected in ((None, 4), (100 * an_image, 4), (6 * an_image, 3), (an_image, 1)):
        monkeypatch.setattr(base, "free_bytes", lambda device, free=free: free)
        assert mini.streams((512, 512)) == expected
    monkeypatch.setattr(base, "free_bytes", lambda device: 6 * an_image)
    assert mini.streams((512, 512), selections=3) == 1
    assert mini.streams((1024, 1024)) == 1
    torch.set_num_threads(2)
    monkeypatch.setattr(base, "free_bytes", lambda device: None)
    assert mini.streams((512, 512)) == 2


def test_a_folder_of_photos_gives_what_each_gives_alone(tmp_path, monkeypatch):
    """Photos of several shapes, one of them damaged, four at a time; the damaged one is told and skipped."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(scene(3, index, 160).image[: 160 - 16 * index]).save(folder / f"p{index}.png")
    (folder / "p2.png").write_bytes((folder / "p2.png").read_bytes()[:900])
    small = ["--size", "128", "--anchors", "8", "--device", "cpu"]
    ran = CliRunner().invoke(app, ["segment", str(folder), "--out", str(tmp_path / "out"), *small])
    assert ran.exit_code == 1
    assert "p2.png" in ran.stderr
    seg = DiffSeg.from_pretrained("mini", device="cpu")
    assert seg.model.streams((128, 128)) == 4
    written = sorted(path.name for path in (tmp_path / "out").glob("*.labels.png"))
    assert written == [f"p{index}.labels.png" for index in (0, 1, 3, 4)]
    for name in written:
        alone = seg(folder / name.replace(".labels", ""), size=128, anchors=8).labels
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / name)), alone)


def test_passes_of_one_model_side_by_side_are_those_alone():
    """With an empty prompt, which the first of them encodes."""
    model = DiffSeg.from_pretrained("mini", device="cpu").model
    pixels = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(4)]

    def maps(image):
        return model.observe(image, base.Needs(attention=True), Look(timestep=100)).self_attention

    beside = list(side_by_side(maps, pixels, 4))
    for image, seen in zip(pixels, beside, strict=True):
        alone = maps(image)
        assert all(torch.allclose(alone[size], seen[size], atol=1e-6) for size in alone)
