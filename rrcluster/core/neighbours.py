"""Features in which neighbours agree: whitening by how raw neighbours differ, and smoothed rows.

Clusters of a frozen embedding are drowned by directions in which any two pictures of one thing
differ (pose, background, style). Nearest neighbours show these directions without labels: the
spread of z between a row and its neighbours estimates the spread within classes, and whitening by
it makes such directions count less. Rows are then clustered as the mean of themselves and their
neighbours (one step of label propagation, done on features), which pulls a sparse class together.
Each round takes the spread within the clusters just found for the next whitening.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rrcluster.core.features import FeatureMap
from rrcluster.core.hierarchy import nearest_in_cell, top_down
from rrcluster.core.kmeans import SeedingSpec
from rrcluster.core.model import features_of
from rrcluster.core.probe import nearest_others
from rrcluster.core.shards import MemoryShards


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
) -> Agreed:
    """Whiten by neighbours, then ``rounds`` times: cluster smoothed rows, whiten by the clusters.

    ``x`` is a bounded sample: neighbours are exact, at 2·m²·e operations a round.
    """
    u = features_of(projection, x)
    features = projection.whitened(neighbour_spread(u, nearest_others(u, neighbours)), ridge)
    for round in range(rounds + 1):
        z = features_of(features, x)
        s = smoothed(z, nearest_others(z, neighbours))
        labels, found = _partition(s, clusters, seed + round)
        if round < rounds:
            features = projection.whitened(within_spread(u, labels, found), ridge)
    return Agreed(features, labels, found)


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
    return F.normalize(z + z[neighbours].mean(1), dim=1)


def _partition(s: Float[Tensor, "m e"], clusters: int, seed: int) -> tuple[Tensor, int]:
    rows = MemoryShards([s.half()])
    spec = SeedingSpec(cell_leaves=clusters)
    seeds = top_down(rows, min(clusters, len(s)), spec, seed)
    labels, _ = nearest_in_cell(s.half(), seeds)
    used, labels = labels.unique(return_inverse=True)
    return labels, len(used)
