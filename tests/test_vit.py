"""Vision transformers: attention against the textbook in float64, features against a hook, loading, a whole run."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from diffseg.attention import Look, Needs
from diffseg.backbones.vit import IMAGENET, VisionTransformer
from diffseg.errors import UserError
from tests.models import save_pipeline

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS = {  # model, configuration, tokens before the image's
    "dinov2": (Dinov2Model, Dinov2Config(**SMALL, image_size=56, patch_size=14, mlp_ratio=2), 1),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SMALL, image_size=56, patch_size=14), 5),
    "dinov3": (
        DINOv3ViTModel,
        DINOv3ViTConfig(**SMALL, image_size=64, patch_size=16, intermediate_size=64, num_register_tokens=4),
        5,
    ),
}


def save_vit(kind, folder, **options):
    """Writes a random model with attention that is far from flat, as a user would have it from the hub."""
    made_by, config, _ = KINDS[kind]
    torch.manual_seed(0)
    model = made_by(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.normal_(0, 0.3)
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_vit(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def load(folder, **options):
    return VisionTransformer.from_pretrained(str(folder), device="cpu", **options)


def photos(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def hooked(model, images, *suffixes):
    """{name: (input, output)} of the modules whose names end so, in one pass."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, given, out, name=name: seen.__setitem__(name, (given[0], out)))
        for name, module in model.network.named_modules()
        if name.endswith(suffixes)
    ]
    with torch.no_grad():
        model.forward(images, Look(300), [""] * len(images))
    for hook in hooks:
        hook.remove()
    return seen


def rotated(x, size):
    """DINOv3's rotary embedding of patches [B, heads, h*w, d]: each pair of channels turned by its share of y or x."""
    (h, w), d = size, x.shape[-1]
    frequencies = 100.0 ** -torch.arange(0, 1, 4 / d, dtype=torch.float64)
    y = (torch.arange(h, dtype=torch.float64) + 0.5).repeat_interleave(w) / h * 2 - 1
    z = (torch.arange(w, dtype=torch.float64) + 0.5).repeat(h) / w * 2 - 1
    angles = 2 * torch.pi * torch.cat([y[:, None] * frequencies, z[:, None] * frequencies], 1)  # [h*w, d/2]
    one, two = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)


def textbook(layer, tokens, size, first, rotary):
    """Attention among the image's tokens [B, h*w, h*w] in float64, of a layer's own input."""
    layer, tokens = layer.double(), tokens.double()
    heads = (projection(tokens).unflatten(2, (2, -1)).transpose(1, 2) for projection in (layer.q_proj, layer.k_proj))
    q, k = (torch.cat([x[:, :, :first], rotated(x[:, :, first:], size)], 2) if rotary else x for x in heads)
    layer.float()
    rows = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).mean(1)[:, first:, first:]
    return rows / rows.sum(-1, keepdim=True)


@pytest.mark.parametrize(("height", "width"), [(56, 64), (100, 60)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_textbook_and_the_hook(folders, kind, height, width):
    model, first = load(folders[kind]), KINDS[kind][2]
    assert model.network.config._attn_implementation == "sdpa"
    assert len(model.layers()) == 3
    patch, images = model.multiple, photos(height, width)
    size = round(height / patch), round(width / patch)
    needs = Needs(attention=True, features=frozenset({"keys", "encoder"}))
    found = model.observe(images, needs)
    seen = hooked(model, images, ".attention", ".k_proj")
    maps = [textbook(layer, seen[name][0], size, first, kind == "dinov3") for name, layer in model.layers().items()]
    assert list(found.self_attention) == [size]
    torch.testing.assert_close(found.self_attention[size].double(), sum(maps) / 3, rtol=1e-4, atol=1e-7)
    assert found.self_attention[size].max() > 3 / size[0] / size[1], "flat attention would prove nothing"
    last = list(model.layers())[-1]
    for name, output in (("keys", seen[f"{last}.k_proj"][1]), ("encoder", seen[last][1][0])):
        assert found.features[name].shape == (2, 32, *size)
        torch.testing.assert_close(found.features[name].flatten(2).mT, output[:, first:], rtol=0, atol=0)


def test_single_layers_are_among_the_models(folders):
    model = load(folders["registers"])
    (alone,) = model.observe(photos(56, 56), Needs(attention=True), Look(layers=(-1,))).self_attention.values()
    name = list(model.layers())[-1]
    (named,) = model.observe(photos(56, 56), Needs(attention=True), Look(layers=(name,))).self_attention.values()
    torch.testing.assert_close(alone, named, rtol=0, atol=0)


@pytest.mark.parametrize(("side", "patches"), [(512, 37), (14, 1), (5, 1), (504, 36)])
def test_photos_of_any_size_become_the_nearest_multiple(folders, side, patches):
    model = load(folders["dinov2"])
    assert model.grid("", (side, side)) == (patches, patches)
    if side < 500:
        assert model.observe(photos(side, side), Needs(attention=True)).self_attention.keys() == {(patches, patches)}


def test_pixels_are_in_the_colours_of_training(folders, tmp_path):
    mean, std = (torch.tensor(c)[:, None, None] for c in IMAGENET)
    images = photos(56, 56)
    ((given, _),) = hooked(load(folders["dinov2"]), images, ".projection").values()
    torch.testing.assert_close(given, ((images + 1) / 2 - mean) / std)
    own = save_vit("dinov2", tmp_path / "own")
    (own / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    ((given, _),) = hooked(load(own), images, ".projection").values()
    torch.testing.assert_close(given, images)
    for text in ("{", '{"image_mean": [1, 2]}', '{"image_std": [0, 1, 1]}', "[]"):
        (own / "preprocessor_config.json").write_text(text)
        with pytest.raises(UserError, match=r"preprocessor_config.json is damaged .*three numbers each"):
            load(own)
    ((given, _),) = hooked(load(folders["dinov2"]), photos(50, 60), ".projection").values()
    resized = F.interpolate(photos(50, 60), (56, 56), mode="bilinear")
    torch.testing.assert_close(given, ((resized + 1) / 2 - mean) / std)


def test_time_noise_and_prompts(folders):
    model = load(folders["dinov3"])
    plain = model.observe(photos(64, 64), Needs(attention=True), Look(1)).self_attention[4, 4]
    with pytest.warns(UserWarning, match="is no diffusion model: it is shown the photos without noise"):
        noisy = model.observe(photos(64, 64), Needs(attention=True), Look(900, noise=3)).self_attention[4, 4]
    torch.testing.assert_close(noisy, plain, rtol=0, atol=0)
    with pytest.raises(UserError, match="reads no prompts"):
        model.observe(photos(64, 64), Needs(attention=True), Look(prompted=True), ["a dog", "grass"])


def test_half_precision(folders):
    full = load(folders["dinov3"]).observe(photos(64, 64), Needs(attention=True)).self_attention[4, 4]
    half = load(folders["dinov3"], dtype="bfloat16").observe(photos(64, 64), Needs(attention=True)).self_attention[4, 4]
    assert half.dtype == torch.float32
    assert ((half - full).norm() / full.norm()).item() < 0.1


# --- loading ----------------------------------------------------------------------------------------------------------


def test_folders_that_are_no_vision_transformers(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    text = CLIPTextModel(CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_attention_heads=2))
    text.save_pretrained(tmp_path / "text")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((folders["dinov2"] / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    broken = save_vit("dinov2", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:500])
    for folder, message in (
        (tmp_path / "empty", "no model in transformers' layout"),
        (save_pipeline("sd1", tmp_path / "sd1"), "is a diffusers model, no vision transformer"),
        (tmp_path / "text", "is a model of the kind 'clip_text_model'"),
        (pickled, r"no \.safetensors weights"),
        (broken, "cannot be loaded"),
        ("dinov2", "there is no folder 'dinov2'"),
        ("./nowhere", "there is no folder"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            load(folder)
        assert "\n" not in str(refused.value)


def test_weights_that_lack_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_vit("registers", tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("1.attention.q_proj.weight") or name.endswith("query.weight"))
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights, such as encoder"):
        load(folder)


LOAD = """
import sys
from diffseg.backbones.vit import VisionTransformer
for name in sys.argv[1:]:
    try:
        model = VisionTransformer.from_pretrained(name, device="cpu")
        print(model.multiple, model.mean)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_from_a_hub(folders, tmp_path, on_hub):
    own = save_vit("dinov3", tmp_path / "own")
    (own / "preprocessor_config.json").write_text('{"image_mean": [0.25, 0.5, 0.5]}')
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((folders["dinov2"] / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    served = {"us/dinov2": folders["dinov2"], "us/dinov3": own, "us/vit-pickled": pickled, "us/gated": own}
    hub, commands = on_hub
    hub.repositories |= {(name, "main"): folder for name, folder in served.items()}
    (tmp_path / "load.py").write_text(LOAD)
    ran = commands(*served, "us/none", script=tmp_path / "load.py", cwd=tmp_path)
    dinov2, dinov3, pickled_only, gated, none = ran.stdout.splitlines()
    assert dinov2 == f"14 {IMAGENET[0]}"
    assert dinov3 == "16 (0.25, 0.5, 0.5)"
    assert pickled_only.startswith("OSError: cannot load 'us/vit-pickled' from the Hugging Face hub")
    assert none.startswith("OSError: cannot load 'us/none' from the Hugging Face hub")
    assert gated.startswith("OSError: us/gated is given only to those who accept its licence")
    assert "HF_TOKEN" in gated


def test_a_whole_run(folders, tmp_path, commands):
    """Photos of 100 pixels, no multiple of 14; methods on attention and features, layers chosen."""
    settings = ["model=dinov2", f"model.name={folders['registers']}", "dataset.count=2", "dataset.size=100"]
    settings += ["segmenters.diffseg.anchors=4", "layers=[-1,*.0.*]", f"runs={tmp_path}", "workers=0", "device=cpu"]
    ran = commands(*settings, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (path,) = tmp_path.glob("*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["layers"] == [-1, "*.0.*"]
    assert summary["segmenters"]["diffseg"]["images"] == 2
