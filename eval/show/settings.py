"""What a run was made with, for people: the facts at the top of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffseg.datasets.base import Dataset
from diffseg.eval.runs import Run
from diffseg.eval.score import Summary
from diffseg.eval.show.ablations import value_text

Fact = tuple[str, str, str]  # name, value, a note below it or ""

_MERGING = "diffseg.methods.merging.Merging"
_SYMBOLS = {
    "threshold": "Threshold τ",
    "anchors": "Anchors M",
    "iterations": "Iterations N",
    "weights": "Weights R",
    "timestep": "Time step t",
    "refine": "Refinement",
}


def method_facts(settings: Mapping[str, Any], note: str = "") -> list[Fact]:
    """The settings of a segmenter, by the paper's symbols where it has them; of DiffSeg all, of others what they have.

    settings: its own, as summary.json has them. note: below its name.
    """
    made_by = str(settings["_target_"])
    facts: list[Fact] = [("Method", "DiffSeg" if made_by == _MERGING else made_by.rpartition(".")[2], note)]
    for key, value in settings.items():
        if key.startswith("_") or isinstance(value, Mapping) or (value is None and key != "weights"):
            continue
        if made_by == _MERGING and key == "relative":
            continue
        text = value_text(value)
        if key == "threshold" and made_by == _MERGING:
            text += " of the median" if settings.get("relative") else " nats"
        elif key == "anchors":
            text = f"{text} × {text}"  # noqa: RUF001
        elif key == "weights":
            text = "proportional" if value is None else text
        facts.append((_SYMBOLS.get(key, key.replace("_", " ")), text, ""))
    return facts


def run_facts(summary: Summary, run: Run, dataset: Dataset, record: Mapping[str, Any]) -> list[Fact]:
    """Everything that a reader asks first of a scored run; settings are those of its first segmenter."""
    facts = summary["dataset"]
    segmenters = summary["segmenters"]
    name, first = next(iter(segmenters.items()))
    others = f"{name}, the first of {len(segmenters)} methods or settings" if len(segmenters) > 1 else ""
    size = "whole photos" if summary["size"] is None else f"{summary['size']} pixels a side"
    classes = ("none", "regions, several annotations an image") if dataset.regions else (str(len(facts["classes"])), "")
    what: list[Fact] = [
        ("Data", facts["name"], facts["note"]),
        ("Images", f"{summary['images']:,}", f"{len(summary['skipped'])} left out" if summary["skipped"] else ""),
        ("Classes", *classes),
        ("Protocol", summary["protocol"], ""),
        ("Scored at", size, "" if summary["size"] in (None, facts["size"]) else f"predicted at {facts['size']}"),
    ]
    if summary["model"] is None:
        what.append(("Label maps", "from a folder", str(run.masks.folder) if run.masks else ""))
        return what + made_facts(run, record)
    what.append(("Model", summary["model"], ""))
    if first["settings"].get("timestep") is None:
        what.append(("Time step t", str(summary["timestep"]), ""))
    if "layers" in summary:
        what.append(("Attention layers", ", ".join(map(str, summary["layers"])), ""))
    what += method_facts(first["settings"], others)
    return what + made_facts(run, record)


def made_facts(run: Run, record: Mapping[str, Any]) -> list[Fact]:
    """Version, date, time and folder of a run."""
    commit = f"commit {record['commit'][:8]}{'+' * record['commit'].endswith('+')}" if record["commit"] else ""
    seconds = run.seconds_per_image
    return [
        ("diffseg", record["versions"]["diffseg"], commit),
        *([("Begun", record["begun"][:10], f"{record['begun'][11:16]} UTC")] if "begun" in record else []),
        *([("Prediction", f"{seconds:.2g} s per image", "")] if seconds is not None else []),
        ("Run", run.name, "ends with the hash of its data, settings and code"),
    ]
