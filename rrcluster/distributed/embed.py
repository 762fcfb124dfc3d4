"""embed on Ray Data: shard references → decoded rows → encoder actors → assembler actors.

Ray Data streams, bounds what is in flight, and may run a task twice. What makes a shard's files
exactly once is not here but in the rows' identity and the assembler (``stages/embed.py``): an
assembler owns the shards of its number, and a shard whose assembler was lost has no mark and is
embedded again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from rrcluster.compute import EmbedPlan, ShardCounts
from rrcluster.config import ComputeSpec
from rrcluster.distributed.room import READ_MEMORY
from rrcluster.models.load import load_encoder
from rrcluster.records import Shard
from rrcluster.stages.embed import Assembler, Batch, encode_batch, read_batches

BLOCK_BYTES = 32 << 20  # of decoded rows between tasks
RETRIES = 4  # restarts of an encoder; Ray tries a task again three times by itself
ROUNDS = 3  # passes over shards that lost their assembler
COUNTS = ("shard", "read", "embedded", "bad")
log = logging.getLogger("rrcluster")


class ReadShard:
    """Task: one shard reference becomes its decoded rows, streamed."""

    def __init__(self, plan: EmbedPlan) -> None:
        self.plan = plan

    def __call__(self, batch: dict[str, Any]) -> Iterator[Batch]:
        for index, uri, kind, size, etag in zip(
            batch["index"], batch["uri"], batch["format"], batch["num_bytes"], batch["etag"],
            strict=True,
        ):  # fmt: skip
            shard = Shard(int(index), str(uri), str(kind), int(size), str(etag))
            yield from read_batches(shard, self.plan)


class Encode:
    """Actor: an encoder on its device."""

    def __init__(self, plan: EmbedPlan, gpu: bool) -> None:
        torch.set_num_threads(1)
        self.encoder = load_encoder(plan.encoder, "cuda" if gpu else "cpu")

    def __call__(self, batch: Batch) -> Batch:
        return encode_batch(self.encoder, batch)


class Assemble:
    """Actor: the assembler of the shards of its number."""

    def __init__(self, plan: EmbedPlan) -> None:
        self.assembler = Assembler(plan.store)

    def add(self, batch: Batch) -> list[ShardCounts]:
        return self.assembler.add(batch)


class Deliver:
    """Task: rows go to the assemblers of their shards; out come the counts of whole shards."""

    def __init__(self, assemblers: Sequence[Any]) -> None:
        self.assemblers = list(assemblers)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        owner = batch["shard"] % len(self.assemblers)
        calls = []
        for number in np.unique(owner).tolist():
            part = {name: column[owner == number] for name, column in batch.items()}
            calls.append(self.assemblers[number].add.remote(part))
        whole = []
        for call in calls:
            try:
                whole += ray.get(call)
            except ray.exceptions.RayActorError:
                log.warning("an assembler was lost; its shards are embedded again")
        return {name: np.array([getattr(c, name) for c in whole], np.int64) for name in COUNTS}


def embed(
    plan: EmbedPlan, shards: Sequence[Shard], spec: ComputeSpec, workers: int
) -> Iterator[ShardCounts]:
    """Counts of each shard as it is published."""
    todo = {s.index: s for s in shards}
    for _ in range(ROUNDS):
        if not todo:
            return
        for counts in _stream(plan, list(todo.values()), spec, workers):
            if todo.pop(counts.shard, None) is not None:
                yield counts


def _bounded() -> dict[str, int]:
    """An encoder that dies again and again ends the job; Ray Data would restart it for ever.

    Ray 2.60 has no other way to say so, and means to take this one away in 2.64.
    """
    return {"max_restarts": RETRIES, "max_task_retries": RETRIES}


def _stream(
    plan: EmbedPlan, shards: Sequence[Shard], spec: ComputeSpec, workers: int
) -> Iterator[ShardCounts]:
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # advice about Ray Data for its programmers
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.raise_original_map_exception = True
    gpu = spec.gpus_per_worker > 0
    encoders = min(workers, len(shards))
    actor = ray.remote(num_cpus=0, max_restarts=0)(Assemble)
    assemblers = [actor.remote(plan) for _ in range(max(1, encoders // 4))]
    references = [vars(s) for s in shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # see _bounded
        rows = (
            ray.data.from_items(references, override_num_blocks=len(references))
            .map_batches(
                ReadShard(plan).__call__,
                batch_size=1,
                num_cpus=1,
                concurrency=spec.readers,
                memory=READ_MEMORY,  # another need than the encoder's: Ray does not fuse the two
            )
            .map_batches(
                Encode,
                fn_constructor_args=(plan, gpu),
                batch_size=plan.encoder.batch_size,
                compute=ActorPoolStrategy(min_size=1, max_size=encoders),
                num_cpus=spec.cpus_per_worker,
                num_gpus=spec.gpus_per_worker or None,
                memory=spec.memory_per_worker,
                ray_remote_args_fn=_bounded,
            )
            .map_batches(Deliver(assemblers).__call__, batch_size=None, num_cpus=0.1)
        )
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
            for values in zip(*(batch[name].tolist() for name in COUNTS), strict=True):
                yield ShardCounts(*values)
    finally:
        for assembler in assemblers:
            ray.kill(assembler)
