"""Samples of a run: exact, stable, and told plainly when they cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sample_run
from sample_run import SIZES, vectors_run

from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.core.order import hash_keys
from rrcluster.io.store import Store
from rrcluster.io.tables import weights_schema
from rrcluster.local import InProcessCompute
from rrcluster.records import UserError
from rrcluster.stages import sample as stage


def draw(store: Store, *overrides: str, workers: int = 1):
    """(summary, weights table) of a sample."""
    config = load([f"run_dir={store.uri}", "sample.name=v", *overrides])
    with InProcessCompute(workers) as compute:
        summary = stage.sample(config, store, compute, silent)
    return summary, pq.read_table(f"{store.uri}/sample/{config.sample.name}/weights.parquet")


def ids(table) -> set[bytes]:
    return set(table["sample_id"].to_pylist())


def per_leaf(table) -> list[int]:
    draws = np.bincount(table["level_1"].to_numpy() - 10, table["repeat"].to_numpy(), 6)
    return draws.astype(int).tolist()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Store:
    return vectors_run(tmp_path_factory.mktemp("run"))


def test_the_sample_is_exact_and_takes_the_smallest_keys_of_each_cluster(run) -> None:
    summary, table = draw(run, "sample.size=100", "sample.name=exact")
    assert table.schema.remove_metadata() == weights_schema(2)
    assert table.schema.metadata[b"rrcluster.schema"] == b"weights"
    assert summary["draws"] == table.num_rows == 100
    # 100 over three groups: the third has two rows, the others 49 each; then over their leaves.
    assert sorted(per_leaf(table)[:3]) == [16, 16, 17]
    assert per_leaf(table)[3:] == [41, 8, 2]
    where = list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert where == sorted(where)
    everything = pq.read_table(f"{run.uri}/assignments", partitioning=None)
    for leaf in range(6):
        mine = everything.filter(np.asarray(everything["level_1"]) == 10 + leaf)
        key = hash_keys(np.asarray([list(i) for i in mine["sample_id"].to_pylist()], np.uint8), 0)
        first = np.argsort(key[:, 0])[: per_leaf(table)[leaf]]
        expected = {mine["sample_id"][int(i)].as_py() for i in first}
        assert expected == ids(table.filter(np.asarray(table["level_1"]) == 10 + leaf))
    stands_for = np.bincount(table["level_1"].to_numpy() - 10, table["weight"].to_numpy())
    assert stands_for == pytest.approx(np.asarray(SIZES))


@pytest.mark.parametrize("choice", ["random", "closest", "stratified", "sensitivity"])
def test_files_workers_pieces_and_layout_do_not_change_who_is_in(
    choice, tmp_path, monkeypatch
) -> None:
    asked = ("sample.size=200", f"sample.leaf_choice={choice}")
    _, one = draw(vectors_run(tmp_path / "one"), *asked)
    monkeypatch.setattr(stage, "GROUP_ROWS", 50)
    monkeypatch.setattr(stage, "VECTOR_BYTES", 50 * 2 * sample_run.WIDTH)
    _, other = draw(vectors_run(tmp_path / "other", shards=3, seed=9), *asked, workers=3)
    _, hive = draw(vectors_run(tmp_path / "hive", hive=True), *asked)
    assert ids(one) == ids(other) == ids(hive)
    assert len(ids(one)) == 200
    assert pq.read_table(tmp_path / "one/sample/v/weights.parquet") == pq.read_table(
        tmp_path / "hive/sample/v/weights.parquet"
    )


def test_the_same_command_gives_the_same_bytes_and_a_killed_one_goes_on(tmp_path) -> None:
    first, second = vectors_run(tmp_path / "a"), vectors_run(tmp_path / "b")
    draw(first, "sample.size=50", "sample.export=[keys,datacomp,ssl,hf,torch]", workers=3)

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rrcluster.stages.sample.Collect.__call__", stop)
        with pytest.raises(Stopped):
            draw(second, "sample.size=50")
    marks = {p: p.stat().st_mtime_ns for p in Path(second.uri).glob("sample/v/work/*/*")}
    draw(second, "sample.size=50", "sample.export=[keys]")
    draw(second, "sample.size=50", "sample.export=[keys,datacomp,ssl,hf,torch]")
    assert marks == {p: p.stat().st_mtime_ns for p in marks}
    for path in (tmp_path / "a/sample").rglob("*"):
        if path.is_file() and path.name != "summary.json":
            assert (
                path.read_bytes()
                == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
            )


def test_a_tenth_more_rows_leave_most_of_the_sample_in_place(tmp_path) -> None:
    _, before = draw(vectors_run(tmp_path / "before"), "sample.size=150")
    grown = [n + -(-n // 10) for n in SIZES]
    _, after = draw(vectors_run(tmp_path / "after", grown, shards=6), "sample.size=150")
    assert len(ids(before) & ids(after)) >= 0.8 * 150


def test_small_clusters_repeat_up_to_the_multiplier(run) -> None:
    summary, table = draw(run, "sample.size=300", "sample.multiplier=5", "sample.name=many")
    assert summary["draws"] == 300
    repeat = table["repeat"].to_numpy()
    assert repeat.max() == 5
    assert per_leaf(table)[5] == 10
    assert (table["weight"].to_numpy() * repeat).sum() == pytest.approx(sum(SIZES))


def test_outliers_clusters_and_duplicates_are_left_out_and_counted(tmp_path) -> None:
    store = vectors_run(tmp_path / "run", copies=50)
    summary, table = draw(
        store, "sample.size=600", "sample.exclude=[11,'group 2']", "sample.max_outlier=1.0"
    )
    assert summary["left_out"]["excluded"] == 122
    assert summary["left_out"]["outliers"] > 50
    assert summary["left_out"]["duplicates"] > 20
    assert len(ids(table)) == table.num_rows == summary["available"]
    assert summary["short"] == 600 - table.num_rows
    assert "duplicates were left out" in summary["why_short"]
    assert per_leaf(table)[1] == per_leaf(table)[5] == 0
    kept, table = draw(store, "sample.size=760", "sample.drop_duplicates=false", "sample.name=all")
    assert kept["draws"] == table.num_rows == 760
    assert len(ids(table)) == 711


def test_near_duplicates_within_a_cluster_are_left_out(tmp_path) -> None:
    store = vectors_run(tmp_path / "run")
    summary, table = draw(store, "sample.size=700", "sample.dedup_threshold=0.95")
    assert summary["left_out"]["near_duplicates"] > 20
    rows = pq.read_table(f"{store.uri}/assignments", partitioning=None)
    x = np.concatenate([np.load(f"{store.uri}/embeddings/{s:06d}.npy") for s in range(5)])
    chosen = [i in ids(table) for i in rows["sample_id"].to_pylist()]
    for leaf in range(10, 16):
        mine = x[chosen & (np.asarray(rows["level_1"]) == leaf)].astype(np.float32)
        assert (np.tril(mine @ mine.T, -1) < 0.95 + 1e-6).all()


def test_weights_by_id_and_by_caption_tilt_the_sample(run) -> None:
    even = per_leaf(draw(run, "sample.size=60", "sample.name=even")[1])
    tilted = draw(run, "sample.size=60", "sample.weights={thing 0: 4, '13': 0}", "sample.name=t")
    assert per_leaf(tilted[1])[0] > even[0]
    assert per_leaf(tilted[1])[3] == 0


@pytest.mark.parametrize(
    ("overrides", "setting", "says"),
    [
        (["sample.size=0"], "sample.size", "at least 1"),
        (["sample.size=761"], "sample.size", "760 rows"),
        (["sample.name=''"], "sample.name", "sample/<name>/"),
        (["sample.name=a/b"], "sample.name", "letters"),
        (["sample.export=[npz]"], "sample.export", "datacomp"),
        (["sample.exclude=[99]"], "sample.exclude", "ids go up to 15"),
        (["sample.weights={99: 2}"], "sample.weights", "no cluster"),
        (["sample.weights={10: -1}"], "sample.weights", "0 or more"),
        (["sample.exclude=[0]", "sample.weights={10: 2}"], "sample.weights", "one of the two"),
        (["sample.exclude=[0,1,2]"], "sample.exclude", "no row"),
        (["sample.min_per_cluster=9"], "sample.min_per_cluster", "lower it"),
        (["sample.min_per_cluster=9", "sample.max_per_cluster=3"], "sample.max_per_cluster", "9"),
        (["sample.dedup_threshold=95"], "sample.dedup_threshold", "cosine"),
        (["sample.multiplier=0"], "sample.multiplier", "at least 1"),
        (["sample.levels=[0,2]"], "sample.levels", "levels 0 to 1"),
        (["sample.method=random", "sample.min_per_cluster=1"], "sample.min_per_cluster", "random"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_setting(run, overrides, setting, says) -> None:
    with pytest.raises(UserError) as found:
        draw(run, "sample.name=wrong", "sample.size=20", *overrides)
    assert found.value.setting == setting
    assert says in str(found.value)
    assert not run.exists("sample/wrong/settings.json")


def test_a_run_without_levels_and_another_sample_of_the_name_are_refused(run, tmp_path) -> None:
    with pytest.raises(UserError, match="no levels to sample"):
        draw(Store(str(tmp_path)), "sample.size=5")
    draw(run, "sample.size=20", "sample.name=taken")
    for change, name in (("sample.size=21", "sample.size"), ("seed=1", "seed")):
        with pytest.raises(UserError, match=r"choose another sample\.name") as found:
            draw(run, "sample.size=20", "sample.name=taken", change)
        assert found.value.setting == name


def test_random_ignores_clusters(run) -> None:
    summary, table = draw(run, "sample.size=76", "sample.method=random", "sample.name=random")
    assert summary["draws"] == table.num_rows == 76
    assert per_leaf(table)[0] > 25
    assert summary["levels"][1]["after"]["covered"] == np.count_nonzero(per_leaf(table))


def test_labels_count_classes_before_and_after_and_choose_nothing(tmp_path) -> None:
    store = vectors_run(tmp_path / "run")
    every = pq.read_table(f"{store.uri}/assignments", partitioning=None)
    label = [f"class {i % 10 // 3}" if i < 16 else None for i in every["level_1"].to_pylist()]
    path = str(tmp_path / "labels.parquet")
    pq.write_table(pa.table({"key": every["key"], "label": label}), path)
    _, plain = draw(store, "sample.size=100", "sample.name=plain")
    _, table = draw(store, "sample.size=100", f"evaluate.labels={path}")
    assert ids(table) == ids(plain)
    found = store.read_json("sample/v/classes.json")
    leaf = table["level_1"].to_numpy() - 10
    assert found["names"] == ["class 0", "class 1"]
    assert found["before"] == [550, 210]
    assert found["after"] == [int((leaf < 3).sum()), int((leaf >= 3).sum())]
    assert found["balance_after"]["effective"] > found["balance_before"]["effective"]
    wrong = str(tmp_path / "wrong.parquet")
    pq.write_table(pa.table({"key": ["nowhere"], "label": ["x"]}), wrong)
    with pytest.raises(UserError, match="none of its labels matches"):
        draw(store, "sample.size=100", f"evaluate.labels={wrong}")
