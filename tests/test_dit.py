"""Diffusion transformers: each architecture, small and random, saved and loaded as users have them."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline
from hydra.utils import get_object
from safetensors.torch import load_file, save_file

from diffseg import DiffSeg
from diffseg.attention import Look, Needs, Recorder, Tokens, add_head_mean
from diffseg.backbones.base import recommended
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.backbones.dit import SD3, Flux, PixArt
from diffseg.backbones.latent import noise_like
from diffseg.backbones.pretrained import from_pretrained
from diffseg.errors import UserError
from diffseg.eval import run
from tests.dits import TRANSFORMERS, save_dit
from tests.hub import Hub
from tests.models import save_pipeline
from tests.test_eval import configured

SIZE, GRID = (64, 96), (4, 6)
PROMPTS = ["a dog on grass", ""]
CLASSES = {"pixart": PixArt, "sd3": SD3, "sd35": SD3, "flux": Flux}
FLOW = ["sd3", "sd35", "flux_dev", "flux_schnell"]


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_dit(name, tmp_path_factory.mktemp(name)) for name in TRANSFORMERS}


@pytest.fixture(scope="module")
def models(folders):
    """In float64, so that what is computed in two ways can be compared."""
    return {name: from_pretrained(str(folder), device="cpu", dtype=torch.float64) for name, folder in folders.items()}


def watched(model, names, look, needs, prompts=PROMPTS):
    """The observation of a pass, and {module: (arguments by name, output)} of the modules of these names."""
    calls = {}

    def keep(name, module, args, kwargs, output):
        calls[name] = {**dict(enumerate(args)), **kwargs}, output

    modules = [(name, module) for name, module in model.network.named_modules() if name in names]
    hooks = [m.register_forward_hook(partial(keep, name), with_kwargs=True) for name, m in modules]
    seen = model.observe(images(), needs, look, prompts)
    for hook in hooks:
        hook.remove()
    assert set(calls) == set(names)
    return seen, calls


# --- attention --------------------------------------------------------------------------------------------------------


def rotated(x: torch.Tensor, text: int, axes: tuple[int, ...]) -> torch.Tensor:
    """FLUX's rotary embedding of [B, heads, N, d]: pairs of channels turned by row, by column; the text stays."""
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    turns = []
    for places, width in zip((torch.zeros(24), rows.flatten(), columns.flatten()), axes, strict=True):
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        turns.append(places[:, None].double() * frequencies)
    angles = torch.cat([torch.zeros(text, sum(axes) // 2), torch.cat(turns, 1)])
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def expected_maps(name: str, layer: str, module, call: dict, text_tokens: int, mask) -> dict[str, torch.Tensor]:
    """{"image", "text": [B, h*w, tokens]} of one layer from what it is given, in the plainest way there is."""
    heads = module.heads
    split = lambda x: x.unflatten(2, (heads, -1)).transpose(1, 2)  # noqa: E731
    norm = lambda x, by: x if by is None else by(x)  # noqa: E731
    x, text = call.get("hidden_states", call.get(0)), call.get("encoder_hidden_states")
    norm_q, norm_k = getattr(module, "norm_q", None), getattr(module, "norm_k", None)
    q = norm(split(module.to_q(x)), norm_q)
    k = norm(split(module.to_k(text if name.startswith("pixart") and text is not None else x)), norm_k)
    if text is not None and not name.startswith("pixart"):
        added_q = norm(split(module.add_q_proj(text)), module.norm_added_q)
        added_k = norm(split(module.add_k_proj(text)), module.norm_added_k)
        first_text = name.startswith("flux")
        q, k = (torch.cat([b, a] if first_text else [a, b], 2) for a, b in ((q, added_q), (k, added_k)))
    if name.startswith("flux"):
        q, k = (rotated(part, text_tokens, TRANSFORMERS[name]["axes_dims_rope"]) for part in (q, k))
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    if layer.endswith("attn2") and name.startswith("pixart"):
        scores = scores.masked_fill(~mask.bool()[:, None, None], -torch.inf)
        return {"text": scores.softmax(-1).mean(1)}
    rows = scores.softmax(-1).mean(1)
    image = slice(text_tokens, None) if name.startswith("flux") else slice(0, 24)
    parts = {"image": rows[:, image, image]}
    if rows.shape[2] > 24:
        parts["text"] = rows[:, image, slice(0, text_tokens) if name.startswith("flux") else slice(24, None)]
    return {kind: part / part.sum(-1, keepdim=True) for kind, part in parts.items()}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_maps_are_those_of_the_layers_own_inputs(models, name):
    model = models[name]
    layers = model.layers()
    seen, calls = watched(model, list(layers), Look(prompted=True), Needs(attention=True, cross=True))
    context, mask = model.encoded(PROMPTS)  # mask: pooled text in other models than PixArt
    assert sorted(seen.self_attention) == sorted(seen.cross_attention) == [GRID]
    assert seen.cross_attention[GRID].shape == (2, 24, context.shape[1])
    expected = defaultdict(list)
    with torch.no_grad():
        for layer, (call, _) in calls.items():
            maps = expected_maps(name, layer, layers[layer], call, context.shape[1], mask)
            for kind, rows in maps.items():
                expected[kind].append(rows)
    tolerance = 2e-5 if name.startswith("flux") else 1e-9  # diffusers rotates in float32
    for kind, maps in (("image", seen.self_attention), ("text", seen.cross_attention)):
        torch.testing.assert_close(maps[GRID], torch.stack(expected[kind]).mean(0), rtol=tolerance, atol=1e-12)
        torch.testing.assert_close(maps[GRID].sum(-1), torch.ones(2, 24).double())
    assert seen.self_attention[GRID].max() > 2 / 24, "flat attention would prove nothing"


def test_layers_are_those_of_every_block(models):
    assert list(models["sd35"].layers()) == [
        f"transformer_blocks.{place}" for place in ("0.attn", "0.attn2", "1.attn", "1.attn2", "2.attn")
    ]
    assert list(models["flux_dev"].layers()) == [
        f"{kind}transformer_blocks.{n}.attn" for kind in ("", "single_") for n in (0, 1)
    ]
    assert {model.multiple for model in models.values()} == {16}


def test_tokens_that_do_not_count_are_not_attended_to(models):
    """PixArt's prompts are padded: "" has one token, the end."""
    maps = models["pixart_sigma"].observe(images(1), Needs(cross=True)).cross_attention[GRID]
    assert maps.shape == (1, 24, 300)
    torch.testing.assert_close(maps[..., 0], torch.ones(1, 24).double())
    assert maps[..., 1:].max() == 0


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 1, 7, 5), (2, 1, 1, 5), (7, 5)], ids=str)
@pytest.mark.parametrize("boolean", [False, True])
def test_masks_of_every_shape(shape, boolean):
    """Against torch's attention of the identity: its output is the probabilities."""
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, 3, n, 4, generator=g, dtype=torch.float64) for n in (7, 5))
    mask = torch.randn(shape, generator=g, dtype=torch.float64)
    mask = mask > -0.5 if boolean else mask
    if boolean:
        mask[..., 0] = True  # every row attends to something
    expected = F.scaled_dot_product_attention(q, k, torch.eye(5).double().expand(2, 3, 5, 5), mask).mean(1)
    total = torch.zeros(2, 7, 5).double()
    add_head_mean(total, *(x.transpose(1, 2).flatten(2) for x in (q, k)), 3, 0.5, mask)
    torch.testing.assert_close(total, expected)

    class Layer(torch.nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(q, k, k, mask) + x

    network, lie = torch.nn.ModuleDict({"layer": Layer()}), Tokens((2, 3), slice(1, 7), text=slice(0, 5))
    with Recorder(network, dict(network.named_children()), lambda *_: lie, Needs(cross=True)) as recorder:
        network["layer"](torch.zeros(1))
    torch.testing.assert_close(recorder.observation().cross_attention[2, 3], expected[:, 1:])


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "output"),
    [
        ("sd35", "transformer_blocks.1", 1),  # (text, image)
        ("sd35", "transformer_blocks.1.attn", 0),  # (image, text)
        ("sd35", "transformer_blocks.1.attn2", None),
        ("sd3", "transformer_blocks.2", 1),  # whose text is nothing any more
        ("sd3", "transformer_blocks.2.norm1", 0),
        ("sd3", "transformer_blocks.1.ff.net.0", None),
        ("flux_dev", "transformer_blocks.0", 1),
        ("flux_dev", "transformer_blocks.0.attn", 0),
        ("flux_dev", "transformer_blocks.0.norm1", 0),
        ("flux_dev", "single_transformer_blocks.1", 1),
        ("flux_dev", "single_transformer_blocks.1.norm", 0),
        ("flux_dev", "single_transformer_blocks.1.attn.to_k", None),
        ("pixart_alpha", "transformer_blocks.1", None),
        ("pixart_alpha", "transformer_blocks.0.attn1", None),
        ("pixart_alpha", "transformer_blocks.0.norm1", None),
    ],
)
def test_features_are_what_a_hook_sees_of_the_image(models, name, layer, output):
    needs = Needs(features=frozenset({layer}))
    seen, calls = watched(models[name], [layer], Look(), needs)
    expected = calls[layer][1] if output is None else calls[layer][1][output]
    expected = expected[:, -24:].transpose(1, 2).unflatten(2, GRID)  # in FLUX's single blocks, after the text
    torch.testing.assert_close(seen.features[layer], expected, rtol=0, atol=0)


def test_a_blocks_image_is_found_where_the_text_is_as_long():
    """Blocks give (text, image), layers (image, text)."""

    class Layer(torch.nn.Module):
        def forward(self, x, text):
            both = torch.cat([x, text], 1)[:, None]
            F.scaled_dot_product_attention(both, both, both)
            return x + 1, text

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Layer()

        def forward(self, x, text):
            x, text = self.attn(x, text)
            return text, x + 1

    network, (x, text) = torch.nn.ModuleDict({"block": Block()}), torch.randn(2, 1, 6, 4)
    lie = Tokens((2, 3), slice(0, 6), slice(0, 6), slice(6, 12))
    needs = Needs(features=frozenset({"block", "block.attn"}))
    with Recorder(network, {"block.attn": network["block"].attn}, lambda *_: lie, needs) as recorder:
        network["block"](x, text)
    features = recorder.observation().features
    for layer, values in {"block": x + 1 + 1, "block.attn": x + 1}.items():
        torch.testing.assert_close(features[layer], values.transpose(1, 2).unflatten(2, (2, 3)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("pixart_sigma", "transformer_blocks.1.attn1.to_k"),
        ("sd35", "transformer_blocks.2.attn.to_k"),
        ("flux_schnell", "single_transformer_blocks.1.attn.to_k"),
    ],
)
def test_keys_are_the_last_layers(models, name, layer):
    seen, calls = watched(models[name], [layer], Look(), Needs(features=frozenset({"keys"})))
    keys = calls[layer][1][:, -24:].transpose(1, 2).unflatten(2, GRID)
    torch.testing.assert_close(seen.features["keys"], keys, rtol=0, atol=0)


def test_there_is_no_encoder_and_the_layers_are_listed(models):
    with pytest.raises(UserError, match=r"has no 'encoder'.* segmenters\.diffcut\.layer="):
        models["sd3"].observe(images(), Needs(features=frozenset({"encoder"})))


# --- time step, noise, conditions -------------------------------------------------------------------------------------

TIME = {"pixart": "adaln_single.emb.time_proj", "sd": "time_text_embed.time_proj", "flux": "time_text_embed.time_proj"}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("asked", [None, 120])
def test_the_time_step_arrives(models, name, asked):
    """The embedding is given 0..999 in all of them; by default the paper's 300, and as much noise in flow models."""
    model = models[name]
    (embedding,) = [path for start, path in TIME.items() if name.startswith(start)]
    given = []
    module = model.network.get_submodule(embedding)
    hook = module.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    model.observe(images(), Needs(attention=True), Look(asked))
    hook.remove()
    expected = asked or (454 if name in FLOW else 300)
    torch.testing.assert_close(given[0].double(), torch.full((2,), float(expected)).double(), rtol=1e-6, atol=0)
    if name == "flux_dev":  # which is told its guidance, too
        torch.testing.assert_close(given[1].double(), torch.full((2,), 1000.0).double())


def given_latents(model, look) -> torch.Tensor:
    """The latents [B, c, H/8, W/8] that the transformer is given."""
    given = []
    hook = model.network.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args or [kwargs["hidden_states"]])[0]), with_kwargs=True
    )
    model.observe(images(), Needs(attention=True), look)
    hook.remove()
    if isinstance(model, Flux):
        return FluxPipeline._unpack_latents(given[0], *SIZE, 8)
    return given[0]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_latents_are_the_scaled_and_shifted_mean(models, name):
    model = models[name]
    shift = {"pixart": 0.0, "sd3": 0.06, "sd35": 0.06, "flux": 0.1}[name.partition("_")[0]]
    with torch.no_grad():
        mean = model.pipeline.vae.encode(images().double()).latent_dist.mean
    torch.testing.assert_close(given_latents(model, Look()), (mean - shift) * 1.5)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_noise_is_the_formulas(models, name):
    model = models[name]
    clean = given_latents(model, Look(200))
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(42)).double()
    if name in FLOW:
        expected = 0.8 * clean + 0.2 * noise
    else:
        kept = np.prod(1 - np.linspace(1e-4, 2e-2, 1000)[:201])  # DDPM's linear schedule
        expected = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
    torch.testing.assert_close(given_latents(model, Look(200, noise=42)), expected, rtol=1e-5, atol=1e-6)


def test_noise_of_unets_is_their_schedules(tmp_path):
    """Whatever the sampler: SDXL's own, Euler's, adds noise to latents that it does not scale."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    model = DiffusionModel.from_pretrained("mini", device="cpu")
    latents = model.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    noise = noise_like(latents, 3)
    expected = model.pipeline.scheduler.add_noise(latents, noise, torch.tensor([50]))
    assert isinstance(model.pipeline.scheduler, DDIMScheduler)
    torch.testing.assert_close(model.noisy(latents, noise, 50), expected)
    model.pipeline.scheduler = EulerDiscreteScheduler.from_config(model.pipeline.scheduler.config)
    torch.testing.assert_close(model.noisy(latents, noise, 50), expected)


def test_pixart_alpha_is_told_the_size(models):
    given = {}
    for name in ("pixart_alpha", "pixart_sigma"):
        _, calls = watched(models[name], ["transformer_blocks.0", "adaln_single"], Look(), Needs(attention=True))
        given[name] = calls["adaln_single"][0][1]
    assert given["pixart_alpha"]["resolution"].tolist() == [[64.0, 96.0]] * 2
    assert given["pixart_alpha"]["aspect_ratio"].tolist() == [[64 / 96]] * 2
    assert given["pixart_sigma"] == {"resolution": None, "aspect_ratio": None}


def test_flux_packs_and_places_tokens_as_its_pipeline(models):
    model = models["flux_dev"]
    latents = model.encode(images())
    given = {}
    hook = model.network.register_forward_pre_hook(
        lambda _, args, kwargs: given.update(kwargs, latents=args[0]) or None, with_kwargs=True
    )
    model.observe(images(), Needs(attention=True))
    hook.remove()
    torch.testing.assert_close(given["latents"], FluxPipeline._pack_latents(latents, 2, 16, 8, 12), rtol=0, atol=0)
    places = FluxPipeline._prepare_latent_image_ids(2, *GRID, "cpu", torch.int64)
    assert torch.equal(given["img_ids"], places)
    assert given["txt_ids"].shape == (512, 3)
    assert not given["txt_ids"].any()


def test_photos_larger_than_the_places_are_refused(models):
    with pytest.raises(UserError, match=r"takes images of up to 192 pixels a side, and this one is 64 x 208: choose"):
        models["sd3"].observe(torch.zeros(1, 3, 64, 208), Needs(attention=True))
    models["sd3"].observe(torch.zeros(1, 3, 64, 192), Needs(attention=True))
    models["pixart_sigma"].observe(torch.zeros(1, 3, 16, 320), Needs(attention=True))


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_class_is_found_by_the_files(models, name):
    assert type(models[name]) is CLASSES[name.partition("_")[0]]


def test_the_time_step_of_flow_models_is_known_by_the_files(folders, tmp_path):
    assert recommended(str(folders["sd3"])) == {"timestep": 454}
    assert recommended(str(folders["pixart_alpha"])) == {}
    own = shutil.copytree(folders["sd3"], tmp_path / "own")
    (own / "diffseg.json").write_text('{"timestep": 200, "threshold": 0.5}')
    assert recommended(str(own)) == {"timestep": 200, "threshold": 0.5}
    (own / "diffseg.json").write_text('{"threshold": 0.5}')
    assert DiffSeg.from_pretrained(str(own), device="cpu").settings().timestep == 454


def test_sd3_does_without_t5(folders, models, tmp_path):
    """By default T5 is not even read."""
    lean = shutil.copytree(folders["sd3"], tmp_path / "lean")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(lean / part)
    model = SD3.from_pretrained(str(lean), device="cpu")
    assert model.pipeline.text_encoder_3 is None
    context, _ = model.encoded(["a dog"])
    assert context.shape == (1, 77 + 256, 64)
    assert not context[:, 77:].any()
    whole = SD3.from_pretrained(str(folders["sd3"]), device="cpu", t5=True)
    assert whole.encoded(["a dog"])[0][:, 77:].any()
    with pytest.raises(UserError, match="cannot be loaded"):
        SD3.from_pretrained(str(lean), device="cpu", t5=True)


def test_pixart_as_the_hub_has_it(folders, tmp_path):
    """Its published files call the transformer by an older name."""
    old = shutil.copytree(folders["pixart_sigma"], tmp_path / "old")
    for file, key in ((old / "model_index.json", "transformer"), (old / "transformer" / "config.json", "_class_name")):
        content = json.loads(file.read_text())
        content[key] = ["diffusers", "Transformer2DModel"] if key == "transformer" else "Transformer2DModel"
        file.write_text(json.dumps(content))
    model = PixArt.from_pretrained(str(old), device="cpu")
    maps = model.observe(images(1), Needs(attention=True)).self_attention[GRID]
    new = PixArt.from_pretrained(str(folders["pixart_sigma"]), device="cpu")
    torch.testing.assert_close(maps, new.observe(images(1), Needs(attention=True)).self_attention[GRID])


@pytest.mark.parametrize("name", ["pixart_sigma", "sd35", "flux_dev"])
def test_half_precision(models, folders, name):
    half = from_pretrained(str(folders[name]), device="cpu", dtype="bfloat16")
    maps = half.observe(images(), Needs(attention=True)).self_attention[GRID]
    exact = models[name].observe(images(), Needs(attention=True)).self_attention[GRID]
    assert maps.dtype == torch.float32
    assert ((maps - exact).norm() / exact.norm()).item() < 0.1


def test_a_photo_is_segmented_and_its_prompt_matters(folders):
    seg = DiffSeg.from_pretrained(str(folders["flux_schnell"]), device="cpu")
    photo = (np.random.default_rng(0).random((60, 90, 3)) * 255).astype(np.uint8)
    result = seg(photo, size=80, anchors=4)
    assert result.labels.shape == (60, 90)
    assert result.settings.timestep == 454
    seen = seg.observe(photo, size=80, prompt="a dog")
    assert not torch.allclose(seen.attention(), seg.observe(photo, size=80).attention())
    assert seg.model.tokenizer.model_max_length == 256


@pytest.mark.parametrize("part", ["text_encoder_2", "transformer"])
def test_weights_that_lack_in_the_files_are_named(folders, tmp_path, part):
    broken = shutil.copytree(folders["flux_dev"], tmp_path / "broken")
    (file,) = (broken / part).glob("*.safetensors")
    weights = load_file(file)
    gone = next(name for name in weights if name.endswith((".q.weight", "to_q.weight")))
    save_file({name: weight for name, weight in weights.items() if name != gone}, file)
    with pytest.raises(UserError, match=rf"lacks 1 weights of its {part}, such as .*{gone}"):
        Flux.from_pretrained(str(broken), device="cpu")


def test_a_shared_weight_may_be_stored_under_any_of_its_names(folders, tmp_path):
    """T5's embedding has two."""
    other = shutil.copytree(folders["flux_dev"], tmp_path / "other")
    (file,) = (other / "text_encoder_2").glob("*.safetensors")
    weights = load_file(file)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, file, {"format": "pt"})
    model = Flux.from_pretrained(str(other), device="cpu")
    torch.testing.assert_close(model.pipeline.text_encoder_2.shared.weight, weights["encoder.embed_tokens.weight"])


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_tokenizer_that_needs_another_library_says_so(folders, tmp_path):
    """PixArt's repositories hold sentencepiece's file alone."""
    other = shutil.copytree(folders["pixart_alpha"], tmp_path / "other")
    (other / "tokenizer" / "tokenizer.json").rename(other / "tokenizer" / "spiece.model")
    with pytest.raises(UserError, match=r"tokenizer needs two more packages: pip install sentencepiece protobuf$"):
        PixArt.from_pretrained(str(other), device="cpu")


def test_another_kind_of_pipeline_names_its_class(folders, tmp_path):
    unet = save_pipeline("sd1", tmp_path / "unet")
    for load, folder, right in (
        (SD3.from_pretrained, unet, "diffusion.DiffusionModel"),
        (DiffusionModel.from_pretrained, folders["sd3"], "dit.SD3"),
        (Flux.from_pretrained, folders["pixart_alpha"], "dit.PixArt"),
        (partial(PixArt.from_pretrained, device="cpu"), "mini", "diffusion.DiffusionModel"),
    ):
        with pytest.raises(
            UserError, match=rf"load it with diffseg\.backbones\.{right}\.from_pretrained, or"
        ) as refused:
            load(str(folder))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"_class_name": "SanaPipeline", "transformer": []},
            "is a SanaPipeline, whose linear attention has no softmax",
        ),
        ({"_class_name": "DiTPipeline", "transformer": []}, "is a DiTPipeline, which is not supported"),
        ({"_class_name": "DDPMPipeline", "unet": []}, "is a DDPMPipeline, which is not supported"),
        ({"_class_name": 3}, "cannot be loaded .its model_index.json names no pipeline class."),
        ([], "cannot be loaded"),
        ({"_class_name": "FluxPipeline"}, "needs model_index.json and a transformer/config.json"),
    ],
    ids=str,
)
def test_pipelines_that_are_not_known(tmp_path, content, words):
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as refused:
        from_pretrained(str(tmp_path), device="cpu")
    assert "\n" not in str(refused.value)


FROM_HUB = """
import sys
from diffseg.backbones.pretrained import from_pretrained
for name in sys.argv[1:]:
    try:
        print(type(from_pretrained(name, device="cpu")).__name__)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_from_the_hub_without_t5_and_a_gated_model_says_how_to_be_let_in(folders, tmp_path):
    hub = Hub({("us/sd3", "main"): folders["sd3"], ("us/gated", "main"): folders["flux_dev"]}, gated={"us/gated"})
    keep = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-c", FROM_HUB, "us/sd3", "us/gated"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    hub.close()
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    loaded, refused = ran.stdout.splitlines()
    assert loaded == "SD3"
    assert "transformer/diffusion_pytorch_model.safetensors" in hub.asked
    assert not [name for name in hub.asked if name.startswith(("text_encoder_3", "tokenizer_3"))]
    assert refused == (
        "OSError: cannot load 'us/gated': it is a gated model, so accept its licence on "
        "https://huggingface.co/us/gated and set HF_TOKEN to an access token of your account (https://huggingface.co/settings/tokens)"
    )


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "made_by", "timestep"),
    [
        ("pixart_alpha", PixArt, 300),
        ("pixart_sigma", PixArt, 300),
        ("sd3", SD3, 454),
        ("sd35_medium", SD3, 454),
        ("sd35_large", SD3, 454),
        ("flux_dev", Flux, 454),
        ("flux_schnell", Flux, 454),
    ],
)
def test_the_configuration_has_the_usual_time_step_and_arguments_that_are_taken(model, made_by, timestep):
    config, _ = configured(f"model={model}")
    assert (config["timestep"], config["noise"]) == (timestep, None)
    assert get_object(config["model"]["_target_"]) == made_by.from_pretrained
    run.experiment_of({**config, "dataset": {**config["dataset"], "count": 1}}, {"dataset": "scenes", "model": model})


def test_a_folder_is_evaluated_and_noise_makes_another_run(folders, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = ["model=pretrained", f"model.name={folders['sd3']}", "runs=runs"]
    small = ["dataset.count=2", "dataset.size=128", "workers=0", "device=cpu", "segmenters.diffseg.anchors=4"]
    for noise in ([], ["noise=7"]):
        monkeypatch.setattr(sys, "argv", ["diffseg-eval", *model, *small, *noise])
        run.main()
    identities = [json.loads(path.read_text())["identity"] for path in Path("runs").glob("*/run.json")]
    assert sorted(identity.get("noise", -1) for identity in identities) == [-1, 7]  # a run without is named as ever
    assert {identity["timestep"] for identity in identities} == {454}
    assert len(list(Path("runs").glob("*/diffseg/labels/*.png"))) == 4


@pytest.mark.parametrize("name", ["pixart_sigma", "sd3", "flux_dev"])
def test_chosen_layers_and_grids(folders, name):
    """Layers by position are those of the image; the grid that is foreseen is the one that is seen."""
    model = from_pretrained(str(folders[name]), device="cpu")
    size = (4 * model.multiple, 2 * model.multiple)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = model.observe(images, Needs(attention=True), Look(100))
    last = model.observe(images, Needs(attention=True), Look(100, layers=(-1,)))
    named = model.observe(images, Needs(attention=True), Look(100, layers=(model.self_attention()[-1],)))
    assert list(whole.self_attention) == [model.grid(model.self_attention()[0], size)] == [(4, 2)]
    torch.testing.assert_close(last.self_attention, named.self_attention, rtol=0, atol=0)
    assert not torch.equal(last.self_attention[4, 2], whole.self_attention[4, 2])
    assert not [layer for layer in model.self_attention() if layer.endswith("attn2") and name == "pixart_sigma"]


def test_a_method_that_asks_for_an_encoder_is_told_what_to_name(folders):
    model = from_pretrained(str(folders["sd3"]), device="cpu")
    images = torch.zeros(1, 3, 4 * model.multiple, 4 * model.multiple)
    with pytest.raises(UserError, match=r"has no 'encoder'.*name a layer of this model for it, or keys, as in"):
        model.observe(images, Needs(features=frozenset({"encoder"})), Look(100))
