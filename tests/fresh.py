"""Commands in processes that import the package anew, from any folder, and others' libraries not again.

A server has imported the libraries; for each command it forks, so that a command costs one second, not three.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "torch.utils.data", "hydra", "jinja2", "omegaconf", "pandas", "pyarrow.parquet", "rich.console", "scipy.optimize",
    "sklearn.cluster", "typer",
)  # fmt: skip


class Commands:
    """Runs modules as `python -m` does, each in a process of its own."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fresh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __call__(self, *arguments, cwd, path=(), module="diffseg.eval.run") -> subprocess.CompletedProcess:
        """path: folders that modules come from, before this checkout's."""
        assert self._server.stdin
        assert self._server.stdout
        with tempfile.TemporaryDirectory() as folder:
            job = {
                "module": module,
                "arguments": [str(a) for a in arguments],
                "path": [*map(str, path), str(ROOT)],
                "cwd": str(cwd),
                "cache": os.environ["XDG_CACHE_HOME"],
                "said": folder,
            }
            print(json.dumps(job), file=self._server.stdin, flush=True)
            status = int(self._server.stdout.readline())
            said = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, status, *said)

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()


def serve() -> None:
    """Reads a job a line and answers with its exit status; returns in the processes that do one."""
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            become(job)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(job: dict) -> None:
    """Makes this process what `python -m` would have made it, and runs it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(job["said"], name), os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    os.environ |= {"PYTHONPATH": os.pathsep.join(job["path"]), "XDG_CACHE_HOME": job["cache"]}
    sys.path[:1] = job["path"]
    sys.argv = ["", *job["arguments"]]
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in LIBRARIES:
        import_module(name)
    import_module("torch").set_num_threads(1)
    serve()
