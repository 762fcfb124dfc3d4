"""embed on Ray Data: shard references → decoded rows → encoder actors → assembler actors.

Ray Data streams, bounds what is in flight, and may run a task twice. What makes a shard's files
exactly once is not here but in the rows' identity and the assembler (``stages/embed.py``): an
assembler owns the shards of its number, and a shard whose assembler was lost has no mark and is
embedded again.
"""

from __future__ import annotations

import logging
import time
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
from rrcluster.distributed.feeders import fed
from rrcluster.distributed.meters import count
from rrcluster.distributed.placement import (
    ASSEMBLER_CPUS,
    DELIVER_CPUS,
    MAX_RETRIES,
    helper_options,
    reader_options,
    worker_options,
)
from rrcluster.distributed.poison import isolate
from rrcluster.distributed.watch import Ledger, Seen, watching
from rrcluster.io import tally
from rrcluster.io.tally import Tally
from rrcluster.models.load import load_encoder
from rrcluster.records import Shard
from rrcluster.stages.assemble import END, Assembler, Batch
from rrcluster.stages.embed import Encoding, read_batches

RETRIES = 2  # of a shard's reading task, and of a batch whose encoder died under it
ROUNDS = 2  # passes over shards that lost their workers, before each is embedded alone
FEW = 8  # shards that are embedded alone at once, without another pass
COUNTS = dict.fromkeys(("shard", "read", "embedded", "bad", "further"), np.int64) | dict.fromkeys(
    ("waited", "busy"), np.float64
)
CALLS = 2  # batches at an encoder: one is encoded, one is fetched and brought to its device
log = logging.getLogger("rrcluster")


class ReadShard:
    """Task: one shard reference becomes its decoded rows, streamed."""

    def __init__(self, plan: EmbedPlan, ledger: Any) -> None:
        self.plan, self.ledger = plan, ledger

    def __call__(self, batch: dict[str, Any]) -> Iterator[Batch]:
        torch.set_num_threads(1)
        for index, uri, kind, size, etag in zip(
            batch["index"], batch["uri"], batch["format"], batch["num_bytes"], batch["etag"],
            strict=True,
        ):  # fmt: skip
            shard = Shard(int(index), str(uri), str(kind), int(size), str(etag))
            self.ledger.reading.remote()
            before = tally.total()
            try:
                yield from metered_reading(read_batches(shard, self.plan))
                self.ledger.move.remote(tally.total() - before)
            except Exception as error:
                ray.get(self.ledger.failed.remote(error))
                raise


def metered_reading(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; how long they took to read, and how long until they were wanted."""
    since = time.monotonic()
    for batch in batches:
        ready = time.monotonic()
        count("rrcluster_decode_seconds", ready - since)
        yield batch
        since = time.monotonic()
        count("rrcluster_gpu_wait_seconds", since - ready)


def count_batch(batch: Batch) -> None:
    """Show an encoded batch to Prometheus."""
    count("rrcluster_decode_wait_seconds", float(batch["waited"].sum()))
    count("rrcluster_encode_seconds", float(batch["busy"].sum()))
    reasons, rows = np.unique(batch["status"].astype(str), return_counts=True)
    for reason, number in zip(reasons.tolist(), rows.tolist(), strict=True):
        if reason == "":
            count("rrcluster_images", number)
        elif reason != END:
            count("rrcluster_bad_images", number, reason=reason)


class Encode:
    """Actor: an encoder on its device. While a batch is encoded the next one is fetched."""

    def __init__(self, plan: EmbedPlan, gpu: bool, ledger: Any) -> None:
        torch.set_num_threads(1)
        ray.get(ledger.begun.remote())
        self.ledger, self._fruitless = ledger, True
        try:
            self.encode = Encoding(load_encoder(plan.encoder, "cuda" if gpu else "cpu"))
        except Exception as error:
            ray.get(ledger.failed.remote(error))
            raise

    def __call__(self, batch: Batch) -> Batch:
        try:
            encoded = self.encode(batch)
        except Exception as error:
            ray.get(self.ledger.failed.remote(error))
            raise
        if self._fruitless:
            self.ledger.encoded.remote()
            self._fruitless = False
        count_batch(encoded)
        return encoded


class Assemble:
    """Actor: the assembler of the shards of its number."""

    def __init__(self, plan: EmbedPlan, ledger: Any) -> None:
        self.assembler, self.ledger = Assembler(plan.store), ledger

    def add(self, batch: Batch) -> list[ShardCounts]:
        before = tally.total()
        whole = self.assembler.add(batch)
        if whole:
            self.ledger.move.remote(tally.total() - before)
        return whole


class Deliver:
    """Task: rows go to the assemblers of their shards; out come the counts of whole shards."""

    def __init__(self, assemblers: Sequence[Any], ledger: Any) -> None:
        self.assemblers, self.ledger = list(assemblers), ledger

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
            except Exception as error:  # the run folder cannot be written to
                ray.get(self.ledger.failed.remote(error))
                raise
        return {
            name: np.array([getattr(c, name) for c in whole], kind) for name, kind in COUNTS.items()
        }


def embed(
    plan: EmbedPlan, shards: Sequence[Shard], spec: ComputeSpec, workers: int
) -> Iterator[ShardCounts]:
    """Counts of each shard as it is published.

    A shard that loses its workers in every round is embedded alone, where what kills them is found
    and counted. Raises RuntimeError when more than ``spec.max_lost_shards`` do: no few bad shards,
    but a cluster that is too small or broken.
    """
    todo = {s.index: s for s in shards}
    for number in range(ROUNDS):
        if not todo or (number and len(todo) <= FEW):
            break
        if number:
            log.warning("%d shards lost a worker or their assembler: once more", len(todo))
        for counts in fed(_stream, plan, list(todo.values()), spec, workers):
            if todo.pop(counts.shard, None) is not None:
                yield counts
    if len(todo) > spec.max_lost_shards:
        raise RuntimeError(
            f"{len(todo)} shards lost their workers again and again, more than "
            f"compute.max_lost_shards={spec.max_lost_shards}: too little memory on the machines? "
            "lower compute.readers, or raise compute.memory_per_reader; run again to resume"
        )
    yield from isolate(plan, list(todo.values()), spec, workers)


def _stream(
    plan: EmbedPlan, shards: Sequence[Shard], spec: ComputeSpec, workers: int
) -> Iterator[ShardCounts]:
    gpu = spec.gpus_per_worker > 0
    encoders = min(workers, len(shards))
    ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
    context = DataContext.get_current()
    context.target_max_block_size = spec.block_bytes
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # advice about Ray Data for its programmers
    context.raise_original_map_exception = True
    context.max_errored_blocks = -1  # its shard has no mark, and is embedded again
    context.custom_execution_callback_classes = [watching(ledger, encoders)]
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # we say what was lost
    actor = ray.remote(max_restarts=0, **helper_options(spec, ASSEMBLER_CPUS))(Assemble)
    assemblers = [actor.remote(plan, ledger) for _ in range(max(1, encoders // 4))]
    references = [vars(s) for s in shards]
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to bound retries, and means to take this one away in 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        rows = (
            ray.data.from_items(references, override_num_blocks=len(references))
            .map_batches(
                ReadShard(plan, ledger).__call__,
                batch_size=1,
                concurrency=spec.readers,
                max_retries=RETRIES,  # Ray Data's own would be for ever
                # Another need than the encoder's: Ray does not fuse the two.
                **reader_options(spec),
            )
            .map_batches(
                Encode,
                fn_constructor_args=(plan, gpu, ledger),
                batch_size=plan.encoder.batch_size,
                compute=ActorPoolStrategy(
                    min_size=max(1, min(spec.min_workers, encoders)),
                    max_size=encoders,
                    max_concurrent_calls_per_actor=CALLS,
                    enable_true_multi_threading=gpu,  # the encoder itself lets one in at a time
                ),
                max_restarts=-1,  # bounded by the ledger's watch
                max_task_retries=RETRIES,
                **worker_options(spec, "encoder", spec.gpus_per_worker),
            )
            .map_batches(
                Deliver(assemblers, ledger).__call__,
                batch_size=None,
                max_retries=MAX_RETRIES,
                **helper_options(spec, DELIVER_CPUS),
            )
        )
        answers = iter(rows.iter_batches(batch_size=None, batch_format="numpy"))
    try:
        for batch in answers:
            for values in zip(*(batch[name].tolist() for name in COUNTS), strict=True):
                yield ShardCounts(*values)
        seen: Seen = ray.get(ledger.seen.remote())
        if seen.error is not None:  # since the watch looked last
            raise seen.error
        again = max(0, seen.readings - len(shards)) + max(0, seen.lives - encoders)
        tally.add(seen.moved + Tally(retries=again))
    finally:
        for helper in (*assemblers, ledger):
            ray.kill(helper)
