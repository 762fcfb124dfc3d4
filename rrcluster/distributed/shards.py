"""The seam on Ray: actors hold blocks, a statistic goes out once, sums come back in block order."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import torch
from torch import Tensor

from rrcluster.config import ComputeSpec
from rrcluster.core.shards import Rows, Shards, Statistic, plus, summed
from rrcluster.distributed.placement import MAX_RETRIES, worker_options
from rrcluster.io import tally
from rrcluster.io.tally import Tally

R = TypeVar("R")
PATIENCE_SECONDS = 60.0  # between words about holders that have no place yet
log = logging.getLogger("rrcluster")


class BlockHolder:
    """Some blocks of a fit. A plain class; ``ray.remote`` appears where it is placed."""

    def __init__(
        self, load: Callable[[int], Tensor], blocks: Sequence[int], device: str = "cpu"
    ) -> None:
        torch.set_num_threads(1)
        self._device = device
        before = tally.total()
        self._blocks = {b: load(b) for b in blocks}
        self._moved = tally.total() - before

    def rows(self) -> tuple[dict[int, tuple[int, int]], Tally]:
        """Shape of each block, and what loading them moved."""
        return {b: (x.shape[0], x.shape[1]) for b, x in self._blocks.items()}, self._moved

    def apply(self, block: int, function: Callable[[Tensor], Any]) -> Any:
        return function(self._blocks[block])

    def prefix(self, block: int, rows: int) -> Tensor:
        return self._blocks[block][:rows].clone()

    def total(self, blocks: int, function: Callable[[Tensor], Any]) -> dict[str, Tensor]:
        """The sum over this holder's blocks with numbers below ``blocks``."""
        mine = ((x,) for block, x in self._blocks.items() if block < blocks)
        return summed(function, mine, self._device)

    def alone(self, function: Callable[[Rows], R], *parts: Tensor) -> R:
        """``function`` of rows of all holders, on the device of this one."""
        return function(Rows(parts, device=self._device))

    def plus(self, one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
        return plus(one, other)


class RayShards(Shards):
    """Blocks in actors; see ``hold``."""

    def __init__(
        self, holders: Sequence[Any], holder_of_block: Sequence[int], device: str = "cpu"
    ) -> None:
        self._holders, self._holder_of = list(holders), list(holder_of_block)
        self.device = device
        self.workers = min(len(self._holders), os.cpu_count() or 1)  # threads of this process
        shapes: dict[int, tuple[int, int]] = {}
        asked = [h.rows.remote() for h in self._holders]
        while waiting := ray.wait(asked, num_returns=len(asked), timeout=PATIENCE_SECONDS)[1]:
            log.warning(
                "%d of %d fit workers wait for room on the cluster; if nothing else runs there, "
                "lower compute.workers or compute.cpus_per_worker", len(waiting), len(asked)
            )  # fmt: skip
        for found, moved in ray.get(asked):
            shapes |= found
            tally.add(moved)
        self._shapes = [shapes[b] for b in range(len(self._holder_of))]

    @property
    def rows_per_block(self) -> list[int]:
        return [rows for rows, _ in self._shapes]

    @property
    def width(self) -> int:
        return self._shapes[0][1]

    def map(self, function: Callable[..., R], blocks: int | None = None) -> Iterator[R]:
        sent = ray.put(function)  # once, however many blocks read it
        holders = enumerate(self._holder_of[:blocks])
        return self._answers(self._holders[h].apply.remote(block, sent) for block, h in holders)

    def _answers(self, asked: Iterator[Any]) -> Iterator[Any]:
        """What comes of calls that are made as they are asked for, in their order.

        Answers may be large and wait in the object store: only so many are asked for ahead.
        """
        running: deque[Any] = deque()
        for call in asked:
            running.append(call)
            if len(running) == 2 * len(self._holders):
                yield ray.get(running.popleft())
        while running:
            yield ray.get(running.popleft())

    def total(self, statistic: Statistic, blocks: int | None = None) -> dict[str, Tensor]:
        """Added on each holder, then in a tree of holders; the driver gets one answer."""
        count = len(self._holder_of) if blocks is None else blocks
        sent = ray.put(statistic)
        for attempt in range(MAX_RETRIES + 1):
            try:
                return self._added(sent, count)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                if attempt == MAX_RETRIES:
                    raise  # a holder that was lost is back with its blocks at the next attempt
        raise AssertionError("the loop returns or raises")

    def _added(self, sent: Any, count: int) -> dict[str, Tensor]:
        parts = [(h, h.total.remote(count, sent)) for h in self._holders[:count]]
        while len(parts) > 1:
            paired = [
                (holder, holder.plus.remote(one, other))
                for (holder, one), (_, other) in zip(parts[::2], parts[1::2], strict=False)
            ]
            parts = paired + parts[2 * len(paired) :]
        found: dict[str, Tensor] = ray.get(parts[0][1])
        return found

    def rows(self, count: int) -> Rows:
        return Rows(list(self._answers(self._prefix(b, size) for b, size in self._first(count))))

    def in_one_place(self, function: Callable[[Rows], R], count: int) -> R:
        """Here, but for rows of a GPU: the first holder gets what the others hold of them."""
        if self.device == "cpu":
            return super().in_one_place(function, count)
        parts = [self._prefix(block, size) for block, size in self._first(count)]
        found: R = ray.get(self._holders[0].alone.remote(function, *parts))
        return found

    def _prefix(self, block: int, rows: int) -> Any:
        return self._holders[self._holder_of[block]].prefix.remote(block, rows)


@contextmanager
def hold(
    load: Callable[[int], Tensor], blocks: int, workers: int, spec: ComputeSpec
) -> Iterator[RayShards]:
    """Place ``min(workers, blocks)`` holders, blocks in turns, and let them go after.

    A holder whose process or machine is lost is placed again and loads its blocks again.
    With ``compute.gpus_per_holder`` k-means works on its blocks on its GPU.
    """
    gpus = spec.gpus_per_holder
    device = "cuda" if gpus else "cpu"
    holders = min(workers, blocks)
    holder_of = [b % holders for b in range(blocks)]
    actor = ray.remote(
        max_restarts=MAX_RETRIES, max_task_retries=MAX_RETRIES,
        **worker_options(spec, "holder", gpus),
    )(BlockHolder)  # fmt: skip
    placed = [
        actor.remote(load, [b for b in range(blocks) if holder_of[b] == h], device)
        for h in range(holders)
    ]
    try:
        yield RayShards(placed, holder_of, device)
    finally:
        for holder in placed:
            ray.kill(holder)
