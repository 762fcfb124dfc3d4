"""How many workers fit on the machines of a cluster, beside what must run with them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence

import ray
from ray._private import state

from rrcluster.config import ComputeSpec
from rrcluster.records import UserError

# CPUs beside the encoders and a reader: what assembles and delivers while there is no coordinator.
ASIDE_CPUS = 0.5
log = logging.getLogger("rrcluster")


def helper_cpus(spec: ComputeSpec) -> float:
    """CPUs of the one task that must always find room beside the workers: a reader while shards
    are embedded, a piece of a ``map`` while the fit is held."""
    return max(spec.cpus_per_reader, spec.cpus_per_worker)


def aside_cpus(spec: ComputeSpec) -> float:
    """CPUs of the coordinator during a fit, of assemblers and deliverers while embedding."""
    return max(ASIDE_CPUS, spec.coordinator_cpus)


def slots(nodes: Sequence[Mapping[str, float]], spec: ComputeSpec) -> int:
    """The most workers for which the coordinator and one helper task also fit on the nodes."""
    free = [dict(node) for node in nodes]
    asides = (
        (helper_cpus(spec), float(spec.memory_per_reader)),
        (aside_cpus(spec), float(max(spec.coordinator_memory or 0, spec.memory_per_helper or 0))),
    )
    for cpus, memory in asides:
        homes = [n for n in free if n.get("CPU", 0) >= cpus and n.get("memory", 0) >= memory]
        if not homes:
            return 0
        home = min(homes, key=lambda n: _lost(n, cpus, memory, spec))
        home["CPU"] -= cpus
        home["memory"] = home.get("memory", 0) - memory
    return sum(_fit(node, spec) for node in free)


def _fit(node: Mapping[str, float], spec: ComputeSpec) -> int:
    wanted = {
        "CPU": spec.cpus_per_worker,
        "GPU": max(spec.gpus_per_worker, spec.gpus_per_holder),
        "memory": spec.memory_per_worker or 0,
        **spec.resources,
    }
    counts = [node.get(name, 0) / amount for name, amount in wanted.items() if amount > 0]
    most = math.inf if spec.workers_per_node is None else spec.workers_per_node
    return int(min([*counts, most]) + 1e-9) if counts else 0


def _lost(node: Mapping[str, float], cpus: float, memory: float, spec: ComputeSpec) -> int:
    after = {**node, "CPU": node["CPU"] - cpus, "memory": node.get("memory", 0) - memory}
    return _fit(node, spec) - _fit(after, spec)


def workers_for(spec: ComputeSpec) -> int:
    """``compute.workers``, or as many as the connected cluster has room for now.

    Raises UserError with the setting to lower when they would wait for ever.
    """
    nodes = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and spec.labels.items() <= (node.get("Labels") or {}).items()
    ]
    room, grows = slots(nodes, spec), can_grow()
    total = {name: sum(n.get(name, 0) for n in nodes) for name in ("CPU", "GPU")}
    has = f"the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs"
    if spec.workers is None and room == 0 and grows:
        raise UserError(
            "compute.workers", None, f"{has} now and can grow: say how many to wait for"
        )
    if room == 0 and not grows:
        for setting in ("gpus_per_worker", "gpus_per_holder"):
            if getattr(spec, setting) > max((n.get("GPU", 0) for n in nodes), default=0):
                remedy = "and a worker must find its GPUs on one machine; lower it (0: only CPUs)"
                raise UserError(f"compute.{setting}", getattr(spec, setting), f"{has}, {remedy}")
        if spec.labels and not nodes:
            raise UserError("compute.labels", spec.labels, "no machine of the cluster has them all")
        need = f"a worker, {helper_cpus(spec):g} CPU for a reader and {aside_cpus(spec):g} beside"
        setting = "memory_per_worker" if spec.memory_per_worker else "cpus_per_worker"
        lacking = [r for r in spec.resources if not any(n.get(r) for n in nodes)]
        setting = "resources" if lacking else setting
        raise UserError(
            f"compute.{setting}",
            getattr(spec, setting),
            f"{has}; {need} must fit at once; lower it, or give the cluster more",
        )
    if spec.workers is not None and spec.workers > room:
        if not grows:
            raise UserError(
                "compute.workers",
                spec.workers,
                f"{has}: room for {room} beside a reader and the coordinator; lower it",
            )
        log.info("compute.workers=%d: room for %d now, the cluster grows", spec.workers, room)
    return spec.workers or room


def can_grow() -> bool:
    """Whether the cluster has an autoscaler; Ray has no public question for it.

    The newer autoscaler tells Ray what it may add; the launcher's leaves its file on the head,
    where a submitted job runs.
    """
    if os.path.exists(os.path.expanduser("~/ray_bootstrap_config.yaml")):
        return True
    try:
        return state.state.get_cluster_config() is not None
    except AttributeError:
        return True  # another Ray: rather wait than refuse
