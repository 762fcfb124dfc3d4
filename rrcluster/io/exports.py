"""A sample in the formats of trainers and of other tools: small files that name rows.

All read the collected rows part by part, in corpus order; a row that is drawn r times is named r
times. Only ``datacomp`` and ``schedule`` sort, in one worker's memory: 40 and 150 bytes per draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rrcluster.core.keys import row_keys
from rrcluster.core.sample import cluster_keys
from rrcluster.core.waterfill import ranks
from rrcluster.io import tables
from rrcluster.io.store import Store

Ints = npt.NDArray[np.int64]
UID = np.dtype("u8,u8")


@dataclass(frozen=True)
class Drawn:
    """A drawn sample: its folder, its collected parts, and the rows of every input shard.

    ``read`` counts all rows of an input shard, ``embedded`` the readable ones, in the order of
    ``shards``, which ascend.
    """

    store: Store
    folder: str  # sample/<name>
    parts: int
    draws: int
    shards: Ints
    read: Ints
    embedded: Ints
    seed: int
    batch_size: int
    schedule_level: int

    def table(self, part: int) -> pa.Table:
        return tables.read_table(self.store, f"{self.folder}/work/collect/{part:06d}.parquet")

    def tables(self) -> Iterator[pa.Table]:
        return map(self.table, range(self.parts))

    def positions(self) -> Iterator[Ints]:
        """Per part, the position of each row among the readable rows of the whole run."""
        starts = np.r_[0, np.cumsum(self.embedded)]
        for part, table in enumerate(self.tables()):
            name = f"{self.folder}/work/collect/{part:06d}.positions.npy"
            inside = np.asarray(self.store.read_npy(name))
            yield starts[self.shard_index(table)] + inside

    def shard_index(self, table: pa.Table) -> Ints:
        index: Ints = np.searchsorted(self.shards, table["shard"].to_numpy())
        return index


def write_weights(drawn: Drawn, levels: int) -> None:
    """``weights.parquet``: the parts as one file."""
    schema = tables.with_metadata("weights", tables.weights_schema(levels))
    with (
        drawn.store.writing(f"{drawn.folder}/weights.parquet") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for table in drawn.tables():
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def write_keys(drawn: Drawn, folder: str) -> None:
    """``keys.parquet`` (key, shard, row, repeat), then ``keys.txt``: one key per line and draw."""
    columns = ["key", "shard", "row", "repeat"]
    schema = pa.schema([tables.weights_schema(0).field(c) for c in columns])
    with (
        drawn.store.writing(f"{folder}/keys.parquet") as file,
        pq.ParquetWriter(file, tables.with_metadata("keys", schema), compression="zstd") as writer,
    ):
        for table in drawn.tables():
            writer.write_table(table.select(columns).replace_schema_metadata(None).cast(schema))
    with drawn.store.writing(f"{folder}/keys.txt") as file:
        for table in drawn.tables():
            keys, repeat = table["key"].to_pylist(), table["repeat"].to_pylist()
            lines = (f"{k}\n" * r for k, r in zip(keys, repeat, strict=True))
            file.write("".join(lines).encode())


def write_datacomp(drawn: Drawn, folder: str) -> None:
    """``subset.npy``: sorted uids as DataComp's resharder reads them: two halves of 64 bits."""
    parts = []
    for table in drawn.tables():
        ids = np.frombuffer(b"".join(table["sample_id"].to_pylist()), ">u8").reshape(-1, 2)
        parts.append(np.repeat(ids.astype(np.uint64), table["repeat"].to_numpy(), axis=0))
    ids = np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    drawn.store.write_npy(f"{folder}/subset.npy", ids[order].view(UID).reshape(-1))


def write_ssl(drawn: Drawn, folder: str) -> None:
    """``indices.npy``: ascending rows of the run's embeddings, all shards one after another."""
    _write_positions(drawn, f"{folder}/indices.npy")


def write_hf(drawn: Drawn, folder: str) -> None:
    """``indices.npy``: ascending rows of the input, unreadable ones counted, for Dataset.select."""
    starts = np.r_[0, np.cumsum(drawn.read)]
    rows = (
        np.repeat(starts[drawn.shard_index(t)] + t["row"].to_numpy(), t["repeat"].to_numpy())
        for t in drawn.tables()
    )
    write_array(drawn.store, f"{folder}/indices.npy", np.dtype(np.int64), drawn.draws, rows)


def write_torch(drawn: Drawn, folder: str) -> None:
    """``indices.npy`` for SubsetRandomSampler, of any length, then ``weights.npy``.

    ``weights`` has one float32 per readable row of the run: how often it is drawn (0: never). It is
    for WeightedRandomSampler, which takes up to 2²⁴ rows.
    """
    _write_positions(drawn, f"{folder}/indices.npy")
    starts = np.r_[0, np.cumsum(drawn.embedded)]

    def weights() -> Iterator[npt.NDArray[np.float32]]:
        written = 0
        parts = zip(drawn.positions(), drawn.tables(), strict=True)
        for positions, table in parts:
            if not len(positions):
                continue
            end = int(starts[np.searchsorted(starts, positions[-1], "right")])
            chunk = np.zeros(end - written, np.float32)
            chunk[positions - written] = table["repeat"].to_numpy()
            yield chunk
            written = end
        while written < starts[-1]:
            count = min(int(starts[-1]) - written, 1 << 22)
            yield np.zeros(count, np.float32)
            written += count

    name = f"{folder}/weights.npy"
    write_array(drawn.store, name, np.dtype(np.float32), int(starts[-1]), weights())


def write_schedule(drawn: Drawn, folder: str) -> None:
    """``schedule.parquet``: every draw once, in steps of ``sample.batch_size`` that share clusters.

    A cluster with b draws gives its j-th, by hash, at time (j + u)/b, with a u of its own; in the
    order of time every batch holds each cluster in proportion, to one draw. Sorted in the memory of
    one worker: about 150 bytes per draw.
    """
    columns = ["sample_id", "shard", "row", "key", f"level_{drawn.schedule_level}"]
    tables_ = []
    for table in drawn.tables():
        at = np.repeat(np.arange(len(table)), table["repeat"].to_numpy())
        tables_.append(table.select(columns).take(at))
    draws = pa.concat_tables(tables_).combine_chunks()
    ids = np.frombuffer(b"".join(draws["sample_id"].to_pylist()), np.uint8).reshape(-1, 16)
    key = row_keys(ids, drawn.seed, "sample/schedule")
    cluster = draws[columns[-1]].to_numpy()
    order = np.lexsort((key, cluster))
    _, index, count = np.unique(cluster, return_inverse=True, return_counts=True)
    place = np.empty(len(order), np.int64)
    place[order] = ranks(cluster[order])
    shift = cluster_keys(cluster, drawn.seed) / 2.0**64
    time = (place + shift) / count[index]
    order = np.lexsort((key, time))
    steps = pa.array(np.arange(len(order)) // drawn.batch_size, pa.int64())
    draws = draws.take(order).add_column(0, "step", steps)
    tables.write_table(drawn.store, f"{folder}/schedule.parquet", "schedule", draws)


def _write_positions(drawn: Drawn, name: str) -> None:
    rows = (
        np.repeat(p, t["repeat"].to_numpy())
        for p, t in zip(drawn.positions(), drawn.tables(), strict=True)
    )
    write_array(drawn.store, name, np.dtype(np.int64), drawn.draws, rows)


def write_array(
    store: Store, name: str, dtype: np.dtype[Any], length: int, parts: Iterator[npt.NDArray[Any]]
) -> None:
    """A one-dimensional ``.npy`` from its parts, without holding them together."""
    with store.writing(name) as file:
        _header(file, dtype, length)
        written = 0
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())
            written += len(part)
        assert written == length, f"{written} values were written of {length}"


def _header(file: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(file, described)


# What each format writes, and its last file: the mark.
FORMATS: dict[str, tuple[Callable[[Drawn, str], None], str]] = {
    "keys": (write_keys, "keys.txt"),
    "datacomp": (write_datacomp, "subset.npy"),
    "ssl": (write_ssl, "indices.npy"),
    "hf": (write_hf, "indices.npy"),
    "torch": (write_torch, "weights.npy"),
    "schedule": (write_schedule, "schedule.parquet"),
}
