"""`ray job submit` against a head with a job server on the loopback: run, stop, go on, upload."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from job_fixtures import SMALL

from rrcluster.config import ComputeSpec
from rrcluster.distributed.placement import helper_options, reader_options, worker_options
from rrcluster.distributed.room import slots

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = (sys.executable, "-m", "ray.scripts.scripts")
START_SECONDS = 60


@dataclass(frozen=True)
class JobServer:
    """A running head; ``env`` is what a command needs to reach it."""

    address: str
    env: dict[str, str]
    temp_dir: Path

    def ray_job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RAY, "job", *arguments],
            cwd=REPOSITORY, env=self.env, capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    def submit(
        self, corpus: Path, run_dir: Path, *flags: str, overrides: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return self.ray_job(
            "submit", "--address", self.address, "--working-dir", ".", *flags, "--",
            "python", "-m", "pipelines.cluster", "compute=gpu_pool", "compute.gpus_per_worker=0",
            f"corpus.uri={corpus}", f"run_dir={run_dir}", "k=[3,8]", *SMALL, *overrides,
        )  # fmt: skip

    def uploads(self) -> list[Path]:
        """The job's working directories, as the cluster unpacked them."""
        found = self.temp_dir.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
        return [path for path in found if path.is_dir()]


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    """Another Ray than the session's: own folder, ports, token and process group."""
    pytest.importorskip("opencensus", reason="the job server needs ray[default]")
    pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default]")
    temp_dir = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))  # its sockets need a short path
    token = temp_dir / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client, agent = _free_ports(4)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "COLUMNS": "120"}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # nobody else is served by this head
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env.pop("PYTHONPATH", None)  # what was uploaded must be what runs
    address = f"http://127.0.0.1:{dashboard}"
    head = subprocess.Popen(
        [
            *RAY, "start", "--head", "--block", f"--port={gcs}", "--num-cpus=4",
            f"--memory={16 << 30}",  # room for workers, whatever else is running on this machine
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--temp-dir={temp_dir}", "--disable-usage-stats",
        ],
        env=env, cwd=temp_dir, start_new_session=True,
        stdout=(temp_dir / "head.log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait_for(address, token.read_text(), head)
        yield JobServer(address, env, temp_dir)
    finally:
        head.terminate()  # `ray start --block` takes its own processes down
        with suppress(subprocess.TimeoutExpired):
            head.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # what is left of this group, and only of this
        shutil.rmtree(temp_dir, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _wait_for(address: str, token: str, head: subprocess.Popen[bytes]) -> None:
    asked = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and head.poll() is None:
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"no job server at {address}")


def same_files(one: Path, other: Path) -> None:
    for path in sorted(one.rglob("*.parquet")) + sorted(one.rglob("*.npy")):
        assert (other / path.relative_to(one)).read_bytes() == path.read_bytes(), path
    for name in ("run.json", "report/index.html"):
        assert (other / name).stat().st_size


def test_a_submitted_job_gives_the_bytes_of_the_job_in_process(
    server, drawn, finished, tmp_path
) -> None:
    found = server.submit(drawn, tmp_path / "run")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "succeeded" in found.stdout + found.stderr
    assert "embed 6/6" in found.stdout  # progress as plain lines
    assert "\x1b[?25l" not in found.stdout  # and no live bars
    same_files(finished, tmp_path / "run")


def test_a_stopped_job_says_so_and_goes_on_when_it_is_submitted_again(
    server, drawn, finished, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    assert server.submit(drawn, run_dir, "--no-wait", "--submission-id=stopped").returncode == 0
    end = time.monotonic() + 90
    while not list(run_dir.glob("samples/*.parquet")) and time.monotonic() < end:
        time.sleep(0.05)
    asked = time.monotonic()
    stopped = server.ray_job("stop", "--address", server.address, "stopped")
    assert "was stopped" in stopped.stdout + stopped.stderr
    assert time.monotonic() - asked < 30
    said = server.ray_job("logs", "--address", server.address, "stopped")
    assert "stopped; the same command goes on" in said.stdout + said.stderr
    assert "SIGTERM received" not in said.stdout + said.stderr  # Ray's own stack
    before = {p: p.stat().st_mtime_ns for p in run_dir.glob("samples/*.parquet")}
    assert before
    assert not (run_dir / "report/index.html").exists()

    found = server.submit(drawn, run_dir)
    assert found.returncode == 0, found.stdout + found.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    same_files(finished, run_dir)


def test_the_upload_holds_the_code_and_little_else(server) -> None:
    probe = "import rrcluster; print('code', rrcluster.__file__)"
    found = server.ray_job(
        "submit", "--address", server.address, "--working-dir", ".", "--", "python", "-c", probe
    )
    assert found.returncode == 0, found.stderr
    code = next(line for line in found.stdout.splitlines() if line.startswith("code "))
    assert "working_dir_files/_ray_pkg_" in code
    for upload in server.uploads():
        names = {path.name for path in upload.iterdir()}
        assert {"rrcluster", "pipelines"} <= names
        assert not names & {".git", "tests", "notebooks", ".venv"}
        files = [p for p in upload.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert sum(p.stat().st_size for p in files) < 10e6


def test_workers_that_can_never_fit_are_refused_with_the_setting_to_lower(
    server, drawn, tmp_path
) -> None:
    found = server.submit(drawn, tmp_path / "run", overrides=("compute.workers=9",))
    assert found.returncode != 0
    assert "compute.workers=9: the cluster has 4 CPUs" in found.stdout
    assert "room for 2" in found.stdout


def test_a_cluster_that_is_not_there_is_named_with_its_setting(drawn, tmp_path) -> None:
    (port,) = _free_ports(1)
    found = subprocess.run(
        [
            sys.executable, "-m", "pipelines.cluster", f"compute.address=127.0.0.1:{port}",
            f"corpus.uri={drawn}", f"run_dir={tmp_path / 'run'}",
        ],
        capture_output=True, text=True, timeout=60, cwd=REPOSITORY,
    )  # fmt: skip
    assert found.returncode == 2
    assert f"compute.address=127.0.0.1:{port}: no Ray cluster answers there" in found.stderr


GB = float(1 << 30)


def node(cpus: float, gpus: float = 0, gigabytes: float = 32) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": gigabytes * GB}


def test_room_is_kept_for_a_reader_and_the_coordinator() -> None:
    assert slots([node(4)], ComputeSpec()) == 2
    assert slots([node(2)], ComputeSpec()) == 0
    assert slots([node(8)], ComputeSpec(cpus_per_worker=2)) == 2  # 8 - 1 - 2, in pairs


def test_gpu_workers_are_as_many_as_gpus_when_the_head_has_cpus_to_spare() -> None:
    spec = ComputeSpec(gpus_per_worker=1, cpus_per_worker=8)
    assert slots([node(16), node(8, 1), node(8, 1)], spec) == 2
    assert slots([node(8, 1), node(8, 1)], ComputeSpec(gpus_per_worker=1)) == 2
    assert slots([node(8)], ComputeSpec(gpus_per_worker=1)) == 0
    assert slots([node(8, 1)], ComputeSpec(gpus_per_worker=0.5, gpus_per_holder=1)) == 1


def test_a_worker_never_spans_two_machines() -> None:
    assert slots([node(16)] + [node(3)] * 5, ComputeSpec(cpus_per_worker=4)) == 3  # (16 - 4) / 4
    assert slots([node(16, 0, 4)] * 2, ComputeSpec(memory_per_worker=int(3 * GB))) == 2


def test_machines_limit_workers_and_custom_resources_place_them() -> None:
    assert slots([node(16)] * 2, ComputeSpec(workers_per_node=3)) == 6
    spec = ComputeSpec(resources={"pool_a": 0.5})
    assert slots([node(16) | {"pool_a": 1}, node(16)], spec) == 2


def test_a_head_without_cpus_takes_no_worker_and_needs_none_for_the_coordinator() -> None:
    spec = ComputeSpec(coordinator_cpus=0, gpus_per_worker=1)
    assert slots([node(0), node(8, 1), node(8, 1)], spec) == 2


def test_all_that_embeds_goes_to_labelled_machines_and_helpers_take_no_custom_resource() -> None:
    spec = ComputeSpec(labels={"pool": "a"}, resources={"pool_a": 0.01})
    workers = (worker_options(spec, "encoder"), reader_options(spec))
    for options in (*workers, helper_options(spec, 0.1)):
        assert options["label_selector"] == {"pool": "a"}
    assert helper_options(ComputeSpec(memory_per_helper=7), 0.1)["memory"] == 7
    assert worker_options(spec, "encoder")["resources"] == {"pool_a": 0.01}
    assert "resources" not in helper_options(spec, 0.1)
