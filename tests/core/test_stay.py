"""Clusters that there are stay whole in a new tree unless parting or joining them pays."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score

from rrcluster.core.features import fit_projection
from rrcluster.core.merge import cut, estimate, merge_tree
from rrcluster.core.model import sum_by_label
from rrcluster.core.neighbours import agree, seeds_within
from rrcluster.core.shards import MemoryShards
from rrcluster.core.stay import Stay, counted
from rrcluster.core.verdict import Verdict


def entropy(labels: torch.Tensor) -> float:
    share = torch.bincount(labels).double() / len(labels)
    return float(torch.special.entr(share).sum())


def test_the_price_is_the_variation_of_information_in_nats_of_all_rows() -> None:
    g = torch.Generator().manual_seed(0)
    new, old = torch.randint(5, (400,), generator=g), torch.randint(4, (400,), generator=g)
    stay = Stay.of([counted(new[:150], old[:150]), counted(new[150:], old[150:])], 5, 2.0)
    variation = entropy(new) + entropy(old) - 2 * mutual_info_score(new, old)
    assert sum(map(stay.price, stay.leaves)) == pytest.approx(2.0 * 400 * variation)


def test_what_did_not_change_is_free_and_a_halved_cluster_costs_log_two_a_row() -> None:
    old = torch.arange(100) % 2
    same = Stay.of([counted(1 - old, old)], 2, 1.0)
    assert sum(map(same.price, same.leaves)) == pytest.approx(0)
    halves = Stay.of([counted(torch.arange(100) % 4 // 2, torch.zeros(100).long())], 2, 1.0)
    assert sum(map(halves.price, halves.leaves)) == pytest.approx(100 * math.log(2))


def test_rows_that_were_coded_badly_have_no_say() -> None:
    assert counted(torch.tensor([0, 0, 1]), torch.tensor([2, -1, -1])) == {(0, 2): 1}


def leaves(spread: float = 0.05):
    """Three groups of two leaves each; by their directions leaves (0, 1), (2, 3), (4, 5) belong."""
    g = torch.Generator().manual_seed(1)
    leaf = torch.arange(1200) % 6
    z = torch.eye(8)[leaf // 2] + 0.1 * torch.eye(8)[7] * (leaf % 2)[:, None]
    z = torch.nn.functional.normalize(z + spread * torch.randn(1200, 8, generator=g), dim=1)
    return leaf, *sum_by_label(z, leaf, 6)


def test_a_tree_without_a_past_has_the_same_bits_and_tells_no_price() -> None:
    _, mass, moments = leaves()
    plain = merge_tree(mass, moments, 0.5)
    free = merge_tree(mass, moments, 0.5, stay=Stay(({},) * 6, 3.0))
    assert torch.equal(plain.lengths, free.lengths)
    assert torch.equal(plain.pairs, free.pairs)
    assert not plain.stay.any()


def test_old_clusters_stay_whole_until_joining_others_pays_more() -> None:
    leaf, mass, moments = leaves()
    plain = merge_tree(mass, moments, 0.5)
    assert cut(plain, 3).tolist() == [0, 0, 1, 1, 2, 2]
    old = torch.tensor([0, 1, 2, 2, 3, 3])[leaf]  # the first group was cut in two
    stay = Stay.of([counted(leaf, old)], 6, 20.0)
    tree = merge_tree(mass, moments, 0.5, stay=stay)
    assert estimate(tree) == 4
    assert cut(tree, 4).tolist() == [0, 1, 2, 2, 3, 3]
    assert cut(tree, 3).tolist() == [0, 0, 1, 1, 2, 2]  # fewer were asked for: the halves join
    assert float(tree.stay[3]) == pytest.approx(0, abs=1e-6)
    assert float(tree.stay[2]) == pytest.approx(20 * 400 * math.log(2))
    cheap = merge_tree(mass, moments, 0.5, stay=Stay.of([counted(leaf, old)], 6, 1e-6))
    assert estimate(cheap) == estimate(plain)


def test_a_refit_starts_from_parts_of_the_clusters_before() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.nn.functional.normalize(torch.randn(300, 12, generator=g), dim=1).half()
    before = torch.arange(300) % 3 - 1
    seeds = seeds_within(x, 9, 0, before)
    assert seeds.shape == (9, 12)
    found = agree(x, fit_projection(MemoryShards([x]), 8), 9, 5, 0.1, 2, 0, before)
    for part in range(found.clusters):
        assert len(before[found.labels == part].unique()) == 1


def test_a_refit_must_agree_no_less_and_be_shorter_to_be_better() -> None:
    assert Verdict((0.8, 0.81), 4000, (30.0, 29.9)).better
    assert Verdict((0.8, 0.81), 4000, None).better
    assert not Verdict((0.8, 0.81), 4000, (30.0, 30.1)).better
    assert not Verdict((0.8, 0.79), 4000, (30.0, 29.0)).better
    assert "0.800 → 0.790" in Verdict((0.8, 0.79), 4000, (30.0, 29.0)).words
