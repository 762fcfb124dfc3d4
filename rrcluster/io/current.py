"""What is current in a run: its shards, its assignment files, its clusters, and the ids of a row.

Readers take one snapshot, ``now = current(store)``, and ask it; they list no folders themselves. An
increment becomes visible when its commit, ``commits/increment=NNNNN.json``, appears: one file, made
only once, that names everything that belongs to the run from then on. Without commits, a run is its
first increment.

An assignment table keeps the ids of the increment it was written in. ``batches`` gives today's: a
cluster's own successor by the ``cluster_map`` of every later increment, then the rows that moved
by themselves, then the parents of the finest cluster.

``moved/increment=NNNNN/<shard>.parquet`` holds the rows of one shard (of any increment up to N)
that changed their cluster at increment N while the cluster lived on: ``row int32, old_id int64,
new_id int64`` (finest level), ``confidence float32, outlier float32`` in the new cluster. A shard
without such rows has no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.records import Shard

COMMITS = "commits"
BATCH_ROWS = 1 << 16  # a batch of a few columns is some megabytes
HIVE_COLUMN = "level_0"  # the column that names the folder with ``write.partition_by=cluster``


@dataclass(frozen=True)
class AssignmentFile:
    """One assignment table: of one ``shard``, or (partitioned by cluster) of one ``cell``."""

    name: str  # in the run folder
    increment: int  # whose rows it holds
    written: int  # whose ids it holds
    shard: int | None
    cell: int | None


@dataclass(frozen=True)
class Current:
    """One consistent view of a run; increments that come later do not change it."""

    store: Store  # whose ``model/`` is the current model
    increment: int  # the last one that is whole
    folders: tuple[tuple[int, int, str], ...]  # (increment, written, folder) of assignments
    clusters_folder: str
    replaced: frozenset[int]  # shards whose rows are no longer part of the run
    changes: tuple[int, ...]  # increments that changed ids: they have a cluster_map and moved rows
    content: dict[str, Any] = field(repr=False, default_factory=dict)  # of the last commit

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """Input shards of all increments, by index, without those that were replaced."""
        found = [s for i in range(self.increment + 1) for s in manifest(self.store, i)]
        return tuple(s for s in found if s.index not in self.replaced)

    @cached_property
    def levels(self) -> int:
        """Levels of the tree (0 in an unfinished run)."""
        names = self.store.names(self.clusters_folder, ".parquet")
        return sum(f"level={level}.parquet" in names for level in range(len(names)))

    def clusters_name(self, level: int) -> str:
        return f"{self.clusters_folder}/level={level}.parquet"

    def clusters(self, level: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The current cluster table of a level."""
        return tables.read_table(self.store, self.clusters_name(level), columns)

    @cached_property
    def assignments(self) -> tuple[AssignmentFile, ...]:
        """Every assignment file, in the order of increments and shards (or cells and parts)."""
        found = []
        for increment, written, folder in self.folders:
            for name in sorted(self.store.names(folder, ".parquet")):
                shard = int(name.removesuffix(".parquet"))
                if shard not in self.replaced:
                    found.append(
                        AssignmentFile(f"{folder}/{name}", increment, written, shard, None)
                    )
            cells = sorted((_cell_of(c), c) for c in self.store.folders(folder))
            for cell, name in cells:
                for part in sorted(self.store.names(f"{folder}/{name}", ".parquet")):
                    path = f"{folder}/{name}/{part}"
                    found.append(AssignmentFile(path, increment, written, None, cell))
        return tuple(found)

    def batches(
        self, columns: Sequence[str], files: Sequence[AssignmentFile] | None = None
    ) -> Iterator[pa.Table]:
        """The asked columns with current ids, at most BATCH_ROWS rows at a time.

        A file may hold ``level_0`` in its folder's name only; it is filled in here. Rows of
        replaced shards are left out.
        """
        for file in self.assignments if files is None else files:
            changed = any(i > file.written for i in self.changes)
            wanted = {*columns, "shard"} if self.replaced else {*columns}
            if changed:
                wanted |= {"shard", "row", f"level_{self.levels - 1}"}
            with self.store.open(file.name) as opened:
                parquet = pq.ParquetFile(opened)
                stored = [c for c in parquet.schema_arrow.names if c in wanted]
                for batch in parquet.iter_batches(BATCH_ROWS, columns=stored):
                    table = pa.Table.from_batches([batch])
                    if HIVE_COLUMN in wanted and HIVE_COLUMN not in stored:
                        cell = pa.repeat(pa.scalar(file.cell, pa.int64()), len(table))
                        table = table.append_column(HIVE_COLUMN, cell)
                    if self.replaced and file.shard is None:
                        gone = pa.array(sorted(self.replaced), pa.int32())
                        table = table.filter(pc.invert(pc.is_in(table["shard"], gone)))
                    if changed:
                        table = self._with_current_ids(table, file.written)
                    yield table.select(list(columns))

    def ids_now(
        self,
        finest: npt.NDArray[np.int64],
        shard: npt.NDArray[np.int32],
        row: npt.NDArray[np.int32],
        written: int,
    ) -> npt.NDArray[np.int64]:
        """(n, levels): today's ids of rows whose finest id was ``finest`` at ``written``."""
        for increment in self.changes:
            if increment > written:
                finest = _look_up(*self._successors(increment), finest)
                for index in np.unique(shard).tolist():
                    moved = self._moved(increment, index)
                    if moved is not None:
                        mine = shard == index
                        finest[mine] = _look_up(
                            *moved["new_id"], row[mine].astype(np.int64), finest[mine]
                        )
        ids = [finest]
        for level in reversed(range(1, self.levels)):
            ids.insert(0, _look_up(*self._parents[level], ids[0]))
        return np.stack(ids, 1)

    def _with_current_ids(self, table: pa.Table, written: int) -> pa.Table:
        finest = table[f"level_{self.levels - 1}"].to_numpy()
        shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
        ids = self.ids_now(finest, shard, row, written)
        for level in range(self.levels):
            name = f"level_{level}"
            if name in table.column_names:
                at = table.column_names.index(name)
                table = table.set_column(at, name, pa.array(ids[:, level]))
        if "cluster_caption" in table.column_names:
            at, names = table.column_names.index("cluster_caption"), self._names
            stale = ids[:, -1] != finest
            texts = table["cluster_caption"].to_pylist()
            for i in np.flatnonzero(stale).tolist():
                texts[i] = names.get(int(ids[i, -1]), "")
            table = table.set_column(at, "cluster_caption", pa.array(texts, pa.string()))
        for name in ("confidence", "outlier"):
            if name in table.column_names:
                at = table.column_names.index(name)
                values = self._measured_now(name, table[name].to_numpy(), shard, row, written)
                table = table.set_column(at, name, pa.array(values, pa.float32()))
        return table

    def _measured_now(
        self,
        name: str,
        values: npt.NDArray[Any],
        shard: npt.NDArray[np.int32],
        row: npt.NDArray[np.int32],
        written: int,
    ) -> npt.NDArray[Any]:
        """``confidence`` or ``outlier`` of rows in the cluster that they are in now."""
        values = values.copy()
        for increment in self.changes:
            if increment > written:
                for index in np.unique(shard).tolist():
                    moved = self._moved(increment, index)
                    if moved is not None:
                        mine = shard == index
                        values[mine] = _look_up(
                            *moved[name], row[mine].astype(np.int64), values[mine]
                        )
        return values

    @cached_property
    def _parents(self) -> dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        found = {}
        for level in range(1, self.levels):
            table = self.clusters(level, ["cluster_id", "parent_id"]).sort_by("cluster_id")
            found[level] = (table["cluster_id"].to_numpy(), table["parent_id"].to_numpy())
        return found

    @cached_property
    def _names(self) -> dict[int, str]:
        """The caption of each finest cluster: its own, else a named ancestor's, else empty."""
        above: dict[int | None, str] = {None: ""}
        for level in range(self.levels):
            rows = self.clusters(level, ["cluster_id", "parent_id", "captions"]).to_pylist()
            above = {
                r["cluster_id"]: r["captions"][0]["text"]
                if r["captions"]
                else above.get(r["parent_id"], "")
                for r in rows
            } | {None: ""}
        return {i: name for i, name in above.items() if i is not None}

    def _successors(self, increment: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(old, new) finest ids, by old: where all rows go that did not move by themselves."""
        name = f"cluster_map/increment={increment:05d}.parquet"
        table = tables.read_table(self.store, name, ["old_id", "new_id", "level", "kind"])
        whole = pa.array(["kept", "merged"])
        table = table.filter(
            pc.and_(pc.equal(table["level"], self.levels - 1), pc.is_in(table["kind"], whole))
        ).sort_by("old_id")
        return table["old_id"].to_numpy(), table["new_id"].to_numpy()

    def _moved(
        self, increment: int, shard: int
    ) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[Any]]] | None:
        """By column, (row, value) of rows of a shard that moved by themselves; None if none did."""
        name = f"{moved_folder(increment)}/{shard:06d}.parquet"
        if f"{shard:06d}.parquet" not in self._moved_names(increment):
            return None
        table = tables.read_table(self.store, name).sort_by("row")
        row = table["row"].to_numpy().astype(np.int64)
        return {n: (row, table[n].to_numpy()) for n in ("new_id", "confidence", "outlier")}

    def _moved_names(self, increment: int) -> set[str]:
        known = self.__dict__.setdefault("_moved_listings", {})
        if increment not in known:
            known[increment] = self.store.names(moved_folder(increment), ".parquet")
        return set(known[increment])


def current(store: Store) -> Current:
    """The run as it is now. A run without commits is its first increment."""
    commits = sorted(store.names(COMMITS, ".json"))
    if not commits:
        folder = "assignments/increment=00000"
        return Current(store, 0, ((0, 0, folder),), "clusters", frozenset(), ())
    content = store.read_json(f"{COMMITS}/{commits[-1]}")
    for folder in ("model", "novelty", "aside"):  # where the current ones are
        if content.get(folder):
            store = store.with_folder(folder, content[folder])
    return Current(
        store,
        content["increment"],
        tuple((a["increment"], a["written"], a["folder"]) for a in content["assignments"]),
        content["clusters"],
        frozenset(content["replaced"]),
        tuple(content["changes"]),
        content,
    )


def manifest_name(increment: int) -> str:
    return f"manifest/increment={increment:05d}.parquet"


def moved_folder(increment: int) -> str:
    return f"moved/increment={increment:05d}"


def manifest(store: Store, increment: int) -> tuple[Shard, ...]:
    """The shards of one increment; none where it has no manifest."""
    name = manifest_name(increment)
    if not store.exists(name):
        return ()
    rows = tables.read_table(store, name).to_pylist()
    return tuple(Shard(r["shard"], r["uri"], r["format"], r["num_bytes"], r["etag"]) for r in rows)


def _look_up(
    keys: npt.NDArray[np.int64],
    values: npt.NDArray[Any],
    wanted: npt.NDArray[np.int64],
    otherwise: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """The value of each wanted key (``keys`` ascend); ``otherwise`` (the key itself) if absent."""
    otherwise = wanted if otherwise is None else otherwise
    if not len(keys):
        return otherwise.copy()
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], otherwise)


def _cell_of(folder: str) -> int:
    column, _, value = folder.partition("=")
    if column != HIVE_COLUMN:
        raise ValueError(f"a folder of assignments is named {HIVE_COLUMN}=<id>, not {folder}")
    return int(value)
