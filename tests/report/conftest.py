"""Fixtures of the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.synthetic_run import make_run

from rrcluster.io.store import Store


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A finished run of 120 good and 6 bad samples in 6 clusters of 3 groups."""
    return make_run(tmp_path / "run")
