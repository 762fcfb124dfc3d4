"""seed: hierarchical k-means over the fit's blocks; the coarse level is kept once it is done."""

from __future__ import annotations

import math
from typing import Any

from rrcluster.compute import Progress
from rrcluster.core.kmeans import SeedingSpec, Seeds, hierarchical
from rrcluster.core.shards import Shards
from rrcluster.records import UserError
from rrcluster.stages.run import Run
from rrcluster.stages.tensors import read_tensors, write_tensors

SEEDS = "model/seed/seeds.safetensors"
CELLS = "model/seed/cells.safetensors"


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


def seed(run: Run, shards: Shards, progress: Progress) -> Seeds:
    """Hierarchical k-means; the coarse level is kept as soon as it is done."""
    store, spec = run.store, run.config.seeding
    if store.exists(SEEDS):
        return Seeds(**read_tensors(store, SEEDS))
    cells = read_tensors(store, CELLS)["cells"] if store.exists(CELLS) else None

    def report(level: int, iteration: int, inertia: float) -> None:
        progress("seed", iteration, spec.iterations, f"level {level}, inertia {inertia:.4f}",
                 inertia=inertia)  # fmt: skip

    seeds = hierarchical(
        shards,
        leaves_wanted(run.config.k, shards.num_rows, spec),
        spec,
        run.config.seed,
        report,
        cells,
        lambda found: write_tensors(store, CELLS, {"cells": found}),
    )
    wanted = finest(run.config.k)
    if wanted is not None and len(seeds.leaves) < wanted:
        raise UserError(
            "k", run.config.k, f"the corpus has only {len(seeds.leaves)} distinct vectors"
        )
    write_tensors(store, SEEDS, vars(seeds))
    return seeds
