"""k-means, written once against the seam: it sees rows only as (count, sum, squares) per centroid.

A fit anneals centroids on a bounded sample in one place (``core/anneal.py``) and then settles them
by Lloyd's iterations over the blocks, wherever these are. Hierarchies of either direction
(``core/hierarchy.py``) are made of such fits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.anneal import AnnealSpec, Book, Space, annealed, anneals, unit
from rrcluster.core.shards import ALONE, Shards
from rrcluster.core.summing import add_in_order
from rrcluster.core.tiles import rows_at_once
from rrcluster.records import setting

SUM_ROWS = 512  # rows labelled and summed at a time
PROBE_ROWS = 4096  # on which it is seen how many rows move
UNIT = 2.0**-24  # of squared norms in sums
ALIKE = 1e-6  # mean squared distance below which rows count as equal
Path = tuple[str | int, ...]


@dataclass
class SeedingSpec(AnnealSpec):
    """Settings of the seeding stage: hierarchical k-means on a bounded sample."""

    fit_rows: int = setting(1_000_000, "rows that models are fitted on at most (hash-chosen)")
    block_rows: int = setting(16_384, "rows of one fit block, the unit of work of a fit")
    oversegment: float = setting(2.5, "leaves seeded per cluster wanted; refinement merges them")
    auto_leaf_rows: int = setting(40, "k=auto: fit rows per seeded leaf")
    auto_max_leaves: int = setting(1024, "k=auto: leaves seeded at most")
    cell_leaves: int = setting(
        256, "leaves of one subtree at most; beyond, a coarse level cuts cells"
    )
    hierarchy: Literal["top_down", "bottom_up"] = setting(
        "top_down",
        "bottom_up: k lists levels of k-means of the centroids below, rows go to the nearest "
        "centroid, nothing is refined or merged (hierarchies as of ssl-data-curation)",
    )
    splits: Any = setting(
        1, "bottom_up: parts that each cluster of a smaller fit is cut into; one number or per k"
    )
    resamplings: Any = setting(
        0, "bottom_up: times a level is fitted again on members of its clusters; number or per k"
    )
    sample_size: Any = setting(
        1, "bottom_up: members of each cluster that this takes, 1: none; one number or per k"
    )
    sample_choice: Literal["closest", "random"] = setting(
        "closest", "bottom_up: which members: the closest to the centroid, or random ones"
    )
    iterations: int = setting(30, "Lloyd iterations over the blocks at most")
    tolerance: float = setting(1e-3, "settled when an iteration lowers inertia by less than this")
    moved_share: float = setting(1e-3, "settled when fewer rows of a probe than this share move")


@dataclass(frozen=True)
class Clusters:
    """Centroids (k, d), and the rows' count (k,) and inertia (k,) in each in the last pass."""

    centroids: Float[Tensor, "k d"]
    count: Float[Tensor, " k"]
    inertia: Float[Tensor, " k"]


@dataclass(frozen=True)
class State:
    """Where Lloyd's iterations stand before a pass: all that going on from there takes."""

    iteration: int
    blocks: int
    centroids: Float[Tensor, "k d"]


OnPass = Callable[[State, float], None]


@dataclass(frozen=True)
class ClusterSums:
    """The statistic: count (k,), sum (k, d) and squared norms (k,) of the rows of each centroid.

    All of float64 and exact in any order: float16 numbers are multiples of 2**-24, squared norms
    are rounded to such, weights are whole numbers. (Exact up to 2**29 unit rows in a cluster.)
    """

    space: Space
    centroids: Float[Tensor, "k d"]

    @property
    def device(self) -> torch.device:
        return self.centroids.device

    def to(self, device: str) -> ClusterSums:
        """The same on a device. Narrow rows stay on the CPU: their products are not exact."""
        if self.space.grid is None:
            return self
        return replace(self, centroids=self.centroids.to(device))

    @cached_property
    def _book(self) -> Book:
        """Made once where rows are added, and shared by the threads there."""
        return self.space.book_of(self.centroids)

    def __call__(self, x: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        sums = self.zeros()
        self.add(sums, x, weights)
        return sums

    def zeros(self) -> dict[str, Tensor]:
        """The sums of no rows."""
        k, d = self.centroids.shape
        shapes = {"count": (k,), "sum": (k, d), "square": (k,)}
        return {
            name: torch.zeros(*shape, dtype=torch.float64, device=self.device)
            for name, shape in shapes.items()
        }

    def add(
        self,
        total: dict[str, Tensor],
        x: Tensor,
        weights: Tensor | None = None,
        turn: AbstractContextManager[Any] = ALONE,
    ) -> None:
        """Add a block's sums to ``total`` where it lies; threads that share it take turns."""
        # One buffer: fresh memory for every tile costs more than the sums.
        size = rows_at_once(x, SUM_ROWS)
        wide = x.new_empty(min(size, len(x)), x.shape[1], dtype=torch.float64)
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            label = self._book.labels(self.space.coded(rows))
            exact = wide[: len(rows)].copy_(rows)
            norms = (exact.square().sum(1) / UNIT).round() * UNIT
            weight = torch.ones_like(norms)
            if weights is not None:
                weight = weights[start : start + size].double()
                exact.mul_(weight[:, None])
            with turn:
                add_in_order(total["sum"], label, exact)
                add_in_order(total["count"], label, weight)
                add_in_order(total["square"], label, weight * norms)


def fit(
    shards: Shards,
    k: int,
    spec: SeedingSpec,
    seed: int,
    path: Path = (),
    on_pass: OnPass | None = None,
    resume: State | None = None,
) -> Clusters:
    """Flat k-means: annealed on a bounded sample, settled over all blocks; no cluster is empty.

    There are fewer than k where there are fewer distinct rows. ``on_pass(state, inertia)`` is told
    the state before each pass and the mean squared distance; ``resume`` goes on from a state.
    Raises ValueError where rows are not finite.
    """
    # The start has no name here: lloyd alone holds it, and lets go of it after the first pass.
    found = lloyd(
        shards, resume or _start(shards, k, spec, seed, path), spec, seed, path, on_pass
    )  # fmt: skip
    kept = found.count > 0  # what stayed empty holds no distinct row
    return Clusters(found.centroids[kept], found.count[kept], found.inertia[kept])


def lloyd(
    shards: Shards,
    state: State,
    spec: SeedingSpec,
    seed: int,
    path: Path = (),
    on_pass: OnPass | None = None,
) -> Clusters:
    """Lloyd's iterations until few rows of a probe move, or updates win little of the inertia.

    They run on the first blocks while those tell enough, on twice as many each time they settle
    (nested batches, Newling and Fleuret 2016), and settle on all. A centroid without rows is put
    beside the one of most inertia, in a seeded direction.
    """
    space = Space.of(shards.rows(PROBE_ROWS))
    probe = shards.head(PROBE_ROWS)
    total = len(shards.rows_per_block)
    labels = _labels(space, state.centroids, probe)
    while True:
        sums = shards.total(ClusterSums(space, state.centroids), state.blocks)
        if not bool(torch.isfinite(sums["square"]).all()):
            raise ValueError("rows that are not finite cannot be clustered; embedding refuses them")
        before = _inertia(sums, state.centroids)
        if on_pass is not None:
            on_pass(state, float(before.sum() / sums["count"].sum()))
        means = _means(sums, state.centroids, spec)
        found = Clusters(means, sums["count"], _inertia(sums, means))
        del sums  # before other tables of centroids are made
        earlier, labels = labels, _labels(space, means, probe)
        moved = float((earlier != labels).double().mean())
        won = float((before - found.inertia).sum())
        settled = won <= spec.tolerance * float(before.sum()) or moved <= spec.moved_share
        if bool((found.count == 0).any()) and state.iteration < 5:
            settled = False
        everything = state.blocks == total
        if (settled and everything) or state.iteration + 1 >= spec.iterations:
            return found
        blocks = min(2 * state.blocks, total) if settled else state.blocks
        refilled = _refilled(found, seed, (*path, "refill", state.iteration))
        state = State(state.iteration + 1, blocks, refilled)
        del means, found  # but for those in ``state``


def _start(shards: Shards, k: int, spec: SeedingSpec, seed: int, path: Path) -> State:
    """Where a fit stands before its first pass."""
    count = min(k * spec.rows_per_centroid, shards.num_rows)
    how = partial(annealed, k=k, spec=spec, seed=seed, path=path, workers=shards.workers)
    return State(0, _first_blocks(shards, count, spec), shards.in_one_place(how, count))


def _first_blocks(shards: Shards, rows: int, spec: SeedingSpec) -> int:
    """Blocks that the first pass runs on: all after annealing, else those of the sample."""
    sizes = shards.rows_per_block
    if anneals(rows, spec):
        return len(sizes)
    held = torch.tensor(sizes).cumsum(0)
    return min(int((held < rows).sum()) + 1, len(sizes))


def _labels(space: Space, centroids: Tensor, x: Tensor) -> Tensor:
    book = space.book_of(centroids)
    return torch.cat([book.labels(space.coded(tile)) for tile in x.split(SUM_ROWS)])


def _inertia(sums: dict[str, Tensor], centroids: Tensor) -> Tensor:
    """Σ |x − c|² of the rows of each centroid = Σ|x|² − 2 c·Σx + n |c|², float64 (k,)."""
    cross, norms = [], []
    parts = zip(centroids.split(SUM_ROWS), sums["sum"].split(SUM_ROWS), strict=True)
    for part, total in parts:  # a tile at a time: k d doubles are as much as the sums themselves
        c = part.double()
        cross.append((c * total).sum(1))
        norms.append(c.square().sum(1))
    length = torch.cat(norms)
    return (sums["square"] - 2 * torch.cat(cross) + sums["count"] * length).clamp_min(0)


def _means(sums: dict[str, Tensor], centroids: Tensor, spec: SeedingSpec) -> Tensor:
    """The means of the rows, of unit length where the metric is spherical; empty ones stay."""
    means = torch.empty_like(centroids)
    tiles = (x.split(SUM_ROWS) for x in (means, sums["sum"], sums["count"]))
    for mean, total, n in zip(*tiles, strict=True):  # no second table of k d numbers beside it
        mean.copy_(total / n.clamp_min(1)[:, None])
        if spec.metric == "spherical":
            mean.copy_(unit(mean))
    empty = sums["count"] == 0
    means[empty] = centroids[empty]
    return means


def _refilled(found: Clusters, seed: int, path: Path) -> Tensor:
    """The centroids, the empty ones moved beside those of most inertia."""
    without_rows = (found.count == 0).nonzero()[:, 0].tolist()
    if not without_rows:
        return found.centroids
    centroids, spread = found.centroids.clone(), found.inertia.clone()
    for empty in without_rows:
        widest = int(spread.argmax())
        if found.count[widest] < 2 or spread[widest] <= ALIKE * found.count[widest]:
            break  # nothing to split: fewer distinct rows than centroids
        step = torch.randn(centroids.shape[1], generator=keys.generator(seed, *path, empty))
        step *= 0.5 * float((spread[widest] / found.count[widest]).sqrt()) / step.norm()
        centroids[empty] = centroids[widest] + step
        centroids[widest] -= step
        spread[widest] /= 4
    return centroids
