"""write: assignments of every row of every shard, then the cluster tables with exact sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from rrcluster.compute import Compute, Progress
from rrcluster.core.forest import Forest, label
from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.records import Shard
from rrcluster.stages.count import read_forest, read_rates
from rrcluster.stages.names import Names, read_names
from rrcluster.stages.run import Record, Run, split_evenly

INCREMENT = "assignments/increment=00000"
GROUP_ROWS = 5_000_000  # rows of one part with write.partition_by=cluster: few, large files


def first_ids(forest: Forest) -> list[int]:
    """The id of each level's first cluster: levels are numbered in turn, coarse first."""
    starts = [0]
    for clusters in forest.clusters_per_level:
        starts.append(starts[-1] + clusters)
    return starts


def write(run: Run, compute: Compute, record: Record, progress: Progress) -> None:
    """Write what has no mark yet. Sizes are counted from what was written."""
    with record.stage("write") as counts:
        forest, names = read_forest(run.store), read_names(run.store)
        by_cluster = run.config.write.partition_by == "cluster"
        work = WriteRows(run.store, forest, tuple(names.label_of_finest()), by_cluster)
        items: list[tuple[str, list[Shard]]] = [(s.name, [s]) for s in run.shards]
        if by_cluster:
            rows = record.content["reconciliation"]["embedded"]
            groups = split_evenly(run.shards, max(1, -(-rows // GROUP_ROWS)))
            items = [(f"{i:05d}", group) for i, group in enumerate(groups)]
        parts = min(len(items), 4 * compute.workers)
        marks = run.store.names(_marks(by_cluster), ".json")
        todo = [item for item in items if f"{item[0]}.json" not in marks]
        progress("write", len(items) - len(todo), len(items))
        for done, _ in enumerate(compute.map(work, todo), len(items) - len(todo) + 1):
            progress("write", done, len(items))
        written = [[name for name, _ in items[i::parts]] for i in range(parts)]
        found = compute.map(SumMarks(run.store, _marks(by_cluster)), written)
        sizes = np.sum([part for _, part in found], axis=0)
        write_clusters(run.store, forest, names, sizes)
        counts |= {"shards": len(run.shards), "rows": int(sizes.sum())}
    rows, embedded = int(sizes.sum()), record.content["reconciliation"]["embedded"]
    assert rows == embedded, f"{rows} rows were assigned of {embedded} embedded"


def _marks(by_cluster: bool) -> str:
    return "model/write/cluster" if by_cluster else "model/write/shard"


@dataclass(frozen=True)
class SumMarks:
    """Map: rows per finest cluster over some marks."""

    store: Store
    folder: str

    def __call__(self, names: list[str]) -> npt.NDArray[np.int64]:
        found = [self.store.read_json(f"{self.folder}/{name}.json") for name in names]
        total: npt.NDArray[np.int64] = np.sum(np.asarray(found, np.int64), axis=0)
        return total


@dataclass(frozen=True)
class WriteRows:
    """Map: assign the rows of some shards, publish them, then the mark with rows per cluster."""

    store: Store
    forest: Forest
    captions: tuple[str, ...]  # of the finest clusters
    by_cluster: bool

    def __call__(self, item: tuple[str, list[Shard]]) -> int:
        name, shards = item
        assigned = [self.assign(shard) for shard in shards]
        table = pa.concat_tables([t for t, _ in assigned])
        if self.by_cluster:
            part = f"part-{name}.parquet"
            coarse = table["level_0"].to_numpy()
            for cluster in np.unique(coarse).tolist():
                rows = table.filter(pa.array(coarse == cluster)).drop_columns("level_0")
                folder = f"{INCREMENT}/level_0={cluster}"
                tables.write_table(self.store, f"{folder}/{part}", "assignments", rows)
        else:
            tables.write_table(self.store, f"{INCREMENT}/{name}.parquet", "assignments", table)
        sizes = np.sum([s for _, s in assigned], axis=0)
        self.store.write_json(f"{_marks(self.by_cluster)}/{name}.json", sizes.tolist())
        return int(sizes.sum())

    def assign(self, shard: Shard) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """The shard's assignment table, rows in input order, and its rows per finest cluster."""
        samples = tables.read_table(self.store, f"samples/{shard.name}.parquet")
        x = torch.from_numpy(np.array(self.store.read_npy(f"embeddings/{shard.name}.npy")))
        found = label(self.forest, x)
        starts = first_ids(self.forest)
        columns: dict[str, Any] = {
            name: samples[name] for name in ("sample_id", "shard", "row", "key", "caption")
        }
        for level in range(found.path.shape[1]):
            columns[f"level_{level}"] = found.path[:, level].numpy() + starts[level]
        finest = found.path[:, -1].numpy()
        columns["confidence"] = found.confidence.numpy()
        columns["outlier"] = found.outlier.numpy()
        columns["cluster_caption"] = pa.array(self.captions, pa.string()).take(pa.array(finest))
        schema = tables.assignments_schema(found.path.shape[1])
        sizes = np.bincount(finest, minlength=self.forest.clusters_per_level[-1])
        return pa.table(columns, schema=schema), sizes


def write_clusters(
    store: Store, forest: Forest, names: Names, sizes: npt.NDArray[np.int64]
) -> None:
    """``clusters/level=<l>.parquet``, finest level first, so that the coarsest is the mark."""
    starts, rates = first_ids(forest), read_rates(store)
    paths = forest.paths.unique(dim=0).numpy()  # one row per finest cluster
    for level in reversed(range(paths.shape[1])):
        rows: list[dict[str, Any]] = []
        for index in range(forest.clusters_per_level[level]):
            inside = paths[:, level] == index
            parent = int(paths[inside][0, level - 1]) + starts[level - 1] if level else None
            named = names.levels[level][index]
            rows.append(
                {
                    "cluster_id": starts[level] + index,
                    "level": level,
                    "parent_id": parent,
                    "size": int(sizes[paths[inside][:, -1]].sum()),
                    "coding_rate": rates[level][index],
                    "radius": named.radius,
                    "captions": [{"text": t, "score": s} for t, s in named.captions],
                    "exemplars": [bytes.fromhex(e) for e in named.exemplars],
                    "since_increment": 0,
                }
            )
        tables.write_table(
            store, f"clusters/level={level}.parquet", "clusters", tables.table_of("clusters", rows)
        )
