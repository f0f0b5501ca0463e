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
    assert len(kernels) == 3 * 3 * 3 * 2
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
