"""Words that cover others, by hand and by property."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrcluster.core.kinds import LEAST, WORDS, Kinds, cover
from rrcluster.models.vocabulary import load_kinds

FARM = Kinds.of(
    {
        "beagle": ("dog", "animal"),
        "poodle": ("dog", "animal"),
        "tabby": ("cat", "animal"),
        "dog": ("animal",),
        "cat": ("animal",),
        "horse": ("animal",),
        "car": ("vehicle",),
        "bus": ("vehicle",),
        "pizza": ("food",),
    }
)


def test_a_group_is_named_by_the_nearest_word_over_all_of_it() -> None:
    assert cover([("beagle", 3), ("poodle", 2)], FARM, 3) == [("dog", 1.0)]
    assert cover([("beagle", 3), ("tabby", 2), ("horse", 2)], FARM, 1) == [("animal", 1.0)]
    assert cover([("beagle", 1)], FARM, 3) == [("beagle", 1.0)]


def test_further_words_add_what_the_first_leaves() -> None:
    found = cover([("beagle", 3), ("poodle", 3), ("bus", 2), ("pizza", 2)], FARM, 5)
    assert found == [("dog", 0.6), ("pizza", 0.2), ("bus", 0.2)]
    mixed = cover([("beagle", 2), ("bus", 2), ("pizza", 1)], FARM, 3)
    assert mixed == [("bus", 0.4), ("beagle", 0.4), ("pizza", 0.2)]


def test_a_group_of_which_three_words_do_not_cover_half_has_none() -> None:
    assert cover([(None, 6), ("bus", 4)], FARM, 3) == []
    assert cover([(f"thing {i}", 1) for i in range(7)], FARM, 5) == []
    assert cover([], FARM, 3) == []
    assert cover([("bus", 0)], FARM, 3) == []


def test_names_are_looked_up_as_people_write_them() -> None:
    assert FARM.look_up("Beagles") == "beagle"
    assert FARM.look_up("Poodle (toy)") == "poodle"
    assert FARM.look_up("city bus") == "bus"
    assert FARM.look_up("roter Fuchs") == "roter fuchs"
    assert cover([("City Bus", 1), ("City Bus", 1)], FARM, 2) == [("City Bus", 1.0)]
    assert cover([("city bus", 1), ("school bus", 1)], FARM, 1) == [("bus", 1.0)]
    assert cover([("roter Fuchs", 2), ("bus", 1)], FARM, 1) == [
        ("roter Fuchs", pytest.approx(2 / 3))
    ]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, *FARM.above]), st.integers(0, 9)), min_size=1, max_size=8
    )
)
def test_shares_add_up_to_what_is_covered_and_order_does_not_matter(names: list) -> None:
    found = cover(names, FARM, 5)
    assert found == cover(names[::-1], FARM, 5)
    assert sum(share for _, share in found) <= 1 + 1e-9
    assert not found or sum(share for _, share in found[:WORDS]) >= LEAST - 1e-9


def test_the_shipped_table_knows_common_things_and_their_kinds() -> None:
    kinds = Kinds.of(load_kinds())
    for noun, kind in (
        ("beagle", "dog"), ("dog", "animal"), ("pizza", "food"), ("violin", "musical instrument"),
        ("bus", "transport"), ("motorbike", "vehicle"),
    ):  # fmt: skip
        assert kind in kinds.above[noun], noun
    assert kinds.specificity("beagle") > kinds.specificity("dog") > kinds.specificity("animal")
    assert cover([("Beagle", 2), ("tabby", 1), ("horse", 1)], kinds, 1)[0][0] in (
        "mammal",
        "animal",
    )
