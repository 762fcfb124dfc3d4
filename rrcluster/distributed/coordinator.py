"""The one actor that steers a fit: seeding, refinement, counting.

It remembers nothing that is not in the run folder: after a restart the task finds the levels and
cells that are done there and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rrcluster.compute import Compute, Progress
from rrcluster.config import ComputeSpec
from rrcluster.distributed.placement import MAX_RETRIES, coordinator_options

R = TypeVar("R")
POLL_SECONDS = 0.5
Status = tuple[str, float, float | None, str, dict[str, float]]


class Coordinator:
    """Runs one task against a Compute of its own; ``status`` answers while it runs."""

    def __init__(self, compute: Callable[[], Compute]) -> None:
        self._make = compute
        self._status: Status = ("", 0.0, None, "", {})

    def run(self, task: Callable[[Compute, Progress], Any]) -> Any:
        torch.set_num_threads(1)
        return task(self._make(), self._note)

    def _note(
        self, stage: str, done: float, total: float | None, note: str = "", **facts: float
    ) -> None:
        self._status = (stage, done, total, note, facts)

    def status(self) -> Status:
        """(stage, done, total, note, facts), as a Progress was told last."""
        return self._status


def coordinate(
    compute: Callable[[], Compute],
    task: Callable[[Compute, Progress], R],
    progress: Progress,
    spec: ComputeSpec,
) -> R:
    """Place a coordinator, run the task there, pass its progress on."""
    here = ray.get_runtime_context().get_node_id()
    actor = ray.remote(
        max_concurrency=2,
        max_restarts=MAX_RETRIES,
        max_task_retries=MAX_RETRIES,
        # Beside the job's own process where there is room: on a cluster that is the head, which
        # no spot market takes back.
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        **coordinator_options(spec),
    )(Coordinator).remote(compute)
    answer = actor.run.remote(task)
    told: Any = None
    try:
        while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
            try:
                status = ray.get(actor.status.remote(), timeout=5)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                time.sleep(POLL_SECONDS)  # restarting or busy; ``run`` is retried by itself
                continue
            if status != told and status[0]:
                progress(*status[:4], **status[4])
                told = status
        result: R = ray.get(answer)
        return result
    finally:
        ray.kill(actor)
