"""Seconds per stage and peak memory, and merging against the straightforward way: `make bench`.

Times vary from machine to machine and from run to run; a ratio compares two things of the same run. Results are kept
in results/bench/DEVICE.json, with the hardware and the versions that they belong to.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diffseg.attention import DiffusionModel, Maps, capture, resolve_device
from diffseg.datasets.base import read_map, read_photo
from diffseg.datasets.coco_stuff import CLASSES
from diffseg.datasets.scenes import TEST_SEED, scene
from diffseg.datasets.transforms import image_to_pixels, resize_label
from diffseg.eval.metrics import histogram, match
from diffseg.eval.runs import circumstances
from diffseg.files import write
from diffseg.images import label_image
from diffseg.segmentation import aggregate, anchor_grid, merge, to_labels
from diffseg.segmenter import DiffSeg, by_area


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
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        if i:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def model_stages(
    seg: DiffSeg, photo: np.ndarray, batch: int, repeats: int
) -> tuple[dict[str, float], dict[int, float], Maps]:
    """Seconds an image of what the model and the method do, seconds of merging by number of anchors M, and the maps.

    photo: uint8 [512, 512, 3]. batch: images per forward pass.
    """
    model, settings = seg.model, seg.settings()
    place, unet, t = model.device, seg.model.pipeline.unet, settings.timestep
    pixels = image_to_pixels(photo)[None].expand(batch, -1, -1, -1).to(place)
    latents = model.encode(pixels)
    context, added = model.context([""] * batch, (512, 512))
    steps = torch.full((batch,), t, device=place)

    @torch.no_grad()
    def plain() -> object:
        return unet(latents, steps, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)

    stages = {
        "autoencoder": seconds(lambda: model.encode(pixels), repeats, place) / batch,
        "unet, nothing captured": seconds(plain, repeats, place) / batch,
        "unet, attention captured": seconds(lambda: capture(unet, latents, t, context, added), repeats, place) / batch,
    }
    maps = {size: m[:1] for size, m in capture(unet, latents, t, context, added).self_attention.items()}
    attention = aggregate(maps)[0]
    by_anchors = {
        m: seconds(lambda m=m: merge(attention, m, settings.threshold), repeats, place)  # type: ignore[misc]
        for m in (8, 16, 32)
    }
    proposals = merge(attention, settings.anchors, settings.threshold)
    stages["aggregate"] = seconds(lambda: aggregate(maps), repeats, place)
    stages["merge"] = by_anchors[16]
    stages["labels"] = seconds(
        lambda: by_area(to_labels(proposals, (512, 512)), len(proposals))[0].cpu(), repeats, place
    )
    return stages, by_anchors, maps


def file_stages(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds an image of what one reading or scoring process does, with a 640 x 480 JPEG and its label PNG."""
    made, cpu = scene(TEST_SEED, 0, 640), torch.device("cpu")
    Image.fromarray(made.image[:480]).save(folder / "photo.jpg", quality=95)
    Image.fromarray(made.label[:480].astype(np.uint8)).save(folder / "label.png")
    labels = resize_label(made.label[:480]).astype(np.int32)

    def score() -> object:
        truth = resize_label(read_map(folder / "label.png"))
        return match(histogram(truth, read_map(folder / "map.png"), len(CLASSES)))

    def store() -> None:
        write(folder / "map.png", lambda file: label_image(labels).save(file, "PNG"))

    return {
        "decode": seconds(lambda: image_to_pixels(read_photo(folder / "photo.jpg")), repeats, cpu),
        "write": seconds(store, repeats, cpu),
        "score": seconds(score, repeats, cpu),
    }


def ratio(maps: Maps, settings: Any, repeats: int, place: torch.device) -> dict[str, Any]:
    """Aggregation and merging, ours and the straightforward way, on the same maps; whether the results are the same."""
    thresholds = list(settings.threshold)
    single = {size: m[0].cpu() for size, m in maps.items()}
    fast = seconds(lambda: merge(aggregate(maps)[0], settings.anchors, thresholds), repeats, place)
    start = time.perf_counter()
    expected = straightforward_merge(straightforward_aggregate(single), settings.anchors, thresholds)
    slow = time.perf_counter() - start
    found = merge(aggregate(maps)[0], settings.anchors, thresholds).cpu()
    equal = len(found) == len(expected) and bool(torch.allclose(found, expected, rtol=1e-3, atol=1e-7))
    return {"seconds": fast, "straightforward_s": slow, "ratio": slow / fast, "equal": equal}


def main(
    model: Annotated[str, typer.Option(help="Embedded model, hub id, folder, or sd14_random.")] = "mini",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16.")] = None,
    batches: Annotated[str, typer.Option(help="Images per forward pass, such as 1,4,16,64.")] = "1",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the median is taken.")] = 5,
    compare: Annotated[bool, typer.Option(help="Also run the straightforward version (about a minute).")] = True,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/bench"),
) -> None:
    """Prints seconds per stage, peak memory and the ratio to the straightforward version."""
    console, place = Console(), resolve_device(device)
    precision = getattr(torch, dtype) if dtype else None
    load = DiffusionModel.random if model == "sd14_random" else DiffusionModel.from_pretrained
    loaded = load("sd14" if model == "sd14_random" else model, device=device, dtype=precision)
    seg, photo = DiffSeg(loaded), scene(TEST_SEED, 0).image
    with_model = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result: dict[str, Any] = {"model": loaded.name, "dtype": str(loaded.pipeline.unet.dtype), **circumstances()}
    result["device"] = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = file_stages(Path(folder), repeats)
    for batch in map(int, batches.split(",")):
        stages, by_anchors, maps = model_stages(seg, photo, batch, repeats)
        result["merge_by_anchors_s"] = by_anchors
        ours = {k: v for k, v in stages.items() if k != "unet, nothing captured"}
        stages = {"decode": files["decode"], **stages, "write": files["write"], "score": files["score"]}
        columns[str(batch)] = stages | {"model and method": sum(ours.values())}
    result["stages_s"] = columns
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result["with_model_gib"] = with_model
    if place.type == "cuda":
        result["device_peak_gib"] = torch.cuda.max_memory_allocated(place) / 2**30
    if compare:
        result["straightforward"] = ratio(maps, seg.settings(), repeats, place)
    show(console, result)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{result['device'].replace(' ', '-')}-{model.replace('/', '-')}.json"
    write(path, json.dumps(result, indent=1) + "\n")
    console.print(f"-> {path}", highlight=False)


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints what was measured."""
    cores, versions = result["hardware"]["cores"], result["versions"]
    console.print(
        f"{result['model']} in {result['dtype'].removeprefix('torch.')} on {result['device']}, {cores} cores, "
        f"torch {versions['torch']}",
        highlight=False,
    )
    columns = result["stages_s"]
    shown = Table("stage", *(f"batch {b}" for b in columns), title="milliseconds an image")
    for stage in next(iter(columns.values())):
        shown.add_row(stage, *(f"{1000 * stages[stage]:.1f}" for stages in columns.values()))
    console.print(shown)
    console.print("decode, write and score run beside the model, in other processes and threads")
    anchors = ", ".join(f"M = {m}: {1000 * s:.0f} ms" for m, s in result["merge_by_anchors_s"].items())
    console.print(f"merge by anchors: {anchors}", highlight=False)
    peak, loaded = result["peak_gib"], result["with_model_gib"]
    console.print(f"peak memory of the process: {peak:.2f} GiB ({loaded:.2f} with the model loaded)", highlight=False)
    if "device_peak_gib" in result:
        console.print(f"peak memory of the device: {result['device_peak_gib']:.2f} GiB", highlight=False)
    if "straightforward" in result:
        found = result["straightforward"]
        console.print(
            f"aggregate + merge: {found['seconds']:.3f} s; straightforward on the CPU: "
            f"{found['straightforward_s']:.1f} s; ratio {found['ratio']:.0f}; "
            f"proposals {'equal' if found['equal'] else 'DIFFERENT'}",
            highlight=False,
        )


if __name__ == "__main__":
    typer.run(main)
