"""Experiment trackers. The only module that knows wandb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffseg.datasets.base import Dataset
from diffseg.errors import UserError
from diffseg.eval.runs import Run
from diffseg.eval.score import Summary


class Tracker:
    """Keeps nothing: what a run writes to its own folder is record enough."""

    def track(self, run: Run, record: dict[str, Any], summary: Summary, dataset: Dataset) -> None:
        """Called once, when a run has been scored. record: all settings; summary: summary.json."""


class Wandb(Tracker):
    """Weights & Biases: configuration, metrics, a table of IoU per class, overlays of the first images.

    Args:
        project: its name. mode: online, offline or disabled. folder: where wandb keeps its files.
        overlays: images to upload for each segmenter.

    Raises:
        UserError: wandb is not installed, or the mode does not exist.
    """

    def __init__(self, project: str = "diffseg", mode: str = "online", folder: str = "results/runs", overlays: int = 8):
        if mode not in ("online", "offline", "disabled"):
            raise UserError(f"tracker.mode must be online, offline or disabled, got {mode!r}")
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError('tracker=wandb needs wandb: pip install "diffseg[wandb]"') from None
        self._wandb, self.project, self.mode = wandb, project, mode
        self.folder, self.overlays = Path(folder), overlays

    def track(self, run: Run, record: dict[str, Any], summary: Summary, dataset: Dataset) -> None:
        """Logs one wandb run, named after the run's folder; a rerun updates it."""
        from diffseg.eval.show.examples import picture

        wandb = self._wandb
        self.folder.mkdir(parents=True, exist_ok=True)
        with wandb.init(
            project=self.project,
            name=run.name,
            id=run.name,
            resume="allow",
            mode=self.mode,
            dir=str(self.folder),
            config=record,
            settings=wandb.Settings(silent=True),
        ) as logged:
            for rule, by_segmenter in summary["protocols"].items():
                first = rule == summary["protocol"]
                for name, metrics in by_segmenter.items():
                    logged.summary.update(_logged(name if first else f"{rule}/{name}", metrics))
            for name, scores in summary["segmenters"].items():
                logged.summary.update({f"{name}/segments": scores["segments"]})
                rows = [[c, iou] for c, iou in scores.get("iou", {}).items() if iou is not None]
                shown = [k for k in dataset.keys if k not in summary["skipped"]][: self.overlays]
                logged.log(
                    {
                        f"{name}/classes": wandb.Table(["class", "IoU"], rows),
                        f"{name}/overlays": [
                            wandb.Image(picture(dataset, key, run.map(name, key)), caption=key) for key in shown
                        ],
                    }
                )


def _logged(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one segmenter under one protocol, with the ends of their intervals, as wandb shows them."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    ends = {
        f"{key}_{end}": value
        for key, pair in metrics["interval"].items()
        for end, value in zip(("low", "high"), pair, strict=True)
    }
    return {f"{name}/{key}": value for key, value in (numbers | ends).items()}
