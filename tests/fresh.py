"""Commands in processes that import the package anew, from any folder, and others' libraries not again.

A server has imported the libraries; for each command it forks, so that a command costs one second, not five. Such a
process reads its environment and its current folder as any other does; what the libraries read of the environment as
they are imported is the server's.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from select import select

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "torch.utils.data", "hydra.experimental.callback", "hydra._internal.core_plugins", "jinja2", "omegaconf", "pandas",
    "PIL.ImageDraw", "pyarrow.dataset", "pyarrow.parquet", "pycocotools.mask", "pydantic.type_adapter", "rich.console",
    "scipy.optimize", "sklearn.cluster", "typer", "diffusers.guiders", "diffusers.schedulers.scheduling_ddim",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "transformers.models.clip.modeling_clip",
)  # fmt: skip


def begin(place: str, job: dict, stdout: int, stderr: int) -> tuple[socket.socket, int]:
    """Asks the server at a socket for a process: (what says its exit status in the end, its number).

    job: see `Commands.start`. stdout, stderr: open files of it.
    """
    keeper = socket.socket(socket.AF_UNIX)
    keeper.connect(place)
    socket.send_fds(keeper, [b" "], [stdout, stderr])
    keeper.sendall(json.dumps(job).encode() + b"\n")
    return keeper, number_from(keeper)


def number_from(keeper: socket.socket) -> int:
    """The next number that the keeper of a process says: the process' own, then its exit status."""
    return int(keeper.recv(20, socket.MSG_WAITALL))


def say(client: socket.socket, number: int) -> None:
    """What `number_from` reads; nobody need be there."""
    with suppress(BrokenPipeError):
        client.sendall(f"{number:20}".encode())


class Command:
    """A process that a server has forked, with what `subprocess.Popen` has of it."""

    def __init__(self, place: str, job: dict, merged: bool) -> None:
        """place: the server's socket. job: see `Commands.start`. merged: stderr goes where stdout goes."""
        self.args = job["arguments"]
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        read, write = os.pipe()
        self.stdout = os.fdopen(read)
        self._keeper, self.pid = begin(place, job, write, write if merged else self._stderr.fileno())
        os.close(write)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, as soon as there is one."""
        if self.returncode is None:
            if not select([self._keeper], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = number_from(self._keeper)
            self._keeper.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit status, if there is one."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def communicate(self) -> tuple[str, str]:
        """(stdout, stderr) once the last of its processes has left."""
        out = self.stdout.read()
        self.wait()
        self._stderr.seek(0)
        return out, self._stderr.read()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Commands:
    """Runs modules as `python -m` does, or scripts as `python SCRIPT` does, each in a process of its own."""

    def __init__(self, libraries: tuple[str, ...] = LIBRARIES, **environment: str) -> None:
        """environment: the server's, beside this process'; its commands have it, too."""
        self._environment, self._folder = environment, tempfile.TemporaryDirectory()
        self.place = f"{self._folder.name}/socket"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.place)
        listening.listen(100)
        command = [sys.executable, "-m", "tests.fresh", str(listening.fileno()), *libraries]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, cwd=ROOT, env=os.environ | environment, pass_fds=[listening.fileno()]
        )
        listening.close()

    def __call__(self, *arguments, cwd, **options) -> subprocess.CompletedProcess:
        """Runs a command to its end. options: of `start`."""
        running = self.start(*arguments, cwd=cwd, **options)
        said = running.communicate()
        return subprocess.CompletedProcess(arguments, running.returncode, *said)

    def start(
        self, *arguments, cwd, path=(), module="diffseg.eval.run", script=None, merged=False, **environment
    ) -> Command:
        """Starts a command.

        path: folders that modules come from, before this checkout's. script: a file to run in place of a module.
        merged: stderr goes where stdout goes. environment: more of it, beside this process'.
        """
        job = {
            "module": module,
            "script": script and str(script),
            "arguments": [str(a) for a in arguments],
            "path": [*map(str, path), str(ROOT)],
            "cwd": str(cwd),
            "environment": {**os.environ, **self._environment, **environment},
        }
        return Command(self.place, job, merged)

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()
        self._folder.cleanup()


def serve(listening: socket.socket) -> dict | None:
    """Forks for each job that is asked for: gives the job in the process that is to do it; None at the end of stdin."""
    while True:
        ready, _, _ = select([listening, sys.stdin], [], [])
        if listening not in ready:
            return None
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            return keep(connection)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # keepers that have ended
                pass


def keep(connection: socket.socket) -> dict:
    """Forks the process of a job, in which it returns, and tells its number and its exit status."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    with connection.makefile() as lines:
        job = json.loads(lines.readline())
    pid = os.fork()
    if not pid:
        connection.close()
        for number, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, number)
        for descriptor in descriptors:
            os.close(descriptor)
        return job
    for descriptor in descriptors:
        os.close(descriptor)
    say(connection, pid)
    say(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def become(job: dict) -> None:
    """Makes this process what `python -m` or `python SCRIPT` would have made it, and runs it."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"] | {"PYTHONPATH": os.pathsep.join(job["path"])})
    sys.path[:1] = job["path"]
    if job["script"]:
        sys.argv = [job["script"], *job["arguments"]]
        sys.path.insert(0, str(Path(job["script"]).parent))
        runpy.run_path(job["script"], run_name="__main__")
    else:
        sys.argv = ["", *job["arguments"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


def end(status: int) -> None:
    """Ends this process without taking the interpreter apart: that would copy what it shares with the server."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        import_module(name)
    import_module("PIL.Image").init()  # formats are modules, too
    import_module("torch").set_num_threads(1)
    gc.freeze()  # or every process would copy it all to look for garbage in it
    todo = serve(channel)
    if todo:
        try:
            become(todo)
        except SystemExit as ended:
            if not isinstance(ended.code, str):
                end(ended.code or 0)
            print(ended.code, file=sys.stderr)
            end(1)
        except Exception:
            sys.excepthook(*sys.exc_info())
            end(1)
        end(0)
