"""What Ray's object stores hold and have spilled, asked from each machine's raylet."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import ray
from ray._private.internal_api import node_stats

log = logging.getLogger("rrcluster")


@dataclass(frozen=True)
class ObjectStore:
    """Bytes over all machines: in the stores now; spilled to disk, and ever put into the stores,
    since Ray started there."""

    used: int = 0
    spilled: int = 0
    made: int = 0


def object_store() -> ObjectStore:
    """The stores of the machines that are up; one that does not answer counts as empty."""
    used = spilled = made = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        try:
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            stats = node_stats(address, port, include_memory_info=False).store_stats
        except Exception as error:  # lost in between, or another Ray: a figure is missing, no more
            log.debug("no figures of the object store on %s: %s", node["NodeID"], error)
            continue
        used += stats.object_store_bytes_used
        spilled += stats.spilled_bytes_total
        made += stats.cumulative_created_bytes
    return ObjectStore(used, spilled, made)
