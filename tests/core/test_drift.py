from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrcluster.core.drift import (
    Sums,
    against_history,
    changes,
    drift,
    matched,
    moved,
    reasons,
    sums_of,
)


def counts(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_equal_shares_are_no_drift() -> None:
    found = drift(counts(600, 400), counts(60, 40), counts(1, 1), counts(0, 0))
    assert found.distance == 0
    assert abs(found.score).max() == 0
    assert reasons(found, 1.1, 0.05, 2.0) == []


def test_a_cluster_that_doubles_its_share_is_told_with_its_score() -> None:
    found = drift(counts(9000, 1000), counts(800, 200), counts(0, 0), counts(0, 0))
    assert round(found.distance, 9) == 0.1
    assert found.score[1] > 8
    assert round(found.score[0] + found.score[1], 6) == 0
    said = reasons(found, 1.1, 0.05, 2.0)
    assert len(said) == 1
    assert "10.0%" in said[0]


def test_few_new_rows_move_shares_by_chance_and_say_nothing() -> None:
    found = drift(counts(500, 500), counts(4, 1), counts(0, 0), counts(0, 0))
    assert found.distance > 0.2
    assert found.expected_distance > 0.1
    assert reasons(found, 1.0, 0.15, 2.0) == []


def test_many_outliers_and_growth_are_reasons_of_their_own() -> None:
    found = drift(counts(500, 500), counts(50, 50), counts(1, 1), counts(10, 10))
    said = reasons(found, 3.0, 0.5, 2.0)
    assert any("outliers" in s for s in said)
    assert any("3.0 times" in s for s in said)
    assert (found.outlier_score > 4).all()


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 50)), min_size=1, max_size=8))
def test_distances_stay_in_bounds_and_scores_are_finite(pairs) -> None:
    old, new = (counts(*column) for column in zip(*pairs, strict=True))
    found = drift(old, new, old // 10, new // 10)
    assert 0 <= found.distance <= 1
    assert 0 <= found.expected_distance <= 1
    assert np.isfinite(found.score).all()
    assert np.isfinite(found.outlier_score).all()


def test_ids_go_to_the_cluster_with_the_largest_common_part() -> None:
    overlap = np.array([[90.0, 5.0, 0.0], [0.0, 40.0, 45.0]])
    assert matched(overlap, 0.3) == {0: 0, 2: 1}
    assert matched(overlap, 0.9) == {0: 0}


def test_the_map_names_kept_split_merged_new_and_retired() -> None:
    overlap = np.array(
        [[90.0, 5.0, 0.0, 0.0], [0.0, 40.0, 45.0, 0.0], [30.0, 0.0, 0.0, 1.0], [4.0, 4.0, 4.0, 4.0]]
    )
    found = changes(overlap, [10, 11, 12, 13], [10, 20, 11, 21])
    assert (10, 10, "kept") in [f[:3] for f in found]
    assert (11, 11, "kept") in [f[:3] for f in found]
    assert (11, 20, "split") in [f[:3] for f in found]
    assert (12, 10, "merged") in [f[:3] for f in found]
    assert (13, None, "retired") in [f[:3] for f in found]
    assert any(f[1] == 21 for f in found)


def _rows(seed: int, n: int, tilt: float = 0.0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, 16)) * 0.2
    x[:, 0] += 1
    x[:, 1] += tilt
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _sums(x: np.ndarray, cost: np.ndarray, cluster: int = 0) -> Sums:
    found = Sums.none(2, 16)
    none = np.zeros(len(x))
    found.add(np.array([cluster]), sums_of(x, np.zeros(len(x), int), 1, none, cost))
    return found


def test_a_mean_that_stays_moves_by_chance_and_one_that_moves_by_more() -> None:
    cost = np.random.default_rng(1).normal(5, 1, 400)
    old = _sums(_rows(0, 400), cost)
    same = moved(old, _sums(_rows(2, 100), cost[:100]))
    assert 0.7 < same.shift[0] / same.shift_by_chance[0] < 1.4
    assert abs(same.rate[0]) < 3 * same.rate_error[0]
    other = moved(old, _sums(_rows(3, 100, 0.5), cost[:100] + 2))
    assert other.shift[0] > 5 * other.shift_by_chance[0]
    assert other.rate[0] == pytest.approx(2, abs=0.3)
    assert other.rate_error[0] == pytest.approx(0.11, abs=0.03)
    assert np.isnan(other.shift[1])
    assert np.isnan(other.rate[1])


def test_sums_add_over_any_cut_of_the_rows() -> None:
    x, cost = _rows(0, 60), np.arange(60.0)
    cluster = np.arange(60) % 2
    outlier = np.where(np.arange(60) < 6, 9.0, 0.0)
    every = sums_of(x, cluster, 2, outlier, cost)
    parts = Sums.none(2, 16)
    for a, b in ((0, 7), (7, 40), (40, 60)):
        part = sums_of(x[a:b], cluster[a:b], 2, outlier[a:b], cost[a:b])
        parts.add(np.array([0, 1]), part)
    for one, other in zip(vars(every).values(), vars(parts).values(), strict=True):
        assert np.allclose(one, other)
    assert every.outliers.tolist() == [3, 3]


def test_history_is_told_with_its_spread() -> None:
    assert "no increment before" in against_history("outliers are", 0.02, [])
    assert against_history("shares moved by", 0.1, [0.2], 0.07) == (
        "shares moved by 10.0% (chance gives 7.0%); 20.0% in the increment before"
    )
    assert against_history("outliers are", 0.02, [0.01, 0.03, 0.02]) == (
        "outliers are 2.0%; 2.0% ± 1.0% in the 3 increments before"
    )
