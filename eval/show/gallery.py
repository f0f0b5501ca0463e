"""The same images under every method of a run: `diffseg-eval gallery RUN`. A row an image, a column a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont, ImageOps

from diffseg.datasets.base import Dataset
from diffseg.errors import UserError, did_you_mean
from diffseg.eval.runs import Run, find_run
from diffseg.eval.score import image_scores, name_of_data, read_counts
from diffseg.eval.show.drawing import save
from diffseg.eval.show.examples import Panel, example, rule_of_images, unlabelled_example

_MARGIN, _LINE = 6, 20  # pixels


def rows_of(run: Run, dataset: Dataset, keys: Sequence[str], segmenters: Sequence[str]) -> list[list[Panel]]:
    """For each image its photo, its truth, and each method's segments in the colours of the classes they match.

    Without labels its photo, and each method's segments on it.
    """
    if not dataset.labelled:
        pairs = [[unlabelled_example(dataset, {"key": k}, run.map(s, k)).panels for s in segmenters] for k in keys]
        return [[of_image[0][0], *(panels[1] for panels in of_image)] for of_image in pairs]
    rule = rule_of_images(dataset)
    images = {name: image_scores(read_counts(run, name)[0], rule).set_index("key") for name in segmenters}
    rows = []
    for key in keys:
        shown = [
            example(dataset, {"key": key, **images[name].loc[key]}, run.map(name, key)).panels for name in segmenters
        ]
        rows.append([*shown[0][:2], *(panels[2] for panels in shown)])
    return rows


def sheet(headings: Sequence[str], rows: Sequence[Sequence[Panel]], side: int) -> Image.Image:
    """Rows of panels under their headings, each in a field of side x side pixels, which it fills in its own shape."""
    step = side + _MARGIN
    made = Image.new("RGB", (len(headings) * step + _MARGIN, _LINE + len(rows) * step + _MARGIN), "white")
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(max(9, round(side / 12)))
    for column, heading in enumerate(headings):
        draw.text((_MARGIN + column * step + side / 2, _LINE / 2 + 2), heading, "black", font, anchor="mm")
    for index, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            corner = (_MARGIN + column * step, _LINE + _MARGIN + index * step)
            if panel.image:
                picture = ImageOps.contain(panel.image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
                left, top = ((side - length) // 2 for length in picture.size)
                made.paste(picture, (corner[0] + left, corner[1] + top))
            else:
                draw.text(corner, panel.error[:30], "black", font)
    return made


def _chosen(there: Sequence[str], wanted: str | None, what: str) -> list[str]:
    """Those of a list, separated by commas, that there are; None: all."""
    names = list(there) if wanted is None else [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in there:
            raise UserError(f"the run has no {what} {name!r}{did_you_mean(name, list(there))}")
    return names


def command(dataset_of: Callable[[Run, str, Sequence[str]], Dataset]) -> typer.Typer:
    """The command line. dataset_of: (run, its data set's name, overrides) -> the data set."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def run(
        run: Annotated[Path, typer.Argument(help="Folder of a scored run.")],
        data: Annotated[
            list[str] | None, typer.Argument(help="Where the data is: dataset.root=DIR and such.", show_default=False)
        ] = None,
        keys: Annotated[str | None, typer.Option(help="Images, separated by commas. (default: the first)")] = None,
        count: Annotated[int, typer.Option(min=1, help="How many images, where none are named.")] = 8,
        segmenters: Annotated[str | None, typer.Option(help="Methods, separated by commas. (default: all)")] = None,
        side: Annotated[int, typer.Option(min=32, max=1024, help="Pixels a side of each picture.")] = 160,
        out: Annotated[Path | None, typer.Option(help="Picture to write. (default: RUN/gallery.jpg)")] = None,
    ) -> None:
        """Draws the same images under every method of a run, in the colours of the classes that segments match.

        Photos without labels are drawn under their segments.
        """
        found = find_run(run)
        dataset = dataset_of(found, name_of_data(found), data or [])
        names = _chosen(found.segmenters, segmenters, "method")
        if dataset.labelled:
            heads, there = ["photo", "truth"], list(read_counts(found, names[0])[0]["key"])
        else:
            heads, there = ["photo"], list(dataset.keys)
        chosen = there[:count] if keys is None else _chosen(there, keys, "image")
        path = out or run / "gallery.jpg"
        save(sheet([*heads, *names], rows_of(found, dataset, chosen, names), side), path)
        typer.echo(path)

    return app
