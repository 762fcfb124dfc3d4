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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.codes import first_directions, pooled_spread
from rrcluster.core.stay import Counts, Stay, joined

PRICED = 4  # clusters priced at a time: their matrices stay in a core's cache


def row_lengths(
    mass: Float[Tensor, " k"],
    moments: Float[Tensor, "k e e"],
    pooled: Float[Tensor, "*k e e"],
    total: float | Float[Tensor, " k"],
    eps2: float,
    shrinkage: float,
) -> Float[Tensor, " k"]:
    """Nats for the rows of each cluster and their labels, by its code shrunk towards ``pooled``."""
    return _priced(mass, moments, pooled, total, eps2, shrinkage)[0]


def _priced(
    mass: Tensor,
    moments: Tensor,
    pooled: Tensor,
    total: float | Tensor,
    eps2: float,
    shrinkage: float,
    near: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``row_lengths``, and √λ u of each cluster's first direction, looked for ``near`` one."""
    e = moments.shape[-1]
    c = e / eps2
    mean = moments / mass.clamp_min(1e-12)[:, None, None]
    first = first_directions(mean, near)
    own = (mass / (mass + shrinkage).clamp_min(1e-12))[:, None, None]
    # I + c (line + own (M − line) + (1 − own) P), in place: these passes are most of the time
    shrunk = torch.baddbmm(pooled.expand_as(mean), first[:, :, None], first[:, None, :])
    shrunk.lerp_(mean, own).mul_(c)
    shrunk.diagonal(dim1=-2, dim2=-1).add_(1)
    factor = torch.linalg.cholesky(shrunk)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    inverse = torch.cholesky_inverse(factor)
    trace = inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
    trace += c * (inverse.flatten(1)[:, None] @ mean.flatten(1)[:, :, None])[:, 0, 0]
    share = (mass / total).clamp_min(1e-300)
    lengths: Tensor = mass * (0.5 * (log_det + trace - e) - share.log())
    return lengths, first


def own_lengths(mass: Float[Tensor, " k"], width: int) -> Float[Tensor, " k"]:
    """Nats for each cluster's own direction, ½ e log(1 + n_k); 0 for an empty one."""
    return 0.5 * width * mass.log1p()


@dataclass(frozen=True)
class MergeTree:
    """k leaves are nodes 0..k−1; merge t joins ``pairs[t]`` into node k+t.

    ``lengths[j−1]`` is the total coding length in nats with j clusters, j = 1..k, of which
    ``stay[j−1]`` are for differing from the clusters before.
    """

    pairs: Int[Tensor, "k_1 2"]
    lengths: Float[Tensor, " k"]
    stay: Float[Tensor, " k"] | float = 0.0

    @property
    def num_leaves(self) -> int:
        return len(self.lengths)


def merge_tree(
    mass: Float[Tensor, " k"],
    moments: Float[Tensor, "k e e"],
    eps2: float,
    neighbours: int = 16,
    shrinkage: float = 100.0,
    workers: int = 1,
    stay: Stay | None = None,
) -> MergeTree:
    """Agglomerate greedily by the change of the rows' length, all the way to one cluster.

    Candidates are each cluster's ``neighbours`` most similar ones by the product of their first
    directions, √λ u, and those that its parts had; a merged cluster gets its own. Empty leaves
    merge first. ``workers`` threads share the work and change nothing. With ``stay``, lengths
    count what differing from the clusters before costs.
    """
    leaves = (mass.double(), moments.double())
    return _Agglomeration(*leaves, eps2, neighbours, shrinkage, workers, stay).run()


LeafStatistics = Callable[[int], tuple[Tensor, Tensor]]  # mass (b,), moments (b, e, e) of a leaf


def lengths_along(
    tree: MergeTree,
    leaf: LeafStatistics,
    pooled: Float[Tensor, "b e e"],
    total: Float[Tensor, " b"],
    eps2: float,
    shrinkage: float,
) -> Float[Tensor, "b k"]:
    """``lengths`` that the merges of ``tree`` have for b other sets of rows.

    2k − 1 lengths of each instead of the some 20 k that a tree of its own would try. Leaves are
    asked for as they are needed, the larger branch first: b·e²·(log₂ k + 2) numbers are held.
    """
    k, e = tree.num_leaves, pooled.shape[-1]
    each = torch.zeros(2 * k - 1, len(pooled), dtype=torch.float64)
    size = [1] * k
    for i, j in tree.pairs.tolist():
        size.append(size[i] + size[j])
    todo, held = [(2 * k - 2, False)], list[tuple[Tensor, Tensor, Tensor]]()
    while todo:
        node, ready = todo.pop()
        if node >= k and not ready:
            i, j = sorted(tree.pairs[node - k].tolist(), key=size.__getitem__)
            todo += [(node, True), (i, False), (j, False)]
            continue
        near = None
        if node < k:
            mass, moments = leaf(node)
        else:
            (mass, moments, first), (more, second, other) = held.pop(), held.pop()
            near = joined_directions(mass, first, more, other)
            mass, moments = mass + more, moments + second
        each[node], first = _priced(mass, moments, pooled, total, eps2, shrinkage, near)
        each[node] += own_lengths(mass, e)
        held.append((mass, moments, first))
    left, right = tree.pairs.unbind(1)
    changes = each[k:] - each[left] - each[right]  # as the clusters become fewer
    return torch.cat([each[:k].sum(0)[None], changes]).cumsum(0).flip(0).T


class _Agglomeration:
    """Clusters that live are in k slots; a merged one takes the slot of its first part."""

    def __init__(
        self,
        mass: Tensor,
        moments: Tensor,
        eps2: float,
        neighbours: int,
        shrinkage: float,
        workers: int,
        stay: Stay | None,
    ) -> None:
        k = len(mass)
        self.stay = stay or Stay(({},) * k, 0.0)
        self.before: list[Counts] = list(self.stay.leaves)  # of each slot
        self.price = [self.stay.price(counts) for counts in self.before]
        self.k, self.neighbours = k, neighbours
        self.pooled = pooled_spread(mass, moments)
        self.code = (float(mass.sum().clamp_min(1e-12)), eps2, shrinkage)
        self.mass, self.moments = mass.clone(), moments.clone()
        self.node = list(range(k))  # of each slot
        self.slot = dict(zip(self.node, self.node, strict=True))  # of each living node
        self.alive = torch.ones(k, dtype=torch.bool)
        self.adjacent: list[set[int]] = [set() for _ in range(k)]  # slots
        self.heap: list[tuple[float, int, int, float]] = []  # priority, nodes, change
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        self.length, self.first = self._priced(self.alive.nonzero()[:, 0])

    def _priced(self, slots: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of clusters, or of their unions with ``others``, on threads that share nothing."""

        def price(part: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
            i, j = part
            mass, moments, near = self.mass[i], self.moments[i], None
            if j is not None:
                near = joined_directions(mass, self.first[i], self.mass[j], self.first[j])
                mass, moments = mass + self.mass[j], moments + self.moments[j]
            return _priced(mass, moments, self.pooled, *self.code, near)

        parts = slots.split(PRICED)
        with_them = [None] * len(parts) if others is None else others.split(PRICED)
        found = self.pool.map(price, zip(parts, with_them, strict=True))
        lengths, first = zip(*found, strict=True)
        return torch.cat(lengths) + self._staying(slots, others), torch.cat(first)

    def _staying(self, slots: Tensor, others: Tensor | None) -> Tensor:
        """What clusters, or their unions with ``others``, cost for differing from those before."""
        if others is None:
            found = [self.price[i] for i in slots.tolist()]
        else:
            both = zip(slots.tolist(), others.tolist(), strict=True)
            found = [self.stay.price(joined(self.before[i], self.before[j])) for i, j in both]
        return torch.tensor(found, dtype=torch.float64)

    def run(self) -> MergeTree:
        with self.pool:
            return self._run()

    def _run(self) -> MergeTree:
        k, e = self.moments.shape[:2]
        pairs = torch.zeros(k - 1, 2, dtype=torch.int64)
        lengths = torch.zeros(k, dtype=torch.float64)
        lengths[k - 1] = self.length.sum() + own_lengths(self.mass, e).sum()
        stay = torch.full((k,), sum(self.price), dtype=torch.float64)
        if k > 1:
            self._add_candidates(list(range(k)))
        for step in range(k - 1):
            i, j, change = self._best()
            pairs[step, 0], pairs[step, 1] = i, j
            slot, gone = self.slot[i], self.slot[j]
            before = own_lengths(self.mass[[slot, gone]], e).sum()
            apart = self.price[slot] + self.price[gone]
            self._merge(slot, gone, k + step, change)
            stay[k - 2 - step] = stay[k - 1 - step] + self.price[slot] - apart
            own = own_lengths(self.mass[[slot]], e).sum() - before
            lengths[k - 2 - step] = lengths[k - 1 - step] + change + own
            if step < k - 2:
                self._add_candidates([slot])
        return MergeTree(pairs, lengths, stay)

    def _best(self) -> tuple[int, int, float]:
        while True:
            while self.heap:
                _, i, j, change = heapq.heappop(self.heap)
                if i in self.slot and j in self.slot:
                    return i, j, change
            self._add_candidates(self.alive.nonzero()[:, 0].tolist())

    def _merge(self, slot: int, gone: int, node: int, change: float) -> None:
        _, first = self._priced(torch.tensor([slot]), torch.tensor([gone]))
        self.mass[slot] += self.mass[gone]
        self.moments[slot] += self.moments[gone]
        self.length[slot] += self.length[gone] + change
        self.first[slot] = first[0]
        self.before[slot] = joined(self.before[slot], self.before[gone])
        self.price[slot] = self.stay.price(self.before[slot])
        del self.slot[self.node[slot]], self.slot[self.node[gone]]
        self.node[slot], self.slot[node] = node, slot
        self.alive[gone] = False
        both = self.adjacent[slot] | self.adjacent[gone]
        self.adjacent[slot] = {a for a in both if a not in (slot, gone)}
        for other in self.adjacent[slot]:
            self.adjacent[other].discard(gone)
            self.adjacent[other].add(slot)

    def _add_candidates(self, slots: list[int]) -> None:
        """Push the change of length for each slot with its most similar living ones."""
        wanted: set[tuple[int, int]] = set()
        for part in torch.tensor(slots).split(1024):
            similar = (self.first[part] @ self.first.T).square_()
            similar[:, ~self.alive] = -1
            similar[torch.arange(len(part)), part] = -1
            count = min(2 * self.neighbours, len(self.slot) - 1)
            ranked = similar.topk(count, dim=1).indices.tolist()
            for slot, found in zip(part.tolist(), ranked, strict=True):
                # The most similar, and the next of those that its parts were paired with.
                near = found[: self.neighbours]
                near += [
                    other for other in found[self.neighbours :] if other in self.adjacent[slot]
                ]
                wanted.update((min(slot, other), max(slot, other)) for other in near)
                self.adjacent[slot] = set()
        pairs = torch.tensor(sorted(wanted))
        for part in pairs.split(1024):
            changes = self._changes(part)
            for (a, b), change in zip(part.tolist(), changes.tolist(), strict=True):
                self.adjacent[a].add(b)
                self.adjacent[b].add(a)
                empty = min(float(self.mass[a]), float(self.mass[b])) <= 0
                i, j = sorted((self.node[a], self.node[b]))
                heapq.heappush(self.heap, (-float("inf") if empty else change, i, j, change))

    def _changes(self, pairs: Int[Tensor, "p 2"]) -> Float[Tensor, " p"]:
        i, j = pairs.unbind(1)
        return self._priced(i, j)[0] - self.length[i] - self.length[j]


def joined_directions(mass: Tensor, first: Tensor, more: Tensor, other: Tensor) -> Tensor:
    """About where the first directions of unions lie."""
    sign = torch.where((first * other).sum(1) < 0, -1.0, 1.0)
    return mass[:, None] * first + (sign * more)[:, None] * other


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
