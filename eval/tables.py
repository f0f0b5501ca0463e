"""Results beside the published ones: `make tables` reads the runs on disk and writes results/tables/*.md and *.csv.

Only what was run stands in them; what was not is marked as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from diffseg.eval.check import published
from diffseg.files import write

PAPER_MODEL = "CompVis/stable-diffusion-v1-4"
BENCHMARKS = {"coco_stuff27": "COCO-Stuff-27, 2,175 images of val2017", "cityscapes": "Cityscapes, 500 frames of val"}
NOT_RUN = "not run"


def summaries(runs: Path) -> list[dict[str, Any]]:
    """summary*.json of every scored run with a model, the latest last; damaged ones are left out."""
    found = []
    for path in sorted(runs.glob("*/summary*.json"), key=lambda p: p.stat().st_mtime):
        try:
            summary = json.loads(path.read_text())
        except ValueError:
            continue
        if summary.get("model") is not None:
            found.append(summary)
    return found


def paper_table(benchmark: str, runs: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Published / ours / interval / difference for each row of paper.yaml, in percent and points.

    Ours are runs of the paper's model on the whole benchmark, nothing less.
    """
    whole = [
        s
        for s in runs
        if s["dataset"]["name"] == benchmark
        and not s["dataset"]["note"]
        and not s["skipped"]
        and s["model"] == PAPER_MODEL
    ]
    ours = {f"{n}_{s['size']}": f for s in whole for n, f in s["segmenters"].items()}  # as paper.yaml names them
    rows = []
    for name, known in published()[benchmark].items():
        row: dict[str, Any] = {"method": name, "source": known["source"]}
        for metric in ("accuracy", "miou"):
            found = ours.get(name)
            row[f"{metric} published"] = known[metric]
            row[metric] = NOT_RUN if found is None else round(100 * found[metric], 1)
            row[f"{metric} interval"] = "" if found is None else interval(found, metric)
            known_too = found is not None and known[metric] is not None
            row[f"{metric} difference"] = f"{100 * found[metric] - known[metric]:+.1f}" if known_too and found else ""
        rows.append(row)
    return pd.DataFrame(rows)


def measured_table(runs: Iterable[dict[str, Any]], model: str) -> pd.DataFrame:
    """Everything that one model was run on: a row for each data set, size, time step and setting, of the latest run."""
    rows: dict[tuple, dict[str, Any]] = {}
    for s in runs:
        if s["model"] != model:
            continue
        data = s["dataset"]["name"] + (f" ({s['dataset']['note']})" if s["dataset"]["note"] else "")
        for name, found in s["segmenters"].items():
            settings = found["settings"]
            key = (data, s["images"], s["size"], s["timestep"], name, json.dumps(settings, sort_keys=True))
            unit = " of the median distance" if settings.get("relative") else ""
            rows[key] = {
                "data": data,
                "images": s["images"],
                "size": s["size"],
                "t": s["timestep"],
                "segmenter": name,
                "threshold": f"{settings['threshold']}{unit}" if "threshold" in settings else "",
                "accuracy": round(100 * found["accuracy"], 1),
                "accuracy interval": interval(found, "accuracy"),
                "mIoU": round(100 * found["miou"], 1),
                "mIoU interval": interval(found, "miou"),
                "segments": round(found["segments"], 1),
                "run": s["run"],
            }
    return pd.DataFrame([rows[k] for k in sorted(rows, key=lambda k: k[:4])])


def interval(found: dict[str, Any], metric: str) -> str:
    """The 95 % interval in percent."""
    low, high = found["interval"][metric]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def markdown(rows: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines: list[Sequence[str]] = [list(map(str, rows.columns)), ["---"] * len(rows.columns)]
    lines += [["" if pd.isna(cell) else str(cell) for cell in row] for row in rows.itertuples(index=False)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("results/runs"),
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("results/tables"),
) -> None:
    """Writes a table for each benchmark, published beside ours, and one for each model that was run."""
    known = summaries(runs)
    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[pd.DataFrame, str, str]] = {}
    for benchmark, title in BENCHMARKS.items():
        note = (
            f"Percent; intervals are 95 % over images; difference = ours - published, in points. Ours: {PAPER_MODEL} "
            f"on the whole benchmark. Source of the published number: paper; quoted by others; recalled, not verified. "
            f"Rows of other methods match once per data set, so they are not like with like, and are not run here."
        )
        tables[benchmark] = paper_table(benchmark, known), title, note
    for model in dict.fromkeys(s["model"] for s in known):
        note = "Percent; intervals are 95 % over images. The latest run of each setting; names tell what was varied."
        name = "".join(c if c.isalnum() else "-" for c in model).strip("-")
        tables[f"measured-{name}"] = measured_table(known, model), f"Measured with {model}", note
    for name, (rows, title, note) in tables.items():
        write(out / f"{name}.md", f"# {title}\n\n{note}\n\n{markdown(rows)}")
        write(out / f"{name}.csv", rows.to_csv(index=False))
        typer.echo(out / f"{name}.md")


if __name__ == "__main__":
    typer.run(main)
