"""New shards become increments: what is read, what is written, what readers see."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_fixtures import in_process, job, record, start_job, wait_for

from rrcluster.io.current import current
from rrcluster.io.store import Store

IN_PROCESS = ("compute=in_process", "compute.workers=2", "recluster.refit=never")


@pytest.fixture
def grown(drawn, tmp_path) -> tuple[Path, Path]:
    """(corpus, run): a run on four shards, and two more shards in the corpus by now."""
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    tars = sorted(drawn.glob("*.tar"))
    for tar in tars[:4]:
        shutil.copy(tar, corpus)
    result = job("cluster", f"corpus.uri={corpus}", f"run_dir={run_dir}", "k=[3,8]", *in_process())
    assert result.status == 0, result.err
    for tar in tars[4:]:
        shutil.copy(tar, corpus)
    return corpus, run_dir


def everything(run_dir: Path) -> pa.Table:
    now = current(Store(str(run_dir)))
    columns = ["sample_id", "shard", "row", "level_0", "level_1", "confidence"]
    return pa.concat_tables(now.batches(columns))


def test_only_new_shards_are_read_and_old_files_stay_as_they_are(grown) -> None:
    _, run_dir = grown
    before = {p: p.read_bytes() for p in run_dir.rglob("*.parquet") if "clusters" not in str(p)}
    result = job("recluster", f"run_dir={run_dir}", *IN_PROCESS)
    assert result.status == 0, result.err
    assert {p: p.read_bytes() for p in before} == before
    assert pq.read_table(run_dir / "manifest/increment=00001.parquet").num_rows == 2
    part = record(run_dir)["increments"]["00001"]
    assert part["stages"]["embed"]["counts"]["shards"] == 2
    counts = record(run_dir)["reconciliation"]
    assert counts["read"] == 240
    assert counts["read"] == counts["embedded"] + counts["bad"]
    rows = everything(run_dir)
    assert rows.num_rows == counts["embedded"]
    fine = pq.read_table(run_dir / "clusters/level=1.parquet", partitioning=None).to_pylist()
    coarse = pq.read_table(run_dir / "clusters/level=0.parquet", partitioning=None).to_pylist()
    for level, clusters in enumerate((coarse, fine)):
        ids = rows[f"level_{level}"].to_pylist()
        assert {c["cluster_id"]: c["size"] for c in clusters} == {
            c["cluster_id"]: ids.count(c["cluster_id"]) for c in clusters
        }


def test_nothing_new_ends_at_once_and_writes_nothing(grown) -> None:
    _, run_dir = grown
    assert job("recluster", f"run_dir={run_dir}", *IN_PROCESS).status == 0
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    again = job("recluster", f"run_dir={run_dir}", *IN_PROCESS)
    assert again.status == 0, again.err
    assert "nothing new" in again.out
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")} == before


def test_a_setting_that_the_run_keeps_is_refused_with_the_one_to_use(grown) -> None:
    _, run_dir = grown
    refused = job("recluster", f"run_dir={run_dir}", "k=[3,9]", *IN_PROCESS)
    assert refused.status == 2
    assert "keeps k=[3, 8]" in refused.err
    assert "recluster.refit_k" in refused.err
    assert not (run_dir / "manifest/increment=00001.parquet").exists()
    same = job("recluster", f"run_dir={run_dir}", "k=[3,8]", "dry_run=true", *IN_PROCESS)
    assert same.status == 0, same.err


def test_a_sample_gets_the_same_cluster_in_the_first_run_and_in_an_increment(grown) -> None:
    corpus, run_dir = grown
    shutil.copy(corpus / "00000.tar", corpus / "99999.tar")
    assert job("recluster", f"run_dir={run_dir}", *IN_PROCESS).status == 0
    rows = everything(run_dir).to_pylist()
    last = max(r["shard"] for r in rows)
    first, copied = ([r for r in rows if r["shard"] == s] for s in (0, last))
    for r in first + copied:
        del r["shard"]
    assert first == copied


@pytest.mark.parametrize(
    "moment",
    ["manifest/increment=00001.parquet", "samples/000004.parquet", "assignments/increment=00001"],
)
def test_a_killed_increment_goes_on_to_the_same_bytes(grown, tmp_path, moment) -> None:
    _, run_dir = grown
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    started = start_job("recluster", f"run_dir={run_dir}", *IN_PROCESS)
    wait_for(started, run_dir / moment)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert current(Store(str(run_dir))).increment in (0, 1)
    for folder in (run_dir, other):
        result = job("recluster", f"run_dir={folder}", *IN_PROCESS)
        assert result.status == 0, result.err
    for path in sorted(other.rglob("*.parquet")):
        assert (run_dir / path.relative_to(other)).read_bytes() == path.read_bytes(), path


def test_a_changed_shard_is_refused_kept_or_read_again_as_asked(grown, drawn) -> None:
    corpus, run_dir = grown
    shutil.copy(corpus / "00005.tar", corpus / "00001.tar")
    refused = job("recluster", f"run_dir={run_dir}", *IN_PROCESS)
    assert refused.status == 2
    assert "recluster.on_changed=error: 1 shards changed" in refused.err
    kept = job("recluster", f"run_dir={run_dir}", *IN_PROCESS, "recluster.on_changed=skip")
    assert kept.status == 0, kept.err
    before = everything(run_dir).num_rows
    again = job("recluster", f"run_dir={run_dir}", *IN_PROCESS, "recluster.on_changed=reprocess")
    assert again.status == 0, again.err
    rows = everything(run_dir)
    assert 1 not in set(rows["shard"].to_pylist())
    assert 6 in set(rows["shard"].to_pylist())
    assert abs(rows.num_rows - before) <= 2
    fine = pq.read_table(run_dir / "clusters/level=1.parquet", partitioning=None)
    assert sum(fine["size"].to_pylist()) == rows.num_rows


def test_a_refit_keeps_ids_and_rewrites_all_rows_beside_the_old_ones(grown) -> None:
    _, run_dir = grown
    old = pq.read_table(run_dir / "clusters/level=1.parquet", partitioning=None)
    found = job("recluster", f"run_dir={run_dir}", *IN_PROCESS, "recluster.refit=always")
    assert found.status == 0, found.err
    assert "fitted again" in found.out
    rows = everything(run_dir)
    assert rows.num_rows == record(run_dir)["reconciliation"]["embedded"]
    new = pq.read_table(run_dir / "clusters/level=1.parquet", partitioning=None)
    kept = set(old["cluster_id"].to_pylist()) & set(new["cluster_id"].to_pylist())
    assert kept  # few rows, so the second fit is another one; what overlaps keeps its id
    fresh = set(new["cluster_id"].to_pylist()) - kept
    assert all(i > max(old["cluster_id"].to_pylist()) for i in fresh)
    changes = pq.read_table(run_dir / "cluster_map/increment=00001.parquet", partitioning=None)
    finest = [r for r in changes.to_pylist() if r["level"] == 1]
    assert {r["old_id"] for r in finest if r["kind"] == "kept"} == kept
    assert len(list(run_dir.glob("assignments/increment=00000/*.parquet"))) == 4
    page = (run_dir / "report/index.html").read_text()
    assert "What increments changed" in page
    assert "fitted again: " in page
    assert "mean moved by" in page
    assert "no increment before it since the fit" in page
    resolved = job("resolve", f"run_dir={run_dir}", *IN_PROCESS)
    assert resolved.status == 0, resolved.err
    tables = [pq.read_table(p) for p in sorted(run_dir.glob("resolved/*/*.parquet"))]
    assert sum(len(t) for t in tables) == rows.num_rows
    assert job("recluster", f"run_dir={run_dir}", *IN_PROCESS).out.strip().endswith("nothing new")
    drawn = job("sample", f"run_dir={run_dir}", "compute=in_process", "sample.name=after",
                "sample.size=90", "sample.leaf_choice=closest")  # fmt: skip
    assert drawn.status == 0, drawn.err
    sample = pq.read_table(run_dir / "sample/after/weights.parquet").to_pylist()
    assert len(sample) == 90
    now = {(r["shard"], r["row"]): r["level_1"] for r in rows.to_pylist()}
    assert all(now[r["shard"], r["row"]] == r["level_1"] for r in sample)
    assert {r["level_1"] for r in sample} == set(new["cluster_id"].to_pylist())


def test_two_jobs_at_once_are_told_apart_and_one_of_them_adds_the_increment(grown) -> None:
    _, run_dir = grown
    first = start_job("recluster", f"run_dir={run_dir}", *IN_PROCESS)
    wait_for(first, run_dir / "manifest/increment=00001.parquet")
    second = job("recluster", f"run_dir={run_dir}", *IN_PROCESS)
    assert first.wait(120) == 0
    assert second.status in (0, 1)
    if second.status == 1:
        assert "is at work on this run" in second.err
    assert current(Store(str(run_dir))).increment == 1
    assert len(list(run_dir.glob("commits/*.json"))) == 1


def test_a_run_partitioned_by_cluster_grows_in_its_own_layout(drawn, tmp_path) -> None:
    first = in_process("write.partition_by=cluster")
    other, corpus = tmp_path / "by-cluster", tmp_path / "half"
    corpus.mkdir()
    tars = sorted(drawn.glob("*.tar"))
    shutil.copy(tars[0], corpus)
    made = job("cluster", f"corpus.uri={corpus}", f"run_dir={other}", "k=[2,4]", *first)
    assert made.status == 0, made.err
    shutil.copy(tars[1], corpus)
    grew = job("recluster", f"run_dir={other}", *IN_PROCESS)
    assert grew.status == 0, grew.err
    assert list(other.glob("assignments/increment=00001/level_0=*/part-*.parquet"))
    rows = everything(other)
    assert rows.num_rows == record(other)["reconciliation"]["embedded"]
    fine = pq.read_table(other / "clusters/level=1.parquet", partitioning=None)
    assert sum(fine["size"].to_pylist()) == rows.num_rows


def test_a_run_on_ready_vectors_grows_by_vectors(tmp_path) -> None:
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    choice = np.random.default_rng(0)
    for number in range(3):
        x = choice.normal(size=(80, 16)).astype(np.float32)
        np.save(corpus / f"{number}.npy", x / np.linalg.norm(x, axis=1, keepdims=True))
        if number == 1:
            made = job(
                "cluster", f"corpus.uri={corpus}", "corpus.format=embeddings",
                f"run_dir={run_dir}", "k=4", *in_process(),
            )  # fmt: skip
            assert made.status == 0, made.err
    grew = job("recluster", f"run_dir={run_dir}", *IN_PROCESS)
    assert grew.status == 0, grew.err
    found = pa.concat_tables(current(Store(str(run_dir))).batches(["shard", "level_0"]))
    assert found["shard"].to_pylist().count(2) == 80
