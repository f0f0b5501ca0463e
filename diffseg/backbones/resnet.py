"""diffusers' residual blocks on a GPU: the same sums, without the passes over memory between the convolutions."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from diffseg.devices import full_float32, without
from diffseg.fused import group_norm_silu, sum_of

_TOLERANCE = 0.01  # of the norm of a result in halves


class FusedBlock(ResnetBlock2D):
    """A block of the usual kind: norm, SiLU, convolution, time step, norm, SiLU, convolution, sum.

    Its convolutions' biases, the time step and the sum go into the kernels around them. As diffusers has it on a CPU,
    while gradients are wanted, and where somebody watches a part of the block.
    """

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """[B, C', H, W] of input_tensor [B, C, H, W], with channels last, and the time step's embedding temb [B, T]."""
        if not self._can_be_fused(input_tensor):
            return super().forward(input_tensor, temb, *args, **kwargs)
        x = input_tensor.contiguous(memory_format=torch.channels_last)
        hidden = _convolved(self.conv1, _normed(self.norm1, x))
        offset = self.conv1.bias
        if self.time_emb_proj is not None:
            offset = self.time_emb_proj(self.nonlinearity(temb)) + offset
        hidden = _convolved(self.conv2, _normed(self.norm2, hidden, offset))
        bias = self.conv2.bias
        if self.conv_shortcut is not None:
            x = _convolved(self.conv_shortcut, x)
            bias = bias if self.conv_shortcut.bias is None else bias + self.conv_shortcut.bias
        return sum_of(x, hidden, bias, 1 / self.output_scale_factor)

    def _can_be_fused(self, x: Tensor) -> bool:
        watched = any(part._forward_hooks or part._forward_pre_hooks for part in self.children())
        wanted = torch.is_grad_enabled() and (x.requires_grad or self.conv1.weight.requires_grad)
        return (x.is_cuda or triton.knobs.runtime.interpret) and not (watched or wanted or self.training)


def _normed(norm: nn.GroupNorm, x: Tensor, offset: Tensor | None = None) -> Tensor:
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, offset)


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Without its bias."""
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def fuse(network: nn.Module) -> int:
    """Makes residual blocks of the usual kind `FusedBlock`s; weights and names stay. Gives how many there are."""
    blocks = [block for block in network.modules() if _is_usual(block)]
    for block in blocks:
        block.__class__ = FusedBlock
    return len(blocks)


def _is_usual(block: Any) -> bool:
    if type(block) is not ResnetBlock2D:
        return False
    layers = [block.conv1, block.conv2, *([] if block.conv_shortcut is None else [block.conv_shortcut])]
    return (
        all(type(layer) is nn.Conv2d and layer.padding_mode == "zeros" for layer in layers)
        and block.conv1.bias is not None
        and block.conv2.bias is not None
        and block.norm1.affine
        and block.norm2.affine
        and type(block.nonlinearity) is nn.SiLU
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
    )


@cache
def right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small block comes out right when fused: tried once a process; if not, one warning says so."""
    kind = str(dtype).removeprefix("torch.")
    named = f"the fused residual blocks are not used on {device} in {kind}"
    return not without(named, lambda: deviation(device, dtype), _TOLERANCE, "diffusers' own way")


@torch.no_grad()
@full_float32()
def deviation(device: torch.device, dtype: torch.dtype) -> float:
    """How far a small random block's result is from diffusers' in float64, as a share of its norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = ResnetBlock2D(in_channels=48, out_channels=96, temb_channels=20, groups=12).eval()
        x, temb = 3 + torch.randn(2, 48, 19, 23), torch.randn(2, 20)
    expected = block.double()(x.double(), temb.double())
    block.to(device, dtype).to(memory_format=torch.channels_last)
    fuse(block)
    found = block(x.to(device, dtype), temb.to(device, dtype)).double().cpu()
    return float((found - expected).norm() / expected.norm())
