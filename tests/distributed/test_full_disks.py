"""Disks that fill up under a job: that of the run folder, and the one Ray spills to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faulty_cluster import SPILL_EARLY, command, differences, small_disk, spilling
from job_fixtures import SMALL, job


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def disk_of(size: str, stack: ExitStack, folder: Path) -> Path:
    try:
        return stack.enter_context(small_disk(folder, size))
    except OSError as error:
        pytest.skip(f"needs the right to mount: {error}")


def test_a_full_run_folder_is_said_leaves_no_half_file_and_the_same_command_goes_on(
    drawn, finished, tmp_path, mounted
) -> None:
    disk = disk_of("300k", mounted, tmp_path / "disk")
    run_dir = disk / "run"
    settings = (f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *SMALL)
    full = job("cluster", *settings, "compute=in_process")
    assert full.status == 1, full.err
    assert "no space left" in full.err
    assert "Traceback" not in full.err
    assert list(run_dir.rglob(".*")) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    again = job("cluster", *settings, "compute=in_process")
    assert again.status == 0, again.err
    assert differences(run_dir, finished) == []


def test_on_ray_with_a_full_spill_folder_the_job_gives_the_bytes_of_the_job_in_process(
    drawn, finished, tmp_path, mounted
) -> None:
    disk, run_dir = disk_of("64k", mounted, tmp_path / "spill"), tmp_path / "run"
    line = command(
        f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *SMALL, "compute=local",
        "compute.workers=2", "compute.object_store_memory=80000000", f"compute.spill_dir={disk}",
    )  # fmt: skip
    early = SPILL_EARLY | {"RAY_object_spilling_threshold": "0.02"}  # these images are small
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | early)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted, full = spilling(disk)
    assert wanted
    assert full
    assert json.loads((run_dir / "run.json").read_text())["spilled_bytes"] == 0
    assert differences(run_dir, finished) == []
