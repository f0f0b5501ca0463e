"""Seconds per stage, images/s of a whole evaluation, share of the limit, peak memory: `make bench`.

Times vary from machine to machine and from run to run; a ratio compares two things of the same run. Results are kept
in results/bench/DEVICE-MODEL.json, with the hardware and the versions that they belong to. What they mean, and what
each optimisation was worth: docs/performance.md.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast
from unittest import mock

import numpy as np
import pandas as pd
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffseg.attention import Look, Maps, Needs, add_head_mean, capture
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.cli import find_photos
from diffseg.datasets.base import read_map, read_photo
from diffseg.datasets.coco_stuff import CLASSES
from diffseg.datasets.folder import Folder
from diffseg.datasets.scenes import TEST_SEED, scene
from diffseg.datasets.transforms import image_to_pixels, resize_label
from diffseg.devices import resolve_device
from diffseg.errors import UserError
from diffseg.eval.boundaries import boundary_counts
from diffseg.eval.metrics import agreement
from diffseg.eval.predict import predict
from diffseg.eval.progress import say
from diffseg.eval.protocols import OneToOne
from diffseg.eval.runs import Run, circumstances
from diffseg.eval.score import count, count_all, known_protocols, scores_of
from diffseg.eval.sharing import cores
from diffseg.eval.straightforward import straightforward_aggregate, straightforward_merge, straightforward_ncut
from diffseg.files import check_writable, write
from diffseg.images import label_image
from diffseg.methods.merging import Merging, labels_of
from diffseg.methods.ncut import recursive_ncut
from diffseg.options import one_sentence
from diffseg.segmentation import aggregate, merge, merge_batch, to_labels
from diffseg.segmenter import DiffSeg, Settings

# Features whose recursive cut is timed: seed, regions, channels, noise, spread, threshold, exponent of the affinity.
CUTS = (
    (31, 3, 64, 0.6, 1.0, 0.5, 10),
    (32, 7, 64, 0.4, 1.0, 0.5, 10),
    (33, 12, 128, 0.3, 0.7, 0.5, 10),
    (34, 6, 32, 0.3, 1.5, 0.7, 2),
    (35, 9, 64, 0.5, 0.8, 0.4, 15),
    (36, 1, 64, 0.5, 1.0, 0.3, 1),
)
SCORED = 5000  # images whose stored counts are scored under all protocols


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
    model, settings = cast(DiffusionModel, seg.model), seg.settings()
    place, unet, t = model.device, model.network, settings.timestep
    pixels = image_to_pixels(photo)[None].expand(batch, -1, -1, -1).to(place)
    latents = model.encode(pixels)
    context, added = model.context([""] * batch, (512, 512))

    def passing() -> object:
        return capture(unet, latents, t, context, added)

    def each(work: Callable[[], object]) -> float:
        return seconds(work, repeats, place) / batch

    stages = {
        "autoencoder": each(lambda: model.encode(pixels)),
        "unet, nothing captured": each(lambda: plain_pass(model, latents)),
        "unet, attention captured": each(passing),
    }
    if place.type == "cuda":  # what the fused kernel is worth
        with mock.patch("diffseg.attention._head_mean_for", return_value=add_head_mean):
            stages["unet, captured the plain way"] = each(passing)
    maps = capture(unet, latents, t, context, added).self_attention
    attention = aggregate(maps)
    by_anchors = {
        m: each(lambda m=m: merge_batch(attention, m, settings.threshold))  # type: ignore[misc]
        for m in (8, 16, 32)
    }
    proposals = merge_batch(attention, settings.anchors, settings.threshold)

    def label() -> object:
        return torch.stack([labels_of(p, (512, 512))[0] for p in proposals]).to(torch.int32).cpu()

    stages["aggregate"] = each(lambda: aggregate(maps))
    stages["merge"] = by_anchors[16]
    stages["labels"] = each(label)
    return stages, by_anchors, {size: m[:1] for size, m in maps.items()}


@torch.no_grad()
def plain_pass(model: DiffusionModel, latents: Tensor) -> object:
    """The UNet alone, as if there were nothing to capture."""
    context, added = model.context([""] * len(latents), (512, 512))
    steps = torch.full((len(latents),), 300, device=latents.device)
    return model.pipeline.unet(
        latents, steps, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False
    )


def operations(model: DiffusionModel) -> dict[str, float]:
    """Floating-point operations for one 512-pixel image: those of convolutions and matrix products."""

    def attention(q, k, v, *rest, out_shape=None, **options) -> int:
        batch, heads, rows, depth = q
        return 2 * batch * heads * rows * k[2] * (depth + v[3])

    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # torch does not count it
    pixels = torch.zeros(1, 3, 512, 512, device=model.device)
    latents = model.encode(pixels)
    model.context([""], (512, 512))  # kept: the text is encoded once, not once an image
    found = {}
    for name, work in {"autoencoder": lambda: model.encode(pixels), "unet": lambda: plain_pass(model, latents)}.items():
        with FlopCounterMode(display=False, custom_mapping=own) as counter:
            work()
        found[name] = float(counter.get_total_flops())
    return found


def product_rate(place: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a large matrix product: what this device can do in this precision."""
    n = 2048 if place.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=place).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, 5, place)


def whole_evaluation(seg: DiffSeg, folder: Path, images: int, batch: int, workers: int) -> dict[str, float]:
    """Images/s of an evaluation: JPEGs of 640 x 480 and label PNGs in, maps on disk, histograms matched.

    folder: an empty one. The model is loaded and warm.
    """
    photos = folder / "photos"
    photos.mkdir()
    made = [scene(TEST_SEED, i, 640) for i in range(min(images, 8))]
    for i in range(images):
        files, first = (
            [photos / f"{number:05d}{suffix}" for suffix in (".jpg", ".label.png")] for number in (i, i % 8)
        )
        if i < len(made):
            Image.fromarray(made[i].image[:480]).save(files[0], quality=95)
            Image.fromarray(made[i].label[:480].astype(np.uint8)).save(files[1])
        else:
            for file, same in zip(files, first, strict=True):
                file.hardlink_to(same)
    dataset, settings = Folder(str(photos), CLASSES), seg.settings()
    run = Run(folder / "run", {}, ("diffseg",), None)
    segmenters = {"diffseg": Merging(settings.threshold, anchors=settings.anchors)}
    look = Look(settings.timestep)
    once = partial(predict, run, dataset, dataset.keys, segmenters, lambda: seg.model, look)
    _, predicting = once(batch_size=batch, workers=workers, streams=min(4, cores()))
    start = time.perf_counter()
    counts = count_all(dataset, run.segmenters, run.map, workers)
    scores_of(counts.images["diffseg"], dataset.classes, OneToOne())
    scoring = time.perf_counter() - start
    return {
        "images": images,
        "workers": workers,
        "predict": images / predicting,
        "score": images / scoring,
        "both": images / (predicting + scoring),
    }


def file_stages(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds an image of what one reading or scoring process does, with a 640 x 480 JPEG and its label PNG."""
    scene_640, cpu = scene(TEST_SEED, 0, 640), torch.device("cpu")
    Image.fromarray(scene_640.image[:480]).save(folder / "photo.jpg", quality=95)
    Image.fromarray(scene_640.label[:480].astype(np.uint8)).save(folder / "label.png")
    labels = resize_label(scene_640.label[:480]).astype(np.int32)

    def score() -> object:
        truth = resize_label(read_map(folder / "label.png"))
        return count(truth, read_map(folder / "map.png"), len(CLASSES))

    def store() -> None:
        write(folder / "map.png", lambda file: label_image(labels).save(file, "PNG"))

    return {
        "decode": seconds(lambda: image_to_pixels(read_photo(folder / "photo.jpg")), repeats, cpu),
        "write": seconds(store, repeats, cpu),
        "score": seconds(score, repeats, cpu),
        "boundaries": seconds(lambda: boundary_counts(resize_label(scene_640.label[:480]), labels[::-1]), repeats, cpu),
    }


def protocol_seconds(images: int) -> dict[str, float]:
    """Seconds of scoring made-up counts of so many images under each protocol, intervals and ties included.

    27 classes, 2 to 30 segments, a tenth of the pixels void.
    """
    rng, rows = np.random.default_rng(0), []
    for index in range(images):
        segments = int(rng.integers(2, 31))
        shares = rng.dirichlet(np.full(28 * segments, 0.05))
        table = rng.multinomial(512 * 512, shares).reshape(28, segments)
        boundaries = rng.integers(0, 4000, 6)
        rows.append(
            {"key": f"{index}", "segments": np.arange(segments), "pixels": table.ravel(), "boundaries": boundaries}
        )
    counts, taken = pd.DataFrame(rows), {}
    for name, protocol in known_protocols().items():
        start = time.perf_counter()
        scores_of(counts, CLASSES, protocol)
        taken[name] = time.perf_counter() - start
    return taken


def ratio(maps: Maps, settings: Settings, repeats: int, place: torch.device) -> dict[str, Any]:
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


def region_features(seed: int, count: int, channels: int, noise: float, spread: float) -> Tensor:
    """Features float32 [1024, channels] of a grid of 32 x 32: a direction for each of `count` regions, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:32, 0:32] * 2.0
    x = x + 3.0 * np.sin(y / 7.0 + rng.uniform(0, 6.28))
    y = y + 3.0 * np.sin(x / 9.0 + rng.uniform(0, 6.28))
    centres = rng.uniform(4, 60, size=(count, 2))
    regions = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1).ravel()
    directions = rng.standard_normal(channels) + spread * rng.standard_normal((count, channels))
    return torch.from_numpy(directions[regions] + noise * rng.standard_normal((1024, channels))).float()


def cut_ratios(repeats: int, place: torch.device) -> list[dict[str, Any]]:
    """Recursive normalized cut of the same features, ours and the straightforward way; whether partitions are equal."""

    def straightforward(features: Tensor, threshold: float, alpha: float) -> np.ndarray:
        unit = torch.nn.functional.normalize(features, dim=1)
        cosines = (unit @ unit.T).numpy()
        return straightforward_ncut(((cosines - cosines.min()) / np.ptp(cosines)) ** alpha, threshold)

    rows = []
    for *made, threshold, alpha in CUTS:
        features = region_features(*made)  # type: ignore[arg-type]
        ours = partial(recursive_ncut, features.to(place), (32, 32), threshold, alpha)
        theirs = partial(straightforward, features, threshold, alpha)
        fast, slow = seconds(ours, repeats, place), seconds(theirs, repeats, torch.device("cpu"))
        equal = agreement(ours().cpu().numpy(), theirs().reshape(32, 32)) == 1
        row = {"regions": made[1], "seconds": fast, "straightforward_s": slow, "ratio": slow / fast, "equal": equal}
        rows.append(row)
    return rows


def plain_labels(seg: DiffSeg, pixels: Tensor) -> np.ndarray:
    """Labels the straightforward way all through, with every layer's and head's probabilities in float64.

    pixels: [1, 3, 512, 512]. Half a minute an image on two cores.
    """

    def add(total: Tensor, q: Tensor, k: Tensor, heads: int, scale: float) -> None:
        q, k = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
        total += torch.softmax(q @ k.mT * scale, -1).mean(1)

    settings = seg.settings()
    with mock.patch("diffseg.attention._head_mean_for", return_value=add):
        look = Look(settings.timestep)
        maps = seg.model.observe(pixels.to(seg.model.device), Needs(attention=True), look).self_attention
    attention = straightforward_aggregate({size: m[0].cpu() for size, m in maps.items()})
    proposals = straightforward_merge(attention, settings.anchors, list(settings.threshold))
    return to_labels(proposals, (512, 512)).numpy()


def agreement_with_plain(seg: DiffSeg, pictures: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of pixels on which the fast path and the straightforward way give the same segments, by picture."""
    settings = seg.settings()
    found = {}
    for name, pixels in track(pictures.items(), "agreement", console=Console(stderr=True), transient=True):
        image = seg.observe_pixels(pixels[None], settings.timestep, (512, 512))
        labels = Merging(settings.threshold, anchors=settings.anchors).segment(image)
        found[name] = agreement(labels, plain_labels(seg, pixels[None]))
    return found


def main(
    model: Annotated[str, typer.Option(help="Embedded model, hub id, folder, or sd14_random.")] = "mini",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16.")] = None,
    batches: Annotated[
        str | None, typer.Option(help="Images per forward pass. (default: 1 on a CPU, else 1,4,16,64)")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Of a whole evaluation. (default: 8 on a CPU, else 4,096)")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the median is taken.")] = 5,
    compare: Annotated[bool, typer.Option(help="Also run the straightforward version (about a minute).")] = True,
    scenes: Annotated[
        int, typer.Option(min=0, help="Scenes on which labels are compared with the straightforward way's.")
    ] = 0,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos on which they are compared as well.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/bench"),
) -> None:
    """Prints seconds per stage, images/s, share of the limit, peak memory, and the ratio to the straightforward way."""
    with one_sentence("bench"):
        place = resolve_device(device)
        sizes = _batch_sizes(batches or ("1,4,16,64" if place.type == "cuda" else "1"))
        pictures = _pictures(scenes, photos)
        check_writable(out, "choose another with --out")
        loaded = _load(model, device, dtype)
        result = measure(loaded, place, sizes, images, repeats, compare, pictures)
    show(Console(), result)
    name = "-".join(
        [result["device"].replace(" ", "-"), model.strip("/").replace("/", "-"), *([dtype] if dtype else [])]
    )
    write(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    Console().print(f"-> {out / name}.json", highlight=False)


def _batch_sizes(text: str) -> list[int]:
    sizes = [int(one) if one.strip().isdecimal() else 0 for one in text.split(",")]
    if min(sizes) < 1:
        raise UserError(f"--batches takes whole numbers from 1, separated by commas, got {text!r}")
    return sizes


def _pictures(scenes: int, photos: Path | None) -> dict[str, Tensor]:
    """Pictures float32 [3, 512, 512] on which labels are compared, by name."""
    found = {f"scene {i}": image_to_pixels(scene(TEST_SEED, i).image) for i in range(scenes)}
    if photos:
        if not photos.is_dir():
            raise UserError(f"there is no folder {photos} (--photos)")
        found |= {path.name: image_to_pixels(read_photo(path)) for path in find_photos([photos])}
    return found


def _load(model: str, device: str, dtype: str | None) -> DiffusionModel:
    if model == "sd14_random":
        return DiffusionModel.random("sd14", device=device, dtype=dtype)
    return DiffusionModel.from_pretrained(model, device=device, dtype=dtype)


def measure(
    loaded: DiffusionModel,
    place: torch.device,
    sizes: Sequence[int],
    images: int | None,
    repeats: int,
    compare: bool,
    pictures: Mapping[str, Tensor],
) -> dict[str, Any]:
    """All figures of one model on one device, as results/bench keeps them.

    sizes: images per forward pass. The rest as for the command.
    """
    gpu = place.type == "cuda"
    seg, photo = DiffSeg(loaded), scene(TEST_SEED, 0).image
    with_model = _peak_gib()
    result: dict[str, Any] = {"model": loaded.name, "dtype": loaded.dtype, **circumstances()}
    result["device"] = torch.cuda.get_device_name(place) if gpu else platform.machine()
    columns: dict[str, dict[str, float]] = {}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = file_stages(Path(folder), repeats)

    # Seconds per stage, by the number of images at a time.
    for batch in sizes:
        say(f"bench: the stages of {batch} image{'s' * (batch != 1)} at a time, {repeats} times")
        if gpu:
            torch.cuda.reset_peak_memory_stats(place)
        try:
            stages, by_anchors, maps = model_stages(seg, photo, batch, repeats)
        except torch.OutOfMemoryError:
            typer.echo(f"{batch} images at a time do not fit the device's memory", err=True)
            break
        result["merge_by_anchors_s"] = by_anchors
        ours = ("autoencoder", "unet, attention captured", "aggregate", "merge", "labels")
        columns[str(batch)] = {
            "decode": files["decode"],
            **stages,
            "write": files["write"],
            "score": files["score"],
            "boundaries, where asked for": files["boundaries"],
        } | {"model and method": sum(stages[name] for name in ours)}
        if gpu:
            peaks[str(batch)] = torch.cuda.max_memory_allocated(place) / 2**30
    result["stages_s"] = columns
    if not columns:
        raise UserError(f"not even {sizes[0]} images at a time fit the device's memory: try --batches 1")
    best = min(columns, key=lambda name: columns[name]["model and method"])
    result["limit"] = limit_of(loaded, place, columns[best]["model and method"])
    say("bench: a whole evaluation, and what a large matrix product reaches")
    with tempfile.TemporaryDirectory() as folder:
        number, workers = images or (4096 if gpu else 8), min(8, os.cpu_count() or 1)
        result["images_per_s"] = {"batch": int(best), **whole_evaluation(seg, Path(folder), number, int(best), workers)}
    result["peak_gib"] = _peak_gib()
    result["with_model_gib"] = with_model
    if gpu:
        result["device_peak_gib"] = peaks
    say(f"bench: scores of {SCORED:,} images under all protocols")
    result["protocols"] = {"images": SCORED, "seconds": protocol_seconds(SCORED)}
    result["protocols"]["peak_growth_gib"] = _peak_gib() - result["peak_gib"]
    if compare:
        say("bench: the straightforward way, a minute or two (--no-compare leaves it out)")
        result["straightforward"] = ratio(maps, seg.settings(), repeats, place)
        result["cuts"] = cut_ratios(repeats, place)
    if pictures:
        say(f"bench: labels of {len(pictures)} pictures by the straightforward way, half a minute each")
        result["agreement"] = agreement_with_plain(seg, pictures)
    return result


def limit_of(loaded: DiffusionModel, place: torch.device, taken_s: float) -> dict[str, Any]:
    """How long autoencoder and UNet would take at a large matrix product's rate; share: of the seconds they take."""
    counted, rate = operations(loaded), product_rate(place, loaded.pipeline.unet.dtype)
    floor_s = sum(counted.values()) / rate
    return {"operations": counted, "operations_per_s": rate, "seconds": floor_s, "share": floor_s / taken_s}


def _peak_gib() -> float:
    """The most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(console: Console, result: dict[str, Any]) -> None:
    """Prints what was measured."""

    def tell(text: str) -> None:
        console.print(text, highlight=False)

    cores, versions = result["hardware"]["cores"], result["versions"]
    tell(f"{result['model']} in {result['dtype']} on {result['device']}, {cores} cores, torch {versions['torch']}")
    columns = result["stages_s"]
    shown = Table("stage", *(f"batch {b}" for b in columns), title="milliseconds an image")
    for stage in next(iter(columns.values())):
        shown.add_row(stage, *(f"{1000 * stages[stage]:.1f}" for stages in columns.values()))
    console.print(shown)
    tell("decode, write and score run beside the model, in other processes and threads")
    anchors = ", ".join(f"M = {m}: {1000 * s:.1f} ms" for m, s in result["merge_by_anchors_s"].items())
    tell(f"merge by anchors: {anchors}")
    limit, whole = result["limit"], result["images_per_s"]
    tell(
        f"limit: {sum(limit['operations'].values()) / 1e12:.3f} TFLOP an image for autoencoder and UNet, at the "
        f"{limit['operations_per_s'] / 1e12:.2f} TFLOP/s of a large matrix product: {1000 * limit['seconds']:.1f} ms; "
        f"model and method reach {100 * limit['share']:.0f} % of it"
    )
    tell(
        f"whole evaluation of {whole['images']} images, {whole['batch']} at a time, {whole['workers']} reading "
        f"processes: {whole['both']:.2f} images/s (prediction {whole['predict']:.2f}, scoring {whole['score']:.1f})"
    )
    tell(f"peak memory of the process: {result['peak_gib']:.2f} GiB ({result['with_model_gib']:.2f} with the model)")
    for batch, peak in result.get("device_peak_gib", {}).items():
        tell(f"peak memory of the device, batch {batch}: {peak:.2f} GiB")
    rules = result["protocols"]
    each = ", ".join(f"{name} {taken:.1f}" for name, taken in rules["seconds"].items())
    tell(
        f"{rules['images']:,} images from stored counts under all protocols: {sum(rules['seconds'].values()):.1f} s "
        f"({each}); peak memory {rules['peak_growth_gib']:+.2f} GiB"
    )
    if "straightforward" in result:
        found = result["straightforward"]
        tell(
            f"aggregate + merge: {found['seconds']:.3f} s; straightforward on the CPU: "
            f"{found['straightforward_s']:.1f} s; ratio {found['ratio']:.0f}; "
            f"proposals {'equal' if found['equal'] else 'DIFFERENT'}"
        )
        cuts = result["cuts"]
        ratios = ", ".join(f"{row['regions']} regions {row['ratio']:.1f}" for row in cuts)
        total = sum(row["straightforward_s"] for row in cuts) / sum(row["seconds"] for row in cuts)
        tell(
            f"recursive normalized cut of 1,024 features: {1000 * np.mean([row['seconds'] for row in cuts]):.0f} ms; "
            f"straightforward over ours: {total:.1f} ({ratios}); "
            f"partitions {'equal' if all(row['equal'] for row in cuts) else 'DIFFERENT'}"
        )
    if "agreement" in result:
        shares = np.array(list(result["agreement"].values()))
        tell(
            f"labels as the straightforward way gives them on {100 * shares.mean():.3f} % of the pixels; pictures "
            f"without any difference: {int((shares == 1).sum())} of {len(shares)}; worst: {100 * shares.min():.3f} %"
        )


if __name__ == "__main__":
    typer.run(main)
