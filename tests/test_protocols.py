"""Scoring protocols: truths worked out by hand, plain procedures on pixels, invariants, and the benchmark's figures."""

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.io import loadmat
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

import diffseg.conf
import diffseg.eval.protocols
from diffseg.eval.metrics import histogram, match, summarise, tie_sensitivity
from diffseg.eval.protocols import BackgroundMerged, Boundaries, Majority, Named, OneToOne, OverDataset, Regions
from diffseg.eval.regions import (
    adjusted_rand,
    best_regions,
    covered,
    mean_best_overlap,
    rand_index,
    region_scores,
    variation_of_information,
)

BSDS = Path(__file__).parents[2] / "shared" / "golden" / "bsds"
MATCHINGS = [OneToOne(), OneToOne(absent=False), BackgroundMerged(), Majority(), OverDataset(), Named()]
TABLES = [*MATCHINGS, Regions()]


def table(label, prediction, classes: int, spare: int = 0) -> np.ndarray:
    """int64 [classes + 1, segments + spare]: pixels of each class, void last, in each segment."""
    label, prediction = np.asarray(label), np.asarray(prediction)
    rows = np.where(label < 0, classes, label)
    shape = classes + 1, int(prediction.max()) + 1 + spare
    return np.bincount((rows * shape[1] + prediction).ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def counts(protocol, label, prediction, classes, background=None):
    """tp, fp, fn as lists, and pixels, of one image."""
    statistics = protocol.statistics([table(label, prediction, classes)], background)
    return *(statistics[kind][0].tolist() for kind in ("tp", "fp", "fn")), int(statistics["pixels"][0])


def scores(protocol, label, prediction, classes, background=None):
    return protocol.score([table(label, prediction, classes)], background)


def maps(seed: int, classes: int, segments: int, side: int = 6):
    """Random label and prediction, some classes and segments missing, some pixels void: small, so ties are many."""
    rng = np.random.default_rng(seed)
    present = rng.permutation(classes)[: rng.integers(1, classes + 1)]
    label = np.append(present, -1)[rng.integers(0, len(present) + rng.integers(0, 2), (side, side))]
    prediction = rng.permutation(segments)[rng.integers(0, rng.integers(1, segments + 1), (side, side))]
    return label, prediction


# --- configuration ----------------------------------------------------------------------------------------------------


def test_every_protocol_has_a_file():
    files = sorted((Path(diffseg.conf.__file__).parent / "protocol").glob("*.yaml"))
    built = {path.stem: instantiate(OmegaConf.load(path)) for path in files}
    names = ("diffseg", "strict", "diffcut", "majority", "dataset", "names", "regions", "boundaries")
    assert built == dict(zip(names, [*TABLES, Boundaries()], strict=True))
    assert all(isinstance(protocol.version, int) for protocol in built.values())


def test_scoring_imports_numbers_alone():
    """No torch, no model code: tables scored anywhere, by anybody."""
    folder = Path(diffseg.eval.protocols.__file__).parent
    allowed = {"abc", "collections", "dataclasses", "math", "typing", "__future__", "numpy", "scipy"}
    for name in ("protocols", "regions", "boundaries"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed or node.module.startswith("diffseg.eval")
            elif isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in allowed for alias in node.names)


# --- one to one -------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6), segments=st.integers(1, 9), spare=st.integers(0, 3))
def test_one_to_one_is_match(seed, classes, segments, spare):
    """To the last count, ties included, whatever numbers only void pixels or nobody has."""
    label, prediction = maps(seed, classes, segments)
    expected = match(histogram(label, prediction, classes))
    statistics = OneToOne().statistics([table(label, prediction, classes, spare)])
    for kind in ("tp", "fp", "fn", "pixels"):
        np.testing.assert_array_equal(statistics[kind][0], getattr(expected, kind))
    got, summary = OneToOne().score([table(label, prediction, classes)]), summarise(expected)
    assert got == pytest.approx({name: summary[name] for name in ("accuracy", "miou")}, nan_ok=True, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), segments=st.integers(1, 6), absent=st.booleans())
def test_one_to_one_on_pixels(seed, segments, absent):
    """No other pairing matches more pixels, and painting the segments in their classes gives the same counts."""
    label, prediction = maps(seed, 4, segments)
    hist = table(label, prediction, 4)
    assigned = OneToOne(absent).assign(hist)
    taken = assigned[assigned >= 0]
    assert len(set(taken)) == len(taken)
    padded = np.pad(hist[:-1], ((0, 0), (0, 4)))
    most = max(sum(padded[range(4), columns]) for columns in itertools.permutations(range(padded.shape[1]), 4))
    painted, labelled = assigned[prediction], label >= 0
    tp = [(labelled & (label == c) & (painted == c)).sum() for c in range(4)]
    fp = [(labelled & (label != c) & (painted == c)).sum() for c in range(4)]
    fn = [((label == c) & (painted != c)).sum() for c in range(4)]
    assert sum(tp) == most
    assert counts(OneToOne(absent), label, prediction, 4) == (tp, fp, fn, labelled.sum())
    if not absent:
        assert all(hist[c, s] for s, c in enumerate(assigned) if c >= 0)


def test_surplus_segments_charge_absent_classes_unless_strict():
    """One class in three equal parts: one matches; as a paper's, two are charged to the two others."""
    label, prediction = np.zeros(9, int), np.repeat([0, 1, 2], 3)
    tp, fp, fn, _ = counts(OneToOne(), label, prediction, 3)
    assert (tp, fp, fn) == ([3, 0, 0], [0, 3, 3], [6, 0, 0])
    assert scores(OneToOne(), label, prediction, 3) == pytest.approx({"accuracy": 1 / 3, "miou": 1 / 9})
    assert scores(OneToOne(), label, prediction, 2)["miou"] == pytest.approx(1 / 6)
    assert counts(OneToOne(False), label, prediction, 3) == ([3, 0, 0], [0, 0, 0], [6, 0, 0], 9)
    assert scores(OneToOne(False), label, prediction, 3) == pytest.approx({"accuracy": 1 / 3, "miou": 1 / 3})


def test_segments_beyond_the_classes_cost_false_negatives_alone():
    label, prediction = np.zeros(10, int), np.arange(10)
    assert counts(OneToOne(), label, prediction, 2) == ([1, 0], [0, 1], [9, 0], 10)
    assert (OneToOne().assign(table(label, prediction, 2)) == -1).sum() == 8
    assert counts(OneToOne(False), label, prediction, 2) == ([1, 0], [0, 0], [9, 0], 10)


def test_strict_still_counts_what_a_matched_segment_takes_from_others():
    label, prediction = np.array([0, 0, 0, 1, 1, -1]), np.array([0, 0, 0, 0, 0, 0])
    assert counts(OneToOne(False), label, prediction, 2) == ([3, 0], [2, 0], [0, 2], 5)
    assert scores(OneToOne(False), label, prediction, 2) == pytest.approx({"accuracy": 3 / 5, "miou": (3 / 5 + 0) / 2})


def test_the_sensitivity_to_ties_is_none_when_strict():
    """Two images of one class each, one of them in two parts: as the paper's, the part left over hits the other image's
    class or one never seen; strict has no such choice."""
    labels, predictions = [np.zeros(10, int), np.ones(8, int)], [np.repeat([0, 1], [6, 4]), np.zeros(8, int)]
    low, high = tie_sensitivity([histogram(*pair, 3) for pair in zip(labels, predictions, strict=True)])
    hists = [table(*pair, 3) for pair in zip(labels, predictions, strict=True)]
    assert low < high
    assert low <= OneToOne().score(hists)["miou"] <= high
    assert OneToOne(False).score(hists)["miou"] == pytest.approx((0.6 + 1) / 2)


# --- background merged ------------------------------------------------------------------------------------------------


def merged_on_pixels(label, prediction, classes, background):
    """tp, fp, fn as lists, and pixels, by the steps of the protocol on the maps themselves."""
    names = [c for c in range(classes) if c != background]
    objects = np.full(label.shape, -1)
    for number, c in enumerate(names):
        objects[label == c] = number
    shared = np.zeros((len(names), max(len(names), prediction.max() + 1)), int)
    for c, s in itertools.product(*map(range, shared.shape)):
        shared[c, s] = ((objects == c) & (prediction == s)).sum()
    columns = linear_sum_assignment(shared, maximize=True)[1]
    kept = [columns[c] for c in range(len(names)) if (objects == c).any()]
    merged = np.where(np.isin(prediction, kept), prediction, prediction.max() + 1)
    total = match(histogram(np.where(objects < 0, len(names), objects), merged, classes))
    back = np.argsort([*names, background])
    return *(getattr(total, kind)[back].tolist() for kind in ("tp", "fp", "fn")), total.pixels


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6), segments=st.integers(1, 9), data=st.data())
def test_background_merged_on_pixels(seed, classes, segments, data):
    label, prediction = maps(seed, classes, segments)
    background = data.draw(st.integers(0, classes - 1))
    expected = merged_on_pixels(label, prediction, classes, background)
    assert counts(BackgroundMerged(), label, prediction, classes, background) == expected
    assert expected[-1] == label.size


def test_background_in_pieces_is_forgiven():
    """A cat of 3 pixels found; 8 of background in two segments, 1 of void in its own."""
    label, prediction = np.repeat([1, 0, 0, -1], [3, 4, 4, 1]), np.repeat([0, 1, 2, 3], [3, 4, 4, 1])
    assert scores(OneToOne(), label, prediction, 2) == pytest.approx({"accuracy": 7 / 11, "miou": (4 / 8 + 1) / 2})
    assert counts(BackgroundMerged(), label, prediction, 2, 0) == ([9, 3], [0, 0], [0, 0], 12)
    assert scores(BackgroundMerged(), label, prediction, 2, 0) == {"accuracy": 1, "miou": 1}


def test_void_is_background():
    """The cat's segment reaches into void: there it takes from the background."""
    label, prediction = np.repeat([1, -1, 0], [3, 1, 4]), np.repeat([0, 1], [4, 4])
    assert counts(BackgroundMerged(), label, prediction, 2, 0) == ([4, 3], [0, 1], [1, 0], 8)
    assert counts(OneToOne(), label, prediction, 2) == ([4, 3], [0, 0], [0, 0], 7)


def test_a_present_class_without_a_segment_keeps_some_of_the_background():
    """Classes 1 and 2 share segment 0, the background has segments 1 and 2: class 2 holds on to one of these."""
    label, prediction = np.repeat([1, 2, 0, 0], [4, 2, 3, 3]), np.repeat([0, 0, 1, 2], [4, 2, 3, 3])
    assert counts(BackgroundMerged(), label, prediction, 3, 0) == ([3, 4, 0], [0, 2, 3], [3, 0, 2], 12)


def test_without_a_background_class_it_is_one_to_one():
    label, prediction = maps(3, 5, 8)
    assert counts(BackgroundMerged(), label, prediction, 5) == counts(OneToOne(), label, prediction, 5)


def objects_on_background(images: int = 60, side: int = 48, classes: int = 21):
    """Labels with one or two rectangles of classes 1 to 20 on background 0: 24 % foreground."""
    rng = np.random.default_rng(0)
    for _ in range(images):
        label = np.zeros((side, side), int)
        for _ in range(rng.integers(1, 3)):
            (top, left), (height, width) = rng.integers(0, side // 2, 2), rng.integers(side // 4, side // 2 + 4, 2)
            label[top : top + height, left : left + width] = rng.integers(1, classes)
        yield label


def test_merging_background_lifts_grids_and_pieces():
    """Forgiving any division of the background is worth 17 points to a grid, 45 to one that divides nothing else."""
    grid = np.add.outer(np.arange(48) // 16 * 3, np.arange(48) // 16)
    labels = list(objects_on_background())
    assert np.mean([(label > 0).mean() for label in labels]) == pytest.approx(0.2377, abs=1e-4)
    miou = {}
    for name, predictions in {
        "grid": [grid] * len(labels),
        "pieces": [np.where(label > 0, label + 9, grid) for label in labels],
    }.items():
        hists = [table(*pair, 21) for pair in zip(labels, predictions, strict=True)]
        plain = [merged_on_pixels(*pair, 21, 0) for pair in zip(labels, predictions, strict=True)]
        tp, fp, fn = (np.sum([counted[k] for counted in plain], axis=0) for k in range(3))
        miou[name] = OneToOne().score(hists)["miou"], BackgroundMerged().score(hists, 0)["miou"]
        assert miou[name][1] == pytest.approx(np.mean(tp / (tp + fp + fn)))
    assert miou["grid"] == pytest.approx((0.2409, 0.4159), abs=1e-4)  # a content-free 3 x 3 grid
    assert miou["pieces"] == pytest.approx((0.5485, 1), abs=1e-4)  # perfect objects, background in nine pieces


# --- majority, data set, names ----------------------------------------------------------------------------------------


def test_majority_by_hand():
    """Segments 0 and 1 both go to class 0, segment 2 is tied and goes to the first; void does not vote."""
    label = np.array([0, 0, 1, 0, 0, 1, 2, -1, -1, -1])
    prediction = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 4])
    assert Majority().assign(table(label, prediction, 3)).tolist() == [0, 0, 1, -1, -1]
    assert counts(Majority(), label, prediction, 3) == ([4, 1, 0], [1, 1, 0], [0, 1, 1], 7)
    assert scores(Majority(), label, prediction, 3) == pytest.approx({"accuracy": 5 / 7, "miou": (4 / 5 + 1 / 3) / 3})


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), segments=st.integers(1, 9))
def test_majority_is_the_ceiling_and_division_never_lowers_it(seed, segments):
    label, prediction = maps(seed, 5, segments)
    best = scores(Majority(), label, prediction, 5)["accuracy"]
    divided = np.arange(prediction.size).reshape(prediction.shape) % 2 * segments + prediction
    if (label >= 0).any():
        assert best >= max(scores(p, label, prediction, 5)["accuracy"] for p in (OneToOne(), OverDataset(), Named()))
        assert best <= scores(Majority(), label, divided, 5)["accuracy"]
        assert scores(Majority(), label, np.arange(36).reshape(6, 6), 5)["accuracy"] == 1


def test_one_assignment_for_all_images():
    """Number 0 is mostly class 1, though not in the second image; number 2 is left over and charges class 2."""
    labels = [np.array([1, 1, 1, 0]), np.array([0, 0, 1, -1])]
    predictions = [np.array([0, 0, 0, 1]), np.array([0, 2, 1, 1])]
    hists = [table(*pair, 3) for pair in zip(labels, predictions, strict=True)]
    statistics = OverDataset().statistics(hists)
    assert statistics["tp"].tolist() == [[1, 3, 0], [0, 0, 0]]
    assert statistics["fp"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert statistics["fn"].tolist() == [[0, 0, 0], [2, 1, 0]]
    assert OverDataset().score(hists) == pytest.approx({"accuracy": 4 / 7, "miou": (1 / 4 + 3 / 5 + 0) / 3})
    assert OneToOne().score(hists)["accuracy"] == pytest.approx(6 / 7)


def test_a_data_set_of_one_image_is_that_image():
    label, prediction = maps(8, 5, 9)
    assert counts(OverDataset(), label, prediction, 5) == counts(OneToOne(), label, prediction, 5)


def test_names_by_hand():
    label, prediction = np.array([0, 0, 1, 1, -1]), np.array([0, 2, 1, 3, 2])
    assert Named().assign(table(label, prediction, 3)).tolist() == [0, 1, 2, -1]
    assert counts(Named(), label, prediction, 3) == ([1, 1, 0], [0, 0, 1], [1, 1, 0], 4)
    assert scores(Named(), label, prediction, 3) == pytest.approx({"accuracy": 1 / 2, "miou": (1 / 2 + 1 / 2 + 0) / 3})


# --- regions ----------------------------------------------------------------------------------------------------------


def test_regions_by_hand():
    """Two halves seen as one: each region's best IoU is 1/2; of 6 pairs 2 agree; one bit is missing."""
    expected = {"covering": 1 / 2, "pri": 1 / 3, "vi": 1, "ari": 0, "mbo": 1 / 2}
    assert scores(Regions(), [0, 0, 1, 1, -1], [0, 0, 0, 0, 3], 3) == pytest.approx(expected)
    perfect = {"covering": 1, "pri": 1, "vi": 0, "ari": 1, "mbo": 1}
    assert scores(Regions(), [0, 0, 1, 1, -1], [5, 5, 2, 2, 2], 3) == pytest.approx(perfect)
    assert scores(Regions(), [0, 0, 0], [0, 0, 0], 1) == pytest.approx(perfect)
    assert scores(Regions(), [0], [0], 1) == pytest.approx(perfect)


def test_small_regions_count_as_much_as_large_ones_in_mean_best_overlap_alone():
    """Nine pixels found, one lost among them: IoU 9/10 and 1/10."""
    got = scores(Regions(), [0] * 9 + [1], [0] * 10, 2)
    assert got["covering"] == pytest.approx((9 * 0.9 + 1 * 0.1) / 10)
    assert got["mbo"] == pytest.approx((0.9 + 0.1) / 2)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), regions=st.integers(1, 5), segments=st.integers(1, 6))
def test_regions_on_pixels(seed, regions, segments):
    label, prediction = maps(seed, regions, segments, side=5)
    label = np.abs(label).ravel()  # void is no matter of theirs
    prediction = prediction.ravel()
    shared = table(label, prediction, max(regions, label.max() + 1))[:-1]
    pairs = list(itertools.combinations(range(25), 2))
    agree = np.mean([(label[i] == label[j]) == (prediction[i] == prediction[j]) for i, j in pairs])
    best = {
        r: max(((label == r) & (prediction == s)).sum() / ((label == r) | (prediction == s)).sum() for s in prediction)
        for r in set(label)
    }
    bits = -sum(
        2 * math.log2(((label == label[i]) & (prediction == prediction[i])).mean())
        - math.log2((label == label[i]).mean())
        - math.log2((prediction == prediction[i]).mean())
        for i in range(25)
    )
    assert rand_index(shared) == pytest.approx(agree)
    assert adjusted_rand(shared) == pytest.approx(adjusted_rand_score(label, prediction))
    assert variation_of_information(shared) == pytest.approx(bits / 25, abs=1e-9)
    assert covered(shared) == pytest.approx(sum(best[r] for r in label))
    assert mean_best_overlap(shared) == pytest.approx(np.mean(list(best.values())))


def test_several_annotations_are_means_and_summed_areas():
    """An annotation that is met and one that is not, of different numbers of regions."""
    met, missed = np.array([[2, 0], [0, 2]]), np.array([[2, 2]])
    got = region_scores([met, missed])
    assert got["covered"] / got["area"] == pytest.approx((4 + 4 * 1 / 2) / 8)
    assert (got["pri"], got["vi"], got["mbo"]) == pytest.approx((2 / 3, 1 / 2, 3 / 4))
    void = [np.vstack([t, [5, 7]]) for t in (met, missed)]
    assert Regions().score([void]) == pytest.approx(
        {"covering": 3 / 4, "pri": 2 / 3, "vi": 1 / 2, "ari": 1 / 2, "mbo": 3 / 4}
    )


def test_best_regions_by_hand():
    """Two images, two settings: each image prefers another; over both the first setting wins."""
    whole, halves = np.array([[2], [2]]), np.array([[2, 0], [0, 2]])
    coarse, fine = np.array([[4]]), np.array([[2, 2]])
    got = best_regions([[[halves], [whole]], [[fine], [coarse]]])
    assert (got["covering_setting"], got["covering_ods"], got["covering_ois"]) == (0, (4 + 2) / 8, 1)
    assert (got["vi_setting"], got["vi_ods"], got["vi_ois"]) == (0, 1 / 2, 0)
    assert got["covering_best"] == 1


def benchmark():
    """Of each of five images: its segmentations and annotations, int [H, W]."""
    if not BSDS.is_dir():
        pytest.skip(f"no files of the BSDS500 benchmark in {BSDS}")
    for path in sorted((BSDS / "segs").glob("*.mat")):
        annotations = loadmat(BSDS / "groundTruth" / path.name)["groundTruth"].ravel()
        segmentations = [s.astype(int) for s in loadmat(path)["segs"].ravel()]
        yield segmentations, [a["Segmentation"][0, 0].astype(int) for a in annotations]


def test_regions_against_the_benchmark():
    tables = [
        [[table(truth, s, int(truth.max()) + 1)[:-1] for truth in truths] for s in segmentations]
        for segmentations, truths in benchmark()
    ]
    got = best_regions(tables)
    for folder in ("test_4", "test_5"):
        printed = np.loadtxt(BSDS / folder / "eval_cover.txt")
        names = ("covering_ods", "covering_ois", "covering_best")
        assert [got["covering_setting"] + 1, *(got[name] for name in names)] == pytest.approx(printed, abs=1e-5)
        printed = np.loadtxt(BSDS / folder / "eval_RI_VOI.txt")
        names = ("pri_ods", "pri_ois", "vi_ods", "vi_ois")
        assert [got[name] for name in names] == pytest.approx(printed[[1, 2, 4, 5]], abs=1e-5)
        assert (got["pri_setting"] + 1, got["vi_setting"] + 1) == (printed[0], printed[3])
        for setting in range(5):
            hists = [[np.pad(t, ((0, 1), (0, 0))) for t in image[setting]] for image in tables]
            mine = Regions().score(hists)
            covering = np.loadtxt(BSDS / folder / "eval_cover_th.txt")[setting]
            assert mine["covering"] == pytest.approx(covering[1], abs=1e-5)
            rand = np.loadtxt(BSDS / folder / "eval_RI_VOI_thr.txt")[setting]
            assert [mine["pri"], mine["vi"]] == pytest.approx(rand[1:], abs=1e-5)


# --- every protocol ---------------------------------------------------------------------------------------------------


def data_set(images: int = 12) -> list[np.ndarray]:
    return [table(*maps(seed, 5, 9), 5) for seed in range(images)]


@pytest.mark.parametrize("protocol", TABLES, ids=repr)
def test_parts_of_a_data_set_add_up_in_any_order(protocol):
    hists = data_set()
    whole = protocol.statistics(hists, 0)
    order = np.random.default_rng(0).permutation(len(hists))
    shuffled = protocol.statistics([hists[i] for i in order], 0)
    for name, values in whole.items():
        np.testing.assert_array_equal(shuffled[name], values[order])
        if not isinstance(protocol, OverDataset):
            parts = [protocol.statistics(part, 0)[name] for part in (hists[:5], hists[5:])]
            np.testing.assert_array_equal(np.concatenate(parts), values)


@pytest.mark.parametrize("protocol", TABLES, ids=repr)
def test_draws_are_scored_like_the_images_drawn(protocol):
    hists = data_set()
    statistics = protocol.statistics(hists, 0)
    drawn = np.random.default_rng(0).multinomial(len(hists), np.full(len(hists), 1 / len(hists)), size=7)
    got = protocol.metrics({name: np.tensordot(drawn, values, 1) for name, values in statistics.items()})
    for draw, times in enumerate(drawn):
        images = np.repeat(np.arange(len(hists)), times)
        sums = {name: values[images].sum(0, keepdims=True) for name, values in statistics.items()}
        for name, values in protocol.metrics(sums).items():
            assert got[name].shape == (7,)
            assert got[name][draw] == pytest.approx(values[0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), segments=st.integers(1, 9))
@pytest.mark.parametrize("protocol", [OneToOne(), OneToOne(False), Majority(), Regions()], ids=repr)
def test_numbers_of_segments_do_not_matter(protocol, seed, segments):
    """For accuracy, and all scores of regions. Merged backgrounds are another matter: see the class kept above."""
    label, prediction = maps(seed, 5, segments)
    renamed = np.random.default_rng(seed).permutation(segments + 2)[prediction]
    a, b = (scores(protocol, label, p, 5) for p in (prediction, renamed))
    for name in a.keys() - {"miou"}:
        assert a[name] == pytest.approx(b[name], nan_ok=True)


@pytest.mark.parametrize("protocol", TABLES, ids=repr)
def test_nothing_labelled(protocol):
    assert all(np.isnan(v) for v in scores(protocol, [-1, -1], [0, 1], 3).values())
    both = protocol.score([table([-1, -1], [0, 1], 3), table([0, 1], [0, 1], 3)])
    assert all(v in (0, 1) for v in both.values())


def test_iou_per_class_is_nan_where_none_occurs():
    hists = [table([0, 0, 1, 1], [0, 0, 0, 1], 3)]
    sums = {name: values.sum(0, keepdims=True) for name, values in OneToOne(False).statistics(hists).items()}
    np.testing.assert_allclose(OneToOne(False).iou(sums), [[2 / 3, 1 / 2, np.nan]])
