"""The field's data sets in the layouts of their own downloads, made up and tiny: what is read, its names, the traps."""

import json
import os
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from diffseg.datasets import ade20k, cityscapes, coco_stuff, pascal_context, pascal_voc
from diffseg.datasets.ade20k import Ade20k
from diffseg.datasets.base import DataError, part_of
from diffseg.datasets.cityscapes import Cityscapes
from diffseg.datasets.coco_object import CocoObject
from diffseg.datasets.coco_stuff import FINE, FINE_NOUNS, NAMES, CocoStuff27, CocoStuff171
from diffseg.datasets.folder import Folder
from diffseg.datasets.pascal_context import PascalContext
from diffseg.datasets.pascal_voc import PascalVoc
from diffseg.eval.runs import find_run
from diffseg.eval.show.published import published_beside
from tests.test_eval import evaluated

HEIGHT, WIDTH = 24, 32
NO_MODEL = ["~segmenters.diffseg", "+segmenter@segmenters.whole=whole", "device=cpu", "workers=0", "model=mini"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def photo(path: Path, size=(WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "olive").save(path)


def values(*columns: int) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH]: upright stripes of these values, equally wide."""
    return np.repeat(np.array(columns, np.uint8), WIDTH // len(columns))[None].repeat(HEIGHT, 0)


def label(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def palette_label(path: Path, pixels: np.ndarray) -> None:
    """As VOC's: a palette whose colours have nothing to do with the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
    image.putpalette([(7 * i + 90) % 256 for i in range(768)])
    image.save(path)


# --- Pascal VOC -------------------------------------------------------------------------------------------------------

VOC_KEYS = ["2007_000033", "2008_000002", "2011_003256"]


@pytest.fixture
def voc(tmp_path):
    """Three images of val, one of train, one photo that has no label."""
    kit = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    for key in (*VOC_KEYS, "2007_000032"):
        photo(kit / "JPEGImages" / f"{key}.jpg")
        palette_label(kit / "SegmentationClass" / f"{key}.png", values(0, 1, 20, 255))
    photo(kit / "JPEGImages" / "2007_000027.jpg")
    lists = kit / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{key}\n" for key in reversed(VOC_KEYS)))
    (lists / "train.txt").write_text("2007_000032\n")
    return tmp_path / "voc"


def kit_of(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012"


def test_voc(voc, monkeypatch):
    data = PascalVoc(voc)
    assert (data.keys, data.note) == (VOC_KEYS, "3 of the 1,449 images of val")
    assert (len(data.classes), data.classes[0], data.background) == (21, "background", 0)
    assert data.raw_label(VOC_KEYS[0])[0, ::8].tolist() == [0, 1, 20, -1]
    assert [data.classes[i] for i in (1, 20)] == ["aeroplane", "tvmonitor"]
    assert data.photo(VOC_KEYS[0]).shape == (HEIGHT, WIDTH, 3)
    data.check_size(VOC_KEYS[0], (HEIGHT, WIDTH))
    train = PascalVoc(voc, split="train")
    assert (train.keys, train.note) == (["2007_000032"], "1 images of train, not of val")
    monkeypatch.setitem(pascal_voc.COUNTS, "val", 3)
    assert PascalVoc(voc).note == ""
    monkeypatch.setitem(pascal_voc.COUNTS, "val", 2)
    assert PascalVoc(voc).note == "3 images, not the 2 images of val"


def test_a_part_of_voc(voc):
    """Of an image neither of whose files is there, nothing is said but the number of those that are."""
    for file in voc.rglob("2008_000002.*"):
        file.unlink()
    assert PascalVoc(voc).keys == [VOC_KEYS[0], VOC_KEYS[2]]
    assert PascalVoc(voc, count=1).note == "the first 1 of 2 of the 1,449 images of val"


def test_names_that_look_like_numbers(voc, context):
    """2007_000033 without quotes is a number, on command lines and in YAML."""
    assert PascalVoc(voc, keys=[2011_003256, "2007_000033"]).keys == ["2011_003256", "2007_000033"]
    assert PascalContext(context, keys=[2008_000002]).keys == ["2008_000002"]
    with pytest.raises(DataError, match=r"there is no image '2011_003255'; did you mean 2011_003256\?"):
        PascalVoc(voc, keys=[2011_003255])


def test_what_is_wrong_with_voc_is_named(voc):
    kit = kit_of(voc)
    for root, near in ((voc / "VOCdevkit", voc), (kit, voc), (voc.parent, voc)):
        with pytest.raises(DataError, match=rf"did you mean the root {near}\? The layout is ROOT/VOCdevkit/VOC2012"):
            PascalVoc(root)
    with pytest.raises(DataError, match=r"split must be val or train, got 'trainval'"):
        PascalVoc(voc, split="trainval")

    label(kit / "SegmentationClass" / "2007_000033.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(DataError, match=r"2007_000033.png is a colour picture, not a label map: .*indices"):
        PascalVoc(voc).raw_label("2007_000033")
    label(kit / "SegmentationClass" / "2007_000033.png", values(0, 38, 75, 255))  # the palette's colours as greys
    with pytest.raises(DataError, match=r"2007_000033.png holds the value 38: .* hold 0 to 20, and 255 for void"):
        PascalVoc(voc).raw_label("2007_000033")

    (kit / "SegmentationClass" / "2008_000002.png").unlink()
    with pytest.raises(DataError, match=r"1 images lack photo or label, such as 2008_000002: unpack VOCtrainval_11"):
        PascalVoc(voc)
    (kit / "SegmentationClass").rename(kit / "SegmentationObject")
    with pytest.raises(DataError, match=r"no folder .*SegmentationClass: the layout is ROOT"):
        PascalVoc(voc)


def test_what_is_wrong_with_the_lists_of_voc_is_named(voc):
    lists = kit_of(voc) / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_000032\n2008_000002\n")
    for split in ("val", "train"):
        with pytest.raises(DataError, match=r"lists 1 images in train.txt and val.txt, such as 2008_000002"):
            PascalVoc(voc, split=split)
    (lists / "train.txt").unlink()
    assert len(PascalVoc(voc)) == 3
    with pytest.raises(DataError, match=r"train.txt is missing, it lists the images: unpack"):
        PascalVoc(voc, split="train")
    (lists / "val.txt").write_text("2007_000033  1\n")
    with pytest.raises(DataError, match=r"val.txt lists '2007_000033  1', which is no image of VOC"):
        PascalVoc(voc)
    (lists / "val.txt").write_text("2009_000001\n")
    with pytest.raises(DataError, match=r"none of the 1 images of val is in .*JPEGImages"):
        PascalVoc(voc)
    (lists / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*val.txt \(not a text file\)"):
        PascalVoc(voc)


def test_photos_of_another_year(voc, tmp_path):
    kit_of(voc).rename(voc / "VOCdevkit" / "VOC2007")
    with pytest.raises(
        DataError, match=r"VOCdevkit has VOC2007 but no VOC2012, and photos of another year will not do"
    ):
        PascalVoc(voc)
    with pytest.raises(DataError, match=r"has VOC2007 but no VOC2010.*; make data-context"):
        PascalContext(voc)


# --- Pascal Context ---------------------------------------------------------------------------------------------------


def segment(image: int, category: int, columns: slice, width: int = WIDTH) -> dict:
    inside = np.zeros((HEIGHT, width), np.uint8, order="F")
    inside[:, columns] = 1
    code = rle.encode(inside)
    code = {"size": list(code["size"]), "counts": code["counts"].decode()}
    return {"image_id": image, "category_id": category, "segmentation": code}


def context_file() -> dict:
    """As trainval_merged.json: two images of val, one of which has no segment, and one of train."""
    names = [(2008000002, "val"), (2010001606, "val"), (2009000003, "train")]
    return {
        "categories": [{"category_id": 2, "name": "aeroplane"}, {"category_id": 1, "name": "accordion"}],
        "images": [
            {"image_id": i, "file_name": f"{i // 10**6}_{i % 10**6:06d}.jpg", "phase": p} | {"height": 24, "width": 32}
            for i, p in names
        ],
        "annos_segmentation": [
            segment(2008000002, 2, slice(0, 16)),
            segment(2009000003, 2, slice(0, 8)),
            segment(2008000002, 458, slice(8, 16)),  # a later one is painted over an earlier one
            segment(2008000002, 1, slice(24, 28)),  # not one of the 59
        ],
    }


@pytest.fixture
def context(tmp_path):
    kit = tmp_path / "voc" / "VOCdevkit" / "VOC2010"
    for key in ("2008_000002", "2010_001606", "2009_000003", "2007_000027"):
        photo(kit / "JPEGImages" / f"{key}.jpg")
    (kit / "trainval_merged.json").write_text(json.dumps(context_file()))
    return tmp_path / "voc"


def context_with(root: Path, **changed) -> Path:
    file = root / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
    file.write_text(json.dumps(context_file() | changed))
    return root


def test_context(context, monkeypatch):
    data = PascalContext(context)
    assert (data.keys, data.note) == (["2008_000002", "2010_001606"], "2 of the 5,105 images of val")
    assert (len(data.classes), data.classes[0], data.background) == (60, "background", 0)
    assert list(pascal_context.NAMES) == sorted(pascal_context.NAMES)
    assert list(pascal_context.NAMES.values()) == sorted(pascal_context.NAMES.values())  # as the official ids are
    painted = data.raw_label("2008_000002")
    assert painted.shape == (HEIGHT, WIDTH)
    assert [data.classes[i] for i in painted[5, ::8]] == ["aeroplane", "wood", "background", "background"]
    assert not data.raw_label("2010_001606").any()
    without = PascalContext(context, images=5104)
    assert without.keys == ["2008_000002"]
    assert without.note == "1 of the 5,104 images of val, without 2010_001606"
    with pytest.raises(DataError, match=r"images must be 5105, or 5104 to leave out 2010_001606; got 5000"):
        PascalContext(context, images=5000)
    monkeypatch.setattr(pascal_context, "IMAGES", 2)
    assert PascalContext(context, images=2).note == ""
    assert PascalContext(context, images=1).note == "1 images of val, without 2010_001606"
    assert PascalContext(context, images=2, count=1).note == "the first 1 of 2 images"


def test_how_many_pixels_a_run_length_code_is_of():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 0.99, 1):
        shape = rng.integers(1, 300, 2)
        code = rle.encode(np.asfortranarray(rng.random(shape) < share, np.uint8))
        assert pascal_context._pixels(code["counts"].decode()) == shape.prod()


def test_the_truth_of_context_is_its_file(context):
    data = PascalContext(context)
    before, seen = data.truth_fingerprint(), data.fingerprint()
    context_with(context, annos_segmentation=[])
    assert PascalContext(context).truth_fingerprint() != before
    assert PascalContext(context).fingerprint() == seen


def test_what_is_wrong_with_context_is_named(context):
    kit = context / "VOCdevkit" / "VOC2010"
    whole = (kit / "trainval_merged.json").read_text()
    for text in (whole[: len(whole) // 2], "{}", "[1, 2]", '{"categories": [], "images": [{}]}', "[" * 100_000):
        (kit / "trainval_merged.json").write_text(text)
        with pytest.raises(DataError, match=r"trainval_merged.json is damaged \(\w+: .*\): fetch it again") as caught:
            PascalContext(context)
        assert "\n" not in str(caught.value)
    moved = [{"category_id": 1, "name": "aeroplane"}]
    with pytest.raises(DataError, match=r"calls the category 1 'aeroplane', which is not its number in the official"):
        PascalContext(context_with(context, categories=moved))
    strange = [context_file()["images"][0] | {"file_name": "../x.jpg"}]
    with pytest.raises(DataError, match=r"names '../x.jpg', which is no photo of VOC"):
        PascalContext(context_with(context, images=strange))
    huge = [context_file()["images"][0] | {"height": 10**7}]
    with pytest.raises(DataError, match=r"is damaged \(ValueError: an image of impossible size\)"):
        PascalContext(context_with(context, images=huge))
    wide = [segment(2008000002, 2, slice(0, 16), width=40)]
    with pytest.raises(DataError, match=r"a segment of 2008_000002 is 40 x 24 but the image 32 x 24 pixels"):
        PascalContext(context_with(context, annos_segmentation=wide)).raw_label("2008_000002")
    broken = segment(2008000002, 2, slice(3, 16))
    right = broken["segmentation"]["counts"]
    for counts in ("zzzz", "", right[:-1], f"{right}4", f"{right} ", "é", "P", "O"):
        broken["segmentation"]["counts"] = counts
        with pytest.raises(DataError, match=r"a segment of 2008_000002 is damaged: fetch the file again"):
            PascalContext(context_with(context, annos_segmentation=[broken])).raw_label("2008_000002")
    (kit / "trainval_merged.json").unlink()
    with pytest.raises(DataError, match=r"trainval_merged.json is missing, it holds the labels: .*make data-context"):
        PascalContext(context)


def test_context_wants_the_photos_of_its_year(context):
    photos = context / "VOCdevkit" / "VOC2010" / "JPEGImages"
    photo(photos / "2008_000002.jpg", (WIDTH + 8, HEIGHT))
    with pytest.raises(DataError, match=r"is 40 x 24 but its label 32 x 24 pixels: one of the two files"):
        PascalContext(context).check_size("2008_000002", PascalContext(context).raw_label("2008_000002").shape)
    photo(photos / "2011_000003.jpg")
    with pytest.raises(
        DataError, match=r"holds 2011_000003.jpg, which is of a later year: .* VOC2010's photos; unpack"
    ):
        PascalContext(context)
    for file in photos.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"JPEGImages has none of the 2 photos of val: the layout is ROOT"):
        PascalContext(context)


# --- ADE20K -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for key in ("ADE_val_00000002", "ADE_val_00000001"):
        photo(root / "images" / "validation" / f"{key}.jpg")
        label(root / "annotations" / "validation" / f"{key}.png", values(0, 1, 2, 150))
    return root


def test_ade(ade, monkeypatch):
    data = Ade20k(ade)
    assert (data.keys, data.note) == (["ADE_val_00000001", "ADE_val_00000002"], "2 of the 2,000 images of validation")
    assert (len(data.classes), data.background) == (150, None)
    assert data.raw_label(data.keys[0])[0, ::8].tolist() == [-1, 0, 1, 149]
    assert [data.classes[i] for i in (0, 1, 12, 20, 149)] == ["wall", "building", "person", "car", "flag"]
    monkeypatch.setitem(ade20k.COUNTS, "validation", 2)
    assert Ade20k(ade).note == ""
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        for file in (ade / kind / "validation").iterdir():
            file.rename(file.with_name(file.name.replace("val_00000002", f"train_00000002.{suffix}"[:-4])))
    assert Ade20k(ade).note == "2 images, of which 1 are not of validation"


def test_what_is_wrong_with_ade_is_named(ade):
    with pytest.raises(DataError, match=rf"did you mean the root {ade}\? The layout is ROOT/images/validation"):
        Ade20k(ade.parent)
    with pytest.raises(DataError, match=rf"did you mean the root {ade}\?"):
        Ade20k(ade / "images")
    with pytest.raises(DataError, match=r"split must be validation or training, got 'val'"):
        Ade20k(ade, split="val")
    path = ade / "annotations" / "validation" / "ADE_val_00000001.png"
    for pixels, words in (
        (values(255, 0, 1, 149), r"holds the value 255, so one was taken .*\(reduce_zero_label\)"),
        (values(0, 1, 2, 151), r"holds the value 151: ADE20K's scene parsing maps hold 0 to 150; fetch it again"),
        (np.full((HEIGHT, WIDTH), 2978, np.uint16), r"holds the value 2978"),  # of all of ADE20K's classes
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), r"is a colour picture"),
    ):
        label(path, pixels)
        with pytest.raises(DataError, match=words) as caught:
            Ade20k(ade).raw_label("ADE_val_00000001")
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"1 images lack photo or label, such as ADE_val_00000001: unpack ADEChall"):
        Ade20k(ade)
    for file in ade.rglob("ADE_*"):
        file.unlink()
    with pytest.raises(DataError, match=r"has no .jpg photos: the layout is ROOT"):
        Ade20k(ade)


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """Two images: small; large and nearly all grass, so that it is of the split."""
    root = tmp_path / "coco"
    large = np.full((360, 370), 123, np.uint8)
    large[0, :3] = (0, 89, 255)
    for key, pixels in (("000000000001", values(0, 89, 91, 181)), ("000000000002", large)):
        photo(root / "val2017" / f"{key}.jpg", pixels.shape[::-1])
        label(root / "stuffthingmaps" / "val2017" / f"{key}.png", pixels)
    return root


def test_the_names_of_coco_stuff_are_words():
    assert {"ceiling-tile", "structural-other", "traffic light"} <= set(FINE)
    assert (FINE_NOUNS["tile ceiling"], FINE_NOUNS["structural"]) == (
        FINE.index("ceiling-tile"),
        FINE.index("structural-other"),
    )
    assert all(re.fullmatch(r"[a-z]+([ -][a-z]+)*", name) for name in FINE)
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", noun) for noun in FINE_NOUNS)


def test_coco_object(coco, monkeypatch):
    data = CocoObject(coco)
    assert (data.keys, data.note) == (["000000000002"], "1 of 2,175 images of the split")
    assert (len(data.classes), data.classes[0], data.background) == (81, "background", 0)
    assert data.raw_label("000000000002")[0, :4].tolist() == [1, 80, -1, 0]
    assert [data.classes[i] for i in (1, 80)] == ["person", "toothbrush"]
    assert CocoObject(coco, void="background").raw_label("000000000002")[0, :4].tolist() == [1, 80, 0, 0]
    assert CocoObject(coco).raw_label("000000000002")[0, 2] == -1  # the switch is one object's own
    whole = CocoObject(coco, split="all")
    assert (len(whole), whole.note) == (2, "all 2 images, not the paper's split")
    with pytest.raises(DataError, match=r"void must be ignored or background, got 'none'"):
        CocoObject(coco, void="none")
    monkeypatch.setattr(coco_stuff, "SPLIT_SHA256", coco_stuff._sha256(["000000000002"]))
    assert CocoObject(coco).note == CocoStuff27(coco).note == ""
    assert CocoStuff171(coco, split="stuff27").note == "the 2,175 images of COCO-Stuff-27's split"


def test_coco_stuff_171(coco, monkeypatch):
    data = CocoStuff171(coco)
    assert (data.keys, data.note) == (["000000000001", "000000000002"], "2 of the 5,000 images of val2017")
    assert (len(data.classes), len(set(data.classes)), data.background) == (171, 171, None)
    assert data.raw_label("000000000001")[0, ::8].tolist() == [0, 79, 80, 170]
    assert [data.classes[i] for i in (0, 79, 80, 170)] == [NAMES[v] for v in (0, 89, 91, 181)]
    assert [data.classes[i] for i in (0, 79, 80, 170)] == ["person", "toothbrush", "banner", "wood"]
    monkeypatch.setattr(coco_stuff, "IMAGES", 2)
    assert CocoStuff171(coco).note == ""


@pytest.mark.parametrize("kind", [CocoObject, CocoStuff171])
def test_values_that_are_no_classes_of_coco(coco, kind):
    path = coco / "stuffthingmaps" / "val2017" / "000000000001.png"
    for pixels, words in (
        (
            values(0, 11, 91, 181),
            r"holds the value 11, a gap in COCO's numbers",
        ),  # ids instead of ids less one, or such
        (values(0, 182, 91, 181), r"holds the value 182: COCO-Stuff's maps hold 0 to 181, and 255"),
    ):
        label(path, pixels)
        with pytest.raises(DataError, match=words):
            kind(coco, split="all").raw_label("000000000001")
    path.unlink()
    with pytest.raises(DataError, match=r"1 photos .* have no label, such as 000000000001"):
        kind(coco)


# --- Cityscapes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def streets(tmp_path):
    root, key = tmp_path / "cityscapes", "bonn/bonn_000000_000019"
    photo(root / "leftImg8bit" / "val" / f"{key}_leftImg8bit.png", (68, 34))
    label(root / "gtFine" / "val" / f"{key}_gtFine_labelIds.png", np.arange(34, dtype=np.uint8)[:, None].repeat(68, 1))
    return root


def test_cityscapes_with_the_classes_of_the_benchmark(streets, monkeypatch):
    """trainIds as Cityscapes numbers them, by labelId."""
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
    train_ids |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    data = Cityscapes(streets, classes=19)
    assert data.raw_label(data.keys[0])[:, 0].tolist() == [train_ids.get(i, -1) for i in range(34)]
    assert (len(data.classes), data.classes[0], data.classes[16], data.classes[18]) == (19, "road", "train", "bicycle")
    assert data.note == "1 of the 500 frames of val, with 19 classes instead of 27"
    paper = Cityscapes(streets)
    assert paper.raw_label(data.keys[0])[:, 0].tolist() == [-1] * 7 + list(range(27))
    for count in (20, "27", True):
        with pytest.raises(DataError, match=r"classes must be 27 \(the paper's\) or 19"):
            Cityscapes(streets, classes=count)
    monkeypatch.setattr(cityscapes, "FRAMES", 1)
    assert Cityscapes(streets).note == ""
    assert Cityscapes(streets, classes=19).note == "all 1 frames of val, with 19 classes instead of 27"
    with pytest.raises(DataError, match=rf"did you mean the root {streets}\?"):
        Cityscapes(streets / "gtFine")
    label(paper.truth_file(paper.keys[0]), np.full((34, 68), 24_001, np.uint16))  # instanceIds under this name
    with pytest.raises(DataError, match=r"labelIds.png holds the value 24001"):
        paper.raw_label(paper.keys[0])


def test_runs_of_the_papers_classes_keep_their_identity(streets, tmp_path):
    def made(*more):
        told = evaluated(
            tmp_path / "runs", "dataset=cityscapes", f"dataset.root={streets}", "dataset.size=32", *NO_MODEL, *more
        )
        return told["folder"], find_run(Path(told["folder"])).identity["dataset"]

    folder, identity = made()
    assert "classes" not in identity
    assert made("dataset.classes=27") == (folder, identity)
    other, identity = made("dataset.classes=19")
    assert (other != folder, identity["classes"]) == (True, 19)


# --- all of them ------------------------------------------------------------------------------------------------------


def test_how_many_of_how_many():
    assert [part_of(count, 1449, "images of val") for count in (1449, 7, 1450)] == [
        "",
        "7 of the 1,449 images of val",
        "1,450 images, not the 1,449 images of val",
    ]


@pytest.mark.parametrize("kind", [PascalVoc, PascalContext, Ade20k, CocoObject, CocoStuff171])
def test_every_class_has_a_noun_of_its_own(voc, context, ade, coco, kind):
    root = {PascalVoc: voc, PascalContext: context, Ade20k: ade}.get(kind, coco)
    data = kind(root)
    assert list(data.nouns.values()) == list(range(len(data.classes)))
    assert all(noun == noun.lower() and noun.replace(" ", "").isalpha() for noun in data.nouns)
    assert set(data.nouns) <= set(data.vocabulary)
    assert all(data.vocabulary[noun] == index for noun, index in data.nouns.items())
    called = {
        PascalVoc: {"dining table": "diningtable", "airplane": "aeroplane", "sofa": "sofa", "woman": "person"},
        PascalContext: {"potted plant": "pottedplant", "bedding": "bedclothes", "table": "table"},
        Ade20k: {"window": "windowpane", "couch": "sofa", "counter": "counter", "ground": "earth"},
        CocoObject: {"hot dog": "hot dog"},
        CocoStuff171: {"brick wall": "wall-brick", "wall": "wall-other", "desk": "desk-stuff", "moss": "moss"},
    }  # fmt: skip
    assert {noun: data.classes[data.vocabulary[noun]] for noun in called[kind]} == called[kind]


NUMBER = 20_000


def many_voc(root):
    (kit_of(root) / "ImageSets" / "Segmentation" / "val.txt").write_text(
        "\n".join(f"2009_{i:06d}" for i in range(NUMBER))
    )
    names = [f"2009_{i:06d}" for i in range(NUMBER)]
    return {"JPEGImages": [f"{n}.jpg" for n in names], "SegmentationClass": [f"{n}.png" for n in names]}


def many_context(root):
    row = context_file()["images"][0]
    names = [f"2009_{i:06d}.jpg" for i in range(NUMBER)]
    context_with(root, images=[row | {"image_id": i, "file_name": name} for i, name in enumerate(names)])
    return {"JPEGImages": names}


MANY = {
    PascalVoc: ("voc", many_voc, {}),
    PascalContext: ("context", many_context, {}),
    Ade20k: (
        "ade",
        lambda root: {
            "images/validation": [f"{i}.jpg" for i in range(NUMBER)],
            "annotations/validation": [f"{i}.png" for i in range(NUMBER)],
        },
        {},
    ),
    CocoStuff171: (
        "coco",
        lambda root: {
            "coco/val2017": [f"{i}.jpg" for i in range(NUMBER)],
            "stuffthingmaps/val2017": [f"{i}.png" for i in range(NUMBER)],
        },
        {"split": "all"},
    ),
    Cityscapes: (
        "streets",
        lambda root: {
            "leftImg8bit/val/bonn": [f"{i}_leftImg8bit.png" for i in range(NUMBER)],
            "gtFine/val/bonn": [f"{i}_gtFine_labelIds.png" for i in range(NUMBER)],
        },
        {},
    ),
}


@pytest.fixture
def looks(monkeypatch):
    """Counts how often the system is asked for a file or a folder; `looks.folders`: names to give for some folders."""
    asked = SimpleNamespace(count=Counter(), folders={})

    def counting(name):
        real = getattr(os, name)

        def call(*args, **options):
            asked.count[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "lstat", "listdir", "scandir"):
        counting(name)
    real_scan, real_list = os.scandir, os.listdir

    def names_for(folder):
        return next((names for end, names in asked.folders.items() if str(folder).endswith(end)), None)

    def scandir(folder="."):
        names = names_for(folder)
        if names is None:
            return real_scan(folder)
        asked.count["scandir"] += 1
        return closing_names(names)

    @contextmanager
    def closing_names(names):
        yield iter([SimpleNamespace(name=name) for name in names])

    def listdir(folder="."):
        names = names_for(folder)
        return real_list(folder) if names is None else list(names)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", listdir)
    return asked


@pytest.mark.parametrize("kind", MANY)
def test_many_images_are_listed_at_one_look(request, looks, kind):
    fixture, many, settings = MANY[kind]
    root = request.getfixturevalue(fixture)
    looks.folders = many(root)
    looks.count.clear()
    assert len(kind(root, **settings)) == NUMBER
    assert sum(looks.count.values()) < 40, looks.count


def test_a_folder_of_many_images_is_listed_at_one_look(tmp_path, looks):
    looks.folders = {tmp_path.name: [name for i in range(NUMBER) for name in (f"{i}.jpg", f"{i}.label.png")]}
    looks.count.clear()
    assert len(Folder(tmp_path, classes=["sky", "sea"])) == NUMBER
    assert sum(looks.count.values()) < 40, looks.count


@pytest.mark.parametrize("name", ["voc", "pascal_context", "ade20k", "coco_object"])
def test_published_rows_stand_beside_the_whole_alone(name, voc, context, ade, coco, tmp_path, monkeypatch):
    """The made-up folders are declared to be whole; less than all of them never is."""
    monkeypatch.setitem(pascal_voc.COUNTS, "val", 3)
    monkeypatch.setitem(ade20k.COUNTS, "validation", 2)
    monkeypatch.setattr(coco_stuff, "SPLIT_SHA256", coco_stuff._sha256(["000000000002"]))
    monkeypatch.setattr(pascal_context, "IMAGES", 2)
    root = {"voc": voc, "pascal_context": context, "ade20k": ade, "coco_object": coco}[name]
    more = {"pascal_context": "dataset.images=2"}.get(name, "dataset.count=null")
    settings = [f"experiment={name}", f"dataset.root={root}", "dataset.size=32", more, *NO_MODEL]
    summary = evaluated(tmp_path / "runs", *settings)
    assert (summary["protocol"], list(summary["protocols"]), summary["size"]) == ("diffcut", ["diffcut", "strict"], 128)
    assert (summary["dataset"]["name"], summary["dataset"]["note"]) == (name, "")
    shown = find_run(Path(summary["folder"]), 128).report.read_text()
    methods = {row["method"] for row in published_beside(name, "diffcut", 128)}
    assert methods == {"ReCo", "MaskCLIP", "MaskCut", "DiffSeg", "DiffCut"}
    assert '<tr class="published"><th scope="row">DiffCut, SSD-1B' in shown
    key = {"voc": VOC_KEYS[0], "pascal_context": "2008_000002", "ade20k": "ADE_val_00000001"}.get(name, "000000000002")
    part = evaluated(tmp_path / "runs", *settings, f"dataset.keys=[{key}]")
    assert part["dataset"]["note"].startswith("1 chosen of")
    assert 'class="published"' not in find_run(Path(part["folder"]), 128).report.read_text()


# --- what the model is shown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PascalVoc, Ade20k, CocoObject, Cityscapes, PascalContext])
def test_crop_squash_or_whole(kind, request):
    fixtures = {PascalVoc: "voc", Ade20k: "ade", CocoObject: "coco", Cityscapes: "streets", PascalContext: "context"}
    root = request.getfixturevalue(fixtures[kind])
    usual = kind(root, size=64)
    key = usual.keys[0]
    (height, width), side = usual.raw_label(key).shape, 64
    assert usual.image(key).shape == (3, side, side)
    squashed, whole = kind(root, size=64, prepare="squash"), kind(root, size=64, prepare="whole")
    assert squashed.image(key).shape == (3, side, side)
    assert squashed.label_shape(key) == (side, side)
    _, h, w = whole.image(key).shape
    assert h / w == pytest.approx(height / width, rel=0.1)
    assert h * w == pytest.approx(side * side, rel=0.1)
    assert whole.label_shape(key) == (height, width)
    np.testing.assert_array_equal(whole.label(key), whole.raw_label(key))
    assert squashed.note == f"{usual.note}, prepared by squash"
    with pytest.raises(DataError, match="prepare must be crop, squash or whole, got 'middle'"):
        kind(root, prepare="middle")


def test_whole_frames_are_scored_at_their_own_size(streets, tmp_path):
    told = evaluated(tmp_path, "dataset=cityscapes", f"dataset.root={streets}", "dataset.prepare=whole", *NO_MODEL)
    assert told["dataset"]["note"] == "1 of the 500 frames of val, prepared by whole"
    assert told["size"] is None
    assert told["segmenters"]["whole"]["accuracy"] == pytest.approx(1 / 27)  # of 27 rows of one class each


# --- several data sets in one table -----------------------------------------------------------------------------------


def test_the_six_of_diffcuts_table(voc, ade, tmp_path, commands):
    """Two of them are there: the others are told of, and cost nothing."""
    ade.rename(tmp_path / "ade20k")
    given = ["experiment=sixpack", f"data={tmp_path}", f"runs={tmp_path / 'out'}"]
    without = ["~segmenters.diffcut", "~segmenters.diffcut_pamr"]
    given += ["model=mini", "dataset.size=128", "segmenters.diffseg.anchors=4", "workers=0", "stages=[predict,score]"]
    ran = commands(*given, *without, cwd=tmp_path)
    assert ran.returncode == 2
    assert "4 of the sweep's 6 jobs failed" in ran.stderr
    assert "make data-context" in ran.stderr
    (sweep,) = (tmp_path / "out" / "sweeps").iterdir()
    lines = (sweep / "sets-diffcut.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["method", "model", "source", "voc, 3", "ade20k, 2"]
    ours = {row[0]: row for row in rows[2:] if row[2] == "measured"}
    assert ours.keys() == {"diffseg", "diffseg_pamr"}
    for name, row in ours.items():
        for column, data in ((3, "voc-3"), (4, "ade20k-2")):
            (summary,) = (tmp_path / "out").glob(f"{data}-*/summary*.json")
            scores = json.loads(summary.read_text())["protocols"]["diffcut"][name]
            assert row[column] == f"{100 * scores['miou']:.1f}*"
    published = {tuple(row[:2]): row[2:] for row in rows[2:] if row[2] != "measured"}
    assert published["DiffCut + PAMR", "SSD-1B"] == ["quoted", "65.2", "44.3"]
    assert published["DiffSeg + PAMR", "SD 1.4 or 1.5"] == ["quoted", "49.8", "37.7"]
    strict = (sweep / "sets-strict.md").read_text()
    assert "measured" in strict
    assert "SSD-1B" not in strict
