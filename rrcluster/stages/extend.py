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
from torch import Tensor

from rrcluster.compute import Compute, Progress
from rrcluster.core.caption import CaptionSpec
from rrcluster.core.drift import Sums
from rrcluster.core.forest import Forest, label, relabelled
from rrcluster.core.merge import group_sums
from rrcluster.core.model import features_of, sum_by_label
from rrcluster.core.novelty import Known, nearest_known
from rrcluster.core.rate import moment_rates
from rrcluster.core.regroup import Regrouping
from rrcluster.io import tables
from rrcluster.io.current import moved_folder
from rrcluster.io.store import Store
from rrcluster.records import Shard
from rrcluster.stages.count import OPENED, read_rates
from rrcluster.stages.gather import EXEMPLARS
from rrcluster.stages.names import OPENED_NAMES, Named, Names, read_names
from rrcluster.stages.novelty import Look
from rrcluster.stages.tensors import read_tensors, write_tensors
from rrcluster.stages.texts import Texts
from rrcluster.stages.votes import name_opened
from rrcluster.stages.write import OPENED_IDS

Ids = list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Wider:
    """A model on its way: the forest, its ids per level, names, rates, and the moments of the
    clusters opened since the fit. ``place`` (k,) is where each finest cluster that there was is
    now; ``kinds`` are the (old id, new id, kind) of what changed."""

    forest: Forest
    ids: Ids
    names: Names
    rates: list[list[float]]
    opened: Known
    place: npt.NDArray[np.int64]
    kinds: tuple[tuple[int | None, int, str], ...] = ()

    @staticmethod
    def of(store: Store, forest: Forest, ids: Ids, width: int) -> Wider:
        names, rates = read_names(store), read_rates(store)
        opened = opened_before(store, width)
        return Wider(forest, ids, names, rates, opened, np.arange(len(ids[-1])))

    def publish(self, to: Store) -> None:
        """Write the model; the forest is what readers ask for and comes last."""
        levels = [[asdict(n) for n in level] for level in self.names.levels]
        to.write_json(OPENED_NAMES, {"levels": levels, "paths": self.names.paths})
        to.write_json(OPENED_IDS, [level.tolist() for level in self.ids])
        novel = self.forest.novel
        tensors = {"paths": self.forest.paths} | ({} if novel is None else novel.tensors())
        tensors |= {"mass": self.opened.mass, "moments": self.opened.moments}
        tensors |= {f"rates.{level}": torch.tensor(r) for level, r in enumerate(self.rates)}
        write_tensors(to, OPENED, tensors)


def opened_before(store: Store, width: int) -> Known:
    """Moments of the clusters opened since the fit."""
    if not store.exists(OPENED):
        none = torch.zeros(0, dtype=torch.float64)
        return Known(none, torch.zeros(0, width, width, dtype=torch.float64), 1.0, 0.0)
    found = read_tensors(store, OPENED)
    return Known(found["mass"], found["moments"], 1.0, 0.0)


def with_names(wider: Wider, found: Look, sums: Sums, texts: Texts, spec: CaptionSpec) -> Wider:
    """With names for the clusters that a look opened; ``sums`` are those of the finest clusters
    that there were before."""
    count, paths = len(found.facts), torch.tensor(wider.names.paths)
    rows = np.bincount(wider.place, sums.rows, len(paths)).clip(1)
    total = np.zeros((len(paths), sums.total.shape[1]))
    np.add.at(total, wider.place, sums.total)
    means = torch.from_numpy(total / rows[:, None]).float()
    for number in range(count):
        means[len(paths) - count + number] = found.rows[found.group == number].float().mean(0)
    parent = paths[:, -2] if paths.shape[1] > 1 else torch.zeros(len(paths), dtype=torch.int64)
    captions = name_opened(texts, found.rows, found.group, means, parent, spec)
    *coarser, finest = wider.names.levels
    named = [replace(n, captions=c) for n, c in zip(finest[-count:], captions, strict=True)]
    return replace(wider, names=replace(wider.names, levels=[*coarser, finest[:-count] + named]))


def with_opened(wider: Wider, found: Look, before: Known, own: Tensor, unused: int) -> Wider:
    """With the clusters that a look opened.

    A new cluster lies beside the one of ``before`` that it is nearest to (``own`` is that of each
    of the fit's leaves), under the same parents. It has exemplars, and no name yet.
    """
    assert found.novel is not None
    count, forest = len(found.facts), wider.forest
    z = features_of(found.novel.features, found.rows)
    mass, moments = sum_by_label(z, found.group, count)
    paths, finest = forest.paths, forest.clusters_per_level[-1]
    for number in range(count):
        beside = nearest_known(z[found.group == number], before)
        path = forest.paths[: len(own)][own == beside][:1].clone()
        path[0, -1] = finest + number
        paths = torch.cat([paths, path])
    ids = np.arange(unused, unused + count)
    levels = [*wider.names.levels[:-1],
              wider.names.levels[-1] + [_described(found, n) for n in range(count)]]  # fmt: skip
    return replace(
        wider,
        forest=replace(forest, paths=paths, novel=found.novel),
        ids=[*wider.ids[:-1], np.concatenate([wider.ids[-1], ids])],
        names=Names(levels, wider.names.paths + paths[-count:].tolist()),
        rates=[*wider.rates[:-1],
               wider.rates[-1] + moment_rates(mass, moments, before.eps2).tolist()],
        opened=wider.opened.with_clusters(mass, moments),
        kinds=wider.kinds + tuple((None, int(i), "new") for i in ids),
    )  # fmt: skip


def with_regrouped(wider: Wider, found: Regrouping, every: Known, unused: int) -> Wider:
    """With clusters merged, the smaller into the id of the larger, and split, where the smaller
    part gets an id and no name. ``every`` are moments of the first leaves of the forest."""
    ids, paths = wider.ids[-1], wider.forest.paths.clone()
    leaf_id = ids[paths[:, -1].numpy()]
    heir = {int(i): int(i) for i in ids}
    kinds = list(wider.kinds)
    for away, into, _ in found.merged:
        heir[int(ids[away])] = int(ids[into])
        leaf_id[leaf_id == ids[away]] = ids[into]
        kinds.append((int(ids[away]), int(ids[into]), "merged"))
    parted: dict[int, int] = {}
    for new, (cluster, leaves, _) in enumerate(found.split, unused):
        leaf_id[list(leaves)] = new
        parted[new] = cluster
        kinds.append((int(ids[cluster]), new, "split"))
    now = [int(i) for i in ids if heir[int(i)] == i] + list(parted)
    number = {cluster: n for n, cluster in enumerate(now)}
    paths[:, -1] = torch.tensor([number[int(i)] for i in leaf_id])
    was = {int(i): n for n, i in enumerate(ids)}
    described = [
        wider.names.levels[-1][was[i]] if i in was
        else Named([], [], wider.names.levels[-1][parted[i]].radius)
        for i in now
    ]  # fmt: skip
    rates = [wider.rates[-1][was.get(i, parted.get(i, 0))] for i in now]
    finest = paths[: len(every.mass), -1]
    fresh = moment_rates(*group_sums(every.mass, every.moments, finest), every.eps2)
    for i in {heir[int(ids[a])] for a, _, _ in found.merged} | set(parted):
        rates[number[i]] = float(fresh[number[i]])
    by_number = {int(p[-1]): p.tolist() for p in paths}
    return replace(
        wider,
        forest=replace(wider.forest, paths=paths),
        ids=[*wider.ids[:-1], np.array(now, np.int64)],
        names=Names([*wider.names.levels[:-1], described], [by_number[n] for n in range(len(now))]),
        rates=[*wider.rates[:-1], rates],
        place=np.array([number[heir[int(ids[p])]] for p in wider.place], np.int64),
        kinds=tuple(kinds),
    )


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
    """Map: the rows of one shard that the wider model answers otherwise, written to ``folder``.

    Answers with the change of rows per finest cluster of the wider model, (k,), and how many moved.
    """

    store: Store
    old: Forest
    new: Forest
    place: npt.NDArray[np.int64]  # of the old finest clusters among the new ones
    ids: npt.NDArray[np.int64]  # of the wider model's finest clusters
    folder: str

    def __call__(self, shard: Shard) -> tuple[npt.NDArray[np.int64], int]:
        x = torch.from_numpy(np.array(self.store.read_npy(f"embeddings/{shard.name}.npy")))
        fit = label(replace(self.old, novel=None), x)
        old, new = relabelled(self.old, x, fit), relabelled(self.new, x, fit)
        leaves = self.old.first_leaf[-1]
        if not torch.equal(self.old.paths[:leaves], self.new.paths[:leaves]):
            new = label(self.new, x)  # confidence is that of a leaf's cluster, which has changed
        was, now = self.place[old.path[:, -1].numpy()], new.path[:, -1].numpy()
        moved = np.flatnonzero((was != now) | (old.confidence != new.confidence).numpy())
        if len(moved):
            samples = tables.read_table(self.store, f"samples/{shard.name}.parquet", ["row"])
            columns: dict[str, Any] = {
                "row": samples["row"].to_numpy()[moved],
                "old_id": self.ids[was[moved]],  # or its heir's
                "new_id": self.ids[now[moved]],
                "confidence": new.confidence.numpy()[moved],
                "outlier": new.outlier.numpy()[moved],
            }
            table = pa.table(columns, schema=tables.MOVED)
            name = f"{self.folder}/{shard.name}.parquet"
            tables.write_table(self.store, name, "moved", table)
        k = len(self.ids)
        change = np.bincount(now, minlength=k) - np.bincount(was, minlength=k)
        return change.astype(np.int64), int((was != now).sum())


def move(
    store: Store, shards: Sequence[Shard], old: Forest, wider: Wider, number: int,
    compute: Compute, progress: Progress,
) -> tuple[npt.NDArray[np.int64], int]:  # fmt: skip
    """Write ``moved/`` of the increment; the change of rows per finest cluster, and rows moved."""
    work = MoveShard(store, old, wider.forest, wider.place, wider.ids[-1], moved_folder(number))
    change, moved = np.zeros(len(wider.ids[-1]), np.int64), 0
    for done, (_, (part, rows)) in enumerate(compute.map(work, list(shards)), 1):
        change, moved = change + part, moved + rows
        progress("write", done, len(shards), "rows of new clusters")
    return change, moved
