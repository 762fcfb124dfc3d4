from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rrcluster.core import codes as coding
from rrcluster.core.cells import nearest
from rrcluster.core.codes import CentroidCodes, Codes, costs, fit_codes, with_statistics
from rrcluster.core.model import sum_by_label
from rrcluster.core.rate import moment_rates

EPS2 = 0.1


def mixture(n: int, e: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows near k random planes, and a noisy guess of the plane."""
    g = torch.Generator().manual_seed(seed)
    planes = torch.randn(k, 2, e, generator=g)
    y = torch.randint(k, (n,), generator=g)
    z = torch.einsum("nr,nre->ne", torch.randn(n, 2, generator=g), planes[y])
    z = torch.nn.functional.normalize(z + 0.1 * torch.randn(n, e, generator=g), dim=1)
    noisy = torch.where(torch.rand(n, generator=g) < 0.3, torch.randint(k, (n,), generator=g), y)
    return z, noisy


def test_cost_of_a_one_direction_cluster_by_hand() -> None:
    mass, moments = torch.tensor([4.0]), torch.diag(torch.tensor([4.0, 0.0]))[None]
    code = fit_codes(mass, moments, 0.5, rank=1)
    # A = diag(1 + 4, 1): along the cluster ½[log 5 + 4/5 − 4/5], across it ½[log 5 + 4 − 4/5]
    found = costs(torch.eye(2), code)[:, 0].tolist()
    assert found == pytest.approx([0.5 * math.log(5), 0.5 * (math.log(5) + 3.2)], rel=1e-5)


@pytest.mark.parametrize("shrinkage", [10.0, 1000.0])
def test_codes_by_subspace_iteration_are_as_short_as_by_eigendecomposition(
    shrinkage: float, monkeypatch
) -> None:
    z, y = mixture(4000, 64, 40)
    mass, moments = sum_by_label(z, y, 40)
    found = fit_codes(mass, moments, 0.5, rank=4, shrinkage=shrinkage)
    monkeypatch.setattr(coding, "SPARE", 64)  # as many directions as there are: no iteration
    exact = fit_codes(mass, moments, 0.5, rank=4, shrinkage=shrinkage)
    assert found.length == pytest.approx(exact.length, rel=1e-5)
    same = costs(z, found).argmin(1) == costs(z, exact).argmin(1)
    assert float(same.double().mean()) > 0.995


def test_full_rank_costs_agree_with_the_formula_in_float64() -> None:
    z, y = mixture(200, 6, 3)
    mass, moments = sum_by_label(z, y, 3)
    found = costs(z, fit_codes(mass, moments, EPS2, rank=6))
    c = 6 / EPS2
    for k in range(3):
        a = np.eye(6) + c / float(mass[k]) * moments[k].numpy()
        inverse = np.linalg.inv(a)
        quadratic = np.einsum("ne,ef,nf->n", z.double(), inverse, z.double())
        expected = 0.5 * (np.linalg.slogdet(a)[1] + c * quadratic - np.trace(np.eye(6) - inverse))
        expected -= math.log(float(mass[k]) / 200)
        np.testing.assert_allclose(found[:, k].double().numpy(), expected, atol=1e-3)


@given(st.integers(0, 1000), st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_mean_cost_at_the_fitted_partition_is_the_rate_of_the_code(seed: int, rank: int) -> None:
    z, y = mixture(150, 8, 3, seed)
    mass, moments = sum_by_label(z, y, 3)
    code = fit_codes(mass, moments, EPS2, rank)
    own = costs(z, code).gather(1, y[:, None]).double().mean()
    assert float(own) == pytest.approx(code.length, abs=2e-3)
    rates = moment_rates(mass, moments, EPS2)
    assert (code.rate.double() >= rates - 1e-5).all(), "a simpler code is never shorter"


@given(st.integers(0, 1000), st.sampled_from([1, 2, 8]))
@settings(max_examples=15, deadline=None)
def test_giving_rows_to_their_cheapest_cluster_never_lengthens_the_code(
    seed: int, rank: int
) -> None:
    z, y = mixture(200, 8, 4, seed)
    before = math.inf
    for _ in range(6):
        code = fit_codes(*sum_by_label(z, y, 4), EPS2, rank)
        assert code.length <= before + 1e-4
        before, y = code.length, costs(z, code).argmin(1)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_costs_follow_cluster_names_and_ignore_rotation(seed: int) -> None:
    z, y = mixture(120, 6, 3, seed)
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=g))
    names = torch.randperm(3, generator=g)
    plain = costs(z, fit_codes(*sum_by_label(z, y, 3), EPS2, 2, shrinkage=20.0))
    turned = costs(z @ q, fit_codes(*sum_by_label(z @ q, names[y], 3), EPS2, 2, shrinkage=20.0))
    torch.testing.assert_close(turned[:, names], plain, rtol=1e-3, atol=1e-3)


def test_empty_cluster_is_never_chosen_and_can_be_dropped() -> None:
    z, y = mixture(100, 6, 3)
    mass, moments = sum_by_label(z, y * 2, 6)  # clusters 1, 3 and 5 are empty
    code = fit_codes(mass, moments, EPS2, 2, shrinkage=10.0)
    found = costs(z, code)
    assert torch.isposinf(found[:, 1::2]).all()
    assert not found.isnan().any()
    assert code.live().num_clusters == 3
    torch.testing.assert_close(costs(z, code.live()), found[:, ::2])


def test_shrinkage_makes_a_small_cluster_less_sure_of_its_own_rows() -> None:
    z, y = mixture(400, 8, 2)
    y = torch.cat([y, torch.full((3,), 2)])
    z = torch.cat([z, z[:3]])
    small = [
        float(costs(z[-3:], fit_codes(*sum_by_label(z, y, 3), EPS2, 4, shrinkage=s))[:, 2].mean())
        for s in (0.0, 10.0, 100.0)
    ]
    assert small[0] < small[1] < small[2]


def test_centroid_codes_choose_the_nearest_centroid() -> None:
    z, _ = mixture(300, 8, 4)
    centroids = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(CentroidCodes.of(centroids).costs(z).argmin(1), nearest(z, centroids)[0])


def test_codes_survive_storage() -> None:
    z, y = mixture(100, 6, 3)
    for code in (fit_codes(*sum_by_label(z, y, 3), EPS2, 2), CentroidCodes.of(z[:4])):
        back = Codes.from_tensors(code.tensors())
        assert type(back) is type(code)
        assert torch.equal(back.costs(z), code.costs(z))


def test_cost_statistics_are_the_mean_and_spread_of_each_cluster() -> None:
    code = CentroidCodes.of(torch.eye(2))
    count, total = torch.tensor([2.0, 0.0]), torch.tensor([6.0, 0.0])
    squares = torch.tensor([4.0 + 16.0, 0.0])
    found = with_statistics(code, count, total, squares, pseudo_rows=0.0001)
    assert float(found.cost_mean[0]) == pytest.approx(3.0)
    assert float(found.cost_std[0]) == pytest.approx(1.0, rel=1e-3)
    assert torch.isfinite(found.cost_std).all(), "an empty cluster borrows the pooled spread"
    z_score = found.outlier(torch.tensor([5.0]), torch.tensor([0]))
    assert float(z_score) == pytest.approx(2, rel=0.01)


def test_what_two_rows_cost_that_are_like_no_others_is_not_usual() -> None:
    code = CentroidCodes.of(torch.eye(3))
    count = torch.tensor([2.0, 40.0, 58.0])
    mean, squared = torch.tensor([9.0, 4.0, 5.0]), torch.tensor([81.0, 16.25, 25.25])
    found = with_statistics(code, count, count * mean, count * squared)
    overall = float((count * mean).sum() / count.sum())
    assert found.cost_mean.tolist() == pytest.approx([0.2 * 9 + 0.8 * overall, 4, 5])
    assert float(found.outlier(torch.tensor([9.0]), torch.tensor([0]))) > 4


@pytest.mark.parametrize("rows", [3, 5, 10, 40])
def test_left_out_costs_are_nearly_those_of_codes_fitted_without_the_row(rows: int) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(6).repeat_interleave(rows)
    centres = torch.nn.functional.normalize(torch.randn(6, 16, generator=g))
    z = torch.nn.functional.normalize(centres[y] + 0.15 * torch.randn(len(y), 16, generator=g))
    codes = fit_codes(*sum_by_label(z, y, 6), 0.5, 4, 1000.0)
    before, truth = codes.costs(z)[torch.arange(len(z)), y], []
    told = before + codes.saved_by_itself(z, y, 0.5)
    for i in range(len(z)):
        others = torch.arange(len(z)) != i
        without = fit_codes(*sum_by_label(z[others], y[others], 6), 0.5, 4, 1000.0)
        truth.append(without.costs(z[i : i + 1])[0, y[i]])
    exact = torch.stack(truth)
    assert float((told - before).mean() / (exact - before).mean()) == pytest.approx(1, abs=0.2)
    assert float((told - exact).square().mean()) < 0.2 * float((before - exact).square().mean())


def test_rows_that_a_cluster_was_fitted_to_alone_go_to_their_like_when_left_out() -> None:
    g = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(2, 16, generator=g))
    y = torch.arange(40) % 2
    z = torch.nn.functional.normalize(centres[y] + 0.1 * torch.randn(40, 16, generator=g))
    stray = y.clone()
    stray[:2] = torch.tensor([2, 3])  # two rows of their own clusters, each beside its like
    codes = fit_codes(*sum_by_label(z, stray, 4), 0.05, 4, 1000.0)
    assert codes.costs(z).argmin(1)[:2].tolist() == [2, 3]
    cost, leaf = codes.cheapest_left_out(z, 0.05)
    assert torch.equal(leaf, y)
    torch.testing.assert_close(cost, codes.costs(z)[torch.arange(40), y])
