"""Label maps on a Ray cluster: what is lost is done again, and numbers are those of an undisturbed run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg.errors import UserError
from diffseg.eval import cluster, evaluation
from diffseg.eval.cluster import Cluster
from diffseg.eval.run import composed

pytest.importorskip("ray", reason="needs Ray, the extra ray")
OWN_NETWORK = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def has_own_network() -> bool:
    """Whether a process may have a network of its own, where 127.0.0.1 is the only address that Ray finds."""
    return bool(shutil.which("unshare")) and subprocess.run([*OWN_NETWORK, "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What `ray_faults.py` has seen."""
    if not has_own_network():
        pytest.skip("a network of its own (unshare --net) is not allowed here")
    folder = tmp_path_factory.mktemp("faults")
    command = [*OWN_NETWORK, sys.executable, "-W", "ignore", "-m", "tests.ray_faults", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


def test_a_killed_node_costs_only_what_it_was_doing(faults):
    assert all(trial["right"] for trial in faults["nodes"])
    assert all(0 <= trial["again"] <= 2 for trial in faults["nodes"])  # one under way, one handed to it


def test_a_task_that_hangs_is_done_again(faults):
    assert faults["hung"]
    assert faults["hang"] == 8


def test_no_more_jobs_are_taken_than_are_under_way_and_waiting(faults):
    assert 2 <= faults["ahead"] <= 2 * 2 + 1


def test_a_job_that_kills_its_process_is_named(faults):
    kind, text = faults["die"]
    assert kind == "LostError"
    assert text.startswith("the number ")
    assert "was lost 2 times with the process that did it" in text


def test_what_a_worker_refuses_is_a_sentence_and_a_bug_keeps_its_traceback(faults):
    assert faults["refuse"] == ["UserError", "the number 5 is not wanted: choose another"]
    assert faults["full"][0] == "UserError"
    assert "No space left on device" in faults["full"][1]
    assert "IndexError" in faults["bug"][0]
    assert "return [][number]" in faults["bug"][1]


def test_a_run_that_loses_a_node_and_its_driver_ends_as_an_undisturbed_one(faults):
    seen = faults["evaluation"]
    assert seen["status"] == [0, 0], seen["told"]
    assert seen["same"]
    assert seen["kept"][0] >= 9
    assert seen["kept"][1]  # no map of before was made again
    assert seen["partials"] == []
    assert seen["errors"] == ["07.txt"]


def test_one_machine_is_a_cluster_whose_workers_may_write_into_the_run(faults):
    assert faults["evaluation"]["shared"], faults["evaluation"]["told"]["shared"]


def test_parts_survive_a_node_and_a_store_that_are_gone(faults):
    seen = faults["parts"]
    assert seen["status"] == [0, 0], seen["told"]
    assert seen["same"], seen["told"]
    assert seen["parts"] == 12


# --- in a worker, without a cluster -----------------------------------------------------------------------------------


@pytest.fixture
def common(tmp_path):
    """What workers are sent for two photos, and the photos' chunk."""
    for name in "ab":
        Image.fromarray(np.full((64, 64, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
    experiment = composed(
        [
            "dataset=folder",
            f"dataset.root={tmp_path}",
            "dataset.size=64",
            "workers=0",
            "device=cpu",
            "stages=[predict]",
            "segmenters.diffseg.anchors=8",
        ]
    )
    hashes = evaluation.content_hashes(evaluation._read(experiment, ["a", "b"]), remember=False)
    return evaluation._Common(experiment, evaluation._what_is_here(experiment), None), evaluation._Chunk(
        ["a", "b"], hashes
    )


def test_a_chunk_comes_back_as_files(common):
    done = evaluation.predict_chunk(*common)
    assert sorted(done.files) == ["diffseg/labels/a.png", "diffseg/labels/b.png"]
    assert (len(done), done.images) == (2, 2)


def test_a_worker_with_other_code_or_another_model_is_refused(common):
    shared, chunk = common
    here = json.loads(json.dumps(shared.here))
    here["code"]["predict"] = "0" * 12
    with pytest.raises(UserError, match=r"the worker .* has another code\.predict than the driver .*install the same"):
        evaluation.predict_chunk(replace(shared, here=here), chunk)
    here = {**shared.here, "model": {**shared.here["model"], "name": "1" * 16}}
    with pytest.raises(UserError, match=r"has another model\.name than the driver"):
        evaluation.predict_chunk(replace(shared, here=here), chunk)


def test_a_worker_with_another_photo_is_refused(common, tmp_path):
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(
        UserError, match=r"the photo b is another on the worker .*b\.png.*give all machines the same data"
    ):
        evaluation.predict_chunk(*common)
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match=r"the photo b is not there on the worker"):
        evaluation.predict_chunk(*common)


def test_the_lent_gpu_as_torch_counts_it():
    """Ray gives the machine's number; torch counts those that the process sees."""
    assert cluster._as_torch_counts([], None) == "cpu"
    assert cluster._as_torch_counts([3], None) == "cuda:3"
    assert cluster._as_torch_counts(["5"], "2,5") == "cuda:1"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:70000", "nowhere.invalid:6379"])
def test_an_address_without_a_cluster(address):
    with pytest.raises(UserError, match=rf"there is no Ray cluster at the address {address} \(.*ray start --head"):
        Cluster(address).connect()


def test_tasks_that_no_machine_can_do(monkeypatch, capsys):
    import ray

    machines = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    Cluster(cpus=4).check_room("cpu")
    with pytest.raises(UserError, match=r"a task takes 8 CPUs, which this machine has not: set ray\.cpus"):
        Cluster(cpus=8).check_room("cpu")
    assert capsys.readouterr().err == ""
    Cluster("auto").check_room("cuda")
    assert "no machine of the cluster has the 1 CPUs and 1 GPUs that a task takes: waiting" in capsys.readouterr().err


def test_images_a_task(monkeypatch):
    monkeypatch.setattr(Cluster, "slots", lambda self, device: 4)
    assert Cluster().images_a_task(100_000, "cpu") == 32
    assert Cluster().images_a_task(100_000, "cuda") == 1024
    assert Cluster().images_a_task(20, "cpu") == 3  # two for each slot
    assert Cluster().images_a_task(1, "cpu") == 1
    assert Cluster(chunk=7).images_a_task(100_000, "cuda") == 7


def test_readers_of_a_task():
    assert [Cluster().readers_of(device) for device in ("cpu", "cuda")] == [0, 4]
    assert Cluster(readers=3).readers_of("cpu") == 3
