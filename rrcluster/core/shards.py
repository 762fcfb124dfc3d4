"""The seam between the mathematics and the machines.

A fit sees its rows as *blocks*: float16 unit rows, cut by the hash key of the sample and sorted by
it (see ``stages/select.py``), so that a block is the same whatever the shards and the workers are.
The mathematics asks for sums over blocks (``reduce``) or for a bounded answer per block (``map``);
it never learns where the blocks are. Sums are taken in block order: that, and one thread per block,
makes a result the same bits on one worker and on a hundred.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R")
Statistic = Callable[[Tensor], dict[str, Tensor]]


class Shards(ABC):
    """Blocks of unit rows, held somewhere."""

    @property
    @abstractmethod
    def rows_per_block(self) -> Sequence[int]:
        """Number of rows of each block, in block order."""

    @property
    @abstractmethod
    def width(self) -> int:
        """d, the width of the rows."""

    @abstractmethod
    def map(self, function: Callable[[Tensor], R]) -> Iterable[R]:
        """``function(x)`` of each block's rows x (n, d) float16, in block order."""

    @property
    def num_rows(self) -> int:
        """n over all blocks."""
        return sum(self.rows_per_block)

    def reduce(self, statistic: Statistic) -> dict[str, Tensor]:
        """The sum over blocks of a dictionary of tensors, added in block order."""
        total: dict[str, Tensor] = {}
        for part in self.map(statistic):
            for name, value in part.items():
                total[name] = total[name] + value if name in total else value
        return total

    @abstractmethod
    def prefix(self, block: int, rows: int) -> Tensor:
        """The first ``rows`` rows of one block, (<= rows, d) float16."""

    def head(self, rows: int) -> Tensor:
        """The first ``rows`` rows in key order: a uniform sample without replacement, (m, d)."""
        parts: list[Tensor] = []
        for block, size in enumerate(self.rows_per_block):
            parts.append(self.prefix(block, min(size, rows)))
            rows -= len(parts[-1])
            if rows <= 0:
                break
        return torch.cat(parts)


class MemoryShards(Shards):
    """Blocks in this process; ``workers`` threads take one block each at a time."""

    def __init__(self, blocks: Sequence[Tensor], workers: int = 1) -> None:
        if not blocks:
            raise ValueError("a fit needs at least one block")
        self._blocks, self._workers = list(blocks), workers

    @property
    def rows_per_block(self) -> list[int]:
        return [len(x) for x in self._blocks]

    @property
    def width(self) -> int:
        return self._blocks[0].shape[1]

    def map(self, function: Callable[[Tensor], R]) -> Iterable[R]:
        if self._workers == 1 or len(self._blocks) == 1:
            yield from map(function, self._blocks)
            return
        ahead = 2 * self._workers  # answers may be large: only so many wait to be taken
        with ThreadPoolExecutor(self._workers) as pool:
            running = deque(pool.submit(function, x) for x in self._blocks[:ahead])
            for block in range(len(self._blocks)):
                answer = running.popleft().result()
                if block + ahead < len(self._blocks):
                    running.append(pool.submit(function, self._blocks[block + ahead]))
                yield answer

    def prefix(self, block: int, rows: int) -> Tensor:
        return self._blocks[block][:rows]
