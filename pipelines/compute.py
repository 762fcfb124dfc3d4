"""Choose what the stages run on."""

from __future__ import annotations

from rrcluster.compute import Compute
from rrcluster.config import Config


def start_compute(config: Config) -> Compute:
    """Compute as ``compute.backend`` says; Ray is imported only when it is asked for."""
    if config.compute.backend == "in_process":
        from rrcluster.local import InProcessCompute

        device = "cuda" if config.compute.gpus_per_worker else "cpu"
        return InProcessCompute(config.compute.workers, device)
    from rrcluster.distributed.session import RayCompute

    return RayCompute.start(config.compute)
