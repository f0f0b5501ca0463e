"""The gate: a run's metrics against a file of expected ones.

# results/reference/NAME.yaml
about: what made these, one sentence
run: {dataset: scenes, images: 64}        # must be true of the run, or nothing can be said
expected:
  - {segmenter: diffseg, metric: miou, value: 0.55, tolerance: 0.01, source: measured on ...}
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.table import Table
from typing_extensions import TypedDict

import diffseg
from diffseg.errors import UserError
from diffseg.eval.score import Summary

FOLDER = Path(diffseg.__file__).parent / "reference"


class Reference(TypedDict):
    """Expected metrics. run: facts that must be true of the run. expected: rows as in the form above."""

    run: dict[str, Any]
    expected: list[dict[str, Any]]


def read_reference(name: str) -> Reference:
    """A reference by name (results/reference/NAME.yaml) or path.

    Raises:
        UserError: there is none, or it is not of the form above.
    """
    path = Path(name) if Path(name).suffix else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != "paper"))
        raise UserError(f"there is no reference {path}: give a file, or one of {known}")
    try:
        reference = yaml.safe_load(path.read_text())
        for row in reference["expected"]:
            if not all(math.isfinite(float(row[key])) for key in ("value", "tolerance")):
                raise ValueError("value and tolerance must be numbers")
            if not all(isinstance(row.get(key, ""), str) for key in ("segmenter", "metric", "protocol")):
                raise ValueError("segmenter, metric and protocol must be names")
            row["segmenter"], row["metric"]
        if not isinstance(reference["run"], dict) or not reference["expected"]:
            raise ValueError("it expects nothing")
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a reference ({error!r}): see the form in diffseg/eval/check.py") from None
    return reference


def check(summary: Summary, reference: Reference) -> pd.DataFrame:
    """Compares a run's summary with a reference.

    Returns:
        One row per expected metric: segmenter, metric, expected, tolerance, found, ok.

    Raises:
        UserError: the run is not of what the reference speaks of, or lacks a metric.
    """
    facts = _facts(summary)
    for key, value in reference["run"].items():
        if facts.get(key) != value:
            raise UserError(f"the reference is for {key} = {value}, the run is of {facts.get(key)}: nothing to compare")
    rows = []
    for row in reference["expected"]:
        expected, tolerance = float(row["value"]), float(row["tolerance"])  # YAML reads 1e-3 as text
        try:
            scores = summary["protocols"][row.get("protocol", summary["protocol"])]
            found = float(scores[row["segmenter"]][row["metric"]])
        except (KeyError, TypeError):
            name = f"{row['metric']} of {row['segmenter']}"
            raise UserError(f"the run has no {name} to compare with the reference") from None
        rows.append(
            {
                "segmenter": row["segmenter"],
                "metric": row["metric"],
                "expected": expected,
                "tolerance": tolerance,
                "found": found,
                "ok": abs(found - expected) <= tolerance,
            }
        )
    return pd.DataFrame(rows)


def _facts(summary: Summary) -> dict[str, Any]:
    """What a reference may ask of a run."""
    return {"dataset": summary["dataset"]["name"], "model": summary["model"], "images": summary["images"]}


def references_of(summary: Summary) -> dict[str, Reference]:
    """The references of this installation that speak of such a run, by name."""
    facts = _facts(summary)
    names = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "paper")
    references = {name: read_reference(name) for name in names}
    return {
        name: reference
        for name, reference in references.items()
        if all(facts.get(key) == value for key, value in reference["run"].items())
    }


def check_table(rows: pd.DataFrame) -> Table:
    """The rows of `check` for the terminal."""
    shown = Table(*rows.columns, title="against the reference")
    for row in rows.itertuples(index=False):
        shown.add_row(*(f"{x:.4f}" if isinstance(x, float) else str(x) for x in row[:-1]), "ok" if row.ok else "MOVED")
    return shown
