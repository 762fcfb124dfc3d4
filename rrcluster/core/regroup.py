"""Regroup: clusters that new rows show to be one are merged, one that they show to be two is split.

The question is that of the merge tree (``merge.py``): is one code for both shorter than two? It is
asked of the fit's rows alone and of all rows. A number of clusters may have been asked for, so that
the fit kept pairs apart that one code describes better, or together what two do; what the fit's own
rows said already, scaled to all rows, is therefore taken off, and only what new rows say decides:

    evidence = change(all) − n_all/n_fit · min(change(fit), 0)       in nats, below 0 speaks for it

Splits go along the leaves that a cluster is made of, so rows are assigned as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rrcluster.core.merge import cut, group_sums, merge_tree
from rrcluster.core.novelty import Known

NEAREST = 8  # clusters that each one may be merged with
GREW = 1.1  # a cluster is asked when it has so many rows for each row of the fit


@dataclass(frozen=True)
class Regrouping:
    """``merged`` (away, into) and ``split`` (cluster, leaves that leave it), with nats saved."""

    merged: tuple[tuple[int, int, float], ...]
    split: tuple[tuple[int, tuple[int, ...], float], ...]


@dataclass(frozen=True)
class _Lengths:
    """What two groups of clusters cost apart and as one, in one set of rows."""

    known: Known  # of all leaves
    pooled: Known  # whose spread all codes are shrunk to

    def change(self, a: Tensor, b: Tensor) -> float:
        """Of joining the rows of leaves a and b: L(a ∪ b) − L(a) − L(b)."""
        groups = [torch.cat([a, b]), a, b]
        mass = torch.stack([self.known.mass[g].sum() for g in groups])
        moments = torch.stack([self.known.moments[g].sum(0) for g in groups])
        both, *parts = self.pooled.lengths(mass, moments, float(self.known.mass.sum())).tolist()
        return float(both - sum(parts))

    def rows(self, *leaves: Tensor) -> float:
        return float(self.known.mass[torch.cat(leaves)].sum())


def regrouped(
    fit: Known, every: Known, cluster: Int[Tensor, " k"], parent: Int[Tensor, " k"], margin: float
) -> Regrouping:
    """What to merge and split: leaves (k) of the fit's rows and of all rows, with their clusters.

    Only clusters under one ``parent`` are merged. ``margin`` is in nats per row of the clusters
    that are changed. A cluster takes part in one change at most, the best first.
    """
    count = int(cluster.max()) + 1
    mass, moments = group_sums(every.mass, every.moments, cluster)
    before, _ = group_sums(fit.mass, fit.moments, cluster)
    grew = mass > GREW * before
    parents = torch.zeros(count, dtype=torch.int64).scatter(0, cluster, parent)
    lengths = [_Lengths(known, fit) for known in (fit, every)]
    leaves_of = [(cluster == i).nonzero()[:, 0] for i in range(count)]
    found: list[tuple[float, int, int, tuple[int, ...]]] = []
    for i, j in _neighbours(mass, moments, grew, parents):
        saved = -_evidence(lengths, leaves_of[i], leaves_of[j], 1.0)
        if saved > margin * float(mass[i] + mass[j]):
            away, into = sorted((i, j), key=lambda c: (float(mass[c]), -c))
            found.append((saved, into, away, ()))
    for i in grew.nonzero()[:, 0].tolist():
        leaves = leaves_of[i]
        if len(leaves) < 2:
            continue
        tree = merge_tree(
            every.mass[leaves], every.moments[leaves], fit.eps2, NEAREST, fit.shrinkage
        )
        side = cut(tree, 2).bool()
        small = side if every.mass[leaves[side]].sum() < mass[i] / 2 else ~side
        apart, rest = leaves[small], leaves[~small]
        saved = -_evidence(lengths, apart, rest, -1.0)
        if saved > margin * float(mass[i]) and lengths[1].rows(apart) > 0:
            found.append((saved, i, i, tuple(apart.tolist())))
    return _best(found)


def _evidence(lengths: Sequence[_Lengths], a: Tensor, b: Tensor, sign: float) -> float:
    """Of joining (sign 1) or parting (−1); +inf where all rows together do not ask for it."""
    fit, every = (sign * part.change(a, b) for part in lengths)
    then, now = (part.rows(a, b) for part in lengths)
    if every >= 0:
        return float("inf")
    return every - now / max(then, 1.0) * min(fit, 0.0)


def _neighbours(
    mass: Tensor, moments: Tensor, grew: Tensor, parent: Tensor
) -> list[tuple[int, int]]:
    """Pairs under one parent, one of which grew at least, most similar by tr(M_i M_j)."""
    mean = (moments / mass.clamp_min(1e-12)[:, None, None]).flatten(1).float()
    pairs = set()
    for i in grew.nonzero()[:, 0].tolist():
        others = ((parent == parent[i]) & (mass > 0)).nonzero()[:, 0]
        others = others[others != i]
        similar = (mean[others] @ mean[i]).topk(min(NEAREST, len(others))).indices
        pairs |= {(min(i, j), max(i, j)) for j in others[similar].tolist()}
    return sorted(pairs)


def _best(found: list[tuple[float, int, int, tuple[int, ...]]]) -> Regrouping:
    taken: set[int] = set()
    merged, split = [], []
    for saved, into, away, leaves in sorted(found, key=lambda f: (-f[0], f[1], f[2])):
        if taken & {into, away}:
            continue
        taken |= {into, away}
        if leaves:
            split.append((into, leaves, saved))
        else:
            merged.append((away, into, saved))
    return Regrouping(tuple(merged), tuple(split))
