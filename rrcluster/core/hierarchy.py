"""Hierarchies made of flat fits: top-down over cells, and bottom-up over centroids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.cells import nearest, routed
from rrcluster.core.kmeans import UNIT, OnPass, SeedingSpec, State, fit
from rrcluster.core.shards import MemoryShards, Shards

FitCells = Callable[[Tensor, Tensor], Iterable[Tensor]]


@dataclass(frozen=True)
class Seeds:
    """Cells and their leaves: ``leaves`` rows are sorted by ``cell_of_leaf``."""

    cells: Float[Tensor, "c d"]
    leaves: Float[Tensor, "k d"]
    cell_of_leaf: Int[Tensor, " k"]

    def of_cell(self, cell: int) -> Float[Tensor, "j d"]:
        return self.leaves[self.cell_of_leaf == cell]


def largest_first(sizes: Int[Tensor, " c"]) -> list[int]:
    """Cells in the order to work on them in parallel: a large one that came last would be waited
    for by every other worker."""
    order: list[int] = sizes.argsort(descending=True, stable=True).tolist()
    return order


def nearest_in_cell(
    x: Float[Tensor, "n d"], seeds: Seeds
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Index of the nearest leaf within the row's nearest cell, and its squared distance."""

    def within(cell: int, rows: Tensor) -> tuple[Tensor, ...]:
        leaf, squared = nearest(rows, seeds.of_cell(cell))
        return leaf + int((seeds.cell_of_leaf < cell).sum()), squared

    labels, squared = routed(seeds.cells, x, within)
    return labels, squared


def top_down(
    shards: Shards,
    leaves: int,
    spec: SeedingSpec,
    seed: int,
    on_pass: OnPass | None = None,
    cells: Tensor | None = None,
    resume: State | None = None,
    on_cells: Callable[[Tensor], None] | None = None,
    fit_cells: FitCells | None = None,
    shares_of: Callable[[Tensor, int], Tensor] | None = None,
) -> Seeds:
    """One flat fit if ``leaves`` are few, else cells that are split each on its own.

    Leaves are given to cells in proportion to their inertia, as the best quantizer of wide rows has
    cells of equal inertia (Gersho 1979), or by ``shares_of(sizes, leaves)``.
    ``cells`` (c, d) goes on from a finished coarse level, which ``on_cells`` receives, and
    ``resume`` from within one. ``fit_cells(cells, shares)`` gives the leaves of each cell, in
    order: wherever its rows are; None: in this process.
    """
    num_cells = -(-leaves // spec.cell_leaves)
    if num_cells == 1 and cells is None:
        found = fit(shards, leaves, spec, seed, ("leaves", 0), on_pass, resume)
        return Seeds(
            torch.zeros(1, shards.width), found.centroids, torch.zeros(len(found.count)).long()
        )
    if cells is None:
        cells = fit(shards, num_cells, spec, seed, ("cells",), on_pass, resume).centroids
        if on_cells is not None:
            on_cells(cells)
    found_sizes = shards.total(CellSizes(cells))
    sizes = found_sizes["count"]
    if shares_of is not None:
        shares = shares_of(sizes, leaves)
    else:
        shares = apportion(found_sizes["inertia"], leaves, sizes)
    fit_cells = fit_cells or (lambda cells, shares: _fit_here(shards, cells, shares, spec, seed))
    found_leaves = list(fit_cells(cells, shares))
    numbers = torch.tensor([len(found) for found in found_leaves])
    cell_of_leaf = torch.repeat_interleave(torch.arange(len(cells)), numbers)
    return Seeds(cells, torch.cat(found_leaves), cell_of_leaf)


def leaves_of_cell(
    shards: Shards, cell: int, centre: Tensor, share: int, spec: SeedingSpec, seed: int
) -> Float[Tensor, "j d"]:
    """The leaves of one cell from its rows; a cell without rows is its own leaf."""
    if shards.num_rows == 0:
        return centre[None]
    return fit(shards, max(share, 1), spec, seed, ("leaves", cell)).centroids


@dataclass(frozen=True)
class CellSizes:
    """The statistic: rows nearest to each cell, (c,) int64, and their inertia in units, int64."""

    cells: Tensor

    def __call__(self, x: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        labels, squared = nearest(x, self.cells)
        units = (squared.double() / UNIT).round().long()  # whole numbers: exact in any order
        inertia = torch.zeros(len(self.cells), dtype=torch.int64).index_add_(0, labels, units)
        return {"count": torch.bincount(labels, minlength=len(self.cells)), "inertia": inertia}


@dataclass(frozen=True)
class RowsByCell:
    """Map: the rows of a block in the order of their cells, and where each cell's end."""

    cells: Tensor

    def __call__(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        cell, _ = nearest(x, self.cells)
        ends = torch.bincount(cell, minlength=len(self.cells)).cumsum(0)
        return x[cell.argsort(stable=True)], ends


def _fit_here(
    shards: Shards, cells: Tensor, shares: Tensor, spec: SeedingSpec, seed: int
) -> Iterable[Tensor]:
    parts = list(shards.map(RowsByCell(cells)))
    for cell, share in enumerate(shares.tolist()):
        first = [int(ends[cell - 1]) if cell else 0 for _, ends in parts]
        mine = [x[a : int(ends[cell])] for (x, ends), a in zip(parts, first, strict=True)]
        rows = whole_blocks(torch.cat(mine), spec, shards)
        yield leaves_of_cell(rows, cell, cells[cell], share, spec, seed)


def whole_blocks(x: Tensor, spec: SeedingSpec, of: Shards | None = None) -> MemoryShards:
    """Rows in key order as blocks of ``block_rows``; worked on like those that they are ``of``."""
    workers = 1 if of is None else of.workers
    device = of.device if isinstance(of, MemoryShards) else "cpu"
    return MemoryShards(list(x.split(spec.block_rows)) or [x], workers, device=device)


def apportion(
    weights: Int[Tensor, " c"], total: int, sizes: Int[Tensor, " c"]
) -> Int[Tensor, " c"]:
    """``total`` shared in proportion to ``weights`` by largest remainders, at least 1 where the
    size is not 0.

    No cell gets more than its size. Sums to ``min(total, sizes.sum())``, or to the number of
    non-empty cells when that is larger.
    """
    total = min(total, int(sizes.sum()))
    exact = _in_proportion(weights.double(), float(total), sizes.double())
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


def _in_proportion(weights: Tensor, total: float, sizes: Tensor) -> Tensor:
    """``total`` shared exactly in proportion to weights; what cells cannot take goes to others."""
    share, still = torch.zeros_like(weights), torch.ones_like(weights, dtype=torch.bool)
    while True:
        given = weights * total / weights[still].sum().clamp_min(1)
        full = still & (given > sizes)
        if not bool(full.any()):
            return torch.where(still, given, share)
        share[full] = sizes[full]
        total -= float(sizes[full].sum())
        still &= ~full
