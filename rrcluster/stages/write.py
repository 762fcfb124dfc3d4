"""write: assignments of every row of every shard, then the cluster tables with exact sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from rrcluster.compute import Compute, Progress
from rrcluster.core.forest import Forest, label
from rrcluster.io import tables
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.records import Shard
from rrcluster.stages.count import read_forest, read_rates
from rrcluster.stages.names import Names, read_names
from rrcluster.stages.run import Record, Run, split_evenly

GROUP_ROWS = 5_000_000  # rows of one part with write.partition_by=cluster: few, large files


IDS = "model/ids.json"  # per level, the id of each cluster of a model that was fitted again
OPENED_IDS = "novelty/ids.json"  # the same, with clusters opened between fits


def cluster_ids(store: Store, forest: Forest) -> list[npt.NDArray[np.int64]]:
    """Per level, the id of each of the model's clusters.

    A run's first model numbers its levels in turn, coarse first; a later one has its ids stored.
    """
    for name in (OPENED_IDS, IDS):
        if store.exists(name):
            return [np.asarray(level, np.int64) for level in store.read_json(name)]
    starts = np.cumsum([0, *forest.clusters_per_level])
    return [np.arange(a, b, dtype=np.int64) for a, b in pairwise(starts.tolist())]


def assignments_folder(increment: int) -> str:
    return f"assignments/increment={increment:05d}"


def write(run: Run, compute: Compute, record: Record, progress: Progress) -> None:
    """Write what has no mark yet. Sizes are counted from what was written."""
    with record.stage("write") as counts:
        embedded = record.content["reconciliation"]["embedded"]
        sizes = write_rows(run, compute, progress, embedded, assignments_folder(0))
        if current(run.store).increment == 0:  # else the tables are those of a later increment
            write_clusters(run.store, read_forest(run.store), read_names(run.store), sizes)
        counts |= {"shards": len(run.shards), "rows": int(sizes.sum())}


def write_rows(
    run: Run, compute: Compute, progress: Progress, embedded: int, folder: str, marks: str = ""
) -> npt.NDArray[np.int64]:
    """Assign every row of the run's shards into ``folder``; rows per finest cluster (k,).

    ``embedded`` is how many rows there are. ``marks`` tells the marks of one use from another's.
    """
    forest, names = read_forest(run.store), read_names(run.store)
    by_cluster = run.config.write.partition_by == "cluster"
    marks = f"model/write/{marks}{'cluster' if by_cluster else 'shard'}"
    ids = tuple(cluster_ids(run.store, forest))
    captions = tuple(names.label_of_finest())
    work = WriteRows(run.store, forest, ids, captions, by_cluster, folder, marks)
    items: list[tuple[str, list[Shard]]] = [(s.name, [s]) for s in run.shards]
    if by_cluster:
        groups = split_evenly(run.shards, max(1, -(-embedded // GROUP_ROWS)))
        items = [(f"{i:05d}", group) for i, group in enumerate(groups)]
    parts = min(len(items), 4 * compute.workers)
    marked = run.store.names(marks, ".json")
    todo = [item for item in items if f"{item[0]}.json" not in marked]
    progress("write", len(items) - len(todo), len(items))
    for done, _ in enumerate(compute.map(work, todo), len(items) - len(todo) + 1):
        progress("write", done, len(items))
    written = [[name for name, _ in items[i::parts]] for i in range(parts)]
    found = compute.map(SumMarks(run.store, marks), written)
    sizes: npt.NDArray[np.int64] = np.sum([part for _, part in found], axis=0)
    assert sizes.sum() == embedded, f"{sizes.sum()} rows were assigned of {embedded} embedded"
    return sizes


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
    ids: tuple[npt.NDArray[np.int64], ...]  # per level
    captions: tuple[str, ...]  # of the finest clusters
    by_cluster: bool
    folder: str
    marks: str

    def __call__(self, item: tuple[str, list[Shard]]) -> int:
        name, shards = item
        assigned = [self.assign(shard) for shard in shards]
        table = pa.concat_tables([t for t, _ in assigned])
        if self.by_cluster:
            part = f"part-{name}.parquet"
            coarse = table["level_0"].to_numpy()
            for cluster in np.unique(coarse).tolist():
                rows = table.filter(pa.array(coarse == cluster)).drop_columns("level_0")
                place = f"{self.folder}/level_0={cluster}/{part}"
                tables.write_table(self.store, place, "assignments", rows)
        else:
            tables.write_table(self.store, f"{self.folder}/{name}.parquet", "assignments", table)
        sizes = np.sum([s for _, s in assigned], axis=0)
        self.store.write_json(f"{self.marks}/{name}.json", sizes.tolist())
        return int(sizes.sum())

    def assign(self, shard: Shard) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """The shard's assignment table, rows in input order, and its rows per finest cluster."""
        samples = tables.read_table(self.store, f"samples/{shard.name}.parquet")
        x = torch.from_numpy(np.array(self.store.read_npy(f"embeddings/{shard.name}.npy")))
        found = label(self.forest, x)
        columns: dict[str, Any] = {
            name: samples[name] for name in ("sample_id", "shard", "row", "key", "caption")
        }
        for level in range(found.path.shape[1]):
            columns[f"level_{level}"] = self.ids[level][found.path[:, level].numpy()]
        finest = found.path[:, -1].numpy()
        columns["confidence"] = found.confidence.numpy()
        columns["outlier"] = found.outlier.numpy()
        columns["cluster_caption"] = pa.array(self.captions, pa.string()).take(pa.array(finest))
        schema = tables.assignments_schema(found.path.shape[1])
        sizes = np.bincount(finest, minlength=self.forest.clusters_per_level[-1])
        return pa.table(columns, schema=schema), sizes


def write_clusters(
    store: Store,
    forest: Forest,
    names: Names,
    sizes: npt.NDArray[np.int64],
    folder: str = "clusters",
    since: Mapping[int, int] | None = None,
) -> None:
    """``<folder>/level=<l>.parquet``, finest level first, so that the coarsest is the mark.

    ``since`` is the increment that each id came with; 0 for those that it does not hold.
    """
    ids, rates = cluster_ids(store, forest), read_rates(store)
    paths = forest.paths.unique(dim=0).numpy()  # one row per finest cluster
    for level in reversed(range(paths.shape[1])):
        rows: list[dict[str, Any]] = []
        for index in range(forest.clusters_per_level[level]):
            inside = paths[:, level] == index
            parent = int(ids[level - 1][paths[inside][0, level - 1]]) if level else None
            named = names.levels[level][index]
            rows.append(
                {
                    "cluster_id": int(ids[level][index]),
                    "level": level,
                    "parent_id": parent,
                    "size": int(sizes[paths[inside][:, -1]].sum()),
                    "coding_rate": rates[level][index],
                    "radius": named.radius,
                    "captions": [{"text": t, "score": s} for t, s in named.captions],
                    "exemplars": [bytes.fromhex(e) for e in named.exemplars],
                    "since_increment": (since or {}).get(int(ids[level][index]), 0),
                }
            )
        tables.write_table(
            store, f"{folder}/level={level}.parquet", "clusters", tables.table_of("clusters", rows)
        )
