"""seed → refine → count: the stages that the coordinator steers, against blocks of the fit.

Each publishes its artifact last and is skipped when that is there, so a coordinator that was lost
goes on at the level or the cell that it was working on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrcluster.compute import Compute, Progress
from rrcluster.core.assign import calibrate
from rrcluster.core.count import (
    MergeSpace,
    bootstrap_range,
    cut,
    enough_data,
    estimate,
    group_rates,
    merge_tree,
    moments,
)
from rrcluster.core.forest import Forest, levels_for, nested_paths
from rrcluster.core.gate import GateEvent
from rrcluster.core.kmeans import SeedingSpec, Seeds, hierarchical, nearest
from rrcluster.core.model import CellModel
from rrcluster.core.refine import refine
from rrcluster.core.shards import MemoryShards, Shards
from rrcluster.io.store import Store
from rrcluster.io.tensors import read_arrays, write_arrays
from rrcluster.records import UserError
from rrcluster.stages.run import Record, Run
from rrcluster.stages.select import INDEX, LoadBlock

SEEDS = "model/seed/seeds.safetensors"
CELLS = "model/seed/cells.safetensors"
ROWS = "model/seed/rows-{:05d}.npy"
HISTORY = "model/refine/history.json"
CURVE = "model/count/curve.json"
FOREST = "model/count/forest.safetensors"


def fit(run: Run, compute: Compute, record: Record, progress: Progress) -> None:
    """Run seed, refine and count in the coordinator, and record each."""
    try:
        found = compute.coordinate(Fit(run), progress)
    except BaseException:
        marks = {"seed": SEEDS, "refine": HISTORY, "count": FOREST}
        record.stage_failed(next((n for n, m in marks.items() if not run.store.exists(m)), "count"))
        raise
    for name, (seconds, counts) in found.items():
        if not record.is_done(name):
            record.stage_done(name, seconds, counts)
    record.note("levels", found["count"][1]["levels"])


@dataclass(frozen=True)
class Fit:
    """The task that a coordinator runs; answers with (seconds, counts) of each stage."""

    run: Run

    def __call__(self, compute: Compute, progress: Progress) -> dict[str, tuple[float, Any]]:
        store, clock = self.run.store, time.monotonic
        times = [clock()] * 4
        if not store.exists(FOREST):
            index = store.read_json(INDEX)
            with compute.hold(LoadBlock.of(self.run), index["blocks"]) as shards:
                seeds = seed(self.run, shards, progress)
                times[1:] = [clock()] * 3
                models = refine_cells(self.run, compute, shards, seeds, progress)
                times[2:] = [clock()] * 2
                count(self.run, shards, seeds, models, progress)
                times[3] = clock()
        seconds = [b - a for a, b in pairwise(times)]
        curve, history = store.read_json(CURVE), store.read_json(HISTORY)
        accepted = sum(e["accepted"] for e in history)
        cells = len(read_arrays(store, SEEDS)["cells"])
        return {
            "seed": (seconds[0], {"cells": cells, "leaves": len(curve["clusters"])}),
            "refine": (
                seconds[1],
                {"cells": cells, "accepted": accepted, "refused": len(history) - accepted},
            ),
            "count": (seconds[2], {"estimate": curve["estimate"], "levels": curve["chosen"]}),
        }


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
        return Seeds(**_tensors(read_arrays(store, SEEDS)))
    cells = torch.from_numpy(read_arrays(store, CELLS)["cells"]) if store.exists(CELLS) else None

    def report(level: int, iteration: int, inertia: float) -> None:
        progress("seed", iteration, spec.iterations, f"level {level}, inertia {inertia:.4f}")

    seeds = hierarchical(
        shards,
        leaves_wanted(run.config.k, shards.num_rows, spec),
        spec,
        run.config.seed,
        report,
        cells,
        lambda found: write_arrays(store, CELLS, {"cells": found.numpy()}),
    )
    wanted = finest(run.config.k)
    if wanted is not None and len(seeds.leaves) < wanted:
        raise UserError(
            "k", run.config.k, f"the corpus has only {len(seeds.leaves)} distinct vectors"
        )
    write_arrays(store, SEEDS, _arrays(vars(seeds)))
    return seeds


def refine_cells(
    run: Run, compute: Compute, shards: Shards, seeds: Seeds, progress: Progress
) -> list[CellModel]:
    """Refine each subtree. One cell runs on the held blocks; many run in parallel, each whole."""
    cells = len(seeds.cells)
    work = RefineCell(run, seeds, LoadBlock.of(run).blocks)
    if cells == 1:
        work.publish(0, shards, progress)
    else:
        todo = [c for c in range(cells) if not run.store.exists(_cell_name(c))]
        blocks = list(range(work.blocks))
        for _ in compute.map(SplitByCell(LoadBlock.of(run), seeds), blocks if todo else []):
            pass
        for done, _ in enumerate(compute.map(work, todo), cells - len(todo) + 1):
            progress("refine", done, cells, "subtrees")
    history = [e for c in range(cells) for e in run.store.read_json(_history_name(c))]
    run.store.write_json(HISTORY, history)
    return [read_cell(run.store, c) for c in range(cells)]


@dataclass(frozen=True)
class SplitByCell:
    """The rows of one block, sorted by cell, so that a cell reads only its slices."""

    load: LoadBlock
    seeds: Seeds

    def __call__(self, block: int) -> int:
        x = self.load(block)
        cell, _ = nearest(x, self.seeds.cells)
        order = cell.argsort(stable=True)
        ends = torch.bincount(cell, minlength=len(self.seeds.cells)).cumsum(0)
        name = ROWS.format(block)
        self.load.store.write_npy(f"{name}.ends.npy", ends.numpy())
        self.load.store.write_npy(name, x[order].numpy())
        return len(x)


@dataclass(frozen=True)
class RefineCell:
    """Refine one subtree and publish its model; the history comes first, the model last."""

    run: Run
    seeds: Seeds
    blocks: int

    def __call__(self, cell: int) -> int:
        rows = []
        for block in range(self.blocks):
            name = ROWS.format(block)
            ends = self.run.store.read_npy(f"{name}.ends.npy")
            start = int(ends[cell - 1]) if cell else 0
            part = self.run.store.read_npy(name, start, int(ends[cell]))
            rows.append(torch.from_numpy(np.array(part)))
        size = self.run.config.seeding.block_rows
        x = torch.cat(rows)
        self.publish(cell, MemoryShards(list(x.split(size)) or [x]))
        return cell

    def publish(self, cell: int, shards: Shards, progress: Progress | None = None) -> None:
        store, spec = self.run.store, self.run.config.refine
        if store.exists(_cell_name(cell)):
            return

        def report(event: GateEvent) -> None:
            if progress is not None:
                verdict = "accepted" if event.accepted else "refused"
                note = f"{event.step} {verdict}: consistency {event.before:.3f} → {event.after:.3f}"
                progress("refine", event.round, spec.rounds, note)

        seeds = self.seeds.of_cell(cell)
        k = finest(self.run.config.k)
        # Cells keep at least their share of the clusters asked for, so that merging can reach k.
        least = 1 if k is None else -(-k * len(seeds) // len(self.seeds.leaves))
        model, events = refine(shards, seeds, spec, self.run.config.seed, (cell,), report, least)
        store.write_json(
            _history_name(cell), [{"cell": cell} | dataclasses.asdict(e) for e in events]
        )
        write_arrays(store, _cell_name(cell), _arrays(model.tensors()))


def count(
    run: Run, shards: Shards, seeds: Seeds, models: list[CellModel], progress: Progress
) -> None:
    """Merge the leaves by coding length, choose the levels, and publish the forest."""
    progress("count", 0, None, "merging leaves by coding length")
    spec, asked = run.config.count, run.config.k
    space = MergeSpace.of(shards, seeds.cells, tuple(models), spec, run.config.seed)
    leaves = moments(shards, space)
    tree = merge_tree(leaves.mass, leaves.moments, spec.eps2, spec.neighbours, spec.shrinkage)
    found = estimate(tree)
    low, high = bootstrap_range(shards, space, spec)
    chosen = levels_for(asked, found)
    if chosen[-1] > tree.num_leaves:
        raise UserError("k", asked, f"refinement left {tree.num_leaves} clusters; ask for fewer")
    paths = nested_paths([cut(tree, k) for k in chosen])
    forest = Forest(seeds.cells, tuple(models), paths, 1.0)
    arrays = {"cells": seeds.cells.numpy(), "paths": paths.numpy()}
    arrays["temperature"] = np.array([calibrate_forest(forest, shards)], np.float32)
    for level in range(paths.shape[1]):
        arrays[f"rates.{level}"] = group_rates(leaves, paths[:, level], spec.eps2).numpy()
    run.store.write_json(
        CURVE,
        {
            "clusters": list(range(1, tree.num_leaves + 1)),
            "nats_per_sample": [round(float(v) / shards.num_rows, 6) for v in tree.lengths],
            "estimate": found,
            "low": min(low, found),
            "high": max(high, found),
            "enough_data": enough_data(leaves, found),
            "chosen": chosen,
            "asked": asked,
        },
    )
    write_arrays(run.store, FOREST, arrays)
    progress("count", 1, 1, f"{found} clusters (range {low} to {high}), levels {chosen}")


def calibrate_forest(forest: Forest, shards: Shards) -> float:
    """The temperature of the first cell's model; cells are alike in scale by construction."""
    first = forest.paths[: forest.first_leaf[1], -1]
    return calibrate(forest.models[0], shards, first)


def read_forest(store: Store) -> Forest:
    arrays = read_arrays(store, FOREST)
    cells = torch.from_numpy(arrays["cells"])
    models = tuple(read_cell(store, c) for c in range(len(cells)))
    return Forest(cells, models, torch.from_numpy(arrays["paths"]), float(arrays["temperature"][0]))


def read_rates(store: Store) -> list[npt.NDArray[np.float32]]:
    """Coding rate (nats per sample) of each cluster, per level."""
    arrays = read_arrays(store, FOREST)
    return [arrays[f"rates.{level}"] for level in range(arrays["paths"].shape[1])]


def read_cell(store: Store, cell: int) -> CellModel:
    return CellModel.from_tensors(_tensors(read_arrays(store, _cell_name(cell))))


def _cell_name(cell: int) -> str:
    return f"model/refine/cell-{cell:05d}.safetensors"


def _history_name(cell: int) -> str:
    return f"model/refine/cell-{cell:05d}.json"


def _arrays(tensors: dict[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {name: t.detach().cpu().numpy() for name, t in tensors.items()}


def _tensors(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(a) for name, a in arrays.items()}
