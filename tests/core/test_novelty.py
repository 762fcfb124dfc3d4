"""When rows that nobody describes well are a cluster of their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from rrcluster.core.features import FeatureMap
from rrcluster.core.model import sum_by_label
from rrcluster.core.novelty import Known, Novel, gain, grouped, nearest_known, often, opened

WIDTH = 24


def cloud(direction: int, count: int, seed: int, spread: float = 0.1) -> torch.Tensor:
    """Unit rows around one axis."""
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return normalize(torch.eye(WIDTH)[direction] + spread * noise, dim=1)


def two_clusters() -> Known:
    z = torch.cat([cloud(0, 200, 1), cloud(1, 200, 2)])
    return Known(*sum_by_label(z, torch.arange(400) // 200, 2), 0.5, 500.0)


def test_rows_of_another_direction_pay_for_a_cluster_and_rows_of_a_cluster_do_not() -> None:
    known = two_clusters()
    zeros = torch.zeros(40, dtype=torch.int64)
    assert gain(cloud(5, 40, 3), zeros, known) > 40
    assert gain(cloud(0, 40, 4), zeros, known) < 0
    assert gain(cloud(5, 2, 3), zeros[:2], known) < gain(cloud(5, 40, 3), zeros, known)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_gain_does_not_depend_on_the_order_of_rows_or_the_axes(seed: int) -> None:
    known, rows = two_clusters(), cloud(4, 30, seed)
    cluster = torch.arange(30) % 2
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)))
    q = turn.Q.double()
    turned = Known(known.mass, q.T @ known.moments @ q, 0.5, 500.0)
    expected = pytest.approx(gain(rows, cluster, known), rel=1e-3, abs=1e-2)
    assert gain(rows[order], cluster[order], known) == expected
    assert gain(rows @ q.float(), cluster, turned) == expected


def test_groups_are_found_apart_and_what_is_worth_nothing_is_left_out() -> None:
    known = two_clusters()
    z = torch.cat([cloud(4, 50, 5), cloud(5, 50, 6), cloud(0, 50, 7)])
    cluster = torch.zeros(150, dtype=torch.int64)
    found = grouped(z, known, 10, 0, lambda rows: gain(z[rows], cluster[rows], known))
    assert sorted((int(g.min()), len(g)) for g in found) == [(0, 50), (50, 50)]


def made() -> tuple[Known, Novel]:
    known, features = two_clusters(), FeatureMap(torch.zeros(WIDTH), torch.eye(WIDTH))
    rows = cloud(5, 60, 8)
    group = torch.zeros(60, dtype=torch.int64)
    return opened(known, None, features, rows, group, torch.tensor([0, 1]), 1.0)


def test_later_rows_of_the_concept_are_claimed_and_others_are_not() -> None:
    _, novel = made()
    leaf = torch.zeros(30, dtype=torch.int64)
    same, *_ = novel.claim(cloud(5, 30, 9), leaf, 1.0)
    assert (same == 0).double().mean() > 0.9  # beyond three deviations a row is none of its rows
    for other in (0, 6):  # the cluster's own rows, and rows of yet another concept
        assert (novel.claim(cloud(other, 30, 10), leaf, 1.0)[0] == -1).all()


def test_a_claim_is_the_same_bits_alone_and_among_others() -> None:
    _, novel = made()
    rows, leaf = cloud(5, 40, 11, 0.3), torch.zeros(40, dtype=torch.int64)
    together = novel.claim(rows, leaf, 1.0)
    for i in (0, 17, 39):
        alone = novel.claim(rows[i : i + 1], leaf[i : i + 1], 1.0)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


def test_clusters_opened_earlier_keep_their_prices_when_more_are_opened() -> None:
    known, novel = made()
    rows, group = cloud(6, 60, 12), torch.zeros(60, dtype=torch.int64)
    _, more = opened(known, novel, novel.features, rows, group, novel.own, 1.0)
    assert (more.first, more.count) == (2, 2)
    x, leaf = cloud(5, 30, 13), torch.zeros(30, dtype=torch.int64)
    assert torch.equal(novel.claim(x, leaf, 1.0)[0], more.claim(x, leaf, 1.0)[0])
    assert (more.claim(rows, torch.zeros(60, dtype=torch.int64), 1.0)[0] == 1).sum() > 50
    read = Novel.from_tensors(more.tensors())
    assert torch.equal(read.claim(x, leaf, 1.0)[2], more.claim(x, leaf, 1.0)[2])


def test_how_often_counts_one_row_more_before_than_there_were() -> None:
    assert often(10, 100, 0, 1000) == pytest.approx(100.0)
    assert often(10, 100, 99, 1000) == pytest.approx(1.0)


def test_a_new_cluster_lies_beside_the_one_that_is_cheapest_to_join() -> None:
    between = normalize(cloud(1, 40, 14) + 0.8 * cloud(5, 40, 15), dim=1)
    assert nearest_known(between, two_clusters()) == 1
