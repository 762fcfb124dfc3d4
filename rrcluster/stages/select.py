"""select: choose the rows that models are fitted on, and cut them into canonical blocks.

A row belongs to the fit when the hash key of its ``sample_id`` is below a threshold; block b is a
range of keys, sorted by key. Neither depends on how the corpus is cut into shards, so the fit does
not either. Equal images (equal ids) count once. Parts are written per group of shards, sorted by
key, and a block is put together from the parts' slices: a shuffle through the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrcluster.compute import Compute, Progress
from rrcluster.core.keys import KEY_SPAN, row_keys
from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.records import Shard, UserError
from rrcluster.stages.run import Record, Run, split_evenly

MAX_PARTS = 256
INDEX = "model/fit/index.json"


@dataclass(frozen=True)
class FitBlock:
    """Rows of one block in key order: unit rows (n, d), ids (n, 16), (shard, position) (n, 2)."""

    x: npt.NDArray[np.float16]
    ids: npt.NDArray[np.uint8]
    where: npt.NDArray[np.int32]


def ids_of(table: Any) -> npt.NDArray[np.uint8]:
    """The ``sample_id`` column as an array (n, 16)."""
    column = table["sample_id"].combine_chunks()
    buffer = column.buffers()[1]
    if buffer is None or len(column) == 0:
        return np.zeros((0, 16), np.uint8)
    flat = np.frombuffer(buffer, np.uint8)[column.offset * 16 :]
    return flat[: len(column) * 16].reshape(-1, 16)


def select(run: Run, compute: Compute, record: Record, progress: Progress) -> None:
    """Write the fit's parts and ``model/fit/index.json`` (last)."""
    with record.stage("select") as counts:
        if not run.store.exists(INDEX):
            total = record.content["reconciliation"]["embedded"]
            spec = run.config.seeding
            chosen = min(total, spec.fit_rows)
            blocks = -(-chosen // spec.block_rows)
            limit = KEY_SPAN if total <= spec.fit_rows else KEY_SPAN * spec.fit_rows // total
            groups = split_evenly(run.shards, MAX_PARTS)
            work = WritePart(run.store, run.config.seed, limit)
            widths: dict[int, str] = {}
            for done, (_, found) in enumerate(compute.map(work, list(enumerate(groups))), 1):
                _same_width(widths, found, run.config.corpus.uri)
                progress("select", done, len(groups))
            run.store.write_json(
                INDEX, {"parts": len(groups), "blocks": blocks, "limit": str(limit)}
            )
        index = run.store.read_json(INDEX)
        counts |= {"parts": index["parts"], "blocks": index["blocks"]}


@dataclass(frozen=True)
class WritePart:
    """Map: the rows of a group of shards with keys below ``limit``, sorted by (key, id).

    Answers with the width of the rows and a shard of that width; nothing is written where shards
    have different ones.
    """

    store: Store
    seed: int
    limit: int

    def __call__(self, group: tuple[int, list[Shard]]) -> dict[int, str]:
        index, shards = group
        found: list[FitBlock] = []
        widths: dict[int, str] = {}
        for shard in shards:
            table = tables.read_table(self.store, f"samples/{shard.name}.parquet", ["sample_id"])
            ids = ids_of(table)
            keys = row_keys(ids, self.seed, "fit")
            rows = np.flatnonzero(keys < np.uint64(self.limit)) if self.limit < KEY_SPAN else None
            x = self.store.read_npy(f"embeddings/{shard.name}.npy")
            rows = np.arange(len(ids)) if rows is None else rows
            where = np.stack([np.full(len(rows), shard.index), rows], 1).astype(np.int32)
            if len(ids):
                widths.setdefault(x.shape[1], shard.uri)
                found.append(FitBlock(np.asarray(x[rows]), ids[rows], where))
        if len(widths) > 1:
            return widths
        if not found:
            found = [FitBlock(np.asarray(x[:0]), ids[:0], np.zeros((0, 2), np.int32))]
        block = merge(found, self.seed)
        base = f"model/fit/part-{index:05d}"
        self.store.write_npy(f"{base}.keys.npy", row_keys(block.ids, self.seed, "fit"))
        self.store.write_npy(f"{base}.ids.npy", block.ids)
        self.store.write_npy(f"{base}.where.npy", block.where)
        self.store.write_npy(f"{base}.x.npy", block.x)
        return widths


def _same_width(widths: dict[int, str], found: dict[int, str], uri: Any) -> None:
    """Add to the widths seen. Raises UserError at a second one."""
    for width, shard in found.items():
        widths.setdefault(width, shard)
    if len(widths) > 1:
        (one, first), (other, second), *_ = sorted(widths.items())
        raise UserError(
            "corpus.uri", uri, f"vectors of {one} numbers in {first} and of {other} in {second}; "
            "a run takes vectors of one width"
        )  # fmt: skip


def merge(blocks: list[FitBlock], seed: int) -> FitBlock:
    """The rows of all blocks sorted by (key, id, where), each id once."""
    x = np.concatenate([b.x for b in blocks])
    ids = np.concatenate([b.ids for b in blocks])
    where = np.concatenate([b.where for b in blocks])
    keys = row_keys(ids, seed, "fit")
    halves = ids.view(np.uint64).reshape(-1, 2)
    order = np.lexsort((where[:, 1], where[:, 0], halves[:, 1], halves[:, 0], keys))
    sorted_ids = ids[order]
    new = np.ones(len(order), bool)
    new[1:] = (sorted_ids[1:] != sorted_ids[:-1]).any(1)
    keep = order[new]
    return FitBlock(x[keep], ids[keep], where[keep])


@dataclass(frozen=True)
class LoadBlock:
    """Reduce: block ``b`` of the fit, from the parts' slices of its key range."""

    store: Store
    seed: int
    parts: int
    blocks: int
    limit: int

    @staticmethod
    def of(run: Run) -> LoadBlock:
        index = run.store.read_json(INDEX)
        return LoadBlock(
            run.store, run.config.seed, index["parts"], index["blocks"], int(index["limit"])
        )

    def full(self, b: int) -> FitBlock:
        low, high = self.limit * b // self.blocks, self.limit * (b + 1) // self.blocks
        found = []
        for part in range(self.parts):
            base = f"model/fit/part-{part:05d}"
            keys = self.store.read_npy(f"{base}.keys.npy")
            start = int(np.searchsorted(keys, np.uint64(low)))
            stop = len(keys)
            if high < KEY_SPAN:
                stop = int(np.searchsorted(keys, np.uint64(high)))
            found.append(
                FitBlock(
                    *(
                        np.asarray(self.store.read_npy(f"{base}.{name}.npy", start, stop))
                        for name in ("x", "ids", "where")
                    )
                )
            )
        held = [part for part in found if len(part.x)]
        return merge(held or found[:1], self.seed)  # rows of an unread shard have no width

    def __call__(self, b: int) -> torch.Tensor:
        return torch.from_numpy(self.full(b).x.copy())
