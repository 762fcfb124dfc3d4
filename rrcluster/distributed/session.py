"""Compute on Ray: started here with this machine's cores, or the cluster that the job runs in."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TypeVar

import ray
import torch
from torch import Tensor

from rrcluster.compute import Compute, EmbedPlan, Progress, ShardCounts
from rrcluster.config import ComputeSpec
from rrcluster.core.shards import Shards
from rrcluster.distributed import coordinator, embed, shards
from rrcluster.records import Shard, UserError
from rrcluster.stages.embed import TakeVectors

T = TypeVar("T")
R = TypeVar("R")
MAX_RETRIES = 4  # of a task whose worker was lost
log = logging.getLogger("rrcluster")


class RayCompute(Compute):
    """Stages on Ray. ``attach`` joins the Ray that this process already belongs to."""

    def __init__(self, spec: ComputeSpec, workers: int, owner: bool = False) -> None:
        self.spec, self.workers, self._owner = spec, workers, owner

    @staticmethod
    def start(spec: ComputeSpec) -> RayCompute:
        """Start Ray on this machine, or connect to ``spec.address``."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if ray.is_initialized():
            return RayCompute(spec, spec.workers or _slots(spec))
        if spec.address is None:
            cores = os.cpu_count() or 1
            workers = spec.workers or cores
            # Logical cores: readers, the coordinator and the encoders must fit at once, also on a
            # laptop with fewer cores than that; the kernel shares the real ones among them.
            ray.init(
                num_cpus=max(cores, int(workers * spec.cpus_per_worker)) + 2,
                object_store_memory=spec.object_store_memory,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            return RayCompute(spec, workers, owner=True)
        try:
            ray.init(address=spec.address, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise UserError(
                "compute.address",
                spec.address,
                "no Ray cluster answers there; submit with `ray job submit`, or use compute=local",
            ) from error
        return RayCompute(spec, spec.workers or _slots(spec), owner=True)

    def close(self) -> None:
        if self._owner:
            ray.shutdown()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        task = ray.remote(num_cpus=self.spec.cpus_per_worker, max_retries=MAX_RETRIES)(_one)
        sent = ray.put(function)
        running: dict[ray.ObjectRef, int] = {}
        with user_errors():
            for index, item in enumerate(items):
                if len(running) >= 2 * self.workers:
                    yield _next(running)
                running[task.remote(sent, item)] = index
            while running:
                yield _next(running)

    def hold(self, load: Callable[[int], Tensor], blocks: int) -> AbstractContextManager[Shards]:
        return shards.hold(
            load, blocks, self.workers, self.spec.cpus_per_worker, self.spec.memory_per_worker
        )

    def embed(self, plan: EmbedPlan, todo: Sequence[Shard]) -> Iterator[ShardCounts]:
        if plan.encoder.kind == "vectors":
            yield from (counts for _, counts in self.map(TakeVectors(plan), todo))
            return
        with user_errors():
            yield from embed.embed(plan, todo, self.spec, self.workers)

    def coordinate(self, task: Callable[[Compute, Progress], R], progress: Progress) -> R:
        with user_errors():
            return coordinator.coordinate(
                partial(RayCompute, self.spec, self.workers), task, progress
            )


def _slots(spec: ComputeSpec) -> int:
    """Workers that the cluster has room for."""
    found = ray.cluster_resources()
    by_cpu = found.get("CPU", 1) // spec.cpus_per_worker
    by_gpu = found.get("GPU", 0) // spec.gpus_per_worker if spec.gpus_per_worker else by_cpu
    return max(1, int(min(by_cpu, by_gpu) if spec.gpus_per_worker else by_cpu - 1))


def _one(function: Callable[[T], R], item: T) -> R:
    torch.set_num_threads(1)
    return function(item)


def _next(running: dict[ray.ObjectRef, int]) -> tuple[int, R]:
    (ready,), _ = ray.wait(list(running), num_returns=1)
    return running.pop(ready), ray.get(ready)


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake that was found on a worker is raised here as itself, not wrapped by Ray."""
    try:
        yield
    except Exception as error:
        seen: BaseException | None = error
        while seen is not None:
            cause = getattr(seen, "cause", None)
            for found in (seen, cause):
                if type(found) is UserError:
                    raise found from None
            seen = cause if isinstance(cause, BaseException) else seen.__cause__
        raise
