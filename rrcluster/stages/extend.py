"""extend: the model with the clusters that novelty opened, and the rows that go there now.

Everything is written into the increment's version and becomes current with its commit. The rows of
all shards are asked again, since a row must have the same cluster whether it came early or late:
one pass over the embeddings, made only when a cluster opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from rrcluster.compute import Compute, Progress
from rrcluster.core.forest import Forest, label, with_novel
from rrcluster.core.model import features_of, sum_by_label
from rrcluster.core.novelty import Known, nearest_known
from rrcluster.core.rate import moment_rates
from rrcluster.io import tables
from rrcluster.io.current import moved_folder
from rrcluster.io.store import Store
from rrcluster.records import Shard
from rrcluster.stages.count import OPENED, read_rates
from rrcluster.stages.gather import EXEMPLARS
from rrcluster.stages.names import OPENED_NAMES, Named, read_names
from rrcluster.stages.novelty import Look
from rrcluster.stages.tensors import read_tensors, write_tensors
from rrcluster.stages.write import OPENED_IDS

Ids = list[npt.NDArray[np.int64]]


def opened_before(store: Store, width: int) -> Known:
    """Moments of the clusters opened since the fit."""
    if not store.exists(OPENED):
        none = torch.zeros(0, dtype=torch.float64)
        return Known(none, torch.zeros(0, width, width, dtype=torch.float64), 1.0, 0.0)
    found = read_tensors(store, OPENED)
    return Known(found["mass"], found["moments"], 1.0, 0.0)


def extend(
    store: Store, to: Store, forest: Forest, found: Look, before: Known, ids: Ids, unused: int
) -> tuple[Forest, Ids]:
    """Write the model of ``store`` with the opened clusters to ``to``; it and its ids.

    A new cluster lies beside the one that it is nearest to, under the same parents. It has
    exemplars and no name until the next fit.
    """
    assert found.novel is not None
    space, count = found.novel.features, len(found.facts)
    z = features_of(space, found.rows)
    mass, moments = sum_by_label(z, found.group, count)
    paths, finest = forest.paths, forest.clusters_per_level[-1]
    fit_paths = forest.paths[: forest.first_leaf[-1]]
    for number in range(count):
        beside = nearest_known(z[found.group == number], before)
        path = fit_paths[fit_paths[:, -1] == beside][:1].clone()
        path[0, -1] = finest + number
        paths = torch.cat([paths, path])
    wider = replace(forest, paths=paths, novel=found.novel)
    new_ids = [*ids[:-1], np.concatenate([ids[-1], np.arange(unused, unused + count)])]
    names, rates = read_names(store), read_rates(store)
    rates[-1] += moment_rates(mass, moments, before.eps2).tolist()
    earlier = opened_before(store, space.width)
    tensors = {"paths": paths, **found.novel.tensors()}
    tensors["mass"] = torch.cat([earlier.mass, mass])
    tensors["moments"] = torch.cat([earlier.moments, moments])
    tensors |= {f"rates.{level}": torch.tensor(r) for level, r in enumerate(rates)}
    names.levels[-1].extend(_described(found, number) for number in range(count))
    names.paths.extend(paths[-count:].tolist())
    levels = [[asdict(n) for n in level] for level in names.levels]
    to.write_json(OPENED_NAMES, {"levels": levels, "paths": names.paths})
    to.write_json(OPENED_IDS, [level.tolist() for level in new_ids])
    write_tensors(to, OPENED, tensors)
    return wider, new_ids


def _described(found: Look, number: int) -> Named:
    """The rows nearest to the mean, and the root mean squared distance to it."""
    mine = (found.group == number).nonzero()[:, 0]
    x = found.rows[mine].float()
    mean = x.mean(0)
    order = (x @ mean).argsort(descending=True, stable=True)[:EXEMPLARS]
    ids = [found.ids[int(i)].tobytes().hex() for i in mine[order]]
    return Named([], ids, float((1 - mean.square().sum()).clamp_min(0).sqrt()))


@dataclass(frozen=True)
class MoveShard:
    """Map: the rows of one shard that the wider model puts elsewhere, written to ``folder``.

    Answers with the change of rows per finest cluster of the wider model, (k,), and how many moved.
    """

    store: Store
    old: Forest
    new: Forest
    ids: npt.NDArray[np.int64]  # of the wider model's finest clusters
    folder: str

    def __call__(self, shard: Shard) -> tuple[npt.NDArray[np.int64], int]:
        x = torch.from_numpy(np.array(self.store.read_npy(f"embeddings/{shard.name}.npy")))
        fit = label(replace(self.old, novel=None), x)
        old = fit if self.old.novel is None else with_novel(self.old, x, fit)
        new = with_novel(self.new, x, fit)
        was, now = old.path[:, -1].numpy(), new.path[:, -1].numpy()
        moved = np.flatnonzero(was != now)
        if len(moved):
            samples = tables.read_table(self.store, f"samples/{shard.name}.parquet", ["row"])
            columns: dict[str, Any] = {
                "row": samples["row"].to_numpy()[moved],
                "old_id": self.ids[was[moved]],
                "new_id": self.ids[now[moved]],
                "confidence": new.confidence.numpy()[moved],
                "outlier": new.outlier.numpy()[moved],
            }
            table = pa.table(columns, schema=tables.MOVED)
            name = f"{self.folder}/{shard.name}.parquet"
            tables.write_table(self.store, name, "moved", table)
        k = len(self.ids)
        change = np.bincount(now, minlength=k) - np.bincount(was, minlength=k)
        return change.astype(np.int64), len(moved)


def move(
    store: Store, shards: Sequence[Shard], old: Forest, new: Forest, ids: Ids, number: int,
    compute: Compute, progress: Progress,
) -> tuple[npt.NDArray[np.int64], int]:  # fmt: skip
    """Write ``moved/`` of the increment; the change of rows per finest cluster, and rows moved."""
    work = MoveShard(store, old, new, ids[-1], moved_folder(number))
    change, moved = np.zeros(len(ids[-1]), np.int64), 0
    for done, (_, (part, rows)) in enumerate(compute.map(work, list(shards)), 1):
        change, moved = change + part, moved + rows
        progress("write", done, len(shards), "rows of new clusters")
    return change, moved
