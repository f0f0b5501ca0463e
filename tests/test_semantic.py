"""Semantic DiffSeg: truths worked out by hand, the command on the embedded model, and each bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from spacy.tokens import Doc
from spacy.vocab import Vocab
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipModel,
    CLIPTokenizer,
)
from typer.testing import CliRunner

from diffseg import DiffSeg, captions
from diffseg.attention import Look, Observation
from diffseg.backbones.base import EMBEDDED
from diffseg.captions import CAPTIONER, Captioner, CaptionError, load_tagger, nouns_of
from diffseg.cli import app
from diffseg.datasets.coco_stuff import CLASSES
from diffseg.datasets.scenes import TEST_SEED, Scenes, scene
from diffseg.demo import SCENES
from diffseg.eval.semantic import BOUND, CONTROL, NamedPhotos, named, score
from diffseg.images import write_names
from diffseg.observed import Batch
from diffseg.segmenter import Segmentation, Settings
from diffseg.semantic import LabelledSegmentation, caption_of, distinct, label, noun_maps, noun_tokens, vote
from tests.models import save_pipeline

SMALL = ["--size", "128", "--anchors", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def seg():
    return DiffSeg.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "scene.png"
    Image.fromarray(scene(4, 0, 160).image[:120]).save(path)
    return path


@pytest.fixture(scope="module")
def byte_level():
    """CLIP's own kind of tokenizer with a vocabulary of single letters and few words: most words are split."""
    letters = list("abcdefghijklmnopqrstuvwxyz,")
    words = letters + [c + "</w>" for c in letters] + ["do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[("d", "o"), ("do", "g</w>")], model_max_length=77)


@pytest.fixture(params=["embedded", "byte-level"])
def tokenizer(request, byte_level):
    if request.param == "byte-level":
        return byte_level
    return CLIPTokenizer.from_pretrained(EMBEDDED["mini"] / "tokenizer")


# --- words -> tokens --------------------------------------------------------------------------------------------------


def spelled(tokenizer, caption: str, positions: list[int]) -> str:
    ids = tokenizer(caption)["input_ids"]
    return "".join(tokenizer.convert_ids_to_tokens([ids[i] for i in positions])).replace("</w>", " ")


def test_tokens_are_counted_from_the_start_token(byte_level):
    assert noun_tokens(byte_level, "dog", ["dog"]) == [[1]]
    assert noun_tokens(byte_level, "a dog", ["dog"]) == [[2]]


def test_a_word_in_pieces_has_all_of_them_and_shifts_the_rest(byte_level):
    """zebra: z e b r a</w>, where counting words would say token 1, and dog token 2."""
    assert noun_tokens(byte_level, "zebra dog", ["zebra", "dog"]) == [[1, 2, 3, 4, 5], [6]]


def test_every_noun_has_exactly_its_own_letters(tokenizer):
    caption = "a photo of skateboarder,  Traffic\tlight, dog and skateboarder"
    nouns = ["dog", "skateboarder", "traffic light"]
    found = noun_tokens(tokenizer, caption, nouns)
    spelt = [spelled(tokenizer, caption, positions) for positions in found]
    assert [s.split() for s in spelt] == [["dog"], ["skateboarder", "skateboarder"], ["traffic", "light"]]


def test_a_repeated_word_has_all_its_places(byte_level):
    assert noun_tokens(byte_level, "dog, dog a dog", ["dog"]) == [[1, 3, 5]]


def test_a_noun_is_whole_words_and_the_longer_noun_has_them(tokenizer):
    caption = "hotdog, light dog, traffic light"
    found = noun_tokens(tokenizer, caption, ["light", "dog", "traffic light"])
    assert [spelled(tokenizer, caption, p).split() for p in found] == [["light"], ["dog"], ["traffic", "light"]]
    with pytest.raises(ValueError, match="'dog' is not among the words of the caption 'dogs'"):
        noun_tokens(tokenizer, "dogs", ["dog"])


def test_beyond_the_context_is_an_error_and_within_it_is_enough(byte_level):
    """77 tokens are start, 75 letters and end: a noun from the 76th letter on is not read."""
    assert noun_tokens(byte_level, "a " * 74 + "dog", ["dog"]) == [[75]]
    with pytest.raises(ValueError, match="too long: the noun 'dog' lies beyond the 77 tokens"):
        noun_tokens(byte_level, "a " * 75 + "dog", ["dog"])
    assert noun_tokens(byte_level, "dog " + "a " * 80 + "dog", ["dog"]) == [[1]]
    with pytest.raises(ValueError, match="'cat' lies beyond"):  # a noun cut in two is not read either
        noun_tokens(byte_level, "a " * 73 + "cat", ["cat"])


def test_nouns_are_counted_once():
    assert distinct([" dog", "traffic   light", "Dog", ""]) == ("dog", "traffic light")
    with pytest.raises(ValueError, match="no nouns given"):
        distinct(["", " "])


def test_the_caption_of_nouns_is_that_of_the_scenes():
    for index in range(6):
        made = scene(4, index, 32)
        assert caption_of([noun for noun, _ in made.nouns]) == made.caption
    assert caption_of(["dog"]) == "a photo of dog"


# --- tokens -> names --------------------------------------------------------------------------------------------------


def cross_of(*columns: np.ndarray) -> torch.Tensor:
    """[1, h*w, tokens], each row summing to 1, from one picture [h, w] per token after the start token's rest."""
    words = np.stack([c.ravel() for c in columns], 1)
    return torch.from_numpy(np.concatenate([1 - words.sum(1, keepdims=True), words], 1)).float()[None]


LEFT = np.repeat([[1.0, 1, 0, 0]], 4, 0)


def test_a_map_is_where_a_noun_is_attended_to_not_how_much():
    """The second noun has a tenth of the first one's attention and wins where it has it."""
    first, second = noun_maps({(4, 4): cross_of(0.5 * LEFT, 0.05 * (1 - LEFT))}, [[1], [2]], (4, 4))
    np.testing.assert_allclose(first, 2 * LEFT, rtol=1e-6)
    np.testing.assert_allclose(second, 2 * (1 - LEFT), rtol=1e-6)


def test_the_tokens_of_a_noun_are_added():
    """The token that is attended to more counts for more: (0.3 left + 0.1 right) over a mean of 0.2."""
    (found,) = noun_maps({(4, 4): cross_of(0.3 * LEFT, 0.1 * (1 - LEFT))}, [[1, 2]], (4, 4))
    np.testing.assert_allclose(found, 1.5 * LEFT + 0.5 * (1 - LEFT), rtol=1e-6)


def test_resolutions_weigh_the_same():
    """Left at 4 x 4 and right at 2 x 2, with the same strength: nothing is left of either."""
    coarse = np.array([[0.0, 1], [0, 1]])
    maps = {(4, 4): cross_of(0.4 * LEFT), (2, 2): cross_of(0.4 * coarse)}
    (found,) = noun_maps(maps, [[1]], (4, 4))
    np.testing.assert_allclose(found[:, [0, 3]], 1, rtol=1e-6)  # the columns that interpolation leaves alone


def test_a_rows_attention_stays_a_distribution_over_tokens():
    """Why nothing is normalised over tokens: all tokens together are 1 everywhere, at whatever size."""
    maps = {(h, h): torch.softmax(torch.randn(1, h * h, 5), 2) for h in (8, 4, 2)}
    (found,) = noun_maps(maps, [range(5)], (13, 9))
    np.testing.assert_allclose(found, 1, atol=1e-5)


def test_mean_and_majority_can_differ():
    """One segment of four pixels: the second noun is a little ahead on three, the first far ahead on one."""
    labels = np.zeros((1, 4), int)
    maps = [np.float32([[9, 1, 1, 1]]), np.float32([[0, 2, 2, 2]])]
    np.testing.assert_allclose(vote(labels, maps, "mean"), [[3, 1.5]])
    np.testing.assert_allclose(vote(labels, maps, "majority"), [[0.25, 0.75]])
    with pytest.raises(ValueError, match="mean or majority, got 'median'"):
        vote(labels, maps, "median")


def test_the_majority_is_the_most_frequent_not_the_median():
    """Indices 0, 0, 0, 1, 2, 2, 2, 2 have median 1.5; the most frequent is 2."""
    winners = np.array([[0, 0, 0, 1, 2, 2, 2, 2]])
    maps = [(winners == noun).astype(np.float32) for noun in range(3)]
    np.testing.assert_allclose(vote(np.zeros((1, 8), int), maps, "majority"), [[3 / 8, 1 / 8, 4 / 8]])


def three_segments() -> LabelledSegmentation:
    """Columns of 2, 1 and 1: the first and third are dog (scores 2 and 3), the second sky."""
    labels = np.repeat([[0, 0, 1, 2]], 4, 0).repeat(8, 0).repeat(8, 1).astype(np.int32)
    scores = np.float32([[0, 2, 1], [1.5, 1, 0], [0, 3, 1]])
    image = np.zeros((*labels.shape, 3), np.uint8)
    proposals = np.full((3, 2, 2), 0.25, np.float32)
    unmerged = Segmentation(labels, proposals, image, "none", "float32", Settings((1.0,)), {})
    nouns = ("sky", "dog", "grass")
    attention = np.float32([[[0, 0], [2, 2]], [[2, 2], [0, 0]], [[1, 1], [1, 1]]])
    merged = np.int32([1, 0, 1])[labels]
    return LabelledSegmentation(merged, nouns, scores, unmerged, caption_of(nouns), "mean", attention)


def test_segments_of_one_noun_are_one():
    made = three_segments()
    assert len(made) == 2
    record = made.as_dict()
    assert [s["noun"] for s in record["segments"]] == ["sky", "dog"]
    assert [s["area"] for s in record["segments"]] == [256, 768]
    assert record["segments"][1]["score"] == pytest.approx((2 * 512 + 3 * 256) / 768, abs=1e-4)
    assert record["segments"][1]["bbox"] == [0, 0, 32, 32]
    assert record["nouns"] == ["sky", "dog", "grass"]
    for segment in record["segments"]:
        np.testing.assert_array_equal(coco_mask.decode(segment["segmentation"]) > 0, made.labels == segment["id"])
    json.dumps(record)


def test_a_name_is_unsure_where_another_nouns_score_is_nearly_as_high():
    """sky: 1.5 against 1 is .67 of it. dog, the mean of (0, 2, 1) and (0, 3, 1) by area 2 to 1: 2.33 against 1."""
    made = three_segments()
    assert [(name["noun"], name["score"], name["unsure"]) for name in made.named()] == [
        ("sky", 1.5, False),
        ("dog", 2.3333, False),
    ]
    made.scores[1, 2] = 1.2  # of 1.5: .8
    assert [name["unsure"] for name in made.named()] == [True, False]
    assert [segment["unsure"] for segment in made.as_dict()["segments"]] == [True, False]
    doubted = np.asarray(made.overlay(0)).astype(int)
    made.scores[1, 2] = 0
    assert np.abs(doubted - np.asarray(made.overlay(0))).max() > 100  # the question mark


def test_with_one_noun_there_is_nothing_to_be_unsure_of():
    made = three_segments()
    alone = replace(made, nouns=("dog",), scores=made.scores[:, 1:2], labels=np.zeros_like(made.labels))
    assert [name["unsure"] for name in alone.named()] == [False]


def test_the_sheet_shows_where_each_noun_is_attended_to():
    """Photo, segments, sky (below), dog (above), grass (nowhere in particular): bright there."""
    sheet = np.asarray(three_segments().sheet(side=64).convert("L")).astype(int)
    panels = np.split(sheet[-64:], np.arange(65, 5 * 65, 65), axis=1)  # 64 pixels and a gap
    sky, dog, grass = (panel[:, 4:60] for panel in panels[2:])
    assert sky[56:].min() > sky[:8].max() + 80
    assert dog[:8].min() > dog[56:].max() + 80
    assert np.ptp(grass) == 0


def test_names_are_written_inside_their_segments():
    labels = np.zeros((120, 300), np.int32)
    labels[:, 150:] = 1
    blank = Image.new("RGB", (300, 120), (90, 90, 90))
    drawn = np.asarray(write_names(blank.copy(), labels, ["dog", "sky"])) != np.asarray(blank)
    changed = drawn.any(2)
    for side in (changed[:, :150], changed[:, 150:]):
        rows, columns = np.nonzero(side)
        assert 30 < rows.mean() < 90
        assert 30 < columns.mean() < 120
    assert not changed[:, 148:152].any()


@pytest.mark.parametrize("size", [(16, 16), (16, 400), (400, 16)])
def test_names_fit_any_picture(size):
    picture = Image.new("RGB", size)
    write_names(picture, np.zeros(size[::-1], np.int32), ["a rather long name"])
    assert np.asarray(picture).any()


# --- captions ---------------------------------------------------------------------------------------------------------


def tagged(text: str, pos: str) -> Doc:
    return Doc(Vocab(), words=text.split(), pos=pos.split())


def test_consecutive_nouns_are_one_and_repeats_are_dropped():
    """On a hand-made spaCy document: the real model's tags are not part of this test."""
    doc = tagged("two dogs at a traffic light , Dogs , London", "NUM NOUN ADP DET NOUN NOUN PUNCT NOUN PUNCT PROPN")
    assert nouns_of(doc) == ("dogs", "traffic light", "London")


def test_what_names_the_picture_itself_is_left_out():
    assert nouns_of(tagged("a photo of a dog", "DET NOUN ADP DET NOUN")) == ("dog",)
    assert nouns_of(tagged("a picture on a wall", "DET NOUN ADP DET NOUN")) == ("picture", "wall")
    with pytest.raises(CaptionError, match="there is no noun in the caption 'it runs'"):
        nouns_of(tagged("it runs", "PRON VERB"))


def test_nouns_as_they_stand_in_the_caption():
    """Words written together stay together, so that they are found there again."""
    doc = Doc(Vocab(), words=["a", "10", "m", "pool"], spaces=[True, False, True, False], pos=["DET"] + 3 * ["NOUN"])
    assert nouns_of(doc) == ("10m pool",)


def save_captioner(folder, model=BlipForConditionalGeneration, **options):
    """A tiny random BLIP in the layout of the hub."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "dog", "on", "grass", "sky", "and", "photo"]
    ids = {"bos_token_id": 4, "eos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | ids | {"vocab_size": len(words), "max_position_embeddings": 64, "encoder_hidden_size": 16}
    config = BlipConfig(text_config=text, vision_config=shape | {"image_size": 32, "patch_size": 16}, projection_dim=16)
    model(config).save_pretrained(folder, **options)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}, bos_token="[DEC]").save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_captioner_writes_words(tmp_path):
    describe = Captioner.from_pretrained(str(save_captioner(tmp_path)), device="cpu")
    photo = scene(4, 0, 64).image[:40]
    written = describe(photo)
    assert written == describe(photo)
    assert set(written.split()) <= {"a", "dog", "on", "grass", "sky", "and", "photo"}
    assert not any(special in written for special in ("[", "]"))


def test_only_captioners_are_taken(tmp_path):
    with pytest.raises(ValueError, match="is no BLIP captioner but BlipModel"):
        Captioner.from_pretrained(str(save_captioner(tmp_path, BlipModel)), device="cpu")
    with pytest.raises(ValueError, match=f"there is no captioner 'nothing': .*{CAPTIONER}"):
        Captioner.from_pretrained("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="cannot load the captioner"):
        Captioner.from_pretrained(str(tmp_path / "empty"), device="cpu")


def test_pickled_and_damaged_captioners_are_one_sentence(tmp_path):
    save_captioner(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(OSError, match="cannot load the captioner"):
        Captioner.from_pretrained(str(tmp_path), device="cpu")
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="cannot load the captioner"):
        Captioner.from_pretrained(str(tmp_path), device="cpu")


LOAD = """
import sys
import numpy as np
from diffseg.captions import Captioner
for name in sys.argv[1:]:
    try:
        print(Captioner.from_pretrained(name, device="cpu")(np.zeros((40, 60, 3), np.uint8)))
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_a_captioner_from_the_hub(tmp_path, on_hub):
    """The real client against a hub on localhost; transformers' own conversion service is not asked."""
    hub, commands = on_hub
    whole, pickled = save_captioner(tmp_path / "whole"), save_captioner(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    hub.repositories |= {("us/blip", "main"): whole, ("us/pickled", "main"): pickled}
    (tmp_path / "load.py").write_text(LOAD)
    asked_before = len(hub.asked)
    names = ("us/blip", "us/pickled", "us/none")
    ran = commands(*names, script=tmp_path / "load.py", cwd=tmp_path, DISABLE_SAFETENSORS_CONVERSION="1")
    assert ran.returncode == 0, ran.stderr
    asked = hub.asked[asked_before:]
    assert "model.safetensors" in asked
    assert "pytorch_model.bin" not in asked
    written, *refused = ran.stdout.splitlines()
    assert "Error" not in written
    assert len(refused) == 2
    for name, sentence in zip(names[1:], refused, strict=True):
        assert sentence.startswith(f"OSError: cannot load the captioner '{name}'")


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_planted_cross_attention_names_the_segments(seg, monkeypatch):
    """Three segments; the left half attends to "dog" (token 1), the right half to "sky" (token 4)."""
    labels = np.repeat([[0, 1, 2, 2]], 64, 0).repeat(16, 1).astype(np.int32)
    cross = {(4, 4): cross_of(0.1 * LEFT, 0 * LEFT, 0 * LEFT, 0.1 * (1 - LEFT))}

    def looked_at(photo, settings, prompt):
        assert prompt == "dog a a sky"
        look = Look(settings.timestep, prompted=True)
        return Batch([torch.zeros(3, 64, 64)], lambda asked, needs: Observation({}, cross), look)[0]

    def segmented(photo, image, settings):
        return Segmentation(labels, np.ones((3, 2, 2), np.float32), photo, "planted", "float32", settings, {})

    monkeypatch.setattr(seg, "observe_as", looked_at)
    monkeypatch.setattr(seg, "segment_observed", segmented)
    made = label(seg, np.zeros((64, 64, 3), np.uint8), ["dog", "sky"], "dog a a sky")
    assert made.scores.argmax(1).tolist() == [0, 0, 1]
    np.testing.assert_array_equal(made.labels, np.array([0, 0, 1])[labels])
    assert len(made) == 2


def test_with_the_empty_prompt_nothing_changes(seg):
    """A pass without a prompt and one with "" are the same segmentation; only the second keeps cross-attention."""
    photo = Scenes(1, seed=4, size=128).photo("000000")
    settings = seg.settings(size=128, anchors=8)
    plain, prompted = seg.observe_as(photo, settings), seg.observe_as(photo, settings, "")
    first, second = (seg.segment_observed(photo, image, settings) for image in (plain, prompted))
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.proposals, second.proposals)
    cross = prompted.batch.seen().cross_attention
    assert {attention.shape[::2] for attention in cross.values()} == {(1, 77)}
    assert plain.batch.seen().cross_attention == {}


def test_a_model_with_two_text_encoders(tmp_path):
    """Random SDXL: the prompt's tokens are the same for both encoders."""
    xl = DiffSeg.from_pretrained(str(save_pipeline("sdxl", tmp_path)), device="cpu")
    made = label(xl, scene(4, 0, 128).image, ["sky", "traffic light"], settings=xl.settings(size=128, anchors=2))
    assert made.labels.shape == (128, 128)
    assert set(np.unique(made.labels)) <= {0, 1}
    assert np.isfinite(made.scores).all()


def run(*args: object):
    return CliRunner().invoke(app, ["label", *map(str, args)])


def test_the_command_in_a_real_process(photo, tmp_path, commands):
    nouns = [noun for noun, _ in scene(4, 0, 160).nouns]
    command = ["label", photo, "--out", tmp_path, *SMALL, "--nouns", ",".join(nouns)]
    ran = commands(*command, module="diffseg.cli", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("1 photo, ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.json", "scene.labels.png", "scene.overlay.png"]
    labels = np.asarray(Image.open(tmp_path / "scene.labels.png"))
    assert labels.shape == (120, 160)
    assert Image.open(tmp_path / "scene.overlay.png").size == (160, 120)
    record = json.loads((tmp_path / "scene.json").read_text())
    assert record["nouns"] == nouns
    assert record["caption"] == caption_of(nouns)
    assert record["voting"] == "mean"
    assert record["settings"]["anchors"] == 8
    assert sum(s["area"] for s in record["segments"]) == labels.size
    for segment in record["segments"]:
        assert segment["noun"] == nouns[segment["id"]]
        np.testing.assert_array_equal(coco_mask.decode(segment["segmentation"]) > 0, labels == segment["id"])


def test_the_demo_names_scenes_by_their_own_captions_and_says_how_far_to_trust_it(tmp_path):
    ran = run("--demo", "--out", tmp_path, "--attention", *SMALL)
    assert ran.exit_code == 0, ran.stderr
    assert "% of the segments of 90 generated scenes right" in ran.stderr
    for index in SCENES:
        record = json.loads((tmp_path / f"scene{index}.json").read_text())
        assert record["caption"] == scene(TEST_SEED, index).caption
        sheet = Image.open(tmp_path / f"scene{index}.nouns.png")
        assert sheet.width > sheet.height
    assert run(tmp_path, "--out", tmp_path / "again", "--nouns", "sky", *SMALL).exit_code == 0
    assert len(list((tmp_path / "again").glob("*.json"))) == len(SCENES)  # sheets are no photos
    assert "leave out either it or yours" in run("--demo", "--nouns", "sky", "--out", tmp_path, *SMALL).stderr
    assert "try diffseg label --demo" in run("--nouns", "sky", "--out", tmp_path, *SMALL).stderr


def test_broken_files_are_named_and_the_rest_is_done(photo, tmp_path):
    ran = run(photo, tmp_path / "none.jpg", "--nouns", "sky,road", "--voting", "majority", "--out", tmp_path, *SMALL)
    assert ran.exit_code == 1
    assert "1 could not be segmented" in ran.stderr
    record = json.loads((tmp_path / "scene.json").read_text())
    assert record["voting"] == "majority"
    assert all(0 <= s["score"] <= 1 for s in record["segments"])


class Tagger:
    """Stands in for spaCy's English model, which cannot be had offline: these words are nouns."""

    nouns = frozenset({"dog", "grass", "sky", "road"})

    def __call__(self, text: str) -> Doc:
        words = text.split()
        return Doc(Vocab(), words=words, pos=["NOUN" if word in self.nouns else "X" for word in words])


def test_a_given_caption(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "load_tagger", Tagger)
    ran = run(photo, "--caption", "the sky above a road", "--out", tmp_path, *SMALL)
    assert ran.exit_code == 0, ran.output
    record = json.loads((tmp_path / "scene.json").read_text())
    assert (record["caption"], record["nouns"]) == ("the sky above a road", ["sky", "road"])


def test_a_written_caption(photo, tmp_path, monkeypatch):
    """The real code of the captioner, with random weights; whatever noun it writes is the segments' name."""
    folder = save_captioner(tmp_path / "blip")
    written = Captioner.from_pretrained(str(folder), device="cpu")(np.asarray(Image.open(photo)))
    monkeypatch.setattr(Tagger, "nouns", frozenset(written.split()[:1]))
    monkeypatch.setattr(captions, "load_tagger", Tagger)
    ran = run(photo, "--captioner", folder, "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 0, ran.output
    record = json.loads((tmp_path / "out" / "scene.json").read_text())
    assert record["caption"] == written
    assert set(" ".join(record["nouns"]).split()) == {written.split()[0]}


def test_a_photo_whose_caption_names_nothing_is_skipped(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(Tagger, "nouns", frozenset())
    monkeypatch.setattr(captions, "load_tagger", Tagger)
    ran = run(photo, "--captioner", save_captioner(tmp_path / "blip"), "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 1
    assert f"skipped: {photo}: there is no noun in the caption" in ran.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nouns", " , "], "no nouns given"),
        (["--nouns", "dog", "--caption", "a dog"], "give only one of --nouns, --caption and --captioner"),
        (["--nouns", ",".join(f"noun{i}" for i in range(80))], "too long: the noun"),
        (["--caption", "a dog on grass"], "python -m spacy download en_core_web_sm"),
        ([], "python -m spacy download en_core_web_sm"),
        (["--nouns", "dog", "--voting", "median"], "voting must be mean or majority"),
        (["--nouns", "dog", "--threshold", "0"], "threshold must be above 0"),
    ],
)
def test_bad_inputs_are_one_sentence_and_write_nothing(photo, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(captions, "TAGGER", "en_core_web_sm_absent")  # also where the real one is installed
    words = words.replace("en_core_web_sm", captions.TAGGER)
    ran = run(photo, "--out", tmp_path / "out", *SMALL, *options)
    assert ran.exit_code == 2
    assert words in ran.stderr
    assert len([line for line in ran.stderr.splitlines() if line.startswith("diffseg: ")]) == 1
    assert "Traceback" not in ran.stderr
    assert not list((tmp_path / "out").glob("*"))


def test_an_unknown_captioner_is_one_sentence(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "load_tagger", Tagger)
    ran = run(photo, "--captioner", "nothing", "--out", tmp_path / "out", *SMALL)
    assert ran.exit_code == 2
    assert "diffseg: there is no captioner 'nothing'" in ran.stderr


def test_the_nouns_must_be_in_the_caption(seg):
    with pytest.raises(ValueError, match="the noun 'dog' is not among the words of the caption 'a cat'"):
        label(seg, scene(4, 0, 64).image, ["dog"], "a cat")


def test_the_help_names_the_captioner_that_is_used():
    ran = CliRunner().invoke(app, ["label", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    for words in ("--nouns", "--caption", "--voting", "--threshold", CAPTIONER):
        assert words in ran.stdout


@pytest.mark.skipif("en_core_web_sm" not in __import__("spacy").util.get_installed_models(), reason="not installed")
def test_the_real_tagger():
    assert nouns_of(load_tagger()("a photo of a dog on the grass near a traffic light")) == (
        "dog", "grass", "traffic light"
    )  # fmt: skip


# --- the evaluation ---------------------------------------------------------------------------------------------------


def test_counts_of_named_segments():
    """Two classes, three segments (columns); named 0, 1, 1: the third should have been 0."""
    hist = np.array([[5, 1, 3], [1, 4, 2]])
    pixels, segments = named(hist, np.array([0, 1, 1]))
    assert (pixels.tp.tolist(), pixels.fp.tolist(), pixels.fn.tolist()) == ([5, 6], [1, 4], [4, 1])
    assert pixels.pixels == 16
    assert (segments.tp[0], segments.pixels) == (2, 3)


def test_the_true_nouns_bound_the_others(seg):
    result = score(seg, Scenes(2, seed=4, size=128), seg.settings(size=128, anchors=8))
    assert set(result) == {"mean", "majority", CONTROL, BOUND}
    assert result[BOUND]["segment_accuracy"] == 1
    assert all(row["accuracy"] <= result[BOUND]["accuracy"] for row in result.values())
    again = score(seg, Scenes(2, seed=4, size=128), seg.settings(size=128, anchors=8))
    assert again[CONTROL]["accuracy"] == result[CONTROL]["accuracy"]


def test_the_evaluation_in_a_real_process(tmp_path, commands):
    command = ["--scenes", "1", "--json", "out.json", "--device", "cpu"]
    ran = commands(*command, module="diffseg.eval.semantic", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for words in ("mini on 1 generated scenes", "majority", "mIoU", CONTROL):
        assert words in ran.stdout
    assert set(json.loads((tmp_path / "out.json").read_text())["naming"]) == {"mean", "majority", CONTROL, BOUND}


def test_the_words_of_a_photo_are_the_fine_names_of_what_covers_a_hundredth_of_it(tmp_path):
    """Left half dog (17), right half brick wall (170), above it less than a hundredth of person (0)."""
    values = np.full((100, 100), 17, np.uint8)
    values[:, 50:] = 170
    values[:9, 91:] = 0
    values[50:, :10] = 255
    for folder, image in (("val2017", np.zeros((100, 100, 3), np.uint8)), ("stuffthingmaps/val2017", values)):
        (tmp_path / folder).mkdir(parents=True)
        suffix = "jpg" if image.ndim == 3 else "png"
        Image.fromarray(image).save(tmp_path / folder / f"000000000001.{suffix}")
    words = NamedPhotos(tmp_path, split="all", size=100).words("000000000001", "captions")
    names = [CLASSES[index] for _, index in words.nouns]
    assert (words.text, names) == ("a photo of brick wall and dog", ["wall-stuff", "animal-things"])
