"""What each task and actor asks of a machine: CPUs, GPUs, memory, custom resources, labels."""

from __future__ import annotations

from typing import Any

import ray

from rrcluster.config import ComputeSpec

# Tries again after a lost process or machine: of a task, a block holder, the coordinator. Four
# survive a bad hour on a spot market; what kills its worker five times will do so a sixth.
MAX_RETRIES = 4
# The end of a worker's process; the loss of its machine is another matter.
DEATHS = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
LOST_NODES = 20  # machines that may go under one suspect shard, or one feeder
# Ray gives each machine one of any resource of such a name; Ray Serve bounds its replicas by it.
ONE_PER_NODE = "node:__internal_implicit_resource_rrcluster_"
# These wait most of the time (a feeder takes a core at most), but must not be placed on a head
# without CPUs.
ASSEMBLER_CPUS = FEEDER_CPUS = 0.01
DELIVER_CPUS = 0.1


def worker_options(spec: ComputeSpec, role: str, gpus: float = 0) -> dict[str, Any]:
    """Options of an encoder, a holder of blocks, or a task of ``map``.

    ``workers_per_node`` is a share of a resource that Ray gives every machine one of; each role
    has its own, because a fit's tasks run beside its holders.
    """
    options = _placed(spec) | {"num_cpus": spec.cpus_per_worker, "memory": spec.memory_per_worker}
    if gpus:
        options["num_gpus"] = gpus
    if spec.workers_per_node is not None:
        share = {f"{ONE_PER_NODE}{role}": 1 / spec.workers_per_node}
        options["resources"] = {**options.get("resources", {}), **share}
    return options


def reader_options(spec: ComputeSpec) -> dict[str, Any]:
    """Options of a task that reads and decodes."""
    return _placed(spec) | {"num_cpus": spec.cpus_per_reader, "memory": spec.memory_per_reader}


def helper_options(spec: ComputeSpec, cpus: float) -> dict[str, Any]:
    """Options of an assembler, a deliverer or a feeder: on the workers' machines, without any
    of the custom resources that workers are counted by."""
    options: dict[str, Any] = {"num_cpus": cpus, "memory": spec.memory_per_helper}
    return options | ({"label_selector": dict(spec.labels)} if spec.labels else {})


def coordinator_options(spec: ComputeSpec) -> dict[str, Any]:
    """Options of the coordinator; it goes beside the job's own process where there is room."""
    return {"num_cpus": spec.coordinator_cpus, "memory": spec.coordinator_memory}


def _placed(spec: ComputeSpec) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if spec.resources:
        options["resources"] = dict(spec.resources)
    if spec.labels:
        options["label_selector"] = dict(spec.labels)
    return options
