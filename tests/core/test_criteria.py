"""Silhouette, elbow and gap find what is plainly there; from a handful of rows they say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rrcluster.core.criteria import criteria, gap, knee, spread
from rrcluster.core.merge import merge_tree
from rrcluster.core.model import sum_by_label


def groups(n: int, k: int, e: int = 8, noise: float = 0.15, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    centres = torch.linalg.qr(torch.randn(e, e, generator=g))[0][:k]
    return torch.nn.functional.normalize(
        centres[y] + noise * torch.randn(n, e, generator=g), dim=1
    ), y


@pytest.mark.parametrize("k", [3, 6])
def test_all_find_well_separated_groups(k) -> None:
    z, y = groups(600, k)
    leaf = 4 * y + (torch.arange(600) // k) % 4  # four leaves a group
    mass, moments = sum_by_label(z, leaf, 4 * k)
    found = criteria(z, leaf, merge_tree(mass, moments, 0.5), seed=0)
    assert (found.silhouette, found.gap, found.rows) == (k, k, 600)
    assert abs(found.elbow - k) <= 1
    assert criteria(z, leaf, merge_tree(mass, moments, 0.5), seed=0) == found


def test_rows_without_groups_have_a_gap_at_one() -> None:
    rows = np.random.default_rng(0).uniform(size=(400, 4))
    assert gap(rows, 20, 0) == 1


def test_the_spread_is_that_around_the_means_and_the_knee_is_the_corner() -> None:
    rows = np.array([[0.0, 0], [2, 0], [10, 0]])
    assert spread(rows, np.array([5, 5, 9])) == pytest.approx(2)
    k = np.array([1, 2, 4, 8, 16, 32])
    assert knee(k, np.array([100.0, 50, 10, 9, 8, 7])) == 4


def test_a_handful_of_rows_says_nothing() -> None:
    z, y = groups(8, 2)
    mass, moments = sum_by_label(z, y, 2)
    assert criteria(z, y, merge_tree(mass, moments, 0.5), seed=0) is None
