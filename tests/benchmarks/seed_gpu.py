"""Rows looked up among centroids on a GPU, against the products that it makes at best.

Both in one run, alternately: the fused kernel over n rows, and bfloat16 products of 8192 × 8192
with as many operations as fill a fifth of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from rrcluster.core.grid import Codebook
from rrcluster.core.tiles import ON_GPU

SIDE, ROUNDS = 8192, 5


def speeds(n: int, d: int, k: int) -> tuple[float, float]:
    """Operations a second of looking n rows up (2 n d k of them), and of bfloat16 products.

    Raises RuntimeError where torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU")
    generator = torch.Generator("cuda").manual_seed(0)

    def bytes_of(rows: int) -> torch.Tensor:
        return torch.randint(
            -100, 101, (rows, d), dtype=torch.int8, device="cuda", generator=generator
        )

    codes, book = bytes_of(n).split(ON_GPU), Codebook(bytes_of(k))
    a = torch.randn(SIDE, SIDE, device="cuda", generator=generator).bfloat16()
    products = max(round(1e14 / (2 * SIDE**3)), 1)
    seconds = [
        (
            _seconds(lambda: [book.nearest(x) for x in codes]),
            _seconds(lambda: _squares(a, products)),
        )
        for _ in range(ROUNDS + 1)
    ][1:]  # kernels are made and chosen in the first
    looked_up, made = (median(column) for column in zip(*seconds, strict=True))
    return 2.0 * n * d * k / looked_up, 2.0 * SIDE**3 * products / made


def _squares(a: torch.Tensor, times: int) -> None:
    for _ in range(times):
        a @ a


def _seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start
