"""Nearest centroids on a GPU in one kernel: products of bytes and their largest, nothing between.

A program takes a tile of rows past all centroids and keeps each row's best score in registers: the
n × k scores are never in memory. Bytes go through the tensor cores at twice the rate of
bfloat16, and whole numbers are exact in any order, so the answers are those of ``grid.Codebook`` on
a CPU to the bit.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

# (rows, centroids, coordinates) of a tile, warps, and tiles that are fetched ahead. Which is
# fastest depends on the GPU; each is tried once for each width.
TILES = ((128, 256, 128, 8, 3), (128, 128, 128, 8, 3), (128, 128, 64, 4, 4), (64, 64, 64, 4, 2))
LOWEST = tl.constexpr(-(2**31) + 1)


@triton.jit
@no_type_check
def _nearest(
    rows, centroids, half, label, best, n, k,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    top = tl.full((ROWS,), LOWEST, tl.int32)
    at = tl.zeros((ROWS,), tl.int32)
    for first in range(0, k, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        known = column < k
        score = tl.zeros((ROWS, COLUMNS), tl.int32)
        for start in range(0, WIDTH, DEPTH):
            depth = start + tl.arange(0, DEPTH)
            there = depth < WIDTH
            a = tl.load(
                rows + row[:, None] * WIDTH + depth[None, :],
                mask=inside[:, None] & there[None, :], other=0,
            )  # fmt: skip
            b = tl.load(
                centroids + column[None, :].to(tl.int64) * WIDTH + depth[:, None],
                mask=known[None, :] & there[:, None], other=0,
            )  # fmt: skip
            score = tl.dot(a, b, score)
        lower = tl.load(half + column, mask=known, other=0)
        score = tl.where(known[None, :], score - lower[None, :], LOWEST)
        here, where = tl.max(score, 1, return_indices=True, return_indices_tie_break_left=True)
        better = here > top  # of equals the first stays
        at = tl.where(better, first + where, at)
        top = tl.where(better, here, top)
    tl.store(label + row, at, mask=inside)
    tl.store(best + row, top, mask=inside)


_tuned = triton.autotune(
    [
        triton.Config({"ROWS": r, "COLUMNS": c, "DEPTH": d}, num_warps=warps, num_stages=stages)
        for r, c, d, warps, stages in TILES
    ],
    key=["WIDTH"],
)(_nearest)
INTERPRETED = dict(zip(("ROWS", "COLUMNS", "DEPTH"), TILES[-1], strict=False))


def nearest(codes: Tensor, centroids: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Index int64 (n,) of the centroid of largest x·c − half, the first of equals, and that int32.

    ``codes`` (n, d) and ``centroids`` (k, d) are int8, ``half`` (k,) int32, all on one device. On a
    CPU it takes TRITON_INTERPRET=1, and the smallest tiles instead of those that a clock chooses.
    """
    label = torch.empty(len(codes), dtype=torch.int32, device=codes.device)
    best = torch.empty_like(label)
    kernel, tile = (_nearest, INTERPRETED) if codes.device.type == "cpu" else (_tuned, {})
    if len(codes):
        kernel[lambda given: (triton.cdiv(len(codes), given["ROWS"]),)](
            codes.contiguous(), centroids.contiguous(), half, label, best, len(codes),
            len(centroids), WIDTH=codes.shape[1], **tile,
        )  # fmt: skip
    return label.long(), best
