"""The benchmark compares with the straightforward way: both must give the same."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from diffseg.eval import bench
from diffseg.eval.bench import CUTS, region_features
from diffseg.eval.straightforward import straightforward_aggregate, straightforward_merge
from diffseg.segmentation import aggregate, anchor_distances, merge
from tests.golden import inputs
from tests.models import save_pipeline
from tests.test_segmentation import random_maps


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


def test_the_cut_is_timed_on_the_golden_features():
    for *made, _, _ in CUTS:
        assert torch.equal(region_features(*made), torch.from_numpy(inputs.features(*made)))


def test_the_command_says_and_keeps_all_of_it(tmp_path, monkeypatch):
    """The straightforward merging, half a minute, stands back: the test above compares it."""
    same = {"seconds": 1.0, "straightforward_s": 2.0, "ratio": 2.0, "equal": True}
    monkeypatch.setattr(bench, "ratio", lambda *args: same)
    monkeypatch.setattr(bench, "CUTS", CUTS[:1])
    monkeypatch.setattr(bench, "SCORED", 20)
    app = typer.Typer()
    app.command()(bench.main)
    model = save_pipeline("sd1", tmp_path / "model")
    given = [
        "--model",
        str(model),
        "--device",
        "cpu",
        "--images",
        "2",
        "--repeats",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    ran = CliRunner().invoke(app, given)
    assert ran.exit_code == 0, ran.output
    (kept,) = (tmp_path / "out").iterdir()
    result = json.loads(kept.read_text())
    stages = result["stages_s"]["1"]
    ours = ("autoencoder", "unet, attention captured", "aggregate", "merge", "labels")
    assert stages["model and method"] == pytest.approx(sum(stages[name] for name in ours))
    assert f"{1000 * stages['merge']:.1f}" in ran.stdout
    assert result["images_per_s"]["images"] == 2
    assert [row["equal"] for row in result["cuts"]] == [True]
    assert "proposals equal" in ran.stdout
    assert "partitions equal" in ran.stdout
