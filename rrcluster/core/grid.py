"""Nearest centroids by products in whole numbers: fast, and the same bits on every device.

Rows and centroids are centred and rounded to a common grid of whole numbers of one byte. Their
inner products are whole numbers below 2**24, so they are exact in any order of summation: by int8
instructions, in float32, or by the tensor cores of a GPU (``core/fused.py``). A row's answer
depends neither on the rows beside it nor on the library; ``cells.nearest`` is the unrounded
counterpart, used for narrow rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

ROWS, COLUMNS, GROUP = 512, 1024, 32  # tile of products: 2 MiB, so that it stays near the core
SPREADS = 8.0  # root mean squares of a coordinate that the grid spans on each side
MIN_WIDTH = 64  # below, rounding errors do not average out over the coordinates
EXACT = 1 << 24  # whole numbers below it are exact in float32
CLOSED = 1 << 30  # bias of a column that is no centroid


@dataclass(frozen=True)
class Grid:
    """Whole numbers round((x − centre) · scale), clamped to ±limit."""

    centre: Float[Tensor, " d"]
    scale: float
    limit: int

    @staticmethod
    def of(sample: Float[Tensor, "m d"]) -> Grid | None:
        """The grid that spans the sample; None where rows are too narrow or all equal."""
        d = sample.shape[1]
        centre = torch.stack([x.double().sum(0) for x in sample.split(ROWS)]).sum(0) / len(sample)
        squares = [(x.double() - centre).square().sum() for x in sample.split(ROWS)]
        spread = math.sqrt(float(torch.stack(squares).sum()) / sample.numel())
        if d < MIN_WIDTH or spread < 1e-6:
            return None
        limit = min(127, math.isqrt(EXACT // d))
        return Grid(centre.float(), limit / (SPREADS * spread), limit)

    def place(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows in units of the grid, not rounded."""
        return torch.sub(x, self.centre.to(x.device)).mul_(self.scale)  # float32 as the centre

    def back(self, placed: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows in units of the grid as rows of the data, in place; on the CPU.

        A GPU would multiply by the inverse instead of dividing, which rounds differently.
        """
        return placed.cpu().div_(self.scale).add_(self.centre)

    def round(self, placed: Float[Tensor, "n d"]) -> Int8[Tensor, "n d"]:
        """Placed rows on the grid."""
        return placed.round().clamp_(-self.limit, self.limit).to(torch.int8)


class Codebook:
    """Centroids on a grid, ready to be searched."""

    def __init__(self, codes: Int8[Tensor, "k d"]) -> None:
        k = len(codes)
        norms = torch.cat([tile.float().square().sum(1) for tile in codes.split(COLUMNS)]).int()
        extra = -k % (COLUMNS if k > COLUMNS else GROUP)  # columns come in whole tiles
        self._codes = torch.nn.functional.pad(codes, (0, 0, 0, extra))
        self._half = torch.nn.functional.pad((norms + 1) // 2, (0, extra), value=CLOSED)

    def nearest(self, codes: Int8[Tensor, "n d"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Index of the nearest centroid, the first of equals, and x·c − ½|c|² of it."""
        if codes.device.type != "cpu":
            from rrcluster.core import fused  # brings Triton, which torch has for GPUs

            return fused.nearest(codes, self._codes, self._half)
        labels = torch.empty(len(codes), dtype=torch.int64)
        scores = torch.empty(len(codes), dtype=torch.int32)
        for start in range(0, len(codes), ROWS):
            stop = min(start + ROWS, len(codes))
            labels[start:stop], scores[start:stop] = self._tile(codes[start:stop])
        return labels, scores

    def _tile(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        best: Tensor | None = None
        label = torch.empty(0)
        every = torch.arange(len(codes))
        for first in range(0, len(self._codes), COLUMNS):
            columns = slice(first, first + COLUMNS)
            score = products(codes, self._codes[columns]).sub_(self._half[columns])
            # The largest of each group, then within the best group: a maximum alone is vectorized,
            # its position is not.
            groups = score.view(len(codes), -1, GROUP)
            group = groups.amax(2).argmax(1)
            top, inside = groups[every, group].max(1)
            found = group * GROUP + inside + first
            if best is None:
                best, label = top, found
            else:
                better = top > best
                best, label = torch.where(better, top, best), torch.where(better, found, label)
        assert best is not None, "a codebook has at least one centroid"
        return label, best


def products(a: Int8[Tensor, "m d"], b: Int8[Tensor, "k d"]) -> Int[Tensor, "m k"]:
    """a bᵀ as int32, exact; whichever way is fast on the device gives the same numbers."""
    return _in_bytes(a, b) if a.device.type == "cpu" and int8_pays() else _in_floats(a, b)


def _in_bytes(a: Tensor, b: Tensor) -> Tensor:
    return torch._int_mm(a, b.T)


def _in_floats(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() @ b.float().T).int()


@lru_cache
def int8_pays() -> bool:
    """Whether this CPU's int8 products are right, and faster than float32's.

    Without instructions for dot products of bytes (VNNI, AMX) they take some 30 times as long.
    Asking the clock is safe: both give the same numbers.
    """
    a = torch.full((128, 256), 127, dtype=torch.int8)
    return int8_is_exact() and _seconds(_in_bytes, a, a) < _seconds(_in_floats, a, a)


def int8_is_exact() -> bool:
    """Whether this machine's int8 products are right at the extremes: old CPUs saturate."""
    a = torch.full((32, 256), 127, dtype=torch.int8)
    a[::2] = -127
    b = torch.full((32, 256), 127, dtype=torch.int8)
    b[::3] = -127
    try:
        return torch.equal(_in_bytes(a, b), _in_floats(a, b))
    except RuntimeError:
        return False


def _seconds(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    """The fastest of four; the first one makes the kernel ready."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        product(a, b)
        times.append(time.perf_counter() - start)
    return min(times)
