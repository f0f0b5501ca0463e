"""Seconds per stage and peak memory for one photo, and merging against the straightforward way: `make bench`.

Times vary from machine to machine and from run to run; the ratio compares two things of the same run.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diffseg.attention import Maps
from diffseg.datasets.scenes import TEST_SEED, scene
from diffseg.segmentation import aggregate, anchor_grid, merge
from diffseg.segmenter import DiffSeg


def straightforward_aggregate(maps: Maps) -> Tensor:
    """Aggregation as the equation reads: every map upsampled, repeated and stored whole; [h, w, h, w]."""
    sizes = sorted(maps, reverse=True)
    h, w = sizes[0]
    total = torch.zeros(h, w, h, w)
    for r, c in sizes:
        up = F.interpolate(maps[r, c].view(-1, 1, r, c), (h, w), mode="bilinear", align_corners=False)
        up = (up / up.sum((2, 3), keepdim=True)).view(r, c, h, w)
        up = up.repeat_interleave(h // r, 0).repeat_interleave(w // c, 1)
        total += up * (r / sum(size[0] for size in sizes))
    return total


def straightforward_merge(attention: Tensor, anchors: int, thresholds: list[float]) -> Tensor:
    """Merging as the algorithm reads: one pair of distributions against another by broadcasting; [K, h, w]."""
    h, w = attention.shape[:2]
    maps = attention.reshape(h * w, -1)

    def distance(p: Tensor, q: Tensor) -> Tensor:
        return ((p * (p.log() - q.log())).sum(1) + (q * (q.log() - p.log())).sum(1)) / 2

    grid = anchor_grid(anchors, (h, w))
    proposals = [maps[distance(maps[y * w + x][None], maps) < thresholds[0]].mean(0) for y, x in grid.tolist()]
    for threshold in thresholds[1:]:
        stacked, matched, merged = torch.stack(proposals), set(), []
        for i in range(len(stacked)):
            if i not in matched:
                near = distance(stacked[i][None], stacked) < threshold
                matched.update(near.nonzero().flatten().tolist())
                merged.append(stacked[near].mean(0))
        proposals = merged
    return torch.stack(proposals).view(-1, h, w)


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median seconds of `repeats` runs after one that does not count."""
    taken = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main(
    model: Annotated[str, typer.Option(help="Embedded model, hub id or folder.")] = "mini",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the median is taken.")] = 5,
    compare: Annotated[bool, typer.Option(help="Also run the straightforward version (about a minute).")] = True,
) -> None:
    """Prints seconds per stage, peak memory and the ratio to the straightforward version."""
    seg = DiffSeg.from_pretrained(model, device=device)
    place, settings = seg.model.device, seg.settings()
    photo = scene(TEST_SEED, 0).image
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs = [seg.segment(photo, settings).timings_s for _ in range(repeats + 1)][1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shown = Table("stage", "seconds", title=f"{model}, one 512 x 512 photo, median of {repeats}")
    for stage in runs[0]:
        shown.add_row(stage, f"{statistics.median(run[stage] for run in runs):.3f}")
    shown.add_row("in all", f"{statistics.median(sum(run.values()) for run in runs):.3f}")
    console = Console()
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {place}, torch {torch.__version__}"
    )
    console.print(shown)
    console.print(
        f"peak memory of the process: {peak / 2**20:.2f} GiB ({loaded / 2**20:.2f} GiB with the model loaded)"
    )
    if place.type == "cuda":
        console.print(f"peak memory of the device: {torch.cuda.max_memory_allocated(place) / 2**30:.2f} GiB")
    if compare:
        _compare(seg, photo, console, repeats)


def _compare(seg: DiffSeg, photo, console: Console, repeats: int) -> None:
    """Aggregation and merging, ours and the straightforward way, on the same maps; the results must be the same."""
    from diffseg.segmenter import prepare

    settings, place = seg.settings(), seg.model.device
    pixels = prepare(photo, photo.shape[:2]).to(place)
    maps = seg.model.attention(pixels, settings.timestep).self_attention
    thresholds = list(settings.threshold)
    single = {size: m[0].cpu() for size, m in maps.items()}
    fast = seconds(lambda: merge(aggregate(maps)[0], settings.anchors, thresholds), repeats, place)
    start = time.perf_counter()
    slow_result = straightforward_merge(straightforward_aggregate(single), settings.anchors, thresholds)
    slow = time.perf_counter() - start
    fast_result = merge(aggregate(maps)[0], settings.anchors, thresholds).cpu()
    same = len(fast_result) == len(slow_result) and bool(torch.allclose(fast_result, slow_result, rtol=1e-3, atol=1e-7))
    console.print(
        f"aggregate + merge: {fast:.3f} s; straightforward on the CPU: {slow:.1f} s; ratio {slow / fast:.0f}; "
        f"proposals {'equal' if same else 'DIFFERENT'}"
    )


if __name__ == "__main__":
    typer.run(main)
