"""Clusters are merged and split for what new rows say, and not for what the fit knew."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from rrcluster.core.model import sum_by_label
from rrcluster.core.novelty import Known
from rrcluster.core.regroup import regrouped

WIDTH = 24


def cloud(seed: int, count: int, *directions: float) -> torch.Tensor:
    """Unit rows around a point, given by its first coordinates."""
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.08
    noise[:, : len(directions)] += torch.tensor(directions)
    return normalize(noise, dim=1)


def known(*leaves: torch.Tensor) -> Known:
    label = torch.cat([torch.full((len(z),), i) for i, z in enumerate(leaves)])
    return Known(*sum_by_label(torch.cat(leaves), label, len(leaves)), 0.5, 5000.0)


def plus(fit: Known, *leaves: torch.Tensor) -> Known:
    more = known(*leaves)
    return Known(fit.mass + more.mass, fit.moments + more.moments, 0.5, 5000.0)


NONE = torch.zeros(0, WIDTH)
FIT = (cloud(1, 300, 1, 0.5), cloud(2, 300, 1, -0.5), cloud(3, 300, 0, 0, 1))
ONE_EACH = torch.tensor([0, 1, 2])
UNDER_ONE = torch.zeros(3, dtype=torch.int64)


def test_two_clusters_that_new_rows_join_are_merged_into_the_larger() -> None:
    fit = known(*FIT)
    bridge = cloud(4, 2000, 1, 0)
    every = plus(fit, bridge[:1100], bridge[1100:], FIT[2][:50])
    found = regrouped(fit, every, ONE_EACH, UNDER_ONE, 0.1)
    assert [(away, into) for away, into, _ in found.merged] == [(1, 0)]
    assert found.merged[0][2] > 0.1 * 2600
    assert not found.split
    apart = regrouped(fit, every, ONE_EACH, torch.tensor([0, 1, 1]), 0.1)
    assert not apart.merged  # of two parents


def test_a_cluster_whose_leaves_new_rows_drive_apart_is_split_along_them() -> None:
    near = (cloud(5, 300, 1, 0.1), cloud(6, 300, 1, -0.1), FIT[2])
    fit, both = known(*near), torch.tensor([0, 0, 1])
    every = plus(fit, cloud(7, 1500, 1, 0, 0, 3), cloud(8, 900, 1, 0, 0, 0, 3), NONE)
    found = regrouped(fit, every, both, UNDER_ONE, 0.1)
    assert [(cluster, leaves) for cluster, leaves, _ in found.split] == [(0, (1,))]
    assert not found.merged


@pytest.mark.parametrize("cluster", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 1]])
def test_more_rows_of_the_same_kind_change_nothing_whatever_number_was_asked_for(cluster) -> None:
    twins = [(1, 0.02), (1, -0.02), (0, 1.0), (0.5, 1.0)]  # two that are one, two that are two
    fit = known(*(cloud(i, 200, *p) for i, p in enumerate(twins)))
    every = plus(fit, *(cloud(50 + i, 600, *p) for i, p in enumerate(twins)))
    found = regrouped(fit, every, torch.tensor(cluster), torch.zeros(4, dtype=torch.int64), 0.1)
    assert not found.merged
    assert not found.split


def test_what_did_not_grow_is_not_asked() -> None:
    fit = known(*FIT)
    assert regrouped(fit, fit, ONE_EACH, UNDER_ONE, 0.0).merged == ()
