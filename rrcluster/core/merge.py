"""The merge tree: join clusters while one code for two is shorter, and on down to one.

Ma et al. (2007) charge (n_k + e) R_k, which needs n_k ≫ e: with tens of rows a cluster the e R_k of
a spared subspace outweighs every likeness. Here a cluster's code is shrunk to the spread that all
clusters share, as in ``codes.py``, and what remains its own is one direction:

    L_k = n_k ½ [log det B_k + tr(B_k⁻¹ A_k) − e] − n_k log(n_k/n)      the rows, in nats
        + ½ e log(1 + n_k)                                   its direction (Rissanen 1978)

with A_k = I + c M_k, M_k = S_k/n_k, c = e/ε², and B_k the same of the shrunk M_k. The tree joins
the pair that lengthens the rows' code least; the number of clusters is read off the whole length.
(mass, moments) add, so the tree needs one pass over the rows.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.codes import pooled_spread

POWER_STEPS = 10  # the first direction of a cluster has some ten times the second's variance


def row_lengths(
    mass: Float[Tensor, " k"],
    moments: Float[Tensor, "k e e"],
    pooled: Float[Tensor, "e e"],
    total: float,
    eps2: float,
    shrinkage: float,
) -> Float[Tensor, " k"]:
    """Nats for the rows of each cluster and their labels, by its code shrunk towards ``pooled``."""
    e = moments.shape[-1]
    mean = moments / mass.clamp_min(1e-12)[:, None, None]
    line = _line(mean)
    own = (mass / (mass + shrinkage).clamp_min(1e-12))[:, None, None]
    eye = torch.eye(e, dtype=mean.dtype)
    shrunk = eye + e / eps2 * (line + own * (mean - line) + (1 - own) * pooled)
    factor = torch.linalg.cholesky(shrunk)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = (torch.cholesky_inverse(factor) * (eye + e / eps2 * mean)).sum((1, 2))
    share = (mass / total).clamp_min(1e-300)
    lengths: Tensor = mass * (0.5 * (log_det + trace - e) - share.log())
    return lengths


def own_lengths(mass: Float[Tensor, " k"], width: int) -> Float[Tensor, " k"]:
    """Nats for each cluster's own direction, ½ e log(1 + n_k); 0 for an empty one."""
    return 0.5 * width * mass.log1p()


def _line(mean: Float[Tensor, "k e e"]) -> Float[Tensor, "k e e"]:
    """λ u uᵀ of the first direction, by power iteration from the largest column."""
    start = mean.diagonal(dim1=-2, dim2=-1).argmax(1)
    u = mean[torch.arange(len(mean)), :, start]
    for _ in range(POWER_STEPS):
        u = torch.nn.functional.normalize((mean @ u[:, :, None])[:, :, 0], dim=1)
    variance = (u * (mean @ u[:, :, None])[:, :, 0]).sum(1)
    return variance[:, None, None] * u[:, :, None] * u[:, None, :]


@dataclass(frozen=True)
class MergeTree:
    """k leaves are nodes 0..k−1; merge t joins ``pairs[t]`` into node k+t.

    ``lengths[j−1]`` is the total coding length in nats with j clusters, j = 1..k.
    """

    pairs: Int[Tensor, "k_1 2"]
    lengths: Float[Tensor, " k"]

    @property
    def num_leaves(self) -> int:
        return len(self.lengths)


def merge_tree(
    mass: Float[Tensor, " k"],
    moments: Float[Tensor, "k e e"],
    eps2: float,
    neighbours: int = 16,
    shrinkage: float = 100.0,
) -> MergeTree:
    """Agglomerate greedily by the change of the rows' length, all the way to one cluster.

    Candidates are each cluster's ``neighbours`` most similar ones by tr(M_i M_j), M = S/n, and
    those that its parts had; a merged cluster gets its own. Empty leaves merge first.
    """
    return _Agglomeration(mass.double(), moments.double(), eps2, neighbours, shrinkage).run()


def lengths_along(
    tree: MergeTree,
    mass: Float[Tensor, " k"],
    moments: Float[Tensor, "k e e"],
    eps2: float,
    shrinkage: float,
) -> Float[Tensor, " k"]:
    """``lengths`` that the merges of ``tree`` have for other masses and moments of its leaves.

    2k − 1 lengths instead of the some 20 k that a tree of its own would try.
    """
    k, e = moments.shape[:2]
    mass, moments = mass.double(), moments.double()
    pooled = pooled_spread(mass, moments)
    code = (float(mass.sum().clamp_min(1e-12)), eps2, shrinkage)
    mass = torch.cat([mass, torch.zeros(k - 1, dtype=torch.float64)])
    moments = torch.cat([moments, torch.zeros(k - 1, e, e, dtype=torch.float64)])
    for step, (i, j) in enumerate(tree.pairs.tolist()):
        mass[k + step] = mass[i] + mass[j]
        torch.add(moments[i], moments[j], out=moments[k + step])
    parts = zip(mass.split(1024), moments.split(1024), strict=True)
    each = torch.cat([row_lengths(m, s, pooled, *code) + own_lengths(m, e) for m, s in parts])
    left, right = tree.pairs.unbind(1)
    changes = each[k:] - each[left] - each[right]  # as the clusters become fewer
    return torch.cat([each[:k].sum()[None], changes]).cumsum(0).flip(0)


class _Agglomeration:
    def __init__(
        self, mass: Tensor, moments: Tensor, eps2: float, neighbours: int, shrinkage: float
    ) -> None:
        k, e = moments.shape[:2]
        self.k, self.neighbours = k, neighbours
        self.pooled = pooled_spread(mass, moments)
        self.code = (float(mass.sum().clamp_min(1e-12)), eps2, shrinkage)
        nodes = 2 * k - 1
        self.mass = torch.cat([mass, torch.zeros(k - 1, dtype=torch.float64)])
        self.moments = torch.cat([moments, torch.zeros(k - 1, e, e, dtype=torch.float64)])
        self.length = torch.zeros(nodes, dtype=torch.float64)
        self.length[:k] = row_lengths(mass, moments, self.pooled, *self.code)
        mean = moments / mass.clamp_min(1e-12)[:, None, None]
        self.mean = torch.zeros(nodes, e * e)  # float32: only for choosing candidates
        self.mean[:k] = mean.flatten(1).float()
        self.alive = torch.zeros(nodes, dtype=torch.bool)
        self.alive[:k] = True
        self.adjacent: list[set[int]] = [set() for _ in range(nodes)]
        self.heap: list[tuple[float, int, int, float]] = []  # priority, i, j, change

    def run(self) -> MergeTree:
        k = self.k
        pairs = torch.zeros(k - 1, 2, dtype=torch.int64)
        lengths = torch.zeros(k, dtype=torch.float64)
        own = own_lengths(self.mass, self.moments.shape[-1])
        lengths[k - 1] = self.length[:k].sum() + own[:k].sum()
        if k > 1:
            self._add_candidates(list(range(k)))
        for step in range(k - 1):
            i, j, change = self._best()
            pairs[step, 0], pairs[step, 1] = i, j
            self._merge(i, j, k + step, change)
            own = own_lengths(self.mass[[i, j, k + step]], self.moments.shape[-1])
            lengths[k - 2 - step] = lengths[k - 1 - step] + change + own[2] - own[0] - own[1]
            if step < k - 2:
                self._add_candidates([k + step])
        return MergeTree(pairs, lengths)

    def _best(self) -> tuple[int, int, float]:
        while True:
            while self.heap:
                _, i, j, change = heapq.heappop(self.heap)
                if self.alive[i] and self.alive[j]:
                    return i, j, change
            self._add_candidates(self.alive.nonzero()[:, 0].tolist())

    def _merge(self, i: int, j: int, node: int, change: float) -> None:
        self.mass[node] = self.mass[i] + self.mass[j]
        self.moments[node] = self.moments[i] + self.moments[j]
        self.length[node] = self.length[i] + self.length[j] + change
        mean = self.moments[node] / self.mass[node].clamp_min(1e-12)
        self.mean[node] = mean.flatten().float()
        self.alive[i] = self.alive[j] = False
        self.alive[node] = True
        self.adjacent[node] = {
            a for a in self.adjacent[i] | self.adjacent[j] if bool(self.alive[a])
        }

    def _add_candidates(self, nodes: list[int]) -> None:
        """Push the change of length for each node with its most similar living ones."""
        living = self.alive.nonzero()[:, 0]
        similar = self.mean[nodes] @ self.mean[living].T
        similar[torch.tensor(nodes)[:, None] == living[None]] = -float("inf")
        count = min(2 * self.neighbours, len(living) - 1)
        ranked = living[similar.topk(count, dim=1).indices].tolist()
        wanted: set[tuple[int, int]] = set()
        for node, found in zip(nodes, ranked, strict=True):
            # The most similar, and the next most similar of those that its parts were paired with.
            near = found[: self.neighbours]
            near += [other for other in found[self.neighbours :] if other in self.adjacent[node]]
            wanted.update((min(node, other), max(node, other)) for other in near)
            self.adjacent[node] = set()
        pairs = torch.tensor(sorted(wanted))
        for part in pairs.split(4096):
            changes = self._changes(part)
            for (i, j), change in zip(part.tolist(), changes.tolist(), strict=True):
                self.adjacent[i].add(j)
                self.adjacent[j].add(i)
                empty = min(float(self.mass[i]), float(self.mass[j])) <= 0
                heapq.heappush(self.heap, (-float("inf") if empty else change, i, j, change))

    def _changes(self, pairs: Int[Tensor, "p 2"]) -> Float[Tensor, " p"]:
        i, j = pairs.unbind(1)
        joined = row_lengths(
            self.mass[i] + self.mass[j],
            self.moments[i] + self.moments[j],
            self.pooled,
            *self.code,
        )
        return joined - self.length[i] - self.length[j]


def estimate(tree: MergeTree) -> int:
    """The number of clusters with the shortest total code; the smaller of equals."""
    return int(tree.lengths.argmin()) + 1


def cut(tree: MergeTree, k: int) -> Int[Tensor, " k_leaf"]:
    """Cluster 0..k−1 of each leaf when k clusters are left, numbered by their first leaf.

    Cuts of one tree are nested: a finer one only splits clusters of a coarser one.
    """
    leaves = tree.num_leaves
    if not 1 <= k <= leaves:
        raise ValueError(f"a tree of {leaves} leaves has 1 to {leaves} clusters, not {k}")
    root = list(range(2 * leaves - 1))
    for step, (i, j) in enumerate(tree.pairs[: leaves - k].tolist()):
        root[i] = root[j] = leaves + step
    number: dict[int, int] = {}
    labels = []
    for leaf in range(leaves):
        node = leaf
        while root[node] != node:
            node = root[node]
        labels.append(number.setdefault(node, len(number)))
    return torch.tensor(labels, dtype=torch.int64)


def group_sums(
    mass: Float[Tensor, " k"], moments: Float[Tensor, "k e e"], groups: Int[Tensor, " k"]
) -> tuple[Float[Tensor, " g"], Float[Tensor, "g e e"]]:
    """Mass and moments of groups of clusters: they add."""
    g, e = int(groups.max()) + 1, moments.shape[-1]
    total = torch.zeros(g, dtype=mass.dtype).index_add_(0, groups, mass)
    summed = torch.zeros(g, e, e, dtype=moments.dtype).index_add_(0, groups, moments)
    return total, summed
