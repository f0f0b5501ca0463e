"""Sweeps on SLURM, whose commands are stood in for, and jobs side by side on one machine."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from diffseg.eval import run, sharing
from tests import slurm

ROOT = Path(__file__).parents[1]

TINY = ["dataset.count=6", "dataset.size=64", "segmenters.diffseg.anchors=8", "device=cpu"]
TINY += ["segmenters.diffseg.threshold=0.3,0.6"]
STOPPING = "segmenters.diffseg._target_=stops.Stops"
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


def waited_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


# --- SLURM ------------------------------------------------------------------------------------------------------------


def sweep_of(runs, *more):
    return ["-m", f"runs={runs}", *TINY, *more]


@pytest.fixture
def on_slurm(tmp_path, commands):
    """Starts a sweep of two on a cluster, and gives it once the first job has made three maps and waits."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "stops.py").write_text(STOPS)
    (tmp_path / "stop").touch()
    (tmp_path / "slurm").mkdir()
    environment = slurm.install(tmp_path / "slurm", commands.place)
    started = []

    def start(*more):
        settings = sweep_of("queued", STOPPING, "hydra/launcher=slurm", "hydra.launcher.timeout_min=5", *more)
        started.append(commands.start(*settings, cwd=tmp_path, path=[tmp_path], merged=True, **environment))
        waited_for(lambda: len(maps_of(tmp_path / "queued")) == 3 + 6)
        return started[0]

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
            patch.delenv(name)
        yield start
    (tmp_path / "stop").unlink(missing_ok=True)  # whatever still waits goes on and ends
    for process in started:
        process.wait(timeout=300)


def step_of(folder):
    """The process of the first job's step, and those that it has started."""
    step = int((folder / "slurm" / f"{slurm.FIRST}_0.pid").read_text())
    return step, [int(x) for x in Path(f"/proc/{step}/task/{step}/children").read_text().split()]


def rows_of(folder):
    (table,) = folder.glob("sweeps/*/table.csv")
    return pd.read_csv(table)


@pytest.mark.slow
def test_a_job_that_meets_its_time_limit_is_queued_again_and_goes_on(tmp_path, on_slurm, commands):
    sweep = on_slurm()
    before = {name: path.stat().st_mtime_ns for name, path in maps_of(tmp_path / "queued").items()}
    (tmp_path / "stop").unlink()
    step, readers = step_of(tmp_path)
    assert readers
    os.kill(step, signal.SIGTERM)  # as it comes first where a job makes way: no reason to stop
    for process in (*readers, step):  # where SLURM does not know them by their cgroup, all are signalled
        os.kill(process, signal.SIGUSR2)
    said, _ = sweep.communicate()
    assert sweep.returncode == 0, said
    out, err = ((tmp_path / "queued").rglob(f"{slurm.FIRST}_0_0_log.{stream}") for stream in ("out", "err"))
    assert "continuing: 3 of 6 label maps are there" in next(err).read_text()
    assert next(out).read_text().count("Requeued job") == 1
    maps = maps_of(tmp_path / "queued")
    assert len(maps) == 12
    assert before == {name: maps[name].stat().st_mtime_ns for name in before}

    ran = commands(*sweep_of("plain", STOPPING), cwd=tmp_path, path=[tmp_path])
    assert ran.returncode == 0, ran.stderr
    pd.testing.assert_frame_equal(rows_of(tmp_path / "queued"), rows_of(tmp_path / "plain"))
    plain = maps_of(tmp_path / "plain")
    assert list(plain) == list(maps)
    assert all(np.array_equal(Image.open(maps[name]), Image.open(plain[name])) for name in maps)


@pytest.mark.slow
def test_a_job_that_meets_its_time_limit_too_often_is_a_row_of_the_table(tmp_path, on_slurm):
    sweep = on_slurm("hydra.launcher.max_num_timeout=0")
    os.kill(step_of(tmp_path)[0], signal.SIGUSR2)
    said, _ = sweep.communicate()
    assert sweep.returncode == 2
    assert "1 of the sweep's 2 jobs failed" in said
    lost, done = rows_of(tmp_path / "queued").to_dict("records")
    assert "timed-out too many times" in lost["error"]
    assert done["miou"] > 0


@pytest.mark.slow
def test_a_killed_job_leaves_the_table_of_the_others(tmp_path, on_slurm):
    sweep = on_slurm()
    os.kill(step_of(tmp_path)[0], signal.SIGKILL)
    said, _ = sweep.communicate()
    assert sweep.returncode == 2
    assert "Traceback" not in said
    assert "OUT_OF_MEMORY" in said
    assert "the same command makes what is missing" in said
    assert rows_of(tmp_path / "queued")["miou"].gt(0).tolist() == [True]


# --- side by side -----------------------------------------------------------------------------------------------------

HOLDS = """
import os, signal, sys, time
from multiprocessing import get_context
from pathlib import Path

from diffseg.eval.sharing import turn
from diffseg.eval.workers import leave_with_parent


def read():
    leave_with_parent()
    time.sleep(600)


with turn("GPU-0", "cuda:0", Path(sys.argv[1])):
    reader = get_context("fork").Process(target=read)
    reader.start()  # as a DataLoader's: with all files that are open
    print("mine", flush=True)
    input()
    print("ends", flush=True)
    if "killed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
reader.terminate()
"""


def holder(folder, *more):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", HOLDS, str(folder), *more], text=True, **pipes)


@pytest.mark.parametrize("killed", [False, True])
def test_one_process_at_a_time_has_a_gpu(tmp_path, killed):
    first = holder(tmp_path, *["killed"] * killed)
    assert first.stdout.readline() == "mine\n"
    second = holder(tmp_path)
    assert "cuda:0 is making label maps for another process: waiting for it" in second.stderr.readline()
    assert second.poll() is None
    first.stdin.write("\n")
    first.stdin.flush()
    assert first.stdout.readline() == "ends\n"
    assert second.stdout.readline() == "mine\n"
    first.communicate(timeout=60)
    second.communicate("\n", timeout=60)
    assert second.returncode == 0
    assert first.returncode == (-signal.SIGKILL if killed else 0)


def test_other_gpus_and_the_cpu_are_free(tmp_path):
    with sharing.turn("GPU-0", "cuda:0", tmp_path):
        with sharing.turn("GPU-1", "cuda:1", tmp_path):
            pass
        with sharing.turn_on(torch.device("cpu")), sharing.turn_on(torch.device("cpu")):
            pass


def test_a_gpu_is_held_by_what_it_is_not_by_its_number(tmp_path, monkeypatch):
    """Each job of a scheduler may see its GPU as number 0."""
    monkeypatch.setattr(sharing, "_PLACE", tmp_path)
    properties = type("Properties", (), {"uuid": "a-b"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with sharing.turn_on(torch.device("cuda", 3)):
        (file,) = tmp_path.iterdir()
        with pytest.raises(Timeout):
            FileLock(file).acquire(blocking=False)
    FileLock(file).acquire(blocking=False).lock.release()


def test_jobs_take_turns_over_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [sharing.gpu_of("auto", job) for job in range(5)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert sharing.gpu_of("cuda", 4) == "cuda:1"
    assert sharing.gpu_of("cuda:2", 4) == "cuda:2"
    assert sharing.gpu_of("cpu", 4) == "cpu"
    for gpus in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert sharing.gpu_of("auto", 4) == "auto"


@pytest.mark.parametrize(("launcher", "device"), [("local", "cuda:1"), ("slurm", "cuda:1"), ("basic", "auto")])
def test_a_job_of_a_sweep_has_a_gpu_of_its_own(monkeypatch, launcher, device):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_module("diffseg.conf", version_base="1.3"):
        chosen = [f"hydra/launcher={launcher}", "hydra.job.num=5"]
        HydraConfig.instance().set_config(compose("config", chosen, return_hydra_config=True))
    asked = {"device": "auto", "workers": 0}
    assert run._beside_others(asked) == {"device": device, "workers": 0}
    assert run._beside_others({"device": "auto", "workers": "ray"})["device"] == "auto"


def test_cores_are_shared(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert [sharing.cores(jobs) for jobs in (1, 2, 5, 12, 100, -1, -2)] == [12, 6, 2, 1, 1, 1, 1]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert [sharing.cores(jobs) for jobs in (1, 2, 5)] == [4, 2, 1]


COUNTS = """
import os
from pathlib import Path

import torch

from diffseg.methods.merging import Merging


class Counts(Merging):
    '''Writes down how many threads its process has.'''

    def segment_batch(self, batch):
        Path(f"threads-{os.getpid()}").write_text(str(torch.get_num_threads()))
        return super().segment_batch(batch)
"""


@pytest.mark.slow
def test_jobs_in_parallel_share_the_cores(tmp_path, commands):
    """Also where the environment asks for more threads; what they make does not depend on it. Each has readers."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "counts.py").write_text(COUNTS)
    cores = len(os.sched_getaffinity(0))
    share = max(1, cores // 2)
    for runs, launcher, asked, threads in (("together", "local", cores, share), ("alone", "basic", 1, 1)):
        settings = sweep_of(runs, "segmenters.diffseg._target_=counts.Counts", f"hydra/launcher={launcher}")
        ran = commands(*settings, cwd=tmp_path, path=[tmp_path], OMP_NUM_THREADS=str(asked))
        assert ran.returncode == 0, ran.stderr
        if launcher == "local":  # jobs are processes of their own, which import what they need
            assert ran.stdout.count("┏") == 1  # the sweep's table, and none of jobs side by side
        (table,) = (tmp_path / runs).glob("sweeps/*/table.csv")
        assert len(pd.read_csv(table)) == 2
        assert {path.read_text() for path in tmp_path.glob("threads-*")} == {str(threads)}
        records = [yaml.safe_load(path.read_text()) for path in (tmp_path / runs).glob("*/config.yaml")]
        assert [record["workers"] for record in records] == [min(8, share if launcher == "local" else cores)] * 2
        for path in tmp_path.glob("threads-*"):
            path.unlink()
    together, alone = maps_of(tmp_path / "together"), maps_of(tmp_path / "alone")
    assert len(together) == 12
    assert list(together) == list(alone)
    assert all(together[name].read_bytes() == alone[name].read_bytes() for name in together)


NAMES = ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")


@pytest.mark.parametrize("command", ["diffseg", "diffseg-eval"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, ["passive", "1"]), ({"OMP_WAIT_POLICY": "active", "THP_MEM_ALLOC_ENABLE": "0"}, ["active", "0"])],
)
def test_what_threads_and_memory_need_is_said_before_torch_loads(command, given, expected):
    """Said of the door that the command is, and of the moment when torch is first asked for."""
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][command]
    module, function = target.split(":")
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print("policy", *(os.environ.get(name) for name in {NAMES}))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
from {module} import {function}
sys.argv = [{command!r}, "compare", "a", "b"] if {command!r} == "diffseg-eval" else [{command!r}, "segment", "--demo"]
{function}()
"""
    environment = {key: value for key, value in os.environ.items() if key not in NAMES} | given
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert ran.stdout.split() == ["policy", *expected], ran.stderr
