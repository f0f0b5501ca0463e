"""Experiment trackers. The only module that knows wandb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffseg.datasets.base import Dataset
from diffseg.eval.runs import Run


class Tracker:
    """Keeps nothing: what a run writes to its own folder is record enough."""

    def track(self, run: Run, config: dict[str, Any], summary: dict[str, Any], dataset: Dataset) -> None:
        """Called once, when a run has been scored. config: the resolved configuration; summary: summary.json."""


class Wandb(Tracker):
    """Weights & Biases: configuration, metrics, a table of IoU per class, overlays of the first images.

    Args:
        project: its name. mode: online, offline or disabled. folder: where wandb keeps its files.
        overlays: images to upload for each segmenter.

    Raises:
        ValueError: wandb is not installed, or the mode does not exist.
    """

    def __init__(self, project: str = "diffseg", mode: str = "online", folder: str = "results/runs", overlays: int = 8):
        if mode not in ("online", "offline", "disabled"):
            raise ValueError(f"tracker.mode must be online, offline or disabled, got {mode!r}")
        try:
            import wandb
        except ModuleNotFoundError:
            raise ValueError('tracker=wandb needs wandb: pip install "diffseg[wandb]"') from None
        self._wandb, self.project, self.mode = wandb, project, mode
        self.folder, self.overlays = Path(folder), overlays

    def track(self, run: Run, config: dict[str, Any], summary: dict[str, Any], dataset: Dataset) -> None:
        """Logs one wandb run, named after the run's folder; a rerun updates it."""
        from diffseg.eval.report import map_path, picture

        wandb = self._wandb
        self.folder.mkdir(parents=True, exist_ok=True)
        with wandb.init(
            project=self.project,
            name=run.name,
            id=run.name,
            resume="allow",
            mode=self.mode,
            dir=str(self.folder),
            config=config,
            settings=wandb.Settings(silent=True),
        ) as logged:
            for name, found in summary["segmenters"].items():
                low, high = found["interval"]["miou"]
                logged.summary.update(
                    {
                        f"{name}/accuracy": found["accuracy"],
                        f"{name}/miou": found["miou"],
                        f"{name}/miou_low": low,
                        f"{name}/miou_high": high,
                        f"{name}/segments": found["segments"],
                    }
                )
                rows = [[c, iou] for c, iou in found["iou"].items() if iou is not None]
                shown = [k for k in dataset.keys if k not in summary["skipped"]][: self.overlays]
                logged.log(
                    {
                        f"{name}/classes": wandb.Table(["class", "IoU"], rows),
                        f"{name}/overlays": [
                            wandb.Image(picture(dataset, key, map_path(run, config, name, key)), caption=key)
                            for key in shown
                        ],
                    }
                )
