"""Water-filling against a bucket-by-bucket reference, by hand, and by property."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrcluster.core.sample import Levels, SampleSpec, allocate, balance, cluster_keys, lorenz
from rrcluster.core.waterfill import ranks, water_fill


def fill(budget, sizes, lower=None, weight=None, parent=None, key=None) -> list[int]:
    m = len(sizes)
    return water_fill(
        np.atleast_1d(np.asarray(budget, np.int64)),
        np.zeros(m, np.int64) if parent is None else np.asarray(parent),
        np.zeros(m, np.int64) if lower is None else np.asarray(lower, np.int64),
        np.asarray(sizes, np.int64),
        np.ones(m) if weight is None else np.asarray(weight, float),
        np.arange(m, dtype=np.uint64) if key is None else key,
    ).tolist()


def one_by_one(budget, sizes, key) -> list[int]:
    """The reference: hand out rows one at a time, always to the child that has fewest so far."""
    share = [0] * len(sizes)
    for _ in range(budget):
        open_ = [i for i in range(len(sizes)) if share[i] < sizes[i]]
        share[min(open_, key=lambda i: (share[i], key[i]))] += 1
    return share


def test_small_children_give_all_and_the_rest_is_even() -> None:
    assert fill(10, [1, 2, 50, 60]) == [1, 2, 4, 3]
    assert fill(0, [3, 4]) == [0, 0]
    assert fill(7, [3, 4]) == [3, 4]
    assert fill(5, [0, 9, 0]) == [0, 5, 0]


def test_minima_are_given_first_and_weights_tilt_the_water() -> None:
    assert fill(10, [20, 20], lower=[7, 0]) == [7, 3]
    assert fill(12, [20, 20], weight=[2, 1]) == [8, 4]
    assert fill(12, [5, 20], weight=[2, 1]) == [5, 7]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5), st.data()
)
def test_every_node_is_filled_as_row_by_row(nodes, data) -> None:
    budgets = [data.draw(st.integers(0, sum(sizes))) for sizes in nodes]
    parent = np.repeat(np.arange(len(nodes)), [len(s) for s in nodes])
    order = np.asarray(data.draw(st.permutations(range(len(parent)))))
    sizes = np.concatenate(nodes)
    key = cluster_keys(np.arange(len(parent)), 3)
    found = np.empty(len(parent), np.int64)
    found[order] = fill(budgets, sizes[order], parent=parent[order], key=key[order])
    expected = [
        one_by_one(b, s, key[parent == i])
        for i, (b, s) in enumerate(zip(budgets, nodes, strict=True))
    ]
    assert found.tolist() == [share for node in expected for share in node]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bounds_and_budgets_hold_to_the_row_with_any_weights(data) -> None:
    m = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    parent = np.sort(rng.integers(0, 4, m))
    upper = rng.integers(0, 10**6, m)
    lower = np.minimum(upper, rng.integers(0, 100, m) * rng.integers(0, 2, m))
    weight = np.exp(rng.normal(0, 4, m))
    least, most = (np.bincount(parent, b, 4).astype(np.int64) for b in (lower, upper))
    budget = least + ((most - least) * rng.random(4)).astype(np.int64)
    share = np.asarray(fill(budget, upper, lower, weight, parent))
    assert np.bincount(parent, share, 4).astype(np.int64).tolist() == budget.tolist()
    assert (share >= lower).all()
    assert (share <= upper).all()
    for node in range(4):
        inside = (parent == node) & (share > lower) & (share < upper)
        level = share[inside] / weight[inside]
        slack = 1 / weight[inside]
        assert not len(level) or (level.max() - level.min() <= 2 * slack.max() + 1e-6 * level.max())


def test_a_budget_outside_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the bounds"):
        fill(8, [3, 4])


def tree(sizes_of: list[list[int]]) -> tuple[Levels, np.ndarray]:
    """Two levels: one coarse cluster per list."""
    parent = np.repeat(np.arange(len(sizes_of)), [len(s) for s in sizes_of])
    ids = (np.arange(len(sizes_of)), 100 + np.arange(len(parent)))
    levels = Levels(ids, (np.zeros(len(sizes_of), np.int64), parent))
    return levels, np.concatenate(sizes_of)


def test_hierarchical_is_even_over_groups_and_flat_over_leaves() -> None:
    levels, sizes = tree([[100, 100, 100], [100]])
    found = allocate(levels, sizes, SampleSpec(size=80), 0).leaf
    assert sorted(found[:3].tolist()) == [13, 13, 14]
    assert found[3] == 40
    assert allocate(levels, sizes, SampleSpec(size=80, method="flat"), 0).leaf.tolist() == [20] * 4


def test_proportional_follows_size_to_the_temperature() -> None:
    levels, sizes = tree([[400, 100]])
    spec = SampleSpec(size=100, method="proportional", temperature=1.0)
    assert allocate(levels, sizes, spec, 0).leaf.tolist() == [80, 20]
    spec.temperature = 0.5
    spec.size = 90
    assert allocate(levels, sizes, spec, 0).leaf.tolist() == [60, 30]


def test_repetition_caps_and_shortfall() -> None:
    levels, sizes = tree([[2, 50], [3]])
    found = allocate(levels, sizes, SampleSpec(size=60, multiplier=4), 0)
    assert found.leaf.tolist() == [8, 40, 12]
    capped = allocate(levels, sizes, SampleSpec(size=50, max_per_cluster=10), 0)
    assert capped.leaf.tolist() == [2, 10, 3]
    assert (capped.total, capped.wanted) == (15, 50)
    with pytest.raises(ValueError, match="least"):
        allocate(levels, sizes, SampleSpec(size=5, min_per_cluster=3), 0)


def test_a_weight_of_a_coarse_cluster_holds_for_what_is_below() -> None:
    levels, sizes = tree([[100, 100], [100, 100]])
    weights = {0: np.asarray([3.0, 1.0])}
    for method in ("hierarchical", "flat"):
        found = allocate(levels, sizes, SampleSpec(size=80, method=method), 0, weights).leaf
        assert found.tolist() == [30, 30, 10, 10]


def test_levels_that_are_left_out_pour_nothing_and_still_weigh() -> None:
    deep = Levels(
        (np.arange(2), np.arange(2, 5), np.arange(5, 11)),
        (np.zeros(2, int), np.array([0, 0, 1]), np.array([0, 0, 0, 1, 1, 2])),
    )
    many = np.full(6, 1000)
    whole = allocate(deep, many, SampleSpec(size=120), 0).leaf.tolist()
    assert whole == [10, 10, 10, 15, 15, 60]
    middle = allocate(deep, many, SampleSpec(size=120, levels=[1]), 0).leaf
    assert sorted(middle.tolist()) == sorted([13, 13, 14, 20, 20, 40])
    flat = allocate(deep, many, SampleSpec(size=120, method="flat"), 0).leaf
    assert (allocate(deep, many, SampleSpec(size=120, levels=[2]), 0).leaf == flat).all()
    tilted = allocate(deep, many, SampleSpec(size=160, levels=[1]), 0, {0: np.array([1.0, 2.0])})
    assert tilted.leaf[5] == 80
    assert tilted.leaf[:3].sum() == 40


def test_balance_of_even_and_of_one_sided_counts() -> None:
    even = balance(np.full(8, 5))
    assert even["effective"] == pytest.approx(8)
    assert even["gini"] == pytest.approx(0)
    one = balance(np.asarray([0, 0, 0, 40]))
    assert one["effective"] == pytest.approx(1)
    assert one["gini"] == pytest.approx(0.75)
    assert one["covered"] == 1
    assert lorenz(np.asarray([1, 3]), 3) == [0, 0.25, 1]


def test_ranks_count_within_runs() -> None:
    assert ranks(np.asarray([4, 4, 7, 4])).tolist() == [0, 1, 0, 0]
    assert ranks(np.zeros(0, np.int64)).tolist() == []
