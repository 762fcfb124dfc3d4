"""The cluster of any row, old or new: least coding length, with confidence and an outlier score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.model import CellModel
from rrcluster.core.probe import Probe
from rrcluster.core.shards import Shards
from rrcluster.core.tiles import by_tiles

TEMPERATURES = (1e-6, 1e6)  # nats; the bisection's ends
BISECTIONS = 50


@dataclass(frozen=True)
class Assignment:
    """Per row: cheapest leaf, confidence (0..1), outlier z-score, cost of the leaf (nats)."""

    leaf: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    outlier: Float[Tensor, " n"]
    cost: Float[Tensor, " n"]


def assign(
    model: CellModel,
    x: Float[Tensor, "n d"],
    groups: Int[Tensor, " k"] | None = None,
    temperature: float = 1.0,
) -> Assignment:
    """Give each row to its cheapest leaf.

    ``confidence`` is the share of the chosen leaf's group (``groups[leaf]``; None: each leaf its
    own) in softmax(−cost/temperature). A row's answer is the same bits whatever rows come with it.
    """

    def choose(rows: Tensor) -> tuple[Tensor, ...]:
        costs = model.costs(rows)
        cost, leaf = costs.min(1)
        return leaf, _confidence(costs, cost, leaf, groups, temperature), cost

    leaf, confidence, cost = by_tiles(x, choose)
    return Assignment(leaf, confidence, model.codes.outlier(cost, leaf), cost)


def _confidence(
    costs: Tensor, cost: Tensor, leaf: Tensor, groups: Tensor | None, temperature: float
) -> Tensor:
    weight = ((cost[:, None] - costs) / temperature).exp()  # 1 for the chosen leaf
    if groups is None:
        return 1 / weight.sum(1)
    mine = torch.where(groups[None] == groups[leaf][:, None], weight, 0.0)
    return (mine.sum(1) / weight.sum(1)).clamp_max(1.0)


def calibrate(
    model: CellModel,
    shards: Shards,
    groups: Int[Tensor, " k"] | None = None,
    probe_rows: int = 4000,
    neighbours: int = 10,
) -> float:
    """The temperature (nats) at which mean confidence is the share of like-labelled neighbours.

    No labels are needed: a cluster that cuts through dense neighbourhoods is uncertain there. Mean
    confidence falls with the temperature, so bisection of its logarithm finds it.
    """
    probe = Probe.of(shards, probe_rows, neighbours)
    costs = by_tiles(probe.x, lambda rows: (model.costs(rows),))[0]
    cost, leaf = costs.min(1)
    target = probe.same(leaf if groups is None else groups[leaf])
    low, high = (math.log(t) for t in TEMPERATURES)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = _confidence(costs, cost, leaf, groups, math.exp(middle)).double().mean()
        low, high = (middle, high) if float(found) > target else (low, middle)
    return math.exp((low + high) / 2)
