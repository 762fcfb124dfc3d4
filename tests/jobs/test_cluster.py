"""The main job in one process: its contract."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from job_fixtures import assignments, estimated_well, in_process, job, record, without_shards

from rrcluster.io import tables


def test_every_file_of_the_contract_is_there_with_its_schema(finished) -> None:
    shards = [f"{i:06d}" for i in range(6)]
    for folder, kind, schema in [
        ("samples", "samples", tables.SAMPLES),
        ("bad", "bad", tables.BAD),
        ("assignments/increment=00000", "assignments", tables.assignments_schema(2)),
    ]:
        for shard in shards:
            found = pq.read_table(finished / folder / f"{shard}.parquet")
            assert found.schema.remove_metadata().equals(schema)
            assert found.schema.metadata[b"rrcluster.schema"] == kind.encode()
            assert found.schema.metadata[b"rrcluster.schema_version"] == b"1"
    for level in (0, 1):
        found = pq.read_table(finished / f"clusters/level={level}.parquet", partitioning=None)
        assert found.schema.remove_metadata().equals(tables.CLUSTERS)
    manifest = pq.read_table(finished / "manifest/increment=00000.parquet", partitioning=None)
    assert manifest.schema.remove_metadata().equals(tables.MANIFEST)
    assert (finished / "report/index.html").stat().st_size > 10_000


def test_embeddings_are_unit_rows_aligned_with_samples(finished) -> None:
    for shard in range(6):
        x = np.load(finished / f"embeddings/{shard:06d}.npy", mmap_mode="r")
        samples = pq.read_table(finished / f"samples/{shard:06d}.parquet")
        assert x.dtype == np.float16
        assert x.flags.c_contiguous
        assert len(x) == samples.num_rows
        assert np.allclose(np.linalg.norm(x.astype(np.float32), axis=1), 1, atol=2e-3)
        assert samples["row"].to_pylist() == sorted(samples["row"].to_pylist())


def test_counts_reconcile_to_the_row(finished) -> None:
    content = record(finished)
    counts = content["reconciliation"]
    assert counts == {"read": 240, "embedded": 239, "bad": 1, "ok": True}
    samples = ds.dataset(finished / "samples").to_table()
    bad = ds.dataset(finished / "bad").to_table()
    rows = sorted(
        (r["shard"], r["row"])
        for r in samples.select(["shard", "row"]).to_pylist()
        + bad.select(["shard", "row"]).to_pylist()
    )
    assert rows == [(s, r) for s in range(6) for r in range(40)]
    assert assignments(finished).num_rows == 239
    assert all(stage["status"] == "done" for stage in content["stages"].values())


def test_every_sample_has_a_path_in_the_tree_and_sizes_add_up(finished) -> None:
    coarse, fine = (
        pq.read_table(finished / f"clusters/level={level}.parquet", partitioning=None).to_pylist()
        for level in (0, 1)
    )
    assert [len(coarse), len(fine)] == [3, 8]
    ids = [c["cluster_id"] for c in coarse + fine]
    assert len(set(ids)) == len(ids)
    rows = assignments(finished).to_pylist()
    parent = {c["cluster_id"]: c["parent_id"] for c in fine}
    assert all(parent[r["level_1"]] == r["level_0"] for r in rows)
    for level, clusters in enumerate((coarse, fine)):
        for cluster in clusters:
            inside = [r for r in rows if r[f"level_{level}"] == cluster["cluster_id"]]
            assert cluster["size"] == len(inside)
            members = {r["sample_id"] for r in inside}
            assert cluster["exemplars"]
            assert set(cluster["exemplars"]) <= members
    assert all(0 <= r["confidence"] <= 1 for r in rows)
    assert all(np.isfinite(r["outlier"]) for r in rows)


def test_running_again_changes_nothing(finished, drawn) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.parquet")}
    result = job("cluster", f"corpus.uri={drawn}", f"run_dir={finished}", "k=[3,8]", *in_process())
    assert result.status == 0, result.err
    unchanged = {p: t for p, t in before.items() if "clusters" not in str(p)}
    assert {p: p.stat().st_mtime_ns for p in unchanged} == unchanged


@pytest.mark.parametrize(
    ("override", "setting"),
    [("seed=9", "seed"), ("refine.eps2=0.123", "refine.eps2"), ("k=4", "k")],
)
def test_another_setting_that_changes_results_is_refused(
    finished, drawn, override: str, setting: str
) -> None:
    result = job(
        "cluster", f"corpus.uri={drawn}", f"run_dir={finished}", "k=[3,8]", *in_process(override)
    )
    assert result.status == 2
    assert f"{setting}=" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert "Traceback" not in result.err


def test_another_worker_count_gives_the_same_output(finished, drawn, tmp_path) -> None:
    run_dir = tmp_path / "run"
    result = job(
        "cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]",
        *in_process("compute.workers=4"),
    )  # fmt: skip
    assert result.status == 0, result.err
    for path in sorted(finished.rglob("*.parquet")):
        other = run_dir / path.relative_to(finished)
        assert other.read_bytes() == path.read_bytes(), path


def test_another_cut_into_shards_gives_the_same_clusters(finished, drawn, tmp_path) -> None:
    corpus = tmp_path / "corpus"
    recut(drawn, corpus, shards=3)
    run_dir = tmp_path / "run"
    result = job("cluster", f"corpus.uri={corpus}", f"run_dir={run_dir}", "k=[3,8]", *in_process())
    assert result.status == 0, result.err
    assert without_shards(assignments(run_dir)) == without_shards(assignments(finished))
    for level in (0, 1):
        name = f"clusters/level={level}.parquet"
        assert (run_dir / name).read_bytes() == (finished / name).read_bytes()


def recut(source, target, shards: int) -> None:
    """The same samples in the same order, in another number of tars."""
    members: dict[str, list[tuple[str, bytes]]] = {}
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                members.setdefault(member.name.split(".")[0], []).append((member.name, content))
    target.mkdir()
    keys = list(members)
    for i in range(shards):
        with tarfile.open(target / f"{i:03d}.tar", "w") as tar:
            for key in keys[len(keys) * i // shards : len(keys) * (i + 1) // shards]:
                for name, content in members[key]:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def test_partition_by_cluster_holds_the_same_rows(finished, drawn, tmp_path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "assignments")
    result = job(
        "cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]",
        *in_process("write.partition_by=cluster"),
    )  # fmt: skip
    assert result.status == 0, result.err
    found = ds.dataset(run_dir / "assignments/increment=00000", partitioning="hive").to_table()
    columns = ["sample_id", "key", "level_0", "level_1", "confidence"]
    expected = assignments(finished).select(columns).to_pylist()

    def order(row: dict) -> tuple:
        return row["sample_id"], row["key"]

    assert sorted(found.select(columns).to_pylist(), key=order) == sorted(expected, key=order)


def test_one_integer_gives_exactly_one_level(drawn, tmp_path) -> None:
    run_dir = tmp_path / "run"
    result = job("cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=5", *in_process())
    assert result.status == 0, result.err
    table = assignments(run_dir)
    assert [c for c in table.column_names if c.startswith("level_")] == ["level_0"]
    assert len(set(table["level_0"].to_pylist())) == 5


def test_more_bad_images_than_allowed_end_with_status_3_and_a_full_output(drawn, tmp_path) -> None:
    run_dir = tmp_path / "run"
    result = job(
        "cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=3",
        *in_process("corpus.max_bad_fraction=0.001"),
    )  # fmt: skip
    assert result.status == 3, result.err
    assert assignments(run_dir).num_rows == 239


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["corpus.uri=/nowhere/at/all", "run_dir={run}"], "corpus.uri"),
        (["run_dir={run}"], "corpus.uri"),
        (["corpus.uri={drawn}"], "run_dir"),
        (["corpus.uri={drawn}", "run_dir={run}", "k=1000"], "k"),
        (["corpus.uri={drawn}", "run_dir={run}", "encoder=open_clip"], "encoder"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line(drawn, tmp_path, overrides, setting) -> None:
    filled = [o.format(drawn=drawn, run=tmp_path / "run") for o in overrides]
    result = job("cluster", *filled, *in_process())
    assert result.status == 2, result.err
    mistake = [line for line in result.err.splitlines() if line.startswith("rrcluster cluster:")]
    assert len(mistake) == 1
    assert setting in mistake[0]
    assert "Traceback" not in result.err


def test_a_dry_run_estimates_and_writes_nothing(drawn, tmp_path) -> None:
    run_dir = tmp_path / "run"
    result = job(
        "cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "dry_run=true", *in_process()
    )
    assert result.status == 0, result.err
    images = int(
        next(line for line in result.out.splitlines() if "images" in line).split()[3].strip(",")
    )
    assert 216 <= images <= 264
    assert not run_dir.exists()


def test_a_dry_run_tells_what_the_run_comes_to(drawn, finished) -> None:
    estimated_well([f"corpus.uri={drawn}", "run_dir=", "k=[3,8]", *in_process()], finished)


def test_help_explains_settings_and_cfg_prints_them() -> None:
    assert "corpus.max_bad_fraction" in job("cluster", "--help").out
    assert "max_bad_fraction" in job("cluster", "--cfg", "job").out


def test_status_reads_the_run_folder_alone(finished) -> None:
    result = job("status", f"run_dir={finished}")
    assert result.status == 0, result.err
    assert "embed" in result.out
    assert job("status", "run_dir=/nowhere").status == 2


def test_evaluate_scores_against_labels(finished, drawn, tmp_path) -> None:
    import pyarrow as pa

    keys, labels = [], []
    for path in sorted(drawn.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    keys.append(member.name.split(".")[0])
                    labels.append(json.loads(tar.extractfile(member).read())["object"])
    pq.write_table(pa.table({"key": keys, "label": labels}), tmp_path / "labels.parquet")
    result = job(
        "evaluate", f"run_dir={finished}", f"evaluate.labels={tmp_path / 'labels.parquet'}"
    )
    assert result.status == 0, result.err
    json.loads(result.out)


def test_other_weights_under_the_same_name_are_refused(drawn, finished, tmp_path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "samples/000003.parquet").unlink()
    content = record(run_dir)
    content["model_hash"] = "0" * 64
    (run_dir / "run.json").write_text(json.dumps(content))
    result = job("cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *in_process())
    assert result.status == 2, result.err
    assert "other weights" in result.err


def test_the_record_says_what_each_stage_read_and_wrote(finished, drawn) -> None:
    stages = record(finished)["stages"]
    corpus = sum(path.stat().st_size for path in drawn.glob("*.tar"))
    assert corpus * 0.9 < stages["embed"]["bytes_read"] <= corpus * 1.1
    for stage, folders in {
        "embed": ("embeddings", "samples", "bad"),
        "write": ("clusters",),
    }.items():
        written = sum(p.stat().st_size for f in folders for p in (finished / f).iterdir())
        assert stages[stage]["bytes_written"] >= written > 0
    assert stages["seed"]["bytes_read"] > 0
    assert all(stage["retries"] == 0 for stage in stages.values())
