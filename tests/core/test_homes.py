"""Rows stay in the cluster they were in before a refit, unless another is much cheaper."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rrcluster.core.codes import CentroidCodes, fit_codes
from rrcluster.core.features import FeatureMap
from rrcluster.core.forest import Forest, Homes, joined, label
from rrcluster.core.model import CellModel, features_of, sum_by_label
from rrcluster.io.store import Store
from rrcluster.stages.count import HOMES, homes_of, write_homes
from rrcluster.stages.tensors import read_tensors

WIDTH = 8
FEATURES = FeatureMap(torch.zeros(WIDTH), torch.eye(WIDTH))


def rows(n: int = 300) -> torch.Tensor:
    """Unit rows from one axis to another, evenly."""
    angle = torch.linspace(0, torch.pi / 2, n)
    x = torch.zeros(n, WIDTH)
    x[:, 0], x[:, 1] = angle.cos(), angle.sin()
    noise = 0.05 * torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(x + noise, dim=1).half()


def forest_cut_at(x: torch.Tensor, *at: int) -> Forest:
    """Clusters of neighbouring rows that were cut there."""
    y = torch.bucketize(torch.arange(len(x)), torch.tensor(at), right=True)
    k = len(at) + 1
    codes = fit_codes(*sum_by_label(features_of(FEATURES, x), y, k), 0.1, 2, 10.0)
    model = CellModel(FEATURES, codes)
    return Forest(torch.zeros(1, WIDTH), (model,), torch.arange(k)[:, None], 1.0)


def with_homes(old: Forest, new: Forest, nats: float, successor: list[int]) -> Forest:
    every = torch.full((new.clusters_per_level[-1],), nats, dtype=torch.float64)
    return replace(new, homes=Homes(old, torch.tensor(successor), new.paths[:, -1], every))


@pytest.mark.parametrize("nats", [0.5, 2.0, 8.0])
def test_a_row_leaves_its_cluster_only_for_one_that_is_so_much_cheaper(nats: float) -> None:
    x = rows()
    old, new = forest_cut_at(x, 100), forest_cut_at(x, 200)
    was, cheapest = label(old, x).path[:, 0], label(new, x)
    found = label(with_homes(old, new, nats, [0, 1]), x)
    costs = new.models[0].costs(x.float())
    at_home = costs.gather(1, was[:, None])[:, 0]
    stays = at_home <= cheapest.cost + nats
    assert int((found.path[:, 0] != cheapest.path[:, 0]).sum()) > 0
    assert torch.equal(found.path[:, 0], torch.where(stays, was, cheapest.path[:, 0]))
    torch.testing.assert_close(found.cost, torch.where(stays, at_home, cheapest.cost))
    stayed = found.path[:, 0] != cheapest.path[:, 0]
    assert (found.confidence[stayed] < 0.5).all()
    assert torch.equal(found.outlier[~stayed], cheapest.outlier[~stayed])


def test_a_cluster_with_nats_of_its_own_takes_rows_by_those() -> None:
    x = rows()
    old, new = forest_cut_at(x, 100), forest_cut_at(x, 60, 200)
    free, held = (label(with_homes(old, new, nats, [1, 2]), x).path[:, 0] for nats in (0.0, 1e6))
    homes = Homes(old, torch.tensor([1, 2]), new.paths[:, -1], torch.tensor([0.0, 1e6, 1e6]))
    found = label(replace(new, homes=homes), x).path[:, 0]
    left = free != held
    assert len(free[left].unique()) > 1, "rows would go to that cluster and to others"
    assert torch.equal(found, torch.where(free == 0, free, held))


def test_clusters_that_join_others_leave_no_gap_at_any_level() -> None:
    paths = torch.tensor([[0, 1], [2, 0], [1, 3], [0, 1], [1, 2]])
    found, left = joined(paths, torch.tensor([2, 1, 2, 3]))
    assert [level.tolist() for level in left] == [[0, 1], [1, 2, 3]]
    assert found.tolist() == [[0, 0], [1, 1], [1, 2], [0, 0], [1, 1]]
    same, left = joined(paths, torch.arange(4))
    assert torch.equal(same, paths)
    assert [len(level) for level in left] == [3, 4]


def test_rows_of_a_cluster_that_ended_go_where_they_are_cheapest() -> None:
    x = rows()
    old, new = forest_cut_at(x, 100), forest_cut_at(x, 200)
    found = label(with_homes(old, new, 1e6, [-1, 1]), x)
    ended = label(old, x).path[:, 0] == 0
    assert torch.equal(found.path[ended], label(new, x).path[ended])
    assert (found.path[~ended] == 1).all()


def test_a_row_gets_the_same_cluster_whatever_rows_come_with_it() -> None:
    x = rows()
    forest = with_homes(forest_cut_at(x, 100), forest_cut_at(x, 200), 3.0, [0, 1])
    some = torch.arange(7, 300, 11)
    assert torch.equal(label(forest, x[some]).path, label(forest, x).path[some])


def test_costs_of_a_seed_are_no_nats_and_hold_nobody() -> None:
    x = rows()
    old = forest_cut_at(x, 100)
    codes = CentroidCodes.of(torch.stack([x[:200].float().mean(0), x[200:].float().mean(0)]))
    new = replace(old, models=(CellModel(FEATURES, codes),))
    assert torch.equal(label(with_homes(old, new, 9.0, [0, 1]), x).path, label(new, x).path)


def test_three_generations_are_kept_and_answer_as_before(tmp_path) -> None:
    x, store = rows(), Store(str(tmp_path))
    forest = forest_cut_at(x, 60)
    for at in (100, 140, 180, 220):
        forest = with_homes(forest, forest_cut_at(x, at), 2.0, [0, 1])
    write_homes(store, forest, [])
    back = replace(forest, homes=homes_of(read_tensors(store, HOMES)))
    ages, last = 0, back.homes
    while last is not None:
        ages, last = ages + 1, last.before.homes
    assert ages == 3
    shorter = _without_oldest(forest)
    for name, value in vars(label(shorter, x)).items():
        assert torch.equal(value, getattr(label(back, x), name)), name


def _without_oldest(forest: Forest, generations: int = 3) -> Forest:
    if generations == 0 or forest.homes is None:
        return replace(forest, homes=None)
    before = _without_oldest(forest.homes.before, generations - 1)
    return replace(forest, homes=replace(forest.homes, before=before))
