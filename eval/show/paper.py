"""paper.html: the whole paper on one page that needs no network. How it looks is in paper.html beside this file.

A published number and a measured one are compared only where both are of the paper's model on exactly its images;
anything else is shown and called what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from diffseg.datasets.base import Dataset
from diffseg.errors import UserError
from diffseg.eval.check import check, references_of
from diffseg.eval.runs import Run, read_circumstances
from diffseg.eval.score import Summary
from diffseg.eval.show.ablations import Ablation, ablation_of, best_of, candidates, value_text
from diffseg.eval.show.gallery import rows_of, sheet
from diffseg.eval.show.pages import data_uri, environment, svg_of
from diffseg.eval.show.published import SOURCES, published_rows, published_settings
from diffseg.eval.show.tables import (
    BENCHMARKS,
    PAPER_BACKBONE,
    PAPER_METHODS,
    Shown,
    is_papers,
    markdown,
    metric_label,
    with_interval,
)
from diffseg.files import write

_METRICS = ("accuracy", "miou")
_USUAL = 512  # pixels a side at which the paper's label maps are made
_IN_GALLERY = 6  # images
_SIDE = 176  # pixels of a picture in it
_WIDEST = 1660  # pixels of a figure
_ROUNDING = 0.05  # points: published numbers have one decimal


@dataclass(frozen=True)
class Outcome:
    """What a step of the paper has come to.

    name, about, benchmark, is_table: as `diffseg.eval.paper.Step` has them. commands: as a user types them. dataset: of
    the run. summaries: by pixels a side at which they were scored, None: as predicted; {} where it failed. wrong: why
    it failed. taken_s: seconds that it took; None: it was not done in this call.
    """

    name: str
    about: str
    benchmark: str
    is_table: bool
    commands: list[str]
    run: Run
    dataset: Dataset
    summaries: dict[int | None, Summary] = field(default_factory=dict)
    wrong: str = ""
    taken_s: float | None = None

    @property
    def is_papers(self) -> bool:
        """Whether published numbers may be compared with this one's."""
        return all(is_papers(s, self.benchmark) and s["dataset"]["size"] == _USUAL for s in self.summaries.values())

    @property
    def data(self) -> str:
        """What it was run on: "scenes, 3 images", with the note on subsets and another size than the paper's."""
        if not self.summaries:
            return ""
        summary = next(iter(self.summaries.values()))
        facts = summary["dataset"]
        seen = "" if facts["size"] == _USUAL else f", seen at {facts['size']} pixels instead of {_USUAL}"
        return f"{facts['name']}, {summary['images']:,} images{seen}" + (f" ({facts['note']})" if facts["note"] else "")


# --- published beside measured ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A published number of the paper and, where one may be compared with it, the measured one; all in percent.

    size: pixels a side. low, high: ends of the 95 % interval over images.
    """

    benchmark: str
    method: str
    size: int
    metric: str
    published: float
    source: str
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def reproduces(self) -> bool | None:
        """Whether the published number lies in the interval of the measured one; None: there is none."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return self.low - _ROUNDING <= self.published <= self.high + _ROUNDING

    @property
    def verdict(self) -> str:
        """reproduces, or by how much it does not, or not run."""
        if self.value is None or self.reproduces is None or self.low is None or self.high is None:
            return "not run"
        if self.reproduces:
            return "reproduces"
        beyond = self.low - self.published if self.published < self.low else self.published - self.high
        return f"is off by {self.value - self.published:+.1f} points, {beyond:.1f} beyond the interval"

    @property
    def sentence(self) -> str:
        """The verdict with what it is about."""
        what = f"{self.method} on {title_of(self.benchmark)} at {self.size}, {metric_label(self.metric)}"
        measured = "" if self.value is None else f", measured {self.value:.1f} ({self.low:.1f} to {self.high:.1f})"
        return f"{what}: published {self.published:.1f} ({self.source}){measured}: {self.verdict}"


def title_of(benchmark: str) -> str:
    """COCO-Stuff-27, Cityscapes."""
    return BENCHMARKS[benchmark].partition(",")[0]


def _published_of(benchmark: str) -> list[dict[str, Any]]:
    """The rows of the paper's table of a data set: its own, and prior work's that it quotes."""
    return [row for row in published_rows() if row["dataset"] == benchmark and row["protocol"] not in (None, "diffcut")]


def _scores(outcome: Outcome, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What an outcome has measured for a published row: the same method and protocol, at its size."""
    name = next((name for name, method in PAPER_METHODS.items() if method == row["method"]), "")
    if row["backbone"] != PAPER_BACKBONE:
        return None
    summary = outcome.summaries.get(None if row["size"] == _USUAL else row["size"])
    return summary["protocols"].get(row["protocol"], {}).get(name) if summary else None


def numbers(outcomes: Sequence[Outcome]) -> list[Number]:
    """Every published number of the paper's own methods, on all its data sets, with ours where they may be compared."""
    found = []
    for benchmark in BENCHMARKS:
        whole = [o for o in outcomes if o.is_table and o.benchmark == benchmark and o.summaries and o.is_papers]
        for row in _published_of(benchmark):
            scores = next(filter(None, (_scores(o, row) for o in whole)), None)
            for metric in _METRICS if row["backbone"] == PAPER_BACKBONE else ():
                facts = (benchmark, row["method"], row["size"], metric, row[metric], row["source"])
                ends = scores["interval"][metric] if scores else (None, None)
                ours = [None if x is None else 100 * x for x in (scores[metric], *ends)] if scores else []
                if row[metric] is not None:
                    found.append(Number(*facts, *ours))
    return found


def compared(outcomes: Sequence[Outcome]) -> list[Number]:
    """`numbers`, where at least one of them was measured; else none, as there is nothing to say of them."""
    known = numbers(outcomes)
    return known if any(number.reproduces is not None for number in known) else []


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Does it reproduce? In a sentence."""
    known = compared(outcomes)
    measured = [number for number in known if number.reproduces is not None]
    if not known:
        done = [o for o in outcomes if o.is_table and o.summaries]
        what = f"{_model(outcomes)} on {'; '.join(o.data for o in done)}" if done else "other things"
        return (
            f"Whether the paper reproduces is not answered here: this is {what}. The published numbers are of Stable "
            f"Diffusion 1.4 on the whole of COCO-Stuff-27 and Cityscapes."
        )
    within = sum(bool(number.reproduces) for number in measured)
    answer = (
        "It reproduces" if within == len(measured) else "It reproduces in part" if within else "It does not reproduce"
    )
    rest = f" {len(known) - len(measured)} others were not run." if len(measured) < len(known) else ""
    return (
        f"{answer}: {within} of {len(measured)} published numbers lie in the 95 % interval of what was measured here."
        + rest
    )


def _model(outcomes: Sequence[Outcome]) -> str:
    return next((str(s["model"]) for o in outcomes for s in o.summaries.values()), "")


def tables(outcomes: Sequence[Outcome]) -> list[Shown]:
    """A table for each data set, published beside measured; differences only where both are of the same."""
    return [_table(outcome) for outcome in outcomes if outcome.is_table and outcome.summaries]


def _table(outcome: Outcome) -> Shown:
    cells = []
    for row in _published_of(outcome.benchmark):
        scores = _scores(outcome, row)
        backbone = f", {row['backbone']}" if row["backbone"] else ""
        line = [f"{row['method']}{backbone}", f"{row['protocol']}, {row['size']}"]
        for metric in _METRICS:
            published, measured = row[metric], scores[metric] if scores else None
            both = outcome.is_papers and published is not None and measured is not None
            line += [
                "–" if published is None else f"{published:.1f}",  # noqa: RUF001
                with_interval(measured, scores["interval"][metric], metric) if scores else "",
                f"{100 * measured - published:+.1f}" if both and measured is not None else "",
            ]
        cells.append([*line, row["source"]])
    of_metric = [f"{metric_label(m)}\n{what}" for m in _METRICS for what in ("published", "here", "difference")]
    headings = ["method", "protocol, size", *of_metric, "source"]
    if outcome.is_papers:
        caption = "Percent; here: with 95 % intervals over images; differences in points"
    else:
        here = f"{outcome.data}, {_model([outcome])}"
        caption = f"Not to be compared: published on {BENCHMARKS[outcome.benchmark]}, with SD 1.4; here {here}"
    return Shown(f"{title_of(outcome.benchmark)}: published, and measured here", headings, cells, caption)


_SETTINGS = {
    "R, weights of the resolutions": "weights",
    "t, time step": "timestep",
    "M, anchors a side": "anchors",
    "N, iterations": "iterations",
    "tau, threshold": "threshold",
    "refinement (k-means)": "refinement",
}


def settings_table(outcomes: Sequence[Outcome]) -> Shown:
    """The paper's hyper-parameters beside those of each table's run."""
    published, done = published_settings(), [o for o in outcomes if o.is_table and o.summaries]
    cells = []
    for label, key in _SETTINGS.items():
        line = [label]
        for outcome in done:
            summary = next(iter(outcome.summaries.values()))
            used = {**summary["segmenters"]["diffseg"]["settings"], "timestep": summary["timestep"]}
            used["refinement"] = used["refine"]
            of_paper = published[key][outcome.benchmark] if key == "threshold" else published[key]
            line += ["proportional" if value is None else value_text(value) for value in (of_paper, used[key])]
        cells.append(line)
    headings = ["", *(f"{title_of(o.benchmark)}\n{what}" for o in done for what in ("published", "here"))]
    return Shown("Hyper-parameters of DiffSeg", headings, cells, "Where a model recommends its own, that is used")


@dataclass(frozen=True)
class Gate:
    """A reference beside the run that it speaks of. rows: see `check`. problem: why it could not be compared."""

    name: str
    rows: pd.DataFrame
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether every metric is within its tolerance."""
        return not self.problem and bool(self.rows["ok"].all())

    @property
    def sentence(self) -> str:
        """The gate's verdict."""
        if self.problem:
            return f"gate {self.name}: {self.problem}"
        parts = [
            f"{row.segmenter} {metric_label(row.metric)} {row.found:.4f}, expected {row.expected:.4f} within "
            f"{row.tolerance:g}"
            for row in self.rows.itertuples(index=False)
        ]
        return f"gate {self.name}: {'holds' if self.holds else 'does not hold'} ({'; '.join(parts)})"


def gates(outcomes: Sequence[Outcome]) -> list[Gate]:
    """The references that there are for the tables' runs, with what `check` says of them."""
    found = []
    for outcome in outcomes:
        if not outcome.is_table or None not in outcome.summaries:
            continue
        for name, reference in references_of(outcome.summaries[None]).items():
            try:
                found.append(Gate(name, check(outcome.summaries[None], reference)))
            except UserError as error:
                found.append(Gate(name, pd.DataFrame(), str(error)))
    return found


# --- ablations, names, pictures ---------------------------------------------------------------------------------------


def ablations_in(outcome: Outcome) -> list[Ablation]:
    """The ablations that a run is, one for each method that it tried in several settings."""
    found = []
    for summary in outcome.summaries.values():
        by_name = dict(zip(summary["segmenters"], candidates(summary), strict=True))
        for curves in summary["granularity"].values():
            tried = next(iter(curves.values()))["settings"]
            made = ablation_of([one for name, one in by_name.items() if name in tried])
            if isinstance(made, Ablation):
                found.append(made)
    return found


def names_table(outcome: Outcome) -> Shown:
    """Semantic DiffSeg under the protocol names, beside the same segments matched with the truth."""
    summary = next(iter(outcome.summaries.values()))
    cells = []
    for name, rule, what in (
        ("naming", "names", "segments have the names that were found for them"),
        ("naming", "diffseg", "the same segments, matched with the truth instead"),
        ("diffseg", "diffseg", "before naming joins segments of one name"),
    ):
        scores = summary["protocols"].get(rule, {}).get(name)
        if scores:
            metrics = [with_interval(scores[m], scores["interval"][m], m) for m in _METRICS]
            cells.append([f"{name}, {rule}", *metrics, what])
    headings = ["method, protocol", *(f"{metric_label(m)} %" for m in _METRICS), ""]
    return Shown("Semantic DiffSeg", headings, cells, "No number of it is published, so there is none to compare with")


def gallery_of(outcome: Outcome) -> Image.Image:
    """The run's first images under every method."""
    keys, methods = outcome.dataset.keys[:_IN_GALLERY], list(outcome.run.segmenters)
    rows = rows_of(outcome.run, outcome.dataset, keys, methods)
    return sheet(["photo", "truth", *(PAPER_METHODS.get(name, name) for name in methods)], rows, _SIDE)


_CAPTIONS = {
    "overview": "How DiffSeg sees one image: attention of some anchors, their aggregation and merging.",
    "weights": "The effect of R: attention of all resolutions together, and of each alone.",
    "named": "Semantic DiffSeg: the nouns of the caption, each segment with the one that it attends to most.",
}


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """(address, caption) of the figures in a folder, as JPEG inside the address."""
    pictures = []
    for name, caption in _CAPTIONS.items():
        for path in sorted(folder.glob(f"{name}.*")):
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            picture.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
            pictures.append((data_uri(picture, "jpeg"), caption))
    return pictures


def _by_data(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """The names of steps by what they were run on."""
    names: dict[str, list[str]] = {}
    for outcome in outcomes:
        names.setdefault(outcome.data, []).append(outcome.name)
    return names


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(
    out: Path, outcomes: Sequence[Outcome], missing: Mapping[str, Sequence[str]], failed: Mapping[str, str]
) -> Path:
    """Writes paper.html and each table as .md and .csv into a folder; returns the page's path.

    Args:
        out: the folder; figures of the method are in out/figures. outcomes: of all steps. missing: {what is missing:
            steps that it kept from being done}. failed: {step: why}.

    Raises:
        UserError: no step has a result, or a run's files are damaged. OSError: the page cannot be written.
    """
    done = [o for o in outcomes if o.summaries]
    if not done:
        raise UserError("no step has a result, so there is nothing to show")
    shown = tables(outcomes)
    by_name = {o.name: o for o in done}
    ablations = [a for o in done if not o.is_table and o.name != "naming" for a in ablations_in(o)]
    first = done[0]
    page = (
        environment()
        .get_template("paper.html")
        .render(
            model=_model(done),
            verdict=verdict(outcomes),
            numbers=compared(outcomes),
            outcomes=outcomes,
            tables=[(table, o) for table, o in zip(shown, (o for o in done if o.is_table), strict=True)],
            gates=gates(outcomes),
            settings=settings_table(outcomes) if shown else None,
            ablations=[(a.label, svg_of("drawn", a), best_of(a)) for a in ablations],
            names=names_table(by_name["naming"]) if "naming" in by_name else None,
            galleries=[(o.data, data_uri(gallery_of(o), "jpeg")) for o in done if o.is_table],
            pictures=_pictures(out / "figures"),
            others=_by_data([o for o in done if not o.is_papers]),
            stands_in=any(
                o.summaries and next(iter(o.summaries.values()))["dataset"]["name"] == "scenes" for o in done
            ),
            missing=missing,
            failed=failed,
            sources=SOURCES,
            record=read_circumstances(first.run),
        )
    )
    for table, outcome in zip(shown, (o for o in done if o.is_table), strict=True):
        rows = pd.DataFrame(table.cells, columns=[h.replace("\n", " ") for h in table.headings])
        rows = rows.map(lambda cell: cell.replace("\n", " "))
        write(out / f"{outcome.name}.md", f"# {table.title}\n\n{table.caption}.\n\n{markdown(rows)}")
        write(out / f"{outcome.name}.csv", rows.to_csv(index=False))
    write(out / "paper.html", page)
    return out / "paper.html"
