"""The fused kernels against the plain way in float64: in Triton's interpreter, or on a GPU where there is one.

That they compile, and fit the registers and the shared memory of real GPUs, needs no GPU to be seen.
"""

import json
import os
import subprocess
import sys

import numpy
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D

from tests.test_attention import head_mean, layer_inputs

triton = pytest.importorskip("triton", reason="Triton is not installed")

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
CUDA = torch.cuda.is_available()
SHAPES = {  # rows, keys, heads, channels a head
    "one tile": (2, 64, 64, 2, 40),
    "not whole tiles": (1, 150, 150, 3, 24),
    "two parts of a head's channels": (2, 36, 36, 2, 80),
    "a prompt": (1, 100, 77, 2, 160),
    "wide": (3, 6, 9, 1, 5),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)], ids=str
)
def test_equals_the_plain_way(shape, dtype, tolerance):
    from diffseg.fused import add_head_mean

    if dtype == torch.bfloat16 and not CUDA:
        pytest.skip("Triton's interpreter cannot multiply bfloat16")
    if VERSION < (3, 4) and not CUDA and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        pytest.skip("the interpreter of this Triton needs NumPy before 2.4")
    q, k = layer_inputs(*shape, dtype, "cuda" if CUDA else "cpu")
    heads, scale = shape[3], shape[4] ** -0.5
    total = torch.zeros(len(q), q.shape[1], k.shape[1], device=q.device)
    add_head_mean(total, q, k, heads, scale)
    expected = head_mean(q, k, heads, scale)
    assert ((total.cpu() - expected).abs() / expected).max() <= tolerance
    add_head_mean(total, q, k, heads, scale)
    torch.testing.assert_close(total.cpu().double(), 2 * expected, rtol=2 * tolerance, atol=1e-7)


def test_compiles_for_real_gpus_without_spilling():
    """For an A100, an RTX 4090 and an H100, each with the shared memory a program may have there."""
    if VERSION < (3, 3):
        pytest.skip("this Triton compiles without a GPU by another interface")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.compile_fused"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert len(kernels) == 3 * 3 * (3 * 2 + 3)
    room = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
    for kernel in kernels:
        assert kernel["shared"] <= room[kernel["capability"]], kernel
        assert kernel["spilled"] <= 128, kernel  # bytes; a spilling tile has thousands


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize("depth", [40, 80])
def test_passes_its_own_check(dtype, tolerance, depth):
    from diffseg.attention import deviation
    from diffseg.fused import add_head_mean

    if VERSION < (3, 4) and not CUDA and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        pytest.skip("the interpreter of this Triton needs NumPy before 2.4")
    assert deviation(add_head_mean, torch.device("cuda" if CUDA else "cpu"), dtype, depth) <= tolerance


# --- residual blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 40, 7, 9), 4), ((1, 96, 33, 20), 32), ((3, 12, 1, 1), 2), ((1, 8, 70, 70), 8)], ids=str
)
def test_group_norm_of_what_is_far_from_zero(shape, groups, last):
    from diffseg.fused import group_norm_silu

    generator, place = torch.Generator().manual_seed(0), "cuda" if CUDA else "cpu"
    x = 30 + 2 * torch.randn(shape, generator=generator)
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    offsets = [None, torch.randn(shape[1], generator=generator), torch.randn(shape[:2], generator=generator)]
    for offset in offsets:
        moved = x.double() if offset is None else x.double() + offset.expand(shape[:2])[:, :, None, None]
        expected = F.silu(F.group_norm(moved, groups, weight.double(), bias.double(), 1e-3))
        given = x.to(memory_format=torch.channels_last) if last else x
        there = None if offset is None else offset.to(place)
        found = group_norm_silu(given.to(place), groups, weight.to(place), bias.to(place), 1e-3, there)
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=2e-4)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=str)
def test_fused_blocks_are_diffusers_own(dtype, tolerance):
    from diffseg.backbones.resnet import deviation

    assert deviation(torch.device("cuda" if CUDA else "cpu"), dtype) <= tolerance


def test_blocks_of_another_kind_and_watched_ones_stay_as_they_are():
    from diffseg.backbones.resnet import FusedBlock, fuse

    usual = {"in_channels": 8, "temb_channels": 4, "groups": 2}
    kinds = [{}, {"up": True}, {"time_embedding_norm": "scale_shift"}, {"non_linearity": "gelu"}]
    network = torch.nn.ModuleList([ResnetBlock2D(**usual, **kind) for kind in kinds]).eval()
    assert fuse(network) == 1
    assert [type(block) is FusedBlock for block in network] == [True, False, False, False]
    block, seen = network[0], []
    block.conv1.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        block(torch.randn(1, 8, 4, 4), torch.randn(1, 4))
    assert len(seen) == 1


def test_blocks_that_come_out_wrong_stay_diffusers_own(monkeypatch):
    from diffseg.backbones import resnet

    resnet.right.cache_clear()
    monkeypatch.setattr(resnet, "sum_of", lambda x, y, bias, factor: x + y)  # forgets the bias
    with pytest.warns(RuntimeWarning, match="fused residual blocks are not used on .* diffusers' own way is slower"):
        assert not resnet.right(torch.device("cuda" if CUDA else "cpu"), torch.float32)
    resnet.right.cache_clear()
