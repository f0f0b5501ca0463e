"""Results as tables: of one run, of a sweep, of all runs on disk, and beside the published ones (`make tables`).

`make tables` writes results/tables/*.md and *.csv: those of your runs. What the project measured itself is kept in
results/evidence. Only what was run stands in a table; what was not is marked as such.
"""

from __future__ import annotations

import json
import math
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
from diffseg.eval.show.published import SOURCES, published_beside, published_rows
from diffseg.files import write

PAPER_MODEL = "CompVis/stable-diffusion-v1-4"
BENCHMARKS = {"coco_stuff27": "COCO-Stuff-27, 2,175 images of val2017", "cityscapes": "Cityscapes, 500 frames of val"}
NOT_RUN = "not run"
_WHOLE = 24  # characters of a name that is not broken, whatever the terminal's width
IN_BITS = frozenset({"vi"})  # metrics that are no fractions
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


def is_whole(summary: Summary) -> bool:
    """Whether it is of exactly what published numbers are of: all images, none left out, and all attention layers."""
    return not summary["dataset"]["note"] and not summary["skipped"] and "layers" not in summary


def is_papers(summary: Summary, benchmark: str) -> bool:
    """Whether a run may stand beside the paper's: its model, on exactly the images that published numbers are of."""
    return summary["dataset"]["name"] == benchmark and summary["model"] == PAPER_MODEL and is_whole(summary)


def paper_table(benchmark: str, runs: Iterable[Summary]) -> pd.DataFrame:
    """Published / ours / interval / difference for each published row of a data set, in percent and points.

    Ours are runs of the paper's model on the whole benchmark, nothing less, by the row's own protocol and size.
    """
    whole = [s for s in runs if is_papers(s, benchmark)]
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
    return pd.DataFrame([rows[k] for k in sorted(rows, key=lambda k: (*k[:2], k[2] or 0, *k[3:5]))])


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
            names = not index and max((len(row[0]) for row in self.cells), default=0) <= _WHOLE
            table.add_column(heading, justify=justify, overflow="fold", no_wrap=names)
        for row in self.cells:
            table.add_row(*row)
        return table


def result_table(summary: Summary) -> Table:
    """The metrics that a run leads with, with intervals, one row per segmenter, fractions in percent."""
    facts, leading = summary["dataset"], leading_metrics(summary)
    note = f", {facts['note']}" if facts["note"] else ""
    over_ties = ["mIoU over ties"] * ("miou" in leading)
    headings = ["segmenter", *map(metric_heading, leading), *over_ties, "segments"]
    cells = []
    for name, scores in summary["segmenters"].items():
        told = f"\n(told {scores['told']})" if scores["told"] else ""
        by_metric: Mapping[str, Any] = scores  # of which those of the leading protocol are a part
        metrics = [with_interval(by_metric.get(m), scores["interval"].get(m, (None, None)), m) for m in leading]
        ties = [" to ".join(f"{100 * x:.1f}" for x in scores.get("ties", ()) if x is not None)] * len(over_ties)
        cells.append([f"{name}{told}", *metrics, *ties, f"{scores['segments']:.1f}"])
    table = Shown(f"{facts['name']}, {summary['images']:,} images{note}", headings, cells).for_terminal()
    table.caption = f"protocol {summary['protocol']}"
    counts = sorted({scores["classes"] for scores in summary["segmenters"].values() if "classes" in scores})
    if counts:
        least, most = counts[0], counts[-1]
        used = f"{least}" if least == most else f"{least} to {most}"
        table.caption += f"; mIoU: mean over the {used} of {len(facts['classes'])} classes that occur"
    return table


def leading_metrics(summary: Summary) -> list[str]:
    """The metrics of the protocol that a run leads with: accuracy and mIoU, or its headline and then the others."""
    known = list(next(iter(summary["segmenters"].values()))["interval"])
    if "miou" in known:
        return known
    headline = summary["headlines"][summary["protocol"]]
    return [headline, *(name for name in known if name != headline)]


def metric_label(metric: str) -> str:
    """A metric's name for people."""
    if metric in ("pri", "vi", "ari", "mbo"):
        return metric.upper()
    return {"miou": "mIoU", "f": "F", "matched_f": "F"}.get(metric, metric.replace("_", " "))


def metric_heading(metric: str) -> str:
    """A metric's name with its unit."""
    return f"{metric_label(metric)} {'bits' if metric in IN_BITS else '%'}"


def metric_number(value: float | None, metric: str) -> str:
    """A metric's value for people: a fraction in percent, else as it is; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    return f"{value:.2f}" if metric in IN_BITS else f"{100 * value:.1f}"


def with_interval(value: float | None, ends: Sequence[float | None], metric: str) -> str:
    """A metric's value and, below it in brackets, its interval, where there is one."""
    low, high = (None if end is None else metric_number(end, metric) for end in ends)
    return metric_number(value, metric) + ("" if low is None or high is None else f"\n({low} to {high})")


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
    """The rows of a sweep for people: in percent, settings by the last part of their name; of errors only that."""
    names = {"accuracy": "accuracy %", "miou": "mIoU %", "miou_low": "mIoU from", "miou_high": "to"}
    rows = rows.assign(error=rows["error"].notna().map({True: "failed", False: ""})) if "error" in rows else rows
    columns = [c for c in rows if c != "run"]
    cells = [
        [_cell(row[c], 100 if c in names else 1, 1 if c in names or c == "segments" else None) for c in columns]
        for row in rows.to_dict("records")
    ]
    return Shown("sweep", [names.get(c, c.rpartition(".")[2]) for c in columns], cells)


def sweep_failures(rows: pd.DataFrame) -> list[str]:
    """What went wrong in a sweep, of the rows of `sweep_rows`: "threshold=-1: the threshold must be ..."."""
    if "error" not in rows:
        return []
    settings = list(rows)[: list(rows).index("segmenter")]
    failed = rows[rows["error"].notna()].to_dict("records")
    return [f"{' '.join(f'{name}={row[name]}' for name in settings)}: {row['error']}".lstrip(": ") for row in failed]


def sets_tables(jobs: Sequence[dict[str, Any]]) -> dict[str, Shown]:
    """Of a sweep over data sets, a table for each protocol: methods by data set, with the published rows of its tables.

    jobs: their summaries, as `sweep_rows` takes them. Cells are the protocol's headline, in percent; starred where the
    run is of a part of the images. Published rows are those that are of several of these data sets, or of the only one.
    """
    done: dict[str, Any] = {job["dataset"]["name"]: job for job in jobs if "error" not in job and "dataset" in job}
    if not done or len({_settings(job).get("dataset") for job in jobs}) < 2:
        return {}
    tables = {}
    for protocol in dict.fromkeys(name for job in done.values() for name in job["protocols"]):
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        starred = False
        for data, job in done.items():
            metric, star = job["headlines"].get(protocol), "" if is_whole(job) else "*"
            for name, scores in job["protocols"].get(protocol, {}).items():
                value = metric_number(scores.get(metric), metric)
                rows.setdefault((name, job["model"] or "", "measured"), {})[data] = value + star
                starred |= bool(star)
        published: dict[tuple[str, ...], dict[str, str]] = {}
        for data, job in done.items():
            metric = job["headlines"].get(protocol)
            for known in published_beside(job["dataset"]["published"], protocol, job["size"]):
                refined = " + PAMR" * (known["refinement"] == "PAMR")
                key = (known["method"] + refined, known["backbone"] or "", known["source"])
                if known.get(metric) is not None:
                    published.setdefault(key, {})[data] = f"{known[metric]:.1f}"
        rows |= {key: cells for key, cells in published.items() if len(cells) > 1 or len(done) == 1}
        headings = ["method", "model", "source", *(f"{data}, {job['images']:,}" for data, job in done.items())]
        cells = [[*key, *(found.get(data, "–") for data in done)] for key, found in rows.items()]  # noqa: RUF001
        headline = next(job["headlines"][protocol] for job in done.values() if protocol in job["headlines"])
        note = "; *: of a part of the images, so no figure to compare with a published one" * starred
        caption = f"{metric_heading(headline)}, number of images after each data set{note}"
        tables[protocol] = Shown(f"by data set, protocol {protocol}", headings, cells, caption)
    return tables


def _cell(value: Any, unit: float, digits: int | None) -> str:
    if value is None or value != value:
        return ""
    return f"{unit * value:.{digits}f}" if digits is not None and isinstance(value, float) else str(value)


def runs_table(runs: Path) -> Shown:
    """The runs that there are, the latest first: when, data, model, methods, score of the best, folder.

    Those that ended before their first label map are only counted.
    """
    rows, empty = [], 0
    for record in sorted(runs.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        when = datetime.fromtimestamp(record.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        try:
            run = find_run(record.parent)
            summary = read_summary(run)
        except DataError:
            if not run.masks and next(record.parent.glob("*/labels/**/*.png"), None) is None:
                empty += 1
                continue
            rows.append([when, "", "", _few(run.segmenters), "not scored", record.parent.name])
            continue
        except UserError as error:
            rows.append([when, "", "", str(error), "", record.parent.name])
            continue
        data, scores = summary["dataset"], summary["segmenters"]
        headline = summary["headlines"][summary["protocol"]]
        shown = ("accuracy", "miou") if "miou" in leading_metrics(summary) else (headline,)
        by_segmenter = summary["protocols"][summary["protocol"]]
        best = max(scores, key=lambda name: by_segmenter[name].get(shown[-1]) or 0)
        number = " / ".join(percent(by_segmenter[best], metric) for metric in shown)
        result = number if len(scores) == 1 else f"{number} ({best})"
        if summary["protocol"] != "diffseg":
            result += f", {summary['protocol']}"
        model = summary["model"] or "label maps"
        rows.append([when, f"{data['name']}, {summary['images']:,}", model, _few(list(scores)), result, run.name])
    headings = ["when", "data, images", "model", "methods, or what was varied", "accuracy / mIoU %", "folder"]
    caption = f"and {empty} that ended before the first label map" if empty else ""
    return Shown(f"runs in {runs}", headings, rows, caption)


def _few(names: Sequence[str]) -> str:
    """The names, or the first of many and how many more."""
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:4])} and {len(names) - 4} more"


def list_command() -> typer.Typer:
    """The command `diffseg-eval list`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def run(runs: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("results/runs")) -> None:
        """Lists the runs there are: data, model, methods, what was varied, the best one's score, when."""
        runs = Path(str(runs).removeprefix("runs="))  # as an evaluation is told the folder
        if not runs.is_dir():
            raise UserError(f"there is no folder {runs} of runs: name another, or make one with diffseg-eval")
        console = Console()
        console = console if console.is_terminal else Console(width=200)
        console.print(runs_table(runs).for_terminal())

    return app


def _as_frame(shown: Shown) -> pd.DataFrame:
    """A table for people as one for files, each cell in a line."""
    rows = pd.DataFrame(shown.cells, columns=shown.headings).map(lambda cell: cell.replace("\n", " "))
    rows.columns = [heading.replace("\n", ": ") for heading in shown.headings]
    return rows


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("results/runs"),
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("results/tables"),
) -> None:
    """Writes a table for each benchmark, published beside ours, and one for each model that was run."""
    from diffseg.eval.show.worth import differences_table, scales_table, worth_table

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
    whole = {s["model"]: s for s in known if s["dataset"]["name"] == "bsds500" and is_whole(s)}  # the latest of each
    shown = scales_table([*whole.values()], published_beside("bsds500", "regions", None))
    tables["bsds500"] = (
        _as_frame(shown),
        "BSDS500, the 200 test images",
        f"{shown.caption}. Source of the published numbers: {SOURCES}.",
    )
    for model in dict.fromkeys(s["model"] or "" for s in known):
        note = "Percent; intervals are 95 % over images. The latest run of each setting; names tell what was varied."
        name = "".join(c if c.isalnum() else "-" for c in model).strip("-")
        tables[f"measured-{name}"] = measured_table(known, model), f"Measured with {model}", note
    for s in known:
        if len(s["protocols"]) > 1 and len(s["segmenters"]) > 1:
            what = {"protocols": worth_table(s), "differences": differences_table(s)}
            notes = {"protocols": "Percent and rank under each protocol."}
            for kind, shown in what.items():
                title = f"{shown.title[:1].upper()}{shown.title[1:]}; {s['model'] or 'label maps'}"
                at = f"-{s['size']}" if s["size"] not in (None, s["dataset"]["size"]) else ""
                note = f"{notes.get(kind, '')} {shown.caption}".strip()
                tables[f"{kind}-{s['run']}{at}"] = _as_frame(shown), title, note
    for name, (rows, title, note) in tables.items():
        write(out / f"{name}.md", f"# {title}\n\n{note}\n\n{markdown(rows)}")
        write(out / f"{name}.csv", rows.to_csv(index=False))
        typer.echo(out / f"{name}.md")


if __name__ == "__main__":
    typer.run(main)
