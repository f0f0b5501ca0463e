"""Two runs on the same images: `diffseg-eval compare RUN_A RUN_B`. Differences, their certainty, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from diffseg.datasets.base import DataError, Dataset, read_map
from diffseg.errors import UserError
from diffseg.eval.metrics import agreement, paired_intervals
from diffseg.eval.protocols import OneToOne
from diffseg.eval.runs import Run, find_run
from diffseg.eval.score import image_scores, read_counts, read_summary
from diffseg.eval.show.examples import example
from diffseg.files import write

_SHOWN = 4  # images that gained most, and as many that lost most
_MARGIN, _LINE = 8, 18  # pixels


@dataclass(frozen=True)
class Side:
    """One of the two: a segmenter of a scored run. images: see `image_scores`."""

    run: Run
    segmenter: str
    images: pd.DataFrame

    @property
    def name(self) -> str:
        """For tables: run and segmenter."""
        return f"{self.run.name} · {self.segmenter}"


def side(folder: Path, segmenter: str | None, score_size: int | None = None) -> Side:
    """A run's segmenter; None: the only one, or the first.

    Raises:
        UserError: no run there, no such segmenter, not scored yet.
    """
    run = find_run(folder, score_size)
    name = segmenter or run.segmenters[0]
    if name not in run.segmenters:
        raise UserError(f"the run {folder} has no segmenter {name!r}, but {', '.join(run.segmenters)}")
    counts = read_counts(run, name)[0]
    if "rows" in counts:
        raise UserError(f"{folder} is of regions without classes, and runs are compared by classes: see its report")
    return Side(run, name, image_scores(counts, OneToOne()))


def pair(a: Side, b: Side) -> pd.DataFrame:
    """The images that both have, in one order: the columns of `image_scores` with suffixes _a and _b.

    Raises:
        UserError: no image in common, or labels that are not the same.
    """
    both = a.images.merge(b.images, on="key", suffixes=("_a", "_b"))
    if both.empty:
        raise UserError(f"{a.run.folder} and {b.run.folder} have no image in common: compare runs of one data set")
    seeds = [run.identity["dataset"].get("seed") for run in (a.run, b.run)]
    if seeds[0] != seeds[1]:
        raise UserError(
            f"{a.run.folder} and {b.run.folder} cannot be compared: "
            "scenes of different seeds are other pictures of the same names"
        )
    if (both["pixels_a"] != both["pixels_b"]).any():
        raise UserError(f"{a.run.folder} and {b.run.folder} were scored against different labels or at different sizes")
    return both


def compare(a: Side, b: Side) -> tuple[pd.DataFrame, dict[str, dict]]:
    """The common images by falling gain in accuracy (column "gain", b - a), and `paired_intervals` of b against a."""
    both = pair(a, b)
    rule = OneToOne()
    first, second = (rule.statistics(list(both[f"table_{which}"])) for which in ("a", "b"))
    gain = both["accuracy_b"] - both["accuracy_a"]
    by_gain = both.assign(gain=gain).sort_values("gain", ascending=False, kind="stable")
    return by_gain, paired_intervals(first, second, rule.metrics)


def agreements(both: pd.DataFrame, a: Side, b: Side) -> pd.Series:
    """Share of pixels on which a and b give the same segments, whatever their numbers, by key; worst first.

    Images whose maps are no longer there, or of different sizes, are left out.
    """
    found = {}
    for key in both["key"]:
        try:
            first, second = (read_map(s.run.map(s.segmenter, key)) for s in (a, b))
        except (DataError, OSError):
            continue
        if first.shape == second.shape:
            found[key] = agreement(first, second)
    return pd.Series(found, dtype=float).sort_values()


def sheet(dataset: Dataset, rows: pd.DataFrame, a: Side, b: Side) -> Image.Image:
    """Photo, truth, a's and b's prediction of each row; segments in the colour of the class they were matched to."""
    lines = []
    for row in rows.to_dict("records"):
        panels = []
        for which, suffix in ((a, "_a"), (b, "_b")):
            own = {"key": row["key"]} | {k.removesuffix(suffix): v for k, v in row.items() if k.endswith(suffix)}
            path = which.run.map(which.segmenter, row["key"])
            panels.append(example(dataset, own, path).panels)
        text = (
            f"{row['key']}   accuracy {100 * row['accuracy_a']:.1f} -> {100 * row['accuracy_b']:.1f} %   "
            f"photo | truth | A, {row['segments_a']} segments | B, {row['segments_b']} segments"
        )
        lines.append((text, [*panels[0], panels[1][2]]))
    side_px = next((p.image.width for _, shown in lines for p in shown if p.image), 320)
    height = _LINE + side_px + _MARGIN
    made = Image.new("RGB", (4 * (side_px + _MARGIN) + _MARGIN, len(lines) * height + _MARGIN), "white")
    draw = ImageDraw.Draw(made)
    for i, (text, shown) in enumerate(lines):
        draw.text((_MARGIN, i * height + _MARGIN), text, "black")
        for j, panel in enumerate(shown):
            corner = (_MARGIN + j * (side_px + _MARGIN), i * height + _LINE + _MARGIN)
            if panel.image:
                made.paste(panel.image, corner)
            else:
                draw.text(corner, panel.error[:50], "black")
    return made


def table(both: pd.DataFrame, found: dict[str, dict]) -> Table:
    """The comparison for the terminal, in percentage points."""
    shown = Table(
        "", "difference", "95 % interval", "p", title=f"B - A on {len(both)} common images, points, protocol diffseg"
    )
    for name, row in found.items():
        low, high = row["interval"]
        label = "mIoU" if name == "miou" else name
        shown.add_row(
            label, f"{100 * row['difference']:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}", f"{row['p']:.4f}"
        )
    return shown


def command(dataset_of: Callable[[Run, str, Sequence[str]], Dataset]) -> typer.Typer:
    """The command line. dataset_of: (run, its data set's name, overrides) -> the data set."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def run(
        run_a: Annotated[Path, typer.Argument(help="Folder of the run to compare with.")],
        run_b: Annotated[Path, typer.Argument(help="Folder of the run to judge.")],
        data: Annotated[
            list[str] | None, typer.Argument(help="Where the data is, for the pictures: dataset.root=DIR and such.")
        ] = None,
        a: Annotated[str | None, typer.Option(help="Segmenter of RUN_A. (default: its first)")] = None,
        b: Annotated[str | None, typer.Option(help="Segmenter of RUN_B. (default: its first)")] = None,
        score_size: Annotated[int | None, typer.Option(help="Of runs scored at this size.")] = None,
        out: Annotated[Path | None, typer.Option(help="Picture to write. (default: RUN_B/compare.png)")] = None,
    ) -> None:
        """Paired differences over the common images, and a picture of the images that changed most."""
        first, second = side(run_a, a, score_size), side(run_b, b, score_size)
        both, found = compare(first, second)
        console = Console()
        console.print(f"A: {first.name}\nB: {second.name}", highlight=False)
        console.print(table(both, found))
        same = agreements(both, first, second)
        if len(same):
            least = "" if same.iloc[0] == 1 else f"; least in {same.index[0]}: {100 * same.iloc[0]:.2f} %"
            console.print(
                f"pixels in the same segment, numbers matched one to one: {100 * same.mean():.2f} %{least}; "
                f"images without any difference: {(same == 1).sum()} of {len(same)}",
                highlight=False,
            )
        changed = both[both["gain"] != 0]
        shown = pd.concat([changed.head(_SHOWN), changed.tail(_SHOWN)]).drop_duplicates("key")
        if shown.empty:
            console.print("no image changed")
            return
        path = out or run_b / "compare.png"
        name = read_summary(second.run)["dataset"]["name"]
        try:
            dataset = dataset_of(second.run, name, data or [])
        except UserError as error:
            if out or data:
                raise
            console.print(f"no pictures: {error}", highlight=False)
            return
        picture = sheet(dataset, shown, first, second)
        write(path, lambda file: picture.save(file, "PNG"))
        console.print(f"{len(changed)} images changed; the {len(shown)} that changed most: {path}", highlight=False)

    return app
