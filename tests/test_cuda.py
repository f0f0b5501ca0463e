"""The same on a CUDA device."""

import numpy as np
import pytest
import torch

from diffseg import DiffSeg
from diffseg.datasets.scenes import scene
from diffseg.segmentation import aggregate, merge, refine, to_labels
from tests.test_segmentation import CASES, GOLDEN, golden_maps

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_golden(case):
    maps = {size: m.cuda() for size, m in golden_maps(case, torch.float32).items()}
    attention = aggregate(maps, case["weights"])[0]
    proposals = merge(attention, case["anchors"], case["tau"])
    if case["refine"]:
        proposals = refine(attention, proposals)
    labels = to_labels(proposals, (512, 512)).cpu().numpy()
    assert (labels == np.load(GOLDEN / f"{case['name']}.npz")["labels"]).mean() >= 0.999


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.99), (torch.float16, 0.95)], ids=str)
def test_whole_photos(dtype, share):
    photo = scene(4, 0).image
    expected = DiffSeg.from_pretrained("mini", device="cpu")(photo).labels
    found = DiffSeg.from_pretrained("mini", device="cuda", dtype=dtype)(photo).labels
    assert (found == expected).mean() >= share
