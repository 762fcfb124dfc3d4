"""How many clusters: leaves' moments in one space, their merge tree, and the range of its estimate.

All in one pass over the rows. The range is a bootstrap: each replicate weights a row by a
Poisson(1) number drawn from a hash of the row's own bytes, so it does not depend on how rows are
cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.cells import routed
from rrcluster.core.features import FeatureMap, fit_projection
from rrcluster.core.merge import MergeTree, cut, estimate, group_sums, merge_tree
from rrcluster.core.model import CellModel, features_of, sum_by_label
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
    replicates: int = setting(8, "bootstrap replicates behind the range of the estimate")


@dataclass(frozen=True)
class LeafMoments:
    """Mass (k,) and moments (k, e, e) of all leaves of all cells, float64."""

    mass: Float[Tensor, " k"]
    moments: Float[Tensor, "k e e"]


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

    def leaf(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The leaf of each row, numbered over all cells."""
        sizes = torch.tensor([model.num_leaves for model in self.models])
        first = (sizes.cumsum(0) - sizes).tolist()
        (leaf,) = routed(
            self.cells, x, lambda c, rows: (self.models[c].cheapest(rows)[0] + first[c],)
        )
        return leaf


@dataclass(frozen=True)
class LeafSums:
    """Statistic: mass (b, k) and moments (b, k, e, e); replicate 0 counts each row once."""

    space: MergeSpace
    replicates: int

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        leaf, z = self.space.leaf(x), features_of(self.space.features, x)
        k = self.space.num_leaves
        found = [sum_by_label(z, leaf, k)]
        if self.replicates:
            hashes = content_hashes(x)
        for replicate in range(1, self.replicates + 1):
            weight = poisson_weights(hashes, self.space.seed, replicate)
            _, second = sum_by_label(z * weight.sqrt().float()[:, None], leaf, k)
            found.append((torch.bincount(leaf, weights=weight, minlength=k), second))
        return {
            "mass": torch.stack([mass for mass, _ in found]),
            "moments": torch.stack([second for _, second in found]),
        }


def moments(shards: Shards, space: MergeSpace) -> LeafMoments:
    """Mass and moments of all leaves."""
    return resampled(shards, space, 0)[0]


def resampled(shards: Shards, space: MergeSpace, replicates: int) -> list[LeafMoments]:
    """Mass and moments of all leaves, then those of each bootstrap replicate, in one pass."""
    sums = shards.reduce(LeafSums(space, replicates))
    return [LeafMoments(*part) for part in zip(sums["mass"], sums["moments"], strict=True)]


def bootstrap_range(middle: int, replicates: list[LeafMoments], spec: CountSpec) -> tuple[int, int]:
    """The estimate ``middle``, moved by how far the replicates' lie below and above their median.

    Repeated rows make clusters look tighter than they are, so resampled estimates lie too high by
    an amount that they share (food photos: 25 to 28 around an estimate of 17); their spread is
    what they can tell.
    """
    others = bootstrap_counts(replicates, spec)
    if not others:
        return middle, middle
    median = sorted(others)[len(others) // 2]
    return max(1, middle + min(others) - median), middle + max(others) - median


def bootstrap_counts(parts: list[LeafMoments], spec: CountSpec) -> list[int]:
    """The estimate of each resampling."""
    found = []
    for part in parts:
        tree = merge_tree(part.mass, part.moments, spec.eps2, spec.neighbours, spec.shrinkage)
        found.append(estimate(tree))
    return found


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
