"""What is current in a run: one snapshot, and ids as they are now."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rrcluster.io import tables
from rrcluster.io.current import Current, current
from rrcluster.io.store import Store

MAP = pa.schema(
    [("old_id", pa.int64()), ("new_id", pa.int64()), ("level", pa.int32()), ("kind", pa.string()),
     ("overlap", pa.float32())]
)  # fmt: skip


def assign(store: Store, folder: str, shard: int, finest: list[int], parents: list[int]) -> None:
    rows = [
        {
            "sample_id": bytes([shard, i]) + bytes(14), "shard": shard, "row": i, "key": str(i),
            "caption": None, "level_0": parents[i], "level_1": finest[i], "confidence": 1.0,
            "outlier": 0.0, "cluster_caption": "old name",
        }
        for i in range(len(finest))
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=tables.assignments_schema(2))
    tables.write_table(store, f"{folder}/{shard:06d}.parquet", "assignments", table)


def clusters(store: Store, folder: str, finest: dict[int, int], names: dict[int, str]) -> None:
    def row(cluster: int, level: int, parent: int | None) -> dict:
        text = names.get(cluster)
        captions = [{"text": text, "score": 1.0}] if text else []
        return {"cluster_id": cluster, "level": level, "parent_id": parent, "captions": captions}

    coarse = [row(c, 0, None) for c in sorted(set(finest.values()))]
    fine = [row(c, 1, p) for c, p in finest.items()]
    for level, rows in enumerate([coarse, fine]):
        tables.write_table(
            store, f"{folder}/level={level}.parquet", "clusters", tables.table_of("clusters", rows)
        )


def ids(now: Current) -> list[tuple[int, int]]:
    found = pa.concat_tables(now.batches(["level_0", "level_1"]))
    return list(zip(found["level_0"].to_pylist(), found["level_1"].to_pylist(), strict=True))


@pytest.fixture
def store(tmp_path) -> Store:
    """Two shards in clusters 2, 3 (of 0) and 4 (of 1)."""
    store = Store(str(tmp_path))
    clusters(store, "clusters", {2: 0, 3: 0, 4: 1}, {})
    assign(store, "assignments/increment=00000", 0, [2, 3, 4], [0, 0, 1])
    assign(store, "assignments/increment=00000", 1, [4, 4], [1, 1])
    return store


def commit(store: Store) -> None:
    """Increment 1: shard 2 comes, 3 merges into 2, one row of shard 1 moves to the new 5."""
    assign(store, "assignments/increment=00001", 2, [5, 2], [6, 0])
    clusters(store, "increments/00001/clusters", {2: 0, 4: 1, 5: 6}, {5: "fresh", 0: "trees"})
    mapped = [(2, 2, "kept"), (3, 2, "merged"), (4, 4, "kept"), (4, 5, "split"), (None, 5, "new")]
    rows = [
        {"old_id": old, "new_id": new, "level": 1, "kind": kind, "overlap": 1.0}
        for old, new, kind in mapped
    ]
    table = pa.Table.from_pylist(rows, schema=MAP)
    tables.write_table(store, "cluster_map/increment=00001.parquet", "cluster_map", table)
    moved = pa.Table.from_pylist(
        [{"row": 1, "old_id": 4, "new_id": 5, "confidence": 0.25, "outlier": 0.5}],
        schema=tables.MOVED,
    )
    tables.write_table(store, "moved/increment=00001/000001.parquet", "moved", moved)
    store.write_json(
        "commits/increment=00001.json",
        {
            "increment": 1,
            "assignments": [
                {"increment": 0, "written": 0, "folder": "assignments/increment=00000"},
                {"increment": 1, "written": 1, "folder": "assignments/increment=00001"},
            ],
            "clusters": "increments/00001/clusters", "replaced": [], "changes": [1],
        },
    )  # fmt: skip


def test_without_commits_a_run_is_its_first_increment(store) -> None:
    assign(store, "assignments/increment=00001", 2, [2], [0])  # not committed: not there
    now = current(store)
    assert (now.increment, now.levels) == (0, 2)
    assert [(f.increment, f.shard, f.cell) for f in now.assignments] == [(0, 0, None), (0, 1, None)]
    assert ids(now) == [(0, 2), (0, 3), (1, 4), (1, 4), (1, 4)]


def test_a_commit_makes_an_increment_visible_at_once_and_a_snapshot_stays_as_it_was(store) -> None:
    before = current(store)
    commit(store)
    assert ids(before) == [(0, 2), (0, 3), (1, 4), (1, 4), (1, 4)]
    now = current(store)
    assert ids(now) == [(0, 2), (0, 2), (1, 4), (1, 4), (6, 5), (6, 5), (0, 2)]
    names = pa.concat_tables(now.batches(["cluster_caption"]))["cluster_caption"].to_pylist()
    assert names == ["old name", "trees", "old name", "old name", "fresh", "old name", "old name"]


def test_rows_of_a_replaced_shard_are_left_out(store) -> None:
    commit(store)
    content = store.read_json("commits/increment=00001.json") | {"replaced": [1]}
    store.write_json("commits/increment=00001.json", content)
    assert ids(current(store)) == [(0, 2), (0, 2), (1, 4), (6, 5), (0, 2)]


def test_the_layout_by_cluster_gives_the_same_rows(store, tmp_path) -> None:
    hive = Store(str(tmp_path / "hive"))
    clusters(hive, "clusters", {2: 0, 3: 0, 4: 1}, {})
    table = pa.concat_tables(current(store).batches(tables.assignments_schema(2).names))
    for cell in (0, 1):
        rows = table.filter(pa.array(np.asarray(table["level_0"]) == cell)).drop_columns("level_0")
        folder = f"assignments/increment=00000/level_0={cell}"
        tables.write_table(hive, f"{folder}/part-00000.parquet", "assignments", rows)
    assert [f.cell for f in current(hive).assignments] == [0, 1]
    assert sorted(ids(current(hive))) == sorted(ids(current(store)))
