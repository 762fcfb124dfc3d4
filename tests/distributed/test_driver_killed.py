"""The driver of a job on Ray is killed, actors and all; the same command ends the same."""

from __future__ import annotations

import pytest
from job_fixtures import SMALL, kill_when, resume_to_the_same


@pytest.mark.parametrize("moment", ["samples/000000.parquet", "model/seed/seeds.safetensors"])
def test_a_killed_driver_on_ray_goes_on_where_it_was(moment, drawn, finished, tmp_path) -> None:
    run_dir = tmp_path / "run"
    command = (
        f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", "compute=local",
        "compute.workers=2", *SMALL,
    )  # fmt: skip
    kill_when(run_dir / moment, *command)
    resume_to_the_same(run_dir, finished, *command)
