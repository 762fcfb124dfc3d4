"""Rows that no cluster describes well: groups of them, and whether a group is a cluster of its own.

A row is set aside when it costs far more than its cluster's own rows did (z-score of the coding
length). Rows set aside are grouped, and a group opens a cluster when coding it as one shortens the
whole code: with L_k the length of a cluster's code (``merge.py``), C the clusters that the group's
rows would otherwise join and G the group,

    gain = Σ_C L(C with its rows of G) − Σ_C L(C without them) − L(G)      in nats

which counts the labels and what describing one more cluster costs. Single rows cheaper alone never
pay for that; groups do (Wright et al. 2007 for rows, Ma et al. 2007 for groups). A structure that
the fit has seen as often, and has not made a cluster of, is not new: a group must be several times
as frequent among the new rows as among those of the fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.cells import nearest
from rrcluster.core.codes import RateCodes, fit_codes, pooled_spread, with_statistics
from rrcluster.core.features import FeatureMap
from rrcluster.core.kmeans import SeedingSpec, fit
from rrcluster.core.merge import own_lengths, row_lengths
from rrcluster.core.model import sum_by_label, under
from rrcluster.core.shards import MemoryShards
from rrcluster.core.tiles import TILE, by_tiles

FITS = 3.0  # deviations: a row that costs more in a new cluster is none of its rows
MOST_GROUPS = 64  # that rows set aside are first cut into


@dataclass(frozen=True)
class Known:
    """Clusters in the space where all can be compared: mass (k,), moments (k, e, e), float64."""

    mass: Float[Tensor, " k"]
    moments: Float[Tensor, "k e e"]
    eps2: float
    shrinkage: float

    @property
    def width(self) -> int:
        """e."""
        return self.moments.shape[-1]

    @cached_property
    def pooled(self) -> Float[Tensor, "e e"]:
        """The spread that all clusters share."""
        return pooled_spread(self.mass, self.moments)

    def lengths(
        self, mass: Float[Tensor, " g"], moments: Float[Tensor, "g e e"], total: float
    ) -> Float[Tensor, " g"]:
        """Nats of clusters with these moments among ``total`` rows, their description included."""
        rows = row_lengths(mass, moments, self.pooled, total, self.eps2, self.shrinkage)
        return rows + own_lengths(mass, self.width)

    def with_clusters(self, mass: Float[Tensor, " g"], moments: Float[Tensor, "g e e"]) -> Known:
        """These clusters and more, numbered after them."""
        return Known(
            torch.cat([self.mass, mass]), torch.cat([self.moments, moments]),
            self.eps2, self.shrinkage,
        )  # fmt: skip

    def codes(self) -> RateCodes:
        """Prices of a row in every cluster."""
        return fit_codes(self.mass, self.moments, self.eps2, shrinkage=self.shrinkage)


def grouped(
    z: Float[Tensor, "n e"],
    known: Known,
    least: int,
    seed: int,
    worth: Callable[[Int[Tensor, " m"]], float],
) -> list[Int[Tensor, " m"]]:
    """Disjoint groups of rows, as row numbers, each of positive ``worth``.

    k-means clusters of ``least`` rows or so are joined two by two, always the pair that one code
    for both shortens most, up to one. On the way up that tree, two groups become one when one code
    for both is shorter; a group takes in rows that are none when that makes it worth more. The same
    from clusters of half as many rows, which rows of no group spoil less and joins order worse; the
    groups that are worth more in all are taken, those from larger clusters of equals.
    """
    numbers = {min(MOST_GROUPS, max(1, n * len(z) // max(least, 1))) for n in (1, 2)}
    cuts = [_groups(z, known, k, seed, worth) for k in sorted(numbers)]
    best = max(cuts, key=lambda groups: sum(value for _, value in groups))
    return [rows for rows, _ in best]


def _groups(
    z: Tensor, known: Known, k: int, seed: int, worth: Callable[[Tensor], float]
) -> list[tuple[Tensor, float]]:
    """``grouped`` from k k-means clusters, each group with its worth."""
    found = fit(MemoryShards((z,)), k, SeedingSpec(), seed, ("novelty",))
    label, _ = nearest(z, found.centroids)
    k = len(found.centroids)
    rows = [(label == leaf).nonzero()[:, 0] for leaf in range(k)]
    # Of each node: its groups, and what the node as one group is worth (0: it is none).
    value = [max(worth(r), 0.0) if len(r) else 0.0 for r in rows]
    groups = [[(r, v)] if v > 0 else [] for r, v in zip(rows, value, strict=True)]
    for i, j, shorter in _joins(*sum_by_label(z, label, k), known, float(len(z))):
        both = torch.cat([rows[i], rows[j]]).sort().values
        parts = groups[i] + groups[j]
        one = 0.0
        if value[i] > 0 and value[j] > 0:
            one = worth(both) if shorter else 0.0
        elif not parts or (len(parts) == 1 and value[i] + value[j] > 0):
            one = worth(both)
            one = one if one > value[i] + value[j] else 0.0
        rows.append(both)
        groups.append([(both, one)] if one > 0 else parts)
        value.append(max(one, 0.0))
    return groups[-1]


def _joins(mass: Tensor, moments: Tensor, known: Known, rows: float) -> list[tuple[int, int, bool]]:
    """Joins of the pair that shortens the code most, to the last, and whether each shortens it.

    The result of join t is node k + t.
    """
    total = float(known.mass.sum()) + rows
    k = len(mass)
    mass, moments = mass.clone(), moments.clone()
    node, alive = list(range(k)), torch.ones(k, dtype=torch.bool)
    length = known.lengths(mass, moments, total)
    change = torch.full((k, k), float("inf"), dtype=torch.float64)

    def price(i: int) -> None:
        others = (alive & (torch.arange(k) != i)).nonzero()[:, 0]
        if len(others):
            both = known.lengths(mass[i] + mass[others], moments[i] + moments[others], total)
            change[i, others] = change[others, i] = both - length[i] - length[others]

    for i in range(k):
        price(i)
    pairs = []
    for step in range(k - 1):
        i, j = sorted(divmod(int(change.argmin()), k))
        pairs.append((node[i], node[j], bool(change[i, j] < 0)))
        node[i] = k + step
        mass[i] += mass[j]
        moments[i] += moments[j]
        length[i] = known.lengths(mass[i : i + 1], moments[i : i + 1], total)[0]
        alive[j] = False
        change[j], change[:, j] = float("inf"), float("inf")
        price(i)
    return pairs


def gain(z: Float[Tensor, "n e"], cluster: Int[Tensor, " n"], known: Known) -> float:
    """Nats saved when these rows, now of ``cluster``, are one cluster of their own."""
    joined, label = cluster.unique(return_inverse=True)
    mass, moments = sum_by_label(z, label, len(joined))
    total = float(known.mass.sum()) + len(z)
    old_mass, old_moments = known.mass[joined], known.moments[joined]
    with_them = known.lengths(old_mass + mass, old_moments + moments, total)
    without = known.lengths(old_mass, old_moments, total)
    own = known.lengths(mass.sum(0, keepdim=True), moments.sum(0, keepdim=True), total)
    return float(with_them.sum() - without.sum() - own.sum())


def nearest_known(z: Float[Tensor, "n e"], known: Known) -> int:
    """The cluster with which one code for both costs these rows least."""
    mass, moments = sum_by_label(z, torch.zeros(len(z), dtype=torch.int64), 1)
    total = float(known.mass.sum()) + len(z)
    joined = known.lengths(known.mass + mass, known.moments + moments, total)
    return int((joined - known.lengths(known.mass, known.moments, total)).argmin())


def often(rows: Any, of: int | float, before: Any, of_before: int | float) -> Any:
    """How many times as frequent as before: (rows/of) / ((before + 1)/of_before), of numbers or of
    arrays of them, one per cluster."""
    return (rows / max(of, 1)) / ((before + 1) / max(of_before, 1))


@dataclass(frozen=True)
class Novel:
    """Clusters opened between fits: the last ones of ``codes``, after the fit's finest clusters.

    Only rows that cost more than ``threshold`` deviations above their cluster's own rows may go
    there, so the others are answered as before.
    """

    features: FeatureMap
    codes: RateCodes
    first: int  # of ``codes`` that is a new one
    threshold: float
    own: Int[Tensor, " leaves"]  # the code of each of the fit's leaves

    @property
    def count(self) -> int:
        """Clusters opened so far."""
        return self.codes.num_clusters - self.first

    def claim(
        self, x: Float[Tensor, "n d"], leaf: Int[Tensor, " n"], temperature: float
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The new cluster 0.. of each row, or −1, with confidence, outlier z-score and cost.

        A row goes where it is cheapest among its own cluster and the new ones that it fits: its
        cost there is at most FITS deviations above that of the rows which opened the cluster.
        """

        parts = [
            self._claim(x[at : at + TILE], leaf[at : at + TILE], temperature)
            for at in range(0, len(x), TILE)
        ]
        choice, confidence, outlier, cost = zip(*parts, strict=True)
        return torch.cat(choice), torch.cat(confidence), torch.cat(outlier), torch.cat(cost)

    def _claim(
        self, x: Float[Tensor, "n d"], leaf: Int[Tensor, " n"], temperature: float
    ) -> tuple[Tensor, ...]:
        (costs,) = by_tiles(x, lambda rows: (self.codes.costs(self.features(rows)),))
        price = costs[:, self.first :]
        mean, std = self.codes.cost_mean[self.first :], self.codes.cost_std[self.first :]
        score = (price - mean) / std
        own = costs.gather(1, self.own[leaf][:, None])
        every = torch.cat([own, torch.where(score <= FITS, price, float("inf"))], 1)
        cost, choice = every.min(1)
        confidence = 1 / ((cost[:, None] - every) / temperature).exp().sum(1)
        fits = score.gather(1, (choice - 1).clamp_min(0)[:, None])[:, 0]
        return choice - 1, confidence, fits, cost

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for storage; ``from_tensors`` reads them back."""
        found = {f"features.{name}": t for name, t in self.features.tensors().items()}
        found |= {f"codes.{name}": t for name, t in self.codes.tensors().items()}
        found |= {"own": self.own, "first": torch.tensor([self.first])}
        return found | {"threshold": torch.tensor([self.threshold], dtype=torch.float64)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Novel:
        return Novel(
            FeatureMap.from_tensors(under(tensors, "features.")),
            RateCodes(**under(tensors, "codes.")),
            int(tensors["first"][0]),
            float(tensors["threshold"][0]),
            tensors["own"],
        )


def opened(
    known: Known,
    before: Novel | None,
    features: FeatureMap,
    z: Float[Tensor, "n e"],
    group: Int[Tensor, " n"],
    own: Int[Tensor, " leaves"],
    threshold: float,
) -> tuple[Known, Novel]:
    """``known`` with a cluster for each group 0.. of the rows, and what assigns rows to them.

    ``known`` holds the fit's clusters and those opened ``before``, which stay as they are.
    """
    count = int(group.max()) + 1
    first = before.first if before is not None else len(known.mass)
    wider = known.with_clusters(*sum_by_label(z, group, count))
    codes = wider.codes()
    label = len(known.mass) + group
    cost = codes.costs(z).gather(1, label[:, None])[:, 0].double()
    size = len(wider.mass)
    total, squares = (
        torch.bincount(label, weights=w, minlength=size) for w in (cost, cost.square())
    )
    members = torch.bincount(label, minlength=size).double()
    codes = with_statistics(codes, members, total, squares)
    if before is not None:  # clusters opened earlier are priced as they were
        codes = before.codes.followed_by(codes, len(known.mass))
    return wider, Novel(features, codes, first, threshold, own)
