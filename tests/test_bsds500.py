"""BSDS500: whole photos of any shape, several annotations each, counted and scored as the benchmark does."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scipy.io import loadmat, savemat
from typer.testing import CliRunner

from diffseg.attention import Observation
from diffseg.datasets.base import DataError, Dataset
from diffseg.datasets.bsds500 import Bsds500, main, read_annotations
from diffseg.datasets.folder import Folder
from diffseg.datasets.transforms import nearest, resize_label
from diffseg.errors import UserError
from diffseg.eval import predict, score
from diffseg.eval.boundaries import best_boundaries
from diffseg.eval.granularity import granularity
from diffseg.eval.protocols import Boundaries, Regions
from diffseg.eval.regions import best_regions
from diffseg.eval.runs import find_run
from diffseg.eval.score import Annotations, count_all, counts_for
from diffseg.eval.show.published import published_beside
from diffseg.eval.show.tables import leading_metrics
from diffseg.eval.show.tables import main as make_tables
from diffseg.eval.show.worth import scales_of, scales_table
from diffseg.methods import classic
from diffseg.methods.classic import Felzenszwalb, Slic
from diffseg.observed import Batch
from tests.test_eval import configured, evaluated

SHARED = Path(__file__).parents[2] / "shared"
GOLDEN, PHOTOS = SHARED / "golden" / "bsds", SHARED / "data" / "bsds500"
TWO = {"101": (32, 48), "22": (48, 32)}  # a landscape and a portrait


def save_annotations(path, *annotations):
    """A file in the benchmark's form."""
    cells = np.empty((1, len(annotations)), object)
    for index, annotation in enumerate(annotations):
        cells[0, index] = {"Segmentation": np.asarray(annotation, np.uint16)}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": cells}, do_compression=True)


def save_image(root, key, shape, split="test"):
    """A photo of a dark left and a bright right half. Annotations: halves; one region; three."""
    halves = np.ones(shape, int)
    halves[:, shape[1] // 2 :] = 2
    thirds = halves.copy()
    thirds[shape[0] // 2 :, shape[1] // 2 :] = 5  # region numbers may have gaps
    save_annotations(root / "groundTruth" / split / f"{key}.mat", halves, np.ones(shape), thirds)
    (root / "images" / split).mkdir(parents=True, exist_ok=True)
    grey = np.where(halves == 1, 40, 220).astype(np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(root / "images" / split / f"{key}.jpg", quality=95)


@pytest.fixture
def bsds(tmp_path):
    """A root with two small images of different orientation."""
    for key, shape in TWO.items():
        save_image(tmp_path / "root" / "BSDS500" / "data", key, shape)
    return tmp_path / "root"


# --- the data set -----------------------------------------------------------------------------------------------------


def test_annotations_are_regions_from_zero(bsds):
    data = Bsds500(bsds)
    assert data.keys == ["101", "22"]
    assert data.note == "2 of the 200 images of test"
    halves, one, thirds = data.annotations("101")
    assert halves[0, [0, -1]].tolist() == [0, 1]
    assert one.max() == 0
    assert thirds[-1, [0, -1]].tolist() == [0, 2]
    assert (halves.dtype, halves.shape) == (np.int32, (32, 48))
    np.testing.assert_array_equal(data.raw_label("101"), halves)


@pytest.mark.parametrize("below", ["", "BSDS500", "BSDS500/data"])
def test_the_root_may_be_any_folder_on_the_way(bsds, below):
    assert Bsds500(bsds / below).fingerprint() == Bsds500(bsds).fingerprint()


def test_the_split_is_said(bsds):
    save_image(bsds / "BSDS500" / "data", "7", (32, 48), "val")
    assert Bsds500(bsds, split="val").note == "1 images of val, not of test"
    assert Bsds500(bsds, prepare="squash").note == "2 of the 200 images of test, prepared by squash"
    for number in range(198):
        folder = bsds / "BSDS500" / "data"
        (folder / "images" / "test" / f"x{number}.jpg").touch()
        (folder / "groundTruth" / "test" / f"x{number}.mat").touch()
    whole = Bsds500(bsds)
    assert (len(whole), whole.note) == (200, "")
    assert Bsds500(bsds, count=199).note == "the first 199 of 200 images"


def test_a_changed_annotation_is_another_truth(bsds):
    before = Bsds500(bsds)
    fingerprint = before.truth_fingerprint()
    save_annotations(before.truth_file("22"), np.ones((48, 32)))
    after = Bsds500(bsds)
    assert after.truth_fingerprint() != fingerprint
    assert after.fingerprint() == before.fingerprint()


def test_what_is_no_annotation_is_one_sentence(bsds, tmp_path):
    path = Bsds500(bsds).truth_file("22")
    whole = path.read_bytes()
    with pytest.raises(DataError, match=r"nowhere.mat is missing: unpack BSR_bsds500.tgz again$"):
        read_annotations(tmp_path / "nowhere.mat")
    for content in (b"", b"not a file of MATLAB's", whole[:-1], whole[: len(whole) // 2], whole[:128]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"22.mat is damaged \(.*\): unpack BSR_bsds500.tgz again$"):
            read_annotations(path)
    savemat(path, {"groundTruth": np.ones((3, 3))}, do_compression=True)
    with pytest.raises(DataError, match="is damaged"):
        read_annotations(path)
    save_annotations(path, np.ones((4, 5)), np.ones((5, 4)))
    with pytest.raises(DataError, match="must hold one annotation or more, all of one size"):
        read_annotations(path)


def test_damage_anywhere_is_a_sentence(bsds):
    """Flipped bytes: what is read is either an annotation or a DataError, never a traceback."""
    path = Bsds500(bsds).truth_file("101")
    whole, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    for _ in range(300):
        broken = whole.copy()
        for place in rng.integers(0, len(whole), 3):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        with suppress(DataError):
            assert read_annotations(path)


def test_photos_and_annotations_that_do_not_go_together(bsds):
    Bsds500(bsds).truth_file("22").unlink()
    with pytest.raises(DataError, match=r"^1 images of .* lack photo or annotations, such as 22: unpack"):
        Bsds500(bsds)
    with pytest.raises(DataError, match=r"there are no folders images and groundTruth of BSDS500 in .*make data-bsds"):
        Bsds500(bsds / "elsewhere")
    with pytest.raises(DataError, match=r"^split must be one of train, val, test; got 'tset'$"):
        Bsds500(bsds, split="tset")


def test_the_command_says_what_is_missing_and_where_to_get_it(bsds):
    app = typer.Typer()
    app.command()(main)
    ran = CliRunner().invoke(app, [str(bsds)])
    assert ran.stdout.strip() == f"{bsds}: 2 of the 200 images of test"
    ran = CliRunner().invoke(app, [str(bsds / "nowhere")])
    assert ran.exit_code == 2
    assert "BSR_bsds500.tgz" in ran.stderr
    assert "eecs.berkeley.edu" in ran.stderr


# --- preparation ------------------------------------------------------------------------------------------------------


class Gradient(Dataset):
    """One photo, 20 rows of 40, brighter from left to right; labels by column."""

    keys, classes, size = ["a"], tuple(map(str, range(40))), 20

    def __init__(self, prepare):
        self.prepare = prepare
        self.choose()

    def photo(self, key):
        return np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (20, 40, 3))

    def raw_label(self, key):
        return np.broadcast_to(np.arange(40), (20, 40))


def test_what_a_model_is_shown_of_a_photo():
    crop, squash, whole = (Gradient(prepare) for prepare in ("crop", "squash", "whole"))
    assert crop.image("a").shape == squash.image("a").shape == (3, 20, 20)
    assert whole.image("a").shape == (3, 14, 28)  # the area of 20 x 20
    assert whole.image("a", multiple=8).shape == (3, 16, 32)
    assert whole.image("a", 40, 8).shape == (3, 32, 56)
    assert crop.label("a")[0].tolist() == [*range(10, 30)]
    assert squash.label("a")[0].tolist() == [*range(1, 40, 2)]
    assert whole.label("a").shape == (20, 40)
    assert whole.fitted(whole.raw_label("a"), 10).shape == (7, 14)
    assert (crop.label_shape("a"), squash.label_shape("a"), whole.label_shape("a")) == ((20, 20), (20, 20), (20, 40))
    assert float(squash.image("a")[0, 0, 0]) < float(crop.image("a")[0, 0, 0]) < 0
    with pytest.raises(DataError, match="prepare must be crop, squash or whole, got 'hole'"):
        Gradient("hole")


def test_a_square_is_resized_as_ever():
    label = np.arange(35).reshape(5, 7) % 6
    for size in (3, 4, 9):
        np.testing.assert_array_equal(resize_label(label, size), nearest(label[:, 1:6], (size, size)))


def test_a_gpu_gets_batches_of_one_shape():
    sizes = [(3, 8, 16), (3, 16, 8), (3, 8, 16)]
    images = [(predict.Loaded(str(i)), {64: np.full(shape, i, np.float32)}) for i, shape in enumerate(sizes)]
    for shared in (True, False):
        read = predict.together([*images, (predict.Loaded("3", error="broken"), {})], shared)
        assert [image.key for image in read.images] == ["0", "1", "2", "3"]
        assert [[image.key for image in group.images] for group in read.groups] == [["0", "2"], ["1"]]
        for group in read.groups:
            assert [pixels.ravel()[0] for pixels in group.pixels[64]] == [int(image.key) for image in group.images]


def test_the_next_pass_is_started_before_a_batch_is_handed_on():
    """And where two do not fit into memory at once, the second is left to be made when it is asked for."""
    events = []

    class Pass:
        def __init__(self, number):
            self.number, self.batch = number, self

        def start(self):
            events.append(f"start {self.number}")
            if self.number == 1:
                raise torch.OutOfMemoryError

        def segmented(self):
            yield self.number

    for ahead, expected in (
        (True, ["start 0", "start 1", "merge 0", "start 2", "merge 1", "merge 2"]),
        (False, ["merge 0", "merge 1", "merge 2"]),
    ):
        events.clear()
        for read, labels in predict._begun(range(3), lambda read: [Pass(read)], ahead):
            events.append(f"merge {read}")
            assert list(labels) == [read]
        assert events == expected


# --- counting ---------------------------------------------------------------------------------------------------------

LEFT, ALL = np.repeat([[0, 0, 1, 1]], 2, 0), np.zeros((2, 4), int)


def test_two_annotations_by_hand():
    """Halves against halves and against one region: pixels 4, 4 and 8; covered wholly, and by halves of 1/2 IoU."""
    table = Annotations([LEFT, ALL], with_boundaries=True).count(LEFT + 3)
    assert table.segments.tolist() == [3, 4]
    assert table.rows.tolist() == [3, 2]
    assert table.pixels.tolist() == [[4, 0], [0, 4], [0, 0], [4, 4], [0, 0]]
    assert table.boundaries.tolist() == [2, 2, 2, 2]  # the one boundary, two pixels, of the first annotation
    tables = table.of_annotations()
    scores = Regions().score([tables])
    pairs = 8 * 7 / 2
    apart = 4 * 4  # pairs that the second annotation joins and the labels part
    assert scores["covering"] == pytest.approx((8 + 8 * 1 / 2) / 16)
    assert scores["pri"] == pytest.approx((1 + 1 - apart / pairs) / 2)
    assert scores["vi"] == pytest.approx((0 + 1) / 2)
    assert scores["mbo"] == pytest.approx((1 + 1 / 2) / 2)
    assert Boundaries().score([table.boundaries]) == {"matched_f": 1, "matched_precision": 1, "matched_recall": 1}


def test_void_of_one_annotation_is_left_out_of_it_alone():
    void = np.where(LEFT == 1, -1, LEFT)
    table = Annotations([void, LEFT]).count(ALL)
    assert table.pixels.ravel().tolist() == [4, 4, 4, 4, 0]
    assert Regions().score([table.of_annotations()])["covering"] == pytest.approx((4 * 1 + 8 * 1 / 2) / 12)


def test_counts_are_written_and_read(bsds, tmp_path):
    summary = run_whole(tmp_path, bsds)
    images, _ = score.read_counts(find_run(Path(summary["folder"])), "whole")
    assert [list(rows) for rows in images["rows"]] == [[3, 2, 4]] * 2
    first = counts_for(images, Regions())[0]
    assert [table.tolist() for table in first] == [[[768], [768], [0]], [[1536], [0]], [[768], [384], [384], [0]]]
    # The truth's lines: between halves, and in the third annotation also across the right half; thinning takes a
    # pixel where they meet.
    assert [counts.tolist() for counts in counts_for(images, Boundaries())] == [
        [0, 32 + 0 + (32 + 24 - 1), 0, 0],
        [0, 48 + 0 + (48 + 16 - 1), 0, 0],
    ]


class OfBenchmark(Dataset):
    """The benchmark's own five images: annotations alone."""

    regions, prepare = True, "whole"

    def __init__(self):
        if not GOLDEN.is_dir():
            pytest.skip(f"no files of the BSDS500 benchmark in {GOLDEN}")
        self.keys = sorted(path.stem for path in (GOLDEN / "segs").glob("*.mat"))

    def annotations(self, key):
        return read_annotations(GOLDEN / "groundTruth" / f"{key}.mat")


@pytest.fixture(scope="module")
def benchmark_counts(tmp_path_factory):
    """The benchmark's five segmentations of each of its images, through the harness."""
    data, folder = OfBenchmark(), tmp_path_factory.mktemp("maps")
    names = [f"setting{i}" for i in range(5)]
    for key in data.keys:
        for name, segmentation in zip(names, loadmat(GOLDEN / "segs" / f"{key}.mat")["segs"].ravel(), strict=True):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(segmentation.astype(np.uint16)).save(folder / name / f"{key}.png")
    counts = count_all(data, names, lambda name, key: folder / name / f"{key}.png", workers=0, boundaries=True)
    assert (counts.skipped, counts.cropped) == ({}, 0)
    return counts.images


def test_the_harness_prints_what_the_benchmark_prints(benchmark_counts):
    names, images = list(benchmark_counts), list(benchmark_counts.values())
    segments = [rows["segments"].map(len).to_numpy() for rows in images]
    of_regions = [counts_for(rows, Regions()) for rows in images]
    curve = granularity(names, of_regions, segments, Regions(), "covering")
    printed = np.loadtxt(GOLDEN / "test_4" / "eval_cover.txt")
    assert (curve["ods_setting"], curve["ods"], curve["ois"]) == (
        f"setting{int(printed[0]) - 1}",
        pytest.approx(printed[1], abs=1e-5),
        pytest.approx(printed[2], abs=1e-5),
    )
    printed = np.loadtxt(GOLDEN / "test_4" / "eval_RI_VOI.txt")
    pri, vi = curve["others"]["pri"], curve["others"]["vi"]
    assert [pri["ods"], pri["ois"], vi["ods"], vi["ois"]] == pytest.approx(printed[[1, 2, 4, 5]], abs=1e-5)
    tables = [[[t[:-1] for t in setting[i]] for setting in of_regions] for i in range(5)]
    assert best_regions(tables)["covering_ods"] == pytest.approx(curve["ods"])

    along = [counts_for(rows, Boundaries()) for rows in images]
    curve = granularity(names, along, segments, Boundaries(), "matched_f")
    printed = np.loadtxt(GOLDEN / "test_4" / "eval_bdry.txt")
    best = best_boundaries(np.array(along).swapaxes(0, 1))
    assert best["f_ods"] == pytest.approx(printed[3], abs=5e-4)
    assert curve["ois"] == pytest.approx(best["f_ois"])
    assert best["f_ods"] - 0.005 < curve["ods"] <= best["f_ods"]  # the benchmark's may lie between two settings


# --- a run ------------------------------------------------------------------------------------------------------------

NO_MODEL = ["~segmenters.diffseg", "+segmenter@segmenters.whole=whole", "+segmenter@segmenters.grid=grid"]
QUICK = ["dataset.size=64", "workers=0", "device=cpu"]


def run_whole(tmp_path, root, *more):
    data = ["dataset=bsds500", f"dataset.root={root}"]
    return evaluated(tmp_path / "runs", *data, *NO_MODEL, *QUICK, *more)


def test_a_run_from_end_to_end(bsds, tmp_path, commands):
    """Two images of different orientation, a model, classics, settings: labels, counts, tables, report, gallery."""
    pytest.importorskip("skimage")
    settings = ["experiment=bsds500", f"dataset.root={bsds}", *QUICK, "segmenters.diffseg.anchors=4"]
    settings += [
        f"{sign}{name}" for name in ("diffcut", "kmeans_c", "diffseg_pamr") for sign in ("~segmenters.", "~vary.")
    ]
    settings += [f"~segmenters.{name}" for name in ("autosc", "maskcut", "tokencut", "dbscan")]
    settings += ["vary.diffseg.threshold=[0.2,1.0]", "vary.walk.threshold=[0.5,0.9]", "vary.spectral.clusters=[2,3]"]
    settings += ["vary.felzenszwalb.scale=[20.0,300.0]", "vary.slic.n_segments=[2,6]"]
    ran = commands(*settings, f"runs={tmp_path / 'runs'}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "as BSDS500's benchmark" in ran.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    for key, shape in TWO.items():
        for path in folder.glob(f"*/labels/{key}.png"):
            assert np.asarray(Image.open(path)).shape == shape
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["size"], summary["headlines"]) == (None, {"regions": "covering", "boundaries": "matched_f"})
    found = scales_of(summary)
    assert found.keys() == {"diffseg", "walk", "spectral", "felzenszwalb", "slic", "grid3", "whole"}
    assert found["felzenszwalb"]["covering"]["ods"] > found["whole"]["covering"]["ods"]
    assert found["felzenszwalb"]["vi"]["ods"] < found["grid3"]["vi"]["ods"]
    page = (folder / "report.html").read_text()
    assert "As BSDS500&#39;s benchmark" in page or "As BSDS500's benchmark" in page
    assert "stand only beside all of them" in page
    assert len(re.findall('<img src="data:image/webp', page)) == 4  # photo and segments of either
    assert re.search(r'<img [^>]* width="320" height="213"', page)
    assert re.search(r'<img [^>]* width="213" height="320"', page)
    again = commands(*settings, f"runs={tmp_path / 'runs'}", cwd=tmp_path)
    assert "predict: nothing to do" in again.stderr
    assert "score: nothing to do" in again.stderr
    drawn = commands("gallery", folder, f"dataset.root={bsds}", "--side", "64", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (folder / "gallery.jpg").exists()
    compared = commands("compare", folder, folder, cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "2 common images, by their label maps alone: there are no scores by classes" in compared.stdout
    assert "images without any difference: 2 of 2" in " ".join(compared.stdout.split())
    others = commands("compare", folder, folder, "--a", "grid3", "--b", "whole", f"dataset.root={bsds}", cwd=tmp_path)
    assert "2 images changed" in " ".join(others.stdout.split()), others.stderr
    sheet = Image.open(folder / "compare.png")  # photo, A and B of a landscape and a portrait
    assert sheet.size == (3 * (320 + 8) + 8, 2 * (18 + 320 + 8) + 8)


def test_labels_of_whole_photos_need_no_size(bsds, tmp_path):
    """Somebody's maps of the photos' own sizes; others are refused with the size."""
    for key, shape in TWO.items():
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray((np.arange(shape[1]) // (shape[1] // 2)).astype(np.uint8)[None].repeat(shape[0], 0)).save(
            tmp_path / "maps" / f"{key}.png"
        )
    masks = ["dataset=bsds500", f"dataset.root={bsds}", f"labels={tmp_path / 'maps'}", *QUICK]
    summary = evaluated(tmp_path / "runs", *masks)
    n = 32 * 48
    expected = (n + n / 2 + (n / 2 + n / 2 * 1 / 2)) / (3 * n)  # of halves; of one region; of a half and two quarters
    assert summary["segmenters"]["labels"]["covering"] == pytest.approx(expected)
    assert leading_metrics(summary)[:3] == ["covering", "pri", "vi"]
    Image.new("L", (64, 64)).save(tmp_path / "maps" / "22.png")
    with pytest.raises(DataError, match=r"22.png is 64 x 64 pixels: a label map must be 32 x 48 like the photo"):
        evaluated(tmp_path / "runs", *masks)


def test_scoring_at_another_size(bsds, tmp_path):
    summary = run_whole(tmp_path, bsds, "score_size=16")
    images, _ = score.read_counts(find_run(Path(summary["folder"]), 16), "whole")
    assert [int(table[0].sum()) for table in counts_for(images, Regions())] == [13 * 20, 20 * 13]


@pytest.mark.parametrize("prepare", ["crop", "squash"])
def test_cropped_and_squashed_photos_have_square_labels(bsds, tmp_path, prepare):
    summary = run_whole(tmp_path, bsds, f"dataset.prepare={prepare}")
    assert {np.asarray(Image.open(p)).shape for p in Path(summary["folder"]).glob("*/labels/*.png")} == {(64, 64)}
    assert summary["size"] == 64
    assert summary["dataset"]["note"].endswith(f"prepared by {prepare}")


def test_what_needs_classes_is_refused(bsds, tmp_path):
    for rule in ("diffseg", "strict", "majority", "names"):
        with pytest.raises(
            UserError, match=rf"^the protocol {rule} needs classes, and the labels of bsds500 are regions"
        ):
            run_whole(tmp_path, bsds, "protocol=[]", f"+protocol@protocols.{rule}={rule}")
    with pytest.raises(UserError, match=r"^the segmenter other is told the truth, and bsds500 has several truths"):
        run_whole(tmp_path, bsds, "+segmenter@segmenters.other=colour")


def test_published_rows_stand_beside_all_two_hundred_alone(bsds, tmp_path, monkeypatch):
    monkeypatch.setattr("diffseg.datasets.bsds500.SPLITS", {"test": 2})  # declared to be whole
    summary = run_whole(tmp_path, bsds)
    page = (Path(summary["folder"]) / "report.html").read_text()
    assert "gPb-owt-ucm" in page
    assert "58.8" in page
    part = run_whole(tmp_path, bsds, "dataset.count=1")
    assert "gPb-owt-ucm" not in (Path(part["folder"]) / "report.html").read_text()
    table = scales_table([summary], published_beside("bsds500", "regions", None))
    assert table.cells[0][:5] == ["human", "72.0", "72.0", "88.0", "1.17"]
    assert {row[0] for row in table.cells[-2:]} == {"whole", "grid"}
    make_tables(tmp_path / "runs", tmp_path / "tables")
    made = (tmp_path / "tables" / "bsds500.md").read_text()
    assert "| Felzenszwalb-Huttenlocher | 52.0 | 57.0 |" in made
    assert "| grid |" in made


def test_other_data_sets_are_what_they_were():
    """Cropped, with classes, and nothing new is part of their identity, so that no run of theirs is another one."""
    config, _ = configured("dataset=folder", "dataset.root=x")
    old = {"_target_", "root", "classes", "ignore", "label_suffix", "size", "count", "keys"}
    assert set(config["dataset"]) == old | {"prepare"}
    assert Folder.added["prepare"] == config["dataset"]["prepare"] == "crop"
    assert (Folder.prepare, Folder.regions) == ("crop", False)


# --- classics ---------------------------------------------------------------------------------------------------------


def observed(photo, size=None):
    pixels = np.moveaxis(photo / 127.5 - 1, -1, 0).astype(np.float32)
    return Batch([torch.from_numpy(pixels)], lambda *_: Observation({}), sizes=None if size is None else [size])[0]


@pytest.mark.parametrize("method", [Felzenszwalb, Slic])
def test_classics_part_what_is_apart(method):
    pytest.importorskip("skimage")
    photo = np.full((40, 60, 3), 30)
    photo[:, 30:] = 200
    made = method(scale=50, sigma=0, min_size=100) if method is Felzenszwalb else method(n_segments=2)
    for size in (None, (20, 30)):
        labels = made.segment(observed(photo, size))
        assert labels.shape == (size or (40, 60))
        left, right = np.split(labels, 2, axis=1)
        assert len(np.unique(left[:, :-1])) == len(np.unique(right[:, 1:])) == 1
        assert left[0, 0] != right[0, -1]


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(classic.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^slic needs scikit-image: pip install "diffseg\[classic\]"$'):
        Slic()
    with pytest.raises(UserError, match=r"^felzenszwalb needs scikit-image"):
        Felzenszwalb()


def test_classics_are_loaded_when_they_are_used():
    code = "import sys, diffseg.methods.classic as c; c.Slic(); print('skimage' in sys.modules)"
    pytest.importorskip("skimage")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_classics_refuse_what_they_cannot_take():
    pytest.importorskip("skimage")
    for made, words in ((lambda: Felzenszwalb(0), "scale must be above 0"), (lambda: Slic(0), "n_segments must be 1")):
        with pytest.raises(UserError, match=words):
            made()


# --- the photos, where they are at hand -------------------------------------------------------------------------------


def test_every_file_of_the_benchmark_reads():
    if not PHOTOS.is_dir():
        pytest.skip(f"no photos of BSDS500 in {PHOTOS}")
    data = Bsds500(PHOTOS)
    for key in data.keys[:20]:
        annotations = data.annotations(key)
        assert 4 <= len(annotations) <= 9
        assert {a.shape for a in annotations} <= {(321, 481), (481, 321)}
        data.check_size(key, annotations[0].shape)


def test_a_person_covers_what_another_drew():
    """The first annotator of an image against all: better than a grid, and less than perfect."""
    if not PHOTOS.is_dir():
        pytest.skip(f"no photos of BSDS500 in {PHOTOS}")
    truths = Bsds500(PHOTOS).annotations("100007")
    person = Regions().score([Annotations(truths).count(truths[0]).of_annotations()])
    grid = np.indices(truths[0].shape) // 110
    cells = Regions().score([Annotations(truths).count(grid[0] * 10 + grid[1]).of_annotations()])
    assert cells["covering"] < 0.5 < person["covering"] < 1
