"""Row-wise functions over tiles of constant shape.

A matrix product may round differently for another number of rows. Every row-wise product here sees
tiles of ``TILE`` rows, the last one padded with zeros, so that a row's answer is the same bits
whatever rows come with it, and memory is bounded by the tile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TILE = 1024  # rows per product
ON_GPU = 1 << 16  # rows at a time where a launch costs more than a tile


def rows_at_once(x: Tensor, on_cpu: int = TILE) -> int:
    """Rows to work on at a time: as many as stay near a core, or as keep a GPU busy."""
    return on_cpu if x.device.type == "cpu" else ON_GPU


def by_tiles(
    x: Float[Tensor, "n d"], function: Callable[..., tuple[Tensor, ...]], *beside: Tensor
) -> tuple[Tensor, ...]:
    """``function`` of float32 tiles (TILE, d): one entry per row in each tensor, joined.

    It also gets the tiles of what lies ``beside``: one number (n,) of each row.
    """
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, max(len(x), 1), TILE):
        rows = x[start : start + TILE].float()
        numbers = [b[start : start + TILE] for b in beside]
        count = len(rows)
        if count < TILE:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, TILE - count))
            numbers = [torch.nn.functional.pad(n, (0, TILE - count)) for n in numbers]
        parts.append(tuple(answer[:count] for answer in function(rows, *numbers)))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
