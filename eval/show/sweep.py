"""sweep.html: what a sweep ends with. Its table, a curve or a heat map over what was varied, the best, every report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diffseg.eval.show.ablations import ablations_among, best_of, candidates
from diffseg.eval.show.pages import environment, svg_of
from diffseg.eval.show.tables import Shown, sweep_rows
from diffseg.files import write

_METRICS = ("accuracy", "miou", "miou_low", "miou_high", "segments")


def write_sweep(folder: Path, jobs: Sequence[dict[str, Any]], sets: Mapping[str, Shown], command: str = "") -> Path:
    """Writes FOLDER/sweep.html and returns its path.

    Args:
        jobs: as `sweep_rows` takes them, the "folder" of each run in it. sets: tables by data set, by protocol, as of
            `sets_tables`. command: that makes it again.

    Raises:
        OSError: the page cannot be written.
    """
    done = [job for job in jobs if "segmenters" in job]
    rows = sweep_rows(jobs).to_dict("records") if jobs else []
    found = ablations_among([candidate for job in done for candidate in candidates(job)])  # type: ignore[arg-type]
    settings = [str(key) for key in (rows[0] if rows else {}) if key not in (*_METRICS, "segmenter", "run", "error")]
    reports = {job["run"]: _report_of(job, folder) for job in done}
    page = (
        environment()
        .get_template("sweep.html")
        .render(
            name=folder.name,
            count=len(jobs),
            command=command,
            settings=settings,
            heads=[key.rpartition(".")[2] for key in settings],
            rows=[_row(row, settings, reports) for row in rows],
            best=_best(rows),
            ablations=[(a.label, svg_of("drawn", a), best_of(a)) for a in found],
            sets=sets,
        )
    )
    write(folder / "sweep.html", page)
    return folder / "sweep.html"


def _report_of(job: Mapping[str, Any], folder: Path) -> str:
    """The address of a job's report, from the sweep's folder; "" where there is none."""
    run = Path(job["folder"]) if "folder" in job else folder.parent.parent / job["run"]
    reports = sorted(run.glob("report*.html"), key=lambda path: path.stat().st_mtime)
    return Path(os.path.relpath(reports[-1], folder)).as_posix() if reports else ""


def _row(row: Mapping[str, Any], settings: Sequence[str], reports: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table; numbers that there are not as None."""
    numbers = {key: None if pd.isna(row.get(key)) else row[key] for key in _METRICS}
    error = row.get("error")
    return {
        **numbers,
        "settings": [row[key] for key in settings],
        "segmenter": row["segmenter"],
        "report": reports.get(row.get("run", ""), ""),
        "error": error if isinstance(error, str) else "",
    }


def _best(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The position of the row with the largest mIoU; None: there is no mIoU."""
    known = {index: row["miou"] for index, row in enumerate(rows) if not pd.isna(row.get("miou"))}
    return max(known, key=lambda index: known[index]) if known else None
