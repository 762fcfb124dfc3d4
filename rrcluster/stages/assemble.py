"""Rows of shards, as they come from encoders in any order, become the shards' files.

A shard is published when all its rows are there. Until then its columns are held as Arrow tables
and its vectors, once they are many, in a temporary file: a shard of 50 GB of images has half a
million rows, whose vectors alone are half a gigabyte. Pixels are never held.
"""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rrcluster.compute import ShardCounts
from rrcluster.io import tables, tally
from rrcluster.io.store import Store

Batch = dict[str, npt.NDArray[Any]]
FURTHER = "further_images"  # note in the footer of a shard's samples
END = "end"  # status of the row after a shard's last one; its ``row`` is the number of rows
SPOOLED = 64 << 20  # bytes of a shard's vectors from which they wait in a file
PIECE = 8192  # rows of them that are put in order at a time

_COLUMNS = pa.schema(
    [*tables.SAMPLES, pa.field("status", pa.string()), pa.field("detail", pa.string())]
)


@dataclass
class Assembler:
    """Collects the rows of shards; a row that comes twice (a task was run again) counts once."""

    store: Store
    _open: dict[int, Arrivals] = field(default_factory=dict)

    def add(self, batch: Batch) -> list[ShardCounts]:
        """Take the rows in; counts of the shards that are now whole and written."""
        shards = np.unique(batch["shard"]).tolist()
        for shard in shards:
            found = self._open.setdefault(shard, Arrivals(shard))
            found.add(batch, np.flatnonzero(batch["shard"] == shard))
        whole = [s for s in shards if self._open[s].is_whole()]
        return [self._open.pop(s).publish(self.store) for s in whole]


class Arrivals:
    """The rows of one shard so far."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._seen: set[int] = set()
        self._total = -1  # rows of the whole shard; negative until its end has come
        self._width = 0
        self._tables: list[pa.Table] = []
        self._waited = self._busy = 0.0
        self._further = 0
        self._vectors = tempfile.SpooledTemporaryFile(max_size=SPOOLED)  # noqa: SIM115

    def add(self, batch: Batch, rows: npt.NDArray[np.int64]) -> None:
        """Take in those rows of the batch that are new."""
        fresh = []
        for i in rows.tolist():
            row = int(batch["row"][i])
            if batch["status"][i] == END:
                self._total, self._width = row, batch["embedding"].shape[1] // 2
            elif row not in self._seen:
                self._seen.add(row)
                fresh.append(i)
        if fresh:
            self._further += int(batch["further"][fresh].sum())
            self._waited += float(batch["waited"][fresh].sum())
            self._busy += float(batch["busy"][fresh].sum())
            self._tables.append(_table(batch, fresh))
            self._vectors.write(np.ascontiguousarray(batch["embedding"][fresh]).tobytes())

    def is_whole(self) -> bool:
        return len(self._seen) == self._total

    def publish(self, store: Store) -> ShardCounts:
        """Write the shard's files, in row order."""
        rows = pa.concat_tables(self._tables) if self._tables else _COLUMNS.empty_table()
        order = rows["row"].to_numpy().argsort(kind="stable")
        rows = rows.take(order).combine_chunks()
        good = pc.equal(rows["status"], "")
        samples = rows.filter(good).select(tables.SAMPLES.names)
        spoiled = rows.filter(pc.invert(good)).rename_columns({"status": "reason"})
        name = f"{self._shard:06d}"
        with self._vectors:
            at = order[good.to_numpy()]
            _write_vectors(store, f"embeddings/{name}.npy", self._vectors, at, self._width)
        _write_tables(store, name, samples, spoiled.select(tables.BAD.names), self._further)
        counts = (rows.num_rows, samples.num_rows, spoiled.num_rows, self._further)
        return ShardCounts(self._shard, *counts, self._waited, self._busy)


def publish_shard(
    store: Store, name: str, vectors: npt.NDArray[np.float16], samples: pa.Table, bad: pa.Table
) -> None:
    """Write a shard's files; ``samples/`` is the mark and comes last."""
    store.write_npy(f"embeddings/{name}.npy", vectors)
    _write_tables(store, name, samples, bad)


def _write_tables(
    store: Store, name: str, samples: pa.Table, bad: pa.Table, further: int = 0
) -> None:
    tables.write_table(store, f"bad/{name}.parquet", "bad", bad)
    notes = {FURTHER: str(further)} if further else {}
    tables.write_table(store, f"samples/{name}.parquet", "samples", samples, notes=notes)


def _table(batch: Batch, rows: list[int]) -> pa.Table:
    columns = {}
    for name in _COLUMNS.names:
        values = batch[name][rows]
        if name == "sample_id":
            columns[name] = pa.array([value.tobytes() for value in values], tables.SAMPLE_ID)
        elif name == "caption":  # between tasks of Ray a column of nothing but None comes as NaN
            texts = [value if isinstance(value, str) else None for value in values]
            columns[name] = pa.array(texts, pa.string())
        else:
            columns[name] = pa.array(values.tolist(), _COLUMNS.field(name).type)
    return pa.table(columns, schema=_COLUMNS)


def _write_vectors(
    store: Store, name: str, arrived: Any, at: npt.NDArray[np.int64], width: int
) -> None:
    """The float16 rows ``at`` these places of the file, as one ``.npy``."""
    size = 2 * width
    if len(at) * size <= SPOOLED:
        arrived.seek(0)
        held = np.frombuffer(arrived.read(), np.float16).reshape(-1, width) if len(at) else None
        store.write_npy(name, np.zeros((0, width), np.float16) if held is None else held[at])
        return
    arrived.flush()
    with mmap.mmap(arrived.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        held = np.frombuffer(mapped, np.float16).reshape(-1, width)
        with store.writing(name) as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (len(at), width)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(at), PIECE):
                file.write(held[at[start : start + PIECE]].tobytes())
        del held  # it keeps the map open
    tally.written(len(at) * size)
