"""The fit's rows by cell, through the store: a block's rows once in the order of their cells.

Whoever works on one cell reads its slice of every block; in block order these are in key order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rrcluster.compute import Compute
from rrcluster.core.hierarchy import RowsByCell
from rrcluster.io.store import Store
from rrcluster.stages.run import Run
from rrcluster.stages.select import LoadBlock

ROWS = "model/seed/rows-{:05d}.npy"
SPLIT = "model/seed/rows.json"


def split_by_cell(run: Run, compute: Compute, cells: Tensor) -> None:
    """Write every block's rows by cell, once; the mark comes last."""
    if run.store.exists(SPLIT):
        return
    load = LoadBlock.of(run)
    for _ in compute.map(SplitBlock(load, cells), list(range(load.blocks))):
        pass
    run.store.write_json(SPLIT, {"blocks": load.blocks, "cells": len(cells)})


@dataclass(frozen=True)
class SplitBlock:
    """Map: publish one block's rows in the order of their cells, after where each cell ends."""

    load: LoadBlock
    cells: Tensor

    def __call__(self, block: int) -> int:
        x, ends = RowsByCell(self.cells)(self.load(block))
        name = ROWS.format(block)
        self.load.store.write_npy(f"{name}.ends.npy", ends.numpy())
        self.load.store.write_npy(name, x.numpy())
        return len(x)


def rows_of_cell(store: Store, cell: int) -> Tensor:
    """The rows (n, d) float16 of one cell, in key order."""
    rows = []
    for block in range(store.read_json(SPLIT)["blocks"]):
        name = ROWS.format(block)
        ends = store.read_npy(f"{name}.ends.npy")
        start = int(ends[cell - 1]) if cell else 0
        rows.append(torch.from_numpy(np.array(store.read_npy(name, start, int(ends[cell])))))
    return torch.cat(rows)
