"""Kernels for a GPU (Triton): attention's head-mean, and what lies between the convolutions of a residual block.

The head-mean of softmax(q k^T), without ever writing a head's probabilities: one kernel finds log2(sum(2^s)) of every
row of every head; the second goes over tiles of the result, adds up 2^(s - that) over the heads in registers, and adds
the tile to the running sum: its one read and one write. What is computed, and its truth, is `attention.add_head_mean`.

Group norm and SiLU of channels that lie last, as convolutions of halves want them (torch's own group norm copies them
to the other layout, and back): one kernel goes over chunks of positions for each channel's mean and squared deviations,
one makes a scale and a shift for each channel of them, one applies these.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634


@triton.jit
def _scores(
    q, k, b, h, first_row, first_key, rows, keys, scale, depth: tl.constexpr, heads: tl.constexpr,
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
    q, k, out, rows, keys, scale, depth: tl.constexpr, heads: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [B, heads, rows]: log2 of the sum over keys of 2^s. Grid: (tiles of rows, heads, B)."""
    first_row, h, b = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first_key in range(0, keys, KEYS):
        s = _scores(
            q, k, b, h, first_row, first_key, rows, keys, scale, depth, heads, ROWS, KEYS, DEPTH, PARTS, PRECISION
        )  # fmt: skip
        larger = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(s - larger[:, None]), 1)
        largest = larger
    row = first_row + tl.arange(0, ROWS)
    tl.store(out + (b * heads + h) * rows + row, largest + tl.log2(total), mask=row < rows)


@triton.jit
def _add_mean(
    q, k, log_sums, out, rows, keys, scale, depth: tl.constexpr, heads: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [B, rows, keys] += mean over heads of 2^(s - log_sums). Grid: (tiles of keys, tiles of rows, B)."""
    first_key, first_row, b = tl.program_id(0) * KEYS, tl.program_id(1) * ROWS, tl.program_id(2)
    row, key = first_row + tl.arange(0, ROWS), first_key + tl.arange(0, KEYS)
    total = tl.zeros([ROWS, KEYS], tl.float32)
    for h in range(0, heads):
        s = _scores(
            q, k, b, h, first_row, first_key, rows, keys, scale, depth, heads, ROWS, KEYS, DEPTH, PARTS, PRECISION
        )  # fmt: skip
        log_sum = tl.load(log_sums + (b * heads + h) * rows + row, mask=row < rows, other=0.0)
        total += tl.exp2(s - log_sum[:, None])
    at = out + b.to(tl.int64) * rows * keys + row.to(tl.int64)[:, None] * keys + key[None, :]
    inside = (row[:, None] < rows) & (key[None, :] < keys)
    tl.store(at, tl.load(at, mask=inside) + total / heads, mask=inside)


def tiles(depth: int, keys: int, dtype: torch.dtype) -> dict[str, int | str]:
    """The kernels' constants, so that a program keeps to its registers and to the shared memory that any GPU has."""
    exact = dtype == torch.float32
    rows, most, part = (32, 32, 32) if exact else (64, 64, 64)
    return {
        "ROWS": rows,
        "KEYS": min(most, max(16, triton.next_power_of_2(keys))),
        "DEPTH": part,
        "PARTS": triton.cdiv(depth, part),
        "PRECISION": "ieee" if exact else "tf32",  # products of halves are exact, whatever this says
        "num_warps": 4,
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
    sizes = (rows, keys, scale * _LOG2_E, width // heads, heads)
    row_tiles, key_tiles = triton.cdiv(rows, constants["ROWS"]), triton.cdiv(keys, constants["KEYS"])
    _log_sums[row_tiles, heads, batch](q, k, log_sums, *sizes, **constants)
    _add_mean[key_tiles, row_tiles, batch](q, k, log_sums, total, *sizes, **constants)


# --- between convolutions: tensors [B, C, H, W] with channels last, that is, [B, H * W, C] in memory ------------------


@triton.jit
def _channel_moments(
    x, means, squares, positions, channels, chunk, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """means, squares [B, chunks, C]: of each channel of a chunk of positions, the squares those of deviations, summed.

    Grid: (chunks, tiles of channels, B). chunk: positions, a multiple of ROWS.
    """
    first, b = tl.program_id(0) * chunk, tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mean, square, seen = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32), 0.0
    for start in range(0, chunk, ROWS):
        position = first + start + tl.arange(0, ROWS)
        inside = (position[:, None] < positions) & (channel[None, :] < channels)
        at = (b * positions + position[:, None]) * channels + channel[None, :]
        tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(tl.maximum(positions - first - start, 0), ROWS).to(tl.float32)
        own = tl.sum(tile, 0) / tl.maximum(count, 1.0)
        off = tl.where(inside, tile - own[None, :], 0.0)
        apart, share = own - mean, count / tl.maximum(seen + count, 1.0)
        square += tl.sum(off * off, 0) + apart * apart * seen * share
        mean += apart * share
        seen += count
    to = (b * tl.num_programs(0) + tl.program_id(0)) * channels + channel
    tl.store(means + to, mean, mask=channel < channels)
    tl.store(squares + to, square, mask=channel < channels)


@triton.jit
def _scales(
    means, squares, offset, weight, bias, scale, shift, positions, channels, chunks, chunk, eps, per_image,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """scale, shift float32 [B, C]: with which x * scale + shift is the group norm of x + offset. Grid: (groups, B).

    offset: [B, C] or, if not per_image, [C].
    """
    b, width = tl.program_id(1).to(tl.int64), channels // tl.num_programs(0)
    part, own = tl.arange(0, CHUNKS), tl.arange(0, WIDTH)
    channel = tl.program_id(0) * width + own
    known = own < width
    inside = (part[:, None] < chunks) & known[None, :]
    moved = tl.load(offset + b * per_image * channels + channel, mask=known, other=0.0).to(tl.float32)
    at = (b * chunks + part[:, None]) * channels + channel[None, :]
    mean = tl.load(means + at, mask=inside, other=0.0) + moved[None, :]
    square = tl.load(squares + at, mask=inside, other=0.0)
    count = tl.minimum(tl.maximum(positions - part * chunk, 0), chunk).to(tl.float32)
    count = tl.where(inside, count[:, None], 0.0)
    total = tl.sum(tl.sum(count, 1), 0)
    centre = tl.sum(tl.sum(mean * count, 1), 0) / total
    variance = tl.sum(tl.sum(square + count * (mean - centre) * (mean - centre), 1), 0) / total
    factor = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    tl.store(scale + b * channels + channel, factor, mask=known)
    added = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    tl.store(shift + b * channels + channel, added + (moved - centre) * factor, mask=known)


@triton.jit
def _tile(positions, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of a program's tile: where it lies, what of it is inside, its channels, its image. Grid as of `_blocks`."""
    b = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (position[:, None] < positions) & (channel[None, :] < channels)
    at = (b * positions + position[:, None]) * channels + channel[None, :]
    return at, inside, channel, b


@triton.jit
def _scaled_silu(
    x, scale, shift, out, positions, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """out = silu(x * scale + shift). Grid: (tiles of positions, tiles of channels, B)."""
    at, inside, channel, b = _tile(positions, channels, ROWS, COLUMNS)
    factor = tl.load(scale + b * channels + channel, mask=channel < channels, other=0.0)
    added = tl.load(shift + b * channels + channel, mask=channel < channels, other=0.0)
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + added[None, :]
    tl.store(out + at, (y * tl.sigmoid(y)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sum_of(
    x, y, bias, out, positions, channels, factor, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """out = (x + y + bias) * factor. Grid: (tiles of positions, tiles of channels, B)."""
    at, inside, channel, _ = _tile(positions, channels, ROWS, COLUMNS)
    added = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(y + at, mask=inside, other=0.0).to(tl.float32) + added[None, :]
    tl.store(out + at, (total * factor).to(out.dtype.element_ty), mask=inside)


def _blocks(x: Tensor) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid of tiles over [B, C, H, W], and the tiles."""
    batch, channels, height, width = x.shape
    rows, columns = 64, min(64, triton.next_power_of_2(channels))
    grid = (triton.cdiv(height * width, rows), triton.cdiv(channels, columns), batch)
    return grid, {"ROWS": rows, "COLUMNS": columns}


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, offset: Tensor | None = None
) -> Tensor:
    """silu(group_norm(x + offset)) with channels last; sums in float32, and the same whatever else is in the batch.

    Args:
        x: [B, C, H, W], float32, float16 or bfloat16; copied if its channels do not lie last. weight, bias: [C].
        offset: [C], or [B, C]: one for each image.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    (batch, channels, height, width), (grid, tile) = x.shape, _blocks(x)
    positions = height * width
    chunk = max(4, triton.cdiv(positions, 64 * tile["ROWS"])) * tile["ROWS"]
    chunks = triton.cdiv(positions, chunk)
    means, squares = (torch.empty(batch, chunks, channels, dtype=torch.float32, device=x.device) for _ in range(2))
    _channel_moments[chunks, grid[1], batch](x, means, squares, positions, channels, chunk, **tile)
    scale, shift = (torch.empty(batch, channels, dtype=torch.float32, device=x.device) for _ in range(2))
    offset = x.new_zeros(channels) if offset is None else offset
    sizes = (positions, channels, chunks, chunk, eps, int(offset.ndim == 2))
    constants = {"CHUNKS": triton.next_power_of_2(chunks), "WIDTH": triton.next_power_of_2(channels // groups)}
    _scales[groups, batch](means, squares, offset.contiguous(), weight, bias, scale, shift, *sizes, **constants)
    out = torch.empty_like(x)
    _scaled_silu[grid](x, scale, shift, out, positions, channels, **tile)
    return out


def sum_of(x: Tensor, y: Tensor, bias: Tensor, factor: float = 1.0) -> Tensor:
    """(x + y + bias) * factor with channels last, in one go. x, y: [B, C, H, W]. bias: [C]."""
    x, y = (one.contiguous(memory_format=torch.channels_last) for one in (x, y))
    (grid, tile), out = _blocks(x), torch.empty_like(x)
    _sum_of[grid](x, y, bias, out, x.shape[2] * x.shape[3], x.shape[1], factor, **tile)
    return out
