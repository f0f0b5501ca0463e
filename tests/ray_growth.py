"""How work on a cluster grows: `python tests/ray_growth.py speed | memory | simulation`, in a clone.

speed: 20,000 tiny images on one worker and on two, of one thread each. memory: the driver's, with 1,000 and 100,000
images. simulation: a thousand workers that sleep in place of segmenting ten million photos; what the driver does is
real. What came out is in docs/cluster.md.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from PIL import Image


def images(folder: Path, count: int) -> None:
    """Hard links to fifty generated scenes of 64 x 64 pixels."""
    from diffseg.datasets.scenes import TEST_SEED, scene

    for number in range(count):
        path = folder / f"{number // 1000:03d}-{number:06d}.png"
        if number < 50:
            Image.fromarray(scene(TEST_SEED, number, 64).image).save(path)
        else:
            path.hardlink_to(folder / f"000-{number % 50:06d}.png")


def run(photos: Path, out: Path, *settings: str) -> dict:
    """Seconds from start to end of `diffseg-eval`, and what it says of prediction; its peak memory in MiB."""
    code = (
        "import resource, sys; from diffseg.eval.run import main; sys.argv[0] = 'diffseg-eval'; status = main();"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(status)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, "dataset=folder", f"dataset.root={photos}", f"run={out}"]
    start = time.monotonic()
    ran = subprocess.run(
        [*command, "dataset.size=64", "stages=[predict]", "workers=ray", *settings],
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in ran.stdout.splitlines() if "images/s" in line]
    peak = float(ran.stdout.split("peak ")[-1])
    return {"seconds": time.monotonic() - start, "told": told, "peak_mib": peak}


def speed(count: int) -> dict:
    """One worker against two: ray.cpus=2 leaves room for one task on two cores, which still has one thread."""
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        images(photos, count)
        settings = ["segmenters.diffseg.anchors=8", "ray.chunk=200"]
        found["two"] = run(photos, Path(folder) / "two", "ray.cpus=1", *settings)
        found["one"] = run(photos, Path(folder) / "one", "ray.cpus=2", *settings)
    return {**found, "ratio": found["one"]["seconds"] / found["two"]["seconds"]}


def memory() -> dict:
    """A method that makes no pass of the model: the driver has the same to do, the workers have not."""
    found: dict = {}
    for count in (1_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            photos = Path(folder) / "photos"
            photos.mkdir()
            images(photos, count)
            settings = ["segmenter@segmenters.diffseg=grid", "ray.chunk=500"]
            found[count] = run(photos, Path(folder) / "run", *settings)
    return found


def simulation(workers: int, photos: int, part: int, photo_s: float) -> dict:
    """The driver hands parts of `part` photos to an actor, which sleeps for as many at a time as there are workers."""
    import ray

    from diffseg.eval import cluster

    cluster.Cluster().connect()

    @ray.remote(max_concurrency=workers, num_cpus=0)
    class Workers:
        async def part(self, keys: list[str]) -> tuple[dict, str]:
            await asyncio.sleep(len(keys) * photo_s)
            return {"keys": len(keys)}, ""

    actor = Workers.remote()

    def parts():
        for first in range(0, photos, part):
            yield [f"s3://bucket/photos/{number:08d}.jpg" for number in range(first, first + part)]

    collected = cluster._collected(
        parts(), actor.part.remote, lambda: workers, lambda job, kind: RuntimeError(f"{job[0]}: {kind}")
    )
    done, start, peaks, cpu = 0, time.monotonic(), deque(), time.process_time()
    for _, result in collected:
        done += result["keys"]
        if done % (photos // 10) < part:
            peaks.append((done, round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
    taken = time.monotonic() - start
    return {
        "parts_per_s": photos / part / taken,
        "seconds": taken,
        "ideal_s": photos * photo_s / workers,
        "driver_cpu_s": time.process_time() - cpu,
        "peak_mib": list(peaks),
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=["speed", "memory", "simulation"])
    options.add_argument("--count", type=int, default=20_000, help="images of speed")
    options.add_argument("--workers", type=int, default=1000)
    options.add_argument("--photos", type=int, default=10_000_000)
    options.add_argument("--part", type=int, default=1000, help="photos of one task")
    options.add_argument("--photo-s", type=float, default=0.009, help="seconds that a photo takes: an H100's")
    given = options.parse_args()
    if given.what == "speed":
        print(json.dumps(speed(given.count), indent=1))
    elif given.what == "memory":
        print(json.dumps(memory(), indent=1))
    else:
        print(json.dumps(simulation(given.workers, given.photos, given.part, given.photo_s), indent=1))
