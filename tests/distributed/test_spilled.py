"""What Ray puts on disk for want of room is told, at the end of every job."""

from __future__ import annotations

import pytest

from rrcluster.config import ComputeSpec
from rrcluster.distributed import session
from rrcluster.distributed.objects import ObjectStore


@pytest.mark.parametrize("spilled", [0, 3_000_000])
def test_spilling_is_said_at_the_end_and_silence_when_there_was_none(monkeypatch, spilled) -> None:
    stores = iter([ObjectStore(0, 5), ObjectStore(0, 5 + spilled)])
    said: list[str] = []
    monkeypatch.setattr(session, "object_store", lambda: next(stores))
    monkeypatch.setattr(session.log, "warning", lambda line, *values: said.append(line % values))
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    with session.RayCompute(ComputeSpec(), 1, owner=True):
        pass
    assert said == [] if not spilled else "spilled 3.0 MB" in said[0]
