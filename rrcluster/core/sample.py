"""Balanced sampling: how many rows each cluster gives, and what the sample's balance is.

Budgets come from the tree alone (``allocate``); which rows of a cluster are taken is an order of
its rows (``core.order``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from rrcluster.core.waterfill import Floats, Ints, sums, water_fill
from rrcluster.records import setting


@dataclass
class SampleSpec:
    """What to sample, and in which formats it is left for trainers."""

    name: str = setting("", "name of the sample: its folder is sample/<name>/ in the run folder")
    size: int = setting(0, "rows to draw, repetitions counted")
    method: Literal["hierarchical", "flat", "proportional", "random"] = setting(
        "hierarchical",
        "hierarchical: even over the tree, level by level; flat: even over the finest clusters; "
        "proportional: by size^temperature; random: clusters do not matter",
    )
    levels: list[Any] = setting(
        [],
        "levels that method=hierarchical pours the budget through, e.g. [1,2]; empty: all. A level "
        "much coarser than the concepts that should come equally often makes them share",
    )
    temperature: float = setting(
        0.5, "exponent of method=proportional: 1 follows the corpus, 0 is flat"
    )
    multiplier: int = setting(1, "times that a row of a small cluster may be repeated at most")
    min_per_cluster: int = setting(0, "rows that each finest cluster gives at least, if it can")
    max_per_cluster: int | None = setting(None, "rows that a finest cluster gives at most")
    weights: str | None = setting(
        None,
        "share of a cluster against its siblings, by id or best caption: {12: 3, red circle: 0.5}, "
        "or a JSON file of that; 0 leaves it out",
    )
    exclude: list[Any] = setting([], "clusters of any level to leave out, by id or best caption")
    max_outlier: float | None = setting(None, "leave out rows with a larger outlier score")
    drop_duplicates: bool = setting(True, "take one of the rows with equal sample_id in a cluster")
    dedup_threshold: float | None = setting(
        None, "leave out rows whose cosine to an earlier one of their cluster reaches it, e.g. 0.95"
    )
    leaf_choice: Literal["random", "closest", "furthest", "stratified", "sensitivity"] = setting(
        "random",
        "rows of a cluster: random; closest to or furthest from its mean; stratified: even over "
        "that distance; sensitivity: by chance, half of it in proportion to squared distance",
    )
    export: Any = setting(
        [], "formats, e.g. [keys,datacomp,torch]; adding some later keeps the sample as it is"
    )
    rows_per_tar: int = setting(10_000, "samples per tar of export webdataset")
    batch_size: int = setting(256, "rows per batch of export schedule")
    schedule_level: int = setting(0, "level whose clusters share every batch of export schedule")


# These only say what is written beside the sample; they may change between attempts.
NOT_IDENTITY = ("name", "export", "rows_per_tar", "batch_size", "schedule_level")


@dataclass(frozen=True)
class Levels:
    """The tree as arrays, coarse first; ``parent[l]`` are positions in level l-1 (0: the root)."""

    ids: tuple[Ints, ...]
    parent: tuple[Ints, ...]

    @property
    def num_leaves(self) -> int:
        return len(self.ids[-1])

    def below(self, marked: list[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
        """(leaves,) whether a leaf or one of its ancestors is marked."""
        found = marked[0]
        for level in range(1, len(self.ids)):
            found = found[self.parent[level]] | marked[level]
        return found

    def above(self, level: int, ancestor: int) -> Ints:
        """(clusters of ``level``,) the position of each one's ancestor in a coarser level."""
        at = np.arange(len(self.ids[level]))
        for between in range(level, ancestor, -1):
            at = self.parent[between][at]
        return at

    def only(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """The wanted levels with the finest one, ascending; all when none is named."""
        depth = len(self.ids)
        return tuple(sorted({*wanted, depth - 1})) if wanted else tuple(range(depth))

    def path(self) -> Ints:
        """(leaves, L) cluster ids from the coarsest to the finest."""
        at = np.arange(self.num_leaves)
        columns = [self.ids[-1]]
        for level in reversed(range(1, len(self.ids))):
            at = self.parent[level][at]
            columns.insert(0, self.ids[level - 1][at])
        return np.stack(columns, 1)


@dataclass(frozen=True)
class Budgets:
    """Rows per leaf, repetitions counted; ``wanted - total`` is the shortfall."""

    leaf: Ints
    wanted: int

    @property
    def total(self) -> int:
        return int(self.leaf.sum())


def cluster_keys(ids: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """A hash of (seed, cluster id): who gets what whole numbers leave over."""
    salt = np.uint64(xxhash.xxh3_64_intdigest(f"{seed}/sample/cluster".encode()))
    with np.errstate(over="ignore"):
        z = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ salt
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def allocate(
    levels: Levels,
    available: Ints,
    spec: SampleSpec,
    seed: int,
    weights: Mapping[int, Floats] | None = None,
) -> Budgets:
    """Budgets of the leaves, given the rows that each has to give.

    ``weights[l]`` (clusters of level l) multiply a cluster's share against its siblings. The total
    is ``spec.size``, or all there is where bounds do not let it be reached. Raises ValueError when
    the least that was asked for is more than the size.
    """
    upper = available * spec.multiplier
    if spec.max_per_cluster is not None:
        upper = np.minimum(upper, spec.max_per_cluster)
    lower = np.minimum(upper, spec.min_per_cluster)
    if int(lower.sum()) > spec.size:
        raise ValueError(f"the least that the clusters give is {int(lower.sum()):,}")
    total = np.asarray([min(spec.size, int(upper.sum()))])
    given = weights or {}
    depth = len(levels.ids)
    if spec.method != "hierarchical":
        weight = np.ones(levels.num_leaves)
        if spec.method == "proportional":
            weight = np.maximum(available, 1).astype(np.float64) ** spec.temperature
        at = np.arange(levels.num_leaves)
        for level in reversed(range(depth)):  # a weight of a coarse cluster holds for its leaves
            if level in given:
                weight = weight * given[level][at]
            at = levels.parent[level][at]
        root = np.zeros(levels.num_leaves, np.int64)
        keys = cluster_keys(levels.ids[-1], seed)
        return Budgets(water_fill(total, root, lower, upper, weight, keys), spec.size)
    kept = levels.only(spec.levels)
    lowers, uppers = [lower], [upper]
    for coarse, fine in reversed(list(pairwise(kept))):
        parent, count = levels.above(fine, coarse), len(levels.ids[coarse])
        lowers.insert(0, sums(lowers[0], parent, count))
        uppers.insert(0, sums(uppers[0], parent, count))
    budget = total
    for number, level in enumerate(kept):
        before = kept[number - 1] if number else -1
        parent = levels.above(level, before) if number else np.zeros(len(levels.ids[level]), int)
        weight = np.ones(len(levels.ids[level]))
        for own in range(before + 1, level + 1):  # a level that is left out weighs what is below
            if own in given:
                weight = weight * given[own][levels.above(level, own)]
        keys = cluster_keys(levels.ids[level], seed)
        budget = water_fill(budget, parent, lowers[number], uppers[number], weight, keys)
    return Budgets(budget, spec.size)


def balance(counts: Ints) -> dict[str, float]:
    """How even the counts are: entropy (nats), Gini coefficient, effective number of clusters.

    The effective number is exp(entropy): k for k equal clusters, 1 when one holds everything.
    """
    total = float(counts.sum())
    if not total:
        return {"entropy": 0.0, "gini": 0.0, "effective": 0.0, "covered": 0}
    share = np.sort(counts) / total
    positive = share[share > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    n = len(share)
    gini = float(((2 * np.arange(1, n + 1) - n - 1) * share).sum() / n)
    return {
        "entropy": entropy,
        "gini": gini,
        "effective": float(np.exp(entropy)),
        "covered": int((counts > 0).sum()),
    }


def lorenz(counts: Ints, points: int = 101) -> list[float]:
    """Share of the rows in the smallest clusters, at ``points`` even shares of the clusters."""
    total = max(int(counts.sum()), 1)
    rows = np.r_[0, np.cumsum(np.sort(counts))] / total
    at = np.linspace(0, len(counts), points)
    return [round(float(v), 6) for v in np.interp(at, np.arange(len(counts) + 1), rows)]
