"""How many clusters: leaves' moments in one space, their merge tree, and the range of its estimate.

All in one pass over the rows. The range is a bootstrap: each replicate weights a row by a
Poisson(1) number drawn from a hash of the row's own bytes, so it does not depend on how rows are
cut into blocks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.cells import routed
from rrcluster.core.features import FeatureMap, fit_projection
from rrcluster.core.merge import MergeTree, cut, estimate, group_sums, lengths_along, merge_tree
from rrcluster.core.model import CellModel, features_of, moments_by_label
from rrcluster.core.rate import moment_rates
from rrcluster.core.shards import Shards
from rrcluster.records import setting

__all__ = [
    "CountSpec", "LeafMoments", "MergeSpace", "MergeTree", "bootstrap_counts", "bootstrap_range",
    "cut", "enough_data", "estimate", "group_rates", "group_sums", "merge_tree", "moments",
    "resampled",
]  # fmt: skip


@dataclass
class CountSpec:
    """Settings of the count: the merge tree over the leaves."""

    width: int = setting(96, "width of the space in which leaves of several cells are compared")
    eps2: float = setting(0.5, "squared coding error of the lengths; smaller finds more clusters")
    shrinkage: float = setting(1000.0, "pseudo-rows of shared spread in each cluster's length")
    neighbours: int = setting(16, "most similar clusters that each one may merge with")
    criteria_rows: int = setting(2000, "rows that silhouette, elbow and gap look at for comparison")
    replicates: int = setting(8, "bootstrap replicates behind the range of the estimate")


@dataclass(frozen=True)
class LeafMoments:
    """Mass (k,) and moments (k, e, e) of all leaves of all cells, float64."""

    mass: Float[Tensor, " k"]
    moments: Float[Tensor, "k e e"]

    @staticmethod
    def none(k: int, e: int) -> LeafMoments:
        """Those of no rows."""
        return LeafMoments(
            torch.zeros(k, dtype=torch.float64), torch.zeros(k, e, e, dtype=torch.float64)
        )

    def add(self, z: Tensor, leaf: Tensor, weight: Tensor | None) -> None:
        """Take a block's rows in, each once or ``weight`` (n,) times; in place."""
        k = len(self.mass)
        self.mass.add_(torch.bincount(leaf, weights=weight, minlength=k))
        rows = z if weight is None else z * weight.sqrt().float()[:, None]
        for label, second in moments_by_label(rows, leaf, k):
            self.moments[label] += second


@dataclass(frozen=True)
class MergeSpace:
    """Where leaves of different cells can be compared, and how a row finds its leaf."""

    cells: Float[Tensor, "c d"]
    models: tuple[CellModel, ...]
    features: FeatureMap
    seed: int

    @staticmethod
    def of(
        shards: Shards,
        cells: Float[Tensor, "c d"],
        models: tuple[CellModel, ...],
        spec: CountSpec,
        seed: int,
    ) -> MergeSpace:
        """The refined features of the only cell; a projection of their own for several cells."""
        one = len(models) == 1
        features = models[0].features if one else fit_projection(shards, spec.width)
        return MergeSpace(cells, models, features, seed)

    @property
    def num_leaves(self) -> int:
        return sum(model.num_leaves for model in self.models)

    def z(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Rows in the space in which leaves are compared."""
        return features_of(self.features, x)

    def leaf(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The leaf of each row, numbered over all cells."""
        sizes = torch.tensor([model.num_leaves for model in self.models])
        first = (sizes.cumsum(0) - sizes).tolist()
        (leaf,) = routed(
            self.cells, x, lambda c, rows: (self.models[c].cheapest(rows)[0] + first[c],)
        )
        return leaf


@dataclass(frozen=True)
class LeafRows:
    """Map: leaf (n,) and features (n, e) of a block's rows, and their weights (b, n) uint8 in each
    replicate."""

    space: MergeSpace
    replicates: int

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf, z = self.space.leaf(x), features_of(self.space.features, x)
        hashes = content_hashes(x) if self.replicates else np.zeros(len(x), np.uint64)
        weights = torch.empty(self.replicates, len(x), dtype=torch.uint8)
        for replicate in range(self.replicates):
            weights[replicate] = poisson_weights(hashes, self.space.seed, replicate + 1)
        return leaf, z, weights


def moments(shards: Shards, space: MergeSpace) -> LeafMoments:
    """Mass and moments of all leaves."""
    return resampled(shards, space, 0)[0]


def resampled(shards: Shards, space: MergeSpace, replicates: int) -> list[LeafMoments]:
    """Mass and moments of all leaves, then those of each bootstrap replicate, in one pass.

    Blocks answer with rows and not with moments: n e numbers, where (b + 1) k e² would be a hundred
    times as many at the usual sizes.
    """
    k, sums = space.num_leaves, list[LeafMoments]()
    with ThreadPoolExecutor(
        shards.workers, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for leaf, z, weights in shards.map(LeafRows(space, replicates)):
            if not sums:
                e = z.shape[1]
                sums = [LeafMoments.none(k, e) for _ in range(replicates + 1)]
            weighted = [None, *weights.double()]
            list(pool.map(partial(_add, z, leaf), sums, weighted))
    return sums


def _add(z: Tensor, leaf: Tensor, sums: LeafMoments, weight: Tensor | None) -> None:
    sums.add(z, leaf, weight)


def bootstrap_range(
    tree: MergeTree, replicates: list[LeafMoments], spec: CountSpec
) -> tuple[int, int]:
    """The tree's estimate, moved by how far the replicates' lie below and above their median.

    Repeated rows make clusters look tighter than they are, so resampled estimates lie too high by
    an amount that they share (food photos: 25 to 28 around an estimate of 17); their spread is
    what they can tell.
    """
    middle, others = estimate(tree), bootstrap_counts(tree, replicates, spec)
    if not others:
        return middle, middle
    median = sorted(others)[len(others) // 2]
    return max(1, middle + min(others) - median), middle + max(others) - median


def bootstrap_counts(tree: MergeTree, parts: list[LeafMoments], spec: CountSpec) -> list[int]:
    """The estimate of each resampling, along the merges of ``tree``."""
    return [
        int(lengths_along(tree, p.mass, p.moments, spec.eps2, spec.shrinkage).argmin()) + 1
        for p in parts
    ]


def content_hashes(x: Float[Tensor, "n d"]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each row's float16 bytes."""
    rows = np.ascontiguousarray(x.numpy().astype(np.float16, copy=False))
    return np.array([xxhash.xxh3_64_intdigest(row) for row in rows], dtype=np.uint64)


def poisson_weights(
    hashes: npt.NDArray[np.uint64], seed: int, replicate: int
) -> Float[Tensor, " n"]:
    """Poisson(1) numbers (the bootstrap's limit), one per row, by inversion of a uniform hash."""
    ids = np.stack([hashes, hashes], 1).view(np.uint8)
    uniform = keys.row_keys(ids, seed, f"bootstrap/{replicate}").astype(np.float64) / keys.KEY_SPAN
    below = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, 1, 2, 3, 4, 5, 6, 7]))
    return torch.from_numpy((uniform[:, None] >= below).sum(1).astype(np.float64))


def group_rates(found: LeafMoments, groups: Int[Tensor, " k"], eps2: float) -> Float[Tensor, " g"]:
    """Coding rate of each group of leaves, nats per sample."""
    return moment_rates(*group_sums(found.mass, found.moments, groups), eps2).float()


def enough_data(found: LeafMoments, clusters: int) -> bool:
    """Whether the estimate has enough rows to stand on: at least e rows per cluster.

    A cluster's first direction alone has e numbers, whatever its spread borrows from the others.
    """
    return float(found.mass.sum()) / max(clusters, 1) >= found.moments.shape[-1]
