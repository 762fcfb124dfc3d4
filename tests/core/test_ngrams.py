"""Phrases of the clusters' own captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from rrcluster.core.ngrams import cluster_ngrams, ngrams, tokens


def _names(captions: list[list[str]], top: int = 3, longest: int = 3) -> list[list[str]]:
    return [[text for text, _ in row] for row in cluster_ngrams(captions, top, longest)]


def test_the_score_is_class_based_tf_idf_by_hand() -> None:
    """ "cat" is in 2 of 2 captions here and in 2 everywhere; 2 captions per cluster."""
    answer = cluster_ngrams([["cat", "cat"], ["dog", "dog"]], top=1)
    assert answer[0] == [("cat", pytest.approx(1.0 * np.log(1 + 2 / 2)))]


def test_words_that_are_everywhere_are_learned_as_stop_words() -> None:
    things = ["cat", "dog", "boat", "tree", "cup"]
    captions = [[f"the {thing} is on the {place}" for place in "abcd" * 3] for thing in things]
    assert [row[0] for row in _names(captions)] == things
    assert not any("the" in name.split()[:1] for row in _names(captions) for name in row)


def test_a_phrase_is_preferred_to_its_parts() -> None:
    captions = [
        ["a bowl of soup", "hot bowl of soup", "the bowl of soup is hot"] * 4,
        ["a dog runs", "the dog of a man", "dog is fast"] * 4,
        ["a car", "the car of a man", "a car is fast"] * 4,
        ["a house", "the house of a man", "a house is old"] * 4,
    ]
    assert _names(captions)[0][0] == "bowl of soup"


def test_one_caption_repeating_itself_counts_once() -> None:
    captions = [["spam spam spam spam spam", "cat", "cat"], ["dog", "dog", "dog"]]
    assert _names(captions)[0] == ["cat"]


def test_words_of_any_script_are_whole() -> None:
    assert tokens("Don't stop: Straße") == [["don't", "stop"], ["strasse"]]
    assert tokens("हिन्दी शब्द") == [["हिन्दी", "शब्द"]]
    assert tokens("see https://a.b/c.jpg now") == [["see", "now"]]
    assert list(ngrams("黒い猫 cat", 2)) == ["黒", "黒い", "い", "い猫", "猫", "cat"]


def test_unspaced_scripts_give_phrases_of_two_characters_and_more() -> None:
    captions = [["黒猫が寝る", "黒猫と犬"] * 3, ["赤い電車", "電車が走る"] * 3]
    names = _names(captions, top=5)
    assert "黒猫" in names[0]
    assert any("電車" in name for name in names[1])
    assert all(len(name) > 1 for row in names for name in row)


def test_phrases_do_not_cross_a_pause() -> None:
    assert "dog a" not in list(ngrams("A dog. A man", 3))


def test_empty_clusters_and_captions_are_normal() -> None:
    assert cluster_ngrams([], 3) == []
    assert cluster_ngrams([[], ["", "  !!"], ["cat"]], 3)[:2] == [[], []]


def test_the_order_of_captions_does_not_matter() -> None:
    captions = [["red car", "fast car", "red bus"], ["blue sea", "sea side", "blue sky"]]
    assert cluster_ngrams([row[::-1] for row in captions], 5) == cluster_ngrams(captions, 5)


def test_real_captions_name_real_clusters(test_data: Path) -> None:
    arrays = np.load(test_data / "vectors" / "image_flickr8k_1000_captioned.npz")
    found = KMeans(12, n_init=2, random_state=0).fit_predict(arrays["x"].astype(np.float32))
    captions = [[str(text) for text in arrays["caption"][found == j]] for j in range(12)]
    names = _names(captions, top=5)
    first = {row[0] for row in names}
    assert first.isdisjoint({"a", "the", "in", "on", "is", "of", "and", "with"})
    told = {word for row in names for word in row}
    assert {"dog", "skateboard", "mountain"} <= told
