"""Parts of an increment that need no job."""

from __future__ import annotations

import json

from rrcluster.io import tables
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.stages.recluster import mirror_clusters


def test_levels_of_a_deeper_tree_are_gone_from_the_folder_where_other_tools_look(tmp_path) -> None:
    store = Store(str(tmp_path))
    for folder, levels in (("clusters", 3), ("versions/increment=00001/clusters", 2)):
        for level in range(levels):
            rows = [{"cluster_id": 10 * levels + level, "level": level, "size": 1}]
            table = tables.table_of("clusters", rows)
            tables.write_table(store, f"{folder}/level={level}.parquet", "clusters", table)
    commit = {
        "increment": 1, "assignments": [], "replaced": [], "changes": [],
        "clusters": "versions/increment=00001/clusters",
    }  # fmt: skip
    assert store.create("commits/increment=00001.json", json.dumps(commit).encode())
    mirror_clusters(current(store))
    assert store.names("clusters") == {"level=0.parquet", "level=1.parquet"}
    shown = tables.read_table(store, "clusters/level=1.parquet")["cluster_id"].to_pylist()
    assert shown == [21]
