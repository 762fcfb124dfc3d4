"""seed → refine → count: the stages that the coordinator steers, against blocks of the fit.

Each publishes its artifact last and is skipped when that is there, so a coordinator that was lost
goes on at the level or the cell that it was working on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rrcluster.compute import Compute, Progress
from rrcluster.core.forest import Before
from rrcluster.io import tally
from rrcluster.io.tally import Tally
from rrcluster.stages.count import CURVE, FOREST, count
from rrcluster.stages.refine import HISTORY, refine_cells
from rrcluster.stages.run import Record, Run
from rrcluster.stages.seed import SEEDS, seed
from rrcluster.stages.select import INDEX, LoadBlock
from rrcluster.stages.tensors import read_tensors


def fit(
    run: Run,
    compute: Compute,
    record: Record,
    progress: Progress,
    start: Before | None = None,
) -> None:
    """Run seed, refine and count in the coordinator, and record each; a refit has a ``start``."""
    try:
        found = compute.coordinate(Fit(run, start), progress)
    except BaseException:
        marks = {"seed": SEEDS, "refine": HISTORY, "count": FOREST}
        record.stage_failed(next((n for n, m in marks.items() if not run.store.exists(m)), "count"))
        raise
    for name, (seconds, counts, moved) in found.items():
        if not record.is_done(name):
            record.stage_done(name, seconds, counts, moved)
    record.note("levels", found["count"][1]["levels"])


@dataclass(frozen=True)
class Fit:
    """The task that a coordinator runs; answers with (seconds, counts, moved) of each stage."""

    run: Run
    start: Before | None = None

    def __call__(self, compute: Compute, progress: Progress) -> dict[str, tuple[float, Any, Tally]]:
        store, clock = self.run.store, time.monotonic
        times, moved = [clock()] * 4, [tally.total()] * 4
        if not store.exists(FOREST):
            index = store.read_json(INDEX)
            with compute.hold(LoadBlock.of(self.run), index["blocks"]) as shards:
                seeds = seed(self.run, compute, shards, progress, self.start)
                times[1:], moved[1:] = [clock()] * 3, [tally.total()] * 3
                models = refine_cells(self.run, compute, shards, seeds, progress, self.start)
                times[2:], moved[2:] = [clock()] * 2, [tally.total()] * 2
                count(self.run, shards, seeds, models, progress, self.start)
                times[3], moved[3] = clock(), tally.total()
        seconds = [b - a for a, b in pairwise(times)]
        parts = [b - a for a, b in pairwise(moved)]
        curve, history = store.read_json(CURVE), store.read_json(HISTORY)
        accepted = sum(e["accepted"] for e in history)
        cells = len(read_tensors(store, SEEDS)["cells"])
        return {
            "seed": (seconds[0], {"cells": cells, "leaves": len(curve["clusters"])}, parts[0]),
            "refine": (
                seconds[1],
                {"cells": cells, "accepted": accepted, "refused": len(history) - accepted},
                parts[1],
            ),
            "count": (
                seconds[2],
                {"estimate": curve["estimate"], "levels": curve["chosen"]},
                parts[2],
            ),
        }
