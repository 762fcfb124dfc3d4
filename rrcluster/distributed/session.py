"""Compute on Ray: started here with this machine's cores, or the cluster that the job runs in."""

from __future__ import annotations

import atexit
import errno
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

import ray
import torch
from torch import Tensor

from rrcluster.compute import Compute, EmbedPlan, Progress, ShardCounts
from rrcluster.config import ComputeSpec
from rrcluster.core.shards import Shards
from rrcluster.distributed import coordinator, embed, shards
from rrcluster.distributed.meters import Metered
from rrcluster.distributed.objects import object_store
from rrcluster.distributed.placement import DEATHS, MAX_RETRIES, worker_options
from rrcluster.distributed.room import aside_cpus, helper_cpus, workers_for
from rrcluster.io import tally
from rrcluster.io.tally import Tally
from rrcluster.records import Shard, UserError
from rrcluster.stages.embed import TakeVectors
from rrcluster.stages.quarantine import PassOver

T = TypeVar("T")
R = TypeVar("R")
CONNECT_SECONDS = 10.0
log = logging.getLogger("rrcluster")


class RayCompute(Compute):
    """Stages on Ray. ``attach`` joins the Ray that this process already belongs to."""

    def __init__(self, spec: ComputeSpec, workers: int, owner: bool = False) -> None:
        self.spec, self.workers, self._owner = spec, workers, owner
        self._spilled_before = object_store().spilled if owner else 0

    @staticmethod
    def start(spec: ComputeSpec) -> RayCompute:
        """Start Ray on this machine, or connect to ``spec.address``."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray tries a task that runs out of memory again for ever; here as often as any other.
        os.environ.setdefault("RAY_task_oom_retries", str(MAX_RETRIES))
        if ray.is_initialized():
            return RayCompute(spec, workers_for(spec))
        with _own_stop():
            if spec.address is None:
                return _start_here(spec)
            _connect(spec.address)
        try:
            return RayCompute(spec, workers_for(spec), owner=True)
        except BaseException:
            ray.shutdown()
            raise

    def close(self) -> None:
        if self._owner:
            ray.shutdown()

    def __exit__(self, *exc: object) -> None:
        if self._owner and (spilled := self.spilled_bytes()):
            log.warning(
                "Ray spilled %.1f MB to disk: the object stores were too small for what was in "
                "flight (compute.object_store_memory, compute.readers)", spilled / 1e6
            )  # fmt: skip
        self.close()
        if self._owner and self.spec.address is not None and exc[0] is KeyboardInterrupt:
            atexit.register(_leave)

    def spilled_bytes(self) -> int:
        return max(0, object_store().spilled - self._spilled_before)

    def stored_bytes(self) -> int:
        return object_store().made

    def observed(self, progress: Progress) -> Progress:
        return Metered(progress)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        with user_errors():
            for index, answer in self._answers(function, items):
                try:
                    yield index, _home(answer)
                except DEATHS as error:
                    raise RuntimeError(
                        f"{type(function).__name__}: {_how_often(error)} Too little memory? Lower "
                        "compute.workers or raise compute.memory_per_worker; run again to resume"
                    ) from error

    def _answers(
        self, function: Callable[[T], R], items: Sequence[T]
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """(index, answer) of tasks as they end; only so many are sent ahead."""
        options = worker_options(self.spec, "task")
        task = ray.remote(max_retries=MAX_RETRIES, **options)(_one)
        sent = ray.put(function)
        running: dict[ray.ObjectRef, int] = {}
        for index, item in enumerate(items):
            if len(running) >= 2 * self.workers:
                yield _next(running)
            running[task.remote(sent, item)] = index
        while running:
            yield _next(running)

    def hold(self, load: Callable[[int], Tensor], blocks: int) -> AbstractContextManager[Shards]:
        return shards.hold(load, blocks, self.workers, self.spec)

    def embed(self, plan: EmbedPlan, todo: Sequence[Shard]) -> Iterator[ShardCounts]:
        if plan.encoder.kind == "vectors":
            yield from self._take_vectors(plan, todo)
            return
        with user_errors():
            yield from embed.embed(plan, todo, self.spec, self.workers)

    def _take_vectors(self, plan: EmbedPlan, todo: Sequence[Shard]) -> Iterator[ShardCounts]:
        """Ready vectors; a shard that kills its worker each time is one bad row."""
        with user_errors():
            for index, answer in self._answers(TakeVectors(plan), todo):
                try:
                    yield _home(answer)
                except DEATHS as error:
                    passed = self.map(PassOver(plan, _how_often(error)), [todo[index]])
                    yield from (counts for _, counts in passed)

    def coordinate(self, task: Callable[[Compute, Progress], R], progress: Progress) -> R:
        with user_errors():
            return coordinator.coordinate(
                partial(RayCompute, self.spec, self.workers), task, progress, self.spec
            )


def _start_here(spec: ComputeSpec) -> RayCompute:
    cores = os.cpu_count() or 1
    workers = spec.workers or cores
    # Logical cores: a reader, the coordinator and the encoders must fit at once, also on a
    # laptop with fewer cores than that; the kernel shares the real ones among them.
    beside = math.ceil(aside_cpus(spec) + helper_cpus(spec))
    ray.init(
        address="local",  # also where RAY_ADDRESS names a cluster
        num_cpus=max(cores, math.ceil(workers * spec.cpus_per_worker)) + beside,
        object_store_memory=spec.object_store_memory,
        object_spilling_directory=spec.spill_dir,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    return RayCompute(spec, workers, owner=True)


def _connect(address: str) -> None:
    """Join a running cluster. Raises UserError when there is none, or it asks for a token."""
    remedy = "no Ray cluster answers there; submit with `ray job submit`, or use compute=local"
    target = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if "://" in target:
        how = "is not where a job connects: run it with `ray job submit --address ...` and use auto"
        raise UserError("compute.address", target, how)
    host, _, port = target.rpartition(":")
    if host and port.isdigit():  # Ray itself tries for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise UserError("compute.address", target, f"{remedy} ({error})") from error
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UserError("compute.address", target, remedy) from error
    except ray.exceptions.AuthenticationError as error:
        remedy = "the cluster asks for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        raise UserError("compute.address", target, remedy) from error


def _leave() -> None:
    """End a stopped job without taking torch and Ray apart: that alone lasts as long as the 3 s
    after which Ray's job server kills it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


@contextmanager
def _own_stop() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: ``ray.init`` puts its own in place, which leaves
    without a word and prints a stack."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _one(function: Callable[[T], R], item: T) -> tuple[R, Tally]:
    torch.set_num_threads(1)
    before = tally.total()
    answer = function(item)
    return answer, tally.total() - before


def _home(answer: ray.ObjectRef) -> Any:
    """What a task answered; what it moved is added here."""
    value, moved = ray.get(answer)
    tally.add(moved)
    return value


def _next(running: dict[ray.ObjectRef, int]) -> tuple[int, ray.ObjectRef]:
    (ready,), _ = ray.wait(list(running), num_returns=1)
    return running.pop(ready), ready


def _how_often(error: Exception) -> str:
    last = str(error).split("\n")[0]
    return f"{1 + MAX_RETRIES} workers died on one piece of work, the last one with: {last}"


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake that was found on a worker is raised here as itself, not wrapped by Ray."""
    try:
        yield
    except ray.exceptions.OutOfDiskError as error:
        where = "Ray's object store is full and so is the disk it spills to (compute.spill_dir)"
        raise OSError(errno.ENOSPC, where) from error
    except Exception as error:
        seen: BaseException | None = error
        while seen is not None:
            cause = getattr(seen, "cause", None)
            for found in (seen, cause):
                if type(found) is UserError:
                    raise found from None
            seen = cause if isinstance(cause, BaseException) else seen.__cause__
        raise
