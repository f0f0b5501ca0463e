"""The command line: `diffseg segment PHOTO...`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffseg.files import check_writable, write

if TYPE_CHECKING:
    from diffseg.segmenter import DiffSeg, Segmentation, Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
OUTPUTS = (".labels.png", ".overlay.png", ".json")


@app.callback()
def _main() -> None:
    """DiffSeg: unsupervised zero-shot segmentation from the self-attention of a diffusion model."""


@app.command()
def segment(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("segments"),
    model: Annotated[
        str, typer.Option(help="Embedded model, Hugging Face hub id, or folder in diffusers' layout.")
    ] = "mini",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="tau in nats; one, or one per iteration: 0.5,0.9,1.1. (default: the model's own)")
    ] = None,
    anchors: Annotated[int, typer.Option(help="M of the M x M grid of anchors.")] = 16,
    iterations: Annotated[
        int | None, typer.Option(help="N, iterations of merging. (default: as many as thresholds, else 3)")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="R, finest resolution first: 64,32,16,8. (default: proportional to the resolution)"),
    ] = None,
    timestep: Annotated[int | None, typer.Option(help="t, 0 to 999. (default: the model's own)")] = None,
    refine: Annotated[bool, typer.Option("--refine", help="k-means over all attention maps at the end.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    size: Annotated[
        int, typer.Option(help="Side in pixels of the square whose area a photo is resized to for the model.")
    ] = 512,
) -> None:
    """Segments photos. For each: NAME.labels.png, NAME.overlay.png and NAME.json (segments as COCO RLE, settings)."""
    with _one_sentence():
        jobs = name_outputs(find_photos(photos))
        thresholds = None if threshold is None else _numbers("--threshold", threshold)
        numbers = None if weights is None else _numbers("--weights", weights)
        from diffseg.segmenter import DiffSeg, Settings

        options: dict[str, Any] = {
            "anchors": anchors,
            "iterations": iterations,
            "weights": numbers,
            "refine": refine,
            "size": size,
        }
        Settings.make(thresholds or 1.0, timestep=300 if timestep is None else timestep, **options)  # before any work
        check_writable(out, "choose another with --out")
        seg = DiffSeg.from_pretrained(model, revision=revision, device=device)
        settings = seg.settings(thresholds, timestep, **options)
        failed = segment_files(seg, settings, jobs, out)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turns the errors that a user can mend into one sentence and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"diffseg: {error}", err=True)
        raise typer.Exit(2) from error


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(x) for x in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers separated by commas, got {text!r}") from None


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """The photos named, and those directly in the folders named, sorted; results of earlier runs are left out.

    Raises:
        ValueError: a folder without photos.
    """
    from diffseg.images import SUFFIXES

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.endswith(OUTPUTS))
            if not inside:
                raise ValueError(f"the folder {path} has no photos ({', '.join(sorted(SUFFIXES))}) directly in it")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def name_outputs(photos: list[Path]) -> dict[str, Path]:
    """Result name -> photo: the photo's name without suffix; where that is taken twice, with suffix, then folder.

    Raises:
        ValueError: two photos whose folder and name are both the same.
    """
    names: list[Callable[[Path], str]] = [
        lambda p: p.stem,
        lambda p: p.name,
        lambda p: f"{p.absolute().parent.name}_{p.name}",
    ]
    jobs: dict[str, Path] = {}
    for name in names:
        count = Counter(name(p) for p in photos)
        jobs.update({name(p): p for p in photos if count[name(p)] == 1})
        photos = [p for p in photos if count[name(p)] > 1]
    if photos:
        both = names[-1](photos[0])
        raise ValueError(f"{photos[0]} and {photos[1]} would both be written as {both}: run them with different --out")
    return dict(sorted(jobs.items()))


def segment_files(seg: DiffSeg, settings: Settings, jobs: dict[str, Path], out: Path) -> dict[Path, str]:
    """Segments photos into the folder `out`, with progress and a summary. Returns {photo: what was wrong with it}.

    Raises:
        ValueError: a setting that does not fit the model. OSError: a result cannot be written.
    """
    from diffseg.images import ImageError, load_image

    failed: dict[Path, str] = {}
    segments, start, screen = 0, time.perf_counter(), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    typer.echo(f"segmenting {len(jobs)} photo{'s' * (len(jobs) != 1)} with {seg.model.name}", err=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("segmenting", total=len(jobs))
        for name, photo in jobs.items():
            progress.update(task, description=photo.name)
            try:
                made = seg.segment(load_image(photo), settings)
            except ImageError as error:
                failed[photo] = str(error)
                progress.console.print(f"skipped {error}", style="red", highlight=False, soft_wrap=True, markup=False)
            else:
                write_results(made, photo, out / name)
                segments += len(made)
            progress.advance(task)
    seconds, done = time.perf_counter() - start, len(jobs) - len(failed)
    if done:
        each = f"{seconds / len(jobs):.1f} s each"
        typer.echo(f"{done} photo{'s' * (done != 1)}, {segments} segments in {seconds:.1f} s ({each}) -> {out}")
    if failed:
        typer.echo(f"{len(failed)} could not be segmented: {', '.join(map(str, failed))}", err=True)
    return failed


def write_results(made: Segmentation, photo: Path, stem: Path) -> None:
    """Writes NAME.labels.png, NAME.overlay.png and, last, NAME.json; each appears whole or not at all."""
    from diffseg.images import label_image

    labels, picture, record = (stem.with_name(stem.name + suffix) for suffix in OUTPUTS)
    write(labels, lambda f: label_image(made.labels).save(f, "PNG"))
    write(picture, lambda f: made.overlay().save(f, "PNG"))
    write(record, json.dumps({"photo": str(photo), **made.as_dict()}, indent=1) + "\n")


if __name__ == "__main__":
    app()
