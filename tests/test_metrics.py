"""Scoring: the reference's golden cases, cases a person can work out, and invariants."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffseg.eval.metrics import (
    Counts,
    agreement,
    bootstrap,
    histogram,
    match,
    paired_bootstrap,
    summarise,
    tie_sensitivity,
)
from tests.golden import inputs
from tests.test_segmentation import GOLDEN

MATCHING = json.loads((GOLDEN / "matching.json").read_text())


@pytest.mark.parametrize("case", MATCHING, ids=lambda c: f"seed{c['seed']}")
def test_golden(case):
    label, prediction = inputs.label_maps(case["seed"], case["classes_drawn"], case["segments_drawn"], case["ignored"])
    counts = match(histogram(label, prediction, 27))
    for key in ("tp", "fp", "fn"):
        assert getattr(counts, key).tolist() == case[key]
    assert counts.pixels == case["pixels"]
    summary = summarise(counts)
    assert summary["accuracy"] == pytest.approx(case["accuracy"], abs=1e-12)
    assert summary["miou"] == pytest.approx(case["miou"], abs=1e-12)


def test_histogram_by_hand():
    label = np.array([[0, 0, 1], [2, -1, -1]])
    prediction = np.array([[0, 4, 1], [1, 1, 0]])
    assert histogram(label, prediction, 3).tolist() == [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]


def test_agreement_by_hand():
    """Numbers may differ; two segments of one side cannot both be one of the other."""
    a = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    assert agreement(a, np.array([5, 0, 1])[a]) == 1.0
    assert agreement(a, np.array([0, 0, 1])[a]) == 6 / 8
    assert agreement(np.array([0, 0, 1])[a], a) == 6 / 8


def test_a_perfect_segmentation_in_other_numbers():
    label = np.array([[0, 0, 1], [2, 2, 2]])
    summary = summarise(match(histogram(label, np.array([7, 3, 0])[label], 27)))
    assert (summary["accuracy"], summary["miou"]) == (1.0, 1.0)
    assert np.isnan(summary["iou"][3:]).all()


def test_surplus_segments_count_against_absent_classes():
    """One class cut in three equal parts: one part matches (IoU 1/3), two fall to absent classes (IoU 0 each)."""
    label, prediction = np.zeros((2, 9), int), np.repeat([[0, 1, 2]], 6, axis=1).reshape(2, 9)
    summary = summarise(match(histogram(label, prediction, 2)))
    assert summary["accuracy"] == pytest.approx(1 / 3)
    assert summary["miou"] == pytest.approx((1 / 3 + 0) / 2)


def test_segments_beyond_the_classes_only_cost_false_negatives():
    counts = match(histogram(np.zeros((1, 10), int), np.arange(10)[None], 2))
    assert counts.tp.sum() == 1
    assert counts.fn.sum() == 9
    assert counts.fp.sum() == 1  # the one other class takes one of the nine


def test_nothing_labelled():
    summary = summarise(match(histogram(np.full((4, 4), -1), np.zeros((4, 4), int), 27)))
    assert np.isnan(summary["accuracy"])
    assert np.isnan(summary["miou"])


@pytest.mark.parametrize(
    ("label", "prediction", "words"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "one size"),
        (np.full((2, 2), 27), np.zeros((2, 2), int), "label 27"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "segment -1"),
    ],
)
def test_bad_maps_are_refused(label, prediction, words):
    with pytest.raises(ValueError, match=words):
        histogram(label, prediction, 27)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), segments=st.integers(1, 40))
def test_every_pixel_is_counted_once_and_numbering_does_not_matter(seed, segments):
    rng = np.random.default_rng(seed)
    label, prediction = rng.integers(-1, 27, (12, 12)), rng.integers(0, segments, (12, 12))
    counts = match(histogram(label, prediction, 27))
    assert (counts.tp + counts.fn).sum() == counts.pixels == (label >= 0).sum()
    renamed = match(histogram(label, rng.permutation(segments)[prediction], 27))
    assert renamed.tp.sum() == counts.tp.sum()


def test_images_add_up_in_any_order():
    counts = [match(np.random.default_rng(i).integers(0, 50, (27, 27))) for i in range(5)]
    assert summarise(counts) == summarise(counts[::-1]) == summarise(iter(counts))


def random_counts(n: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [match(rng.integers(0, 50, (5, 5)) * (rng.random((5, 5)) < 0.5)) for _ in range(n)]


def test_bootstrap_of_equal_images_has_no_width():
    counts = random_counts(1) * 20
    summary, intervals = summarise(counts), bootstrap(counts, samples=50)
    for name in ("accuracy", "miou"):
        assert intervals[name] == pytest.approx((summary[name],) * 2)


def test_bootstrap_is_that_of_a_plain_loop():
    counts = random_counts(30)
    drawn = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=40)
    plain = [summarise([c for c, times in zip(counts, row, strict=True) for _ in range(times)]) for row in drawn]
    intervals = bootstrap(counts, samples=40)
    for name in ("accuracy", "miou"):
        expected = np.quantile([p[name] for p in plain], [0.025, 0.975])
        assert intervals[name] == pytest.approx(tuple(expected), abs=1e-12)


def test_bootstrap_contains_the_value_and_narrows():
    few, many = random_counts(20), random_counts(500)
    for counts in (few, many):
        low, high = bootstrap(counts)["accuracy"]
        assert low < summarise(counts)["accuracy"] < high
    width = [np.diff(bootstrap(counts)["accuracy"])[0] for counts in (few, many)]
    assert width[1] < width[0] / 3


def test_tie_sensitivity_by_hand():
    """Class 0 in three parts beside absent classes 1 and 2: wherever the surplus falls, the mean is the same. With a
    second image full of class 1, it matters whether the surplus falls to class 1 or to a class never seen."""
    three_parts = np.array([[5, 5, 5], [0, 0, 0], [0, 0, 0]])
    assert tie_sensitivity([three_parts]) == pytest.approx((1 / 9, 1 / 9))
    two_parts, other = np.array([[6, 4, 0], [0, 0, 0], [0, 0, 0]]), np.array([[0, 0, 0], [8, 0, 0], [0, 0, 0]])
    low, high = tie_sensitivity([two_parts, other])
    assert low == pytest.approx((0.6 + 1 + 0) / 3)  # the surplus falls to class 2
    assert high == pytest.approx((0.6 + 8 / 12) / 2)  # to class 1


def test_paired_bootstrap_of_a_method_with_itself_finds_nothing():
    counts = random_counts(20)
    for row in paired_bootstrap(counts, counts, samples=100).values():
        assert (row["difference"], row["interval"], row["p"]) == (0, (0, 0), 1)


def test_paired_bootstrap_sees_a_small_gain_that_separate_intervals_hide():
    """Images differ a lot; the second method is better by one pixel of 100 on each: certain, though small."""
    rng = np.random.default_rng(0)
    hits = rng.integers(10, 90, 40)
    first, second = (
        [Counts(np.array([h + more]), np.array([0]), np.array([100 - h - more]), 100) for h in hits] for more in (0, 1)
    )
    found = paired_bootstrap(first, second, samples=200)["accuracy"]
    assert found["difference"] == pytest.approx(0.01)
    assert found["interval"] == pytest.approx((0.01, 0.01))
    assert found["p"] == 1 / 200
    low, high = bootstrap(first)["accuracy"]
    assert high - low > 0.05
    swapped = paired_bootstrap(second, first, samples=200)["accuracy"]
    assert swapped["difference"] == -found["difference"]
