"""The label-free judge: do neighbours in the raw embedding get the same cluster?

ΔR grows while accuracy falls, so nothing is selected by it. The share of a row's nearest neighbours
(exact, in the raw embedding, on a fixed sample) that carry its label follows accuracy best of the
signals tried; corrected for chance it cannot be raised by making clusters larger.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.shards import Shards

KERNELS = {"AVX512": "SkylakeX", "AVX2": "Haswell"}  # OpenBLAS's names for what torch finds


@dataclass(frozen=True)
class Probe:
    """A uniform sample of rows and the indices of each one's nearest other rows in the sample."""

    x: Float[Tensor, "m d"]
    neighbours: Int[Tensor, "m j"]

    @staticmethod
    def of(shards: Shards, rows: int, neighbours: int) -> Probe:
        return Probe.of_rows(shards.head(rows), neighbours)

    @staticmethod
    def of_rows(x: Float[Tensor, "m d"], neighbours: int) -> Probe:
        return Probe(x, nearest_others(x, neighbours))

    def same(self, labels: Int[Tensor, " m"]) -> float:
        """Share of (row, neighbour) pairs with one label; 1 without pairs."""
        if self.neighbours.numel() == 0:
            return 1.0
        return float((labels[self.neighbours] == labels[:, None]).double().mean())

    def consistency(self, labels: Int[Tensor, " m"]) -> float:
        """(same − chance)/(1 − chance) with chance = Σ_k p_k²; 0 for one cluster."""
        shares = torch.bincount(labels).double() / max(len(labels), 1)
        chance = float(shares.square().sum())
        return (self.same(labels) - chance) / (1 - chance) if chance < 1 else 0.0


def nearest_others(x: Float[Tensor, "m d"], neighbours: int) -> Int[Tensor, "m j"]:
    """Exact nearest other rows by inner product, (m, min(neighbours, m − 1))."""
    count = max(min(neighbours, len(x) - 1), 0)
    if count == 0:
        return torch.zeros(len(x), 0, dtype=torch.int64)
    rows, faiss = x.float().numpy(), _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())  # one, where results must not depend on it
    _, indices = faiss.knn(rows, rows, count + 1, metric=faiss.METRIC_INNER_PRODUCT)
    found = torch.from_numpy(indices).long()
    # The row itself goes last; among exact duplicates it may be missing, then the farthest goes.
    own = found == torch.arange(len(x))[:, None]
    others: Tensor = found.gather(1, own.int().argsort(dim=1, stable=True))[:, :count]
    return others


@lru_cache
def _faiss() -> ModuleType:
    """faiss, with products made for this CPU.

    Its OpenBLAS looks at the CPU when it is loaded, and takes its slowest kernels (a fifth of the
    speed) on one that it does not know by name; the environment may name others.
    """
    variable, known = "OPENBLAS_CORETYPE", KERNELS.get(torch.backends.cpu.get_cpu_capability())
    chosen = variable in os.environ or known is None
    if not chosen:
        os.environ[variable] = str(known)
    try:
        import faiss
    finally:
        if not chosen:
            del os.environ[variable]  # what else is loaded, or started, chooses for itself
    module: ModuleType = faiss
    return module
