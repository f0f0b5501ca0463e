"""Scoring: the reference's golden cases, cases a person can work out, and invariants."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from diffseg.errors import UserError
from diffseg.eval.metrics import (
    Counts,
    Metrics,
    agreement,
    histogram,
    intervals,
    match,
    paired_intervals,
    score_metrics,
    standard_errors,
    statistics_of,
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


def paper(counts) -> tuple[dict[str, np.ndarray], Metrics]:
    return statistics_of(counts), score_metrics


def test_metrics_of_sums_are_those_of_the_summary():
    counts = random_counts(30)
    sets = [counts, counts[:1], counts[4:9] * 2, [match(np.zeros((5, 5), int))]]
    sums = {name: np.stack([statistics_of(c)[name].sum(0) for c in sets]) for name in ("tp", "fp", "fn", "pixels")}
    for name, values in score_metrics(sums).items():
        np.testing.assert_allclose(values, [summarise(c)[name] for c in sets], rtol=1e-14)


def test_intervals_by_hand():
    """One class; 2, 5 and 8 of 10 pixels right in three images: without each, 13, 10 and 7 of 20; in all, 15 of 30."""
    counts = [Counts(np.array([h]), np.array([0]), np.array([10 - h]), 10) for h in (2, 5, 8)]
    error = (2 / 3 * ((13 / 20 - 1 / 2) ** 2 + 0 + (7 / 20 - 1 / 2) ** 2)) ** 0.5
    reach = 0.816497 * error  # the 75th percentile of Student's t, 2 degrees of freedom
    assert standard_errors(*paper(counts)) == pytest.approx({"accuracy": error, "miou": error})
    for interval in intervals(*paper(counts), level=0.5).values():
        assert interval == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-6)
    assert intervals(*paper(counts), level=0.99)["accuracy"] == (0, 1)  # nothing is beyond


def test_a_class_of_a_single_image_widens_the_interval():
    """Class 1 is in the last image alone: without this image, mIoU is that of class 0. Held in the mean, class 1 would
    change nothing."""
    rows = [([6, 0], [4, 0])] * 4 + [([6, 1], [4, 9])]
    counts = [Counts(np.array(tp), np.zeros(2, int), np.array(fn), sum(tp) + sum(fn)) for tp, fn in rows]
    assert summarise(counts)["miou"] == pytest.approx((0.6 + 0.1) / 2)
    assert standard_errors(*paper(counts))["miou"] == pytest.approx((4 / 5) ** 0.5 * (0.6 - 0.35))


def test_standard_errors_are_those_of_a_plain_loop():
    counts = random_counts(600)  # more than one block
    whole = summarise(counts)
    without = [summarise(counts[:i] + counts[i + 1 :]) for i in range(600)]
    for name, error in standard_errors(*paper(counts)).items():
        expected = (599 / 600 * sum((w[name] - whole[name]) ** 2 for w in without)) ** 0.5
        assert error == pytest.approx(expected, rel=1e-9)


def test_intervals_of_equal_images_have_no_width():
    counts = random_counts(1) * 20
    summary = summarise(counts)
    for name, (low, high) in intervals(*paper(counts)).items():
        assert low == high == pytest.approx(summary[name])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 40))
def test_the_value_is_strictly_inside(seed, images):
    counts = random_counts(images, seed)
    summary = summarise(counts)
    for name, (low, high) in intervals(*paper(counts)).items():
        assert low < summary[name] < high


def test_intervals_are_the_same_every_time_and_in_any_order():
    counts = random_counts(30)
    assert intervals(*paper(counts)) == intervals(*paper(counts))
    for name, interval in intervals(*paper(counts[::-1])).items():
        assert interval == pytest.approx(intervals(*paper(counts))[name], abs=1e-12)


def test_intervals_narrow():
    few, many = random_counts(20), random_counts(500)
    width = [np.diff(intervals(*paper(counts))["accuracy"])[0] for counts in (few, many)]
    assert width[1] < width[0] / 3


def test_one_image_has_no_interval():
    counts = random_counts(1)
    assert np.isnan([*intervals(*paper(counts)).values()]).all()
    for row in paired_intervals(statistics_of(counts), *paper(counts)).values():
        assert row["difference"] == 0
        assert np.isnan(row["interval"]).all()


def test_statistics_of_another_protocol():
    """Any additive statistics and ratios of their sums: here the mean of the values, whose jackknife is the textbook's
    standard error."""
    values = np.random.default_rng(0).normal(5, 2, 40)
    statistics = {"value": values, "images": np.ones(40)}
    interval = intervals(statistics, lambda s: {"mean": s["value"] / s["images"]}, bounds={})["mean"]
    reach = 2.022691 * values.std(ddof=1) / 40**0.5  # Student's t, 39 degrees of freedom
    assert interval == pytest.approx((values.mean() - reach, values.mean() + reach), abs=1e-6)


REPEATS = 1000


@pytest.fixture(scope="module")
def population() -> dict[str, dict]:
    """Statistics of 3000 images under two methods: one single segment, and classes taken for others and cut in parts.

    27 classes in 50 % down to 1 % of the images, of typical sizes that differ by a factor of 10 or more.
    """
    rng = np.random.default_rng(0)
    share, size = np.geomspace(0.5, 0.01, 27), np.exp(rng.normal(0, 1.2, 27))
    counts: dict[str, list] = {"single": [], "many": []}
    for _ in range(3000):
        classes = np.flatnonzero(rng.random(27) < share)
        if not len(classes):
            classes = rng.choice(27, 1, p=share / share.sum())
        area = size[classes] * rng.gamma(1, 1, len(classes))
        area = np.ceil(4000 * area / area.sum()).astype(int)
        single, many = np.zeros((27, 27), int), np.zeros((27, 27), int)
        single[classes, 0] = area
        for column, (c, pixels) in enumerate(zip(classes, area, strict=True)):
            right = rng.beta(4, 1 + c % 5)
            many[c, column] = round(right * pixels)
            many[c, rng.integers(len(classes) + 2)] += pixels - many[c, column]
        counts["single"].append(match(single))
        counts["many"].append(match(many))
    return {name: statistics_of(c) for name, c in counts.items()}


def samples(population: dict, images: int) -> tuple[dict, dict]:
    """REPEATS random samples of each method, and what many more have on average: {method: {metric: mean}}."""
    rng = np.random.default_rng(images)
    drawn = [rng.integers(3000, size=images) for _ in range(REPEATS)]
    times = rng.multinomial(images, np.full(3000, 1 / 3000), size=4000).astype(float)
    rows = {m: [{k: v[d] for k, v in s.items()} for d in drawn] for m, s in population.items()}
    sums = {m: score_metrics({k: times @ v for k, v in s.items()}) for m, s in population.items()}
    return rows, {m: {k: v.mean() for k, v in values.items()} for m, values in sums.items()}


def assert_covers(low: np.ndarray, high: np.ndarray, value: float) -> None:
    """What 95 % intervals promise in their docstring: 92 to 98 %, and no more than 5 % misses on either side; each give
    or take what a binomial count of REPEATS exceeds once in a thousand."""
    inside = ((low <= value) & (value <= high)).sum()
    assert binom.ppf(0.001, REPEATS, 0.92) <= inside <= binom.ppf(0.999, REPEATS, 0.98)
    assert max((high < value).sum(), (value < low).sum()) <= binom.ppf(0.999, REPEATS, 0.05)


@pytest.mark.parametrize("images", [30, 64, 200])
@pytest.mark.parametrize("method", ["single", "many"])
def test_intervals_cover_what_samples_have_on_average(population, method, images):
    """Percentiles of draws with replacement fail this: too narrow, and below."""
    drawn, mean = samples(population, images)
    results = [intervals(s, score_metrics) for s in drawn[method]]
    for name in ("accuracy", "miou"):
        low, high = np.array([r[name] for r in results]).T
        assert_covers(low, high, mean[method][name])


@pytest.mark.parametrize("images", [30, 64, 200])
def test_paired_intervals_cover_the_mean_difference(population, images):
    drawn, mean = samples(population, images)
    pairs = zip(drawn["single"], drawn["many"], strict=True)
    results = [paired_intervals(first, second, score_metrics) for first, second in pairs]
    for name in ("accuracy", "miou"):
        low, high = np.array([r[name]["interval"] for r in results]).T
        assert_covers(low, high, mean["many"][name] - mean["single"][name])


def test_tie_sensitivity_by_hand():
    """Class 0 in three parts beside absent classes 1 and 2: wherever the surplus falls, the mean is the same. With a
    second image full of class 1, it matters whether the surplus falls to class 1 or to a class never seen."""
    three_parts = np.array([[5, 5, 5], [0, 0, 0], [0, 0, 0]])
    assert tie_sensitivity([three_parts]) == pytest.approx((1 / 9, 1 / 9))
    two_parts, other = np.array([[6, 4, 0], [0, 0, 0], [0, 0, 0]]), np.array([[0, 0, 0], [8, 0, 0], [0, 0, 0]])
    low, high = tie_sensitivity([two_parts, other])
    assert low == pytest.approx((0.6 + 1 + 0) / 3)  # the surplus falls to class 2
    assert high == pytest.approx((0.6 + 8 / 12) / 2)  # to class 1


def test_paired_intervals_of_a_method_with_itself_find_nothing():
    counts = random_counts(20)
    for row in paired_intervals(statistics_of(counts), *paper(counts)).values():
        assert (row["difference"], row["interval"], row["p"]) == (0, (0, 0), 1)


def test_paired_intervals_see_a_small_gain_that_separate_ones_hide():
    """Images differ a lot; the second method is better by one pixel of 100 on each: certain, though small."""
    rng = np.random.default_rng(0)
    hits = rng.integers(10, 90, 40)
    first, second = (
        statistics_of([Counts(np.array([h + more]), np.array([0]), np.array([100 - h - more]), 100) for h in hits])
        for more in (0, 1)
    )
    gain = paired_intervals(first, second, score_metrics)["accuracy"]
    assert gain["difference"] == pytest.approx(0.01)
    assert gain["interval"] == pytest.approx((0.01, 0.01))
    assert gain["p"] < 1e-9
    low, high = intervals(first, score_metrics)["accuracy"]
    assert high - low > 0.05
    swapped = paired_intervals(second, first, score_metrics)["accuracy"]
    assert swapped["difference"] == -gain["difference"]


def test_p_is_where_the_interval_ends_at_nothing():
    first, second = (statistics_of(random_counts(20, seed)) for seed in (0, 1))
    for name, row in paired_intervals(first, second, score_metrics).items():
        assert 0 < row["p"] < 1
        ends = paired_intervals(first, second, score_metrics, level=1 - row["p"])[name]["interval"]
        assert min(np.abs(ends)) == pytest.approx(0, abs=1e-9)


def test_methods_on_different_images_are_not_paired():
    with pytest.raises(ValueError, match="20 and 21 images"):
        paired_intervals(statistics_of(random_counts(20)), *paper(random_counts(21)))


def test_agreement_does_not_depend_on_how_large_the_numbers_are():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 40, 50))
    a[0, :5] = -1  # ignored
    far = np.array([3, 70_000, 2**31 - 1, 9, 120_000, 5])
    assert agreement(np.where(a < 0, a, far[a]), far[::-1][b]) == agreement(a, b)
    assert agreement(a[1:], far[a[1:]]) == 1
    with pytest.raises(UserError, match="segment numbers start at 0"):
        agreement(b, a)
