"""Compute in this process, without Ray: the serial twin of ``distributed``, with threads."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rrcluster.compute import Compute, EmbedPlan, Progress, ShardCounts
from rrcluster.core.shards import MemoryShards, Shards
from rrcluster.io.scratch import Scratch, share_memory
from rrcluster.models.encoder import Encoder
from rrcluster.models.load import load_encoder
from rrcluster.records import Shard
from rrcluster.stages.assemble import Assembler, Batch
from rrcluster.stages.embed import Encoding, TakeVectors, read_batches

T = TypeVar("T")
R = TypeVar("R")


class InProcessCompute(Compute):
    """Threads of this process; torch and PIL let go of the interpreter while they work."""

    def __init__(
        self, workers: int | None = None, device: str = "cpu", fit_device: str = "cpu"
    ) -> None:
        self.workers = workers or os.cpu_count() or 1
        self.device, self.fit_device = device, fit_device
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)  # one thread per block: sums do not depend on the cores
        share_memory()

    def close(self) -> None:
        torch.set_num_threads(self._threads_before)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        with ThreadPoolExecutor(
            self.workers, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            futures = {pool.submit(function, item): i for i, item in enumerate(items)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @contextmanager
    def hold(self, load: Callable[[int], Tensor], blocks: int) -> Iterator[Shards]:
        with closing(Scratch(load(b) for b in range(blocks))) as rows:
            yield MemoryShards(
                rows.blocks, self.workers, let_go=rows.let_go, device=self.fit_device
            )

    def embed(self, plan: EmbedPlan, shards: Sequence[Shard]) -> Iterator[ShardCounts]:
        if plan.encoder.kind == "vectors":
            yield from (counts for _, counts in self.map(TakeVectors(plan), shards))
            return
        encoder = load_encoder(plan.encoder, self.device)
        assembler = Assembler(plan.store)
        batches = rebatch(_read_ahead(plan, shards, self.workers), plan.encoder.batch_size)
        for batch in self._encoded(encoder, batches):
            yield from assembler.add(batch)

    def _encoded(self, encoder: Encoder, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches encoded, on every core at once; few are held."""
        # A core is an encoder with a clock of its own; a GPU is one, and two threads feed it.
        cores = self.device == "cpu"
        encoders = self.workers if cores else 2
        mine, shared = threading.local(), Encoding(encoder)

        def begin() -> None:
            one_thread()
            mine.encode = Encoding(encoder) if cores else shared

        pool = ThreadPoolExecutor(encoders, initializer=begin)
        ahead: deque[Future[Batch]] = deque()
        try:
            for batch in batches:
                ahead.append(pool.submit(lambda b: mine.encode(b), batch))
                if len(ahead) > encoders:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def coordinate(self, task: Callable[[Compute, Progress], R], progress: Progress) -> R:
        return task(self, progress)


def one_thread() -> None:
    torch.set_num_threads(1)  # OpenMP counts threads per thread


def rebatch(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """The same rows in batches of ``rows``, the last one shorter."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        while sum(len(b["row"]) for b in held) >= rows:
            joined = _join(held)
            yield {n: c[:rows] for n, c in joined.items()}
            held = [{n: c[rows:] for n, c in joined.items()}]
    joined = _join(held) if held else {}
    if held and len(joined["row"]):
        yield joined


def _join(batches: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def _read_ahead(plan: EmbedPlan, shards: Sequence[Shard], readers: int) -> Iterator[Batch]:
    """Blocks of decoded rows from ``readers`` threads, a bounded number of them ahead."""
    todo: queue.SimpleQueue[Shard] = queue.SimpleQueue()
    for shard in shards:
        todo.put(shard)
    ready: queue.Queue[Any] = queue.Queue(maxsize=4 * readers)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        one_thread()
        try:
            while not stop.is_set():
                for batch in read_batches(todo.get_nowait(), plan):
                    put(batch)
                    if stop.is_set():
                        return
        except queue.Empty:
            put(None)
        except BaseException as error:
            put(error)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(readers)]
    for thread in threads:
        thread.start()
    try:
        ended = 0
        while ended < readers:
            item = ready.get()
            if item is None:
                ended += 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stop.set()
