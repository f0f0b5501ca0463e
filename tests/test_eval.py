"""The main job as a user runs it, and what is claimed of the embedded model."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from diffseg import DiffSeg
from diffseg.datasets.scenes import Scenes
from diffseg.eval.bench import straightforward_aggregate, straightforward_merge
from diffseg.eval.run import diffseg, score
from diffseg.mini.evaluate import attention_picture, colour_kmeans, gallery, tune
from diffseg.segmentation import aggregate, anchor_distances, merge
from tests.test_segmentation import random_maps


def test_the_main_job_in_a_real_process(tmp_path):
    command = [sys.executable, "-m", "diffseg.eval.run", "--scenes", "2", "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr
    for words in ("mini on 2 generated scenes", "pixel accuracy", "mIoU", "segments per image", "breaks its ties"):
        assert words in ran.stdout


def test_a_perfect_and_a_trivial_segmenter():
    scenes = Scenes(3, seed=21, size=128)
    perfect = score(scenes, lambda pixels, truth: truth.astype(int), "perfect")
    assert perfect["accuracy"] == perfect["miou"] == 1
    assert perfect["interval"]["miou"] == (1, 1)
    trivial = score(scenes, lambda pixels, truth: np.zeros(truth.shape, int), "trivial")
    largest = sum(np.bincount(scenes.label(k).ravel()).max() for k in scenes.keys) / (3 * 128 * 128)
    assert trivial["accuracy"] == pytest.approx(largest)
    assert trivial["segments"] == 1


@pytest.mark.slow
def test_the_embedded_model_beats_colour_on_scenes_it_has_never_seen():
    scenes, seg = Scenes(24), DiffSeg.from_pretrained("mini", device="cpu")
    ours = score(scenes, diffseg(seg, seg.settings()), "DiffSeg")
    colour = score(scenes, colour_kmeans, "k-means on colour, told the number of classes")
    assert ours["accuracy"] > colour["accuracy"]
    assert ours["miou"] > colour["miou"]


def test_colour_kmeans_finds_flat_colours():
    truth = np.repeat(np.arange(4), 16)[None].repeat(64, 0)
    pixels = torch.tensor([-0.9, -0.3, 0.3, 0.9])[torch.from_numpy(truth)].expand(3, 64, 64)
    found = colour_kmeans(pixels, truth)
    assert len(np.unique(found)) == 4
    assert all(len(np.unique(found[truth == i])) == 1 for i in range(4))


@pytest.mark.parametrize("sizes", [[(8, 8), (4, 4), (2, 2)], [(6, 12), (3, 6)]], ids=str)
def test_the_fast_way_is_the_straightforward_way(sizes):
    maps = {size: m.float() for size, m in random_maps(2, sizes, sharp=1.0).items()}
    single = {size: m[0] for size, m in maps.items()}
    slow_attention, attention = straightforward_aggregate(single), aggregate(maps)[0]
    torch.testing.assert_close(attention, slow_attention)
    distances = anchor_distances(attention, 4)
    for thresholds in ([0.05], [0.1, 0.2], [0.3] * 3):
        expected = straightforward_merge(slow_attention, 4, thresholds)
        torch.testing.assert_close(merge(attention, 4, thresholds), expected)
        torch.testing.assert_close(merge(attention, 4, thresholds, distances), expected)


def test_tuning_and_pictures():
    seg = DiffSeg.from_pretrained("mini", device="cpu")
    rows = tune(seg.model, [300], [0.3, 1e6], 1)
    assert {row["threshold"] for row in rows} == {0.3, 1e6}
    assert rows[0]["miou"] >= rows[1]["miou"]
    assert attention_picture(seg.model, Scenes(1, size=128).scene("000000").image, 300, side=32).size == (192, 128)
    assert gallery(seg, [0], side=64).size == (64, 128)
