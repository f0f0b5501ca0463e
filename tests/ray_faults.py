"""What `diffseg.eval.cluster` does when machines and processes are lost: for test_cluster.py, in a network of its own.

A cluster of nodes on one machine; writes what happened to FOLDER/report.json: `python -m tests.ray_faults FOLDER`.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from PIL import Image
from ray.cluster_utils import Cluster as Nodes

from diffseg.errors import UserError
from diffseg.eval.cluster import Cluster, scatter
from tests.fresh import Commands
from tests.test_parts import AWS, SMALL, Store

FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()


# --- work, as workers import it ---------------------------------------------------------------------------------------


def square(folder, number):
    """Notes that it was begun, takes a while, notes that it ended."""
    token = f"{number}-{time.time_ns()}"
    (folder / f"{token}.begun").touch()
    time.sleep(0.1)
    (folder / f"{token}.ended").touch()
    return number * number


def hang_once(folder, number):
    if number == 3 and not (folder / "hung").exists():
        (folder / "hung").touch()
        time.sleep(3600)
    return os.getpid()


def die(folder, number):
    (folder / f"died-{time.time_ns()}").touch()
    os._exit(1)


def refuse(folder, number):
    if number == 5:
        raise UserError("the number 5 is not wanted: choose another")
    return number


def full(folder, number):
    raise OSError("cannot write /somewhere (No space left on device); what is finished is kept")


def bug(folder, number):
    return [][number]


SLOW = """
import time

from diffseg.attention import Needs
from diffseg.methods.base import Segmenter


class Slow(Segmenter):
    '''Shades of an image, without a model; it takes a while, so that there is a middle to be killed in.'''

    needs = Needs()

    def segment(self, image):
        time.sleep(0.2)
        grey = image.pixels.mean(0)
        return ((grey - grey.min()) / (grey.max() - grey.min() + 1e-6) * 8).long().numpy()
"""


# --- scenes -----------------------------------------------------------------------------------------------------------


def kill_a_node(nodes, after_s=0.0):
    """Kills one with all its processes, as when a machine loses power; `renew` puts another in its place."""
    lost = min(nodes.worker_nodes, key=lambda node: node.node_id)
    processes = [info.process.pid for infos in lost.all_processes.values() for info in infos]
    workers = [child.pid for pid in processes for child in psutil.Process(pid).children(recursive=True)]

    def kill():
        time.sleep(after_s)
        for pid in processes + workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()

    def renew():
        thread.join()
        nodes.remove_node(lost, allow_graceful=False)
        nodes.add_node(num_cpus=1)

    return renew


def of_nodes_lost(nodes, folder):
    """Several runs, each of which loses a node at a random moment."""
    trials = []
    for trial in range(2):
        notes = folder / f"notes-{trial}"
        notes.mkdir()
        renew = kill_a_node(nodes, random.Random(trial).uniform(0.2, 1.5))
        results = dict(scatter(square, notes, range(40), CLUSTER))
        renew()
        times = Counter(note.name.partition("-")[0] for note in notes.glob("*.begun"))
        trials.append({"right": results == {n: n * n for n in range(40)}, "again": sum(times.values()) - 40})
    return trials


def said(work, folder, **options):
    try:
        list(scatter(work, folder, range(8), Cluster(**{**vars(CLUSTER), **options}), name_of="the number {}".format))
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def of_memory(folder):
    """How many more jobs are taken than were done, of many."""
    taken, most = 0, 0

    def jobs():
        nonlocal taken
        for number in range(600):
            taken += 1
            yield number

    for done, _ in enumerate(scatter(refuse_none, folder, jobs(), CLUSTER)):
        most = max(most, taken - done)
    return most


def refuse_none(folder, number):
    return number


def evaluate(folder, run, *settings, segmenters=("diffseg", "slow")):
    """Starts an evaluation of the photos."""
    arguments = [f"dataset.root={folder / 'photos'}", "dataset=folder", "dataset.size=64", "on_error=skip"]
    arguments += ["segmenters.diffseg.anchors=8" if "diffseg" in segmenters else "~segmenters.diffseg"]
    arguments += ["+segmenters.slow._target_=slow.Slow"] if "slow" in segmenters else []
    return COMMANDS.start(*arguments, f"run={folder / run}", *settings, cwd=folder, path=[folder], merged=True)


def on_ray(folder, run):
    settings = ["workers=ray", f"ray.address={ADDRESS}", "ray.chunk=2"]
    return evaluate(folder, run, *settings, segmenters=["slow"])


def result_of(run, name):
    """What a run has of a method in the end: hashes do not matter, numbers and files do."""
    summary = json.loads((run / "summary.json").read_text())
    protocols = {protocol: scores[name] for protocol, scores in summary["protocols"].items()}
    maps = {p.name: p.read_bytes().hex() for p in sorted((run / name / "labels").iterdir())}
    return json.dumps([summary["segmenters"][name], protocols, summary["skipped"], maps], sort_keys=True)


def of_evaluations(nodes, folder):
    from diffseg.datasets.scenes import TEST_SEED, scene

    photos = folder / "photos"
    photos.mkdir()
    for i in range(24):
        drawn = scene(TEST_SEED, i, 64)
        Image.fromarray(drawn.image).save(photos / f"{i:02d}.png")
        Image.fromarray(drawn.label.astype("uint8")).save(photos / f"{i:02d}.label.png")
    (photos / "07.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    alone = evaluate(folder, "alone", "workers=0")

    # A node dies in the middle, and then the driver; the same command goes on.
    maps = folder / "disturbed/slow/labels"
    running = on_ray(folder, "disturbed")
    wait_for(maps, 3, running)
    renew = kill_a_node(nodes)
    wait_for(maps, 9, running)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    renew()
    before = {path.name: path.stat().st_mtime_ns for path in maps.iterdir()}
    again = on_ray(folder, "disturbed")
    told = {"again": again.communicate()[0], "alone": alone.communicate()[0]}
    kept = all(path.stat().st_mtime_ns == before[path.name] for path in maps.iterdir() if path.name in before)
    found = {
        "same": result_of(folder / "alone", "slow") == result_of(folder / "disturbed", "slow"),
        "kept": [len(before), kept],
        "partials": [p.name for p in (folder / "disturbed").rglob("*.partial")],
        "errors": sorted(p.name for p in (folder / "disturbed/errors").iterdir()),
        "status": [alone.returncode, again.returncode],
    }

    # A cluster of this machine alone, whose workers write themselves
    of_its_own = ["workers=ray", "ray.write=workers", "ray.chunk=12"]
    shared = evaluate(folder, "shared", *of_its_own, segmenters=["diffseg"])
    told["shared"] = shared.communicate()[0]
    found["shared"] = result_of(folder / "alone", "diffseg") == result_of(folder / "shared", "diffseg")
    return {**found, "told": told}


def of_parts(nodes, folder):
    """Parts in a store: a node dies, and the store is gone for seconds."""
    from diffseg import parts, stores

    store = Store(folder / "photos")
    keys = [store.uri(f"photos/{i:02d}.png") for i in range(24) if i != 7]
    (folder / "keys.txt").write_text("\n".join(keys) + "\n")

    def begin(out, *options):
        given = ["--manifest", folder / "keys.txt", "--out", store.uri(out), "--part-size", "2", *SMALL, *options]
        return COMMANDS.start("segment", *given, module="diffseg.cli", cwd=folder, merged=True)

    def contents(out):
        place = stores.place(store.uri(out))
        return {name: place.child(name).read() for name in place.names()}

    alone, running = begin("alone"), begin("disturbed", "--ray", ADDRESS)
    while running.poll() is None and len(parts.done(store.uri("disturbed"))) < 2:
        time.sleep(0.1)
    renew = kill_a_node(nodes)
    store.go()
    time.sleep(4)
    store.come_back()
    told = [running.communicate()[0], alone.communicate()[0]]
    renew()
    return {
        "status": [running.returncode, alone.returncode],
        "same": contents("alone") == contents("disturbed"),
        "parts": len(parts.done(store.uri("disturbed"))),
        "told": told,
    }


def wait_for(folder, count, process):
    while process.poll() is None:
        with suppress(FileNotFoundError):
            if len([p for p in folder.iterdir() if p.suffix == ".png"]) >= count:
                return
        time.sleep(0.01)
    raise AssertionError(f"it ended before: {process.communicate()[0]}")


if __name__ == "__main__":
    os.environ |= AWS  # before nodes start: their workers have credentials from there, and modules
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    (FOLDER / "slow.py").write_text(SLOW)
    COMMANDS = Commands()  # it imports while the first scenes are played
    quickly = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 2}
    nodes = Nodes(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": quickly}
    )
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    ADDRESS = nodes.address
    CLUSTER = Cluster(ADDRESS, retries=3)
    start = time.monotonic()
    report = {"nodes": of_nodes_lost(nodes, FOLDER)}
    report["hang"] = len(dict(scatter(hang_once, FOLDER, range(8), Cluster(ADDRESS, timeout_s=2))))
    report["hung"] = (FOLDER / "hung").exists()
    report["ahead"] = of_memory(FOLDER)
    report["die"] = said(die, FOLDER, retries=1)
    report["refuse"], report["full"], report["bug"] = said(refuse, FOLDER), said(full, FOLDER), said(bug, FOLDER)
    report["generic_s"] = time.monotonic() - start
    report["evaluation"] = of_evaluations(nodes, FOLDER)
    report["parts"] = of_parts(nodes, FOLDER)
    report["seconds"] = time.monotonic() - start
    COMMANDS.close()
    (FOLDER / "report.json").write_text(json.dumps(report, indent=1))
