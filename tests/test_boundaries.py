"""Boundaries: small maps worked out by hand, plain procedures on pixels, and the benchmark's figures."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat
from scipy.ndimage import binary_erosion, distance_transform_edt, label
from scipy.optimize import linear_sum_assignment

from diffseg.eval.boundaries import (
    EXACT,
    FAST,
    band,
    best_boundaries,
    boundaries,
    boundary_counts,
    dilate,
    match_pixels,
    matched_counts,
    thinned,
)
from diffseg.eval.protocols import Boundaries
from tests.test_protocols import BSDS, benchmark


def halves(side: int = 64, at: int = 32) -> np.ndarray:
    """A map of two halves, the right one from column `at`."""
    return np.tile(np.arange(side) >= at, (side, 1)).astype(int)


def blobs(seed: int, side: int = 40, regions: int = 6) -> np.ndarray:
    """Each pixel belongs to the nearest of some random points."""
    points = np.random.default_rng(seed).uniform(0, side, (regions, 2))
    return ((np.indices((side, side))[..., None] - points.T[:, None, None]) ** 2).sum(0).argmin(-1)


def named(counts: np.ndarray) -> dict[str, int]:
    return dict(zip((*FAST, *EXACT), counts.tolist(), strict=False))


def score(truth, labels, exact=True) -> dict[str, float]:
    return Boundaries().score([boundary_counts(truth, labels, exact)])


def near_by_distance(mask: np.ndarray, radius: float) -> np.ndarray:
    return distance_transform_edt(~mask) <= radius if mask.any() else np.zeros_like(mask)


# --- where boundaries are ---------------------------------------------------------------------------------------------


def test_boundaries_by_hand():
    """On the left and upper side; the corner is marked across the diagonal; unlabelled neighbours are none."""
    labels = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert boundaries(labels).astype(int).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 0]]
    labelled = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]], bool)
    assert boundaries(labels, labelled).astype(int).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert not boundaries(labels, labels == 0).any()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.integers(0, 7), share=st.sampled_from([0, 0.01, 0.2]))
def test_dilation_is_by_distance(seed, radius, share):
    mask = np.random.default_rng(seed).random((23, 31)) < share
    np.testing.assert_array_equal(dilate(mask, radius), near_by_distance(mask, radius))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 5))
def test_a_band_is_what_erosion_takes(seed, width):
    labels = blobs(seed)
    eroded = [
        binary_erosion(labels == region, np.ones((3, 3)), iterations=width, border_value=1)
        for region in np.unique(labels)
    ]
    np.testing.assert_array_equal(band(labels, width), ~np.any(eroded, axis=0))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_thinning_tears_nothing_and_ends(seed):
    lines = boundaries(blobs(seed))
    thin = thinned(lines)
    assert not (thin & ~lines).any()
    assert label(thin, np.ones((3, 3)))[1] == label(lines, np.ones((3, 3)))[1]
    np.testing.assert_array_equal(thinned(thin), thin)


def test_thinning_takes_the_corners_of_steps():
    steps = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], bool)
    assert thinned(steps).sum() == 4


# --- counts -----------------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    """Lines 3 columns apart in 64 rows: the diagonal is 90.5, so the radius is 1 by dilation and .68 in matching, and
    the bands are 2 pixels to either side."""
    got = named(boundary_counts(halves(), halves(at=35), exact=True))
    assert [got[name] for name in FAST] == [0, 64, 0, 64, 64, 7 * 64]
    assert [got[name] for name in EXACT] == [0, 64, 0, 64]
    got = named(boundary_counts(halves(), halves(at=33), exact=True))
    assert [got[name] for name in FAST] == [64, 64, 64, 64, 3 * 64, 5 * 64]
    assert [got[name] for name in EXACT] == [0, 64, 0, 64]


def test_a_pixel_is_matched_once():
    """Two lines of labels beside the truth's one: dilation finds both precise, matching one of them."""
    truth, labels = halves(256, 128), halves(256, 128) + halves(256, 130)
    got = named(boundary_counts(truth, labels, exact=True))
    assert (got["dilation_precise"], got["dilation_labels"], got["dilation_recalled"]) == (512, 512, 256)
    assert (got["matched_precise"], got["matched_labels"], got["matched_recalled"]) == (256, 512, 256)


def test_scores_by_hand():
    truth, labels = halves(256, 128), halves(256, 128) + halves(256, 200)
    got = score(truth, labels)
    assert got == pytest.approx(
        {"precision": 1 / 2, "recall": 1, "f": 2 / 3, "boundary_iou": 1 / 2}
        | {"matched_precision": 1 / 2, "matched_recall": 1, "matched_f": 2 / 3}
    )


@pytest.mark.parametrize(("truth", "labels", "f"), [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
def test_no_boundary_at_all(truth, labels, f):
    """DAVIS's rule: right if the other map has none either."""
    maps = [np.zeros((64, 64), int), halves()]
    assert score(maps[truth], maps[labels])["f"] == f


def test_means_over_images_and_ratios_of_sums():
    """One image is met, one, with twice the boundary in its labels, half."""
    truth, labels = halves(256, 128), halves(256, 128) + halves(256, 200)
    images = [boundary_counts(truth, prediction, exact=True) for prediction in (truth, labels)]
    got = Boundaries().score(images)
    assert (got["f"], got["precision"]) == pytest.approx(((1 + 2 / 3) / 2, (1 + 1 / 2) / 2))
    assert (got["matched_precision"], got["matched_f"]) == pytest.approx((2 / 3, 2 / (1 + 3 / 2)))
    assert got["boundary_iou"] == pytest.approx(2 / 3)
    fast = Boundaries().score([counts[: len(FAST)] for counts in images])
    assert fast == {name: value for name, value in got.items() if not name.startswith("matched")}


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0, 0.1, 0.6]))
def test_a_perfect_map_is_perfect_whatever_it_says_of_void(seed, share):
    rng = np.random.default_rng(seed)
    truth = blobs(seed)
    void = dilate(rng.random(truth.shape) < share / 20, 3)
    labels = np.where(void, rng.integers(0, 9, truth.shape), truth + 3)
    if boundaries(truth, ~void).any():
        assert set(score(np.where(void, -1, truth), labels).values()) == {1}


def test_boundaries_in_void_are_left_out():
    """A line of labels in the void half costs nothing; in the labelled half it does."""
    truth = np.where(np.arange(256) < 160, halves(256, 80), -1)
    assert score(truth, halves(256, 80) + halves(256, 200))["precision"] == 1
    assert score(truth, halves(256, 80) + halves(256, 120))["precision"] == 1 / 2


def test_a_fine_grid_is_near_everything():
    """The trap of bands: a grid finer than they are wide has the truth's share of the image."""
    grid = np.add.outer(np.arange(256) // 7 * 64, np.arange(256) // 7)
    truth = halves(256, 128)
    width = round(0.02 * 256 * 2**0.5)
    assert score(truth, grid)["boundary_iou"] == pytest.approx(2 * width / 256)


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        boundary_counts(np.zeros((2, 2), int), np.zeros((2, 3), int))


# --- matching ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.sampled_from([0.5, 1, 2.3, 5.4]), share=st.sampled_from([0.02, 0.2, 0.6]))
def test_matching_is_the_largest_and_then_the_nearest(seed, radius, share):
    """As many pairs as the dense assignment has, with and without regard to distance."""
    a, b = np.random.default_rng(seed).random((2, 9, 11)) < share
    places = np.argwhere(a), np.argwhere(b)
    distance = np.linalg.norm(places[0][:, None] - places[1], axis=-1)
    rows, columns = linear_sum_assignment(np.where(distance <= radius, 1e4 - distance, 0), maximize=True)
    pairs = (distance[rows, columns] <= radius).sum()
    for nearest in (True, False):
        matched = match_pixels(a, b, radius, nearest)
        assert matched.shape == (a.sum(),)
        assert matched.sum() == match_pixels(b, a, radius, nearest).sum() == pairs


def test_the_nearest_of_two_is_matched():
    a, b = np.zeros((2, 1, 9), bool)
    a[0, [1, 4]], b[0, 3] = True, True
    assert match_pixels(a, b, 3).tolist() == [False, True]


def test_any_annotation_makes_a_pixel_precise():
    """Two lines, each drawn by one of two annotators: all precise, half recalled."""
    lines = [boundaries(halves(256, at)) for at in (64, 192)]
    assert matched_counts(lines, lines[0] | lines[1]).tolist() == [512, 512, 512, 512]
    assert matched_counts(lines, lines[0]).tolist() == [256, 512, 256, 256]


def test_best_boundaries_by_hand():
    """Recalled, truth, precise, labels of two images at two settings: each prefers another one."""
    counts = np.array([[[8, 10, 8, 20], [2, 10, 2, 10]], [[4, 10, 4, 10], [6, 10, 6, 10]]])
    got = best_boundaries(counts)
    assert (got["setting"], got["recall_ods"], got["precision_ods"]) == pytest.approx((0, 12 / 20, 12 / 30))
    assert (got["recall_ois"], got["precision_ois"], got["f_ois"]) == pytest.approx((14 / 20, 14 / 30, 28 / 50))
    assert best_boundaries(counts[:, :1])["f_ods"] == pytest.approx(2 * 12 / 50)


def test_the_best_setting_may_lie_between_two():
    """Recall rises from .2 to 1 while precision falls from 1 to .2: halfway both are .6."""
    got = best_boundaries(np.array([[[1, 5, 1, 1], [5, 5, 5, 25]]]))
    assert (got["setting"], got["f_ods"]) == pytest.approx((0.5, 0.6), abs=0.01)
    assert got["f_ois"] == pytest.approx(1 / 3)
    assert got["ap"] == pytest.approx(81 * 0.6 / 100)


@cache
def benchmark_counts() -> np.ndarray:
    """int64 [5 images, 5 settings, 4]."""
    return np.array(
        [
            [matched_counts([boundaries(t) for t in truths], boundaries(s)) for s in segmentations]
            for segmentations, truths in benchmark()
        ]
    )


@pytest.mark.parametrize("folder", ["test_3", "test_4"])
def test_boundaries_against_the_benchmark(folder):
    """Its own two runs differ by up to .0006, for its solver draws lots."""
    counts = benchmark_counts()
    best = best_boundaries(counts)
    names = [f"{name}_{kind}" for kind, name in itertools.product(("ods", "ois"), ("recall", "precision", "f"))]
    printed = np.loadtxt(BSDS / folder / "eval_bdry.txt")
    assert best["setting"] + 1 == printed[0]
    assert [best[name] for name in (*names, "ap")] == pytest.approx(printed[1:], abs=5e-4)
    for setting, line in enumerate(np.loadtxt(BSDS / folder / "eval_bdry_thr.txt")):
        mine = best_boundaries(counts[:, setting : setting + 1])
        assert [mine[name] for name in names[:3]] == pytest.approx(line[1:], abs=2e-3)
    for image, line in zip(counts, np.loadtxt(BSDS / folder / "eval_bdry_img.txt"), strict=True):
        mine = best_boundaries(image[None])
        assert [mine["setting"] + 1, *(mine[name] for name in names[:3])] == pytest.approx(line[1:], abs=2e-3)


def test_thinned_boundaries_are_the_annotations_own():
    """The benchmark's files carry each annotation's boundaries beside its map."""
    for path, (_, truths) in zip(sorted((BSDS / "groundTruth").glob("*.mat")), benchmark(), strict=True):
        for annotation, truth in zip(loadmat(path)["groundTruth"].ravel(), truths, strict=True):
            np.testing.assert_array_equal(thinned(boundaries(truth)), annotation["Boundaries"][0, 0] > 0)
