"""Kill the driver at every stage; the same command ends with the output of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_fixtures import in_process, job

# A file or folder whose appearance says that the stage has begun to publish.
MOMENTS = {
    "manifest": "manifest",
    "embed": "samples/000001.parquet",
    "select": "model/fit",
    "seed": "model/seed/seeds.safetensors",
    "refine": "model/refine",
    "count": "model/count",
    "caption": "model/caption",
    "write": "assignments/increment=00000/000000.parquet",
    "clusters": "clusters/level=1.parquet",
}


def start(*overrides: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cluster", *overrides],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.002)


@pytest.mark.parametrize("stage", MOMENTS)
def test_a_driver_killed_in_a_stage_goes_on_to_the_same_output(
    stage: str, finished, drawn, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    command = (f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *in_process())
    process = start(*command)
    wait_for(process, run_dir / MOMENTS[stage])
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    marks = {p: p.stat().st_mtime_ns for p in run_dir.glob("samples/*.parquet")}
    result = job("cluster", *command)
    assert result.status == 0, result.err
    for path in sorted(finished.rglob("*.parquet")):
        other = run_dir / path.relative_to(finished)
        assert other.read_bytes() == path.read_bytes(), path
    assert {p: p.stat().st_mtime_ns for p in marks} == marks  # nothing done twice


def test_sigterm_stops_cleanly_and_says_how_to_go_on(drawn, tmp_path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}",
         "k=3", *in_process()],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(process, run_dir / "samples/000000.parquet")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "goes on where it was" in err
    assert "Traceback" not in err
    assert not list(run_dir.rglob(".*"))  # no half-written file is left
