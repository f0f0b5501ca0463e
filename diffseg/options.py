"""What the commands share: their options, and how they tell errors that a user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from diffseg.errors import UserError, printable

Photos = Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)]
MaybePhotos = Annotated[list[Path] | None, typer.Argument(help="Photos, or folders of photos.", show_default=False)]
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
Refine = Annotated[bool, typer.Option("--refine", help="k-means over all attention maps at the end.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, float16 or bfloat16. (default: float32 on the CPU, float16 elsewhere)")
]
Size = Annotated[int, typer.Option(help="Side in pixels of the square whose area a photo is resized to for the model.")]


@contextmanager
def one_sentence(program: str = "diffseg") -> Iterator[None]:
    """Turns the errors that a user can mend into one sentence and exit status 2."""
    try:
        yield
    except (UserError, OSError) as error:
        typer.echo(f"{program}: {printable(error)}", err=True)
        raise typer.Exit(2) from error
