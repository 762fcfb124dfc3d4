"""seed: hierarchical k-means over the fit's blocks; the coarse level is kept once it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rrcluster.compute import Compute, Progress
from rrcluster.core.bottom_up import bottom_up
from rrcluster.core.costs import Fit, kmeans_traffic
from rrcluster.core.forest import Before
from rrcluster.core.hierarchy import (
    Seeds,
    largest_first,
    leaves_of_cell,
    top_down,
    whole_blocks,
)
from rrcluster.core.kmeans import SeedingSpec, State
from rrcluster.core.shards import Shards
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.stages.cells import rows_of_cell, split_by_cell
from rrcluster.stages.levels import LEVEL, PATHS, levels_of, nested
from rrcluster.stages.run import Run
from rrcluster.stages.tensors import read_tensors, write_tensors

SEEDS = "model/seed/seeds.safetensors"
CELLS = "model/seed/cells.safetensors"
LEAVES = "model/seed/leaves-{:05d}.safetensors"
STATE = "model/seed/passes.safetensors"
CROWDED = 1.5  # times seeding.cell_leaves: leaves per cell until which a refit keeps its cells
CHECKPOINT_PASSES = 3  # Lloyd passes between two that are kept


def leaves_wanted(k: str | int | list[int], rows: int, spec: SeedingSpec) -> int:
    """Leaves to seed. Raises UserError when more clusters are asked for than there are rows."""
    wanted = finest(k)
    if wanted is None:
        return min(max(rows // spec.auto_leaf_rows, 8), spec.auto_max_leaves, rows)
    if wanted > rows:
        raise UserError("k", k, f"the corpus has {rows} distinct samples to fit on; ask for fewer")
    return min(math.ceil(wanted * spec.oversegment), rows)


def finest(k: Any) -> int | None:
    """The number of clusters asked for at the finest level; None for ``auto``."""
    if k == "auto":
        return None
    return int(k[-1] if isinstance(k, list) else k)


def seed(
    run: Run, compute: Compute, shards: Shards, progress: Progress, start: Before | None = None
) -> Seeds:
    """Hierarchical k-means; kept are the coarse level, each cell's leaves, and every few passes.

    A refit that ``start``s from clusters cuts its rows into the cells that these were found in, as
    long as not many more are needed: a row of another cell could not stay where it was.
    """
    store, spec = run.store, run.config.seeding
    if store.exists(SEEDS):
        return Seeds(**read_tensors(store, SEEDS))
    if spec.hierarchy == "bottom_up":
        seeds = _bottom_up(run, shards, progress)
        write_tensors(store, SEEDS, vars(seeds))
        return seeds
    leaves = leaves_wanted(run.config.k, shards.num_rows, spec)
    cells = read_tensors(store, CELLS)["cells"] if store.exists(CELLS) else None
    if cells is None and start is not None and len(start.forest.cells) > 1:
        most = CROWDED * spec.cell_leaves * len(start.forest.cells)
        cells = start.forest.cells if leaves <= most else None

    clock = PassClock(shards.width, stored=compute.stored_bytes)

    def on_pass(state: State, inertia: float) -> None:
        rows, k = sum(shards.rows_per_block[: state.blocks]), len(state.centroids)
        size = Fit(float(rows), float(spec.block_rows), shards.width, k, k)
        traffic = kmeans_traffic(size, compute.workers).made + 4.0 * k * shards.width
        told = clock.told(rows, k, traffic)  # answers, and the centroids that all read
        words = f"pass over {rows:,} rows, {k:,} centroids"
        note = f"{words}, inertia {inertia:.4f}{told}"
        progress("seed", state.iteration, spec.iterations, note, inertia=inertia)
        if state.iteration and state.iteration % CHECKPOINT_PASSES == 0:
            numbers = torch.tensor([state.iteration, state.blocks])
            write_tensors(store, STATE, {"state": numbers, "centroids": state.centroids})

    def fit_cells(cells: Tensor, shares: Tensor) -> Iterator[Tensor]:
        split_by_cell(run, compute, cells)
        work = FitCell(run, cells, shares)
        todo = [c for c in largest_first(shares) if not store.exists(LEAVES.format(c))]
        for done, _ in enumerate(compute.map(work, todo), len(cells) - len(todo) + 1):
            progress("seed", done, len(cells), "cells")
        return (read_tensors(store, LEAVES.format(c))["leaves"] for c in range(len(cells)))

    seeds = top_down(
        shards,
        leaves,
        spec,
        run.config.seed,
        on_pass,
        cells,
        _state(store) if cells is None else None,
        lambda found: write_tensors(store, CELLS, {"cells": found}),
        fit_cells,
    )
    wanted = finest(run.config.k)
    if wanted is not None and len(seeds.leaves) < wanted:
        raise UserError(
            "k", run.config.k, f"the corpus has only {len(seeds.leaves)} distinct vectors"
        )
    write_tensors(store, SEEDS, vars(seeds))
    return seeds


def _bottom_up(run: Run, shards: Shards, progress: Progress) -> Seeds:
    """The finest level of ``k``; every level is kept once it is done, the paths at the end."""
    # No refinement follows: what counts is the lowest inertia, of small fits as well.
    store, spec = run.store, replace(run.config.seeding, anneal_from=0)
    levels = levels_of(run.config.k, spec, shards.num_rows)
    names = [LEVEL.format(number) for number in range(len(levels))]
    done = [Seeds(**read_tensors(store, name)) for name in names if store.exists(name)]

    def on_level(number: int, found: Seeds) -> None:
        write_tensors(store, names[number], vars(found))
        note = f"{len(found.leaves):,} clusters, {levels[number].resamplings} resamplings"
        progress("seed", number + 1, len(levels), note)

    found = bottom_up(shards, levels, spec, run.config.seed, done, on_level)
    write_tensors(store, PATHS, {"paths": nested(found.paths)})
    return found.seeds


@dataclass(frozen=True)
class FitCell:
    """Map: publish the leaves of one cell, split on its own."""

    run: Run
    cells: Tensor
    shares: Tensor

    def __call__(self, cell: int) -> int:
        store, spec = self.run.store, self.run.config.seeding
        rows = whole_blocks(rows_of_cell(store, cell), spec)
        share = int(self.shares[cell])
        found = leaves_of_cell(rows, cell, self.cells[cell], share, spec, self.run.config.seed)
        write_tensors(store, LEAVES.format(cell), {"leaves": found})
        return cell


class PassClock:
    """Seconds of each pass beside those that its work, 2 n d k operations, foretells, and bytes
    that went between workers beside those that ``costs.kmeans_traffic`` does.

    The rate is that of the pass before: one that lags shows where a pass waits for something else.
    """

    def __init__(
        self,
        d: int,
        now: Callable[[], float] = time.monotonic,
        stored: Callable[[], int] = lambda: 0,
    ) -> None:
        self._d, self._now, self._stored = d, now, stored
        self._last: float | None = None
        self._rate, self._stored_before = 0.0, 0

    def told(self, rows: int, k: int, traffic: float = 0.0) -> str:
        """Words on the pass that has just ended; the first one also had the starting fit in it."""
        now, work, stored = self._now(), 2.0 * rows * self._d * k, self._stored()
        words = ""
        if self._last is not None:
            seconds = max(now - self._last, 1e-9)
            words = f", {seconds:.1f} s for {work:.1e} operations"
            if self._rate:
                words += f" (predicted {work / self._rate:.1f} s)"
            if stored:
                moved = (stored - self._stored_before) / 1e6
                words += f", {moved:.1f} MB between workers (predicted {traffic / 1e6:.1f} MB)"
            self._rate = work / seconds
        self._last, self._stored_before = now, stored
        return words


def _state(store: Store) -> State | None:
    """The last pass that was kept, if any."""
    if not store.exists(STATE):
        return None
    found = read_tensors(store, STATE)
    iteration, blocks = found["state"].tolist()
    return State(iteration, blocks, found["centroids"])
