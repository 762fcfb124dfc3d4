"""Captions: by hand, by property, and on real CLIP vectors with labels that only score."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

from rrcluster.core.caption import SHRINK, SIBLINGS, Origin, origins, pick, vote


def _flat(k: int) -> Tensor:
    return torch.zeros(k, dtype=torch.long)


def _scene(seed: int, k: int = 4, per: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Clusters around k directions, texts on the same directions, each side with its own offset."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.eye(16)[:k]
    noise = 0.1 * torch.randn(k * per, 16, generator=g)
    images = directions.repeat_interleave(per, 0) + noise + 3.0 * torch.eye(16)[14]
    texts = torch.eye(16)[:12] + 3.0 * torch.eye(16)[15]
    cluster_of = torch.arange(k).repeat_interleave(per)
    return normalize(images, dim=-1), cluster_of, normalize(texts, dim=-1)


def _nowhere(k: int, d: int) -> Origin:
    return Origin(torch.zeros(d), torch.zeros(k, d))


def _means(images: Tensor, cluster_of: Tensor, k: int) -> Tensor:
    return torch.stack([images[cluster_of == j].mean(0) for j in range(k)])


def test_votes_are_half_reciprocal_ranks_and_half_fitting_texts_by_hand() -> None:
    """Two images, three texts, of which 2 % round up to one: shares of 1, 1/4 and 1/6."""
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    images = normalize(torch.tensor([[1.0, 0.2], [-1.0, 0.2]]), dim=-1)
    together = vote(images, torch.tensor([0, 0]), _nowhere(1, 2), texts)
    assert torch.allclose(together, torch.tensor([[(1 + 1 / 6) / 2, 1 / 4, (1 + 1 / 6) / 2]]))
    apart = vote(images, torch.tensor([0, 1]), _nowhere(2, 2), texts)
    assert torch.allclose(apart, torch.tensor([[1, 1 / 4, 1 / 6], [1 / 6, 1 / 4, 1]]))


def test_a_mixed_cluster_gets_the_general_word_and_its_parts_the_specific_ones() -> None:
    """100 texts, so that two fit an image: kind A or B first, "animal" second, for every image."""
    g = torch.Generator().manual_seed(0)
    a, b, animal = torch.eye(64)[:3]
    others = normalize(torch.randn(97, 64, generator=g), dim=-1)
    texts = torch.cat([torch.stack([a, b, animal]), others])
    images = normalize(torch.stack([a + 0.9 * animal, b + 0.9 * animal] * 10), dim=-1)
    coarse = vote(images, torch.zeros(20, dtype=torch.long), _nowhere(1, 64), texts)
    assert coarse[0].argmax() == 2
    fine = vote(images, torch.arange(20) % 2, _nowhere(2, 64), texts)
    assert fine.argmax(1).tolist() == [0, 1]


def test_the_origin_is_the_corpus_and_half_of_what_the_family_adds_by_hand() -> None:
    clusters = torch.tensor([[0.0], [2.0], [10.0]])
    found = origins(clusters, torch.tensor([0, 0, 1]))
    assert torch.allclose(found.corpus, torch.tensor([SHRINK * 4.0]))
    adds = torch.tensor([[1.0 - 4.0], [1.0 - 4.0], [10.0 - 4.0]])
    assert torch.allclose(found.family, SHRINK * SIBLINGS * adds)
    weighted = origins(clusters, _flat(3), torch.tensor([1.0, 1.0, 0.0]))
    assert torch.allclose(weighted.corpus, torch.tensor([SHRINK * 1.0]))
    assert torch.allclose(weighted.family, torch.zeros(3, 1))


def test_both_sides_offsets_do_not_hide_the_names() -> None:
    images, cluster_of, texts = _scene(0)
    votes = vote(images, cluster_of, origins(_means(images, cluster_of, 4), _flat(4)), texts)
    assert torch.equal(votes.argmax(1), torch.arange(4))
    assert votes.max() <= 1.0
    assert votes.min() >= 0.0


def test_a_single_cluster_still_gets_its_name() -> None:
    images, cluster_of, texts = _scene(1, k=1)
    votes = vote(images, cluster_of, origins(_means(images, cluster_of, 1), _flat(1)), texts)
    assert votes.argmax() == 0


def test_what_the_whole_corpus_is_about_is_still_a_name() -> None:
    """Every image is a pet of one of four kinds: without a limit the corpus's mean hides "pet"."""
    g = torch.Generator().manual_seed(3)
    pet, *kinds = torch.eye(64)[:5]
    others = normalize(torch.randn(120, 64, generator=g), dim=-1)
    texts = normalize(torch.cat([pet[None], others]), dim=-1)
    images = torch.stack([pet + 0.3 * kinds[i % 4] for i in range(40)])
    images = normalize(images + 0.02 * torch.randn(40, 64, generator=g), dim=-1)
    cluster_of = torch.arange(40) % 4
    votes = vote(images, cluster_of, origins(_means(images, cluster_of, 4), _flat(4)), texts)
    assert votes.argmax(1).tolist() == [0, 0, 0, 0]


def test_siblings_are_named_by_what_distinguishes_them() -> None:
    """Two kinds of dog beside a far cluster: "dog" fits both, but does not tell them apart."""
    dog, small, big, car = torch.eye(4)
    clusters = normalize(torch.stack([dog + 0.8 * small, dog + 0.8 * big, car]), dim=-1)
    texts = normalize(torch.stack([dog, dog + 2 * small, dog + 2 * big, car, -car]), dim=-1)
    rows, cluster_of = clusters.repeat_interleave(5, 0), torch.arange(3).repeat_interleave(5)
    votes = vote(rows, cluster_of, origins(clusters, torch.tensor([0, 0, 1])), texts)
    assert votes.argmax(1).tolist() == [1, 2, 3]


def test_phrases_are_candidates_of_their_own_cluster_alone() -> None:
    images, cluster_of, texts = _scene(2)
    origin = origins(_means(images, cluster_of, 4), _flat(4))
    phrases = torch.stack([texts[0], texts[1]])
    own = torch.tensor([[0, -1], [-1, -1], [0, 1], [-1, -1]])
    votes = vote(images, cluster_of, origin, texts[2:], own, phrases)
    assert votes.shape == (4, 10 + 2)
    assert votes[0].argmax() == 10  # cluster 0 has its text as a phrase
    assert votes[1, 10:].max() == 0  # cluster 1 has none, although phrase 1 is its text
    assert votes[2].argmax() == 0
    assert votes[3].argmax() == 1
    names = pick(
        votes, [f"t{j}" for j in range(2, 12)], 3, 0.3, [["zero"], [], ["zero", "one"], []]
    )
    assert names[0][0][0] == "zero"
    assert names[2][0][0] == "t2"
    nothing = vote(images, cluster_of, origin, texts[:0], torch.full((4, 1), -1), phrases)
    assert nothing.max() == 0
    assert pick(nothing, [], 3, 0.0, [["x"]] * 4) == [[], [], [], []]


@given(seed=st.integers(0, 1000), cut=st.integers(1, 79))
@settings(max_examples=20, deadline=None)
def test_votes_add_over_parts_and_follow_permutations(seed: int, cut: int) -> None:
    images, cluster_of, texts = _scene(seed)
    origin = origins(_means(images, cluster_of, 4), _flat(4))
    whole = vote(images, cluster_of, origin, texts)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(vote(images[order], cluster_of[order], origin, texts), whole, atol=1e-5)
    sizes = torch.bincount(cluster_of, minlength=4)
    total = torch.zeros_like(whole)
    for part in (slice(0, cut), slice(cut, None)):
        size = torch.bincount(cluster_of[part], minlength=4)
        total += vote(images[part], cluster_of[part], origin, texts) * size[:, None]
    assert torch.allclose(total / sizes[:, None], whole, atol=1e-5)
    swap = torch.tensor([2, 0, 3, 1])
    swapped = Origin(origin.corpus, origin.family[swap])
    renamed = vote(images, torch.argsort(swap)[cluster_of], swapped, texts)
    assert torch.allclose(renamed, whole[swap], atol=1e-5)


def test_no_images_no_texts_no_clusters_are_normal() -> None:
    none, ids = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert vote(none, ids, _nowhere(2, 3), torch.eye(3)).max() == 0
    assert vote(none, ids, _nowhere(2, 3), none).shape == (2, 0)
    assert origins(none, ids).family.shape == (0, 3)
    assert pick(torch.zeros(2, 0), [], 3) == [[], []]


def test_near_duplicates_of_a_better_name_are_left_out() -> None:
    texts = ["dogs", "dog", "brown dog", "Dog (animal)", "butterflies", "butterfly", "glass", "gas"]
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.3]])
    names = [text for text, _ in pick(scores, texts, 5)[0]]
    assert names == ["dogs", "butterflies", "glass", "gas"]


def test_an_uncertain_cluster_says_so_instead_of_naming_wrongly() -> None:
    scores = torch.tensor([[0.34, 0.2], [0.6, 0.1]])
    assert pick(scores, ["a cat", "the sea"], 2, min_score=0.35) == [
        [],
        [("a cat", pytest.approx(0.6)), ("the sea", pytest.approx(0.1))],
    ]


def test_tail_names_far_below_the_first_are_left_out() -> None:
    assert len(pick(torch.tensor([[0.9, 0.5, 0.05]]), ["cat", "dog", "sea"], 3)[0]) == 2


@pytest.fixture(scope="module")
def caltech(test_data: Path) -> dict[str, Any]:
    """Real vectors: k-means clusters at the true k, LVIS names, and which names are right."""
    arrays = np.load(test_data / "vectors" / "image_caltech101.npz")
    x = _unit(arrays["x"])
    names = np.load(test_data / "vectors" / "text_lvis.npz")
    found = KMeans(100, n_init=1, random_state=0).fit_predict(x)
    labels = arrays["y"].astype(int)
    right: dict[int, set[int]] = {}
    for j in range(100):
        counts = np.bincount(labels[found == j], minlength=100)
        if counts.max() > 0.5 * counts.sum():
            wanted = _plain(str(arrays["class_name"][counts.argmax()]))
            same = {i for i, name in enumerate(names["name"]) if _plain(str(name)) == wanted}
            if same:
                right[j] = same
    return {
        "x": torch.from_numpy(x),
        "found": torch.from_numpy(found.astype(np.int64)),
        "texts": torch.from_numpy(_unit(names["x"])),
        "names": [str(name) for name in names["name"]],
        "right": right,
    }


def test_real_clusters_get_their_real_names_more_often_than_by_plain_cosine(
    caltech: dict[str, Any],
) -> None:
    x, found, texts, right = (caltech[key] for key in ("x", "found", "texts", "right"))
    means = _means(x, found, 100)
    votes = vote(x, found, origins(means, _flat(100)), texts)
    plain = normalize(means, dim=-1) @ texts.T
    hits = np.mean([int(votes[j].argmax()) in right[j] for j in right])
    plain_hits = np.mean([int(plain[j].argmax()) in right[j] for j in right])
    assert len(right) > 15
    assert hits > 0.8  # measured .89 of 27, plain cosine .81
    assert hits >= plain_hits


def test_shuffled_real_clusters_are_left_unnamed(caltech: dict[str, Any]) -> None:
    x, found, texts, right = (caltech[key] for key in ("x", "found", "texts", "right"))
    shuffled = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]
    for cluster_of, least, most in ((found, 0.9, 1.0), (shuffled, 0.0, 0.05)):
        means = _means(x, cluster_of, 100)
        votes = vote(x, cluster_of, origins(means, _flat(100)), texts)
        named = pick(votes, caltech["names"], 5, min_score=0.3)
        share = np.mean([bool(named[j]) for j in right])
        assert least <= share <= most


def test_a_corpus_that_no_constant_was_set_on_gets_its_names_too(test_data: Path) -> None:
    """CIFAR-10, whose small pictures are far from CLIP's photographs: plain cosine names 1 of 8."""
    arrays = np.load(test_data / "vectors" / "cifar10_test_first500.npz")
    names = np.load(test_data / "vectors" / "text_lvis.npz")
    x = _unit(arrays["x"])
    found = KMeans(10, n_init=1, random_state=0).fit_predict(x).astype(np.int64)
    rows, cluster_of = torch.from_numpy(x), torch.from_numpy(found)
    means = _means(rows, cluster_of, 10)
    texts = torch.from_numpy(_unit(names["x"]))
    best = vote(rows, cluster_of, origins(means, _flat(10)), texts).argmax(1)
    right = {
        "airplane": ("plane",),
        "automobile": ("car(", "car ("),
        "ship": ("ship", "boat"),
        "truck": ("truck",),
        "horse": ("horse",),
    }
    hits = []
    for j in range(10):
        counts = np.bincount(arrays["y"][found == j], minlength=10)
        words = right.get(str(arrays["class_name"][counts.argmax()]))
        if words and counts.max() > 0.5 * counts.sum():
            hits.append(any(word in str(names["name"][int(best[j])]) for word in words))
    assert len(hits) >= 5
    assert np.mean(hits) > 0.7


def _unit(x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    rows = x.astype(np.float32)
    unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _plain(name: str) -> str:
    return re.sub(r"\(.*?\)|[^a-z]", "", name.casefold().replace("_", " "))
