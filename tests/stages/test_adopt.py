"""A hierarchy of ssl-data-curation becomes a run that can be sampled; misfits are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines.adopt import main as adopt
from pipelines.cluster import cluster
from pipelines.sample import main as sample
from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.records import UserError
from rrcluster.report.progress import read_progress
from rrcluster.stages.recluster import recluster

LEAVES = 12
GROUPS = [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9, 10], [11]]  # the last has no row


def save_level(folder: Path, level: int, clusters: list) -> None:
    (folder / f"level{level}").mkdir(parents=True, exist_ok=True)
    array = np.empty(len(clusters), object)
    array[:] = [np.asarray(c, np.int64) for c in clusters]
    np.save(folder / f"level{level}/sorted_clusters.npy", array)


@pytest.fixture
def made(tmp_path) -> tuple[list[str], np.ndarray]:
    """Settings that adopt a hierarchy of 600 rows in two files, one row unusable; leaf per row."""
    rng = np.random.default_rng(0)
    leaf = rng.integers(0, LEAVES - 1, 600)
    x = rng.normal(size=(LEAVES, 8))[leaf] + 0.1 * rng.normal(size=(600, 8))
    x[5] = np.nan
    (tmp_path / "vectors").mkdir()
    np.save(tmp_path / "vectors/a.npy", x[:400].astype(np.float32))
    np.save(tmp_path / "vectors/b.npy", x[400:].astype(np.float32))
    members = [rng.permutation(np.flatnonzero(leaf == c)) for c in range(LEAVES)]
    save_level(tmp_path / "made", 1, members)
    save_level(tmp_path / "made", 2, GROUPS)
    settings = [
        f"corpus.uri={tmp_path}/vectors", f"run_dir={tmp_path}/run", "compute=in_process",
        f"adopt.hierarchy={tmp_path}/made",
    ]  # fmt: skip
    return settings, leaf


def test_every_row_keeps_its_cluster_and_path(made, tmp_path, capsys) -> None:
    settings, leaf = made
    assert adopt(load(settings)) == 0
    rows = ds.dataset(tmp_path / "run/assignments", partitioning="hive").to_table()
    at = rows["shard"].to_numpy() * 400 + rows["row"].to_numpy()
    assert sorted(at.tolist()) == [i for i in range(600) if i != 5]
    ids = rows["level_1"].to_numpy() - len(GROUPS)
    assert (ids == leaf[at]).all()
    group = np.repeat(np.arange(3), [len(g) for g in GROUPS])
    assert (rows["level_0"].to_numpy() == group[leaf[at]]).all()
    fine = pq.read_table(tmp_path / "run/clusters/level=1.parquet").to_pylist()
    counts = np.bincount(np.delete(leaf, 5), minlength=LEAVES)
    assert [r["size"] for r in fine] == counts[counts > 0].tolist()
    coarse = pq.read_table(tmp_path / "run/clusters/level=0.parquet").to_pylist()
    assert [r["cluster_id"] for r in coarse] == [0, 1]
    progress = read_progress(Store(f"{tmp_path}/run"))
    assert progress.finished
    assert progress.reconciles
    page = (tmp_path / "run/report/index.html").read_text()
    assert "cluster 1" in page
    assert "adopted hierarchy has no model" in page
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/assignments").rglob("*.parquet")}
    assert adopt(load(settings)) == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    capsys.readouterr()


def test_an_adopted_run_is_sampled_level_by_level(made, tmp_path, capsys) -> None:
    settings, _ = made
    adopt(load(settings))
    wanted = [f"run_dir={tmp_path}/run", "compute=in_process", "sample.name=v", "sample.size=100"]
    assert sample(load([*wanted, "sample.export=ssl", "sample.leaf_choice=closest"])) == 0
    table = pq.read_table(tmp_path / "run/sample/v/weights.parquet")
    assert np.bincount(table["level_0"].to_numpy()).tolist() == [50, 50]
    capsys.readouterr()
    with pytest.raises(UserError, match="no outlier scores"):
        sample(load([*wanted, "sample.max_outlier=2"]))


def test_there_is_no_model_to_go_on_with(made, tmp_path, capsys) -> None:
    settings, _ = made
    adopt(load(settings))
    capsys.readouterr()
    with pytest.raises(UserError, match="adopted from"):
        cluster(load(settings), silent)
    with pytest.raises(UserError, match="adopted from"):
        recluster(load([f"run_dir={tmp_path}/run"]), InProcessCompute, silent)
    with pytest.raises(UserError, match="choose another run_dir"):
        adopt(load([*settings, f"adopt.hierarchy={tmp_path}/other"]))


@pytest.mark.parametrize(
    ("clusters", "says"),
    [
        ([range(300), range(300, 599)], "1 are in no cluster"),
        ([range(300), range(299, 600)], "601 members"),
        ([range(300), range(300, 601)], "names member 600"),
        ([range(300), [*range(300, 599), -1]], "names member"),
    ],
)
def test_a_hierarchy_of_other_rows_is_refused(made, tmp_path, clusters, says) -> None:
    settings, _ = made
    save_level(tmp_path / "made", 1, clusters)
    with pytest.raises(UserError, match=says) as found:
        adopt(load(settings))
    assert found.value.setting == "adopt.hierarchy"


def test_a_level_that_leaves_a_cluster_out_is_refused(made, tmp_path) -> None:
    settings, _ = made
    save_level(tmp_path / "made", 2, GROUPS[:2])
    with pytest.raises(UserError, match="12 clusters of the level below"):
        adopt(load(settings))


def test_settings_that_make_no_sense_are_named(made, tmp_path) -> None:
    settings, _ = made
    for more, setting in (
        ("adopt.hierarchy=''", "adopt.hierarchy"),
        ("write.partition_by=cluster", "write.partition_by"),
        (f"adopt.hierarchy={tmp_path}", "adopt.hierarchy"),
    ):
        with pytest.raises(UserError) as found:
            adopt(load([*settings, f"run_dir={tmp_path}/other-{more[:9]}", more]))
        assert found.value.setting == setting
