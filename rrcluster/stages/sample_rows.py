"""The four passes of a sample over rows, each a map whose answers are counts.

scatter: a group of assignment files → its rows by part (clusters, or slices of a large one).
sort: a part → its distinct rows in the order in which each cluster gives them; rows per cluster.
pick: a part and the clusters' budgets → the taken rows by group of input shards.
collect: a group of input shards → its taken rows in corpus order, with ids, keys and paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from rrcluster.core.order import (
    Parts,
    hash_keys,
    near_duplicates,
    order_rows,
    repeats,
    sensitivity_weights,
    squared_distances,
)
from rrcluster.core.sample import SampleSpec
from rrcluster.core.waterfill import Floats, Ints, ranks
from rrcluster.io import tables
from rrcluster.io.current import AssignmentFile, Current
from rrcluster.io.store import Store
from rrcluster.stages.steps import Numbers

ROW = np.dtype([("leaf", "<u4"), ("shard", "<i4"), ("row", "<i4"), ("key", "<u8", 2)])
SORTED = np.dtype([("leaf", "<u4"), ("shard", "<i4"), ("row", "<i4")])
ROW_GROUP = 1 << 16  # rows that an export of a few shards reads at least
PICKED = np.dtype(
    [("leaf", "<u4"), ("shard", "<i4"), ("row", "<i4"), ("repeat", "<i4"), ("weight", "<f8")]
)
Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Plan:
    """What every pass knows: the clusters, the parts of the exchange, and where files go."""

    now: Current
    store: Store
    folder: str  # sample/<name>/work
    spec: SampleSpec
    seed: int
    leaf_ids: Ints  # (leaves,) ascending cluster ids of the finest level
    group: Ints  # (leaves,) whose rows are chosen among one another; -1 is left out
    parts: Parts
    vectors: bool  # whether rows travel with their embeddings


@dataclass(frozen=True)
class Scatter:
    """Map: answers the parts' offsets (P + 1), then rows of excluded clusters and outliers."""

    plan: Plan

    def __call__(self, item: tuple[int, Sequence[AssignmentFile]]) -> Numbers:
        number, files = item
        found, unwanted, outliers = [np.zeros(0, ROW)], 0, 0
        for rows, no_cluster, too_far in self._rows(files):
            found.append(rows)
            unwanted += no_cluster
            outliers += too_far
        rows = np.concatenate(found)
        part = self.plan.parts.of(self.plan.group[rows["leaf"]], rows["key"][:, 0])
        order = np.argsort(part, kind="stable")
        rows = rows[order]
        name = f"{self.plan.folder}/scatter/{number:06d}"
        if self.plan.vectors:
            self.plan.store.write_npy(f"{name}.vectors.npy", fetch_vectors(self.plan.now, rows))
        self.plan.store.write_npy(f"{name}.rows.npy", rows)
        starts = np.searchsorted(part[order], np.arange(self.plan.parts.parts + 1))
        return numbers(starts, unwanted, outliers)

    def _rows(self, files: Sequence[AssignmentFile]) -> Iterator[tuple[Rows, int, int]]:
        plan = self.plan
        finest = f"level_{plan.now.levels - 1}"
        columns = ["sample_id", "shard", "row", finest]
        if plan.spec.max_outlier is not None:
            columns.append("outlier")
        for table in plan.now.batches(columns, files):
            leaf = np.searchsorted(plan.leaf_ids, table[finest].to_numpy())
            keep = plan.group[leaf] >= 0
            unwanted = int((~keep).sum())
            if plan.spec.max_outlier is not None:
                keep &= ~(table["outlier"].to_numpy() > plan.spec.max_outlier)
            rows = np.empty(len(table), ROW)
            rows["leaf"], rows["key"] = leaf, hash_keys(id_bytes(table["sample_id"]), plan.seed)
            rows["shard"], rows["row"] = table["shard"].to_numpy(), table["row"].to_numpy()
            yield rows[keep], unwanted, int((~keep).sum()) - unwanted


@dataclass(frozen=True)
class SortPart:
    """Map: answers rows per group of the part, then exact and near-duplicates left out."""

    plan: Plan

    def __call__(self, item: tuple[int, Ints, Ints]) -> Numbers:
        part, starts, stops = item
        plan, folder = self.plan, f"{self.plan.folder}/scatter"
        rows = np.concatenate(
            [
                plan.store.read_npy(f"{folder}/{g:06d}.rows.npy", a, b)
                for g, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
                if b > a
            ]
            or [np.zeros(0, ROW)]
        )
        group = plan.group[rows["leaf"]]
        order = key_order(group, rows)
        rows, group = rows[order], group[order]
        kept = np.arange(len(rows))
        if plan.spec.drop_duplicates:
            kept = np.flatnonzero(~repeats(group, rows["key"]))
        exact, near = len(rows) - len(kept), 0
        clocks: Floats | None = None
        if plan.vectors:
            parts = [
                plan.store.read_npy(f"{folder}/{g:06d}.vectors.npy", a, b)
                for g, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
                if b > a
            ]
            x = np.concatenate(parts)[order] if parts else np.zeros((0, 1), np.float16)
            before = len(kept)
            kept, clocks = self._by_distance(kept, rows, group, x)
            near = before - len(kept)
        rows, group = rows[kept], group[kept]
        name = f"{plan.folder}/sort/{part:06d}"
        if clocks is not None:
            plan.store.write_npy(f"{name}.clocks.npy", clocks)
        plan.store.write_npy(f"{name}.rows.npy", rows[list(SORTED.names or ())].astype(SORTED))
        here = plan.parts.groups(part)
        counts = np.bincount(group - here.start, minlength=len(here))
        return numbers(counts, exact, near)

    def _by_distance(
        self, kept: Ints, rows: Rows, group: Ints, x: npt.NDArray[np.float16]
    ) -> tuple[Ints, Floats | None]:
        """``kept`` without near-duplicates, each cluster's rows in the order of the choice."""
        spec = self.plan.spec
        chosen, clocks = [], []
        cuts = np.flatnonzero(np.diff(group[kept])) + 1
        for mine in np.split(kept, cuts) if len(kept) else []:
            if spec.dedup_threshold is not None:
                near = near_duplicates(torch.from_numpy(x[mine]), spec.dedup_threshold)
                mine = mine[~near]
            if spec.leaf_choice == "random":
                chosen.append(mine)
                continue
            squared = squared_distances(torch.from_numpy(x[mine]))
            order, clock = order_rows(spec.leaf_choice, squared, rows["key"][mine])
            chosen.append(mine[order])
            if clock is not None:
                clocks.append(clock)
        every = np.concatenate(chosen) if chosen else kept
        return every, np.concatenate(clocks) if clocks else None


@dataclass(frozen=True)
class Pick:
    """Map: answers the offsets of the groups of shards (G + 1) among the part's taken rows."""

    plan: Plan
    shard_groups: Ints  # (G,) first shard of each group

    def __call__(self, item: tuple[int, Ints, Ints, Ints, Floats]) -> Numbers:
        """``item``: part; per group of it rows, times that all are taken, further rows, weight."""
        part, counts, times, further, weight = item
        plan, name = self.plan, f"{self.plan.folder}/sort/{item[0]:06d}"
        rows = np.array(plan.store.read_npy(f"{name}.rows.npy"))
        group = np.repeat(np.arange(len(counts)), counts)
        rank = ranks(group)
        repeat = times[group] + (rank < further[group])
        stands_for = weight[group]
        if plan.spec.leaf_choice == "sensitivity" and len(rows):
            clocks = np.array(plan.store.read_npy(f"{name}.clocks.npy"))
            start = np.r_[0, np.cumsum(counts)]
            for g in np.flatnonzero((times == 0) & (further > 0)).tolist():
                a, n = int(start[g]), int(further[g])
                stands_for[a : a + n] = sensitivity_weights(clocks[a : int(start[g + 1])], n)
        taken = np.flatnonzero(repeat > 0)
        picked = np.empty(len(taken), PICKED)
        for field in SORTED.names or ():
            picked[field] = rows[field][taken]
        picked["repeat"], picked["weight"] = repeat[taken], stands_for[taken]
        picked = picked[np.lexsort((picked["row"], picked["shard"]))]
        plan.store.write_npy(f"{plan.folder}/pick/{part:06d}.rows.npy", picked)
        starts = np.searchsorted(picked["shard"], self.shard_groups)
        return numbers(starts, len(picked))


@dataclass(frozen=True)
class Collect:
    """Map: answers rows and draws (repetitions counted) of a group of input shards."""

    plan: Plan
    paths: Ints  # (leaves, L) cluster ids

    def __call__(self, item: tuple[int, Ints, Ints]) -> Numbers:
        number, starts, stops = item
        plan = self.plan
        picked = np.concatenate(
            [
                plan.store.read_npy(f"{plan.folder}/pick/{p:06d}.rows.npy", a, b)
                for p, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
                if b > a
            ]
            or [np.zeros(0, PICKED)]
        )
        picked = picked[np.lexsort((picked["row"], picked["shard"]))]
        schema = tables.weights_schema(self.paths.shape[1])
        shards = np.unique(picked["shard"]).tolist()
        parts = [self._table(s, picked[picked["shard"] == s], schema) for s in shards]
        table = pa.concat_tables([t for t, _ in parts]) if parts else schema.empty_table()
        positions = np.concatenate([np.zeros(0, np.int64), *(at for _, at in parts)])
        name = f"{plan.folder}/collect/{number:06d}"
        plan.store.write_npy(f"{name}.positions.npy", positions)
        tables.write_table(plan.store, f"{name}.parquet", "weights", table, ROW_GROUP)
        return np.asarray([len(table), int(picked["repeat"].sum())])

    def _table(self, shard: int, picked: Rows, schema: pa.Schema) -> tuple[pa.Table, Ints]:
        """The shard's taken rows, and their positions among its readable ones."""
        name = f"samples/{shard:06d}.parquet"
        samples = tables.read_table(self.plan.now.store, name, ["sample_id", "row", "key"])
        at = position_of(samples["row"].to_numpy(), picked["row"])
        columns = {
            "sample_id": samples["sample_id"].take(at),
            "shard": picked["shard"],
            "key": samples["key"].take(at),
            "row": picked["row"],
            "weight": picked["weight"],
            "repeat": picked["repeat"],
        }
        path = self.paths[picked["leaf"]]
        for level in range(path.shape[1]):
            columns[f"level_{level}"] = path[:, level]
        return pa.table(columns, schema=schema), at


@dataclass(frozen=True)
class CountRows:
    """Map: answers rows read and readable rows of each of some input shards, in turn."""

    store: Store

    def __call__(self, shards: Sequence[int]) -> Numbers:
        found = []
        for shard in shards:
            embedded = tables.num_rows(self.store, f"samples/{shard:06d}.parquet")
            bad = f"bad/{shard:06d}.parquet"
            lost = tables.num_rows(self.store, bad) if self.store.exists(bad) else 0
            found += [embedded + lost, embedded]
        return np.asarray(found, np.int64)


def numbers(*parts: npt.ArrayLike) -> Numbers:
    """Counts as one row."""
    return np.concatenate([np.atleast_1d(np.asarray(p, np.int64)) for p in parts])


def key_order(group: Ints, rows: Rows) -> Ints:
    """Rows by group and key; equal ids by where they are in the corpus."""
    key = rows["key"]
    order = np.lexsort((key[:, 0], group))
    same = (np.diff(group[order]) == 0) & (np.diff(key[order, 0]) == 0)
    if same.any():
        return np.lexsort((rows["row"], rows["shard"], key[:, 1], key[:, 0], group))
    return order


def id_bytes(ids: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """(n, 16) the bytes of a column of sample ids."""
    column = ids.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], ids.type)
    content = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return content[16 * column.offset :][: 16 * len(column)].reshape(-1, 16)


def position_of(
    all_rows: npt.NDArray[np.int32], wanted: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Where the wanted rows of a shard are among its readable ones."""
    at = np.searchsorted(all_rows, wanted)
    assert (all_rows[np.minimum(at, len(all_rows) - 1)] == wanted).all(), "a row is not in samples/"
    return at


def fetch_vectors(now: Current, rows: Rows) -> npt.NDArray[np.float16]:
    """(n, d) the embeddings of the rows; each shard's files are opened once."""
    found: npt.NDArray[np.float16] | None = None
    for shard in np.unique(rows["shard"]).tolist():
        mine = np.flatnonzero(rows["shard"] == shard)
        samples = tables.read_table(now.store, f"samples/{shard:06d}.parquet", ["row"])
        x = now.store.read_npy(f"embeddings/{shard:06d}.npy")
        if found is None:
            found = np.empty((len(rows), x.shape[1]), np.float16)
        found[mine] = x[position_of(samples["row"].to_numpy(), rows["row"][mine])]
    return np.zeros((0, 1), np.float16) if found is None else found
