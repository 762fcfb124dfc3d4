"""The merge tree: join clusters while one code for two is shorter, and on down to one.

Two clusters are one when one code for both is shorter than a code for each (Ma et al. 2007). The
leaves' (mass, moments) add, so the whole tree needs one pass over the rows.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.rate import coding_lengths


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
    mass: Float[Tensor, " k"], moments: Float[Tensor, "k e e"], eps2: float, neighbours: int = 16
) -> MergeTree:
    """Agglomerate greedily by the change of the total coding length, all the way to one cluster.

    Candidates are each cluster's ``neighbours`` most similar ones by tr(M_i M_j), M = S/n, and
    those that its parts had; a merged cluster gets its own. Empty leaves merge first.
    """
    return _Agglomeration(mass.double(), moments.double(), eps2, neighbours).run()


class _Agglomeration:
    def __init__(self, mass: Tensor, moments: Tensor, eps2: float, neighbours: int) -> None:
        k, e = moments.shape[:2]
        self.k, self.eps2, self.neighbours = k, eps2, neighbours
        self.total = float(mass.sum().clamp_min(1e-12))
        nodes = 2 * k - 1
        self.mass = torch.cat([mass, torch.zeros(k - 1, dtype=torch.float64)])
        self.moments = torch.cat([moments, torch.zeros(k - 1, e, e, dtype=torch.float64)])
        self.length = torch.zeros(nodes, dtype=torch.float64)
        self.length[:k] = coding_lengths(mass, moments, self.total, eps2)
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
        lengths[k - 1] = self.length[:k].sum()
        if k > 1:
            self._add_candidates(list(range(k)))
        for step in range(k - 1):
            i, j, change = self._best()
            pairs[step, 0], pairs[step, 1] = i, j
            lengths[k - 2 - step] = lengths[k - 1 - step] + change
            self._merge(i, j, k + step, change)
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
        wanted = set()
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
        i, j = pairs.T
        joined = coding_lengths(
            self.mass[i] + self.mass[j],
            self.moments[i] + self.moments[j],
            self.total,
            self.eps2,
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
