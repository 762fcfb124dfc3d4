"""One Ray for the session: starting it takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from rrcluster.config import ComputeSpec
from rrcluster.distributed.session import RayCompute


@pytest.fixture(scope="session")
def ray_compute():
    tests = Path(__file__).resolve().parents[1]
    # Workers import the functions that the tests hand over.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent)])
    with RayCompute.start(ComputeSpec(workers=4)) as compute:
        yield compute
    assert not ray.is_initialized()
