from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from rrcluster.core import keys
from rrcluster.core.cells import nearest
from rrcluster.core.kmeans import (
    LeafSums,
    SeedingSpec,
    Seeds,
    apportion,
    hierarchical,
    lloyd,
    nearest_in_cell,
    plus_plus,
)
from rrcluster.core.shards import MemoryShards


def blobs(n: int, k: int, d: int = 16, noise: float = 0.1, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(k, d, generator=g), dim=1)
    labels = torch.randint(k, (n,), generator=g)
    x = centres[labels] + noise * torch.randn(n, d, generator=g)
    return torch.nn.functional.normalize(x, dim=1).half(), labels


def flat(centroids: torch.Tensor) -> Seeds:
    return Seeds(torch.zeros(1, centroids.shape[1]), centroids, torch.zeros(len(centroids)).long())


def test_four_points_on_a_line_give_the_two_means_done_by_hand() -> None:
    x = torch.tensor([[0.0], [0.5], [4.0], [5.0]]).half()
    seeds, counts = lloyd(
        MemoryShards([x]), flat(torch.tensor([[0.0], [0.5]])), SeedingSpec(tolerance=0.0), 0
    )
    assert seeds.leaves.sort(0).values.flatten().tolist() == [0.25, 4.5]
    assert counts.tolist() == [2, 2]


def test_lloyd_reaches_the_inertia_of_scikit_learn_from_the_same_start() -> None:
    x, _ = blobs(800, 7)
    start = plus_plus(x, 7, keys.generator(3))
    spec = SeedingSpec(iterations=100, tolerance=0.0)
    seeds, _ = lloyd(MemoryShards([x]), flat(start), spec, 0)
    reference = KMeans(7, init=start.numpy(), n_init=1, tol=0.0).fit(x.float().numpy())
    assert nearest(x, seeds.leaves)[1].sum().item() <= reference.inertia_ * 1.0001


def test_separate_groups_are_found() -> None:
    x, y = blobs(1000, 12, noise=0.05)
    seeds = hierarchical(MemoryShards([x]), 12, SeedingSpec(), 0)
    assert adjusted_rand_score(y, nearest(x, seeds.leaves)[0]) > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 100))
def test_inertia_never_rises(k: int, n: int, seed: int) -> None:
    x, _ = blobs(n, 4, noise=0.5, seed=seed)
    found: list[float] = []
    hierarchical(
        MemoryShards([x]), min(k, n), SeedingSpec(tolerance=0.0, iterations=8), seed,
        lambda level, i, inertia: found.append(inertia),
    )  # fmt: skip
    assert all(b <= a + 1e-5 for a, b in pairwise(found))


def test_block_sums_add_up_to_the_sums_of_the_whole() -> None:
    x, _ = blobs(500, 5)
    statistic = LeafSums(flat(plus_plus(x, 5, keys.generator(0))))
    whole = MemoryShards([x]).reduce(statistic)
    parts = MemoryShards(list(x.split(77)), workers=2).reduce(statistic)
    assert torch.equal(whole["count"], parts["count"])
    torch.testing.assert_close(whole["sum"], parts["sum"], atol=1e-4, rtol=1e-5)


def test_one_and_two_workers_give_the_same_bits() -> None:
    x, _ = blobs(900, 9)
    blocks = list(x.split(100))
    one = hierarchical(MemoryShards(blocks, 1), 9, SeedingSpec(), 5)
    two = hierarchical(MemoryShards(blocks, 2), 9, SeedingSpec(), 5)
    assert torch.equal(one.leaves, two.leaves)


def test_cells_split_on_their_own_and_rows_stay_in_their_cell() -> None:
    x, _ = blobs(2000, 20)
    seeds = hierarchical(MemoryShards([x]), 24, SeedingSpec(cell_leaves=6), 0)
    assert len(seeds.cells) == 4
    leaf, _ = nearest_in_cell(x, seeds)
    cell, _ = nearest(x, seeds.cells)
    assert torch.equal(seeds.cell_of_leaf[leaf], cell)
    assert torch.equal(seeds.cell_of_leaf, seeds.cell_of_leaf.sort().values)


def test_a_row_gets_the_same_leaf_whatever_rows_are_beside_it() -> None:
    x, _ = blobs(300, 5)
    centroids = plus_plus(x, 20, keys.generator(1))
    labels, squared = nearest(x, centroids)
    alone = nearest(x[37:41], centroids)
    assert torch.equal(labels[37:41], alone[0])
    assert torch.equal(squared[37:41], alone[1])


def test_equal_rows_give_fewer_leaves_and_no_empty_one() -> None:
    x = torch.nn.functional.normalize(torch.eye(3)[torch.arange(60) % 3], dim=1).half()
    seeds = hierarchical(MemoryShards([x]), 10, SeedingSpec(), 0)
    labels, squared = nearest(x, seeds.leaves)
    assert len(labels.unique()) == len(seeds.leaves) == 3
    assert squared.max() < 1e-6


def test_a_centroid_that_empties_is_seeded_again() -> None:
    x, _ = blobs(400, 4, noise=0.05)
    far = torch.cat([plus_plus(x, 3, keys.generator(0)), torch.full((1, 16), 50.0)])
    _, counts = lloyd(MemoryShards([x]), flat(far), SeedingSpec(), 0)
    assert (counts > 0).all()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 60))
def test_shares_sum_to_the_total_and_never_exceed_a_cell(sizes: list[int], total: int) -> None:
    if sum(sizes) == 0:
        return
    share = apportion(torch.tensor(sizes), total)
    held = sum(s > 0 for s in sizes)
    assert int(share.sum()) == max(min(total, sum(sizes)), held)
    assert all(0 < n <= s if s else n == 0 for n, s in zip(share.tolist(), sizes, strict=True))
