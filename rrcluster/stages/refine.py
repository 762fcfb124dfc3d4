"""refine: rate reduction within each subtree (cell); cells run in parallel, one is one retry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from rrcluster.compute import Compute, Progress
from rrcluster.core.forest import Before
from rrcluster.core.gate import GateEvent
from rrcluster.core.head import Training
from rrcluster.core.hierarchy import Seeds, largest_first, whole_blocks
from rrcluster.core.model import CellModel, under
from rrcluster.core.refine import Refined, refine, unrefined
from rrcluster.core.shards import Shards
from rrcluster.io.store import Store
from rrcluster.stages.cells import rows_of_cell, split_by_cell
from rrcluster.stages.run import Run
from rrcluster.stages.seed import finest
from rrcluster.stages.tensors import read_tensors, write_tensors

HISTORY = "model/refine/history.json"
TRAINING = "training."  # what tensors of a head in training are called by


def refine_cells(
    run: Run, compute: Compute, shards: Shards, seeds: Seeds, progress: Progress,
    start: Before | None = None,
) -> list[CellModel]:  # fmt: skip
    """Refine each subtree. One cell runs on the held blocks; many run in parallel, each whole."""
    cells = len(seeds.cells)
    work = RefineCell(run, seeds, start)
    if cells == 1:
        work.publish(0, shards, progress)
    else:
        ordered = largest_first(torch.bincount(seeds.cell_of_leaf, minlength=cells))
        todo = [c for c in ordered if not run.store.exists(_cell_name(c))]
        if todo:
            split_by_cell(run, compute, seeds.cells)
        for done, _ in enumerate(compute.map(work, todo), cells - len(todo) + 1):
            progress("refine", done, cells, "subtrees")
    history = [e for c in range(cells) for e in run.store.read_json(_history_name(c))]
    run.store.write_json(HISTORY, history)
    return [read_cell(run.store, c) for c in range(cells)]


@dataclass(frozen=True)
class RefineCell:
    """Refine one subtree and publish its model; the history comes first, the model last."""

    run: Run
    seeds: Seeds
    start: Before | None = None

    def __call__(self, cell: int) -> int:
        rows = rows_of_cell(self.run.store, cell)
        self.publish(cell, whole_blocks(rows, self.run.config.seeding))
        return cell

    def publish(self, cell: int, shards: Shards, progress: Progress | None = None) -> None:
        store, spec = self.run.store, self.run.config.refine
        if store.exists(_cell_name(cell)):
            return

        def report(event: GateEvent) -> None:
            if progress is not None:
                verdict = "accepted" if event.accepted else "refused"
                note = f"{event.step} {verdict}: consistency {event.before:.3f} → {event.after:.3f}"
                note = "; ".join((note, *event.alarms))
                facts = {"consistency": event.after, **event.extra}
                progress("refine", event.round, spec.rounds, note, **facts)

        seeds = self.seeds.of_cell(cell)
        if self.run.config.seeding.hierarchy == "bottom_up":
            store.write_json(_history_name(cell), [])
            write_tensors(store, _cell_name(cell), unrefined(shards, seeds, spec).tensors())
            return
        k = finest(self.run.config.k)
        # Cells keep at least their share of the clusters asked for, so that merging can reach k.
        least = 1 if k is None else -(-k * len(seeds) // len(self.seeds.leaves))
        model, events = refine(
            shards, seeds, spec, self.run.config.seed, (cell,), report, least,
            read_steps(store, cell), lambda so_far: write_steps(store, cell, so_far),
            self.start,
        )  # fmt: skip
        store.write_json(
            _history_name(cell), [{"cell": cell} | dataclasses.asdict(e) for e in events]
        )
        write_tensors(store, _cell_name(cell), model.tensors())


def write_steps(store: Store, cell: int, so_far: Refined) -> None:
    """Leave what has been reached; the tensors say how many of the steps they stand for."""
    store.write_json(f"{_steps_name(cell)}.json", [dataclasses.asdict(e) for e in so_far.events])
    tensors = so_far.model.tensors() | {"steps": torch.tensor([len(so_far.events)])}
    if so_far.training is not None:
        tensors[TRAINING + "step"] = torch.tensor([so_far.training.step])
        tensors |= {TRAINING + name: t for name, t in so_far.training.tensors.items()}
    write_tensors(store, f"{_steps_name(cell)}.safetensors", tensors)


def read_steps(store: Store, cell: int) -> Refined | None:
    """What an attempt that was cut short had reached."""
    if not store.exists(f"{_steps_name(cell)}.safetensors"):
        return None
    tensors = read_tensors(store, f"{_steps_name(cell)}.safetensors")
    count = int(tensors.pop("steps")[0])
    events = [
        GateEvent(**e | {"alarms": tuple(e["alarms"])})
        for e in store.read_json(f"{_steps_name(cell)}.json")[:count]
    ]
    within = under(tensors, TRAINING)
    training = Training(int(within.pop("step")[0]), within) if within else None
    return Refined(CellModel.from_tensors(tensors), tuple(events), training)


def read_cell(store: Store, cell: int) -> CellModel:
    return CellModel.from_tensors(read_tensors(store, _cell_name(cell)))


def _cell_name(cell: int) -> str:
    return f"model/refine/cell-{cell:05d}.safetensors"


def _steps_name(cell: int) -> str:
    return f"model/refine/cell-{cell:05d}.steps"


def _history_name(cell: int) -> str:
    return f"model/refine/cell-{cell:05d}.json"
