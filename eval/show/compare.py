"""Two runs on the same images: `diffseg-eval compare RUN_A RUN_B`. Differences, their certainty, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from diffseg.eval.score import image_scores, name_of_data, read_counts
from diffseg.eval.show.examples import SIDE, Panel, example, unlabelled_example
from diffseg.files import write

_SHOWN = 4  # images that gained most, and as many that lost most
_MARGIN, _LINE = 8, 18  # pixels

Line = tuple[str, Sequence[Panel]]  # of the picture: what stands above, and the panels


@dataclass(frozen=True)
class Side:
    """One of the two: a segmenter of a run.

    keys: the images that there are counts or else label maps of. images: see `image_scores`; None: there are no scores
    by classes.
    """

    run: Run
    segmenter: str
    keys: Sequence[str]
    images: pd.DataFrame | None

    @property
    def name(self) -> str:
        """For tables: run and segmenter."""
        return f"{self.run.name} · {self.segmenter}"


def side(folder: Path, segmenter: str | None, score_size: int | None = None) -> Side:
    """A run's segmenter; None: the only one, or the first.

    Raises:
        UserError: no run there, no such segmenter, scores that are damaged.
    """
    run = find_run(folder, score_size)
    name = segmenter or run.segmenters[0]
    if name not in run.segmenters:
        raise UserError(f"the run {folder} has no segmenter {name!r}, but {', '.join(run.segmenters)}")
    if not (run.images(name).exists() or run.summary.exists() or run.masks):
        maps = run.folder / name / "labels"
        keys = sorted(path.relative_to(maps).as_posix().removesuffix(".png") for path in maps.rglob("*.png"))
        return Side(run, name, keys, None)
    counts = read_counts(run, name)[0]
    by_classes = "rows" not in counts  # of regions, there are no classes to match
    return Side(run, name, list(counts["key"]), image_scores(counts, OneToOne()) if by_classes else None)


def _check_seeds(a: Side, b: Side) -> None:
    """Refuses scenes of different seeds."""
    seeds = [run.identity["dataset"].get("seed") for run in (a.run, b.run)]
    if seeds[0] != seeds[1]:
        raise UserError(
            f"{a.run.folder} and {b.run.folder} cannot be compared: "
            "scenes of different seeds are other pictures of the same names"
        )


def common_keys(a: Side, b: Side) -> list[str]:
    """The images that both have.

    Raises:
        UserError: there is none.
    """
    known = set(b.keys)
    keys = [key for key in a.keys if key in known]
    if not keys:
        raise UserError(f"{a.run.folder} and {b.run.folder} have no image in common: compare runs of one data set")
    _check_seeds(a, b)
    return keys


def pair(a: Side, b: Side) -> pd.DataFrame:
    """The images that both have, in one order: the columns of `image_scores` with suffixes _a and _b.

    Raises:
        UserError: no image in common, or labels that are not the same.
    """
    assert a.images is not None
    assert b.images is not None
    both = a.images.merge(b.images, on="key", suffixes=("_a", "_b"))
    if both.empty:
        raise UserError(f"{a.run.folder} and {b.run.folder} have no image in common: compare runs of one data set")
    _check_seeds(a, b)
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


def agreements(keys: Iterable[str], a: Side, b: Side) -> pd.Series:
    """Share of pixels on which a and b give the same segments, whatever their numbers, by key; worst first.

    Images whose maps are no longer there, or of different sizes, are left out.
    """
    found = {}
    for key in keys:
        try:
            first, second = (read_map(s.run.map(s.segmenter, key)) for s in (a, b))
        except (DataError, OSError):
            continue
        if first.shape == second.shape:
            found[key] = agreement(first, second)
    return pd.Series(found, dtype=float).sort_values()


def scored_lines(dataset: Dataset, rows: pd.DataFrame, a: Side, b: Side) -> list[Line]:
    """Photo, truth, a's and b's prediction of each row; segments in the colour of the class they were matched to."""
    lines: list[Line] = []
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
        lines.append((text, [*panels[0][:3], panels[1][2]]))
    return lines


def plain_lines(dataset: Dataset, same: Mapping[str, float], a: Side, b: Side) -> list[Line]:
    """Photo, a's and b's segments of each image. same: the share of pixels in the same segment by key."""
    lines: list[Line] = []
    for key, share in same.items():
        shown = [unlabelled_example(dataset, {"key": key}, which.run.map(which.segmenter, key)) for which in (a, b)]
        text = f"{key}   {100 * share:.1f} % in the same segment   photo | A | B"
        lines.append((text, [*shown[0].panels, shown[1].panels[1]]))
    return lines


def sheet(lines: Sequence[Line]) -> Image.Image:
    """Lines of panels below each other, each under its text."""
    sizes = [panel.image.size for _, shown in lines for panel in shown if panel.image] or [(SIDE, SIDE)]
    side_px, most_px = map(max, zip(*sizes, strict=True))  # width, height
    height = _LINE + most_px + _MARGIN
    columns = max(len(shown) for _, shown in lines)
    made = Image.new("RGB", (columns * (side_px + _MARGIN) + _MARGIN, len(lines) * height + _MARGIN), "white")
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
        """Paired differences over the common images, and a picture of the images that changed most.

        Without scores, label maps alone are compared: the share of pixels in the same segment.
        """
        first, second = side(run_a, a, score_size), side(run_b, b, score_size)
        console = Console()
        console.print(f"A: {first.name}\nB: {second.name}", highlight=False)
        both = None
        if first.images is None or second.images is None:
            keys = common_keys(first, second)
            console.print(f"{len(keys)} common images, by their label maps alone: there are no scores by classes")
        else:
            both, found = compare(first, second)
            keys = list(both["key"])
            console.print(table(both, found))
        same = agreements(keys, first, second)
        if len(same):
            least = "" if same.iloc[0] == 1 else f"; least in {same.index[0]}: {100 * same.iloc[0]:.2f} %"
            console.print(
                f"pixels in the same segment, numbers matched one to one: {100 * same.mean():.2f} %{least}; "
                f"images without any difference: {(same == 1).sum()} of {len(same)}",
                highlight=False,
            )
        changed = same[same < 1] if both is None else both[both["gain"] != 0]
        if not len(changed):
            console.print("no image changed")
            return
        path = out or run_b / "compare.png"
        try:
            dataset = dataset_of(second.run, name_of_data(second.run), data or [])
        except UserError as error:
            if out or data:
                raise
            console.print(f"no pictures: {error}", highlight=False)
            return
        if isinstance(changed, pd.Series):
            lines = plain_lines(dataset, changed.head(2 * _SHOWN), first, second)
        else:
            shown = pd.concat([changed.head(_SHOWN), changed.tail(_SHOWN)]).drop_duplicates("key")
            lines = scored_lines(dataset, shown, first, second)
        picture = sheet(lines)
        write(path, lambda file: picture.save(file, "PNG"))
        console.print(f"{len(changed)} images changed; the {len(lines)} that changed most: {path}", highlight=False)

    return app
