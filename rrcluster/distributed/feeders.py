"""Several processes that hand out shards, where one alone would keep many encoders waiting.

One process hands out about 170 tasks a second (``tests/benchmarks/scaling.py``). Beyond
``compute.workers_per_feeder`` encoders the shards are dealt to actors, and each runs a stream of
Ray Data of its own with its share of the encoders; Ray shares the machines among streams. A feeder
that is lost with its machine is placed again and goes on with what was not published.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from rrcluster.compute import EmbedPlan, ShardCounts
from rrcluster.config import ComputeSpec
from rrcluster.distributed.placement import FEEDER_CPUS, LOST_NODES, helper_options
from rrcluster.io import tally
from rrcluster.io.tally import Tally
from rrcluster.records import Shard

Stream = Callable[[EmbedPlan, Sequence[Shard], ComputeSpec, int], Iterator[ShardCounts]]
log = logging.getLogger("rrcluster")


class Feeder:
    """Actor: one stream over its shards; at the end, what its workers moved."""

    def feed(
        self,
        stream: Stream,
        plan: EmbedPlan,
        shards: Sequence[Shard],
        spec: ComputeSpec,
        workers: int,
    ) -> Iterator[ShardCounts | Tally]:
        before = tally.total()
        yield from stream(plan, shards, spec, workers)
        yield tally.total() - before


@dataclass
class Share:
    """A feeder's part: its shards that are not published yet, and its encoders."""

    todo: dict[int, Shard]
    workers: int
    lost: int = 0
    actor: Any = field(default=None, repr=False)

    def start(self, stream: Stream, plan: EmbedPlan, spec: ComputeSpec) -> Any:
        """Place a feeder for what is left; the generator of its answers."""
        options = helper_options(spec, FEEDER_CPUS)
        self.actor = ray.remote(max_restarts=0, **options)(Feeder).remote()
        return self.actor.feed.remote(stream, plan, list(self.todo.values()), spec, self.workers)


def shares(shards: Sequence[Shard], spec: ComputeSpec, workers: int) -> list[Share]:
    """The shards dealt to as many feeders as ``workers`` encoders want, the encoders with them."""
    feeders = max(1, min(math.ceil(workers / spec.workers_per_feeder), len(shards)))
    return [
        Share(
            {s.index: s for s in shards[i::feeders]},
            max(1, workers // feeders + (i < workers % feeders)),
        )
        for i in range(feeders)
    ]


def fed(
    stream: Stream, plan: EmbedPlan, shards: Sequence[Shard], spec: ComputeSpec, workers: int
) -> Iterator[ShardCounts]:
    """Counts of each shard as it is published; a stream in this process where one is enough."""
    dealt = shares(shards, spec, workers)
    if len(dealt) == 1:
        yield from stream(plan, shards, spec, workers)
        return
    if spec.readers is not None:
        spec = replace(spec, readers=max(1, spec.readers // len(dealt)))
    running = {share.start(stream, plan, spec): share for share in dealt}
    try:
        while running:
            (answers,), _ = ray.wait(list(running), num_returns=1)
            share = running[answers]
            try:
                answer = ray.get(next(answers))
            except StopIteration:
                del running[answers]
            except ray.exceptions.RayActorError:
                del running[answers]
                share.lost += 1
                if share.lost <= LOST_NODES:
                    log.warning("a feeder was lost; another goes on with its shards")
                    running[share.start(stream, plan, spec)] = share
            else:
                if isinstance(answer, Tally):
                    tally.add(answer)
                elif share.todo.pop(answer.shard, None) is not None:
                    yield answer
    finally:
        for share in dealt:
            ray.kill(share.actor)
