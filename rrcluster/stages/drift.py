"""What drift is measured on: sums per cluster, of the fit's rows and of new shards' rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrcluster.compute import Compute, in_order
from rrcluster.core.drift import Sums, sums_of
from rrcluster.core.forest import Forest, label
from rrcluster.io.store import Store
from rrcluster.stages.count import OPENED
from rrcluster.stages.run import Run
from rrcluster.stages.select import INDEX, LoadBlock
from rrcluster.stages.tensors import read_tensors, write_tensors

FITTED = "model/recluster/fitted.safetensors"
OPENED_FITTED = "novelty/fitted.safetensors"


def fitted_sums(run: Run, compute: Compute, forest: Forest) -> Sums:
    """Of the fit's rows, a bounded sample: counted once per model (and version of its clusters)."""
    name = OPENED_FITTED if run.store.exists(OPENED) else FITTED
    if not run.store.exists(name):
        blocks = list(range(run.store.read_json(INDEX)["blocks"]))
        found = _added(compute, forest, LoadBlock.of(run), blocks)
        write_tensors(run.store, name, {n: torch.from_numpy(a) for n, a in vars(found).items()})
    return Sums(**{n: t.numpy() for n, t in read_tensors(run.store, name).items()})


def new_sums(run: Run, compute: Compute, forest: Forest) -> Sums:
    """Of all rows of the run's (new) shards."""
    return _added(compute, forest, LoadShard(run.store), [s.name for s in run.shards])


@dataclass(frozen=True)
class LoadShard:
    """The vectors of one shard, (n, d) float16."""

    store: Store

    def __call__(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.store.read_npy(f"embeddings/{name}.npy")))


@dataclass(frozen=True)
class SumRows:
    """Map: the finest clusters of the rows of one block or shard, and their sums."""

    load: Callable[[Any], Tensor]
    forest: Forest

    def __call__(self, item: Any) -> tuple[np.ndarray, Sums]:
        x = self.load(item)
        found = label(self.forest, x)
        finest = found.path[:, -1].numpy()
        present, place = np.unique(finest, return_inverse=True)
        return present, sums_of(x.numpy(), place, len(present), found.outlier, found.cost)


def _added(
    compute: Compute, forest: Forest, load: Callable[[Any], Tensor], items: Sequence[Any]
) -> Sums:
    """Sums over all items, added in their order."""
    total = Sums.none(forest.clusters_per_level[-1], forest.cells.shape[1])
    for present, part in in_order(compute.map(SumRows(load, forest), list(items))):
        total.add(present, part)
    return total
