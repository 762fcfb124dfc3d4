"""Kill the driver at every stage; the same command ends with the output of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time

import pytest
from job_fixtures import in_process, job, kill_when, resume_to_the_same, start_job, wait_for

from pipelines.cli import DONE, FAILED, run
from rrcluster.io.lease import lease
from rrcluster.io.store import Store

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


@pytest.mark.parametrize("stage", MOMENTS)
def test_a_driver_killed_in_a_stage_goes_on_to_the_same_output(
    stage: str, finished, drawn, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    command = (f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *in_process())
    kill_when(run_dir / MOMENTS[stage], *command)
    resume_to_the_same(run_dir, finished, *command)


def test_sigterm_stops_cleanly_and_says_how_to_go_on(drawn, tmp_path) -> None:
    run_dir = tmp_path / "run"
    err = tmp_path / "err"
    # Counting is long, so the job is at work when the signal comes, however late that is.
    long = in_process("count.replicates=2000")
    started = start_job(
        "cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=3", *long, err=str(err)
    )
    wait_for(started, run_dir / "samples/000000.parquet")
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(60) == 1
    assert "goes on where it was" in err.read_text()
    assert "Traceback" not in err.read_text()
    assert not list(run_dir.rglob(".*"))  # no half-written file is left


def test_a_stop_that_comes_upon_a_finalizer_is_not_lost(monkeypatch, capsys) -> None:
    monkeypatch.setattr("pipelines.cli.load", lambda _: None)

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)  # Python runs the handler before the next line
            time.sleep(0)

    def job(_: object) -> int:
        Finalized()
        time.sleep(30)
        return DONE

    assert run("cluster", job, []) == FAILED
    assert "goes on where it was" in capsys.readouterr().err


def test_a_run_that_another_job_is_at_work_on_is_left_to_it(drawn, finished, tmp_path) -> None:
    run_dir = tmp_path / "run"
    command = (f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *in_process())
    with lease(Store(str(run_dir)), "rrcluster cluster", term=1.2):
        second = job("cluster", *command)
    assert second.status == 1
    assert "rrcluster cluster is at work on this run" in second.err
    assert "Traceback" not in second.err
    assert not (run_dir / "samples").exists()
    resume_to_the_same(run_dir, finished, *command)
