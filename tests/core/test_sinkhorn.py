"""Memberships under no, relaxed, exact and partial marginals, against what they must satisfy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rrcluster.core.sinkhorn import partial_sinkhorn, sinkhorn


def scores(n: int = 30, k: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).double()


def test_without_column_targets_rows_are_softmaxes() -> None:
    s = scores()
    torch.testing.assert_close(sinkhorn(s, 0.5), (s / 0.5).softmax(1))


def test_exact_columns_hold_their_share_and_rows_hold_one() -> None:
    target = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    pi = sinkhorn(scores(), 0.3, target, half_steps=400)
    torch.testing.assert_close(pi.sum(1), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(pi.mean(0), target, atol=1e-8, rtol=0)
    # The optimum of an entropic transport is a scaling of exp(s/η): log π − s/η is u_i + v_j.
    rest = pi.log() - scores() / 0.3
    rest = rest - rest[:1] - rest[:, :1] + rest[:1, :1]
    torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-9, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 2.0), st.floats(0.01, 50.0), st.integers(0, 99))
def test_a_stronger_pull_brings_columns_nearer_to_their_targets(eta, strength, seed) -> None:
    s, target = scores(seed=seed), torch.full((4,), 0.25, dtype=torch.float64)

    def distance(pull: float) -> float:
        pi = sinkhorn(s, eta, target, pull, half_steps=600)
        share = pi.mean(0)
        return float((share * (share / target).log()).sum())

    free, pulled, forced = (distance(p) for p in (1e-9, strength, math.inf))
    assert forced - 1e-6 <= pulled <= free + 1e-6


def test_uniform_columns_tear_a_long_tail_apart_and_relaxed_ones_do_not() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    s = torch.nn.functional.one_hot(labels, 2).double()
    even = torch.full((2,), 0.5, dtype=torch.float64)
    exact = sinkhorn(s, 0.1, even, half_steps=600)
    relaxed = sinkhorn(s, 0.1, even, strength=0.05, half_steps=600)
    assert float(exact[:90, 0].mean()) < 0.6
    assert float(relaxed[:90, 0].mean()) > 0.99


def test_partial_transport_sets_the_least_likely_rows_aside() -> None:
    s = torch.cat([5 + scores(80), scores(20) - 5])
    pi = partial_sinkhorn(s, 0.2, 0.8)
    given = pi.sum(1)
    assert float(given.sum()) == pytest.approx(80, abs=1e-3)
    assert float(given[:80].min()) > 0.99
    assert float(given[80:].max()) < 0.01
    target = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    pi = partial_sinkhorn(s, 0.2, 0.8, target, half_steps=4000)
    torch.testing.assert_close(pi.sum(0) / 80, target, atol=1e-3, rtol=0)
    torch.testing.assert_close(partial_sinkhorn(s, 0.2, 1.0), sinkhorn(s, 0.2))


def test_gradients_pass_and_senseless_settings_are_refused() -> None:
    s = scores(6, 3).requires_grad_()
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, 0.5, even), (s,))
    with pytest.raises(ValueError, match="temperature"):
        sinkhorn(s, 0.0)
    with pytest.raises(ValueError, match="share"):
        partial_sinkhorn(s, 0.1, 0.0)
