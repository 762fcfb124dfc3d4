"""Shards whose workers died again and again: each alone, its worker's last word kept elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
import torch

from rrcluster.compute import EmbedPlan, ShardCounts
from rrcluster.config import ComputeSpec
from rrcluster.distributed.placement import DEATHS, LOST_NODES, worker_options
from rrcluster.records import Shard
from rrcluster.stages.quarantine import LOAD, Step, Suspicion, embed_alone

AT_ONCE = 8  # suspects at a time: enough for a few bad shards, and no storm on a small head
log = logging.getLogger("rrcluster")

_NODE_LOST = (ray.exceptions.NodeDiedError, ray.exceptions.RaySystemError)


class LastWord:
    """Actor: what the worker of each suspect was about to do."""

    def __init__(self) -> None:
        self._last: dict[int, Step] = {}

    def say(self, shard: int, step: Step) -> None:
        self._last[shard] = step

    def of(self, shard: int) -> Step:
        return self._last.get(shard, LOAD)


def isolate(
    plan: EmbedPlan, shards: Sequence[Shard], spec: ComputeSpec, workers: int
) -> Iterator[ShardCounts]:
    """Embed the suspects, each alone; what kills its workers becomes counted bad rows."""
    if not shards:
        return
    words = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(LastWord).remote()
    try:
        with ThreadPoolExecutor(min(AT_ONCE, workers, len(shards))) as pool:
            yield from pool.map(partial(_one, plan, spec, words), shards)
    finally:
        ray.kill(words)


def _one(plan: EmbedPlan, spec: ComputeSpec, words: Any, shard: Shard) -> ShardCounts:
    known, lost_nodes = Suspicion(), 0
    gpus = spec.gpus_per_worker
    options = worker_options(spec, "encoder", gpus) | {"max_retries": 0}
    task = ray.remote(**options)(_embed_alone)
    while True:
        ray.get(words.say.remote(shard.index, LOAD))
        try:
            counts: ShardCounts = ray.get(
                task.remote(plan, shard, known, words, "cuda" if gpus else "cpu")
            )
        except DEATHS as error:
            step = ray.get(words.of.remote(shard.index))
            out_of_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            known.blame(step, "out of memory" if out_of_memory else "no answer, no memory alarm")
            said = ("shard %s killed a worker at step %s, row %d", shard.name, *step[:2])
            log.warning(*said, extra={"stage": "embed", "shard": shard.name})
        except _NODE_LOST:
            lost_nodes += 1
            if lost_nodes > LOST_NODES:
                raise
        else:
            log.warning(
                "shard %s was read row by row: %d of %d rows are bad", shard.name, counts.bad,
                counts.read, extra={"stage": "embed", "shard": shard.name},
            )  # fmt: skip
            return counts


def _embed_alone(
    plan: EmbedPlan, shard: Shard, known: Suspicion, words: Any, device: str
) -> ShardCounts:
    torch.set_num_threads(1)

    def note(step: Step) -> None:
        ray.get(words.say.remote(shard.index, step))  # said before it is done, or it tells nothing

    return embed_alone(plan, shard, known, note, device)
