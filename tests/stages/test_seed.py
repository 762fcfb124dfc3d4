"""What the seed stage says of its passes."""

from __future__ import annotations

from rrcluster.stages.seed import PassClock


def test_a_pass_is_told_beside_what_the_one_before_foretells() -> None:
    times = iter([10.0, 12.0, 13.0])
    clock = PassClock(500, lambda: next(times))
    assert clock.told(1000, 10) == ""
    assert "2.0 s for 1.0e+07 operations" in clock.told(1000, 10)
    told = clock.told(4000, 10)
    assert "1.0 s for 4.0e+07" in told
    assert "predicted 8.0 s" in told
    assert "between workers" not in told  # nothing went there: one process


def test_bytes_between_workers_are_told_beside_those_of_the_cost_model() -> None:
    times, stored = iter([1.0, 2.0]), iter([5_000_000, 12_000_000])
    clock = PassClock(500, lambda: next(times), lambda: next(stored))
    clock.told(1000, 10, 6.5e6)
    assert "7.0 MB between workers (predicted 6.5 MB)" in clock.told(1000, 10, 6.5e6)
