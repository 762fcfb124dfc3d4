import pytest

from rrcluster.compute import in_order
from rrcluster.local import InProcessCompute


def test_answers_are_taken_in_the_order_of_the_items() -> None:
    assert list(in_order(iter([(2, "c"), (0, "a"), (3, "d"), (1, "b")]))) == ["a", "b", "c", "d"]


def test_an_early_answer_does_not_wait_for_later_ones() -> None:
    taken = []

    def answers():
        for number in (0, 1, 2):
            taken.append(number)
            yield number, number

    assert next(in_order(answers())) == 0
    assert taken == [0]


def fail_at_three(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


def test_a_failure_in_a_map_reaches_the_caller() -> None:
    with InProcessCompute(2) as compute, pytest.raises(ValueError, match="three"):
        list(compute.map(fail_at_three, list(range(10))))
