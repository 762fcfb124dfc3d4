"""A process that has imported the jobs and forks one per request.

A job run by itself spends most of a small test on importing torch. Here the imports happen once per
test session; every job is still a process of its own, started from the top of its module with its
own arguments, folder, output files and exit status.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PRELOADED = (
    "pipelines.cluster", "pipelines.evaluate", "pipelines.recluster", "pipelines.report",
    "pipelines.status",
    "rrcluster.local", "rrcluster.models.clip",
)  # fmt: skip


@dataclass
class Job:
    """A job that was started: ``wait`` gives its exit status, negative for a signal."""

    pid: int
    _line: socket.socket
    _status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises TimeoutError when the job takes longer than ``timeout``."""
        if self._status is None:
            self._line.settimeout(timeout)
            answer = self._line.recv(32)
            assert answer, f"the process that forked job {self.pid} is gone"
            self._status = os.waitstatus_to_exitcode(int(answer))
            self._line.close()
        return self._status

    def poll(self) -> int | None:
        try:
            return self.wait(timeout=0.001)
        except TimeoutError:
            return None


class Zygote:
    """The running process; leaving the with-statement ends it."""

    def __enter__(self) -> Zygote:
        self.folder = tempfile.TemporaryDirectory(prefix="jobs-", dir="/tmp")
        self.address = f"{self.folder.name}/socket"
        # The pipe's end tells the child that this process is gone.
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()

    def start(self, name: str, overrides: Sequence[str], out: Path, err: Path, cwd: Path) -> Job:
        """Start ``python -m pipelines.<name>`` as the head of a process group of its own."""
        line = socket.socket(socket.AF_UNIX)
        line.connect(self.address)
        asked = {
            "module": f"pipelines.{name}", "arguments": list(overrides), "out": str(out),
            "err": str(err), "cwd": str(cwd), "env": dict(os.environ) | {"COLUMNS": "120"},
        }  # fmt: skip
        line.sendall(json.dumps(asked).encode() + b"\n")
        return Job(int(line.recv(32)), line)


def _serve(address: str) -> dict:
    """Fork for each request. Returns in the forked process only, with what it is to run."""
    for module in PRELOADED:
        importlib.import_module(module)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    print("ready", flush=True)
    while True:
        line, _ = listening.accept()
        asked = json.loads(line.makefile().readline())
        pid = os.fork()
        if pid == 0:
            listening.close()
            line.close()
            return asked
        line.sendall(str(pid).encode())
        threading.Thread(target=_report, args=(pid, line), daemon=True).start()


def _report(pid: int, line: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # nobody waits for it any more
        line.sendall(str(status).encode())
    line.close()


def _become(asked: dict) -> None:
    os.setsid()
    for path, number in ((os.devnull, 0), (asked["out"], 1), (asked["err"], 2)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = [asked["module"], *asked["arguments"]]
    sys.path[0] = asked["cwd"]
    sys.modules.pop(asked["module"], None)  # it runs anew, as the main module
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    _become(_serve(sys.argv[1]))
