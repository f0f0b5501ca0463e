"""What tools are given, COCO and Label Studio; label PNGs and overlays; saving and batches in Python; the demo."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.ndimage import maximum_filter, minimum_filter
from typer.testing import CliRunner

from diffseg import DiffSeg
from diffseg.cli import app
from diffseg.datasets.base import read_map
from diffseg.datasets.scenes import scene
from diffseg.demo import PHOTOS, demo_photo
from diffseg.errors import UserError
from diffseg.eval.show.figures import read_photo
from diffseg.images import load_image, overlay, palette_image, region_colours
from diffseg.outputs import brush_rle, coco, file_names, label_studio, polygons_of
from diffseg.segmenter import describe
from diffseg.semantic import label

SMALL = ["--size", "128", "--anchors", "8", "--device", "cpu"]


def run(*args: object):
    return CliRunner().invoke(app, [*map(str, args)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    Image.fromarray(scene(4, 0, 160).image[:120]).save(folder / "a.png")
    Image.fromarray(scene(4, 1, 160).image).save(folder / "more" / "b é.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def seg():
    return DiffSeg.from_pretrained("mini", device="cpu")


def rasterised(polygons, shape):
    """As COCO does: bool [H, W]."""
    if not polygons:
        return np.zeros(shape, bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))) > 0


def record(labels, photo="p.jpg", nouns=None):
    """What NAME.json holds of labels int [H, W]."""
    segments = [{"id": int(i), **describe(labels == i)} for i in np.unique(labels)]
    named = {} if nouns is None else {"nouns": list(nouns)}
    for segment in segments if nouns is not None else ():
        segment |= {"noun": nouns[segment["id"]], "score": 0.5}
    height, width = labels.shape
    return {"photo": photo, "height": height, "width": width, "model": "mini", "segments": segments, **named}


# --- polygons ---------------------------------------------------------------------------------------------------------


def test_the_outline_of_a_rectangle_follows_its_pixels():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    (ring,) = polygons_of(mask)
    corners = np.reshape(ring, (-1, 2))
    assert corners.min(0).tolist() == [2, 1]
    assert corners.max(0).tolist() == [7, 4]
    np.testing.assert_array_equal(rasterised([ring], mask.shape), mask)


def test_the_whole_picture_has_its_corners_and_an_empty_mask_nothing():
    mask = np.ones((30, 40), bool)
    np.testing.assert_array_equal(rasterised(polygons_of(mask), mask.shape), mask)
    assert len(polygons_of(mask)[0]) <= 16
    assert polygons_of(np.zeros((5, 5), bool)) == []


def test_a_single_pixel_and_a_line_are_not_lost():
    mask = np.zeros((9, 9), bool)
    mask[1, 1] = True
    mask[3, 2:8] = True
    mask[(5, 6, 7), (2, 3, 4)] = True
    np.testing.assert_array_equal(rasterised(polygons_of(mask), mask.shape), mask)


def test_a_hole_stays_empty_and_an_island_in_it_is_a_polygon_of_its_own():
    mask = np.zeros((40, 50), bool)
    mask[5:35, 5:45] = True
    mask[8:20, 8:20] = False  # two holes
    mask[10:30, 25:42] = False
    mask[15:25, 30:36] = True
    polygons = polygons_of(mask)
    assert len(polygons) == 2
    np.testing.assert_array_equal(rasterised(polygons, mask.shape), mask)


def test_a_slanted_side_takes_two_corners():
    rows, columns = np.mgrid[:100, :100]
    mask = columns < 20 + rows / 3
    (ring,) = polygons_of(mask)
    assert len(ring) // 2 <= 10
    assert (rasterised([ring], mask.shape) != mask).mean() < 0.01


masks = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))
blocks = st.builds(lambda m, k: np.kron(m, np.ones((k, k), bool)), masks, st.integers(1, 6))


@settings(deadline=None, max_examples=200)
@given(blocks)
def test_polygons_cover_the_region_but_for_pixels_at_its_boundary(mask):
    """A pixel may differ only where one of its eight neighbours is of the other kind."""
    polygons = polygons_of(mask)
    assert all(len(ring) >= 6 for ring in polygons)
    inner = minimum_filter(mask, 3, mode="constant")  # the border of the picture is a boundary, too
    outer = maximum_filter(mask, 3, mode="constant")
    drawn = rasterised(polygons, mask.shape)
    assert not (inner & ~drawn).any()
    assert not (drawn & ~outer).any()


def test_polygons_of_blobs_are_light_and_near():
    noise = np.random.default_rng(0).normal(size=(120, 160))
    spectrum = np.fft.fft2(noise)
    rows, columns = np.meshgrid(np.fft.fftfreq(120), np.fft.fftfreq(160), indexing="ij")
    mask = np.fft.ifft2(spectrum * np.exp(-((rows**2 + columns**2) * 1500))).real > 0
    polygons = polygons_of(mask)
    border = int((mask != minimum_filter(mask, 3)).sum())
    assert sum(map(len, polygons)) / 2 < border
    drawn = rasterised(polygons, mask.shape)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97


# --- COCO -------------------------------------------------------------------------------------------------------------


def test_coco_by_hand():
    labels = np.array([[0, 0, 0], [0, 1, 1]])
    made = coco([record(labels, "x/a.jpg"), record(np.zeros((2, 2), int), "x/y/b.jpg")])
    assert made["images"] == [
        {"id": 1, "file_name": "a.jpg", "height": 2, "width": 3},
        {"id": 2, "file_name": "y/b.jpg", "height": 2, "width": 2},
    ]
    assert made["categories"] == [{"id": 1, "name": "segment", "supercategory": ""}]
    assert [(a["id"], a["image_id"], a["category_id"], a["iscrowd"]) for a in made["annotations"]] == [
        (1, 1, 1, 0), (2, 1, 1, 0), (3, 2, 1, 0)
    ]  # fmt: skip
    assert [(a["area"], a["bbox"]) for a in made["annotations"]] == [
        (4, [0, 0, 3, 2]),
        (2, [1, 1, 2, 1]),
        (4, [0, 0, 2, 2]),
    ]
    assert set(made["info"]) == {"description", "version"}


def test_nouns_are_categories_in_the_order_given_taken_or_not():
    first = record(np.array([[0, 2]]), "a.jpg", ["dog", "cat", "sky"])
    made = coco([first, record(np.array([[1, 0]]), "b.jpg", ["tree", "sky"])])
    assert [c["name"] for c in made["categories"]] == ["dog", "cat", "sky", "tree"]
    assert [c["id"] for c in made["categories"]] == [1, 2, 3, 4]
    assert [a["category_id"] for a in made["annotations"]] == [1, 3, 4, 3]
    assert made["annotations"][0]["score"] == 0.5


def test_names_are_relative_to_the_innermost_common_folder(tmp_path):
    here = [{"photo": str(tmp_path / name)} for name in ("a/b/x.jpg", "a/c/../b/y.jpg", "a/c/x.jpg")]
    assert file_names(here) == ["b/x.jpg", "b/y.jpg", "c/x.jpg"]
    assert file_names(here[:2]) == ["x.jpg", "y.jpg"]
    assert file_names([]) == []


def test_the_file_is_what_pycocotools_reads(photos, tmp_path):
    """Every mask equals the label map; the photo that failed is left out; a second run writes the same bytes."""
    options = ["--out", tmp_path / "out", "--coco", tmp_path / "new" / "c.json", *SMALL]
    ran = run("segment", photos, photos / "more", *options)
    assert ran.exit_code == 1, ran.output  # of the broken one
    assert f"2 photos -> {tmp_path / 'new' / 'c.json'}" in ran.stdout
    data = COCO(tmp_path / "new" / "c.json")
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == ["a.png", "more/b é.png"]
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == ["segment"]
    for image in data.loadImgs(data.getImgIds()):
        labels = read_map(tmp_path / "out" / Path(image["file_name"]).with_suffix(".labels.png").name)
        assert labels.shape == (image["height"], image["width"])
        annotations = data.loadAnns(data.getAnnIds(imgIds=image["id"]))
        assert len(annotations) == labels.max() + 1
        for index, annotation in enumerate(annotations):
            np.testing.assert_array_equal(data.annToMask(annotation) > 0, labels == index)
            assert annotation["area"] == (labels == index).sum()
    before = (tmp_path / "new" / "c.json").read_bytes()
    run("segment", photos / "more", photos, *options)
    assert (tmp_path / "new" / "c.json").read_bytes() == before


def test_named_segments_and_polygons(photos, tmp_path):
    files = ["--coco", tmp_path / "c.json", "--label-studio", tmp_path / "t.json", "--polygons"]
    ran = run("label", photos / "a.png", "--nouns", "sky,grass", "--out", tmp_path / "out", *files, *SMALL)
    assert ran.exit_code == 0, ran.output
    data = COCO(tmp_path / "c.json")
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == ["sky", "grass"]
    labels = read_map(tmp_path / "out" / "a.labels.png")
    for annotation in data.loadAnns(data.getAnnIds()):
        assert isinstance(annotation["segmentation"], list)
        assert (data.annToMask(annotation) != (labels == annotation["category_id"] - 1)).mean() < 0.02
    (task,) = json.loads((tmp_path / "t.json").read_text())
    assert {r["value"]["polygonlabels"][0] for r in task["predictions"][0]["result"]} <= {"sky", "grass"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--polygons"], "--polygons is for the files of --coco and --label-studio"),
        (["--coco", "OUT"], "is a folder: give a file, such as"),
        (["--coco", "OUT/a.json"], "is also the name of another file"),
        (["--coco", "PHOTO"], "is also the name of another file"),
        (["--coco", "OUT/c", "--label-studio", "OUT/c"], "is also the name of another file"),
        (["--coco", "PHOTO/c.json"], "choose another with --coco"),
        (["--opacity", "1.5"], "opacity must be 0 (the photo alone) to 1"),
        (["--opacity", "nan"], "opacity must be 0 (the photo alone) to 1"),
        (["--demo"], "--demo brings its own photos"),
    ],
    ids=str,
)
def test_bad_options_are_one_sentence_before_any_work(photos, tmp_path, options, words):
    photo = tmp_path / "a.png"
    photo.write_bytes((photos / "a.png").read_bytes())
    (tmp_path / "out").mkdir()
    given_options = [o.replace("OUT", str(tmp_path / "out")).replace("PHOTO", str(photo)) for o in options]
    ran = run("segment", photo, "--out", tmp_path / "out", *given_options, *SMALL)
    assert ran.exit_code == 2, ran.output
    assert words in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())
    assert photo.read_bytes() == (photos / "a.png").read_bytes()


def test_no_photo_is_one_sentence():
    ran = run("segment")
    assert ran.exit_code == 2
    assert "no photos are given" in ran.stderr


def test_where_no_photo_could_be_segmented_an_older_file_stays(photos, tmp_path):
    (tmp_path / "c.json").write_text("older")
    ran = run("segment", photos / "broken.png", "--out", tmp_path / "out", "--coco", tmp_path / "c.json", *SMALL)
    assert ran.exit_code == 1
    assert (tmp_path / "c.json").read_text() == "older"


def test_a_full_disk_at_the_end_leaves_the_older_file_and_the_results(photos, tmp_path, monkeypatch):
    (tmp_path / "c.json").write_text("older")
    replace = Path.replace

    def full(partial, target):
        if target == tmp_path / "c.json":
            raise OSError(28, "No space left on device")
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", full)
    ran = run("segment", photos / "a.png", "--out", tmp_path / "out", "--coco", tmp_path / "c.json", *SMALL)
    assert ran.exit_code == 2
    assert f"cannot write {tmp_path / 'c.json'} (No space left on device)" in ran.stderr
    assert (tmp_path / "c.json").read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "out"]
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_documents_example_makes_the_file_of_records(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "tools.md").read_text()
    (example,) = [part.partition("```")[0] for part in text.split("```python\n") if "import json" in part]
    (tmp_path / "segments").mkdir()
    labels = np.repeat([[0, 1, 2]], 5, 0).repeat(5, 1)
    (tmp_path / "segments" / "p.json").write_text(json.dumps(record(labels)))
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert json.loads((tmp_path / "annotations.json").read_text()) == coco([record(labels)], polygons=True)


# --- Label Studio -----------------------------------------------------------------------------------------------------


def decoded(code: list[int]) -> np.ndarray:
    """The values of a run-length code as thi.ng/rle-pack, which Label Studio uses, reads it: uint8 [n]."""
    bits, place = "".join(f"{byte:08b}" for byte in code), 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < number:
        run_of_one = read(1)
        length = read(sizes[read(2)]) + 1
        out += [read(word)] * length if run_of_one else [read(word) for _ in range(length)]
    assert len(out) == number
    assert len(bits) - place < 8
    return np.array(out, np.uint8)


def test_the_brush_code_by_hand():
    """Two pixels, the second one set: 8 values, sizes 3, 4, 8, 16, a run of four 0 and one of four 255."""
    code = (
        f"{8:032b}"
        + f"{7:05b}"
        + "0010"
        + "0011"
        + "0111"
        + "1111"
        + "1"
        + "00"
        + "011"
        + "0" * 8
        + "1"
        + "00"
        + "011"
        + "1" * 8
    )
    code += "0" * (-len(code) % 8)
    assert brush_rle(np.array([[False, True]])) == [int(code[i : i + 8], 2) for i in range(0, len(code), 8)]


@settings(deadline=None, max_examples=60)
@given(blocks)
def test_the_brush_code_holds_every_pixel(mask):
    np.testing.assert_array_equal(decoded(brush_rle(mask)).reshape(*mask.shape, 4)[..., 3] > 0, mask)


def test_long_runs_are_cut_where_their_length_has_no_more_bits():
    for width in (16384, 16385, 40000):  # 4 x 16384 = 65536, the longest
        assert (decoded(brush_rle(np.ones((1, width), bool))) == 255).all()


@pytest.mark.parametrize("polygons", [False, True])
def test_label_studio_tasks_by_hand(polygons):
    labels = np.zeros((10, 20), int)
    labels[:, 10:] = 1
    (task,) = label_studio([record(labels, "some where/a b.jpg", ["dog", "sky"])], polygons)
    assert task["data"] == {"image": "/data/local-files/?d=some%20where/a%20b.jpg"}
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "mini"
    kind = "polygonlabels" if polygons else "brushlabels"
    for index, region in enumerate(prediction["result"]):
        value = region.pop("value")
        assert region == {
            "id": f"segment-{index}-0", "type": kind, "from_name": "label", "to_name": "image", "original_width": 20,
            "original_height": 10, "image_rotation": 0, "score": 0.5,
        }  # fmt: skip
        assert value[kind] == [["dog", "sky"][index]]
        if polygons:  # in percent of the picture
            points = np.array(value["points"])
            assert value["closed"] is True
            assert points.min(0).tolist() == [50 * index, 0]
            assert points.max(0).tolist() == [50 * index + 50, 100]
        else:
            assert value["format"] == "rle"
            np.testing.assert_array_equal(decoded(value["rle"]).reshape(10, 20, 4)[..., 0] > 0, labels == index)


def test_names_that_are_not_utf8_are_addresses_by_their_bytes():
    (task,) = label_studio([record(np.zeros((2, 2), int), "caf\udce9/a#1.jpg")])
    assert task["data"]["image"].endswith("?d=caf%E9/a%231.jpg")


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 3, 17, 255, 256, 4000])
def test_a_label_png_has_colours_and_keeps_its_numbers(tmp_path, most):
    labels = np.random.default_rng(0).integers(0, most + 1, (50, 70))
    labels[0, 0] = most
    palette_image(labels).save(tmp_path / "l.png")
    np.testing.assert_array_equal(read_map(tmp_path / "l.png"), labels)
    with Image.open(tmp_path / "l.png") as image:
        assert image.mode == ("P" if most < 256 else "I;16")
        if most < 256:
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), region_colours(labels)[labels])


def test_a_region_keeps_its_colour_when_numbers_change_and_others_merge():
    labels = np.repeat(np.arange(6).reshape(2, 3), 20, 0).repeat(20, 1)
    colours = region_colours(labels)
    assert len(np.unique(colours, axis=0)) == 6
    shuffled = np.array([3, 5, 0, 1, 4, 2])
    np.testing.assert_array_equal(region_colours(shuffled[labels])[shuffled], colours)
    merged = np.array([0, 0, 2, 3, 4, 5])[labels]
    after = region_colours(merged)
    np.testing.assert_array_equal(after[2:], colours[2:])
    assert after[0].tolist() in colours[:2].tolist()  # and the merged one has the colour of a part


def test_regions_too_small_for_a_point_have_colours_of_their_own():
    labels = np.zeros((400, 400), int)
    labels[0, :5] = np.arange(1, 6)
    assert len(np.unique(region_colours(labels), axis=0)) == 6


def test_opacity_and_numbers(seg):
    photo = scene(4, 0, 128).image
    out = seg(photo, size=128, anchors=8, threshold=0.3)
    inside = minimum_filter(out.labels, 5) == maximum_filter(out.labels, 5)  # two pixels from any border
    np.testing.assert_array_equal(np.asarray(out.overlay(opacity=0))[inside], photo[inside])
    np.testing.assert_array_equal(
        np.asarray(out.overlay(opacity=1))[inside], region_colours(out.labels)[out.labels][inside]
    )
    assert (np.asarray(out.overlay(numbers=True)) != np.asarray(out.overlay())).any()
    with pytest.raises(UserError, match="opacity must be 0"):
        overlay(photo, out.labels, -0.1)


def test_the_palette_is_of_the_overlay_and_of_the_labels_but_not_their_numbers(seg, photos, tmp_path):
    for name in ("regions", "safe"):
        assert run("segment", photos / "a.png", "--out", tmp_path / name, "--palette", name, *SMALL).exit_code == 0
    pictures = {name: Image.open(tmp_path / name / "a.labels.png") for name in ("regions", "safe")}
    labels = np.asarray(pictures["regions"])
    np.testing.assert_array_equal(np.asarray(pictures["safe"]), labels)
    for name, picture in pictures.items():
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), region_colours(labels, name)[labels])
    shown = [np.asarray(Image.open(tmp_path / name / "a.overlay.png")) for name in ("regions", "safe")]
    assert (shown[0] != shown[1]).any()
    wrong = run("segment", photos / "a.png", "--out", tmp_path / "none", "--palette", "save", *SMALL)
    assert wrong.exit_code == 2
    assert "the palette must be regions or safe, got 'save'; did you mean safe?" in wrong.output
    assert not (tmp_path / "none").exists()


# --- in Python --------------------------------------------------------------------------------------------------------


def test_saving_writes_what_the_command_writes(seg, photos, tmp_path):
    assert run("segment", photos / "a.png", "--out", tmp_path / "cli", *SMALL).exit_code == 0
    out = seg(photos / "a.png", size=128, anchors=8)
    assert out.save(tmp_path / "new" / "python") == tmp_path / "new" / "python" / "a"
    for name in ("a.labels.png", "a.overlay.png"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "new" / "python" / name).read_bytes()
    ours, theirs = (json.loads((tmp_path / f / "a.json").read_text()) for f in ("cli", "new/python"))
    assert {**ours, "timings_s": 0} == {**theirs, "timings_s": 0}
    assert seg(load_image(photos / "a.png"), size=128, anchors=8).save(tmp_path / "b").name == "photo"
    with pytest.raises(UserError, match="cannot be the name of a file"):
        out.save(tmp_path, "../elsewhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another folder"):
        out.save(tmp_path / "file")


def test_named_segments_are_saved_and_named_in_short(seg, photos, tmp_path):
    out = label(seg, photos / "a.png", ["sky", "grass"], settings=seg.settings(size=128, anchors=8))
    out.save(tmp_path, opacity=0.3)
    assert json.loads((tmp_path / "a.json").read_text())["nouns"] == ["sky", "grass"]
    assert repr(out).startswith("LabelledSegmentation(")
    assert len(repr(out)) < 200


def test_short_names_of_things(seg):
    assert repr(seg) == "DiffSeg('mini', cpu, float32)"
    out = seg(scene(4, 0, 128).image[:96], size=128, anchors=8, threshold=100.0)
    assert repr(out) == "Segmentation(1 segment, 128 x 96 pixels, model mini, threshold 100)"


def test_many_photos_are_segmented_as_one_by_one_in_fewer_passes(seg, photos, monkeypatch):
    images = [scene(4, i, 160).image[:120] for i in range(3)] + [
        photos / "more" / "b é.png",
        scene(4, 5, 160).image[:60],
    ]
    alone = [seg(image, size=128, anchors=8, threshold=0.6) for image in images]
    passes = []
    observe = type(seg.model).observe
    monkeypatch.setattr(
        type(seg.model), "observe", lambda m, x, *a, **k: passes.append(len(x)) or observe(m, x, *a, **k)
    )
    together = seg.many(images, batch=3, size=128, anchors=8, threshold=0.6)
    assert sorted(passes) == [1, 1, 3]  # four of one shape, three at most together, and a wide one
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.proposals, other.proposals, atol=1e-6)
        assert one.source == other.source
        np.testing.assert_array_equal(one.image, other.image)
    assert seg.many([]) == []
    with pytest.raises(UserError, match="batch must be at least 1"):
        seg.many(images, batch=0)


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_segments_installed_photos_and_gives_their_credits(tmp_path):
    options = ["--out", tmp_path / "out", "--coco", tmp_path / "c.json", "--numbers", *SMALL]
    ran = run("segment", "--demo", *options)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("3 photos, ")
    for name in PHOTOS:
        (line,) = [line for line in ran.stdout.splitlines() if line.startswith(f"{name}.jpg: ")]
        assert "public domain" in line or "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/" in line
        with Image.open(demo_photo(name)) as photo, Image.open(tmp_path / "out" / f"{name}.overlay.png") as drawn:
            assert photo.size == drawn.size
    assert len(COCO(tmp_path / "c.json").getImgIds()) == 3
    assert read_photo("demo:flower").shape == (427, 640, 3)


def test_a_demo_photo_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="choose one of china, flower, grace_hopper"):
        demo_photo("mars")
    monkeypatch.setitem(PHOTOS, "china", ("sklearn", "datasets/images/none.jpg", ""))
    with pytest.raises(UserError, match=r"the installed sklearn came without none.jpg: give a photo of yours"):
        demo_photo("china")
    monkeypatch.setitem(PHOTOS, "china", ("no_such_package", "none.jpg", ""))
    with pytest.raises(UserError, match=r"came without none\.jpg"):
        demo_photo("china")
