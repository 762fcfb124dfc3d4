"""Which rows of a cluster come first."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rrcluster.core.order import (
    cut_into_parts,
    hash_keys,
    near_duplicates,
    order_rows,
    repeats,
    sensitivity_weights,
    squared_distances,
)


def unit(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def keys(n: int) -> np.ndarray:
    ids = np.random.default_rng(1).integers(0, 256, (n, 16), dtype=np.uint8)
    found = hash_keys(ids, 0)
    return found[np.argsort(found[:, 0])]


def test_equal_ids_have_equal_keys_and_another_seed_another_order() -> None:
    ids = np.asarray([[1] * 16, [2] * 16, [1] * 16], np.uint8)
    found = hash_keys(ids, 0)
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any()
    assert (hash_keys(ids, 1) != found).any()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 25), st.booleans())
def test_every_row_is_in_one_part_and_parts_know_their_groups(sizes, rows, sliced) -> None:
    sizes = np.asarray(sizes)
    parts = cut_into_parts(sizes, rows, sliced)
    group = np.repeat(np.arange(len(sizes)), sizes)
    key = np.random.default_rng(0).integers(0, 2**64, len(group), dtype=np.uint64)
    part = parts.of(group, key)
    listed = [g for p in range(parts.parts) for g in parts.groups(p)]
    assert sorted(set(listed)) == list(range(len(sizes)))
    for p in range(parts.parts):
        inside = group[part == p]
        assert set(inside.tolist()) <= set(parts.groups(p))
        whole = sizes[parts.groups(p)].sum()
        assert whole <= 2 * rows or len(parts.groups(p)) == 1
    for g in np.flatnonzero(parts.slices > 1):  # slices ascend with the key
        mine = np.argsort(key[group == g])
        assert (np.diff(part[group == g][mine]) >= 0).all()


def test_the_extreme_keys_are_in_the_first_and_last_slice() -> None:
    parts = cut_into_parts(np.asarray([70, 5]), 10, True)
    edge = np.asarray([0, 2**64 - 1], np.uint64)
    assert parts.of(np.asarray([0, 0]), edge).tolist() == [0, 6]
    assert parts.of(np.asarray([1, 1]), edge).tolist() == [7, 7]


def test_repeats_are_found_within_a_group_only() -> None:
    key = np.asarray([[5, 1], [5, 1], [5, 2], [5, 2], [5, 2]], np.uint64)
    found = repeats(np.asarray([0, 0, 0, 1, 1]), key)
    assert found.tolist() == [False, True, False, False, True]


def test_near_duplicates_against_all_pairs() -> None:
    x = unit(5000, 4)
    expected = ((x @ x.T).tril(-1) >= 0.999).any(1).numpy()
    assert 0 < expected.sum() < 5000
    assert (near_duplicates(x, 0.999) == expected).all()


def test_closest_furthest_and_strata() -> None:
    x = unit(100)
    squared = squared_distances(x)
    assert squared == pytest.approx(((x - x.mean(0)) ** 2).sum(1).numpy(), rel=1e-5)
    near, _ = order_rows("closest", squared, keys(100))
    far, _ = order_rows("furthest", squared, keys(100))
    assert squared[near[:10]].max() <= np.sort(squared)[9]
    assert squared[far[:10]].min() >= np.sort(squared)[-10]
    even, _ = order_rows("stratified", squared, keys(100))
    assert sorted(even.tolist()) == list(range(100))
    place = np.argsort(np.argsort(squared))
    eighths = np.bincount(place[even[:16]] * 8 // 100, minlength=8)
    assert eighths.tolist() == [2] * 8


def test_sensitivity_weights_are_unbiased_and_prefer_far_rows() -> None:
    x = unit(400, seed=3)
    squared = squared_distances(x) ** 3  # a longer tail
    value = squared + 1
    rng = np.random.default_rng(0)
    estimates, far = [], []
    for _ in range(300):
        key = rng.integers(0, 2**64, (400, 2), dtype=np.uint64)
        order, clocks = order_rows("sensitivity", squared, key)
        weights = sensitivity_weights(clocks, 40)
        estimates.append((weights * value[order[:40]]).sum())
        far.append(squared[order[:40]].mean())
    error = np.std(estimates) / np.sqrt(300)
    assert abs(np.mean(estimates) - value.sum()) < 4 * error
    assert np.mean(far) > squared.mean()
    assert sensitivity_weights(clocks, 400).tolist() == [1] * 400
