"""The head-mean of softmax(q k^T) on a GPU, without ever writing a head's probabilities (Triton).

Two kernels. The first finds log2(sum(2^s)) of every row of every head; the second goes over tiles of the result, adds
up 2^(s - that) over the heads in registers, and adds the tile to the running sum: its one read and one write. What
is computed, and its truth, is `attention.add_head_mean`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634


@triton.jit
def _scores(
    q, k, b, h, first_row, first_key, rows, keys, depth, heads, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s * log2(e) of a tile [ROWS, KEYS] of head h of image b, in PARTS of DEPTH channels; -inf beyond the last key."""
    row, key = first_row + tl.arange(0, ROWS), first_key + tl.arange(0, KEYS)
    width = heads * depth
    q_row = q + b.to(tl.int64) * rows * width + row[:, None] * width + h * depth
    k_key = k + b.to(tl.int64) * keys * width + key[None, :] * width + h * depth
    s = tl.zeros([ROWS, KEYS], tl.float32)
    for part in tl.static_range(PARTS):
        d = part * DEPTH + tl.arange(0, DEPTH)
        q_tile = tl.load(q_row + d[None, :], mask=(row[:, None] < rows) & (d[None, :] < depth), other=0.0)
        k_tile = tl.load(k_key + d[:, None], mask=(key[None, :] < keys) & (d[:, None] < depth), other=0.0)
        s = tl.dot(q_tile, k_tile, s, input_precision=PRECISION)
    return tl.where(key[None, :] < keys, s * scale, float("-inf"))


@triton.jit
def _log_sums(
    q, k, out, rows, keys, depth, heads, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [B, heads, rows]: log2 of the sum over keys of 2^s. Grid: (tiles of rows, heads, B)."""
    first_row, h, b = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first_key in range(0, keys, KEYS):
        s = _scores(
            q, k, b, h, first_row, first_key, rows, keys, depth, heads, scale, ROWS, KEYS, DEPTH, PARTS, PRECISION
        )  # fmt: skip
        larger = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(s - larger[:, None]), 1)
        largest = larger
    row = first_row + tl.arange(0, ROWS)
    tl.store(out + (b * heads + h) * rows + row, largest + tl.log2(total), mask=row < rows)


@triton.jit
def _add_mean(
    q, k, log_sums, out, rows, keys, depth, heads, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [B, rows, keys] += mean over heads of 2^(s - log_sums). Grid: (tiles of keys, tiles of rows, B)."""
    first_key, first_row, b = tl.program_id(0) * KEYS, tl.program_id(1) * ROWS, tl.program_id(2)
    row, key = first_row + tl.arange(0, ROWS), first_key + tl.arange(0, KEYS)
    total = tl.zeros([ROWS, KEYS], tl.float32)
    for h in range(0, heads):
        s = _scores(
            q, k, b, h, first_row, first_key, rows, keys, depth, heads, scale, ROWS, KEYS, DEPTH, PARTS, PRECISION
        )  # fmt: skip
        log_sum = tl.load(log_sums + (b * heads + h) * rows + row, mask=row < rows, other=0.0)
        total += tl.exp2(s - log_sum[:, None])
    at = out + b.to(tl.int64) * rows * keys + row.to(tl.int64)[:, None] * keys + key[None, :]
    inside = (row[:, None] < rows) & (key[None, :] < keys)
    tl.store(at, tl.load(at, mask=inside) + total / heads, mask=inside)


def tiles(depth: int, keys: int, dtype: torch.dtype) -> dict[str, int | str]:
    """The kernels' constants, so that a program keeps to its registers and to the shared memory that any GPU has."""
    exact = dtype == torch.float32
    side, part = (32, 32) if exact else (128, 64)
    return {
        "ROWS": side,
        "KEYS": min(side, max(16, triton.next_power_of_2(keys))),
        "DEPTH": part,
        "PARTS": triton.cdiv(depth, part),
        "PRECISION": "ieee" if exact else "tf32",  # products of halves are exact, whatever this says
        "num_warps": 4 if exact else 8,
        "num_stages": 2,
    }


def add_head_mean(total: Tensor, q: Tensor, k: Tensor, heads: int, scale: float) -> None:
    """Adds the mean over heads of softmax(q k^T * scale) to total; see `attention.add_head_mean`.

    Args:
        total: float32 [B, R, T], contiguous. q: [B, R, heads * d]. k: [B, T, heads * d]; float32, float16 or bfloat16.
    """
    q, k = q.contiguous(), k.contiguous()
    (batch, rows, width), keys = q.shape, k.shape[1]
    constants = tiles(width // heads, keys, q.dtype)
    log_sums = torch.empty(batch, heads, rows, dtype=torch.float32, device=q.device)
    sizes = (rows, keys, width // heads, heads, scale * _LOG2_E)
    row_tiles, key_tiles = triton.cdiv(rows, constants["ROWS"]), triton.cdiv(keys, constants["KEYS"])
    _log_sums[row_tiles, heads, batch](q, k, log_sums, *sizes, **constants)
    _add_mean[key_tiles, row_tiles, batch](q, k, log_sums, total, *sizes, **constants)
