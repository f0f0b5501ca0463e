"""Capturing attention: against a slow computation by diffusers' own textbook processor, and the reference's UNet."""

import copy
import re
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.utils._python_dispatch import TorchDispatchMode

from diffseg.attention import Look, Needs, Recorder, Tokens, add_head_mean, attention_maps, capture, verified
from diffseg.errors import UserError
from diffseg.segmentation import aggregate, merge, to_labels
from tests.models import UNETS, unet
from tests.test_segmentation import GOLDEN


class Textbook(AttnProcessor):
    """Diffusers' plain processor, keeping every head's probabilities."""

    def __init__(self, store: dict, kind: str):
        self.store, self.kind = store, kind

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(keys)))
        scores = attn.get_attention_scores(query, key).unflatten(0, (len(hidden_states), attn.heads))
        self.store[self.kind, scores.shape[2]].append(scores.mean(1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)


def double(added: dict | None) -> dict | None:
    return None if added is None else {k: v.double() for k, v in added.items()}


def textbook(model, latents, timestep, context, added) -> dict:
    """{(kind, positions): mean over layers [B, positions, keys]} in float64."""
    model, store = copy.deepcopy(model).double(), defaultdict(list)
    model.set_attn_processor({n: Textbook(store, n.split(".")[-2]) for n in model.attn_processors})
    with torch.no_grad():
        model(latents.double(), timestep, context.double(), added_cond_kwargs=double(added))
    return {key: torch.stack(layers).mean(0) for key, layers in store.items()}


def inputs_for(name: str, size: tuple[int, int], batch: int = 2):
    g = torch.Generator().manual_seed(5)
    context = torch.randn(batch, 77, UNETS[name]["cross_attention_dim"], generator=g)
    added = None
    if "addition_embed_type" in UNETS[name]:
        added = {
            "text_embeds": torch.randn(batch, 32, generator=g),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * batch),
        }
    return torch.randn(batch, 4, *size, generator=g), context, added


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (13, 18)], ids=str)
@pytest.mark.parametrize("name", UNETS)
def test_equals_the_textbook(name, size):
    """In float64 on both sides: float32 rounding grows through SDXL's many layers and would hide mistakes."""
    latents, context, added = inputs_for(name, size)
    model = copy.deepcopy(unet(name)).double()
    found = capture(model, latents.double(), 300, context.double(), double(added), Needs(attention=True, cross=True))
    expected = textbook(unet(name), latents, 300, context, added)
    for kind, maps in {"attn1": found.self_attention, "attn2": found.cross_attention}.items():
        assert {h * w for h, w in maps} == {n for k, n in expected if k == kind}
        for (h, w), m in maps.items():
            torch.testing.assert_close(m, expected[kind, h * w], rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(m.sum(-1), torch.ones(m.shape[:2]).double())
    uniform = 1 / max(h * w for h, w in found.self_attention)
    assert max(m.max() for m in found.self_attention.values()) > 5 * uniform, "flat attention would prove nothing"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)], ids=str
)
def test_a_layer_is_computed_in_float32_whatever_the_weights(dtype, tolerance):
    """Queries and keys come in the UNet's precision; from there on nothing is lost."""
    q, k = layer_inputs(2, 48, 48, 3, 16, dtype)
    total = torch.ones(2, 48, 48)
    add_head_mean(total, q, k, 3, 0.25)
    assert ((total - 1 - head_mean(q, k, 3, 0.25)).norm() / total.norm()).item() < tolerance


def layer_inputs(batch: int, rows: int, keys: int, heads: int, depth: int, dtype: torch.dtype, device="cpu"):
    """Queries [batch, rows, heads * depth] and keys, such that the attention is far from flat."""
    g = torch.Generator().manual_seed(rows + keys)
    q, k = (torch.randn(batch, n, heads * depth, generator=g) for n in (rows, keys))
    return (2 * q).to(device, dtype), k.to(device, dtype)


def head_mean(q: torch.Tensor, k: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """Mean over heads of softmax(q k^T * scale) in float64, as it reads."""
    q, k = (x.double().cpu().unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k))
    return torch.softmax(q @ k.transpose(2, 3) * scale, -1).mean(1)


@pytest.mark.parametrize(("name", "levels"), [("sd1", 4), ("sd2", 4), ("sdxl", 2), ("ssd1b", 2)])
def test_resolutions_are_those_the_unet_has(name, levels):
    latents, context, added = inputs_for(name, (16, 24), 1)
    maps = capture(unet(name), latents, 300, context, added).self_attention
    finest = (16, 24) if levels == 4 else (8, 12)
    assert sorted(maps, reverse=True) == [(finest[0] >> i, finest[1] >> i) for i in range(levels)]


def test_the_unet_is_left_as_it_was():
    model = copy.deepcopy(unet("sd1"))
    latents, context, _ = inputs_for("sd1", (8, 8), 1)
    processors = model.attn_processors
    with torch.no_grad():
        before = model(latents, 300, context).sample
    attention_maps(model, latents, 300, context)
    with pytest.raises(RuntimeError):
        attention_maps(model, latents, 300, context[..., :5])  # fails inside the pass
    assert all(p is processors[name] for name, p in model.attn_processors.items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(latents, 300, context).sample, before, rtol=0, atol=0)


def test_the_slices_do_not_matter(monkeypatch):
    latents, context, _ = inputs_for("sd1", (8, 8), 1)
    latents, context, model = latents.double(), context.double(), copy.deepcopy(unet("sd1")).double()
    whole = attention_maps(model, latents, 300, context)
    monkeypatch.setattr("diffseg.attention.slice_bytes", lambda device: 1)
    for size, m in attention_maps(model, latents, 300, context).items():
        torch.testing.assert_close(m, whole[size], rtol=1e-12, atol=1e-15)


class Asked(TorchDispatchMode):
    """Counts how often torch's own attention is computed."""

    times = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.times += "scaled_dot_product" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(16, 16), (13, 18)], ids=str)
@pytest.mark.parametrize("name", UNETS)
def test_on_a_cpu_the_output_comes_from_the_probabilities_that_are_kept(name, size):
    """Torch's own attention is not computed beside them, and the pass gives what it gives unwatched."""
    latents, context, added = inputs_for(name, size)
    model, outputs = copy.deepcopy(unet(name)).double(), []
    model.conv_out.register_forward_hook(lambda module, args, output: outputs.append(output))
    inputs = (latents.double(), 300, context.double())
    with torch.no_grad(), Asked() as unwatched:
        model(*inputs, added_cond_kwargs=double(added))
    kinds = [Needs(attention=True, cross=True), Needs(attention=True), Needs(features=frozenset({"conv_in"}))]
    with Asked() as watched:
        for needs in kinds:
            capture(model, *inputs, double(added), needs)
    assert unwatched.times > 0
    assert watched.times == 0
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)
    for other in outputs[2:]:  # what is kept moves nothing, not by a bit
        torch.testing.assert_close(other, outputs[1], rtol=0, atol=0)


def test_each_image_of_a_batch_is_alone():
    latents, context, _ = inputs_for("sd1", (8, 8), 3)
    together = attention_maps(unet("sd1"), latents, 300, context)
    alone = attention_maps(unet("sd1"), latents[1:2], 300, context[1:2])
    for size, m in alone.items():
        torch.testing.assert_close(together[size][1:2], m, rtol=1e-4, atol=1e-7)


def test_a_unet_without_transformer_blocks_is_refused():
    plain = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no self-attention"):
        attention_maps(plain, torch.zeros(1, 4, 8, 8), 300, torch.zeros(1, 77, 8))


def test_layers_whose_attention_cannot_be_seen_are_refused():
    """Processors that multiply queries and keys themselves never call torch's attention."""
    model = copy.deepcopy(unet("sd1"))
    latents, context, _ = inputs_for("sd1", (8, 8), 1)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    model.get_submodule(name).set_processor(AttnProcessor())
    with pytest.raises(
        UserError, match=r"1 of 32 attention layers of UNet2DConditionModel, such as mid_block"
    ) as refused:
        attention_maps(model, latents, 300, context)
    assert "\n" not in str(refused.value)


def test_a_block_that_looks_at_the_prompt_twice_is_no_self_attention():
    blind = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, norm_num_groups=4, cross_attention_dim=16, block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4, only_cross_attention=(True, True), mid_block_type=None,
    ).eval()  # fmt: skip
    context = torch.randn(1, 64, 16)  # as many tokens as positions: numbers alone would not tell
    with pytest.raises(UserError, match="no self-attention"):
        attention_maps(blind, torch.zeros(1, 4, 8, 8), 300, context)


def test_threads_that_pass_one_network_at_the_same_time_see_their_own_passes():
    model, (latents, context, _) = unet("sd1"), inputs_for("sd1", (8, 12), 2)
    needs = Needs(attention=True, cross=True, features=frozenset({"down_blocks.1.attentions.0"}))
    jobs = [(latents[i : i + 1], context[i : i + 1]) for i in range(2)]

    def watched(job):
        return capture(model, job[0], 300, job[1], needs=needs)

    alone = [watched(job) for job in jobs]
    both = threading.Barrier(2, timeout=60)

    def meet(*_):  # each waits for the other in the middle of its pass
        both.wait()

    meeting = model.mid_block.register_forward_pre_hook(meet)
    try:
        with ThreadPoolExecutor(2) as pool:
            beside = list(pool.map(watched, jobs))
    finally:
        meeting.remove()
    for expected, seen in zip(alone, beside, strict=True):
        for kind in ("self_attention", "cross_attention", "features"):
            maps, others = getattr(expected, kind), getattr(seen, kind)
            assert maps
            assert maps.keys() == others.keys()
            assert all(torch.equal(maps[key], others[key]) for key in maps)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_features_are_what_a_hook_sees():
    model, (latents, context, _) = unet("sd1"), inputs_for("sd1", (8, 12), 2)
    layer, block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1", "down_blocks.1.attentions.0"
    seen = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, out))
        for name in (layer, block)
    ]
    features = capture(model, latents, 300, context, needs=Needs(features=frozenset({layer, block}))).features
    for hook in hooks:
        hook.remove()
    assert features[layer].shape == (2, 32, 4, 6)
    torch.testing.assert_close(features[layer].flatten(2).transpose(1, 2), seen[layer], rtol=0, atol=0)
    torch.testing.assert_close(features[block], seen[block][0], rtol=0, atol=0)


def test_features_of_no_layer_name_the_nearest():
    latents, context, _ = inputs_for("sd1", (8, 8), 1)
    wrong = Needs(features=frozenset({"down_blocks.1.attentions.0.transformer_blocks.0.attn3"}))
    with pytest.raises(UserError, match=r"no layer .*attn3.*; did you mean down_blocks.1.attentions.0"):
        capture(unet("sd1"), latents, 300, context, needs=wrong)


def test_joint_attention_is_cut_into_distributions_of_its_own():
    """Text before image under one softmax, as in joint transformers: each block's rows sum to 1 again."""
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, 5 + 6, 4, generator=g, dtype=torch.float64) for _ in range(3))

    class Joint(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v) + x

    network = torch.nn.ModuleDict({"joint": Joint()})
    image, text = slice(5, 11), slice(0, 5)
    needs = Needs(attention=True, cross=True)
    with Recorder(
        network, dict(network.named_children()), lambda *_: Tokens((2, 3), image, image, text), needs
    ) as seen:
        network["joint"](torch.zeros(1))
    observation = seen.observation()
    rows = torch.softmax(q @ k.mT / 2, -1).mean(1)[:, image]
    for maps, keys in ((observation.self_attention, image), (observation.cross_attention, text)):
        expected = rows[..., keys] / rows[..., keys].sum(-1, keepdim=True)
        torch.testing.assert_close(maps[2, 3], expected)


def test_looks_and_needs_combine():
    run = Look(timestep=100, size=512)
    assert Look(noise=42).within(run) == Look(100, 42, False, 512)
    assert Look(50, size=1024).within(run) == Look(50, None, False, 1024)
    assert Needs(cross=True) | Needs(features=frozenset("a")) == Needs(False, True, frozenset("a"))
    assert not Needs()


@pytest.mark.slow
def test_golden_unet():
    """860 M random parameters: the same attention, and the same labels, as the reference's own UNet."""
    golden = np.load(GOLDEN / "unet" / "sd14-random.npz")
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, cross_attention_dim=768,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(320, 640, 1280, 1280),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("attn1"):
                module.to_q.weight.mul_(4)
                module.to_k.weight.mul_(4)
    maps = attention_maps(model, torch.from_numpy(golden["latents"]), 300, torch.from_numpy(golden["context"]))
    assert sorted(maps) == [(8, 8), (16, 16), (32, 32), (64, 64)]
    attention = aggregate(maps)[0]
    rows, expected = attention.view(4096, 4096)[::64], torch.from_numpy(golden["aggregated_rows"])
    assert ((rows - expected).norm() / expected.norm()).item() < 5e-4
    labels = to_labels(merge(attention, 16, [0.6] * 3), (512, 512)).numpy()
    assert (labels == golden["labels"]).mean() >= 0.999


def test_features_of_all_queries_are_cut_to_the_image():
    """A layer that has other tokens before the image's: of its output, the image's are the grid."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            torch.nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])
            return x

    network, x = torch.nn.ModuleDict({"layer": Layer()}), torch.randn(2, 3 + 6, 4)
    lie = Tokens((2, 3), slice(3, 9), slice(3, 9))
    needs = Needs(features=frozenset({"layer"}))
    with Recorder(network, dict(network.named_children()), lambda *_: lie, needs) as recorder:
        network["layer"](x)
    features = recorder.observation().features["layer"]
    torch.testing.assert_close(features, x[:, 3:].transpose(1, 2).reshape(2, 4, 2, 3), rtol=0, atol=0)


# --- faster kernels ---------------------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def off_by(factor):
    """A kernel that adds the right result times a factor."""

    def kernel(total, q, k, heads, scale):
        part = torch.zeros_like(total)
        add_head_mean(part, q, k, heads, scale)
        total += part * factor

    return kernel


def overwriting(total, q, k, heads, scale):
    total.zero_()
    add_head_mean(total, q, k, heads, scale)


def failing(total, q, k, heads, scale):
    raise RuntimeError("ptxas: out of registers\nand much more")


def missing():
    raise ImportError("No module named 'triton'")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_right_kernel_is_used(dtype, recwarn):
    kernel = off_by(1)
    assert verified(lambda: kernel, CPU, dtype, 40) is kernel
    assert not recwarn


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (lambda: off_by(1.01), "its result is off by"),
        (lambda: off_by(float("nan")), "its result is off by nan"),
        (lambda: overwriting, "its result is off by"),
        (lambda: failing, r"ptxas: out of registers\)"),
        (missing, "No module named 'triton'"),
    ],
    ids=["wrong", "nan", "overwriting", "failing", "missing"],
)
def test_a_kernel_that_is_wrong_or_fails_gives_way_with_one_warning(load, reason, recwarn):
    for _ in range(2):
        assert verified(load, CPU, torch.float32, 8) is add_head_mean
    (warning,) = recwarn
    assert re.search(reason, str(warning.message))
    assert "\n" not in str(warning.message)


def test_kernels_are_verified_for_each_number_of_channels():
    asked = []

    def load():
        return lambda total, q, k, heads, scale: (
            asked.append(q.shape[2] // heads) or add_head_mean(total, q, k, heads, scale)
        )

    for depth in (40, 80, 40):
        verified(load, CPU, torch.float32, depth)
    assert asked == [40, 80]
