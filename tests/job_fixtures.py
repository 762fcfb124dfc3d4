"""Small corpora and whole jobs on them."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_zygote import Job, Zygote

from rrcluster.config import load
from rrcluster.io.drawn_corpus import draw_corpus
from rrcluster.stages.estimate import estimate

SMALL = (
    "seeding.block_rows=64",
    "refine.steps=20",
    "refine.rounds=1",
    "refine.width=16",
    "count.replicates=2",
)


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


def job(name: str, *overrides: str, cwd: Path | None = None, timeout: float = 300) -> Result:
    """Run ``python -m pipelines.<name>`` as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        started = _zygote().start(name, overrides, out, err, cwd or Path.cwd())
        try:
            status = started.wait(timeout)
        except TimeoutError:
            os.killpg(started.pid, signal.SIGKILL)
            raise AssertionError(f"{name} took over {timeout} s: {err.read_text()}") from None
        return Result(status, out.read_text(), err.read_text())


def estimated_well(settings: Sequence[str], run_dir: Path) -> None:
    """A dry run tells the bytes exactly, images and storage within 30 % of the finished run."""
    told, made = estimate(load(list(settings))), record(run_dir)
    assert told.num_bytes == made["corpus"]["num_bytes"]
    assert told.images == pytest.approx(made["reconciliation"]["read"], rel=0.3)
    files = [p for p in run_dir.rglob("*") if p.is_file() and "report" not in p.parts]
    assert told.storage == pytest.approx(sum(p.stat().st_size for p in files), rel=0.3)


def start_job(name: str, *overrides: str, err: str = os.devnull) -> Job:
    """Start the job as the head of a process group, and go on."""
    return _zygote().start(name, overrides, Path(os.devnull), Path(err), Path.cwd())


def kill_when(path: Path, *overrides: str) -> None:
    """Start the main job and kill it with all its processes as soon as ``path`` appears."""
    started = start_job("cluster", *overrides)
    wait_for(started, path)
    with suppress(ProcessLookupError):  # it has ended already
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def wait_for(started: Job, path: Path) -> None:
    while started.poll() is None and not path.exists():
        time.sleep(0.001)


@functools.cache
def _zygote() -> Zygote:
    zygote = Zygote().__enter__()
    atexit.register(zygote.__exit__)
    return zygote


def resume_to_the_same(run_dir: Path, finished: Path, *overrides: str) -> None:
    """Run a killed job again: it must end with the bytes of ``finished``, no shard done twice."""
    marks = {p: p.stat().st_mtime_ns for p in run_dir.glob("samples/*.parquet")}
    result = job("cluster", *overrides)
    assert result.status == 0, result.err
    for path in sorted(finished.rglob("*.parquet")):
        assert (run_dir / path.relative_to(finished)).read_bytes() == path.read_bytes(), path
    assert {p: p.stat().st_mtime_ns for p in marks} == marks


def in_process(*overrides: str) -> Sequence[str]:
    return ("compute=in_process", "compute.workers=2", *SMALL, *overrides)


def assignments(run_dir: Path) -> pa.Table:
    """All assignments of a run with shard layout, in shard order."""
    files = sorted((run_dir / "assignments/increment=00000").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files])


def without_shards(table: pa.Table) -> list[dict]:
    """Rows without the shard columns, in an order of their own."""
    rows = table.drop_columns(["shard", "row"]).to_pylist()
    return sorted(rows, key=lambda r: (r["sample_id"], r["key"]))


def record(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """240 drawn pictures in 6 WebDataset shards, with a few damaged ones."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_corpus(str(folder), 240, 40, 7, lambda *_: None)
    return folder


@pytest.fixture(scope="session")
def finished(drawn, tmp_path_factory) -> Path:
    """A finished run on the drawn pictures, in process."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    result = job("cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *in_process())
    assert result.status == 0, result.err
    return run_dir
