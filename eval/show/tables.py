"""Results as tables: of one run, of a sweep, of all runs on disk, and beside the published ones (`make tables`).

`make tables` writes results/tables/*.md and *.csv: those of your runs. What the project measured itself is kept in
results/evidence. Only what was run stands in a table; what was not is marked as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from diffseg.datasets.base import DataError
from diffseg.errors import UserError
from diffseg.eval.runs import find_run
from diffseg.eval.score import Summary, read_summary, summary_of
from diffseg.eval.show.published import SOURCES, published_rows
from diffseg.files import write

PAPER_MODEL = "CompVis/stable-diffusion-v1-4"
BENCHMARKS = {"coco_stuff27": "COCO-Stuff-27, 2,175 images of val2017", "cityscapes": "Cityscapes, 500 frames of val"}
NOT_RUN = "not run"
PAPER_BACKBONE = "SD 1.4"
PAPER_METHODS = {"diffseg": "DiffSeg", "kmeans_c": "K-Means-C", "kmeans_s": "K-Means-S", "dbscan": "DBSCAN"}


def summaries(runs: Path) -> list[Summary]:
    """summary*.json of every scored run with a model, the latest last; damaged ones are left out."""
    found: list[Summary] = []
    for path in sorted(runs.glob("*/summary*.json"), key=lambda p: p.stat().st_mtime):
        with suppress(DataError):
            summary = summary_of(path)
            if summary["model"] is not None:
                found.append(summary)
    return found


def paper_table(benchmark: str, runs: Iterable[Summary]) -> pd.DataFrame:
    """Published / ours / interval / difference for each published row of a data set, in percent and points.

    Ours are runs of the paper's model on the whole benchmark, nothing less, by the row's own protocol and size.
    """
    whole = [
        s
        for s in runs
        if s["dataset"]["name"] == benchmark
        and not s["dataset"]["note"]
        and not s["skipped"]
        and s["model"] == PAPER_MODEL
        and "layers" not in s
    ]
    ours = {
        (PAPER_METHODS.get(name, name), rule, s["size"]): scores
        for s in whole
        for rule, by_segmenter in s["protocols"].items()
        for name, scores in by_segmenter.items()
    }
    rows = []
    for known in published_rows():
        if known["dataset"] != benchmark:
            continue
        facts = {key: known[key] for key in ("method", "backbone", "refinement", "protocol", "size", "source")}
        row = {key: "" if value is None else value for key, value in facts.items()}
        comparable = known["backbone"] == PAPER_BACKBONE and known["refinement"] in (None, "none")
        scores = ours.get((known["method"], known["protocol"], known["size"])) if comparable else None
        for metric in ("accuracy", "miou"):
            row[f"{metric} published"] = known[metric]
            row[metric] = NOT_RUN if scores is None else round(100 * scores[metric], 1)
            row[f"{metric} interval"] = "" if scores is None else interval(scores, metric)
            both = scores is not None and known[metric] is not None
            row[f"{metric} difference"] = f"{100 * scores[metric] - known[metric]:+.1f}" if both and scores else ""
        rows.append(row)
    return pd.DataFrame(rows)


def measured_table(runs: Iterable[Summary], model: str) -> pd.DataFrame:
    """Everything that one model was run on, by the protocol that each run leads with.

    A row for each data set, size, time step, protocol and setting, of the latest run.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for s in runs:
        if s["model"] != model:
            continue
        data = s["dataset"]["name"] + (f" ({s['dataset']['note']})" if s["dataset"]["note"] else "")
        for name, scores in s["segmenters"].items():
            settings = scores["settings"]
            place = (data, s["images"], s["size"], s["timestep"])
            layers = f", layers {', '.join(map(str, s['layers']))}" if "layers" in s else ""
            unit = " of the median distance" if settings.get("relative") else ""
            rows[(*place, s["protocol"], name + layers, json.dumps(settings, sort_keys=True))] = {
                "data": data,
                "images": s["images"],
                "size": s["size"],
                "t": s["timestep"],
                "protocol": s["protocol"],
                "segmenter": name + layers + (f" (told {scores['told']})" if scores["told"] else ""),
                "threshold": f"{settings['threshold']}{unit}" if "threshold" in settings else "",
                "accuracy": percent(scores, "accuracy"),
                "accuracy interval": interval(scores, "accuracy"),
                "mIoU": percent(scores, "miou"),
                "mIoU interval": interval(scores, "miou"),
                "segments": round(scores["segments"], 1),
                "run": s["run"],
            }
    return pd.DataFrame([rows[k] for k in sorted(rows, key=lambda k: k[:5])])


def interval(scores: Mapping[str, Any], metric: str) -> str:
    """The 95 % interval in percent; "" of one image, which has none."""
    low, high = scores["interval"].get(metric, (None, None))
    return "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def markdown(rows: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines: list[Sequence[str]] = [list(map(str, rows.columns)), ["---"] * len(rows.columns)]
    lines += [["" if pd.isna(cell) else str(cell) for cell in row] for row in rows.itertuples(index=False)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


# --- for the terminal -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A table for people, its cells as text."""

    title: str
    headings: list[str]
    cells: list[list[str]]
    caption: str = ""

    def for_terminal(self) -> Table:
        """As rich draws it: text on the left, numbers on the right."""
        table = Table(title=self.title, caption=self.caption or None)
        for index, heading in enumerate(self.headings):
            numbers = all(not row[index] or row[index].lstrip("-(")[:1].isdigit() for row in self.cells)
            justify: Literal["left", "right"] = "right" if numbers and index else "left"
            table.add_column(heading, justify=justify, overflow="fold")
        for row in self.cells:
            table.add_row(*row)
        return table


def result_table(summary: Summary) -> Table:
    """Accuracy and mIoU with intervals, one row per segmenter, in percent."""
    facts = summary["dataset"]
    note = f", {facts['note']}" if facts["note"] else ""
    headings = ["segmenter", "accuracy %", "mIoU %", "mIoU over ties", "segments"]
    cells = []
    for name, scores in summary["segmenters"].items():
        told = f"\n(told {scores['told']})" if scores["told"] else ""
        metrics = [f"{percent(scores, m)}\n({interval(scores, m)})".removesuffix("\n()") for m in ("accuracy", "miou")]
        ties = " to ".join(f"{100 * x:.1f}" for x in scores.get("ties", ()) if x is not None)
        cells.append([f"{name}{told}", *metrics, ties, f"{scores['segments']:.1f}"])
    table = Shown(f"{facts['name']}, {summary['images']:,} images{note}", headings, cells).for_terminal()
    table.caption = f"protocol {summary['protocol']}"
    counts = sorted({scores["classes"] for scores in summary["segmenters"].values() if "classes" in scores})
    if counts:
        least, most = counts[0], counts[-1]
        used = f"{least}" if least == most else f"{least} to {most}"
        table.caption += f"; mIoU: mean over the {used} of {len(facts['classes'])} classes that occur"
    return table


def percent(scores: Mapping[str, Any], metric: str) -> str:
    """A metric in percent, or "" where there is none."""
    value = scores.get(metric)
    return "" if value is None else f"{100 * value:.1f}"


def sweep_rows(jobs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per job and segmenter: what the sweep varies, then the metrics; a failed job has its error instead.

    Metrics are fractions, as in summary.json.
    """
    settings = [_settings(job) for job in jobs]
    varied = {k for s in settings for k in s if any(other.get(k) != s[k] for other in settings)}
    rows: list[dict[str, Any]] = []
    for job in jobs:
        setting = {k: v for k, v in _settings(job).items() if k in varied}
        if "error" in job:
            rows.append({**setting, "segmenter": "", "error": job["error"]})
        for name, scores in job.get("segmenters", {}).items():
            low, high = scores["interval"].get("miou", (None, None))
            metrics = {k: scores.get(k) for k in ("accuracy", "miou")}
            rest = {"miou_low": low, "miou_high": high, "segments": scores["segments"], "run": job["run"]}
            rows.append({**setting, "segmenter": name, **metrics, **rest})
    table = pd.DataFrame(rows)
    return table[[c for c in table if c not in ("run", "error")] + [c for c in ("run", "error") if c in table]]


def _settings(job: dict[str, Any]) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in job["overrides"] if "=" in o)


def sweep_table(rows: pd.DataFrame) -> Shown:
    """The rows of a sweep for people: in percent, settings by the last part of their name."""
    names = {"accuracy": "accuracy %", "miou": "mIoU %", "miou_low": "mIoU from", "miou_high": "to"}
    columns = [c for c in rows if c != "run"]
    cells = [
        [_cell(row[c], 100 if c in names else 1, 1 if c in names or c == "segments" else None) for c in columns]
        for row in rows.to_dict("records")
    ]
    return Shown("sweep", [names.get(c, c.rpartition(".")[2]) for c in columns], cells)


def _cell(value: Any, unit: float, digits: int | None) -> str:
    if value is None or value != value:
        return ""
    return f"{unit * value:.{digits}f}" if digits is not None and isinstance(value, float) else str(value)


def runs_table(runs: Path) -> Shown:
    """The runs that there are, the latest first: when, data, model, methods, score of the best, folder."""
    rows = []
    for record in sorted(runs.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        when = datetime.fromtimestamp(record.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        try:
            run = find_run(record.parent)
            summary = read_summary(run)
        except DataError:
            rows.append([when, "", "", ", ".join(run.segmenters), "not scored", record.parent.name])
            continue
        except UserError as error:
            rows.append([when, "", "", str(error), "", record.parent.name])
            continue
        data, scores = summary["dataset"], summary["segmenters"]
        best = max(scores, key=lambda name: scores[name].get("miou") or 0)
        number = f"{percent(scores[best], 'accuracy')} / {percent(scores[best], 'miou')}"
        result = number if len(scores) == 1 else f"{number} ({best})"
        if summary["protocol"] != "diffseg":
            result += f", {summary['protocol']}"
        model = summary["model"] or "label maps"
        rows.append([when, f"{data['name']}, {summary['images']:,}", model, ", ".join(scores), result, run.name])
    headings = ["when", "data, images", "model", "methods, or what was varied", "accuracy / mIoU %", "folder"]
    return Shown(f"runs in {runs}", headings, rows)


def list_command() -> typer.Typer:
    """The command `diffseg-eval list`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def run(runs: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("results/runs")) -> None:
        """Lists the runs there are: data, model, methods, what was varied, the best one's score, when."""
        if not runs.is_dir():
            raise UserError(f"there is no folder {runs} of runs: name another, or make one with diffseg-eval")
        console = Console()
        console = console if console.is_terminal else Console(width=200)
        console.print(runs_table(runs).for_terminal())

    return app


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("results/runs"),
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("results/tables"),
) -> None:
    """Writes a table for each benchmark, published beside ours, and one for each model that was run."""
    from diffseg.eval.show.worth import differences_table, worth_table

    known = summaries(runs)
    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[pd.DataFrame, str, str]] = {}
    for benchmark, title in BENCHMARKS.items():
        note = (
            f"Percent; intervals are 95 % over images; difference = ours - published, in points. Ours: {PAPER_MODEL} "
            f"on the whole benchmark, by the row's own protocol and size. Source of the published number: {SOURCES}. "
            f"Rows whose protocol is not known are compared with nothing."
        )
        tables[benchmark] = paper_table(benchmark, known), title, note
    for model in dict.fromkeys(s["model"] or "" for s in known):
        note = "Percent; intervals are 95 % over images. The latest run of each setting; names tell what was varied."
        name = "".join(c if c.isalnum() else "-" for c in model).strip("-")
        tables[f"measured-{name}"] = measured_table(known, model), f"Measured with {model}", note
    for s in known:
        if len(s["protocols"]) > 1 and len(s["segmenters"]) > 1:
            what = {"protocols": worth_table(s), "differences": differences_table(s)}
            notes = {"protocols": "Percent and rank under each protocol."}
            for kind, shown in what.items():
                rows = pd.DataFrame(shown.cells, columns=shown.headings).map(lambda cell: cell.replace("\n", " "))
                rows.columns = [heading.replace("\n", ": ") for heading in shown.headings]
                title = f"{shown.title[:1].upper()}{shown.title[1:]}; {s['model'] or 'label maps'}"
                at = f"-{s['size']}" if s["size"] != s["dataset"]["size"] else ""
                tables[f"{kind}-{s['run']}{at}"] = rows, title, f"{notes.get(kind, '')} {shown.caption}".strip()
    for name, (rows, title, note) in tables.items():
        write(out / f"{name}.md", f"# {title}\n\n{note}\n\n{markdown(rows)}")
        write(out / f"{name}.csv", rows.to_csv(index=False))
        typer.echo(out / f"{name}.md")


if __name__ == "__main__":
    typer.run(main)
