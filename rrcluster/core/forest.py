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
from rrcluster.core.model import CellModel, under
from rrcluster.core.novelty import Novel


@dataclass(frozen=True)
class Forest:
    """``paths[leaf]`` is the cluster of the leaf at each level, coarsest first, numbered from 0."""

    cells: Float[Tensor, "c d"]
    models: tuple[CellModel, ...]
    paths: Int[Tensor, "k L"]  # of the cells' leaves in turn, then of clusters opened later
    temperature: float
    novel: Novel | None = None
    homes: Homes | None = None

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

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for storage, without ``homes``; ``from_tensors`` reads them back."""
        found = {"cells": self.cells, "paths": self.paths}
        found["temperature"] = torch.tensor([self.temperature], dtype=torch.float64)
        parts: dict[str, CellModel | Novel] = {f"cell{c}": m for c, m in enumerate(self.models)}
        if self.novel is not None:
            parts["novel"] = self.novel
        return found | {
            f"{p}.{n}": t for p, part in parts.items() for n, t in part.tensors().items()
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Forest:
        cells = tensors["cells"]
        models = (under(tensors, f"cell{c}.") for c in range(len(cells)))
        novel = under(tensors, "novel.")
        return Forest(
            cells,
            tuple(CellModel.from_tensors(m) for m in models),
            tensors["paths"],
            float(tensors["temperature"][0]),
            Novel.from_tensors(novel) if novel else None,
        )


@dataclass(frozen=True)
class Homes:
    """Where rows were by the model ``before`` a refit, and how long they stay there.

    The successor of a row's cluster is its home: a row leaves it only for a cluster that is cheaper
    by more than the ``nats`` of that cluster. This is a property of the row: one that comes later
    gets the same answer.
    """

    before: Forest
    successor: Int[Tensor, " clusters"]  # the refit's finest cluster for each old one; −1: none
    of_leaf: Int[Tensor, " leaves"]  # the refit's finest cluster of each leaf, whatever joins later
    nats: Float[Tensor, " k"]  # by the refit's finest clusters

    def __call__(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The home of each row; −1 for rows of clusters that ended."""
        return self.successor[label(self.before, x).path[:, -1]]


@dataclass(frozen=True)
class Labels:
    """Per row: leaf, cluster at each level, confidence (0..1), outlier z-score, cost in nats."""

    leaf: Int[Tensor, " n"]
    path: Int[Tensor, "n L"]
    confidence: Float[Tensor, " n"]
    outlier: Float[Tensor, " n"]
    cost: Float[Tensor, " n"]

    def with_rows(self, rows: Int[Tensor, " m"], part: Assignment, paths: Tensor) -> Labels:
        """These, where some rows are assigned otherwise."""
        leaf = self.leaf.index_copy(0, rows, part.leaf)
        return Labels(
            leaf,
            paths[leaf],
            self.confidence.index_copy(0, rows, part.confidence),
            self.outlier.index_copy(0, rows, part.outlier),
            self.cost.index_copy(0, rows, part.cost),
        )


def label(forest: Forest, x: Float[Tensor, "n d"]) -> Labels:
    """Assign every row by coding length within the subtree that it reaches."""
    found = _assigned(forest, x)
    labels = Labels(
        found.leaf, forest.paths[found.leaf], found.confidence, found.outlier, found.cost
    )
    if forest.homes is not None:
        labels = _stayed(forest, forest.homes, x, labels)
    return relabelled(forest, x, labels)


def _assigned(
    forest: Forest, x: Tensor, parts: Tensor | None = None, wanted: Tensor | None = None
) -> Assignment:
    """By the fit's leaves; of those alone whose part is the one ``wanted`` for the row, if any."""
    first = forest.first_leaf

    def within(cell: int, rows: Tensor, *part: Tensor) -> tuple[Tensor, ...]:
        mine = slice(first[cell], first[cell + 1])
        only = None if parts is None else (parts[mine], part[0])
        model, finest = forest.models[cell], forest.paths[mine, -1]
        found = assign(model, rows, finest, forest.temperature, only)
        cost = found.cost
        if only is not None and not model.codes.refined:
            cost = torch.full_like(cost, float("inf"))  # costs of a seed are not nats
        return found.leaf + first[cell], found.confidence, found.outlier, cost

    return Assignment(*routed(forest.cells, x, within, *(() if wanted is None else (wanted,))))


def _stayed(forest: Forest, homes: Homes, x: Tensor, found: Labels) -> Labels:
    """Labels with the rows back home that have no good reason to leave it."""
    home = homes(x)
    cheapest = homes.of_leaf[found.leaf]
    away = ((home >= 0) & (cheapest != home)).nonzero()[:, 0]
    if not len(away):
        return found
    at_home = _assigned(forest, x[away], homes.of_leaf, home[away])
    saved = at_home.cost - found.cost[away]  # without end where home has no leaf in the cell
    back = saved <= homes.nats[cheapest[away]]
    part = Assignment(*(column[back] for column in vars(at_home).values()))
    return found.with_rows(away[back], part, forest.paths)


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
    leaf = forest.first_leaf[-1] + choice[moved]
    part = Assignment(leaf, confidence[moved], outlier[moved], cost[moved])
    return found.with_rows(open_to[moved], part, forest.paths)


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


def joined(
    paths: Int[Tensor, "n L"], into: Int[Tensor, " k"]
) -> tuple[Int[Tensor, "n L"], list[Int[Tensor, " _"]]]:
    """Paths where finest cluster i is part of ``into[i]``; and per level the clusters left, which
    are numbered in their order.

    ``into[i]`` is i where a cluster stays one; none joins one that joins another itself.
    """
    path = torch.zeros(len(into), paths.shape[1], dtype=paths.dtype)
    path[paths[:, -1]] = paths
    parts = [level.unique(return_inverse=True) for level in path[into][paths[:, -1]].T]
    return torch.stack([number for _, number in parts], 1), [left for left, _ in parts]


def nested_paths(cuts: list[Int[Tensor, " k"]]) -> Int[Tensor, "k L"]:
    """Cluster of each leaf per level from cuts of one merge tree, coarse to fine.

    Raises AssertionError when a finer cluster lies in two coarser ones.
    """
    for coarse, fine in pairwise(cuts):
        pairs = torch.stack([fine, coarse], 1).unique(dim=0)
        assert len(pairs) == int(fine.max()) + 1, "cuts of one merge tree are nested"
    return torch.stack(cuts, 1)
