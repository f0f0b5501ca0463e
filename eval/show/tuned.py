"""What `diffseg tune` does and says: thresholds tried on photos; table, curves and contact sheet; a preset."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffseg import __version__, presets
from diffseg.errors import UserError, printable
from diffseg.eval.show.drawing import contact_sheet, save, threshold_curves
from diffseg.eval.tune import (
    DRAWS,
    FEW,
    NO_LABELS,
    Scores,
    Trial,
    Tuning,
    as_threshold,
    check_shape,
    choose,
    label_files,
    marks,
    photo_count,
    read_labels,
    sheet_names,
    thresholds_around,
    try_thresholds,
)
from diffseg.files import write
from diffseg.images import ImageError, load_image
from diffseg.methods.merging import Settings
from diffseg.segmenter import DiffSeg


@dataclass(frozen=True)
class Request:
    """What is asked of a folder of photos.

    photos: by the names of their results. labels: folder of label maps; ignore: their value that is not scored.
    thresholds: to try. choice: what to keep. name: of the preset to keep it as. iterations: as asked for. revision: of
    the model.
    """

    folder: Path
    photos: Mapping[str, Path]
    labels: Path | None = None
    ignore: int = 255
    thresholds: Sequence[float] | None = None
    choice: str | None = None
    name: str | None = None
    iterations: int | None = None
    revision: str | None = None


def run(request: Request, out: Path, load: Callable[[], tuple[DiffSeg, Settings]]) -> bool:
    """All of it; what is wrong with the request is found before the model is loaded.

    Args:
        out: folder for tune.csv, tune.svg and sheet.jpg. load: gives the model and its settings.

    Returns:
        Whether every photo could be used.

    Raises:
        UserError: something is wrong with the request, a label map, or all photos. OSError: a file cannot be written.
    """
    _check(request)
    files = label_files(request.photos, request.labels)
    truths, classes = read_labels(files, request.ignore)
    seg, settings = load()
    eye = as_threshold(request.choice)
    if eye is not None and not truths:  # what was decided needs no pass
        why = f"chosen by eye for {photo_count(len(request.photos))}"
        _keep(request, seg, settings, eye, why)
        return True
    trial = Trial(
        thresholds_around(settings.threshold[0], request.thresholds),
        settings.threshold[0],
        sheet_names(list(request.photos)),
        classes,
    )
    skipped = _try_all(trial, request, seg, settings, files, truths)
    if len(skipped) == len(request.photos):
        raise UserError("none of the photos could be used")
    tuning = trial.result()
    _write(tuning, out)
    _tell(tuning, out)
    if request.name is not None:
        _keep(request, seg, settings, *choose(tuning, request.choice))
    return not skipped


def _check(request: Request) -> None:
    """Raises UserError where the request contradicts itself, or there are no photos."""
    if not request.folder.exists():
        raise UserError(f"there is no folder {request.folder}: name one with photos")
    if request.choice is not None and request.name is None:
        raise UserError("--choose says which threshold --save NAME keeps: give both, or leave both out")
    for tau in request.thresholds or ():
        Settings.make(tau)
    if request.name is not None:
        presets.check_name(request.name)
        if as_threshold(request.choice) is None and request.labels is None:
            raise UserError(NO_LABELS)


def _try_all(
    trial: Trial,
    request: Request,
    seg: DiffSeg,
    settings: Settings,
    files: Mapping[str, Path],
    truths: Mapping[str, np.ndarray],
) -> list[Path]:
    """Shows all photos to the model; returns those that cannot be read."""
    skipped: list[Path] = []
    screen = Console(stderr=True)
    typer.echo(f"trying {len(trial.thresholds)} thresholds on {photo_count(len(request.photos))}", err=True)
    photos = track(request.photos.items(), "trying", console=screen, transient=True, disable=not screen.is_terminal)
    for name, path in photos:
        try:
            photo = load_image(path)
        except ImageError as error:
            skipped.append(path)
            typer.echo(f"skipped {error}", err=True)
            continue
        truth = truths.get(name)
        check_shape(photo, truth, files.get(name))
        trial.add(name, photo, try_thresholds(seg, photo, settings, trial.thresholds), truth)
    return skipped


def _write(tuning: Tuning, out: Path) -> None:
    write(out / "tune.csv", as_csv(tuning))
    save(threshold_curves(tuning), out / "tune.svg")
    if tuning.strips:
        save(contact_sheet(tuning), out / "sheet.jpg")


def _tell(tuning: Tuning, out: Path) -> None:
    """The table and what it says, on the screen."""
    heads, rows = table_of(tuning)
    table = Table(box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if "best" in row[-1] else None)
    Console().print(table)
    for sentence in sentences(tuning):
        typer.echo(sentence)
    typer.echo(f"table, curves and contact sheet -> {printable(out)}")


def _keep(request: Request, seg: DiffSeg, settings: Settings, tau: float, why: str) -> None:
    """Keeps a threshold as a preset, and says so."""
    options = {
        "threshold": tau,
        "anchors": settings.anchors,
        "iterations": request.iterations,
        "weights": None if settings.weights is None else list(settings.weights),
        "timestep": settings.timestep,
        "refine": settings.refine,
        "size": settings.size,
    }
    made = {
        "by": f"diffseg {__version__}",
        "date": date.today().isoformat(),
        "photos": f"{len(request.photos)} in {printable(request.folder.resolve())}",
        "why": why,
    }
    name = str(request.name)
    is_new = name not in presets.names()
    preset = presets.Preset(presets.named_model(seg.model.name), request.revision, options, made)
    path = presets.save(name, preset)
    typer.echo(f"{'kept as' if is_new else 'kept anew as'} preset {name}, tau {tau:g}: {why} -> {printable(path)}")


# --- tables and sentences ---------------------------------------------------------------------------------------------


def table_of(tuning: Tuning) -> tuple[list[str], list[list[str]]]:
    """The table for the screen: its heads, and a row for each threshold."""
    every, said, scores = np.stack(list(tuning.segments.values())), marks(tuning), tuning.scores
    heads = ["tau", "segments", *(["mIoU %", "accuracy %"] if scores else []), ""]
    table = []
    for i, tau in enumerate(tuning.thresholds):
        row = [f"{tau:g}", f"{tuning.median[i]:g} ({every[:, i].min()} to {every[:, i].max()})"]
        if scores:
            low, high = 100 * scores.miou_intervals[i]
            reach = "" if math.isnan(low) else f" ({low:.1f} to {high:.1f})"
            row += [f"{100 * scores.miou[i]:.1f}{reach}", f"{100 * scores.accuracy[i]:.1f}"]
        table.append([*row, said.get(i, "")])
    return heads, table


def as_csv(tuning: Tuning) -> str:
    """A row for each threshold: the median number of segments, scores where there are labels, then each photo's."""
    scores, file = tuning.scores, io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    scored = ["miou", "miou_low", "miou_high", "accuracy"] if scores else []
    table.writerow(["threshold", "mark", "median_segments", *scored, *tuning.segments])
    for i, tau in enumerate(tuning.thresholds):
        values = [scores.miou[i], *scores.miou_intervals[i], scores.accuracy[i]] if scores else []
        each = [segments[i] for segments in tuning.segments.values()]
        table.writerow([tau, marks(tuning).get(i, ""), tuning.median[i], *(f"{v:.6f}" for v in values), *each])
    return file.getvalue()


def sentences(tuning: Tuning) -> list[str]:
    """What the photos say of the thresholds, and how sure it is."""
    if tuning.scores is None:
        return _without_labels(tuning)
    scores, taus = tuning.scores, tuning.thresholds
    said = [
        f"best on {photo_count(scores.photos, 'labelled')}: tau {taus[scores.best]:g}, mIoU "
        f"{100 * scores.miou[scores.best]:.1f} % (by accuracy: tau {taus[scores.best_accuracy]:g})"
    ]
    if scores.between is None:
        return [*said, "one labelled photo says nothing of others: label some more before you rely on this"]
    low, high = scores.between
    said.append(
        f"how sure: with other photos of this kind the best would be {low:g} to {high:g} (95 % of {DRAWS:,} draws; in "
        f"{100 * scores.share:.0f} % of them it is this one)"
        if low < high
        else f"how sure: in 95 % of {DRAWS:,} draws of the photos it is this one"
    )
    if scores.fewest != scores.best:
        said.append(
            f"tau {taus[scores.fewest]:g} is within a standard error of it, with fewer segments (--choose fewest)"
        )
    if scores.best != tuning.default:
        said.append(_against_default(tuning, scores))
    if scores.photos < FEW:
        said.append(
            f"{scores.photos} labels are few: intervals of so few photos are rough themselves; {FEW} or more tell more"
        )
    return said + _at_the_end(tuning, scores.best)


def _against_default(tuning: Tuning, scores: Scores) -> str:
    low, high = (round(float(np.clip(100 * x, -100, 100)), 1) + 0.0 for x in scores.gain["interval"])  # never "-0.0"
    difference = round(100 * scores.gain["difference"], 1) + 0.0
    told = "" if low > 0 else ": these photos cannot tell the two apart"
    own = tuning.thresholds[tuning.default]
    above = f"{difference:.1f} points above" if difference else "as good as"
    return f"{above} the model's own tau {own:g} (95 %: {low:.1f} to {high:.1f}){told}"


def _at_the_end(tuning: Tuning, index: int) -> list[str]:
    """What to say where the best is the first or last of those tried."""
    if index not in (0, len(tuning.thresholds) - 1):
        return []
    end, side = ("smallest", "smaller") if index == 0 else ("largest", "larger")
    return [f"it is the {end} that was tried: try {side} ones, too (--thresholds)"]


def _without_labels(tuning: Tuning) -> list[str]:
    median = tuning.median
    count = median[tuning.default]
    own = f"the model's own tau {tuning.thresholds[tuning.default]:g} makes {count:g} segment{'s' * bool(count != 1)}"
    if median.max() <= 1:
        return [f"{own} (median), as all others do: try smaller thresholds (--thresholds)"]
    return [f"{own} (median); the contact sheet shows what others make: keep one with --choose TAU --save NAME"]
