"""adopt: a hierarchy that was made elsewhere becomes a run, to be sampled, scored and looked at.

The clusters are taken as they are; nothing is fitted, so there are no confidences, outlier scores,
rates or names. A row's leaf passes through a file of 4 bytes per row on the driver's disk and one
array per shard in the run folder; the driver holds the tree.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rrcluster.compute import Compute, Progress, in_order
from rrcluster.core.sample import Levels
from rrcluster.core.waterfill import Ints, sums
from rrcluster.io import tables
from rrcluster.io.hierarchy import level_folders, read_level
from rrcluster.io.store import Store
from rrcluster.records import Shard, UserError
from rrcluster.stages.embed import StoredCounts
from rrcluster.stages.run import Record, Run, split_evenly
from rrcluster.stages.steps import run_step
from rrcluster.stages.write import assignments_folder

FOLDER = "model/adopt"
CHUNK = 1 << 22  # rows of the leaf file that are looked at at once


def adopt(run: Run, compute: Compute, record: Record, progress: Progress) -> None:
    """Write the assignments and the cluster tables of ``adopt.hierarchy``.

    Raises UserError when it does not fit the run's rows, or the run holds another clustering.
    """
    spec = run.config.adopt
    if not spec.hierarchy:
        remedy = "name the folder that holds level1/sorted_clusters.npy, level2/..."
        raise UserError("adopt.hierarchy", "''", remedy)
    if run.config.write.partition_by != "shard":
        remedy = "an adopted run is written by shard; leave it at shard"
        raise UserError("write.partition_by", run.config.write.partition_by, remedy)
    source = Store(spec.hierarchy, run.config.corpus.storage_options)
    folders = level_folders(source)
    with record.stage("adopt") as counts:
        groups = split_evenly(run.shards, 4 * compute.workers)
        found = compute.map(StoredCounts(run.store), groups)
        rows = {c.shard: c.read for some in in_order(found) for c in some}
        if not run.store.exists(f"{FOLDER}/levels.npy"):
            read_hierarchy(source, folders, run, rows, progress)
        levels = read_levels(run.store)
        ids = levels.ids
        work = WriteShard(run.store, levels.path(), assignments_folder(0))
        marks = run_step(
            compute, run.store, f"{FOLDER}/written", work, run.shards, progress, "", stage="adopt"
        )
        sizes = np.zeros(levels.num_leaves, np.int64)
        for mark in marks:
            leaf, size = mark.reshape(2, -1)
            sizes[leaf] += size
        write_tables(run.store, levels, sizes)
        counts |= {"rows": int(sizes.sum()), "levels": len(ids), "clusters": [len(i) for i in ids]}


def read_hierarchy(
    source: Store, folders: list[str], run: Run, rows: dict[int, int], progress: Progress
) -> None:
    """Publish the leaf of every row, shard by shard, and then the tree.

    Raises UserError unless every row, and every cluster of a lower level, is in just one cluster.
    """
    total = sum(rows.values())
    with tempfile.TemporaryFile() as file:
        file.truncate(max(total, 1) * 4)
        leaf = np.memmap(file, np.int32, "r+", shape=(max(total, 1),))
        count = _owners(source, folders[0], leaf[:total], "rows of the corpus", progress)
        starts = [0, *accumulate(rows[s.index] for s in run.shards)]
        for shard, start in zip(run.shards, starts, strict=False):
            part = np.array(leaf[start : start + rows[shard.index]])
            run.store.write_npy(f"{FOLDER}/leaf/{shard.name}.npy", part)
        del leaf
    parents: list[npt.NDArray[np.int32]] = []
    for folder in folders[1:]:
        parent = np.empty(count, np.int32)
        count = _owners(source, folder, parent, "clusters of the level below", progress)
        parents.append(parent)
    parents.append(np.zeros(count, np.int32))
    for level, parent in enumerate(reversed(parents)):
        run.store.write_npy(f"{FOLDER}/parent-{level}.npy", parent)
    run.store.write_npy(f"{FOLDER}/levels.npy", np.asarray([len(parents)]))


def _owners(
    source: Store, folder: str, owner: npt.NDArray[np.int32], what: str, progress: Progress
) -> int:
    """Fill in which cluster of the level each member is in; the number of clusters."""
    owner[:] = -1
    seen, clusters = 0, 0
    for members in read_level(source, folder):
        if len(members) and (members.min() < 0 or members.max() >= len(owner)):
            raise _misfit(source, folder, f"names member {int(members.max()):,}", len(owner), what)
        owner[members] = clusters
        seen += len(members)
        clusters += 1
        if clusters % 10_000 == 0:
            progress("adopt", seen, len(owner), f"{folder}, {clusters:,} clusters")
    alone = sum(int((owner[a : a + CHUNK] < 0).sum()) for a in range(0, len(owner), CHUNK))
    if alone or seen != len(owner):
        says = f"holds {seen:,} members, {alone:,} are in no cluster"
        raise _misfit(source, folder, says, len(owner), what)
    return clusters


def _misfit(source: Store, folder: str, says: str, members: int, what: str) -> UserError:
    return UserError(
        "adopt.hierarchy",
        f"{source.uri}/{folder}",
        f"{says}, but there are {members:,} {what}, each of which belongs to one cluster; "
        "corpus.uri must name the vectors that this hierarchy was made from",
    )


def read_levels(store: Store) -> Levels:
    """The tree, coarse first; its ids number the levels in turn, empty clusters included."""
    depth = int(store.read_npy(f"{FOLDER}/levels.npy")[0])
    parents = tuple(
        np.asarray(store.read_npy(f"{FOLDER}/parent-{level}.npy"), np.int64)
        for level in range(depth)
    )
    starts = [0, *accumulate(len(p) for p in parents)]
    ids = tuple(a + np.arange(len(p)) for a, p in zip(starts, parents, strict=False))
    return Levels(ids, parents)


@dataclass(frozen=True)
class WriteShard:
    """Map: publish a shard's assignments; answers its leaves and their rows (2, m), flat."""

    store: Store
    paths: Ints  # (leaves, L) cluster ids
    folder: str

    def __call__(self, shard: Shard) -> Ints:
        names = ["sample_id", "shard", "row", "key", "caption"]
        samples = tables.read_table(self.store, f"samples/{shard.name}.parquet", names)
        every = np.asarray(self.store.read_npy(f"{FOLDER}/leaf/{shard.name}.npy"))
        leaf = every[samples["row"].to_numpy()]
        columns: dict[str, Any] = {name: samples[name] for name in names}
        for level in range(self.paths.shape[1]):
            columns[f"level_{level}"] = self.paths[leaf, level]
        columns["confidence"] = columns["outlier"] = pa.nulls(len(leaf), pa.float32())
        columns["cluster_caption"] = pa.nulls(len(leaf), pa.string())
        table = pa.table(columns, schema=tables.assignments_schema(self.paths.shape[1]))
        tables.write_table(self.store, f"{self.folder}/{shard.name}.parquet", "assignments", table)
        return np.stack(np.unique(leaf, return_counts=True)).astype(np.int64).reshape(-1)


def write_tables(store: Store, levels: Levels, sizes: Ints) -> None:
    """``clusters/``, finest level first; clusters without a row are left out."""
    ids = levels.ids
    for level in reversed(range(len(ids))):
        kept = np.flatnonzero(sizes > 0)
        rows = len(kept)
        above = levels.parent[level][kept]
        table = pa.table(
            {
                "cluster_id": ids[level][kept],
                "level": np.full(rows, level, np.int32),
                "parent_id": ids[level - 1][above] if level else pa.nulls(rows, pa.int64()),
                "size": sizes[kept],
                "coding_rate": pa.nulls(rows, pa.float32()),
                "radius": pa.nulls(rows, pa.float32()),
                "captions": pa.array([[]] * rows, tables.CLUSTERS.field("captions").type),
                "exemplars": pa.array([[]] * rows, tables.CLUSTERS.field("exemplars").type),
                "since_increment": np.zeros(rows, np.int32),
            },
            schema=tables.CLUSTERS,
        )
        tables.write_table(store, f"clusters/level={level}.parquet", "clusters", table)
        if level:
            sizes = sums(sizes, levels.parent[level], len(ids[level - 1]))
