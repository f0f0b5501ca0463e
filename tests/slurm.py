"""SLURM as far as submitit needs it: `sbatch`, `srun`, `scontrol` and `sacct` that run jobs on this machine.

`install` puts the commands into a folder for PATH; their state lies in files beside them. A job is a session of
processes. Its steps, and no other processes, are signalled, as SLURM does it with cgroups.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "."))
FIRST = 4242


def install(folder: Path, processes: str) -> dict[str, str]:
    """The environment in which the commands are found.

    folder: an empty one. processes: the socket of `tests.fresh` where steps get their processes.
    """
    for name in ("sbatch", "srun", "scontrol", "sacct", "job"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        command.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "FAKE_SLURM": str(folder), "FAKE_SLURM_PROCESSES": processes}


def options_of(script: Path) -> dict[str, str]:
    """The #SBATCH options of a batch script, without their dashes; "" where one has no value."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE)
    return {name: shlex.split(value)[0] if value else "" for name, value in lines}


def sbatch(script: str) -> None:
    submitted = STATE / "submitted.sh"  # a copy, as SLURM keeps: submitit renames its own at once
    submitted.write_bytes(Path(script).read_bytes())
    last = int(re.match(r"0-(\d+)", options_of(submitted).get("array", "0-0"))[1])
    for task in range(last + 1):
        (STATE / f"{FIRST}_{task}.state").write_text("PENDING")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen([STATE / "job", submitted, str(task)], start_new_session=True, **quiet)
    print(f"Submitted batch job {FIRST}")


def job(script: str, task: str) -> None:
    """Runs a job's script, again as often as it is put into the queue meanwhile."""
    name, options = f"{FIRST}_{task}", options_of(Path(script))
    environment = {
        "SLURM_JOB_ID": str(FIRST + 1 + int(task)),
        "SLURM_ARRAY_JOB_ID": str(FIRST),
        "SLURM_ARRAY_TASK_ID": task,
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
    }
    for restart in range(10):
        (STATE / f"{name}.state").write_text("RUNNING")
        with Path(options["output"].replace("%A_%a", name)).open("a") as out:
            more = {"SLURM_RESTART_COUNT": str(restart)} if restart else {}
            status = subprocess.run(["bash", script], stdout=out, stderr=out, env={**os.environ, **environment, **more})
        again = STATE / f"{name}.again"
        if not again.exists():
            break
        again.unlink()
        (STATE / f"{name}.state").write_text("PENDING")
    (STATE / f"{name}.state").write_text("OUT_OF_MEMORY" if status.returncode else "COMPLETED")


def srun(*arguments: str) -> None:
    """Runs the step in a process of its own, whose number is noted."""
    from fresh import begin, number_from  # beside this file, which is run as a program

    name = f"{FIRST}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    start = arguments.index(sys.executable)
    options, (_, _, _, module, *given) = list(arguments[:start]), arguments[start:]  # python -u -m module ...
    paths = [options[options.index(name) + 1] for name in ("--output", "--error")]
    streams = [
        os.open(path.replace("%A_%a", name).replace("%t", "0"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for path in paths
    ]
    step = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
    job = {"module": module, "script": None, "arguments": given, "cwd": str(Path.cwd())}
    job |= {"path": [str(Path.cwd()), os.environ["PYTHONPATH"]], "environment": {**os.environ, **step}}
    keeper, pid = begin(os.environ["FAKE_SLURM_PROCESSES"], job, *streams)
    (STATE / f"{name}.pid").write_text(str(pid))
    sys.exit(number_from(keeper) != 0)


def scontrol(action: str, name: str) -> None:
    """`scontrol requeue JOB`, on a cluster that requeues only what asks for it (JobRequeue=0)."""
    if action != "requeue" or "requeue" not in options_of(STATE / "submitted.sh"):
        sys.exit("Requested operation is presently disabled")
    (STATE / f"{name}.again").touch()


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for path in sorted(STATE.glob("*.state")):
        print(f"{path.stem}|{path.read_text()}|here")


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "sacct": sacct, "job": job}[sys.argv[1]](*sys.argv[2:])
