"""The method against the reference's golden cases, hand-made cases, and what must hold for any input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from diffseg.segmentation import (
    _groups,
    _means,
    _upsampled,
    aggregate,
    anchor_grid,
    merge,
    merge_batch,
    refine,
    symmetric_kl,
    to_labels,
)
from tests.golden import inputs

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())


def golden_maps(case: dict, dtype: torch.dtype) -> dict:
    maps = inputs.attention(*(case[k] for k in ("seed", "regions", "heads", "same", "near", "noise")))
    return {(n, n): torch.from_numpy(m).to(dtype).mean(0, keepdim=True) for n, m in maps.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_golden(case):
    expected, maps = np.load(GOLDEN / f"{case['name']}.npz"), golden_maps(case, torch.float64)
    for dtype, share in ((torch.float64, 1.0), (torch.float32, 0.999)):
        attention = aggregate({size: m.to(dtype) for size, m in maps.items()}, case["weights"])[0]
        rows = attention.reshape(4096, 4096)[::512]
        np.testing.assert_allclose(rows, expected["aggregated_rows"], rtol=2e-5, atol=1e-9)
        proposals = merge(attention, case["anchors"], case["tau"])
        if case["refine"]:
            proposals = refine(attention, proposals)
        assert (to_labels(proposals, (512, 512)).numpy() == expected["labels"]).mean() >= share, dtype


def random_maps(seed: int, sizes, batch: int = 1, sharp: float = 2.0) -> dict:
    g = torch.Generator().manual_seed(seed)
    return {
        (h, w): torch.softmax(sharp * torch.randn(batch, h * w, h * w, generator=g, dtype=torch.float64), -1)
        for h, w in sizes
    }


def two_halves(h: int, w: int) -> torch.Tensor:
    """Attention [h, w, h, w] of a picture whose left and right halves attend only to themselves, nearly."""
    left = (torch.arange(w) < w // 2).repeat(h)
    same = torch.where(left[:, None] == left, 1.0, 1e-4).double()
    return (same / same.sum(1, keepdim=True)).view(h, w, h, w)


def test_aggregate_by_hand():
    """2 x 2 over 1 x 1: the coarse map is uniform, and counts a third (1 of 2 + 1)."""
    fine = torch.eye(4, dtype=torch.float64)[None]
    total = aggregate({(2, 2): fine, (1, 1): torch.ones(1, 1, 1, dtype=torch.float64)})
    expected = (2 / 3) * torch.eye(4).double() + (1 / 3) * torch.full((4, 4), 0.25).double()
    torch.testing.assert_close(total.view(4, 4), expected)


def test_aggregate_repeats_queries_and_interpolates_keys():
    """A 1 x 2 level on a 1 x 4 grid: both left queries see the left query's keys, bilinear with half-pixel centres."""
    coarse = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    total = aggregate({(1, 4): torch.full((1, 4, 4), 0.25).double(), (1, 2): coarse}, [0.0, 1.0]).view(4, 4)
    left = torch.tensor([1.0, 0.75, 0.25, 0.0]).double() / 2
    torch.testing.assert_close(total, torch.stack([left, left, left.flip(0), left.flip(0)]))


@pytest.mark.parametrize("sizes", [[(6, 10), (3, 5)], [(8, 8), (4, 4), (2, 2)], [(5, 7), (3, 4), (2, 2)]])
def test_aggregate_any_shape_gives_distributions(sizes):
    maps = random_maps(3, sizes, batch=2)
    total = aggregate(maps)
    assert total.shape == (2, *sizes[0], *sizes[0])
    torch.testing.assert_close(total.sum((3, 4)), torch.ones(2, *sizes[0]).double())
    alone = aggregate({s: m[1:] for s, m in maps.items()})
    torch.testing.assert_close(total[1:], alone, rtol=0, atol=0)


def test_aggregate_scales_weights_and_ignores_the_order_of_the_maps():
    maps = random_maps(4, [(4, 4), (2, 2)])
    shuffled = dict(reversed(maps.items()))
    torch.testing.assert_close(aggregate(maps, [3, 1]), aggregate(shuffled, [0.75, 0.25]))
    torch.testing.assert_close(aggregate(maps), aggregate(maps, [4, 2]))


@pytest.mark.parametrize("weights", [[1.0], [1, 1, 1], [0, 0], [-1, 2], [float("nan"), 1]])
def test_aggregate_refuses_bad_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        aggregate(random_maps(0, [(4, 4), (2, 2)]), weights)


def test_anchor_grid():
    assert anchor_grid(16, (64, 64))[:3].tolist() == [[1, 1], [1, 5], [1, 9]]
    assert anchor_grid(16, (64, 64))[-1].tolist() == [61, 61]
    assert anchor_grid(2, (3, 8)).tolist() == [[0, 0], [0, 7], [2, 0], [2, 7]]
    assert anchor_grid(1, (9, 5)).tolist() == [[4, 2]]


@given(h=st.integers(1, 80), w=st.integers(1, 80), data=st.data())
def test_anchor_grid_fits_and_is_even(h, w, data):
    m = data.draw(st.integers(1, min(h, w)))
    grid = anchor_grid(m, (h, w))
    assert len(grid.unique(dim=0)) == m * m
    for axis, n in enumerate((h, w)):
        positions = grid[:, axis].unique()
        assert positions[0] >= 0
        assert positions[-1] < n
        assert abs(int(positions[0]) - (n - 1 - int(positions[-1]))) <= 1


@pytest.mark.parametrize("anchors", [0, -1, 9])
def test_anchor_grid_refuses_what_does_not_fit(anchors):
    with pytest.raises(ValueError, match="1 to 8 per side on attention maps of 8x12"):
        anchor_grid(anchors, (8, 12))


def test_symmetric_kl_is_scipys():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.softmax(3 * torch.randn(n, 50, generator=g, dtype=torch.float64), 1) for n in (4, 6))
    a, b = p.numpy()[:, None], q.numpy()[None]
    expected = (rel_entr(a, b).sum(-1) + rel_entr(b, a).sum(-1)) / 2
    np.testing.assert_allclose(symmetric_kl(p, q), expected, rtol=1e-10)
    np.testing.assert_allclose(symmetric_kl(p.float(), q.float()), expected, atol=1e-5)


def test_symmetric_kl_of_zeros():
    """0 log 0 = 0 where both are 0; disjoint maps are very far apart; nothing is NaN or infinite."""
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    d = symmetric_kl(p, p)
    assert d.isfinite().all()
    assert d.diagonal().abs().max() == 0
    assert d[0, 1] == pytest.approx((0.25 * np.log(3)) / 2, rel=1e-5)  # (p - q) . (log p - log q) / 2
    assert d[0, 2] > 50


def test_merge_two_halves():
    for dtype in (torch.float32, torch.float64):
        attention = two_halves(8, 12).to(dtype)
        proposals = merge(attention, 4, [1.0] * 3)
        assert len(proposals) == 2
        labels = to_labels(proposals, (16, 24))
        assert (labels[:, :12] == 0).all()
        assert (labels[:, 12:] == 1).all()


def test_merge_one_iteration_keeps_every_anchor():
    proposals = merge(two_halves(8, 8), 4, [1.0])
    assert len(proposals) == 16
    torch.testing.assert_close(proposals.sum((1, 2)), torch.ones(16).double())


def test_merge_walks_in_order_and_takes_matched_ones_again():
    """Three maps in a chain: a-b and b-c are near, a-c is not. a takes b; c, not yet matched, takes b again."""

    def step(x):
        return torch.tensor([0.5 - x, 0.5 + x])

    chain = torch.stack([step(-0.2), step(0.0), step(0.2), step(0.2)]).double()
    near, far = symmetric_kl(chain[:1], chain[1:3])[0]
    assert near < far
    threshold = float((near + far) / 2)
    close = symmetric_kl(chain[:3], chain[:3]) < threshold
    assert np.array_equal(_groups(close.numpy()), close[[0, 2]])
    torch.testing.assert_close(_means(close[[0, 2]], chain[:3]), torch.stack([step(-0.1), step(0.1)]).double())


def test_a_batch_is_merged_as_its_images_are():
    """Images of different numbers of proposals: what pads the smaller ones must not enter the means."""
    images = [
        aggregate(random_maps(seed, [(6, 8), (3, 4)], sharp=sharp))[0] for seed, sharp in enumerate((0.1, 2.0, 5.0))
    ]
    for thresholds in ([0.2], [0.2, 0.5], [0.1, 0.4, 1.5, 1.5]):
        together = merge_batch(torch.stack(images), 5, thresholds)
        alone = [merge(image, 5, thresholds) for image in images]
        assert len({len(p) for p in alone}) > 1 or len(thresholds) == 1
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("size", "to"), [((3, 5), (6, 15)), ((4, 4), (7, 9)), ((1, 1), (4, 4))], ids=str)
def test_upsampling_is_bilinear_with_half_pixel_centres(size, to):
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.interpolate(maps[None], to, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(_upsampled(maps, to), expected)


@pytest.mark.parametrize(
    "sizes", [[(8, 8), (4, 4), (2, 2)], [(6, 9), (4, 4), (2, 2)], [(7, 7), (3, 3), (2, 2)]], ids=str
)
def test_aggregation_is_the_weighted_sum_of_what_each_resolution_gives(sizes):
    """Also where sizes do not divide each other, and the sum so far cannot go on to the next."""
    maps, weights = random_maps(3, sizes, batch=2), [0.5, 0.3, 0.2]
    alone = (aggregate(maps, [float(i == j) for j in range(3)]) for i in range(3))
    torch.testing.assert_close(aggregate(maps, weights), sum(w * one for w, one in zip(weights, alone, strict=True)))
    coarse = aggregate(maps, [0.0, 0.0, 1.0])
    row = (torch.arange(sizes[0][0]) + 0.5) * 2 / sizes[0][0]
    torch.testing.assert_close(coarse[:, :, 0], coarse[:, [0, sizes[0][0] - 1], 0][:, row.long()])


def test_the_slices_do_not_matter(monkeypatch):
    maps = random_maps(7, [(6, 8), (3, 4)], batch=2)
    whole = aggregate(maps)
    proposals = merge(whole[0], 4, [0.3, 0.5])
    monkeypatch.setattr("diffseg.segmentation.slice_bytes", lambda device: 1)
    torch.testing.assert_close(aggregate(maps), whole)
    torch.testing.assert_close(merge(whole[0], 4, [0.3, 0.5]), proposals)


def test_distances_are_exact_whatever_precision_the_program_allows():
    """Some devices multiply float32 in bfloat16 or TF32 where a program lets them. Its setting is put back."""
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(backend, "fp32_precision"):
        pytest.skip("before torch 2.9 there is no such setting of the CPU's own")
    p = torch.softmax(8 * torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)), -1)
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        found = symmetric_kl(p, p)
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
    torch.testing.assert_close(found.double(), symmetric_kl(p.double(), p.double()), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("thresholds", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_merge_refuses_bad_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        merge(two_halves(4, 4), 2, thresholds)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(1e-6, 5), n=st.integers(1, 4), anchors=st.integers(1, 5))
def test_merge_gives_distributions_and_fewer_with_higher_thresholds(seed, threshold, n, anchors):
    attention = aggregate(random_maps(seed, [(5, 6), (3, 3)], sharp=1.0))[0]
    proposals = merge(attention, anchors, [threshold] * n)
    assert 1 <= len(proposals) <= anchors**2
    torch.testing.assert_close(proposals.sum((1, 2)), torch.ones(len(proposals)).double())
    assert len(merge(attention, anchors, [1e6] * max(n, 2))) == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_merge_does_not_depend_on_how_keys_are_numbered(seed):
    """Permuting the key axis permutes the proposals, and nothing else."""
    attention = aggregate(random_maps(seed, [(4, 5), (2, 3)], sharp=1.0))[0]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    permuted = attention.reshape(4, 5, 20)[..., order].view(4, 5, 4, 5)
    a, b = (merge(x, 3, [0.2] * 3).reshape(-1, 20) for x in (attention, permuted))
    torch.testing.assert_close(a[:, order], b)


def test_zeros_never_make_nan_in_merging():
    attention = two_halves(6, 6).float()
    attention[attention < 1e-3] = 0
    attention /= attention.sum((2, 3), keepdim=True)
    proposals = merge(attention, 3, [0.5] * 3)
    assert proposals.isfinite().all()
    assert len(proposals) == 2


def test_refine_is_kmeans():
    from sklearn.cluster import KMeans

    attention = aggregate(random_maps(8, [(6, 6), (3, 3)]))[0]
    start = merge(attention, 3, [0.6])
    expected = KMeans(len(start), init=start.reshape(-1, 36).numpy(), n_init=1).fit(attention.reshape(36, 36).numpy())
    torch.testing.assert_close(refine(attention, start).reshape(-1, 36), torch.from_numpy(expected.cluster_centers_))


def test_refine_drops_clusters_without_members():
    attention = two_halves(4, 4)
    far = torch.zeros(1, 4, 4).double()
    far[0, 0, 0] = 1
    refined = refine(attention, torch.cat([attention[:1, 0], far, attention[:1, 3]]))
    torch.testing.assert_close(refined, torch.stack([attention[0, 0], attention[0, 3]]))


def test_to_labels_by_hand():
    proposals = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]])
    # Bilinear with half-pixel centres on 1 x 4: rows 1, .75, .25, 0 and their mirror; .5 never wins.
    assert to_labels(proposals, (1, 4)).tolist() == [[0, 0, 1, 1]]
    assert to_labels(torch.ones(3, 2, 2), (3, 5)).unique().tolist() == [0]  # ties go to the first


def test_to_labels_is_the_same_in_chunks(monkeypatch):
    proposals = torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = to_labels(proposals, (50, 30))
    monkeypatch.setattr("diffseg.segmentation._CHUNK_BYTES", 1)
    assert torch.equal(to_labels(proposals, (50, 30)), whole)
