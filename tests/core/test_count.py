from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from rrcluster.core import count
from rrcluster.core.codes import CentroidCodes, pooled_spread
from rrcluster.core.features import fit_projection
from rrcluster.core.merge import lengths_along, own_lengths, row_lengths
from rrcluster.core.model import CellModel, sum_by_label
from rrcluster.core.shards import MemoryShards

EPS2 = 0.1


def leaves(k: int, e: int, seed: int = 0, rows: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass and moments of k leaves, of which neighbours 2j and 2j+1 come from one direction."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn((k + 1) // 2, e, generator=g)
    y = torch.arange(k).repeat_interleave(rows)
    z = centres[y // 2] + 0.15 * torch.randn(k * rows, e, generator=g)
    return sum_by_label(torch.nn.functional.normalize(z, dim=1), y, k)


def groups(n: int, k: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, d, generator=g)
    y = torch.randint(k, (n,), generator=g)
    x = centres[y] + 0.3 * torch.randn(n, d, generator=g)
    return torch.nn.functional.normalize(x, dim=1).half(), y


def total_length(mass, moments, labels, own: bool = True, eps2: float = EPS2) -> float:
    whole = (pooled_spread(mass, moments), float(mass.sum()), eps2, 100.0)
    grouped, second = count.group_sums(mass, moments, labels)
    rows = row_lengths(grouped, second, *whole).sum()
    return float(rows + (own_lengths(grouped, moments.shape[-1]).sum() if own else 0.0))


def test_twins_merge_before_strangers() -> None:
    mass, moments = leaves(6, 8)
    tree = count.merge_tree(mass, moments, EPS2)
    assert count.cut(tree, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert count.estimate(tree) == 3


def test_first_merge_is_the_best_of_all_pairs() -> None:
    mass, moments = leaves(7, 5, seed=3)
    tree = count.merge_tree(mass, moments, EPS2, neighbours=7)
    best = {}
    for i in range(7):
        for j in range(i + 1, 7):
            labels = torch.arange(7)
            labels[labels == j] = i
            labels = labels.unique(return_inverse=True)[1]
            best[i, j] = total_length(mass, moments, labels, own=False)
    assert tuple(tree.pairs[0].tolist()) == min(best, key=best.__getitem__)


@given(st.integers(0, 1000), st.integers(1, 24))
@settings(max_examples=15, deadline=None)
def test_lengths_are_those_of_the_cuts_and_cuts_are_nested(seed: int, k: int) -> None:
    mass, moments = leaves(k, 5, seed)
    tree = count.merge_tree(mass, moments, EPS2, neighbours=4)
    finer = torch.arange(k)
    for j in range(k, 0, -1):
        labels = count.cut(tree, j)
        first = [labels.tolist().index(c) for c in range(j)]
        assert first == sorted(first), "numbered by the first leaf"
        assert len(torch.stack([finer, labels], 1).unique(dim=0)) == int(finer.max()) + 1
        # 1e-4: power iteration may stop between two directions of a union that are as strong.
        assert float(tree.lengths[j - 1]) == pytest.approx(
            total_length(mass, moments, labels), rel=1e-4, abs=1e-6
        )
        finer = labels


def test_renaming_the_leaves_renames_the_cuts() -> None:
    mass, moments = leaves(12, 6, seed=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    plain = count.cut(count.merge_tree(mass, moments, EPS2), 5)
    moved = count.cut(count.merge_tree(mass[order], moments[order], EPS2), 5)
    assert adjusted_rand_score(plain[order], moved) == 1.0


def test_empty_leaves_merge_first_and_cost_nothing() -> None:
    mass, moments = leaves(6, 8)
    mass = torch.cat([mass, torch.zeros(3).double()])
    moments = torch.cat([moments, torch.zeros(3, 8, 8).double()])
    tree = count.merge_tree(mass, moments, EPS2)
    assert tree.lengths[5:].tolist() == pytest.approx([float(tree.lengths[5])] * 4)
    assert len(count.cut(tree, 6)[:6].unique()) == 6
    assert count.estimate(tree) == 3


def test_length_of_the_rows_agrees_with_numpy_in_float64() -> None:
    mass, moments = leaves(4, 6, seed=2)
    pooled = pooled_spread(mass, moments)
    found = row_lengths(mass, moments, pooled, 120.0, EPS2, 100.0)
    for k in range(4):
        mean = moments[k].numpy() / float(mass[k])
        spectrum, vectors = np.linalg.eigh(mean)
        line = spectrum[-1] * np.outer(vectors[:, -1], vectors[:, -1])
        own = float(mass[k]) / (float(mass[k]) + 100)
        a = np.eye(6) + 6 / EPS2 * mean
        b = np.eye(6) + 6 / EPS2 * (line + own * (mean - line) + (1 - own) * pooled.numpy())
        nats = 0.5 * (np.linalg.slogdet(b)[1] + np.trace(np.linalg.inv(b) @ a) - 6)
        expected = float(mass[k]) * (nats - np.log(float(mass[k]) / 120))
        assert float(found[k]) == pytest.approx(expected, rel=1e-6)


def test_one_leaf_is_a_tree() -> None:
    tree = count.merge_tree(*leaves(1, 4), EPS2)
    assert count.estimate(tree) == 1
    assert count.cut(tree, 1).tolist() == [0]
    with pytest.raises(ValueError, match="1 to 1"):
        count.cut(tree, 2)


def space_of(x: torch.Tensor, k: int, shards: MemoryShards) -> count.MergeSpace:
    model = CellModel(fit_projection(shards, 6), CentroidCodes.of(x[:k]))
    return count.MergeSpace.of(
        shards, torch.zeros(1, x.shape[1]), (model,), count.CountSpec(width=6), seed=0
    )


def test_range_is_the_same_on_one_worker_and_on_two_and_holds_the_estimate() -> None:
    x, _ = groups(1200, 4, 12)
    blocks = list(x.split(250))
    spec = count.CountSpec(width=6, replicates=4)
    found = []
    for workers in (1, 2):
        shards = MemoryShards(blocks, workers)
        space = space_of(x, 16, shards)
        rows = count.LeafRows.of(shards, space, spec.replicates)
        whole = rows.moments()
        tree = count.merge_tree(whole.mass, whole.moments, spec.eps2, workers=workers)
        counts = count.bootstrap_counts(tree, rows, spec, workers)
        assert len(counts) == spec.replicates
        found.append((count.estimate(tree), *count.bootstrap_range(tree, counts)))
    assert found[0] == found[1]
    assert found[0][1] <= found[0][0] <= found[0][2]


def test_lengths_along_a_tree_are_those_that_it_was_built_with() -> None:
    mass, moments = leaves(12, 6, seed=3)
    tree = count.merge_tree(mass, moments, EPS2, shrinkage=100.0)
    times = torch.tensor([1.0, 2.0]).double()
    again, doubled = lengths_along(
        tree,
        lambda i: (times * mass[i], times[:, None, None] * moments[i]),
        pooled_spread(mass, moments).expand(2, -1, -1),
        times * mass.sum(),
        EPS2,
        100.0,
    )
    torch.testing.assert_close(again, tree.lengths, rtol=1e-9, atol=1e-6)
    assert (doubled > again).all()


def test_what_a_block_answers_grows_with_its_rows_and_not_with_the_leaves() -> None:
    x, _ = groups(1200, 4, 12)
    shards = MemoryShards(list(x.split(300)))
    sizes = []
    for k in (16, 256):
        leaf, z, hashes = count.Described(space_of(x, k, shards), True)(x[:300])
        sizes.append(leaf.nbytes + z.nbytes + hashes.nbytes)
    assert sizes == [300 * (8 + 4 * 6 + 8)] * 2


def test_moments_of_replicates_are_those_of_rows_taken_as_often_as_they_weigh() -> None:
    x, _ = groups(400, 4, 12)
    shards = MemoryShards(list(x.split(150)))
    space = space_of(x, 8, shards)
    rows_of = count.LeafRows.of(shards, space, 1)
    whole = rows_of.moments()
    again = [rows_of.resampled(j, slice(0, 1)) for j in range(8)]
    replicate = count.LeafMoments(*(torch.cat(parts) for parts in zip(*again, strict=True)))
    weight = count.poisson_weights(count.content_hashes(x), 0, 1).long()
    for found, rows in ((whole, x), (replicate, x.repeat_interleave(weight, 0))):
        leaf, z, _ = count.Described(space, False)(rows)
        assert torch.equal(found.mass, torch.bincount(leaf, minlength=8).double())
        for j in range(8):
            expected = z[leaf == j].double().T @ z[leaf == j].double()
            assert torch.allclose(found.moments[j], expected, atol=1e-4)


def test_leaves_of_two_cells_are_counted_in_one_space() -> None:
    x, y = groups(600, 4, 12)
    shards = MemoryShards([x])
    halves = torch.stack([x[y < 2].float().mean(0), x[y >= 2].float().mean(0)])
    models = tuple(
        CellModel(fit_projection(MemoryShards([part]), 5), CentroidCodes.of(part[:6]))
        for part in (x[y < 2], x[y >= 2])
    )
    space = count.MergeSpace.of(shards, halves, models, count.CountSpec(width=6), 0)
    found = count.LeafRows.of(shards, space).moments()
    assert space.features.width == 6
    assert len(found.mass) == 12
    assert float(found.mass.sum()) == 600


def test_bootstrap_weights_are_poisson_and_depend_on_the_row_alone() -> None:
    x, _ = groups(20_000, 3, 8)
    hashes = count.content_hashes(x)
    weight = count.poisson_weights(hashes, 0, 1)
    assert float(weight.float().mean()) == pytest.approx(1, abs=0.03)
    assert float(weight.float().var()) == pytest.approx(1, abs=0.06)
    part = count.poisson_weights(count.content_hashes(x[100:200]), 0, 1)
    assert torch.equal(part, weight[100:200])
    assert not torch.equal(count.poisson_weights(hashes, 0, 2), weight)


def test_rates_of_groups_agree_with_their_rows() -> None:
    z = torch.nn.functional.normalize(
        torch.randn(90, 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    y = torch.arange(90) % 3
    found = count.LeafMoments(*sum_by_label(z, y, 3))
    rates = count.group_rates(found, torch.tensor([0, 1, 0]), EPS2)
    both = z[y != 1].double().numpy()
    reference = 0.5 * np.linalg.slogdet(np.eye(4) + 4 / (60 * EPS2) * both.T @ both)[1]
    assert float(rates[0]) == pytest.approx(reference, rel=1e-5)
    assert count.enough_data(found, 3)
    assert not count.enough_data(found, 30)
