"""k-means, written once against the seam: it sees rows only as (count, sum, inertia) per centroid.

Flat and top-down (each cell split on its own) are the same code: a row may only choose among the
centroids of the cell that it belongs to, and the flat case has one cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.cells import nearest, routed
from rrcluster.core.shards import Shards
from rrcluster.core.tiles import TILE
from rrcluster.records import setting


@dataclass
class SeedingSpec:
    """Settings of the seeding stage: hierarchical k-means on a bounded sample."""

    fit_rows: int = setting(1_000_000, "rows that models are fitted on at most (hash-chosen)")
    block_rows: int = setting(16_384, "rows of one fit block, the unit of work of a fit")
    oversegment: float = setting(2.5, "leaves seeded per cluster wanted; refinement merges them")
    auto_leaf_rows: int = setting(40, "k=auto: fit rows per seeded leaf")
    auto_max_leaves: int = setting(1024, "k=auto: leaves seeded at most")
    cell_leaves: int = setting(
        256, "leaves of one subtree at most; beyond, a coarse level cuts cells"
    )
    rows_per_centroid: int = setting(64, "rows per centroid that k-means++ chooses from")
    iterations: int = setting(30, "Lloyd iterations at most")
    tolerance: float = setting(1e-4, "stop when inertia falls by less than this share")


@dataclass(frozen=True)
class Seeds:
    """Cells and their leaves: ``leaves`` rows are sorted by ``cell_of_leaf``."""

    cells: Float[Tensor, "c d"]
    leaves: Float[Tensor, "k d"]
    cell_of_leaf: Int[Tensor, " k"]

    def of_cell(self, cell: int) -> Float[Tensor, "j d"]:
        return self.leaves[self.cell_of_leaf == cell]


def nearest_in_cell(
    x: Float[Tensor, "n d"], seeds: Seeds
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Index of the nearest leaf within the row's nearest cell, and its squared distance."""

    def within(cell: int, rows: Tensor) -> tuple[Tensor, ...]:
        leaf, squared = nearest(rows, seeds.of_cell(cell))
        return leaf + int((seeds.cell_of_leaf < cell).sum()), squared

    labels, squared = routed(seeds.cells, x, within)
    return labels, squared


@dataclass(frozen=True)
class LeafSums:
    """The statistic: count (k,), sum (k, d) and inertia (k,) of the rows nearest to each leaf."""

    seeds: Seeds

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        labels, squared = nearest_in_cell(x, self.seeds)
        k, d = self.seeds.leaves.shape
        total = torch.zeros(k, d)
        for rows, label in zip(x.split(TILE), labels.split(TILE), strict=True):
            total.index_add_(0, label, rows.float())
        return {
            "count": torch.bincount(labels, minlength=k),
            "sum": total.double(),  # sums over blocks in float64: k·d numbers, not rows
            "inertia": torch.bincount(labels, weights=squared.double(), minlength=k),
        }


def lloyd(
    shards: Shards,
    seeds: Seeds,
    spec: SeedingSpec,
    seed: int,
    on_iteration: Callable[[int, float], None] | None = None,
) -> tuple[Seeds, Tensor]:
    """Lloyd's iterations until the inertia settles: the seeds and the count of rows per leaf (k,).

    A leaf that empties is put beside the leaf of the largest inertia of its cell, on a line
    through it in a seeded direction (the split of a large cluster).
    """
    before = float("inf")
    for iteration in range(spec.iterations):
        sums = shards.reduce(LeafSums(seeds))
        inertia = float(sums["inertia"].sum())
        if on_iteration is not None:
            on_iteration(iteration, inertia / shards.num_rows)
        empty = bool((sums["count"] == 0).any())
        if before - inertia <= spec.tolerance * inertia and not (empty and iteration < 5):
            break
        before = inertia
        seeds = Seeds(seeds.cells, _update(seeds, sums, seed, iteration), seeds.cell_of_leaf)
    return seeds, sums["count"]


def _update(seeds: Seeds, sums: dict[str, Tensor], seed: int, iteration: int) -> Tensor:
    count = sums["count"]
    means = (sums["sum"] / count.clamp_min(1)[:, None]).float()
    spread = sums["inertia"].clone()
    for leaf in (count == 0).nonzero()[:, 0].tolist():
        inside = seeds.cell_of_leaf == seeds.cell_of_leaf[leaf]
        widest = int(torch.where(inside, spread, torch.full_like(spread, -1.0)).argmax())
        if count[widest] < 2 or spread[widest] <= 0:
            means[leaf] = seeds.leaves[leaf]  # nothing to split: fewer distinct rows than leaves
            continue
        step = torch.randn(means.shape[1], generator=keys.generator(seed, "split", iteration, leaf))
        radius = float((spread[widest] / count[widest]).sqrt())
        step *= 0.5 * radius / step.norm()
        means[leaf], means[widest] = means[widest] + step, means[widest] - step
        spread[widest] /= 4
    return means


def plus_plus(x: Float[Tensor, "m d"], k: int, generator: torch.Generator) -> Float[Tensor, "k d"]:
    """k-means++ (Arthur and Vassilvitskii 2007): k rows of x, each drawn by squared distance."""
    x = x.float()
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    squared = (x - x[chosen[0]]).square().sum(1)
    for _ in range(1, k):
        total = float(squared.sum())
        draw = torch.rand(1, generator=generator)
        if total <= 0:  # fewer distinct rows than k: repeat rows; Lloyd leaves them empty
            chosen.append(int(draw * len(x)))
            continue
        row = int(torch.searchsorted(squared.cumsum(0), draw * squared.sum()).clamp_max(len(x) - 1))
        chosen.append(row)
        squared = torch.minimum(squared, (x - x[row]).square().sum(1))
    return x[chosen]


def hierarchical(
    shards: Shards,
    leaves: int,
    spec: SeedingSpec,
    seed: int,
    on_iteration: Callable[[int, int, float], None] | None = None,
    cells: Tensor | None = None,
    on_cells: Callable[[Tensor], None] | None = None,
) -> Seeds:
    """Top-down k-means: one cell if ``leaves`` is small, else cells that split on their own.

    ``cells`` (c, d) resumes from a finished coarse level; ``on_cells`` receives it when it is new.
    Leaves are given to cells in proportion to their rows.
    """
    num_cells = -(-leaves // spec.cell_leaves)
    report = on_iteration or (lambda level, iteration, inertia: None)
    if num_cells == 1:
        cells = torch.zeros(1, shards.width)
        share = torch.tensor([leaves])
    else:
        if cells is None:
            sample = shards.head(num_cells * spec.rows_per_centroid)
            start = plus_plus(sample, num_cells, keys.generator(seed, "kmeans++", 0))
            one = Seeds(torch.zeros(1, shards.width), start, torch.zeros(num_cells).long())
            found, _ = lloyd(shards, one, spec, seed, lambda i, v: report(0, i, v))
            cells = found.leaves
            if on_cells is not None:
                on_cells(cells)
        sizes = shards.reduce(_CellSizes(cells))["count"]
        share = apportion(sizes, leaves)
    sample = shards.head(leaves * spec.rows_per_centroid)
    home, _ = nearest(sample, cells)
    starts = []
    for cell, count in enumerate(share.tolist()):
        rows = sample[home == cell]
        if count and len(rows) == 0:
            rows = cells[cell][None]
        if count:
            starts.append(plus_plus(rows, count, keys.generator(seed, "kmeans++", 1, cell)))
    cell_of_leaf = torch.repeat_interleave(torch.arange(num_cells), share)
    seeds, counts = lloyd(
        shards,
        Seeds(cells, torch.cat(starts), cell_of_leaf),
        spec,
        seed,
        lambda i, v: report(1, i, v),
    )
    kept = counts > 0  # leaves that stayed empty hold no distinct row
    return Seeds(seeds.cells, seeds.leaves[kept], seeds.cell_of_leaf[kept])


@dataclass(frozen=True)
class _CellSizes:
    cells: Tensor

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        labels, _ = nearest(x, self.cells)
        return {"count": torch.bincount(labels, minlength=len(self.cells))}


def apportion(sizes: Int[Tensor, " c"], total: int) -> Int[Tensor, " c"]:
    """``total`` shared in proportion to ``sizes`` by largest remainders, at least 1 where size > 0.

    No cell gets more than its size. Sums to ``min(total, sizes.sum())``, or to the number of
    non-empty cells when that is larger.
    """
    total = min(total, int(sizes.sum()))
    exact = sizes.double() * total / sizes.sum().clamp_min(1)
    share = torch.minimum(exact.floor().long().clamp_min(1), sizes)
    while int(share.sum()) != total:
        gap = total - int(share.sum())
        rest = exact - share
        if gap > 0:
            rest = torch.where(share < sizes, rest, torch.full_like(rest, -float("inf")))
            best = rest.argsort(descending=True, stable=True)[:gap]
            share[best[torch.isfinite(rest[best])]] += 1
        else:
            rest = torch.where(share > 1, rest, torch.full_like(rest, float("inf")))
            worst = rest.argsort(stable=True)[:-gap]
            worst = worst[torch.isfinite(rest[worst])]
            if len(worst) == 0:
                break
            share[worst] -= 1
    return share
