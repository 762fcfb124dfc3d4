"""refine: rate reduction within each subtree (cell); cells run in parallel, one is one retry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from rrcluster.compute import Compute, Progress
from rrcluster.core.cells import nearest
from rrcluster.core.gate import GateEvent
from rrcluster.core.kmeans import Seeds
from rrcluster.core.model import CellModel
from rrcluster.core.refine import refine
from rrcluster.core.shards import MemoryShards, Shards
from rrcluster.io.store import Store
from rrcluster.stages.run import Run
from rrcluster.stages.seed import finest
from rrcluster.stages.select import LoadBlock
from rrcluster.stages.tensors import read_tensors, write_tensors

ROWS = "model/seed/rows-{:05d}.npy"
HISTORY = "model/refine/history.json"


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
                facts = {"consistency": event.after, **event.extra}
                progress("refine", event.round, spec.rounds, note, **facts)

        seeds = self.seeds.of_cell(cell)
        k = finest(self.run.config.k)
        # Cells keep at least their share of the clusters asked for, so that merging can reach k.
        least = 1 if k is None else -(-k * len(seeds) // len(self.seeds.leaves))
        model, events = refine(shards, seeds, spec, self.run.config.seed, (cell,), report, least)
        store.write_json(
            _history_name(cell), [{"cell": cell} | dataclasses.asdict(e) for e in events]
        )
        write_tensors(store, _cell_name(cell), model.tensors())


def read_cell(store: Store, cell: int) -> CellModel:
    return CellModel.from_tensors(read_tensors(store, _cell_name(cell)))


def _cell_name(cell: int) -> str:
    return f"model/refine/cell-{cell:05d}.safetensors"


def _history_name(cell: int) -> str:
    return f"model/refine/cell-{cell:05d}.json"
