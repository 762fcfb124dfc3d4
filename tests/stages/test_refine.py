"""A refinement that is cut short goes on from what it left in the run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rrcluster.core.refine import Refined, RefineSpec, refine
from rrcluster.core.shards import MemoryShards
from rrcluster.io.store import Store
from rrcluster.stages.refine import read_steps, write_steps

SPEC = RefineSpec(
    width=8, rank=3, sample_rows=300, rounds=1, steps=9, hidden=16, probe_rows=300,
    checkpoint_steps=2, learning_rate=1e-2,
)  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", range(1, 7))  # agree, Lloyd, four times within training
def test_whenever_it_is_killed_it_ends_in_the_same_bits(tmp_path: Path, moment: int) -> None:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 20, generator=g).repeat(80, 1)
    x = torch.nn.functional.normalize(centres + 0.3 * torch.randn(400, 20, generator=g)).half()
    shards, seeds = MemoryShards([x]), x[:8].float()
    store, told = Store(str(tmp_path)), []

    def keep(so_far: Refined) -> None:
        write_steps(store, 0, so_far)
        told.append(so_far)
        if len(told) == moment:
            raise Killed

    whole, events = refine(shards, seeds, SPEC, 0)
    with pytest.raises(Killed):
        refine(shards, seeds, SPEC, 0, on_step=keep)
    start = read_steps(store, 0)
    assert start is not None
    assert (start.training is not None) == (moment > 2)
    model, again = refine(shards, seeds, SPEC, 0, start=start)
    assert again == events
    for name, value in whole.tensors().items():
        assert torch.equal(value, model.tensors()[name]), name
