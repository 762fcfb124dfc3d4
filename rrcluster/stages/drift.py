"""What drift is measured on: rows and outliers per cluster, of the fit and of new shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rrcluster.compute import Compute
from rrcluster.core.drift import OUTLIER
from rrcluster.core.forest import Forest, label
from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.stages.run import Run
from rrcluster.stages.select import INDEX, LoadBlock

FITTED = "model/recluster/fitted.json"
OPENED_FITTED = "novelty/fitted.json"
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """Rows and outliers per finest cluster (k,) among the rows of the fit: a bounded sample."""

    rows: Counts
    outliers: Counts


def fitted_counts(run: Run, compute: Compute, forest: Forest) -> Fitted:
    """Counted once per model, and per set of clusters opened since, and kept beside it."""
    name = FITTED if forest.novel is None else OPENED_FITTED
    if not run.store.exists(name):
        blocks = list(range(run.store.read_json(INDEX)["blocks"]))
        work = CountBlock(LoadBlock.of(run), forest)
        found = np.sum([part for _, part in compute.map(work, blocks)], axis=0)
        run.store.write_json(name, {"rows": found[0].tolist(), "outliers": found[1].tolist()})
    content = run.store.read_json(name)
    return Fitted(np.asarray(content["rows"], np.int64), np.asarray(content["outliers"], np.int64))


@dataclass(frozen=True)
class CountBlock:
    """Map: (2, k) rows and outliers per finest cluster of one fit block."""

    load: LoadBlock
    forest: Forest

    def __call__(self, block: int) -> Counts:
        found = label(self.forest, self.load(block))
        return _count(
            found.path[:, -1].numpy(), found.outlier.numpy(), self.forest.clusters_per_level[-1]
        )


@dataclass(frozen=True)
class CountFile:
    """Map: (2, k) rows and outliers per finest cluster of one assignment table."""

    store: Store
    ids: Counts  # of the finest clusters, ascending or not
    column: str

    def __call__(self, name: str) -> Counts:
        table = tables.read_table(self.store, name, [self.column, "outlier"])
        place = {int(c): i for i, c in enumerate(self.ids)}
        finest = np.array([place[c] for c in table[self.column].to_pylist()], np.int64)
        return _count(finest, table["outlier"].to_numpy(), len(self.ids))


def new_counts(store: Store, compute: Compute, folder: str, ids: Counts, levels: int) -> Counts:
    """(2, k) rows and outliers per finest cluster of everything in a folder of assignments."""
    names = [f"{folder}/{n}" for n in sorted(store.names(folder, ".parquet"))]
    for cell in sorted(store.folders(folder)):
        inside = f"{folder}/{cell}"
        names += [f"{inside}/{n}" for n in sorted(store.names(inside, ".parquet"))]
    found = compute.map(CountFile(store, ids, f"level_{levels - 1}"), names)
    total = np.zeros((2, len(ids)), np.int64)
    for _, part in found:
        total += part
    return total


def _count(finest: npt.NDArray[np.int64], outlier: npt.NDArray[np.float32], k: int) -> Counts:
    loud = finest[outlier > OUTLIER]
    return np.stack([np.bincount(finest, minlength=k), np.bincount(loud, minlength=k)])
