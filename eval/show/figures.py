"""Figures of runs and of the method: `python -m diffseg.eval.show.figures curves | protocols | granularity | ...`.

curves RUN...              accuracy, mIoU and segments over what the runs vary, one figure for each ablation; where two
                           settings vary, a heat map
protocols RUN              the same label maps under every protocol
granularity RUN...         metrics over the number of segments, for runs that varied a setting
overview PHOTO             attention, aggregation, merging and segments of one photo
weights PHOTO              one photo with the weights R proportional, equal, and each resolution alone
gallery PHOTO...           photos above their segments, named with --nouns
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image

from diffseg.datasets.scenes import TEST_SEED, scene
from diffseg.demo import demo_photo
from diffseg.errors import UserError
from diffseg.eval.runs import find_run
from diffseg.eval.score import read_summary
from diffseg.eval.show.ablations import Ablation, Crossed, read_ablations
from diffseg.eval.show.drawing import (
    GALLERY_WIDTH,
    Shown,
    by_weights,
    drawn,
    gallery,
    granularities,
    observe,
    overview,
    protocols,
    save,
    weights_effect,
)
from diffseg.files import check_writable
from diffseg.images import load_image
from diffseg.options import Device, Model, Revision, Size, one_sentence
from diffseg.segmenter import DiffSeg, Settings
from diffseg.semantic import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Photo = Annotated[
    str, typer.Argument(help="A file; scene:NUMBER, a generated one that no model was trained on; or demo:china.")
]
Threshold = Annotated[float | None, typer.Option(help="tau in nats. (default: the model's own)")]
Timestep = Annotated[int | None, typer.Option(help="t, 0 to 999. (default: the model's own)")]


@app.callback()
def _main() -> None:
    """Figures of runs and of the method; SVG or PNG by the name's suffix."""


@app.command("curves")
def _curves(
    runs: Annotated[list[Path], typer.Argument(help="Folders of scored runs, or of sweeps.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for DATASET-MODEL-KEY.svg; or one figure's name.")] = Path(
        "figures"
    ),
    score_size: Annotated[int | None, typer.Option(help="Of scores at another size (score_size=...).")] = None,
) -> None:
    """Accuracy, mIoU and segments over what the runs vary: one figure for each ablation; of two keys a heat map."""
    with one_sentence("figures"):
        found = read_ablations(runs, score_size)
        names = [out / f"{file_name(a)}.svg" for a in found] if not out.suffix else [out]
        if len(set(names)) < len(found):
            raise UserError(f"{len(found)} ablations would be written as {names[-1]}: draw them one at a time")
        for ablation, path in zip(found, names, strict=True):
            _write(drawn(ablation), path)


def file_name(ablation: Ablation | Crossed) -> str:
    """DATASET-MODEL-KEY of an ablation, without what a file's name cannot have."""
    data, model = ablation.fixed.get("data", ""), str(ablation.fixed.get("model") or "").rpartition("/")[2]
    parts = (data.partition(" (")[0], model, ablation.name)
    return re.sub(r"[^\w.]+", "-", "-".join(filter(None, parts)))


@app.command("protocols")
def _protocols(
    run: Annotated[Path, typer.Argument(help="Folder of a run scored under several protocols.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The figure's name.")] = Path("figures/protocols.svg"),
) -> None:
    """The same label maps under every protocol: how far numbers move, and who overtakes whom."""
    with one_sentence("figures"):
        summary = read_summary(find_run(run))
        if len(summary["protocols"]) < 2:
            raise UserError(f"{run} was scored under one protocol alone: score it again with several, protocol=[...]")
        _write(protocols(summary), out)


@app.command("granularity")
def _granularity(
    runs: Annotated[list[Path], typer.Argument(help="Runs that varied one setting each.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The figure's name.")] = Path("figures/granularity.svg"),
) -> None:
    """Metrics over the number of segments, one curve for each method, whatever its thresholds mean."""
    with one_sentence("figures"):
        summaries = {run.name: read_summary(find_run(run)) for run in runs}
        for name, summary in summaries.items():
            if not summary["granularity"]:
                raise UserError(f"{name} tried one setting alone: give a run with vary=, such as an ablation of tau")
        curves = {
            f"{method}, {name}" if len(runs) > 1 else method: curve
            for name, summary in summaries.items()
            for method, curve in summary["granularity"].items()
        }
        _write(granularities(curves), out)


@app.command("overview")
def _overview(
    photo: Photo = "scene:4",
    out: Annotated[Path, typer.Option(help="The figure's name.")] = Path("figures/overview.png"),
    model: Model = "mini",
    revision: Revision = None,
    threshold: Threshold = None,
    anchors: Annotated[int, typer.Option(help="M of the M x M grid of anchors.")] = 16,
    iterations: Annotated[int, typer.Option(help="N, iterations of merging.")] = 3,
    timestep: Timestep = None,
    device: Device = "auto",
    size: Size = 512,
) -> None:
    """How the method sees one photo: attention, aggregation, merging, segments."""
    with one_sentence("figures"):
        pixels = read_photo(photo)
        seg = DiffSeg.from_pretrained(model, revision=revision, device=device)
        settings = seg.settings(threshold, timestep, anchors=anchors, iterations=iterations, size=size)
        _write(overview(observe(seg, pixels, settings)), out)


@app.command("weights")
def _weights(
    photo: Photo = "scene:4",
    out: Annotated[Path, typer.Option(help="The figure's name.")] = Path("figures/weights.png"),
    model: Model = "mini",
    revision: Revision = None,
    threshold: Threshold = None,
    timestep: Timestep = None,
    device: Device = "auto",
    size: Size = 512,
) -> None:
    """One photo with the weights R proportional, equal, and each resolution alone."""
    with one_sentence("figures"):
        pixels = read_photo(photo)
        seg = DiffSeg.from_pretrained(model, revision=revision, device=device)
        _write(weights_effect(pixels, by_weights(seg, pixels, seg.settings(threshold, timestep, size=size))), out)


@app.command("gallery")
def _gallery(
    photos: Annotated[list[str], typer.Argument(help="Files, scene:NUMBER, or demo:NAME.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The picture's name.")] = Path("figures/gallery.png"),
    nouns: Annotated[
        list[str] | None,
        typer.Option(help="Names to choose from: dog,grass,sky. Once, or once for each photo. own: a scene's caption."),
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="Photos side by side.")] = 4,
    width: Annotated[int, typer.Option(min=100, max=10_000, help="Of the picture, in pixels.")] = GALLERY_WIDTH,
    model: Model = "mini",
    revision: Revision = None,
    threshold: Threshold = None,
    timestep: Timestep = None,
    device: Device = "auto",
    size: Size = 512,
) -> None:
    """Photos above their segments; with --nouns, above their names."""
    with one_sentence("figures"):
        if nouns and len(nouns) not in (1, len(photos)):
            raise UserError(f"--nouns is given {len(nouns)} times for {len(photos)} photos: once, or once for each")
        given = nouns or [""]
        words = given * len(photos) if len(given) == 1 else given
        pixels = [read_photo(photo) for photo in photos]
        named = [read_nouns(w, photo) for w, photo in zip(words, photos, strict=True)]
        seg = DiffSeg.from_pretrained(model, revision=revision, device=device)
        settings = seg.settings(threshold, timestep, size=size)
        shown = [show(seg, one, settings, *n) for one, n in zip(pixels, named, strict=True)]
        _write(gallery(shown, columns, width), out)


def show(
    seg: DiffSeg, photo: np.ndarray, settings: Settings, nouns: Sequence[str] = (), caption: str | None = None
) -> Shown:
    """Segments a photo uint8 [H, W, 3] for a gallery; with nouns, the segments are named by them."""
    if not nouns:
        return Shown(photo, seg.segment(photo, settings).labels)
    found = label(seg, photo, nouns, caption, settings)
    return Shown(photo, found.labels, found.nouns)


def read_photo(name: str) -> np.ndarray:
    """A file, scene:NUMBER of the held-out series, or demo:NAME of `diffseg.demo`, uint8 [H, W, 3]."""
    number, demo = _scene_number(name), name.removeprefix("demo:")
    if number is not None:
        return scene(TEST_SEED, number).image
    return load_image(name if demo == name else demo_photo(demo))


def read_nouns(text: str, photo: str) -> tuple[list[str], str | None]:
    """Nouns (none, where text is empty) and the caption that has them (None: a list of them); own: of the scene."""
    if text != "own":
        return text.split(",") if text else [], None
    number = _scene_number(photo)
    if number is None:
        raise UserError(f"--nouns own is for scene:NUMBER: say what {photo} shows, for example --nouns dog,grass")
    made = scene(TEST_SEED, number)
    return [noun for noun, _ in made.nouns], made.caption


def _scene_number(name: str) -> int | None:
    number = name.removeprefix("scene:")
    if number == name:
        return None
    if not number.isdecimal():
        raise UserError(f"{name}: a scene has a whole number, such as scene:4")
    return int(number)


def _write(figure: Figure | Image.Image, path: Path) -> None:
    check_writable(path.parent, "choose another with --out")
    save(figure, path)
    typer.echo(path)


if __name__ == "__main__":
    app()
