"""The driver of a job on Ray is killed, actors and all; the same command ends the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from job_fixtures import SMALL, job


@pytest.mark.parametrize("moment", ["samples/000000.parquet", "model/seed/seeds.safetensors"])
def test_a_killed_driver_on_ray_goes_on_where_it_was(moment, drawn, finished, tmp_path) -> None:
    run_dir = tmp_path / "run"
    command = (
        f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", "compute=local",
        "compute.workers=2", *SMALL,
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cluster", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not (run_dir / moment).exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    marks = {p: p.stat().st_mtime_ns for p in run_dir.glob("samples/*.parquet")}
    result = job("cluster", *command)
    assert result.status == 0, result.err
    for path in sorted(finished.rglob("*.parquet")):
        assert (run_dir / path.relative_to(finished)).read_bytes() == path.read_bytes(), path
    assert {p: p.stat().st_mtime_ns for p in marks} == marks
