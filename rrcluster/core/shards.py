"""The seam between the mathematics and the machines.

A fit sees its rows as *blocks*: float16 unit rows, cut by the hash key of the sample and sorted by
it (see ``stages/select.py``), so that a block is the same whatever the shards and the workers are.
The mathematics asks for sums over blocks (``reduce``) or for a bounded answer per block (``map``);
it never learns where the blocks are. Sums are taken in block order: that, and one thread per block,
makes a result the same bits on one worker and on a hundred.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from threading import Lock
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

R = TypeVar("R")
Statistic = Callable[..., dict[str, Tensor]]
ALONE: AbstractContextManager[Any] = nullcontext()  # the turn of a thread that shares nothing
ADDED = 4096  # rows added at a time, where what was read of a block can be let go of
LetGo = Callable[..., None]
TOTALS = 8  # threads have totals of their own while these take less than an eighth of the rows


def kept(block: int | None = None) -> None:
    """Rows that are in memory anyhow: nothing to let go of."""


@runtime_checkable
class Adding(Protocol):
    """A statistic of exact sums that adds a block's to a total where it lies."""

    @property
    def device(self) -> torch.device:
        """Where its rows and totals must be."""

    def to(self, device: str) -> Adding:
        """The same where rows are worked on; one that gains nothing there stays."""

    def zeros(self) -> dict[str, Tensor]:
        """A total of nothing."""

    def add(
        self,
        total: dict[str, Tensor],
        x: Tensor,
        weights: Tensor | None = None,
        turn: AbstractContextManager[Any] = ALONE,
    ) -> None:
        """``total`` becomes ``plus(total, self(x, weights))``, to the bit; touched in ``turn``."""


class Rows:
    """Rows (n, d) float16 in key order, in parts that are not joined, with weights or without.

    A range of them is a uniform sample of its size: the key is a hash. ``let_go`` is told when the
    rows taken before are no longer looked at. Rows are given out on ``device``; weights stay here.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        weights: Sequence[Tensor] | None = None,
        let_go: LetGo = kept,
        device: str = "cpu",
    ) -> None:
        self._let_go, self.device = let_go, device
        self._parts = [x for x in parts if len(x)] or list(parts[:1])
        self._weights = None if weights is None else [w for w in weights if len(w)]
        self._ends = [0]
        for x in self._parts:
            self._ends.append(self._ends[-1] + len(x))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def width(self) -> int:
        return self._parts[0].shape[1]

    def on(self, device: str) -> Rows:
        """These, given out on a device."""
        return Rows(self._parts, self._weights, self._let_go, device)

    @property
    def mean_weight(self) -> float:
        """The mean weight of the rows; 1 without weights."""
        if self._weights is None:
            return 1.0
        return sum(float(w.double().sum()) for w in self._weights) / len(self)

    def batch(self, start: int, count: int) -> tuple[Tensor, Tensor | None]:
        """``count`` rows from ``start`` on, past the end from the first again; their weights."""
        self._let_go()
        start %= max(len(self), 1)
        x, weights = self._range(start, min(start + count, len(self)))
        if len(x) == count or len(x) == len(self) or start == 0:
            return x.to(self.device), weights
        more, others = self._range(0, min(count - len(x), start))
        both = None if weights is None or others is None else torch.cat([weights, others])
        return torch.cat([x, more]).to(self.device), both

    def take(self, index: Tensor) -> Tensor:
        """The rows (m, d) of these places, without their weights."""
        x = self._parts[0].new_empty(len(index), self.width)
        for number, (first, last) in enumerate(pairwise(self._ends)):
            here = ((index >= first) & (index < last)).nonzero()[:, 0]
            x[here] = self._parts[number][index[here] - first]
            self._let_go()
        return x.to(self.device)

    def _range(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        found, weights = [], []
        for number, (first, last) in enumerate(pairwise(self._ends)):
            if first < stop and start < last:
                inside = slice(max(start - first, 0), stop - first)
                found.append(self._parts[number][inside])
                if self._weights is not None:
                    weights.append(self._weights[number][inside])
        if not found:
            return self._parts[0][:0], None if self._weights is None else torch.zeros(0)
        x = found[0] if len(found) == 1 else torch.cat(found)
        return x, torch.cat(weights) if weights else None


class Shards(ABC):
    """Blocks of unit rows, held somewhere; ``workers`` of them are worked on at a time.

    k-means works on them on ``device``, which changes no bit of a result.
    """

    workers: int = 1
    device: str = "cpu"

    @property
    @abstractmethod
    def rows_per_block(self) -> Sequence[int]:
        """Number of rows of each block, in block order."""

    @property
    @abstractmethod
    def width(self) -> int:
        """d, the width of the rows."""

    @abstractmethod
    def map(self, function: Callable[..., R], blocks: int | None = None) -> Iterable[R]:
        """``function(x)`` of the rows x (n, d) float16 of each of the first blocks, in order.

        ``function(x, weights)`` where the blocks carry weights (n,), whole numbers.
        """

    @property
    def num_rows(self) -> int:
        """n over all blocks."""
        return sum(self.rows_per_block)

    def reduce(self, statistic: Statistic) -> dict[str, Tensor]:
        """The sum over blocks of a dictionary of tensors, added in block order."""
        total: dict[str, Tensor] = {}
        for part in self.map(statistic):
            total = plus(total, part)
        return total

    def total(self, statistic: Statistic, blocks: int | None = None) -> dict[str, Tensor]:
        """The sum over the first ``blocks`` blocks (None: all) of a statistic whose sums are exact.

        Sums of whole numbers, or of float64 multiples of one small unit, are the same bits in any
        order; so they may be added where the blocks are, and then in a tree. Use ``reduce`` for
        anything else.
        """
        total: dict[str, Tensor] = {}
        for part in self.map(statistic, blocks):
            total = plus(total, part)
        return total

    @abstractmethod
    def rows(self, count: int) -> Rows:
        """The first ``count`` rows in key order: a uniform sample without replacement."""

    def _first(self, count: int) -> Iterator[tuple[int, int]]:
        """The blocks that hold the first ``count`` rows and how many each has; at least one."""
        for block, size in enumerate(self.rows_per_block):
            yield block, min(size, count)
            count -= min(size, count)
            if count <= 0:
                break

    def in_one_place(self, function: Callable[[Rows], R], count: int) -> R:
        """``function`` of the first ``count`` rows, on the device and where that is."""
        return function(self.rows(count).on(self.device))

    def head(self, rows: int) -> Tensor:
        """The first ``rows`` rows in key order, (m, d), without their weights."""
        return self.rows(rows).batch(0, rows)[0]


class MemoryShards(Shards):
    """Blocks in this process, with weights or without; ``workers`` threads take a block each.

    ``let_go(b)`` is told when block b has been worked on, ``let_go()`` when no rows are looked at:
    the memory of those that lie in a file can be given back.
    """

    def __init__(
        self,
        blocks: Sequence[Tensor],
        workers: int = 1,
        weights: Sequence[Tensor] | None = None,
        let_go: LetGo = kept,
        device: str = "cpu",
    ) -> None:
        if not blocks:
            raise ValueError("a fit needs at least one block")
        if len({x.shape[1] for x in blocks}) > 1:
            raise ValueError(f"blocks of different widths: {[tuple(x.shape) for x in blocks]}")
        self._blocks, self.workers, self._weights = list(blocks), workers, weights
        self._let_go, self.device = let_go, device

    @property
    def rows_per_block(self) -> list[int]:
        return [len(x) for x in self._blocks]

    @property
    def width(self) -> int:
        return self._blocks[0].shape[1]

    def map(self, function: Callable[..., R], blocks: int | None = None) -> Iterable[R]:
        count = len(self._blocks) if blocks is None else blocks
        if self.workers == 1 or count == 1:
            yield from (self._apply(function, b) for b in range(count))
            return
        ahead = 2 * self.workers  # answers may be large: only so many wait to be taken
        with ThreadPoolExecutor(self.workers) as pool:
            running = deque(pool.submit(self._apply, function, b) for b in range(min(ahead, count)))
            for block in range(count):
                answer = running.popleft().result()
                if block + ahead < count:
                    running.append(pool.submit(self._apply, function, block + ahead))
                yield answer

    def total(self, statistic: Statistic, blocks: int | None = None) -> dict[str, Tensor]:
        """Each thread adds its own blocks; threads share a total where totals are large."""
        self._let_go()
        count = len(self._blocks) if blocks is None else blocks
        if self.workers == 1 or count == 1 or self.device != "cpu":
            return summed(statistic, self._in_turn(count), self.device)
        if not isinstance(statistic, Adding):
            return super().total(statistic, count)
        first = statistic.zeros()
        room = sum(x.nbytes for x in self._blocks[:count]) // TOTALS
        copies = min(max(room // sum(value.nbytes for value in first.values()), 1), self.workers)
        totals = [first, *(statistic.zeros() for _ in range(copies - 1))]
        turns = [Lock() for _ in totals]

        def work(w: int) -> None:
            for b in range(w, count, self.workers):
                parts = (column.split(ADDED) for column in self._block(b))
                for part in zip(*parts, strict=True):
                    statistic.add(totals[w % copies], *part, turn=turns[w % copies])
                    self._let_go(b)

        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(work, range(self.workers)))
        return functools.reduce(plus, totals)

    def _apply(self, function: Callable[..., R], block: int) -> R:
        answer = function(*self._block(block))
        self._let_go(block)
        return answer

    def _in_turn(self, count: int) -> Iterator[tuple[Tensor, ...]]:
        for block in range(count):
            yield self._block(block)
            self._let_go(block)

    def _block(self, block: int) -> tuple[Tensor, ...]:
        x = self._blocks[block]
        return (x,) if self._weights is None else (x, self._weights[block])

    def rows(self, count: int) -> Rows:
        first = list(self._first(count))
        weights = None if self._weights is None else [self._weights[b][:size] for b, size in first]
        return Rows([self._blocks[b][:size] for b, size in first], weights, self._let_go)


def summed(
    statistic: Statistic, blocks: Iterable[tuple[Tensor, ...]], device: str = "cpu"
) -> dict[str, Tensor]:
    """The sum of an exact statistic over blocks held here, in place where it knows how to add.

    Such a one may add on another device, to which rows go a block at a time.
    """
    if isinstance(statistic, Adding):
        there = statistic.to(device)
        total = there.zeros()
        for block in blocks:
            there.add(total, *(x.to(there.device) for x in block))
        return {name: value.cpu() for name, value in total.items()}
    return functools.reduce(plus, (statistic(*block) for block in blocks), {})


def plus(total: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum of two answers of a statistic; an empty one is zero."""
    return {name: total[name] + value if total else value for name, value in part.items()}
