"""Published numbers (results/reference/paper.yaml), each with its protocol, size and source.

A number stands beside measured ones of its own data set, protocol and size, and nowhere else: in this field the
protocol moves a number by more than the method does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import yaml

from diffseg.eval.check import FOLDER

SOURCES = (
    "paper, seen there; quoted, another paper, site or repository quotes it; recalled, from memory and not seen in "
    "print, so verify it before relying on it"
)


@lru_cache
def _file() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "paper.yaml").read_text())


@lru_cache
def published_rows() -> tuple[dict[str, Any], ...]:
    """All published rows.

    Each: dataset, method, backbone, protocol (None: not known), size (None: not known, or whole photos), refinement,
    accuracy, miou, source, note. Of BSDS500 covering and boundary, both [ODS, OIS], and pri and vi at ODS.

    Numbers are in percent, vi in bits; None: not known. note: what keeps a row from being compared.
    """
    file = _file()
    blank = {"backbone": None, "protocol": None, "size": None, "refinement": None, "accuracy": None, "note": ""}
    blank |= dict.fromkeys(("miou", "covering", "boundary", "pri", "vi"))
    rows = [{**blank, **row} for row in file["rows"]]
    for table, protocol, size in (("diffcut_table", "diffcut", 128), ("other_tables", None, None)):
        for entry in file[table]:
            refined = {True: "PAMR", False: "none"}.get(entry.get("pamr"))
            facts = {key: entry[key] for key in ("method", "backbone", "source", "note") if key in entry}
            common = {**blank, **facts, "protocol": protocol, "size": size, "refinement": refined}
            each = zip(file["order"], entry["miou"], strict=True)
            rows += [{**common, "dataset": dataset, "miou": miou} for dataset, miou in each]
    rows += [{**blank, **row, "dataset": "bsds500", "protocol": "regions"} for row in file["bsds500_test"]]
    return tuple(rows)


def published_beside(dataset: str | None, protocol: str, size: int | None) -> list[dict[str, Any]]:
    """The published rows that may stand beside measured ones of this data set, protocol and size.

    size: pixels a side; None: whole photos.
    """
    asked = {"dataset": dataset, "protocol": protocol, "size": size}
    return [row for row in published_rows() if asked.items() <= row.items()]


def published_settings() -> dict[str, Any]:
    """The paper's hyper-parameters: weights, timestep, anchors, iterations, threshold {data set: tau}, refinement."""
    return _file()["hyper_parameters"]
