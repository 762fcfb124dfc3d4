"""One Ray for the session: starting it takes seconds."""

from __future__ import annotations

import pytest
import ray

from rrcluster.config import ComputeSpec
from rrcluster.distributed.session import RayCompute


@pytest.fixture(scope="session")
def ray_compute():
    with RayCompute.start(ComputeSpec(workers=4)) as compute:
        yield compute
    assert not ray.is_initialized()
