"""What the seed stage says of its passes."""

from __future__ import annotations

from rrcluster.stages.seed import PassClock


def test_a_pass_is_told_beside_what_the_one_before_foretells() -> None:
    times = iter([10.0, 12.0, 13.0])
    clock = PassClock(500, lambda: next(times))
    assert clock.told(1000, 10) == ""
    assert "2.0 s for 1.0e+07 operations, 0.0 MB" in clock.told(1000, 10)
    told = clock.told(4000, 10)
    assert "1.0 s for 4.0e+07" in told
    assert "predicted 8.0 s" in told
