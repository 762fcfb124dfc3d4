"""novelty: rows that no cluster describes well are set aside, and groups of them open clusters.

What is set aside lies in the increment's version (``versions/increment=NNNNN/aside/``), so that a
concept that comes slowly adds up over increments; it is bounded, by the hash of the sample. A new
cluster extends the model that assigns: every row, old or new, goes there by the same rule, and rows
of earlier increments that do are listed in ``moved/``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrcluster.compute import Compute, in_order
from rrcluster.core.count import LeafMoments
from rrcluster.core.drift import ReclusterSpec
from rrcluster.core.features import FeatureMap
from rrcluster.core.forest import Forest, label
from rrcluster.core.keys import KEY_SPAN, row_keys
from rrcluster.core.merge import group_sums
from rrcluster.core.model import features_of
from rrcluster.core.novelty import Known, Novel, gain, grouped, often, opened
from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.stages.count import read_space
from rrcluster.stages.run import Run
from rrcluster.stages.select import INDEX, LoadBlock, ids_of
from rrcluster.stages.tensors import read_tensors, write_tensors

KNOWN = "model/recluster/known.safetensors"
BUFFER = "aside/buffer.safetensors"
ADDED = "aside/moments.safetensors"  # of the fit's leaves' rows of increments, but for those aside
MOST_NUMBERS = 1 << 26  # of all leaves' moments; beyond, nothing is looked for (256 MiB)


@dataclass(frozen=True)
class Aside:
    """Rows set aside: vectors, ids, where they are, the increment that brought them, the candidate
    (of the last look, −1 for none) that they were part of, and the increments' rows since the fit.
    """

    x: npt.NDArray[np.float16]  # (b, d)
    ids: npt.NDArray[np.uint8]  # (b, 16)
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    seen: npt.NDArray[np.int32]
    candidate: npt.NDArray[np.int32]
    rows: int = 0
    limit: int = KEY_SPAN  # rows with keys from here on were left out

    def take(self, which: npt.NDArray[Any]) -> Aside:
        """Some of the rows."""
        arrays = {f.name: getattr(self, f.name)[which] for f in fields(self)[:6]}
        return replace(self, **arrays)

    def followed_by(self, other: Aside) -> Aside:
        """These rows, then the others; their numbers of rows add."""
        arrays = {
            f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)])
            for f in fields(self)[:6]
        }
        return Aside(**arrays, rows=self.rows + other.rows, limit=min(self.limit, other.limit))

    def bounded(self, most: int, seed: int) -> Aside:
        """Each id once (its first row), at most ``most``, those with the smallest keys."""
        keys = row_keys(self.ids, seed, "novelty")
        _, first = np.unique(self.ids, axis=0, return_index=True)
        first = first[keys[first] < np.uint64(min(self.limit, KEY_SPAN - 1))]
        order = first[np.argsort(keys[first], kind="stable")]
        limit = int(keys[order[most]]) if len(order) > most else self.limit
        return replace(self.take(order[:most]), limit=limit)

    def write(self, store: Store) -> None:
        arrays = {f.name: torch.from_numpy(getattr(self, f.name)) for f in fields(self)[:6]}
        arrays["rows"] = torch.tensor([self.rows, self.limit >> 32, self.limit & 0xFFFFFFFF])
        write_tensors(store, BUFFER, arrays)

    @staticmethod
    def read(store: Store, width: int) -> Aside:
        if not store.exists(BUFFER):
            none = np.zeros(0, np.int32)
            vectors, ids = np.zeros((0, width), np.float16), np.zeros((0, 16), np.uint8)
            return Aside(vectors, ids, none, none, none, none)
        found = {name: t.numpy() for name, t in read_tensors(store, BUFFER).items()}
        rows, high, low = (int(n) for n in found.pop("rows"))
        return Aside(**found, rows=rows, limit=(high << 32) + low)


@dataclass(frozen=True)
class SetAside:
    """Map: the rows of one shard of the increment whose cost is far above their cluster's own; with
    the leaf and the features of every other row of the fit's leaves."""

    store: Store
    forest: Forest
    space: FeatureMap
    score: float
    increment: int

    def __call__(self, shard: tuple[int, str]) -> tuple[Aside, Tensor, Tensor]:
        index, name = shard
        table = tables.read_table(self.store, f"samples/{name}.parquet", ["sample_id", "row"])
        x = np.array(self.store.read_npy(f"embeddings/{name}.npy"))
        rows_x = torch.from_numpy(x)
        found = label(self.forest, rows_x)
        fits = found.leaf < self.forest.first_leaf[-1]
        rows = ((found.outlier > self.score) & fits).numpy().nonzero()[0]
        same = np.full(len(rows), self.increment, np.int32)
        aside = Aside(
            x[rows], ids_of(table)[rows], np.full(len(rows), index, np.int32),
            table["row"].to_numpy()[rows].astype(np.int32), same, np.full(len(rows), -1, np.int32),
            rows=len(x),
        )  # fmt: skip
        usual = (found.outlier <= self.score) & fits
        return aside, found.leaf[usual], features_of(self.space, rows_x)[usual]


def add_rows(
    store: Store, leaves: int, width: int, parts: Iterable[tuple[Tensor, Tensor]]
) -> LeafMoments:
    """Moments per leaf of the increments' rows since the fit, those of ``parts`` included."""
    sums = LeafMoments.none(leaves, width)
    if store.exists(ADDED):
        found = read_tensors(store, ADDED)
        sums.mass.add_(found["mass"])
        sums.moments.add_(found["moments"])
    for leaf, z in parts:
        sums.add(z, leaf)
    return sums


@dataclass(frozen=True)
class History:
    """What the fit knows: its leaves' and clusters' moments, and its rows that were coded badly."""

    leaves: Known
    known: Known
    x: Tensor  # (h, d) float16, a sample of them
    rows: float  # rows of the fit that the sample stands for


def history(run: Run, compute: Compute, forest: Forest) -> History | None:
    """Counted once per model and kept beside it; None where clusters cannot be compared."""
    store, spec, code = run.store, run.config.recluster, run.config.count
    space = read_space(store)
    fit = replace(forest, novel=None, paths=forest.paths[: forest.first_leaf[-1]])
    k = len(fit.paths)
    if space is None or k * space.width**2 > MOST_NUMBERS:
        return None
    if not store.exists(KNOWN):
        blocks = int(store.read_json(INDEX)["blocks"])
        most = -(-spec.buffer_rows // max(blocks, 1))
        work = DescribeBlock(LoadBlock.of(run), fit, space, spec.novelty_score, most)
        sums, counts, kept = LeafMoments.none(k, space.width), np.zeros(2), []
        for leaf, z, x, aside in in_order(compute.map(work, list(range(blocks)))):
            sums.add(z, leaf)
            counts += (len(z), aside)
            kept.append(x)
        tensors = {"mass": sums.mass, "moments": sums.moments, "x": torch.cat(kept)}
        write_tensors(store, KNOWN, tensors | {"counts": torch.from_numpy(counts)})
    found = read_tensors(store, KNOWN)
    rows, aside = found["counts"].tolist()
    share = len(found["x"]) / max(aside, 1.0)
    leaves = Known(found["mass"], found["moments"], code.eps2, code.shrinkage)
    own = opening_clusters(forest)
    known = Known(*group_sums(leaves.mass, leaves.moments, own), code.eps2, code.shrinkage)
    return History(leaves, known, found["x"], rows * share)


def opening_clusters(forest: Forest) -> Tensor:
    """The cluster of each of the fit's leaves as novelty counts them: those of the first opening,
    and of today's tree before it."""
    if forest.novel is not None:
        return forest.novel.own
    finest: Tensor = forest.paths[: forest.first_leaf[-1], -1].unique(return_inverse=True)[1]
    return finest


@dataclass(frozen=True)
class DescribeBlock:
    """Map: of one fit block, each row's leaf and features, its first badly coded rows by
    key (float16), and how many badly coded ones there are."""

    load: LoadBlock
    forest: Forest
    space: FeatureMap
    score: float
    most: int

    def __call__(self, block: int) -> tuple[Tensor, Tensor, Tensor, int]:
        x = self.load(block)
        found = label(self.forest, x)
        aside = (found.outlier > self.score).nonzero()[:, 0]
        z = features_of(self.space, x)
        return found.leaf, z, x[aside[: self.most]].half(), len(aside)


@dataclass(frozen=True)
class Look:
    """What one look found: rows set aside that remain, and groups of rows (by cluster opened)."""

    aside: Aside
    novel: Novel | None  # None: nothing opened
    rows: Tensor  # x of the rows that opened clusters
    ids: npt.NDArray[np.uint8]  # of those rows
    group: Tensor  # their cluster 0.., of those opened now
    candidates: int  # groups that wait for another look
    facts: list[dict[str, Any]]  # of each cluster opened

    @staticmethod
    def nothing(aside: Aside) -> Look:
        rows = torch.zeros(0, aside.x.shape[1])
        return Look(aside, None, rows, aside.ids[:0], torch.zeros(0), 0, [])


def look(
    aside: Aside, forest: Forest, before: History, opened_before: Known, space: FeatureMap,
    spec: ReclusterSpec, seed: int,
) -> Look:  # fmt: skip
    """Group what is set aside, and open the groups that pass.

    ``opened_before`` holds the moments of the clusters opened since the fit (of mass 0 for none).
    """
    nothing = Look.nothing(aside)
    if len(aside.x) < spec.novelty_rows:
        return nothing
    x = torch.from_numpy(aside.x)
    fit = replace(forest, novel=None)
    z, leaf = features_of(space, x), label(fit, x).leaf
    own = opening_clusters(forest)
    known = before.known.with_clusters(opened_before.mass, opened_before.moments)
    cluster, old = own[leaf], label(fit, before.x)
    share = aside.limit / KEY_SPAN

    def worth(rows: Tensor) -> float:
        """What a group saves beyond the margin; nothing for one that is too small."""
        if len(rows) < spec.novelty_rows:
            return 0.0
        return gain(z[rows], cluster[rows], before.known) - spec.novelty_gain * len(rows)

    candidate = np.full(len(x), -1, np.int32)
    accepted, facts = [], []
    for number, rows in enumerate(grouped(z, before.known, spec.novelty_rows, seed, worth)):
        none = torch.zeros(len(rows), dtype=torch.int64)
        _, alone = opened(before.known, None, space, z[rows], none, own, 0.0)
        now = int((alone.claim(x, leaf, 1.0)[0] >= 0).sum())
        then = int((alone.claim(before.x, old.leaf, 1.0)[0] >= 0).sum()) if len(before.x) else 0
        times = often(now, int(aside.rows * share), then, int(before.rows))
        if times < spec.novelty_times:
            continue
        where = rows.numpy()
        again = _seen_before(aside.candidate[where], aside.candidate)
        if len(rows) < spec.novelty_sure_rows and not again:
            candidate[where] = number
            continue
        saved = gain(z[rows], cluster[rows], before.known) / len(rows)
        facts.append({"rows": len(rows), "nats_per_row": round(saved, 3), "times": round(times, 1),
                      "increments": len(set(aside.seen[where].tolist()))})  # fmt: skip
        accepted.append(rows)
    waiting = len(set(candidate.tolist()) - {-1})
    if not accepted:
        return replace(nothing, aside=replace(aside, candidate=candidate), candidates=waiting)
    every = torch.cat(accepted)
    numbers = torch.cat([torch.full((len(a),), i) for i, a in enumerate(accepted)])
    _, novel = opened(known, forest.novel, space, z[every], numbers, own, spec.novelty_score)
    left = np.ones(len(x), bool)
    left[every.numpy()] = False
    rest = replace(aside, candidate=candidate).take(left)
    return Look(rest, novel, x[every], aside.ids[every.numpy()], numbers, waiting, facts)


def _seen_before(marks: npt.NDArray[np.int32], every: npt.NDArray[np.int32]) -> bool:
    """Whether most rows of a candidate of the last look are in this group."""
    for mark in set(marks.tolist()) - {-1}:
        if 2 * int((marks == mark).sum()) > int((every == mark).sum()):
            return True
    return False
