"""Cells: the coarse cut of a large fit. A row belongs to its nearest cell and is answered there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.tiles import by_tiles


def nearest(
    x: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Index of the nearest centroid and the squared Euclidean distance to it, ties to the first.

    A row's answer does not depend on the other rows.
    """
    half = 0.5 * centroids.square().sum(1)

    def choose(rows: Tensor) -> tuple[Tensor, ...]:
        score, label = (rows @ centroids.T - half).max(1)
        return label, (rows.square().sum(1) - 2 * score).clamp_min(0)

    labels, squared = by_tiles(x, choose)
    return labels, squared


def routed(
    cells: Float[Tensor, "c d"],
    x: Float[Tensor, "n d"],
    within: Callable[..., tuple[Tensor, ...]],
    *beside: Tensor,
) -> tuple[Tensor, ...]:
    """``within(cell, rows, *beside)`` on the rows of each nearest cell, and on what lies beside
    them; its columns in the order of x."""
    if len(cells) == 1 or len(x) == 0:
        return within(0, x, *beside)
    cell, _ = nearest(x, cells)
    order = cell.argsort(stable=True)
    parts: list[tuple[Tensor, ...]] = []
    for c, count in enumerate(torch.bincount(cell, minlength=len(cells)).tolist()):
        if count:
            start = sum(len(p[0]) for p in parts)
            mine = order[start : start + count]
            parts.append(within(c, x[mine], *(b[mine] for b in beside)))
    back = order.argsort(stable=True)
    return tuple(torch.cat(column)[back] for column in zip(*parts, strict=True))
