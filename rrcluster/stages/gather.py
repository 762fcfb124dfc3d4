"""What captions and the report need of each cluster: sums, typical rows, doubtful rows.

One pass over the fit's blocks. Per block and cluster it keeps a bounded number of rows, so that the
answer grows with the clusters and not with the images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrcluster.compute import Compute, in_order
from rrcluster.core.forest import Forest, Labels, label
from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.stages.select import LoadBlock

EXEMPLARS = 12  # lowest cost, the picture of a cluster
BORDERLINE = 6  # lowest confidence
OUTLIER = 1.0  # z-score up to which a row counts as typical of its cluster


@dataclass(frozen=True)
class Picks:
    """Chosen rows: cluster (n,), order value (n,), (shard, position) (n, 2), ids (n, 16), marks."""

    cluster: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]
    where: npt.NDArray[np.int32]
    ids: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    outlier: npt.NDArray[np.float32]

    @staticmethod
    def join(parts: Iterable[Picks], per_cluster: int) -> Picks:
        """The first ``per_cluster`` rows of each cluster by (value, id)."""
        every = list(parts)
        one = Picks(*(np.concatenate([getattr(p, f) for p in every]) for f in _FIELDS))
        halves = np.ascontiguousarray(one.ids).view(np.uint64).reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0], one.value, one.cluster))
        cluster = one.cluster[order]
        first = np.searchsorted(cluster, cluster)  # where the row's cluster begins
        keep = order[np.arange(len(order)) - first < per_cluster]
        return Picks(*(getattr(one, f)[keep] for f in _FIELDS))


_FIELDS = ("cluster", "value", "where", "ids", "confidence", "outlier")


@dataclass(frozen=True)
class Facts:
    """Per finest cluster: rows and their sum, typical rows and their sum; and picked rows."""

    count: Tensor  # (k,)
    total: Tensor  # (k, d) float64
    typical_count: Tensor  # (k,)
    typical: Tensor  # (k, d) float64
    exemplars: Picks
    borderline: Picks
    texts: Picks  # rows whose captions speak for the cluster, the first by id


@dataclass(frozen=True)
class BlockFacts:
    """Map: the facts of one block."""

    load: LoadBlock
    forest: Forest
    texts: int

    def __call__(self, block: int) -> Facts:
        rows = self.load.full(block)
        x = torch.from_numpy(rows.x.copy())
        found = label(self.forest, x)
        k = self.forest.clusters_per_level[-1]
        cluster = found.path[:, -1]
        typical = found.outlier <= OUTLIER

        def sums(mask: Tensor) -> tuple[Tensor, Tensor]:
            total = torch.zeros(k, x.shape[1])
            total.index_add_(0, cluster[mask], x[mask].float())
            return torch.bincount(cluster[mask], minlength=k), total.double()

        count, total = sums(torch.ones(len(x), dtype=torch.bool))
        typical_count, typical_total = sums(typical)

        def pick(value: npt.NDArray[np.float32], most: int) -> Picks:
            return Picks.join([self._picks(rows, found, value)], most)

        return Facts(
            count, total, typical_count, typical_total,
            pick(found.cost.numpy(), EXEMPLARS),
            pick(found.confidence.numpy(), BORDERLINE),
            pick(np.zeros(len(x), np.float32), self.texts),
        )  # fmt: skip

    @staticmethod
    def _picks(rows: Any, found: Labels, value: npt.NDArray[np.float32]) -> Picks:
        return Picks(
            found.path[:, -1].numpy(), value, rows.where, rows.ids,
            found.confidence.numpy(), found.outlier.numpy(),
        )  # fmt: skip


def gather(compute: Compute, load: LoadBlock, forest: Forest, texts: int) -> Facts:
    """The facts of all blocks, added in block order as they come."""
    answers = compute.map(BlockFacts(load, forest, texts), list(range(load.blocks)))
    return reduce(partial(_add, texts), in_order(answers))


def _add(texts: int, a: Facts, b: Facts) -> Facts:
    return Facts(
        a.count + b.count, a.total + b.total,
        a.typical_count + b.typical_count, a.typical + b.typical,
        Picks.join((a.exemplars, b.exemplars), EXEMPLARS),
        Picks.join((a.borderline, b.borderline), BORDERLINE),
        Picks.join((a.texts, b.texts), texts),
    )  # fmt: skip


@dataclass(frozen=True)
class ReadRows:
    """Map: (row, key, caption) of some positions of a shard's samples."""

    store: Store

    def __call__(self, item: tuple[int, list[int]]) -> list[tuple[int, str, str | None]]:
        shard, positions = item
        table = tables.read_table(
            self.store, f"samples/{shard:06d}.parquet", ["row", "key", "caption"]
        ).take(positions)
        return [(r["row"], r["key"], r["caption"]) for r in table.to_pylist()]


def look_up(
    compute: Compute, store: Store, where: npt.NDArray[np.int32]
) -> dict[tuple[int, int], tuple[int, str, str | None]]:
    """(shard, position) → (row, key, caption) of the given rows."""
    by_shard: dict[int, list[int]] = {}
    for shard, position in np.unique(where, axis=0).tolist():
        by_shard.setdefault(shard, []).append(position)
    items = list(by_shard.items())
    found: dict[tuple[int, int], tuple[int, str, str | None]] = {}
    for index, rows in compute.map(ReadRows(store), items):
        shard, positions = items[index]
        found |= {(shard, p): r for p, r in zip(positions, rows, strict=True)}
    return found
