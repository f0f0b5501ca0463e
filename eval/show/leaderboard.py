"""All runs in one page: data set x method x backbone, under every protocol. `diffseg-eval leaderboard [FOLDER...]`.

Every number is concluded anew from a run's counts, so a folder with summary.json and METHOD/images.parquet is enough,
wherever it was made. Methods whose differences are within the noise share a group. Published rows stand beside
measured ones of their own data set, protocol and size alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from diffseg.datasets.base import DataError
from diffseg.errors import UserError
from diffseg.eval.metrics import Statistics, intervals, paired_intervals
from diffseg.eval.progress import say
from diffseg.eval.protocols import Protocol
from diffseg.eval.runs import Run
from diffseg.eval.score import Summary, counts_for, known_protocols, read_counts, summary_of, tables_of
from diffseg.eval.show.pages import environment
from diffseg.eval.show.published import SOURCES, published_beside
from diffseg.eval.show.tables import markdown
from diffseg.eval.show.worth import metric_label
from diffseg.files import write

LEVEL = 0.05  # of the test that tells groups apart


@dataclass(frozen=True)
class Entry:
    """One method of one run, with what it was counted to have got right. images: as `read_counts` gives them."""

    run: Run
    summary: Summary
    method: str
    images: pd.DataFrame

    @property
    def data(self) -> str:
        """What it was measured on, for people: name, part, number of images, size in pixels."""
        facts = self.summary["dataset"]
        part = f" ({facts['note']})" if facts["note"] else ""
        return f"{facts['name']}, {len(self.images):,} images{part}, {self.summary['size'] or 'whole'} px"

    @property
    def truth(self) -> str:
        """Hash of the images and of how many pixels of each class they have: entries of one are of the same data."""
        several = (table if isinstance(table, list) else [table] for table in tables_of(self.images))
        pixels = [[table.sum(1).tolist() for table in tables] for tables in several]  # one for each annotation
        facts = [list(self.images["key"]), pixels, self.summary["dataset"]["classes"]]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def background(self) -> int | None:
        """The index of the class that the data set calls background."""
        classes = self.summary["dataset"]["classes"]
        return classes.index("background") if "background" in classes else None

    def statistics(self, protocol: Protocol) -> dict[str, np.ndarray]:
        """What the protocol counts in each image."""
        return protocol.statistics(counts_for(self.images, protocol), self.background)


@dataclass(frozen=True)
class Row:
    """One line of a board. value, low, high: of the metric, fractions. group: 1 for the best and all that do not differ
    from it beyond chance, and so on; None: published, so that no image is known. link: to the run's report."""

    method: str
    backbone: str
    value: float
    low: float | None
    high: float | None
    segments: float | None
    group: int | None
    note: str
    link: str


@dataclass(frozen=True)
class Board:
    """The rows of one data set under one protocol, best first."""

    data: str
    protocol: str
    metric: str
    rows: tuple[Row, ...]


# --- reading ----------------------------------------------------------------------------------------------------------


def entries_in(folders: Sequence[Path]) -> list[Entry]:
    """The methods of all scored runs in folders, which are runs themselves or hold some; damaged ones are named.

    Of runs of the same method, settings, model and data, the latest.
    """
    latest: dict[tuple[str, ...], Entry] = {}
    for path in sorted(_summaries(folders), key=lambda p: p.stat().st_mtime):
        try:
            for entry in _entries_of(path):
                facts = entry.summary
                settings = json.dumps(facts["segmenters"][entry.method]["settings"], sort_keys=True)
                made_by = (entry.method, settings, str(facts["model"]), str(facts["timestep"]))
                latest[(entry.truth, str(facts["size"]), *made_by)] = entry
        except DataError as error:
            say(f"leaderboard: left out: {error}")
    return list(latest.values())


def _summaries(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name folders of runs, or runs")
        yield from {*folder.glob("summary*.json"), *folder.glob("*/summary*.json")}


def _entries_of(path: Path) -> Iterator[Entry]:
    summary = summary_of(path)
    size = summary["size"] if summary["size"] != summary["dataset"]["size"] else None
    run = Run(path.parent, {}, tuple(summary["segmenters"]), size)
    for method in run.segmenters:
        yield Entry(run, summary, method, read_counts(run, method)[0])


# --- boards -----------------------------------------------------------------------------------------------------------


def boards_of(entries: Sequence[Entry], out: Path, protocols: Mapping[str, Protocol] | None = None) -> list[Board]:
    """A board for each data set and each protocol that one of its runs was scored under.

    Args:
        out: folder of the page, which links are relative to. protocols: by name; None: those of conf/protocol.
    """
    rules = known_protocols() if protocols is None else protocols
    same: dict[str, list[Entry]] = {}
    for entry in entries:
        same.setdefault(f"{entry.truth} {entry.summary['size']}", []).append(entry)
    boards = []
    for alike in same.values():
        asked = dict.fromkeys(rule for entry in alike for rule in entry.summary["protocols"])
        for rule in asked:
            if rule not in rules:
                say(f"leaderboard: left out: the protocol {rule}, which is not one of {', '.join(rules)}")
                continue
            counted = [e for e in alike if rules[rule].counts in ("pixels", *e.images.columns)]
            if rules[rule].needs_names:
                counted = [e for e in counted if _may_name(e.summary["segmenters"][e.method]["settings"])]
            if counted:
                boards.append(_board(counted, rule, rules[rule], out))
    return boards


def _may_name(settings: Mapping[str, Any]) -> bool:
    """Whether labels made so may be numbers of classes: those of this project's methods are, where they name."""
    target = str(settings.get("_target_", ""))
    if not target.startswith("diffseg.methods."):
        return True
    inner = settings.get("of")
    return target.endswith(".Naming") or (
        isinstance(inner, Mapping) and target.endswith(".Refined") and _may_name(inner)
    )


def _board(entries: Sequence[Entry], rule: str, protocol: Protocol, out: Path) -> Board:
    statistics = [entry.statistics(protocol) for entry in entries]
    metrics = [protocol.metrics({name: rows.sum(0, keepdims=True) for name, rows in s.items()}) for s in statistics]
    metric = protocol.headline if protocol.headline in metrics[0] else next(iter(metrics[0]))
    values = [float(found[metric][0]) for found in metrics]

    def alone(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {metric: protocol.metrics(sums)[metric]}

    order = sorted(range(len(entries)), key=lambda i: (np.isnan(values[i]), -values[i]))
    groups = groups_of([statistics[i] for i in order], alone)
    rows = []
    for place, i in enumerate(order):
        low, high = intervals(statistics[i], alone, bounds=protocol.bounds)[metric]
        rows.append(_row(entries[i], values[i], low, high, groups[place], out))
    facts = entries[0].summary["dataset"]
    is_whole = not facts["note"] and not entries[0].summary["skipped"]
    beside = published_beside(facts["published"], rule, entries[0].summary["size"]) if is_whole else []
    rows += [_published(row, metric) for row in beside if row.get(metric) is not None]
    rows.sort(key=lambda row: (np.isnan(row.value), -row.value))
    return Board(entries[0].data, rule, metric, tuple(rows))


def groups_of(statistics: Sequence[Statistics], metrics: Callable) -> list[int]:
    """The group of each method, best first: it begins a new one if it differs from its group's best beyond chance.

    Paired by image, p < .05 (`paired_intervals`); not corrected for the number of methods, so that a group errs on the
    side of fewer members.

    Args:
        statistics: of the same images, of methods by falling value. metrics: of sums of these; the first one counts.
    """
    groups: list[int] = []
    leader = None
    for own in statistics:
        if leader is not None:
            p = next(iter(paired_intervals(leader, own, metrics).values()))["p"]
        if leader is None or p < LEVEL:
            leader = own
            groups.append(groups[-1] + 1 if groups else 1)
        else:
            groups.append(groups[-1])
    return groups


def _row(entry: Entry, value: float, low: float, high: float, group: int, out: Path) -> Row:
    told = entry.summary["segmenters"][entry.method]["told"]
    report = entry.run.report
    link = Path(os.path.relpath(report, out)).as_posix() if report.is_file() else ""
    segments = float(entry.images["segments"].map(len).mean())
    known = not np.isnan(low)
    model = entry.summary["model"] or "label maps"
    note = f"told {told}" if told else ""
    return Row(entry.method, model, value, low if known else None, high if known else None, segments, group, note, link)


def _published(row: Mapping[str, Any], metric: str) -> Row:
    note = ", ".join(filter(None, [f"published: {row['source']}", row["refinement"] and f"{row['refinement']}"]))
    return Row(row["method"], row["backbone"] or "", row[metric] / 100, None, None, None, None, note, "")


# --- writing ----------------------------------------------------------------------------------------------------------


def table_of(boards: Sequence[Board]) -> pd.DataFrame:
    """All rows of all boards; value, low and high in percent."""
    return pd.DataFrame(
        [
            {
                "data": board.data,
                "protocol": board.protocol,
                "metric": board.metric,
                "group": row.group,
                "method": row.method,
                "backbone": row.backbone,
                "value": round(100 * row.value, 2),
                "low": None if row.low is None else round(100 * row.low, 2),
                "high": None if row.high is None else round(100 * row.high, 2),
                "segments": None if row.segments is None else round(row.segments, 1),
                "note": row.note,
            }
            for board in boards
            for row in board.rows
        ]
    ).astype({"group": "Int64"})


def write_leaderboard(boards: Sequence[Board], out: Path) -> Path:
    """Writes index.html, leaderboard.csv and leaderboard.md into a folder; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    page = (
        environment()
        .get_template("leaderboard.html")
        .render(
            boards=boards,
            data=list(dict.fromkeys(board.data for board in boards)),
            protocols=list(dict.fromkeys(board.protocol for board in boards)),
            sources=SOURCES,
        )
    )
    table = table_of(boards)
    write(out / "leaderboard.csv", table.to_csv(index=False))
    parts = []
    for (data, protocol, metric), rows in table.groupby(["data", "protocol", "metric"], sort=False):
        shown = rows.drop(columns=["data", "protocol", "metric"]).astype(object)
        parts.append(
            f"## {data}: {protocol}, {metric_label(str(metric))}\n\n{markdown(shown.where(shown.notna(), ''))}"
        )
    write(out / "leaderboard.md", "# Leaderboard\n\nPercent, 95 % intervals over images.\n\n" + "\n".join(parts))
    write(out / "index.html", page)
    return out / "index.html"


def command() -> typer.Typer:
    """The command `diffseg-eval leaderboard`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def run(
        folders: Annotated[
            list[Path] | None, typer.Argument(help="Runs, or folders of runs. (default: results/runs)")
        ] = None,
        out: Annotated[Path, typer.Option(help="Folder for index.html, .csv and .md.")] = Path("results/leaderboard"),
    ) -> None:
        """Gathers all scored runs, and runs that others hand in, into one page with every protocol."""
        entries = entries_in(folders or [Path("results/runs")])
        if not entries:
            raise UserError("no scored run is there: name folders that hold some, or make one with diffseg-eval")
        boards = boards_of(entries, out)
        typer.echo(write_leaderboard(boards, out))

    return app
