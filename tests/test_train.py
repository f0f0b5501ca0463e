"""Training the embedded model: a few steps of the real thing, interrupted and continued."""

import json
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
from diffseg.mini import agreement, checkpoints, train
from diffseg.mini.autoencoder import latents, new_autoencoder, train_autoencoder
from diffseg.mini.denoiser import Latents, new_unet, train_unet
from diffseg.mini.evaluate import attention_picture, tune
from diffseg.mini.export import export
from diffseg.mini.pictures import pictures
from diffseg.mini.recipe import STAGES, Recipe
from diffseg.mini.text import named, new_text_encoder, token_ids, train_tokenizer
from diffseg.segmentation import aggregate

TINY = Recipe(
    scenes_256=3, scenes_512=2, steps_autoencoder=4, batch_autoencoder=2, steps_unet=4, batch_unet=2, batch_fine=1
)


def run(work):
    work.mkdir(exist_ok=True)
    cpu = torch.device("cpu")
    small, small_captions = pictures(work, TINY.scenes_256, 256, 0)
    large, large_captions = pictures(work, TINY.scenes_512, 512, TINY.scenes_256)
    autoencoder = train_autoencoder(work, TINY, cpu, [small, large])
    tokenizer = train_tokenizer(work / "tokenizer", small_captions + large_captions)
    ids = [token_ids(tokenizer, captions) for captions in (small_captions, large_captions)]
    encoded = [latents(work, str(x.shape[1]), autoencoder, x, cpu) for x in (small, large)]
    data = Latents(*encoded, *ids, np.array([named(caption) for caption in large_captions]))
    torch.manual_seed(TINY.seed)
    unet, text = new_unet(TINY.query_key_gain), new_text_encoder(tokenizer)
    unet, text = train_unet(work, "unet", TINY, data, tokenizer, unet, text)
    return autoencoder, unet, text, tokenizer


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY", 2)
    whole = run(tmp_path / "whole")
    generator = checkpoints.generator

    def interrupt(*key):
        if key[-1] == 3:
            raise KeyboardInterrupt
        return generator(*key)

    for stage in (1, 2):  # once while the autoencoder is trained, once while the UNet is
        monkeypatch.setattr(checkpoints, "generator", lambda *k, s=stage: interrupt(*k) if k[1] == s else generator(*k))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken")
    monkeypatch.setattr(checkpoints, "generator", generator)
    continued = run(tmp_path / "broken")
    for a, b in zip(whole[:3], continued[:3], strict=True):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, msg=name)
    assert (tmp_path / "whole" / "unet-curve.csv").read_text() == (tmp_path / "broken" / "unet-curve.csv").read_text()

    folder = tmp_path / "model"
    export(folder, *whole)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None
    )  # diffusers' own class
    with torch.no_grad():
        picture = pipeline("a photo of grass", num_inference_steps=2, height=64, width=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()


@pytest.fixture
def few_steps(monkeypatch):
    """The stages after denoising, with three steps each and a checkpoint after two."""
    tiny = {"scenes_256": 2, "scenes_512": 2, "steps_unet": 3, "batch_unet": 2, "batch_fine": 1}
    for stage, recipe in STAGES.items():
        monkeypatch.setitem(STAGES, stage, replace(recipe, **tiny))
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "recommend", lambda folder, device: None)


def test_the_last_stages_of_a_finished_model(tmp_path, monkeypatch, few_steps):
    """From a model's folder to another, through the command, interrupted everywhere and continued: tokenizer and
    autoencoder stay, the UNet moves, and nothing of the training stays on it."""

    def interrupted(owner, name, call):
        original, calls = getattr(owner, name), []

        def wrapped(*args, **kwargs):
            calls.append(None)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, wrapped)
            with pytest.raises(KeyboardInterrupt):
                train.main(tmp_path / "out", EMBEDDED["mini"], tmp_path / "work", device="cpu")

    interrupted(agreement.Walk, "targets", 3)
    interrupted(agreement, "KMeans", 2)
    interrupted(agreement.Regions, "targets", 3)
    train.main(tmp_path / "out", EMBEDDED["mini"], tmp_path / "work", device="cpu")
    for name in list(STAGES)[1:]:
        (tmp_path / "work" / f"{name}.pt").unlink()
    for regions in (tmp_path / "work").glob("regions-*.npy"):
        regions.unlink()
    train.main(tmp_path / "whole", EMBEDDED["mini"], tmp_path / "work", device="cpu")
    folders = (EMBEDDED["mini"], tmp_path / "out", tmp_path / "whole")
    before, after, whole = (DiffusionModel.from_pretrained(str(f), device="cpu") for f in folders)
    for part, same in (("vae", True), ("unet", False)):
        a, b, c = (getattr(m.pipeline, part).state_dict() for m in (before, after, whole))
        assert all(torch.equal(a[k], b[k]) for k in a) == same
        assert all(torch.equal(b[k], c[k]) for k in b)
    assert after.pipeline.tokenizer.get_vocab() == before.pipeline.tokenizer.get_vocab()
    for name in ("unet", "vae", "text_encoder"):  # and where the first model lay is nobody's business
        assert json.loads((tmp_path / "out" / name / "config.json").read_text()) == json.loads(
            (EMBEDDED["mini"] / name / "config.json").read_text()
        )
    for stage, columns in (("agreement", "step,loss_32,loss_64,agreement"), ("regions-3", "step,loss_64,agreement")):
        assert (tmp_path / "work" / f"{stage}-curve.csv").read_text().startswith(columns)


def test_a_checkpoint_of_another_training_is_refused(tmp_path, capsys, few_steps):
    """A second model with the first one's work folder is not given the first one's weights."""
    train.main(tmp_path / "first", EMBEDDED["mini"], tmp_path / "work", last=True, device="cpu")
    with pytest.raises(typer.Exit):
        train.main(tmp_path / "second", tmp_path / "first", tmp_path / "work", last=True, device="cpu")
    assert "regions-3.pt is of a training that began with other weights" in capsys.readouterr().err
    assert not (tmp_path / "second" / "unet").exists()


def test_the_last_stage_needs_a_model_to_begin_with(tmp_path, capsys):
    with pytest.raises(typer.Exit):
        train.main(tmp_path / "out", None, tmp_path / "work", last=True, device="cpu")
    assert "--last needs a model to begin with: name its folder with --start" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_steps_without_noise_have_no_denoising_loss(tmp_path):
    """A latent that is left clean is not denoised: its step has no part in the curve's mean of the losses."""
    pipeline = DiffusionModel.from_pretrained("mini", device="cpu", dtype=torch.float32).pipeline
    ids = np.full((4, 77), pipeline.tokenizer.eos_token_id)
    large = np.random.default_rng(0).standard_normal((4, 4, 64, 64), dtype=np.float32)
    data = Latents(large[:, :, :32, :32], large, ids, ids, np.full(4, 2))
    recipe = replace(TINY, steps_unet=6, fine_every=1, clean=0.5)
    train_unet(tmp_path, "noisy", recipe, data, pipeline.tokenizer, pipeline.unet, pipeline.text_encoder)
    losses = torch.load(tmp_path / "noisy.pt", weights_only=True)["losses"]["loss_64"]
    assert 0 < len(losses) < 6
    assert min(losses) > 0.1


def batch(latents, large=()):
    return agreement.Batch(latents, torch.zeros(len(latents), 77), np.array(large), np.random.default_rng(0))


def mini():
    return DiffusionModel.from_pretrained("mini", device="cpu").pipeline.unet


def test_the_walk_that_the_layers_are_to_follow():
    """The frozen layer's sharpened attention to the eighth power; a layer that attends so has no loss."""
    unet = mini()
    layers, walk = agreement.Agreement(unet), agreement.Walk(unet, torch.zeros(1, 77, 64))
    clean = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 17, 255], [3, 100, 30]])
    targets = walk.targets(batch(clean), positions)
    assert targets.shape == (2, 3, 16, 16)
    torch.testing.assert_close(targets.flatten(2).sum(-1), torch.ones(2, 3))
    layer, hidden = walk.taught[walk.LAYER]
    q, k = layer.to_q(hidden[1].float()).double(), layer.to_k(hidden[1].float()).double()
    attention = (2 * layer.scale * q @ k.T).softmax(-1).detach()
    expected = torch.linalg.matrix_power(attention, 8)[positions[1]].float().view(3, 16, 16)
    torch.testing.assert_close(targets[1], expected, rtol=0.05, atol=1e-4)  # eight products in bfloat16
    drawn = walk.draw(batch(clean))
    assert [len(set(row.tolist())) for row in drawn] == [192, 192]

    with torch.no_grad():
        unet(clean, torch.full((2,), 100), torch.zeros(2, 77, 64))
    layer, hidden = layers.layers[walk.LAYER]
    layers.layers = {"one": (layer, hidden)}
    own = agreement._attend(layer, hidden, positions).view(2, 3, 16, 16)
    assert layers.loss(own, positions).item() == pytest.approx(0, abs=1e-6)
    assert layers.loss(targets, positions).item() > 0.01
    layers.close()
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


def test_how_many_things_a_caption_names():
    assert named("a photo of sand") == 1
    assert named("a photo of sky, potted plant and dog") == 3
    for made in (scene(0, index, 64) for index in range(30)):
        assert named(made.caption) == len(made.nouns)


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
    assert Recipe().of() == Recipe()
    assert Recipe().of(20_000, 64) == replace(Recipe(), steps_unet=20_000, batch_unet=64, batch_fine=16)


def test_a_wrong_device_is_refused_before_anything_is_made(tmp_path, capfd):
    with pytest.raises(typer.Exit) as ended:
        train.main(tmp_path / "out", None, tmp_path / "work", device="cuda:99")
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
