"""Training the embedded model: a few steps of the real thing, interrupted and continued."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from diffusers import StableDiffusionPipeline

from diffseg import DiffSeg
from diffseg.attention import capture
from diffseg.backbones.base import EMBEDDED
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.datasets.scenes import Scenes, scene
from diffseg.mini import agreement, autoencoder, checkpoints, denoiser, train, words
from diffseg.mini.autoencoder import new_autoencoder
from diffseg.mini.denoiser import Latents, new_unet, train_unet
from diffseg.mini.evaluate import attention_picture, tune
from diffseg.mini.recipe import RECIPE, Autoencoding, Denoising, Drawing, Start, Words, part
from diffseg.mini.text import train_tokenizer
from diffseg.segmentation import aggregate

TINY = {
    "scenes": Drawing(small=3, large=2, small_size=128, large_size=256),
    "autoencoder": Autoencoding(steps=4, batch=2),
    "start": Start(),
    "unet": Denoising(steps=4, batch=2, batch_fine=1),
    "agreement": replace(RECIPE["agreement"], steps=3, batch=2, batch_fine=1),
    "regions": replace(RECIPE["regions"], large=1, steps=3, batch=2, batch_fine=1),
    "regions-3": replace(RECIPE["regions-3"], steps=3, batch=2, batch_fine=1),
    "words": Words(large=2, steps_classifier=2, steps=3, batch=2),
}
CUTS = (  # what is called for the n-th time when the training is interrupted
    (autoencoder, "_crops", 4),
    (denoiser, "_noised", 4),
    (agreement.Walk, "targets", 3),
    (agreement, "KMeans", 1),  # of the layers
    (agreement, "KMeans", 11),  # of the regions
    (agreement.Regions, "targets", 3),
    (words, "_within", 20),
    (words, "_prompts", 3),
)


def shorten(patch, recipe):
    """Makes this the recipe, with a checkpoint after two steps."""
    for stage in recipe:
        patch.setitem(RECIPE, stage, recipe[stage])
    for stage in RECIPE.keys() - recipe.keys():
        patch.delitem(RECIPE, stage)
    patch.setattr(checkpoints, "CHECKPOINT_EVERY", 2)
    patch.setattr(train, "recommend", lambda folder, device, kept=None: None)


@pytest.fixture
def few_steps(monkeypatch):
    """The recipe with a few steps a stage."""
    shorten(monkeypatch, TINY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A place with the folder "out" of a model that the embedded one has become, and the folder "work"."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, TINY)
        train.main(place / "out", EMBEDDED["mini"], work=place / "work", device="cpu")
    return place


def interrupted(monkeypatch, owner, name, call, *args, **kwargs):
    """Runs the command until `owner.name` is called for the `call`-th time."""
    original, calls = getattr(owner, name), []

    def wrapped(*given, **options):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        with pytest.raises(KeyboardInterrupt):
            train.main(*args, **kwargs, device="cpu")


def files(folder):
    """Every file of a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_interrupted_training_makes_the_same_files(tmp_path, monkeypatch):
    """From nothing to a folder, twice: once in one go, once cut within every stage and continued."""
    shorten(monkeypatch, {name: stage for name, stage in TINY.items() if name != "regions"})  # regions-3 is as it
    train.main(tmp_path / "whole", None, work=tmp_path / "once", device="cpu")
    place = {"out": tmp_path / "broken", "start": None, "work": tmp_path / "often"}
    for owner, name, call in CUTS:
        interrupted(monkeypatch, owner, name, call, **place)
    train.main(**place, device="cpu")
    whole, broken = files(tmp_path / "whole"), files(tmp_path / "broken")
    assert whole.keys() == broken.keys()
    assert [name for name in whole if whole[name] != broken[name]] == []
    for stage in ("unet", "agreement", "regions-3"):
        curves = [(tmp_path / work / f"{stage}-curve.csv").read_text() for work in ("once", "often")]
        assert curves[0] == curves[1]

    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "whole", dtype=torch.float32, safety_checker=None
    )  # diffusers' own class
    with torch.no_grad():
        picture = pipeline("a photo of grass", num_inference_steps=2, height=64, width=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()


def test_the_same_captions_give_the_same_tokenizer_in_any_process(tmp_path):
    """Each of the trainer's hash tables has a seed of its own."""
    captions = [scene(0, i, 32).caption for i in range(40)]
    for name in "123456":
        train_tokenizer(tmp_path / name, captions)
    program = "import sys, pathlib, diffseg.mini.text as t; t.train_tokenizer(pathlib.Path(sys.argv[1]), {})"
    command = [sys.executable, "-c", program.format(captions), str(tmp_path / "0")]
    subprocess.run(command, check=True)
    first = files(tmp_path / "0")
    assert all(files(tmp_path / name) == first for name in "123456")


def test_the_later_stages_of_a_finished_model(trained):
    """From a model's folder to another: tokenizer and autoencoder stay, the UNet moves, nothing of the training stays
    on it."""
    out, work = trained / "out", trained / "work"
    before, after = (DiffusionModel.from_pretrained(str(f), device="cpu") for f in (EMBEDDED["mini"], out))
    for component, same in (("vae", True), ("unet", False)):
        a, b = (getattr(m.pipeline, component).state_dict() for m in (before, after))
        assert all(torch.equal(a[k], b[k]) for k in a) == same
    assert after.pipeline.tokenizer.get_vocab() == before.pipeline.tokenizer.get_vocab()
    for name in ("unet", "vae", "text_encoder"):  # and where the first model lay is nobody's business
        assert json.loads((out / name / "config.json").read_text()) == json.loads(
            (EMBEDDED["mini"] / name / "config.json").read_text()
        )
    for stage, columns in (("agreement", "step,loss_16,loss_32,agreement"), ("regions-3", "step,loss_32,agreement")):
        assert (work / f"{stage}-curve.csv").read_text().startswith(columns)
    assert not (work / "unet.pt").exists()


def test_the_model_is_written_when_it_is_whole(trained, tmp_path, few_steps, monkeypatch):
    """Settings are chosen after the weights are made: until then the folder is as it was."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "diffseg.json").write_text("of before")
    place = {"out": out, "start": EMBEDDED["mini"], "work": trained / "work", "device": "cpu"}

    def cut(folder, device, kept=None):
        assert (folder / "unet").is_dir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "recommend", cut)
        with pytest.raises(KeyboardInterrupt):
            train.main(**place)
    assert [path.name for path in out.iterdir()] == ["diffseg.json"]
    train.main(**place)
    for file in ("unet/diffusion_pytorch_model.safetensors", "model_index.json"):
        assert (out / file).read_bytes() == (trained / "out" / file).read_bytes()


def test_a_checkpoint_of_another_training_is_refused(trained, tmp_path, capsys, few_steps):
    """A second model with the first one's work folder is not given the first one's weights."""
    with pytest.raises(typer.Exit):
        train.main(tmp_path / "second", trained / "out", "regions-3", trained / "work", device="cpu")
    assert "regions-3.pt is of a training that began with other weights" in capsys.readouterr().err
    assert not (tmp_path / "second" / "unet").exists()


def test_a_stage_that_is_not_there(tmp_path, capsys):
    with pytest.raises(typer.Exit):
        train.main(tmp_path / "out", EMBEDDED["mini"], "pictures", tmp_path / "work", device="cpu")
    assert "--first must be one of unet, agreement, regions" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_steps_without_noise_have_no_denoising_loss(tmp_path):
    """A latent that is left clean is not denoised: its step has no part in the curve's mean of the losses."""
    pipeline = DiffusionModel.from_pretrained("mini", device="cpu", dtype=torch.float32).pipeline
    ids = np.full((4, 77), pipeline.tokenizer.eos_token_id)
    large = np.random.default_rng(0).standard_normal((4, 4, 64, 64), dtype=np.float32)
    data = Latents(large[:, :, :32, :32], large, ids, ids, np.full(4, 2))
    recipe = Denoising(steps=7, batch=1, batch_fine=1, fine_every=7, clean=0.5)
    train_unet(tmp_path, "noisy", recipe, data, pipeline.tokenizer, pipeline.unet, pipeline.text_encoder)
    losses = torch.load(tmp_path / "noisy.pt", weights_only=True)["losses"]["loss_32"]
    assert 0 < len(losses) < 6
    assert min(losses) > 0.1


def batch(latents, large=()):
    return agreement.Batch(latents, torch.zeros(len(latents), 77), np.array(large), np.random.default_rng(0))


def mini():
    return DiffusionModel.from_pretrained("mini", device="cpu").pipeline.unet


def test_the_walk_that_the_layers_are_to_follow():
    """The frozen layer's sharpened attention to the eighth power; a layer that attends so has no loss."""
    unet = mini()
    scenes = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)).numpy(), np.array([2, 3])
    layers, walk = agreement.Agreement(unet), agreement.Walk(unet, torch.zeros(1, 77, 64), *scenes)
    clean = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 17, 255], [3, 100, 30]])
    targets = walk.targets(batch(clean), positions)
    assert targets.shape == (2, 3, 16, 16)
    torch.testing.assert_close(targets.flatten(2).sum(-1), torch.ones(2, 3))
    layer, hidden = walk.taught[walk.layer]
    q, k = layer.to_q(hidden[1].float()).double(), layer.to_k(hidden[1].float()).double()
    attention = (2 * layer.scale * q @ k.T).softmax(-1).detach()
    expected = torch.linalg.matrix_power(attention, 8)[positions[1]].float().view(3, 16, 16)
    torch.testing.assert_close(targets[1], expected, rtol=0.05, atol=1e-4)  # eight products in bfloat16
    drawn = walk.draw(batch(clean))
    assert [len(set(row.tolist())) for row in drawn] == [192, 192]

    with torch.no_grad():
        unet(clean, torch.full((2,), 100), torch.zeros(2, 77, 64))
    layer, hidden = layers.layers[walk.layer]
    layers.layers = {"one": (layer, hidden)}
    own = agreement._attend(layer, hidden, positions).view(2, 3, 16, 16)
    assert layers.loss(own, positions).item() == pytest.approx(0, abs=1e-6)
    assert layers.loss(targets, positions).item() > 0.01
    layers.close()
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_modularity():
    """As Newman and Girvan define it, on attention of which it is known: within groups, anywhere, across."""
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    same = groups[:, None] == groups
    within, across = (torch.from_numpy(where / where.sum(1, keepdims=True)) for where in (same, ~same))
    assert agreement.modularity(within, groups) == pytest.approx(1 - (3 / 8) ** 2 - (5 / 8) ** 2)
    assert agreement.modularity(across, groups) == pytest.approx(0 - 3 / 8 * 5 / 8 - 5 / 8 * 3 / 8)
    assert agreement.modularity(torch.full((8, 8), 1 / 8), groups) == pytest.approx(0)
    assert agreement.modularity(torch.eye(8), np.zeros(8, int)) == pytest.approx(0)  # one group: nothing is told


@pytest.mark.parametrize("best", ["down_blocks.0.attentions.1", "up_blocks.3.attentions.2"])
def test_the_layer_that_groups_best_is_found(best):
    """Where all other layers of the finest level attend evenly, it is the one that does not."""
    unet, best = mini(), f"{best}.transformer_blocks.0.attn1"
    for name, module in unet.named_modules():
        if name.endswith("attn1") and name != best:
            torch.nn.init.zeros_(module.to_q.weight)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) / 10
    latents[0, :, :, 8:] += torch.tensor([2.0, -2, 2, -2])[:, None, None]
    latents[1, :, 6:] += torch.tensor([-2.0, 2, 2, -2])[:, None, None]
    assert agreement.most_modular(unet, torch.zeros(1, 77, 64), latents.numpy(), np.array([2, 2])) == best
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_the_regions_that_the_layers_are_to_attend_to():
    """Evenly over a position's own region of its own scene; small regions are asked for more often than their area."""
    regions = np.zeros((3, 64, 64), np.uint8)
    regions[1, :8, :8] = 1
    regions[2, :, 32:] = 4
    teacher, given = agreement.Regions(regions), batch(torch.zeros(2, 4, 64, 64), (1, 2))
    targets = teacher.targets(given, torch.tensor([[0, 4095], [31, 32]]))
    assert targets.shape == (2, 2, 64, 64)
    assert targets.dtype == torch.float32
    for found, where in zip(
        targets.flatten(0, 1), (regions[1] == 1, regions[1] == 0, regions[2] == 0, regions[2] == 4), strict=True
    ):
        np.testing.assert_allclose(found.numpy(), where / where.sum(), rtol=1e-6)
    drawn = teacher.draw(given)
    assert [len(set(row.tolist())) for row in drawn] == [192, 192]
    small = np.isin(drawn[0], np.flatnonzero(regions[1].ravel())).sum()
    assert 10 < small < 35  # sqrt(64) : sqrt(4032) of 192 are 21; by area there would be 3


def test_the_regions_of_a_scene_are_as_many_as_its_caption_names(tmp_path):
    """Two halves of different noise, named as two things, are found apart; what is cached is not made again."""
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) / 10
    latents[0, :, :, 8:] += torch.tensor([2.0, -2, 2, -2])[:, None, None]
    kept, context, counts = tmp_path / "regions.npy", torch.zeros(1, 77, 64), np.array([2, 1])
    found = agreement.partitions(kept, mini(), context, latents.numpy(), counts)
    assert found.shape == (2, 16, 16)
    left = found[0, 0, 0]
    assert ((found[0] == left) == (np.arange(16) < 8)).mean() > 0.9
    assert (found[1] == 0).all()
    np.testing.assert_array_equal(agreement.partitions(kept, None, None, None, None), found)
    assert [path.name for path in tmp_path.iterdir()] == ["regions.npy"]


def test_captions_alone_tell_which_region_is_what():
    """Scenes of three regions, each of another of six classes: which is which follows from what captions share."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 12))
    classes = np.stack([rng.choice(6, 3, replace=False) for _ in range(300)])
    features = torch.zeros(300, words.REGIONS, 1 + words.DRAWN, 12)
    near = centres[classes][:, :, None] + 0.3 * rng.standard_normal((300, 3, 1 + words.DRAWN, 12))
    features[:, :3] = torch.from_numpy(near).float()
    areas = torch.zeros(300, words.REGIONS)
    areas[:, :3] = 1 / 3
    shuffled = [[(f"noun {index}", int(index)) for index in rng.permutation(row)] for row in classes]
    found = words.classify(features, areas, shuffled, Words(steps_classifier=150, batch=16))
    assert found.shape == (300, words.REGIONS, 3)
    torch.testing.assert_close(found.sum(-1), torch.ones(300, words.REGIONS))
    named = np.array([[scene[i][1] for i in row[:3]] for scene, row in zip(shuffled, found.argmax(-1), strict=True)])
    assert (named == classes).mean() > 0.9


def test_a_prompt_has_the_nouns_of_a_scene_and_others():
    tokenizer = DiffusionModel.from_pretrained("mini", device="cpu").pipeline.tokenizer
    scenes = [[("brick wall", 4), ("dog", 1)], [("wall", 4)]]
    for step in range(5):
        ids, tokens = words._prompts(np.random.default_rng(step), scenes, ["dog", "sea", "sky", "wall"], tokenizer, 2)
        assert ids.shape == (2, 77)
        for row, nouns, masks in zip(ids, scenes, tokens, strict=True):
            for (noun, _), mask in zip(nouns, masks, strict=False):
                assert tokenizer.decode(row[mask.bool().numpy()]).strip() == noun
        assert not tokens[1, 1].any()


def test_means_and_positions_of_regions_at_a_coarse_level():
    masks = torch.zeros(2, 8, 8)
    masks[0, :, :4], masks[1, :, 4:] = 1, 1
    hidden = torch.arange(16.0)[:, None]  # one channel, 4 x 4
    found = words._within(hidden, masks, torch.tensor([[0, 8], [63, 7]]))
    assert found.shape == (2, 3, 1)
    assert found[:, 0, 0].tolist() == pytest.approx([6.5, 8.5])
    assert found[:, 1:, 0].tolist() == [[0, 0], [15, 3]]


def test_a_coarse_layer_is_to_attend_to_cells():
    """A layer with half the side has the sums of 2 x 2 targets as its own, for the cell that a position lies in."""
    unet = mini()
    layers = agreement.Agreement(unet)
    with torch.no_grad():
        unet(torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)), 100, torch.zeros(1, 77, 64))
    layer, hidden = layers.layers["down_blocks.1.attentions.0.transformer_blocks.0.attn1"]
    layers.layers = {"one": (layer, hidden)}
    attention = agreement._attend(layer, hidden, torch.arange(64)[None])[0]  # [8 * 8, 8 * 8]
    row, column = 5, 10  # in the cell (2, 5)
    spread = attention[2 * 8 + 5].view(8, 8).repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
    position = torch.tensor([[row * 16 + column]])
    assert layers.loss(spread[None, None], position).item() == pytest.approx(0, abs=1e-6)
    assert layers.loss(spread[None, None], torch.tensor([[0]])).item() > 1e-4
    layers.close()


def test_the_aggregate_that_is_to_agree_is_what_a_segmentation_sees():
    """KL(target || aggregated attention) at some positions, against the public functions that segment."""
    pipeline = DiffusionModel.from_pretrained("mini", device="cpu", dtype=torch.float32).pipeline
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    context, positions = torch.zeros(2, 77, 64), torch.tensor([[0, 100], [255, 17]])
    maps = aggregate(capture(pipeline.unet, latents, 100, context).self_attention).flatten(3).flatten(1, 2)
    targets = torch.rand(2, 2, 256, generator=torch.Generator().manual_seed(3)).softmax(-1)
    seen = torch.stack([maps[i, rows] for i, rows in enumerate(positions)])
    expected = (targets * (targets / seen).log()).sum(-1).mean()
    layers = agreement.Agreement(pipeline.unet.requires_grad_(True), aggregated=True)
    pipeline.unet(latents, 100, context)
    found = layers.loss(targets.unflatten(-1, (16, 16)), positions)
    layers.close()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
    found.backward()
    for layer, _ in layers.layers.values():
        assert layer.to_q.weight.grad.abs().sum() > 0


def test_a_longer_training_changes_nothing_else():
    assert Denoising().of() == Denoising()
    assert Denoising().of(20_000, 64) == replace(Denoising(), steps=20_000, batch=64, batch_fine=16)


def test_a_trial_has_a_share_of_all_scenes_and_steps():
    """And nothing else changes; the whole is the recipe."""
    assert part(RECIPE, 1.0) == RECIPE
    tenth = part(RECIPE, 0.1)
    assert list(tenth) == list(RECIPE)
    assert tenth["scenes"] == Drawing(small=800, large=400)
    assert tenth["autoencoder"] == Autoencoding(steps=160)
    assert tenth["start"] == RECIPE["start"]
    assert tenth["regions-3"] == replace(RECIPE["regions-3"], large=200, steps=150)
    assert tenth["words"] == Words(large=400, steps_classifier=150, steps=400)
    assert part(RECIPE, 1e-6)["unet"] == Denoising(large=1, steps=1)


def test_the_learning_rate_rises_and_falls():
    """A hundred steps up, an eighth in short trainings, then down to 3 %; never above 1."""
    for steps, up in ((3200, 100), (80, 10), (1, 1)):
        rates = [checkpoints.cosine(step, steps) for step in range(steps)]
        assert max(rates) <= 1
        assert np.argmax(rates) in range(up - 2, up + 1)
    assert checkpoints.cosine(3199, 3200) == pytest.approx(0.03, abs=1e-6)
    assert checkpoints.cosine(49, 3200) == pytest.approx(0.5, abs=1e-3)


def test_training_is_in_bfloat16_only_where_that_is_fast(monkeypatch):
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(checkpoints, "fast_half", lambda *_, fast=fast: fast)
        with checkpoints.autocast(torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_a_wrong_device_is_refused_before_anything_is_made(tmp_path, capfd):
    with pytest.raises(typer.Exit) as ended:
        train.main(tmp_path / "out", None, work=tmp_path / "work", device="cuda:99")
    assert ended.value.exit_code == 2
    assert "is not there" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_untrained_autoencoder_already_carries_colour():
    """Its skip path starts as the identity: flat colours give latents that differ, in proportion."""
    model = new_autoencoder()
    flat = torch.tensor([-0.8, 0.0, 0.8])[:, None, None, None].expand(3, 3, 64, 64).clone()
    flat[:, :, :8] = torch.linspace(-1, 1, 8)[:, None]  # normalisation needs some variation
    with torch.no_grad():
        latents = model.encode(flat).latent_dist.mean[:, :, 4:]
    assert latents.std(0).mean() > 0.01


def test_self_attention_starts_as_non_local_means():
    unet = new_unet(1.5)
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            torch.testing.assert_close(module.to_q.weight, module.to_k.weight, rtol=0, atol=0)


def test_the_threshold_is_the_largest_that_cannot_be_told_from_the_best():
    scores = {0.5: 0.60, 0.7: 0.70, 0.9: 0.67, 1.1: 0.69, 1.3: 0.67, 1.5: 0.5}
    rows = [{"threshold": tau, "timestep": 100, "miou": miou, "miou_error": 0.02} for tau, miou in scores.items()]
    assert train.fewest(sorted(rows, key=lambda row: -row["miou"])) == {"threshold": 1.1, "timestep": 100}


def test_tuning_and_a_picture():
    seg = DiffSeg.from_pretrained("mini", device="cpu")
    rows = tune(seg.model, [300], [0.3, 1e6], 1)
    assert {row["threshold"] for row in rows} == {0.3, 1e6}
    assert rows[0]["miou"] >= rows[1]["miou"]
    assert all(np.isnan(row["miou_error"]) for row in rows)  # one scene tells nothing of its spread
    assert attention_picture(seg.model, Scenes(1, size=128).scene("000000").image, 300, side=32).size == (192, 128)
