"""What the commands share: their options, and how they tell errors that a user can mend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from diffseg import presets
from diffseg.errors import UserError, printable

Photos = Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)]
MaybePhotos = Annotated[list[Path] | None, typer.Argument(help="Photos, or folders of photos.", show_default=False)]
Demo = Annotated[bool, typer.Option("--demo", help="Three photos that scikit-learn and matplotlib brought along.")]
Nouns = Annotated[str | None, typer.Option(help="What to look for: dog,grass,traffic light.")]
Coco = Annotated[
    Path | None,
    typer.Option(help="One COCO file for all photos: annotations.json. Segments as RLE, or with --polygons."),
]
LabelStudio = Annotated[
    Path | None,
    typer.Option(help="One file of Label Studio's tasks for all photos: tasks.json. Brushes, or with --polygons."),
]
Polygons = Annotated[bool, typer.Option("--polygons", help="Polygons in the files of --coco and --label-studio.")]
Opacity = Annotated[float, typer.Option(help="Of the overlay's colours: 0, the photo alone, to 1.")]
Palette = Annotated[
    str, typer.Option(help="Of segments: regions, or safe for eyes that lack the cones for red or green.")
]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
OutUri = Annotated[str, typer.Option(help="Folder for the results; with --manifest also s3://bucket/key or gs://.")]
Manifest = Annotated[
    str | None,
    typer.Option(help="Text file of very many photos, a path or URI a line; results are Parquet files, in parts."),
]
PartSize = Annotated[int | None, typer.Option(min=1, help="With --manifest: photos in a part. (default: 1000)")]
Shard = Annotated[
    str | None, typer.Option(help="With --manifest: i/n, every n-th part from the i-th on, 0 <= i < n. (default: 0/1)")
]
Readers = Annotated[
    int | None, typer.Option(min=1, help="With --manifest: photos that threads read ahead of the model. (default: 8)")
]
OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="With --manifest: make parts on a Ray cluster: auto, HOST:PORT, or local, this machine with all its GPUs.",
    ),
]
Model = Annotated[str, typer.Option(help="Embedded model, Hugging Face hub id, or folder in diffusers' layout.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Threshold = Annotated[
    str | None,
    typer.Option(help="tau in nats; one for all iterations, or one for each: 0.5,0.9,1.1. (default: the model's own)"),
]
Anchors = Annotated[int, typer.Option(help="M of the M x M grid of anchors.")]
Iterations = Annotated[
    int | None, typer.Option(help="N, iterations of merging. (default: 3, or as many as several thresholds)")
]
Weights = Annotated[
    str | None, typer.Option(help="R, finest resolution first: 64,32,16,8. (default: proportional to the resolution)")
]
Timestep = Annotated[int | None, typer.Option(help="t, 0 to 999. (default: the model's own)")]
Refine = Annotated[bool, typer.Option("--refine/--no-refine", help="k-means over all attention maps at the end.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, float16 or bfloat16. (default: float32 on the CPU, float16 elsewhere)")
]
Size = Annotated[int, typer.Option(help="Side in pixels of the square whose area a photo is resized to for the model.")]
Preset = Annotated[
    str | None, typer.Option(help="Model and settings kept under a name by diffseg tune --save; other options win.")
]


def chosen(context: typer.Context, preset: str | None) -> dict[str, Any]:
    """A command's model, revision and settings by name, in the form of the command line.

    With a preset, its own stand in place of all that the command line does not say.

    Args:
        context: of a command that has such options; one that it lacks is left out. preset: its name; None: none.

    Raises:
        UserError: no such preset, a damaged one, or one of another model than the command line names.
    """
    options = {key: context.params[key] for key in ("model", "revision", *presets.OPTIONS) if key in context.params}
    if preset is None:
        return options
    kept = presets.load(preset)
    given = {key for key in options if is_given(context, key)}
    if "model" in given and presets.named_model(options["model"]) != kept.model:
        raise UserError(
            f"the preset {preset!r} is for the model {kept.model}, not for {options['model']}: leave out --model or "
            f"--preset, or tune for that model (diffseg tune)"
        )
    settings = {**kept.options, **_as_texts(kept.options)}
    if "threshold" in given and "," in (options["threshold"] or ""):  # as many iterations as thresholds
        settings.pop("iterations", None)
    ours = {"model": kept.model, "revision": kept.revision, **settings}
    return options | {key: value for key, value in ours.items() if key in options and key not in given}


def is_given(context: typer.Context, key: str) -> bool:
    """Whether the command line, and not a default, says what a parameter is."""
    return getattr(context.get_parameter_source(key), "name", "") != "DEFAULT"


def _as_texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Those of a preset's options that the command line has as numbers separated by commas."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in options.items()}
    return {key: ",".join(map(str, lists[key])) for key in ("threshold", "weights") if key in lists}


@contextmanager
def one_sentence(program: str = "diffseg") -> Iterator[None]:
    """Turns the errors that a user can mend into one sentence and exit status 2."""
    try:
        yield
    except (UserError, OSError) as error:
        typer.echo(f"{program}: {printable(error)}", err=True)
        raise typer.Exit(2) from error
