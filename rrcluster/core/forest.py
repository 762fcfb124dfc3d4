"""The fitted model: cells, a model per cell, and the clusters that the leaves belong to.

A row goes to its nearest cell, there to its cheapest leaf, and by the leaf's path to one cluster
per level. That is all that assigning a sample needs, old or new.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.assign import Assignment, assign
from rrcluster.core.cells import routed
from rrcluster.core.model import CellModel
from rrcluster.core.novelty import Novel


@dataclass(frozen=True)
class Forest:
    """``paths[leaf]`` is the cluster of the leaf at each level, coarsest first, numbered from 0."""

    cells: Float[Tensor, "c d"]
    models: tuple[CellModel, ...]
    paths: Int[Tensor, "k L"]  # of the cells' leaves in turn, then of clusters opened later
    temperature: float
    novel: Novel | None = None

    @property
    def first_leaf(self) -> list[int]:
        """Index of each cell's first leaf in ``paths``; one more entry ends the last cell."""
        first = [0]
        for model in self.models:
            first.append(first[-1] + model.num_leaves)
        return first

    @property
    def clusters_per_level(self) -> list[int]:
        return [int(n) + 1 for n in self.paths.max(0).values]


@dataclass(frozen=True)
class Labels:
    """Per row: leaf, cluster at each level, confidence (0..1), outlier z-score, cost in nats."""

    leaf: Int[Tensor, " n"]
    path: Int[Tensor, "n L"]
    confidence: Float[Tensor, " n"]
    outlier: Float[Tensor, " n"]
    cost: Float[Tensor, " n"]


def label(forest: Forest, x: Float[Tensor, "n d"]) -> Labels:
    """Assign every row by coding length within the subtree that it reaches."""
    first = forest.first_leaf

    def within(cell: int, rows: Tensor) -> Assignment:
        finest = forest.paths[first[cell] : first[cell + 1], -1]
        return assign(forest.models[cell], rows, finest, forest.temperature)

    leaf, confidence, outlier, cost = routed(
        forest.cells,
        x,
        lambda c, rows: (
            (found := within(c, rows)).leaf + first[c],
            found.confidence,
            found.outlier,
            found.cost,
        ),
    )
    found = Labels(leaf, forest.paths[leaf], confidence, outlier, cost)
    return relabelled(forest, x, found)


def relabelled(forest: Forest, x: Float[Tensor, "n d"], found: Labels) -> Labels:
    """Labels by the fit (of a forest with the same leaves), with the paths of this forest, and
    with the rows that go to clusters opened since."""
    found = replace(found, path=forest.paths[found.leaf])
    novel = forest.novel
    if novel is None:
        return found
    open_to = (found.outlier > novel.threshold).nonzero()[:, 0]
    if not len(open_to):
        return found
    choice, confidence, outlier, cost = novel.claim(
        x[open_to], found.leaf[open_to], forest.temperature
    )
    moved = choice >= 0
    rows = open_to[moved]
    leaf = found.leaf.index_copy(0, rows, forest.first_leaf[-1] + choice[moved])
    return Labels(
        leaf,
        forest.paths[leaf],
        found.confidence.index_copy(0, rows, confidence[moved]),
        found.outlier.index_copy(0, rows, outlier[moved]),
        found.cost.index_copy(0, rows, cost[moved]),
    )


@dataclass(frozen=True)
class Before:
    """The model that a refit starts from: rows that cost it more than ``score`` deviations above
    their cluster's own have no say, and the variation of others costs ``nats`` a row."""

    forest: Forest
    score: float
    nats: float

    def __call__(self, x: Tensor) -> Int[Tensor, " n"]:
        """The old finest cluster of each row; −1 for a row without a say."""
        found = label(self.forest, x)
        return torch.where(found.outlier > self.score, -1, found.path[:, -1])


def levels_for(k: str | int | list[int], estimate: int) -> list[int]:
    """Numbers of clusters from coarse to fine.

    ``auto`` takes the estimate as the finest level and goes up by factors of about 8 to at least 2
    clusters, so that a reader never faces more than some tens of children.
    """
    if isinstance(k, int):
        return [k]
    if isinstance(k, list):
        return k
    levels = [max(1, estimate)]
    while levels[0] > 12:
        levels.insert(0, max(2, round(levels[0] / 8)))
    return levels


def nested_paths(cuts: list[Int[Tensor, " k"]]) -> Int[Tensor, "k L"]:
    """Cluster of each leaf per level from cuts of one merge tree, coarse to fine.

    Raises AssertionError when a finer cluster lies in two coarser ones.
    """
    for coarse, fine in pairwise(cuts):
        pairs = torch.stack([fine, coarse], 1).unique(dim=0)
        assert len(pairs) == int(fine.max()) + 1, "cuts of one merge tree are nested"
    return torch.stack(cuts, 1)
