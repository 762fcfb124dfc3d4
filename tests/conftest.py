"""Fixtures that several layers share: an S3 server, and real data where there is some."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Threads that spin while they wait are slow where tests share the cores; set before torch comes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

pytest_plugins = ["job_fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one process, for what they share; so do all that share one Ray."""
    for item in items:
        group = "ray" if "distributed" in item.path.parts else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


class S3(NamedTuple):
    """A running S3 server: ``bucket()`` makes an empty bucket and gives its ``s3://`` address."""

    endpoint: str
    storage_options: dict[str, Any]
    bucket: Callable[[], str]


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    options = {"key": "key", "secret": "secret", "client_kwargs": {"endpoint_url": endpoint}}

    def bucket() -> str:
        name = f"test-{uuid.uuid4().hex}"
        s3fs.S3FileSystem(**options).mkdir(name)
        return f"s3://{name}"

    yield S3(endpoint, options, bucket)
    server.stop()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and vectors, which is no part of the repository."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("RRCLUSTER_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set RRCLUSTER_TEST_DATA)")
    return folder
