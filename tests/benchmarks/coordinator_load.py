"""A coordinator with many workers on one machine: what it sends and takes, and what that costs it.

The holders of blocks are the job's own, small; each holds one block. A pass is taken apart
into calls that the coordinator makes, bytes that reach it, bytes that all holders put into the
object store, and processor time of the coordinator's process. ``rrcluster/core/costs.py`` says the
first three; the last is fitted on few holders and predicted for many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray
import torch
from torch import Tensor

from rrcluster.core.anneal import Space
from rrcluster.core.costs import Fit, Traffic, kmeans_traffic, rate_traffic
from rrcluster.core.kmeans import ClusterSums
from rrcluster.core.shards import Rows, Shards
from rrcluster.distributed.objects import object_store
from rrcluster.distributed.shards import BlockHolder, RayShards

D, LEAVES, WIDTH, ROWS = (
    128,
    256,
    16,
    512,
)  # of the simulated fit: its traffic matters, not its work
REPEATS = 9
PROCESSES = 16  # that the simulated workers share


def block(b: int) -> Tensor:
    g = torch.Generator().manual_seed(b)
    return torch.nn.functional.normalize(torch.randn(ROWS, D, generator=g), dim=1).half()


def answer_of(x: Tensor, numbers: int) -> dict[str, Tensor]:
    """A statistic of so many float64 numbers that takes no work."""
    return {"sum": torch.zeros(numbers, dtype=torch.float64)}


class Host:
    """Actor: some holders in one process, because torch alone takes 0.4 GB of each."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self._holders = {b: BlockHolder(block, [b]) for b in blocks}

    def call(self, holder: int, name: str, *arguments: Any) -> Any:
        return getattr(self._holders[holder], name)(*arguments)


@dataclass(frozen=True)
class Seat:
    """The handle of one holder in its host; it notes the calls made through it."""

    host: Any
    holder: int
    calls: list[str]

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=partial(self._call, name))

    def _call(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        return self.host.call.remote(self.holder, name, *arguments)


@dataclass(frozen=True)
class Pass:
    """One pass, measured."""

    calls: int
    taken: float
    made: float
    cpu: float  # seconds of the coordinator's process
    seconds: float


def passes(shards: Shards, calls: list[str], run: Callable[[Shards], float]) -> Pass:
    """The median of some passes by processor time; counts are those of one."""
    found = []
    for _ in range(REPEATS):
        calls.clear()
        made, cpu, started = object_store().made, time.process_time(), time.perf_counter()
        taken = run(shards)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
        found.append(Pass(len(calls), taken, object_store().made - made, cpu, seconds))
    return sorted(found, key=lambda p: p.cpu)[REPEATS // 2]


def size_of(sums: dict[str, Tensor]) -> float:
    return float(sum(value.nbytes for value in sums.values()))


def kmeans_statistic() -> ClusterSums:
    """The job's own."""
    centroids = torch.randn(LEAVES, D, generator=torch.Generator().manual_seed(0))
    return ClusterSums(Space.of(Rows([block(0)])), centroids)


def kmeans_pass(statistic: ClusterSums, shards: Shards) -> float:
    """Added as the job does."""
    return size_of(shards.total(statistic))


def ordered_pass(numbers: int, shards: Shards) -> float:
    """Answers of every block, added in block order, as ``reduce`` does."""
    taken, total = 0.0, torch.zeros(numbers, dtype=torch.float64)
    for part in shards.map(partial(answer_of, numbers=numbers)):
        taken += size_of(part)
        total += part["sum"]
    return taken


def simulate(workers: Sequence[int]) -> Iterator[tuple[int, str, Pass, Traffic]]:
    """(workers, which pass, measured, what the model says) for each number of workers."""
    kinds: dict[str, Callable[[Shards], float]] = {
        "small answers": partial(ordered_pass, 1),
        "k-means": partial(kmeans_pass, kmeans_statistic()),
        "rates": partial(ordered_pass, LEAVES * (WIDTH**2 + 3)),
    }
    processes = min(PROCESSES, max(workers))
    host_of = [b % processes for b in range(max(workers))]
    actor = ray.remote(num_cpus=0.01)(Host)
    hosts = [
        actor.remote([b for b, h in enumerate(host_of) if h == host]) for host in range(processes)
    ]
    for w in workers:
        calls: list[str] = []
        shards = RayShards([Seat(hosts[host_of[b]], b, calls) for b in range(w)], list(range(w)))
        fit = Fit(float(w * ROWS), float(ROWS), D, LEAVES, LEAVES, WIDTH)
        says = {
            "small answers": Traffic(w, 8.0 * w, 0.0),  # so small that no store is used
            "k-means": kmeans_traffic(fit, w),
            "rates": rate_traffic(fit),
        }
        for name, run in kinds.items():
            yield w, name, passes(shards, calls, run), says[name]


@dataclass(frozen=True)
class Load:
    """Processor time of the coordinator: seconds of a pass, of a call, of a byte taken."""

    per_pass: float
    per_call: float
    per_byte: float

    @staticmethod
    def fitted(few: Pass, more: Pass, large: Pass) -> Load:
        """From passes with small answers over few holders and more, and one with large ones."""
        per_call = max(more.cpu - few.cpu, 0.0) / (more.calls - few.calls)
        per_pass = max(few.cpu - few.calls * per_call, 0.0)
        rest = max(large.cpu - per_pass - large.calls * per_call, 0.0)
        return Load(per_pass, per_call, rest / large.taken)

    def of(self, says: Traffic) -> float:
        """Seconds that a pass with this traffic takes."""
        return self.per_pass + says.calls * self.per_call + says.taken * self.per_byte
