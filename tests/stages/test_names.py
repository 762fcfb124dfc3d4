"""Which caption a row gets."""

from __future__ import annotations

from rrcluster.stages.names import Named, Names


def _named(*captions: tuple[str, float]) -> Named:
    return Named(list(captions), [], 0.5)


def test_a_nameless_cluster_takes_its_groups_word_only_when_that_speaks_for_nearly_all() -> None:
    groups = [_named(("animal", 0.9)), _named(("house", 0.3), ("heart", 0.3)), _named()]
    leaves = [_named(("cat", 0.4)), _named(), _named(), _named()]
    names = Names([groups, leaves], [[0, 0], [0, 1], [1, 2], [2, 3]])
    assert names.label_of_finest() == ["cat", "animal", "", ""]
