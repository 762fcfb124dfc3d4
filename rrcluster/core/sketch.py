"""Rows in a quarter or half of their numbers: enough to tell far centroids from near ones.

Distances along the leading principal directions are most of the distances between rows. While
annealing still moves and splits centroids, which of two near ones a row goes to hardly matters, and
with many centroids looking rows up is nearly all that a fit costs. Directions are rounded to whole
numbers, so that sketches of rows on a grid are the same bits on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from rrcluster.core.grid import GROUP, SPREADS, products
from rrcluster.core.tiles import TILE, rows_at_once

KEPT = 0.75  # of the rows' squares that a sketch must keep; else the rows are looked up as they are


@dataclass(frozen=True)
class Sketch:
    """Inner products with ``directions``, times ``scale``, rounded and clamped to ±limit.

    ``square``: a squared distance of 1 between sketches, as one between the rows.
    """

    directions: Int8[Tensor, "m d"]
    scale: float
    limit: int
    square: float

    @staticmethod
    def of(codes: Int8[Tensor, "s d"], limit: int) -> Sketch | None:
        """The narrower of two sketches that keeps enough of a sample; None where neither does."""
        d = codes.shape[1]
        moment = torch.zeros(d, d, dtype=torch.float64)
        for tile in codes.split(TILE):  # whole numbers below 2**24: exact in float32
            wide = tile.float()
            moment += wide.T @ wide
        values, vectors = torch.linalg.eigh(moment)
        kept = values.flip(0).cumsum(0) / values.sum()
        for part in (4, 2):
            m = -(-d // part // GROUP) * GROUP
            if m < d and float(kept[m - 1]) >= KEPT:
                return Sketch._along(vectors[:, -m:].T, codes, limit)
        return None

    @staticmethod
    def _along(unit: Float[Tensor, "m d"], codes: Tensor, limit: int) -> Sketch:
        longer = limit / float(unit.abs().max())
        directions = (unit * longer).round().to(torch.int8).contiguous()
        spread = float(products(codes, directions).double().square().mean().sqrt())
        scale = limit / (SPREADS * spread)
        return Sketch(directions, scale, limit, (longer * scale) ** -2)

    def __call__(self, codes: Int8[Tensor, "n d"]) -> Int8[Tensor, "n m"]:
        return torch.cat([self._tile(tile) for tile in codes.split(rows_at_once(codes))])

    def _tile(self, codes: Tensor) -> Tensor:
        along = products(codes, self.directions.to(codes.device)) * self.scale
        return along.round_().clamp_(-self.limit, self.limit).to(torch.int8)
