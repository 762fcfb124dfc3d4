"""How many clusters: leaves' moments in one space, their merge tree, and the range of its estimate.

Rows are described in one pass and sorted by leaf. The range is a bootstrap: each replicate weights
a row by a Poisson(1) number drawn from a hash of the row's own bytes, so it does not depend on how
rows are cut into blocks.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.cells import routed
from rrcluster.core.codes import first_lines
from rrcluster.core.features import FeatureMap, fit_projection
from rrcluster.core.merge import MergeTree, cut, estimate, group_sums, lengths_along, merge_tree
from rrcluster.core.model import CellModel, features_of, moments_by_label
from rrcluster.core.rate import moment_rates
from rrcluster.core.shards import Shards
from rrcluster.records import setting

__all__ = [
    "CountSpec", "LeafMoments", "LeafRows", "MergeSpace", "MergeTree", "bootstrap_counts",
    "bootstrap_range", "cut", "enough_data", "estimate", "group_rates", "group_sums", "merge_tree",
]  # fmt: skip

TOGETHER = 2  # replicates that are walked through the tree at once


@dataclass
class CountSpec:
    """Settings of the count: the merge tree over the leaves."""

    width: int = setting(96, "width of the space in which leaves of several cells are compared")
    eps2: float = setting(0.5, "squared coding error of the lengths; smaller finds more clusters")
    shrinkage: float = setting(1000.0, "pseudo-rows of shared spread in each cluster's length")
    neighbours: int = setting(8, "most similar clusters that each one may merge with")
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

    def add(self, z: Tensor, leaf: Tensor) -> None:
        """Take a block's rows in; in place."""
        k = len(self.mass)
        self.mass.add_(torch.bincount(leaf, minlength=k))
        for label, second in moments_by_label(z, leaf, k):
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
class Described:
    """Map: leaf (n,), features (n, e) and, where they are wanted, hashes (n,) of a block's rows."""

    space: MergeSpace
    hashed: bool

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, npt.NDArray[np.uint64]]:
        hashes = content_hashes(x) if self.hashed else np.zeros(0, np.uint64)
        return self.space.leaf(x), self.space.z(x), hashes


@dataclass(frozen=True)
class LeafRows:
    """The fit's rows by leaf: those of leaf i are ``first[i]`` to ``first[i + 1]``, in row order.

    ``weights`` says how often each bootstrap replicate has a row. Moments of a leaf are computed
    when they are asked for: n·(4 e + b) bytes, where those of all leaves in all replicates would be
    8 b k e².
    """

    z: Float[Tensor, "n e"]
    first: Int[Tensor, " k_1"]
    weights: UInt8[Tensor, "b n"]

    @staticmethod
    def of(shards: Shards, space: MergeSpace, replicates: int = 0) -> LeafRows:
        """In one pass; blocks answer with rows."""
        n = shards.num_rows
        leaf, z = torch.empty(n, dtype=torch.int64), torch.empty(n, space.features.width)
        hashes, start = np.empty(n if replicates else 0, np.uint64), 0
        for labels, rows, hashed in shards.map(Described(space, replicates > 0)):
            end = start + len(labels)
            leaf[start:end], z[start:end], hashes[start:end] = labels, rows, hashed
            start = end
        order = leaf.argsort(stable=True)
        counts = torch.bincount(leaf, minlength=space.num_leaves)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        weights = torch.empty(replicates, n, dtype=torch.uint8)
        for replicate in range(replicates):
            weights[replicate] = poisson_weights(hashes, space.seed, replicate + 1)[order]
        return LeafRows(z[order], first, weights)

    def moments(self) -> LeafMoments:
        """Mass and moments of all leaves."""
        k, e = len(self.first) - 1, self.z.shape[1]
        found = torch.zeros(k, e, e, dtype=torch.float64)
        for leaf, (start, end) in enumerate(itertools.pairwise(self.first.tolist())):
            rows = self.z[start:end]
            found[leaf] = rows.T @ rows
        return LeafMoments(self.first.diff().double(), found)

    def resampled(self, leaf: int, replicates: slice) -> tuple[Tensor, Tensor]:
        """Mass (b,) and moments (b, e, e) of a leaf in some replicates, float64."""
        rows = slice(int(self.first[leaf]), int(self.first[leaf + 1]))
        weights, z = self.weights[replicates, rows].float(), self.z[rows]
        return weights.sum(1).double(), ((z.T * weights[:, None]) @ z).double()


def bootstrap_range(tree: MergeTree, counts: list[int]) -> tuple[int, int]:
    """The tree's estimate, moved by how far the replicates' lie below and above their median.

    Repeated rows make clusters look tighter than they are, so resampled estimates lie too high by
    an amount that they share (food photos: 25 to 28 around an estimate of 17); their spread is
    what they can tell.
    """
    middle = estimate(tree)
    if not counts:
        return middle, middle
    median = sorted(counts)[len(counts) // 2]
    return max(1, middle + min(counts) - median), middle + max(counts) - median


def bootstrap_counts(tree: MergeTree, rows: LeafRows, spec: CountSpec, workers: int) -> list[int]:
    """The estimate of each replicate, along the merges of ``tree``; a few at a time per thread."""
    parts = [slice(b, b + TOGETHER) for b in range(0, len(rows.weights), TOGETHER)]
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.map(partial(_resampled_counts, tree, rows, spec), parts)
        return [count for counts in found for count in counts]


def _resampled_counts(
    tree: MergeTree, rows: LeafRows, spec: CountSpec, replicates: slice
) -> list[int]:
    def leaf(i: int) -> tuple[Tensor, Tensor]:
        return rows.resampled(i, replicates)

    total, spread = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for i in range(tree.num_leaves):
        mass, moments = leaf(i)
        mean = moments / mass.clamp_min(1e-12)[:, None, None]
        spread = spread + mass[:, None, None] * (mean - first_lines(mean))
        total = total + mass
    pooled = spread / total.clamp_min(1e-12)[:, None, None]
    lengths = lengths_along(tree, leaf, pooled, total, spec.eps2, spec.shrinkage)
    return [int(found) + 1 for found in (lengths + tree.stay).argmin(1)]


def content_hashes(x: Float[Tensor, "n d"]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each row's float16 bytes."""
    rows = np.ascontiguousarray(x.numpy().astype(np.float16, copy=False))
    return np.array([xxhash.xxh3_64_intdigest(row) for row in rows], dtype=np.uint64)


def poisson_weights(
    hashes: npt.NDArray[np.uint64], seed: int, replicate: int
) -> UInt8[Tensor, " n"]:
    """Poisson(1) numbers (the bootstrap's limit), one per row, by inversion of a uniform hash."""
    ids = np.stack([hashes, hashes], 1).view(np.uint8)
    uniform = keys.row_keys(ids, seed, f"bootstrap/{replicate}").astype(np.float64) / keys.KEY_SPAN
    below = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, 1, 2, 3, 4, 5, 6, 7]))
    return torch.from_numpy(np.searchsorted(below, uniform, side="right").astype(np.uint8))


def group_rates(found: LeafMoments, groups: Int[Tensor, " k"], eps2: float) -> Float[Tensor, " g"]:
    """Coding rate of each group of leaves, nats per sample."""
    return moment_rates(*group_sums(found.mass, found.moments, groups), eps2).float()


def enough_data(found: LeafMoments, clusters: int) -> bool:
    """Whether the estimate has enough rows to stand on: at least e rows per cluster.

    A cluster's first direction alone has e numbers, whatever its spread borrows from the others.
    """
    return float(found.mass.sum()) / max(clusters, 1) >= found.moments.shape[-1]
