"""Bottom-up levels: k-means of centroids, unweighted and resampled (Vo et al. 2024, 2405.15613).

The finest level clusters rows; each coarser one clusters the centroids below it, every centroid
counting once however many rows it stands for. That flattens the distribution: dense regions get no
more coarse clusters than their extent asks for. A resampling step fits a level again on a few
members of each of its clusters, and flattens further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.cells import nearest
from rrcluster.core.hierarchy import Seeds, nearest_in_cell, top_down, whole_blocks
from rrcluster.core.kmeans import Path, SeedingSpec, fit
from rrcluster.core.shards import Shards


@dataclass(frozen=True)
class Level:
    """One level, of ``clusters`` in the end: clusters/splits fitted, each then split on its own.

    ``resamplings`` fits on ``sample_size`` members of each cluster, the closest or random ones;
    a sample size of 1 means no resampling.
    """

    clusters: int
    splits: int = 1
    resamplings: int = 0
    sample_size: int = 1
    choice: Literal["closest", "random"] = "closest"


@dataclass(frozen=True)
class Hierarchy:
    """``centroids`` and ``parents`` per level, finest first; rows belong to ``seeds``' leaves.

    ``parents[l]`` (k_l,) is the cluster of level l + 1 of each cluster of level l.
    """

    seeds: Seeds
    centroids: tuple[Float[Tensor, "_ d"], ...]
    parents: tuple[Int[Tensor, " _"], ...]

    @property
    def paths(self) -> Int[Tensor, "k L"]:
        """The cluster of each leaf at each level, coarsest first."""
        at = [torch.arange(len(self.centroids[0]))]
        for parent in self.parents:
            at.append(parent[at[-1]])
        return torch.stack(at[::-1], 1)

    def label(self, x: Float[Tensor, "n d"]) -> Int[Tensor, "n L"]:
        """The cluster of each row at each level, coarsest first."""
        return self.paths[nearest_in_cell(x, self.seeds)[0]]


def bottom_up(
    shards: Shards,
    levels: Sequence[Level],
    spec: SeedingSpec,
    seed: int,
    done: Sequence[Seeds] = (),
    on_level: Callable[[int, Seeds], None] | None = None,
) -> Hierarchy:
    """Levels from fine to coarse, going on after those ``done``; ``on_level`` gets each new one.

    Raises ValueError where a level asks for more clusters than there are points.
    """
    found: list[Seeds] = []
    parents: list[Tensor] = []
    points = shards
    for number, level in enumerate(levels):
        if level.clusters > points.num_rows:
            raise ValueError(
                f"level {number} asks for {level.clusters} clusters of {points.num_rows} points"
            )
        if number < len(done):
            found.append(done[number])
        else:
            found.append(_one_level(points, level, spec, seed, ("level", number)))
            if on_level is not None:
                on_level(number, found[-1])
        if number:
            centroids = found[-2].leaves
            parent, _ = nearest_in_cell(centroids.half(), found[-1])
            parents.append(parent)
        order = torch.randperm(
            len(found[-1].leaves), generator=keys.generator(seed, "level", number, "order")
        )
        points = whole_blocks(found[-1].leaves.half()[order], spec, shards)
    return Hierarchy(found[0], tuple(s.leaves for s in found), tuple(parents))


def _one_level(points: Shards, level: Level, spec: SeedingSpec, seed: int, path: Path) -> Seeds:
    k = max(level.clusters // level.splits, 1)
    centroids = fit(points, k, spec, seed, path).centroids
    for step in range(level.resamplings if level.sample_size > 1 else 0):
        here = (*path, "resample", step)
        chosen = sampled_members(points, centroids, level, seed, here)
        centroids = fit(whole_blocks(chosen, spec, points), k, spec, seed, here).centroids
    if level.splits == 1:
        one = torch.zeros(len(centroids), dtype=torch.int64)
        return Seeds(torch.zeros(1, points.width), centroids, one)
    return top_down(
        points, level.clusters, spec, seed, cells=centroids,
        shares_of=lambda sizes, _: sizes.clamp_max(level.splits),
    )  # fmt: skip


def sampled_members(
    points: Shards, centroids: Float[Tensor, "k d"], level: Level, seed: int, path: Path
) -> Float[Tensor, "m d"]:
    """At most ``sample_size`` members of each cluster, in an order drawn anew."""
    rows, label, rank = torch.empty(0), torch.empty(0), torch.empty(0)
    work = Members(centroids, level, keys.path_seed(seed, *path))
    for number, part in enumerate(points.map(work)):
        if number == 0:
            rows, label, rank = part
        else:
            rows, label, rank = (
                torch.cat(pair) for pair in zip((rows, label, rank), part, strict=True)
            )
            kept = _first_of_each(label, rank, level.sample_size)
            rows, label, rank = rows[kept], label[kept], rank[kept]
    order = torch.randperm(len(rows), generator=keys.generator(seed, *path, "order"))
    return rows[order]


@dataclass(frozen=True)
class Members:
    """Map: the rows of a block that are chosen of each cluster, their clusters and their ranks."""

    centroids: Tensor
    level: Level
    seed: int

    def __call__(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        label, squared = nearest(x, self.centroids)
        rank = squared
        if self.level.choice == "random":
            rank = row_hash(x, self.seed)
        kept = _first_of_each(label, rank, self.level.sample_size)
        return x[kept], label[kept], rank[kept]


def row_hash(x: Float[Tensor, "n d"], seed: int) -> Float[Tensor, " n"]:
    """A number in [0, 1) of each float16 row's bits: a multiply-sum hash of seeded odd factors."""
    factors = torch.randint(
        -(2**62), 2**62, (x.shape[1],), generator=keys.generator(seed, "row hash")
    )
    mixed = (x.half().contiguous().view(torch.int16).long() * (2 * factors + 1)).sum(1)
    return ((mixed >> 24) & 0xFFFFFF).float() / (1 << 24)  # the middle bits are mixed best


def _first_of_each(label: Tensor, rank: Tensor, size: int) -> Tensor:
    """Indices of the ``size`` entries of lowest rank of each label."""
    order = rank.argsort(stable=True)
    order = order[label[order].argsort(stable=True)]
    counts = torch.bincount(label)
    first = (counts.cumsum(0) - counts)[label[order]]
    kept: Tensor = order[torch.arange(len(order)) - first < size]
    return kept
