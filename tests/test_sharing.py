"""Sweeps on SLURM, whose commands are stood in for, and jobs side by side on one machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from PIL import Image

from diffseg.eval import sharing
from tests import slurm

TINY = ["dataset.count=6", "dataset.size=64", "segmenters.diffseg.anchors=8", "device=cpu", "workers=1"]
STOPS = """
import time
from pathlib import Path

from diffseg.methods.merging import Merging


class Stops(Merging):
    '''With the threshold 0.3 it stops before the fourth image where a file says so.'''

    images = 0

    def segment_batch(self, batch):
        Stops.images += 1
        while self.settings.threshold[0] == 0.3 and Stops.images > 3 and Path("stop").exists():
            time.sleep(0.1)
        return super().segment_batch(batch)
"""


def maps_of(folder):
    return {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*/labels/[0-9]*.png"))}


def waited_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


# --- SLURM ------------------------------------------------------------------------------------------------------------


def sweep_of(runs, *more):
    settings = ["segmenters.diffseg._target_=stops.Stops", "segmenters.diffseg.threshold=0.3,0.6"]
    return [sys.executable, "-m", "diffseg.eval.run", "-m", f"runs={runs}", *TINY, *settings, *more]


@pytest.fixture
def on_slurm(tmp_path):
    """Starts a sweep of two on a cluster, and gives it once the first job has made three maps and waits."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "stops.py").write_text(STOPS)
    (tmp_path / "stop").touch()
    (tmp_path / "slurm").mkdir()
    environment = slurm.install(tmp_path / "slurm")
    started = []

    def start(*more):
        command = sweep_of("queued", "hydra/launcher=slurm", "hydra.launcher.timeout_min=5", *more)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, text=True, cwd=tmp_path, env=environment, **pipes))
        waited_for(lambda: len(maps_of(tmp_path / "queued")) == 3 + 6)
        return started[0]

    yield start
    (tmp_path / "stop").unlink(missing_ok=True)  # whatever still waits goes on and ends
    for process in started:
        process.communicate(timeout=120)


def signalled(folder, number):
    """Signals the step of the first job."""
    os.kill(int((folder / "slurm" / f"{slurm.FIRST}_0.pid").read_text()), number)


def rows_of(folder):
    (table,) = folder.glob("sweeps/*/table.csv")
    return pd.read_csv(table)


@pytest.mark.slow
def test_a_job_that_meets_its_time_limit_is_queued_again_and_goes_on(tmp_path, on_slurm):
    sweep = on_slurm()
    before = {name: path.stat().st_mtime_ns for name, path in maps_of(tmp_path / "queued").items()}
    (tmp_path / "stop").unlink()
    signalled(tmp_path, signal.SIGTERM)  # as it comes first where a job is preempted: no reason to stop
    signalled(tmp_path, signal.SIGUSR2)
    said, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, said
    (log,) = (tmp_path / "queued").rglob(f"{slurm.FIRST}_0_0_log.err")
    assert "continuing: 3 of 6 label maps are there" in log.read_text()
    maps = maps_of(tmp_path / "queued")
    assert len(maps) == 12
    assert before == {name: maps[name].stat().st_mtime_ns for name in before}

    ran = subprocess.run(sweep_of("plain"), capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    pd.testing.assert_frame_equal(rows_of(tmp_path / "queued"), rows_of(tmp_path / "plain"))
    plain = maps_of(tmp_path / "plain")
    assert list(plain) == list(maps)
    assert all(np.array_equal(Image.open(maps[name]), Image.open(plain[name])) for name in maps)


@pytest.mark.slow
def test_a_job_that_meets_its_time_limit_too_often_is_a_row_of_the_table(tmp_path, on_slurm):
    sweep = on_slurm("hydra.launcher.max_num_timeout=0")
    signalled(tmp_path, signal.SIGUSR2)
    said, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 2
    assert "1 jobs of the sweep failed" in said
    lost, done = rows_of(tmp_path / "queued").to_dict("records")
    assert "timed-out too many times" in lost["error"]
    assert done["miou"] > 0


@pytest.mark.slow
def test_a_killed_job_leaves_the_table_of_the_others(tmp_path, on_slurm):
    sweep = on_slurm()
    signalled(tmp_path, signal.SIGKILL)
    said, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 2
    assert "Traceback" not in said
    assert "OUT_OF_MEMORY" in said
    assert "the same command makes what is missing" in said
    assert rows_of(tmp_path / "queued")["miou"].gt(0).tolist() == [True]


def test_the_slurm_preset_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_module("diffseg.conf", version_base="1.3"):
        launcher = compose("config", ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.gpus_per_node == 1
