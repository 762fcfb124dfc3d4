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
    only: tuple[Int[Tensor, " k"], Int[Tensor, " n"]] | None = None,
) -> Assignment:
    """Give each row to its cheapest leaf.

    ``confidence`` is the share of the chosen leaf's group (``groups[leaf]``; None: each leaf its
    own) in softmax(−cost/temperature). A row's answer is the same bits whatever rows come with it.
    With ``only`` (parts of leaves, part of each row) leaves of other parts cannot be chosen: cost
    inf where there is none.
    """
    parts = None if only is None else only[0]

    def choose(rows: Tensor, *part: Tensor) -> tuple[Tensor, ...]:
        costs = model.costs(rows)
        open_to = costs
        if parts is not None:
            open_to = torch.where(parts[None] == part[0][:, None], costs, float("inf"))
        cost, leaf = open_to.min(1)
        return leaf, _confidence(costs, leaf, groups, temperature), cost

    leaf, confidence, cost = by_tiles(x, choose, *(() if only is None else (only[1],)))
    return Assignment(leaf, confidence, model.codes.outlier(cost, leaf), cost)


def _confidence(costs: Tensor, leaf: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    weight = ((costs.amin(1, keepdim=True) - costs) / temperature).exp()  # 1 for the cheapest
    if groups is None:
        return weight.gather(1, leaf[:, None])[:, 0] / weight.sum(1)
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
    leaf = costs.argmin(1)
    target = probe.same(leaf if groups is None else groups[leaf])
    low, high = (math.log(t) for t in TEMPERATURES)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = _confidence(costs, leaf, groups, math.exp(middle)).double().mean()
        low, high = (middle, high) if float(found) > target else (low, middle)
    return math.exp((low + high) / 2)
