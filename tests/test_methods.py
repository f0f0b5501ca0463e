"""Methods beside DiffSeg, against what is not their own code: golden cases, dense linear algebra, cases by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralClustering

from diffseg.attention import Look, Needs, Observation
from diffseg.errors import UserError
from diffseg.eval.straightforward import straightforward_ncut
from diffseg.methods import autosc, clustering, diffcut, maskcut, ncut, walk
from diffseg.methods.autosc import AutoSC, auto_clusters, largest_gap
from diffseg.methods.clustering import Dbscan
from diffseg.methods.diffcut import DiffCut, concepts
from diffseg.methods.maskcut import MaskCut, objects
from diffseg.methods.merging import Merging
from diffseg.methods.naming import Naming
from diffseg.methods.ncut import CutTree, best_bisections, cluster_qr, cosine_affinity, partitions, recursive_ncut
from diffseg.methods.pamr import Refined, pamr
from diffseg.methods.walk import Spectral, Walk, walk_affinity
from diffseg.observed import Batch, Prompt
from diffseg.words import nouns_in
from tests.golden import inputs

GOLDEN = Path(__file__).parent / "golden" / "diffcut"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())}


def same_partition(a, b) -> bool:
    """Whether two label maps divide alike, whatever the numbers."""
    pairs = set(zip(np.ravel(a).tolist(), np.ravel(b).tolist(), strict=True))
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))


def features_of(case) -> torch.Tensor:
    names = ("seed", "regions", "channels", "noise", "spread")
    return torch.from_numpy(inputs.features(*(case[name] for name in names)))


def halves(h: int = 8, w: int = 8) -> np.ndarray:
    """0 in the left half, 1 in the right."""
    return (np.arange(w) >= w // 2).astype(int)[None].repeat(h, 0)


def batch_of(labels: np.ndarray, count: int = 1, size: int = 32) -> Batch:
    """Images whose attention and features [16, h, w] know the labels [h, w]; each image's features are its own."""
    flat = torch.from_numpy(labels.ravel())
    maps = torch.softmax(4.0 * (flat[:, None] == flat), 1).expand(count, -1, -1).contiguous()
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(count, int(labels.max()) + 1, 16, generator=g)
    features = directions[:, flat] + 0.1 * torch.randn(count, len(flat), 16, generator=g)
    grid = features.mT.unflatten(2, labels.shape)

    def see(look: Look, needs: Needs) -> Observation:
        return Observation({labels.shape: maps}, {}, dict.fromkeys(needs.features, grid))

    return Batch([torch.zeros(3, size, size)] * count, see)


# --- normalized cut, DiffCut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_diffcut_gives_the_releases_partitions(name):
    case, golden = CASES[name], np.load(GOLDEN / f"{name}.npz")
    features = features_of(case)
    coarse = recursive_ncut(features, (32, 32), case["tau"], case["alpha"])
    assert same_partition(coarse, golden["coarse"])
    assert same_partition(concepts(features, coarse, (128, 128)), golden["labels"])


@pytest.mark.parametrize("name", ["three", "low-alpha", "one"])
@pytest.mark.parametrize("faithful", [True, False])
def test_the_fast_cut_is_the_straightforward_one(name, faithful):
    case = CASES[name]
    affinity = cosine_affinity(features_of(case), case["alpha"])
    expected = straightforward_ncut(affinity.numpy(), case["tau"], faithful)
    assert same_partition(partitions([CutTree(affinity, faithful)], case["tau"])[0], expected)


def test_not_being_faithful_changes_two_tokens_alone():
    case = CASES["twelve"]
    affinity = cosine_affinity(features_of(case), case["alpha"])
    strict, free = (partitions([CutTree(affinity, faithful)], case["tau"])[0] for faithful in (True, False))
    counts = np.zeros((int(strict.max()) + 1, int(free.max()) + 1), int)
    np.add.at(counts, (strict.numpy(), free.numpy()), 1)
    assert counts.sum() - counts.max(1).sum() == 1  # of the least similar pair one token is in another segment


def test_all_thresholds_share_their_bisections(monkeypatch):
    case = CASES["seven"]
    affinity, calls = cosine_affinity(features_of(case), 10), []
    alone = [partitions([CutTree(affinity)], tau)[0] for tau in (0.3, 0.5, 0.7)]
    real = ncut.best_bisections
    monkeypatch.setattr(ncut, "best_bisections", lambda a: calls.append(len(a)) or real(a))
    partitions([tree := CutTree(affinity)], 0.7)
    whole = len(calls)
    together = [partitions([tree], tau)[0] for tau in (0.3, 0.5, 0.7)]
    assert whole > 2
    assert len(calls) == whole  # what a smaller threshold needs is part of what a larger one needed
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_images_at_once_are_cut_as_one_by_one():
    """As a GPU would: all sets of a level of all images padded to the largest."""
    chosen = [CASES[name] for name in ("three", "seven", "low-alpha")]
    affinities = [cosine_affinity(features_of(case), case["alpha"]) for case in chosen]
    alone = [partitions([CutTree(affinity)], 0.5)[0] for affinity in affinities]
    trees = [CutTree(affinity) for affinity in affinities]
    level = [(tree, tree.root) for tree in trees]
    while level:
        ncut._bisect(level)
        level = [(t, side) for t, node in level if ncut.is_divided(node, 0.5) for side in node.sides]
    for tree, expected in zip(trees, alone, strict=True):
        assert torch.equal(tree.labels(0.5), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 200), st.integers(0, 2**32 - 1))
def test_a_bisection_is_the_dense_one(n, seed):
    """The second eigenvector against LAPACK's, and the least NCut over all 100 thresholds against its definition."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(0, 3, n)
    affinity = rng.random((n, n)) ** 2 + (sides[:, None] == sides)
    affinity = affinity + affinity.T
    values, members = best_bisections(torch.from_numpy(affinity)[None])
    degrees = affinity.sum(1)
    _, vectors = np.linalg.eigh(np.eye(n) - affinity / np.sqrt(np.outer(degrees, degrees)))
    y = vectors[:, 1] / np.sqrt(degrees)
    y = y * np.sign(y[np.abs(y).argmax()])
    tried = []
    for theta in np.linspace(0.99 * y.min(), 0.99 * y.max(), 100):
        side = y > theta
        cut = affinity[side][:, ~side].sum()
        tried.append(cut / degrees[side].sum() + cut / degrees[~side].sum())
    assert float(values[0]) == pytest.approx(min(tried), rel=1e-9)
    side = members[0].numpy()
    cut = affinity[side][:, ~side].sum()
    assert cut / degrees[side].sum() + cut / degrees[~side].sum() == pytest.approx(float(values[0]), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 100), st.integers(0, 1000))
def test_a_partition_depends_on_directions_alone(scale, seed):
    case = {**CASES["three"], "channels": 8}
    features = features_of(case)[:256]
    rng = np.random.default_rng(seed)
    turned = torch.from_numpy(np.linalg.qr(rng.normal(size=(8, 8)))[0]).float()
    assert same_partition(recursive_ncut(features, (16, 16)), recursive_ncut(features @ turned * scale, (16, 16)))


@pytest.mark.parametrize("same", [torch.ones(16, 3), torch.zeros(16, 3)])
def test_features_that_are_all_alike_are_one_segment(same):
    assert recursive_ncut(same, (4, 4)).unique().tolist() == [0]
    assert recursive_ncut(torch.ones(400, 3), (20, 20)).unique().tolist() == [0]  # by Lanczos' method


def test_a_few_tokens():
    assert recursive_ncut(torch.ones(1, 3), (1, 1)).tolist() == [[0]]
    two = recursive_ncut(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), (1, 2))
    assert two.tolist() in ([[0, 1]], [[1, 0]])  # an affinity of 0: a cut that costs nothing


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DiffCut(threshold=0), "threshold of a normalized cut must be above 0 and at most 2, got 0"),
        (lambda: DiffCut(threshold=2.5), "at most 2, got 2.5"),
        (lambda: DiffCut(alpha=0), "alpha must be above 0"),
        (lambda: DiffCut(upsample=0), "upsample must be at least 1"),
        (lambda: recursive_ncut(torch.ones(4, 2), (2, 2), threshold=3), "at most 2"),
        (lambda: MaskCut(threshold=1.5), "threshold must be a cosine"),
        (lambda: MaskCut(masks=0), "masks must be at least 1"),
        (lambda: Walk(threshold=-1), "above 0"),
        (lambda: Walk(steps=0), "steps must be 1 to 1024"),
        (lambda: Walk(grid=1), "grid must be 2 to 128"),
        (lambda: DiffCut(size=-3), "size of a look must be 8 to 8192, or none; got -3"),
        (lambda: AutoSC(noise=-1), "noise of a look must be 0 to"),
        (lambda: MaskCut(timestep=5000), "timestep of a look must be 0 to 999, or none; got 5000"),
        (lambda: Spectral(clusters=0), "clusters must be at least 1"),
        (lambda: Refined("diffcut"), "of must be a method"),
        (lambda: Refined(Walk(), iterations=-1), "iterations must be 0 to 1000"),
        (lambda: Refined(Walk(), size=4), "size must be 8 to 4096"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    with pytest.raises(UserError, match=match):
        make()


def test_concepts_are_the_nearest_interpolated_features():
    """As the definition reads: features, not products, are interpolated."""
    g = torch.Generator().manual_seed(1)
    features, groups = torch.randn(12, 5, generator=g), torch.randint(0, 3, (3, 4), generator=g)
    unit = F.normalize(features, dim=1)
    means = torch.stack([unit[groups.flatten() == k].mean(0) for k in range(3)])
    fine = F.interpolate(unit.T.reshape(1, 5, 3, 4), (12, 16), mode="bilinear", align_corners=False)[0]
    expected = torch.einsum("chw,kc->khw", fine, means).argmax(0)
    assert torch.equal(concepts(features, groups, (12, 16)), expected)


# --- refinement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["pamr"]])
def test_pamr_gives_the_releases_labels(name):
    case, golden = CASES[name], np.load(GOLDEN / f"{name}.npz")
    refined = pamr(golden["labels"].astype(int), inputs.photo(case["seed"], case["regions"]))
    np.testing.assert_array_equal(refined, golden["refined"])


def test_pamr_moves_a_border_to_the_colours():
    photo = np.where(np.arange(32) < 20, 40, 200)[None, :, None].repeat(32, 0).repeat(3, 2).astype(np.uint8)
    labels = np.where(np.arange(32) < 16, 7, 3)[None].repeat(32, 0)
    assert (pamr(labels, photo)[0] == np.where(np.arange(32) < 20, 7, 3)).all()
    np.testing.assert_array_equal(pamr(labels, photo, iterations=0), labels)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_pamr_keeps_to_the_labels_whatever_their_numbers(seed):
    rng = np.random.default_rng(seed)
    labels, photo = rng.integers(0, 5, (12, 9)), rng.integers(0, 256, (12, 9, 3), np.uint8)
    names = np.array([90, 3, 17, 40_000, 8])
    refined = pamr(labels, photo, 3, (1, 2))
    assert set(refined.ravel()) <= set(labels.ravel())
    np.testing.assert_array_equal(pamr(np.full((12, 9), 4), photo), 4)
    again = pamr(np.sort(names)[labels], photo, 3, (1, 2))
    np.testing.assert_array_equal(again, np.sort(names)[refined])


# --- AutoSC, MaskCut, TokenCut, walk, spectral ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["three", "seven"])
def test_autosc_finds_the_regions(name):
    case = CASES[name]
    _, truth = inputs.wavy(case["seed"], case["regions"], 32)
    assert same_partition(auto_clusters(features_of(case)), truth)


def test_the_largest_gap():
    """Three eigenvalues near 0, then 1: (1 - m) / m with m = (0 + .01 + .01 + 1) / 4."""
    gap, clusters = largest_gap(torch.tensor([0.0, 0.01, 0.01, 1.0, 1.0, 1.0], dtype=torch.float64))
    assert clusters == 3
    assert gap == pytest.approx((1 - 0.255) / (0.255 + 1e-6))


def test_cluster_qr_is_sklearns():
    case = CASES["seven"]
    affinity = cosine_affinity(features_of(case), 10).double()
    matrix = ncut.normalised(affinity)
    ours = cluster_qr(torch.linalg.eigh(matrix)[1].flip(1)[:, :7])
    theirs = SpectralClustering(7, affinity="precomputed", assign_labels="cluster_qr").fit_predict(affinity.numpy())
    assert same_partition(ours, theirs)


def test_objects_are_found_one_after_the_other():
    """Two blobs of two directions on a third: the larger contrast first, then the other, then the rest."""
    kind = np.zeros((16, 16), int)
    kind[3:8, 3:8], kind[10:14, 9:15] = 1, 2
    directions = torch.eye(3)
    found = objects(directions[torch.from_numpy(kind.ravel())], (16, 16), 0.15, 2)
    assert same_partition(found, kind)
    assert int(found[0, 0]) == 2  # the rest comes last
    first = objects(directions[torch.from_numpy(kind.ravel())], (16, 16), 0.2, 1)
    assert len(first.unique()) == 2
    assert first.unique().tolist() == [0, 1]
    assert len(set(kind[(first == 0).numpy()].tolist())) == 1  # one object, whole and alone


def test_an_object_is_one_connected_part():
    kind = np.zeros((12, 12), int)
    kind[2:6, 2:6] = kind[8:11, 8:11] = 1  # alike, apart
    found = objects(torch.eye(2)[torch.from_numpy(kind.ravel())], (12, 12), 0.5, 1)
    mask = (found == 0).numpy()
    assert mask.sum() in (16, 9)
    assert (kind[mask] == 1).all()


def test_a_side_with_three_corners_is_no_object():
    kind = np.ones((8, 8), int)
    kind[3:5, 3:5] = 0
    found = objects(torch.eye(2)[torch.from_numpy(kind.ravel())], (8, 8), 0.5, 1)
    np.testing.assert_array_equal((found == 0).numpy(), kind == 0)


def test_a_walk_of_attention():
    """Rows sum to 1 over where a walk goes; two steps are the square; pooling keeps probabilities."""
    g = torch.Generator().manual_seed(0)
    attention = torch.rand(4, 6, 4, 6, generator=g)
    attention /= attention.sum((2, 3), keepdim=True)
    step = attention.reshape(24, 24).double()
    step = step / step.sum(1, keepdim=True)
    two = walk_affinity(attention, 2, 32)
    torch.testing.assert_close(two, (step @ step + (step @ step).T) / 2)
    square = torch.rand(4, 4, 4, 4, generator=g)
    square /= square.sum((2, 3), keepdim=True)
    blocks = square.view(2, 2, 2, 2, 2, 2, 2, 2).mean((1, 3)).sum((3, 5)).reshape(4, 4).double()  # of 2 x 2 positions
    torch.testing.assert_close(walk_affinity(square, 1, 2), (blocks + blocks.T) / 2, rtol=1e-6, atol=0)


METHODS = [
    DiffCut(size=None),
    AutoSC(size=None),
    MaskCut(masks=1, threshold=0.6),
    Walk(),
    Spectral(clusters=2),
    Refined(Walk()),
    Refined(DiffCut(size=None), size=None),
    Merging(threshold=0.5, anchors=4),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}-{type(getattr(m, 'of', m)).__name__}")
def test_every_method_finds_two_halves(method):
    (labels,) = method.segment_batch(batch_of(halves()))
    assert labels.shape == (32, 32)
    assert labels.dtype.kind == "i"
    assert same_partition(labels, halves(32, 32))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}-{type(getattr(m, 'of', m)).__name__}")
def test_labels_do_not_depend_on_what_else_is_in_the_batch(method):
    """Images of a batch one by one, in other batches of the same images, and at once."""
    quarters = halves() + 2 * halves().T
    batch = batch_of(quarters, 3)
    together = method.segment_batch(batch)
    for image, labels in zip(batch_of(quarters, 3), together, strict=True):
        np.testing.assert_array_equal(method.segment(image), labels)


def test_settings_share_what_they_have_in_common(monkeypatch):
    made = []
    for module in (diffcut, walk):
        tree = module.CutTree
        monkeypatch.setattr(module, "CutTree", lambda *a, tree=tree: made.append(tree(*a)) or made[-1])
    batch = batch_of(halves())
    for threshold in (0.2, 0.4, 0.6):
        DiffCut(threshold, size=None).segment(batch[0])
        Walk(threshold).segment(batch[0])
    assert len(made) == 2  # one for each method, not for each threshold


def test_what_all_settings_share_is_computed_once(monkeypatch):
    """Distances of all eps, objects of all numbers of masks, clusters refined or not: equal to those computed alone."""
    calls = Counter()
    for module, name in ((clustering, "pairwise_kl"), (maskcut, "salient_object"), (autosc, "auto_clusters")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name: calls.update([name]) or real(*a))
    quarters = halves() + 2 * halves().T
    methods = [Dbscan(eps) for eps in (0.2, 0.5, 2.0)]
    methods += [MaskCut(0.6, masks) for masks in (2, 1, 3)]
    methods += [AutoSC(size=None), Refined(AutoSC(size=None))]
    batch = batch_of(quarters)
    together = [method.segment(batch[0]) for method in methods]
    assert calls == {"pairwise_kl": 1, "salient_object": 3, "auto_clusters": 1}
    for method, labels in zip(methods, together, strict=True):
        np.testing.assert_array_equal(labels, method.segment(batch_of(quarters)[0]))
    assert [len(np.unique(labels)) for labels in together[3:5]] == [3, 2]  # the objects, and the rest


# --- naming -----------------------------------------------------------------------------------------------------------


def named_batch(prompt: Prompt) -> Batch:
    """Two halves; in the prompted pass the left one attends to token 1, the right one to tokens 2 and 3."""
    plain = batch_of(halves())
    flat = torch.from_numpy(halves().ravel())
    to_tokens = torch.where(flat[:, None] == 0, torch.tensor([0.2, 0.6, 0.1, 0.1]), torch.tensor([0.2, 0.2, 0.3, 0.3]))

    def see(look: Look, needs: Needs) -> Observation:
        seen = plain._see(look, needs)
        return Observation(seen.self_attention, {(8, 8): to_tokens[None]} if look.prompted else {})

    return Batch([torch.zeros(3, 32, 32)], see, prompts=[prompt])


@pytest.mark.parametrize("voting", ["mean", "majority"])
def test_segments_get_the_classes_of_their_nouns(voting):
    method = Naming(Merging(threshold=0.5, anchors=4), voting)
    batch = named_batch(Prompt("a cat and a red ball", (17, 4), [[1], [2, 3]], 27))
    np.testing.assert_array_equal(method.segment(batch[0]), np.where(halves(32, 32) == 0, 17, 4))
    assert list(method.passes()) == [Look(), Look(prompted=True)]
    assert method.passes()[Look(prompted=True)] == Needs(cross=True)


def test_where_a_caption_names_nothing_nothing_is_named():
    method = Naming(Merging(threshold=0.5, anchors=4))
    assert (method.segment(named_batch(Prompt("hm", (), [], 27))[0]) == 27).all()
    with pytest.raises(UserError, match="no prompt to name segments with"):
        method.segment(batch_of(halves())[0])
    with pytest.raises(UserError, match="of must be a method"):
        Naming("diffseg")


def test_the_words_of_a_caption():
    vocabulary = {"dog": 7, "traffic light": 8, "light": 9, "bus": 11, "grass": 22}
    found = nouns_in("Two Dogs under a traffic light, a bus; buses and a dog on grass", vocabulary)
    assert found == (("Dogs", 7), ("traffic light", 8), ("bus", 11), ("buses", 11), ("dog", 7), ("grass", 22))
    assert nouns_in("nothing of that kind", vocabulary) == ()
