"""The benchmark compares with the straightforward way: both must give the same."""

import pytest
import torch

from diffseg.eval.bench import CUTS, region_features
from diffseg.eval.straightforward import straightforward_aggregate, straightforward_merge
from diffseg.segmentation import aggregate, anchor_distances, merge
from tests.golden import inputs
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
