"""Choose what the stages run on."""

from __future__ import annotations

import torch

from rrcluster.compute import Compute
from rrcluster.config import Config
from rrcluster.records import UserError


def start_compute(config: Config) -> Compute:
    """Compute as ``compute.backend`` says; Ray is imported only when it is asked for."""
    if config.compute.backend == "in_process":
        from rrcluster.local import InProcessCompute

        spec = config.compute
        encoders = _device("gpus_per_worker", spec.gpus_per_worker)
        return InProcessCompute(
            spec.workers, encoders, _device("gpus_per_holder", spec.gpus_per_holder)
        )
    from rrcluster.distributed.session import RayCompute

    return RayCompute.start(config.compute)


def _device(setting: str, gpus: float) -> str:
    """The device of this process that a setting asks for. Raises UserError where there is none."""
    if gpus and not torch.cuda.is_available():
        remedy = "torch sees no GPU on this machine; 0 computes on its CPUs"
        raise UserError(f"compute.{setting}", gpus, remedy)
    return "cuda" if gpus else "cpu"
