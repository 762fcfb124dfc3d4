from __future__ import annotations

import pytest
import torch

from rrcluster.core.assign import assign, calibrate
from rrcluster.core.codes import CentroidCodes
from rrcluster.core.features import Head, fit_projection
from rrcluster.core.model import CellModel
from rrcluster.core.probe import Probe
from rrcluster.core.refine import RefineSpec, finish, lloyd, refine
from rrcluster.core.shards import MemoryShards

SPEC = RefineSpec(width=8, rank=3, passes=4, rounds=1, steps=5, hidden=16, fit_rows=500)


def groups(n: int, k: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, d, generator=g)
    y = torch.randint(k, (n,), generator=g)
    x = centres[y] + 0.7 * torch.randn(n, d, generator=g)
    return torch.nn.functional.normalize(x, dim=1).half(), y


@pytest.fixture(scope="module", params=["centroids", "rates", "head"])
def fitted(request) -> tuple[CellModel, MemoryShards, torch.Tensor]:
    x, _ = groups(3000, 5, 24)
    shards = MemoryShards(list(x.split(700)))
    features = fit_projection(shards, 8)
    model = CellModel(features, CentroidCodes.of(x[:9]))
    if request.param == "rates":
        model = lloyd(shards, model, features, SPEC)
    if request.param == "head":
        g = torch.Generator().manual_seed(0)
        head = Head.new(8, 16, g)
        head.outer.copy_(torch.randn(8, 16, generator=g) * 0.1)
        model = lloyd(shards, model, features.with_head(head), SPEC)
    return finish(shards, model), shards, x


def test_answers_of_a_row_are_the_same_bits_in_any_order_and_any_slice(fitted) -> None:
    model, _, x = fitted
    whole = assign(model, x, None, 0.7)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for rows in (order, torch.arange(1500, 1501), torch.arange(5, 2800)):
        part = assign(model, x[rows], None, 0.7)
        for name in ("leaf", "confidence", "outlier", "cost"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name


def test_no_rows_give_no_answers(fitted) -> None:
    model, _, x = fitted
    found = assign(model, x[:0], None, 1.0)
    assert found.leaf.shape == found.confidence.shape == (0,)


def test_confidence_of_a_group_is_the_sum_over_its_leaves(fitted) -> None:
    model, _, x = fitted
    k = model.num_leaves
    alone = assign(model, x[:200], None, 1.0)
    single = assign(model, x[:200], torch.arange(k), 1.0)
    torch.testing.assert_close(alone.confidence, single.confidence)
    everyone = assign(model, x[:200], torch.zeros(k).long(), 1.0)
    torch.testing.assert_close(everyone.confidence, torch.ones(200))
    paired = assign(model, x[:200], torch.arange(k) // 2, 1.0)
    assert (paired.confidence >= alone.confidence - 1e-6).all()
    assert (alone.confidence > 0).all()
    assert (alone.confidence <= 1).all()


def test_confidence_falls_to_chance_as_the_temperature_rises(fitted) -> None:
    model, _, x = fitted
    means = [float(assign(model, x, None, t).confidence.mean()) for t in (1e-3, 0.1, 10.0, 1e6)]
    assert means == sorted(means, reverse=True)
    assert means[-1] == pytest.approx(1 / model.num_leaves, rel=1e-3)


def test_calibrated_confidence_is_the_share_of_like_labelled_neighbours(fitted) -> None:
    model, shards, _ = fitted
    names = torch.arange(model.num_leaves) // 2
    temperature = calibrate(model, shards, names, probe_rows=800, neighbours=5)
    probe = Probe.of(shards, 800, 5)
    found = assign(model, probe.x, names, temperature)
    assert float(found.confidence.mean()) == pytest.approx(probe.same(names[found.leaf]), abs=0.005)


def test_rows_of_the_fit_are_no_outliers_and_strangers_are() -> None:
    x, _ = groups(3000, 5, 24)
    shards = MemoryShards([x])
    model, _ = refine(shards, x[:9], SPEC, seed=0)
    own = assign(model, x, None, 1.0).outlier
    assert abs(float(own.mean())) < 0.2
    assert 0.7 < float(own.std()) < 1.3
    strangers, _ = groups(500, 40, 24, seed=9)
    assert float(assign(model, strangers, None, 1.0).outlier.mean()) > 1.0


def test_model_survives_storage(fitted) -> None:
    model, _, x = fitted
    back = CellModel.from_tensors(model.tensors())
    ours, theirs = assign(model, x, None, 1.0), assign(back, x, None, 1.0)
    assert torch.equal(ours.confidence, theirs.confidence)
