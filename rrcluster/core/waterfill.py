"""Water-filling: spread a budget over children as evenly as their bounds allow, exactly.

Every node of a level is filled at once: children of all nodes are one array with segments. With
bounds lo ≤ a ≤ up and weights w, child i of a node gets a_i = clip(w_i t, lo_i, up_i), where t is
the node's water level: Σ a_i = budget. Without weights and lower bounds that is min(t, size), the
allocation of hierarchical sampling in arXiv 2405.15613, section 3.3; rounding is exact here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def water_fill(
    budget: Ints,
    parent: Ints,
    lower: Ints,
    upper: Ints,
    weight: Floats,
    key: npt.NDArray[np.uint64],
) -> Ints:
    """(m,) the children's shares: each node's shares add up to its budget, to the row.

    ``budget`` (p,) of the nodes, each between the sums of its children's bounds; ``parent`` (m,)
    the node of each child; ``weight`` (m,) positive. What whole numbers leave over goes to the
    largest fractions, and among equal ones by ``key`` (m,): a hash, so not by the order of rows.
    """
    nodes = len(budget)
    weight = _scaled(weight, parent, nodes)
    level = _water_level(budget, parent, lower, upper, weight)[parent]
    with np.errstate(invalid="ignore"):
        ideal = np.clip(weight * level, lower, upper)
    share = np.floor(ideal).astype(np.int64)
    rest = budget - sums(share, parent, nodes)
    while rest.any():  # once, or twice where weights were rounded
        step = np.where(rest > 0, 1, -1)[parent]
        room = np.where(step > 0, share < upper, share > lower) & (rest != 0)[parent]
        where = np.flatnonzero(room)
        if not len(where):
            raise ValueError("a budget is outside the bounds of its children")
        fraction = (share[where] - ideal[where]) * step[where]
        order = np.lexsort((key[where], fraction, parent[where]))
        where = where[order]
        rank = ranks(parent[where])
        chosen = where[rank < np.abs(rest)[parent[where]]]
        share[chosen] += step[chosen]
        rest = budget - sums(share, parent, nodes)
    return share


def sums(values: Ints, group: Ints, groups: int) -> Ints:
    """(groups,) the sum of the values of each group, exact up to 2⁵³."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.int64)


def ranks(group: npt.NDArray[Any]) -> Ints:
    """Position of each entry in its run of equal neighbours, from 0."""
    start = np.r_[True, group[1:] != group[:-1]] if len(group) else np.zeros(0, bool)
    first = np.flatnonzero(start)
    return np.arange(len(group)) - np.repeat(first, np.diff(np.r_[first, len(group)]))


def _scaled(weight: Floats, parent: Ints, nodes: int) -> Floats:
    """Weights relative to their node's mean; exactly 1 where they are all equal."""
    if not len(weight) or (weight == weight[0]).all():
        return np.ones(len(weight))
    total = np.bincount(parent, weights=weight, minlength=nodes)
    count = np.bincount(parent, minlength=nodes)
    return weight * (count / np.maximum(total, np.finfo(float).tiny))[parent]


def _water_level(budget: Ints, parent: Ints, lower: Ints, upper: Ints, weight: Floats) -> Floats:
    """(p,) the level t of each node, from the sorted levels where children start and stop rising.

    Between two of these events Σ a_i = constant + slope · t, with an integer constant.
    """
    nodes, starts = len(budget), np.flatnonzero(lower > 0)
    at = np.concatenate([upper / weight, lower[starts] / weight[starts]])
    node = np.concatenate([parent, parent[starts]])
    constant = np.concatenate([upper, -lower[starts]])
    slope = np.concatenate([-weight, weight[starts]])
    order = np.argsort(at, kind="stable")
    order = order[np.argsort(node[order], kind="stable")]
    at, node, constant, slope = at[order], node[order], constant[order], slope[order]

    rising = np.where(lower > 0, 0.0, weight)
    constant0 = sums(lower, parent, nodes)
    slope0 = np.bincount(parent, weights=rising, minlength=nodes)
    first = np.searchsorted(node, np.arange(nodes))
    constants = np.r_[0, np.cumsum(constant)]
    slopes = np.r_[0.0, np.cumsum(slope)]

    def after(events: Ints, of: Ints) -> tuple[Ints, Floats]:
        """Constant and slope of nodes ``of`` when their events before ``events`` have passed."""
        constant = constant0[of] + constants[events] - constants[first[of]]
        return constant, slope0[of] + slopes[events] - slopes[first[of]]

    c, s = after(np.arange(1, len(at) + 1), node)
    passed = c + s * at <= budget[node]
    c, s = after(
        first + np.bincount(node, weights=passed, minlength=nodes).astype(np.int64),
        np.arange(nodes),
    )
    full = s <= 1e-9  # every child is at its upper bound
    return np.where(full, np.inf, (budget - c) / np.where(full, 1.0, s))
