"""Features in which neighbours agree: whitening by how raw neighbours differ, and smoothed rows.

Clusters of a frozen embedding are drowned by directions in which any two pictures of one thing
differ (pose, background, style). Nearest neighbours show these directions without labels: the
spread of z between a row and its neighbours estimates the spread within classes, and whitening by
it makes such directions count less. Rows are then clustered as the mean of themselves and their
neighbours (one step of label propagation, done on features), which pulls a sparse class together.
Each round takes the spread within the clusters just found for the next whitening.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rrcluster.core.anneal import PLUS_PLUS, starting_rows
from rrcluster.core.cells import nearest
from rrcluster.core.features import FeatureMap
from rrcluster.core.kmeans import SeedingSpec, State, lloyd
from rrcluster.core.model import features_of
from rrcluster.core.probe import nearest_others
from rrcluster.core.shards import MemoryShards

CANDIDATES = 4  # times as many raw neighbours as are wanted: those of every round are among them
ROUGH = 1e-2  # tolerance of k-means where only the spread within the clusters is asked for


@dataclass(frozen=True)
class Agreed:
    """Features, and the partition of the sample that was found in them."""

    features: FeatureMap
    labels: Int[Tensor, " m"]
    clusters: int


def agree(
    x: Float[Tensor, "m d"],
    projection: FeatureMap,
    clusters: int,
    neighbours: int,
    ridge: float,
    rounds: int,
    seed: int,
    before: Int[Tensor, " m"] | None = None,
) -> Agreed:
    """Whiten by neighbours, then ``rounds`` times: cluster smoothed rows, whiten by the clusters.

    With ``before``, the clusters that rows were in (−1: none), clusters found are parts of those.

    ``x`` is a bounded sample: raw neighbours are exact, at 2·m²·e operations, and those of later
    features are looked for among ``CANDIDATES`` times as many of them.
    """
    u = features_of(projection, x)
    near = nearest_others(u, CANDIDATES * neighbours)
    features = projection.whitened(neighbour_spread(u, near[:, :neighbours]), ridge)
    for round in range(rounds + 1):
        z = features_of(features, x)
        s = smoothed(z, nearest_among(z, near, neighbours))
        tolerance = ROUGH if round < rounds else SeedingSpec.tolerance
        labels, found = _parts(s, clusters, seed + round, before, tolerance)
        if round < rounds:
            features = projection.whitened(within_spread(u, labels, found), ridge)
    return Agreed(features, labels, found)


def nearest_among(
    z: Float[Tensor, "m e"], candidates: Int[Tensor, "m c"], neighbours: int
) -> Int[Tensor, "m j"]:
    """The candidates of each row with the largest inner product."""
    m, c = candidates.shape
    if c == 0:
        return candidates
    _speak_once()
    # As a sparse matrix of inner products: a copy of each row's candidates takes ten times as long.
    wanted = torch.sparse_csr_tensor(
        torch.arange(0, m * c + 1, c), candidates.reshape(-1), z.new_zeros(m * c), (m, m)
    )
    similar = torch.sparse.sampled_addmm(wanted, z, z.T, beta=0.0).values().view(m, c)
    return candidates.gather(1, similar.topk(min(neighbours, c), dim=1).indices)


@lru_cache
def _speak_once() -> None:
    """torch says once in a process that its sparse matrices are young; nobody needs to hear it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], torch.zeros(0, dtype=torch.int64), torch.zeros(0), (1, 1))


def neighbour_spread(
    u: Float[Tensor, "m e"], neighbours: Int[Tensor, "m j"]
) -> Float[Tensor, "e e"]:
    """½ of the mean outer product of u − u', over each row and its neighbours."""
    total = torch.zeros(u.shape[1], u.shape[1], dtype=torch.float64)
    for column in neighbours.T:
        difference = u - u[column]
        total += (difference.T @ difference).double()
    return total / (2 * max(neighbours.numel(), 1))


def within_spread(
    u: Float[Tensor, "m e"], labels: Int[Tensor, " m"], clusters: int
) -> Float[Tensor, "e e"]:
    """Mean outer product of u less the mean of its cluster."""
    count = torch.bincount(labels, minlength=clusters).clamp_min(1)
    means = torch.zeros(clusters, u.shape[1]).index_add_(0, labels, u) / count[:, None]
    difference = u - means[labels]
    return (difference.T @ difference).double() / max(len(u), 1)


def smoothed(z: Float[Tensor, "m e"], neighbours: Int[Tensor, "m j"]) -> Float[Tensor, "m e"]:
    """normalize(z + mean of the neighbours' z)."""
    if neighbours.shape[1] == 0:
        return z
    return F.normalize(z + F.embedding_bag(neighbours, z, mode="mean"), dim=1)


def seeds_within(
    x: Float[Tensor, "m d"], clusters: int, seed: int, before: Int[Tensor, " m"]
) -> Float[Tensor, "k d"]:
    """Means of parts of the clusters that rows were ``before`` in: where a refit starts."""
    labels, found = _parts(F.normalize(x.float(), dim=1), clusters, seed, before)
    means = torch.zeros(found, x.shape[1]).index_add_(0, labels, x.float())
    return means / torch.bincount(labels, minlength=found)[:, None]


def _parts(
    s: Float[Tensor, "m e"],
    clusters: int,
    seed: int,
    before: Int[Tensor, " m"] | None,
    tolerance: float = SeedingSpec.tolerance,
) -> tuple[Tensor, int]:
    """A partition within each cluster that there was, into its share of ``clusters`` by rows; rows
    of none are a cluster of their own here."""
    if before is None:
        return _partition(s, clusters, seed, tolerance)
    labels, found = torch.zeros_like(before), 0
    for group in before.unique().tolist():
        mine = (before == group).nonzero()[:, 0]
        share = max(1, round(clusters * len(mine) / len(before)))
        part, count = _partition(s[mine], share, seed, tolerance)
        labels[mine], found = found + part, found + count
    return labels, found


def _partition(
    s: Float[Tensor, "m e"], clusters: int, seed: int, tolerance: float
) -> tuple[Tensor, int]:
    """k-means by Lloyd from spread-out rows; without the empty clusters."""
    rows = MemoryShards([s.half()])
    k = min(clusters, len(s))
    start = starting_rows(rows.rows(len(s)), k, PLUS_PLUS, len(s), seed, ("leaves", 0))
    spec = SeedingSpec(tolerance=tolerance)
    centroids = lloyd(rows, State(0, 1, start), spec, seed).centroids
    used, labels = nearest(s.half(), centroids)[0].unique(return_inverse=True)
    return labels, len(used)
