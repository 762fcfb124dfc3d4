"""Samples with equal ids, counted in bounded memory.

A sample id is kept when its hash falls under a threshold; when too many are kept the threshold is
halved (distinct sampling, Gibbons 2001). Equal ids share a hash, so a kept id is counted exactly,
and the totals are scaled by the inverse of the share that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CAPACITY = 1 << 18  # distinct ids kept, 24 bytes each; below that the count is exact


@dataclass(frozen=True)
class Duplicates:
    """Samples beyond the first of each id, and the ids that occur more than once."""

    extra: int = 0
    ids: int = 0
    largest: int = 0  # most samples that share one id, among those looked at
    kept_share: float = 1.0

    @property
    def exact(self) -> bool:
        return self.kept_share == 1.0


@dataclass
class DuplicateCounter:
    """Takes sample ids in any order and any batches; the answer does not depend on either."""

    capacity: int = CAPACITY
    _halvings: int = 0
    _pending: list[pa.Table] = field(default_factory=list)
    _pending_rows: int = 0

    def add(self, ids: pa.ChunkedArray) -> None:
        table = pa.table({"id": ids, "count": pa.repeat(pa.scalar(1, pa.int64()), len(ids))})
        self._pending.append(self._below_threshold(table))
        self._pending_rows += len(self._pending[-1])
        if self._pending_rows > 2 * self.capacity:
            self._compact()

    def result(self) -> Duplicates:
        if not self._pending:
            return Duplicates()
        self._compact()
        counts = np.asarray(self._pending[0]["count"])
        repeated = counts[counts > 1]
        scale = 1 << self._halvings
        return Duplicates(
            extra=int((repeated - 1).sum()) * scale,
            ids=len(repeated) * scale,
            largest=int(counts.max(initial=0)),
            kept_share=1.0 / scale,
        )

    def _compact(self) -> None:
        table = pa.concat_tables(self._pending)
        table = table.group_by("id").aggregate([("count", "sum")])
        table = table.rename_columns(["id", "count"])
        while len(table) > self.capacity:
            self._halvings += 1
            table = self._below_threshold(table)
        self._pending, self._pending_rows = [table], len(table)

    def _below_threshold(self, table: pa.Table) -> pa.Table:
        if not self._halvings or not len(table):
            return table
        limit = np.uint64((1 << (64 - self._halvings)) - 1)
        return table.filter(pa.array(_hashes(table["id"]) <= limit))


def _hashes(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes (n,) of 16-byte ids; ids that are counters are spread as well."""
    halves = np.concatenate([np.zeros((0, 2), np.uint64), *map(_halves, ids.chunks)])
    with np.errstate(over="ignore"):
        mixed = (halves[:, 0] ^ (halves[:, 1] >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ halves[:, 1] ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray(mixed, np.uint64)


def _halves(ids: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    """The ids as (n, 2) integers, without a copy."""
    whole: npt.NDArray[np.uint64] = np.frombuffer(ids.buffers()[1], np.uint64).reshape(-1, 2)
    return whole[ids.offset : ids.offset + len(ids)]
