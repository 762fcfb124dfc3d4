from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from rrcluster.core.anneal import Space, starting_rows
from rrcluster.core.cells import nearest
from rrcluster.core.hierarchy import apportion, largest_first, nearest_in_cell, top_down
from rrcluster.core.kmeans import Clusters, ClusterSums, SeedingSpec, State, lloyd
from rrcluster.core.shards import MemoryShards, Rows


def blobs(n: int, k: int, d: int = 16, noise: float = 0.1, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(k, d, generator=g), dim=1)
    labels = torch.randint(k, (n,), generator=g)
    x = centres[labels] + noise * torch.randn(n, d, generator=g)
    return torch.nn.functional.normalize(x, dim=1).half(), labels


def settle(x: torch.Tensor, start: torch.Tensor, **settings) -> Clusters:
    spec = SeedingSpec(**{"tolerance": 0.0, "moved_share": 0.0, "iterations": 100} | settings)
    return lloyd(MemoryShards([x]), State(0, 1, start), spec, 0)


def drawn(x: torch.Tensor, k: int, seed: int = 0) -> torch.Tensor:
    return starting_rows(Rows([x]), k, k, len(x), seed)


def test_four_points_on_a_line_give_the_two_means_done_by_hand() -> None:
    x = torch.tensor([[0.0], [0.5], [4.0], [5.0]]).half()
    found = settle(x, torch.tensor([[0.0], [0.5]]))
    assert found.centroids.sort(0).values.flatten().tolist() == [0.25, 4.5]
    assert found.count.tolist() == [2, 2]
    assert found.inertia.sort().values.tolist() == [0.125, 0.5]


def test_lloyd_reaches_the_inertia_of_scikit_learn_from_the_same_start() -> None:
    x, _ = blobs(800, 7)
    start = drawn(x, 7, 3)
    reference = KMeans(7, init=start.numpy(), n_init=1, tol=0.0).fit(x.float().numpy())
    found = settle(x, start)
    assert nearest(x, found.centroids)[1].sum().item() <= reference.inertia_ * 1.0001


def test_separate_groups_are_found() -> None:
    x, y = blobs(1000, 12, noise=0.05)
    seeds = top_down(MemoryShards([x]), 12, SeedingSpec(), 0)
    assert adjusted_rand_score(y, nearest(x, seeds.leaves)[0]) > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 100))
def test_inertia_never_rises(k: int, n: int, seed: int) -> None:
    x, _ = blobs(n, 4, noise=0.5, seed=seed)
    found: list[float] = []
    top_down(
        MemoryShards([x]),
        min(k, n),
        SeedingSpec(tolerance=0.0, moved_share=0.0, iterations=8),
        seed,
        lambda state, inertia: found.append(inertia),
    )
    assert all(b <= a + 1e-5 for a, b in pairwise(found))


def test_block_sums_add_up_to_the_same_bits_in_any_order_and_any_cut() -> None:
    x, _ = blobs(500, 5)
    statistic = ClusterSums(Space.of(Rows([x])), drawn(x, 5))
    whole = MemoryShards([x]).total(statistic)
    for parts in (x.split(77), x.flip(0).split(13)):
        found = MemoryShards(list(parts), workers=2).total(statistic)
        for name, value in whole.items():
            assert torch.equal(found[name], value), name


def test_one_and_two_workers_give_the_same_bits() -> None:
    x, _ = blobs(900, 9)
    blocks = list(x.split(100))
    one = top_down(MemoryShards(blocks, 1), 9, SeedingSpec(), 5)
    two = top_down(MemoryShards(blocks, 2), 9, SeedingSpec(), 5)
    assert torch.equal(one.leaves, two.leaves)


def test_cells_split_on_their_own_and_rows_stay_in_their_cell() -> None:
    x, _ = blobs(2000, 20)
    seeds = top_down(MemoryShards([x]), 24, SeedingSpec(cell_leaves=6), 0)
    assert len(seeds.cells) == 4
    leaf, _ = nearest_in_cell(x, seeds)
    cell, _ = nearest(x, seeds.cells)
    assert torch.equal(seeds.cell_of_leaf[leaf], cell)
    assert torch.equal(seeds.cell_of_leaf, seeds.cell_of_leaf.sort().values)


def test_a_row_gets_the_same_leaf_whatever_rows_are_beside_it() -> None:
    x, _ = blobs(300, 5)
    centroids = drawn(x, 20)
    labels, squared = nearest(x, centroids)
    alone = nearest(x[37:41], centroids)
    assert torch.equal(labels[37:41], alone[0])
    assert torch.equal(squared[37:41], alone[1])


def test_equal_rows_give_fewer_leaves_and_no_empty_one() -> None:
    x = torch.nn.functional.normalize(torch.eye(3)[torch.arange(60) % 3], dim=1).half()
    seeds = top_down(MemoryShards([x]), 10, SeedingSpec(), 0)
    labels, squared = nearest(x, seeds.leaves)
    assert len(labels.unique()) == len(seeds.leaves) == 3
    assert squared.max() < 1e-6


def test_a_centroid_that_empties_is_seeded_again() -> None:
    x, _ = blobs(400, 4, noise=0.05)
    far = torch.cat([drawn(x, 3), torch.full((1, 16), 50.0)])
    assert (settle(x, far).count > 0).all()


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 99)), min_size=1, max_size=12),
    st.integers(1, 60),
)
def test_shares_sum_to_the_total_and_never_exceed_a_cell(
    cells: list[tuple[int, int]], total: int
) -> None:
    sizes, weights = zip(*cells, strict=True)
    if sum(sizes) == 0:
        return
    weights = [w if n else 0 for n, w in cells]  # no rows, no inertia
    share = apportion(torch.tensor(weights), total, torch.tensor(sizes))
    held = sum(s > 0 for s in sizes)
    assert int(share.sum()) == max(min(total, sum(sizes)), held)
    assert all(0 < n <= s if s else n == 0 for n, s in zip(share.tolist(), sizes, strict=True))


def test_large_cells_come_first_and_equal_ones_in_their_order() -> None:
    assert largest_first(torch.tensor([3, 9, 0, 9, 4])) == [1, 3, 4, 0, 2]


def test_shares_follow_the_weights_where_cells_are_large_enough() -> None:
    sizes = torch.tensor([1000, 1000, 2])
    assert apportion(torch.tensor([30, 10, 60]), 42, sizes).tolist() == [30, 10, 2]


def test_wide_cells_get_more_leaves_than_narrow_ones_of_as_many_rows() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 16, generator=g) * torch.tensor([0.1, 1.0]).repeat(2000)[:, None]
    x[:, 0] += torch.tensor([9.0, -9.0]).repeat(2000)
    spec = SeedingSpec(cell_leaves=20, anneal_from=1 << 30)
    seeds = top_down(MemoryShards([x.half()]), 40, spec, 0)
    narrow, wide = sorted(torch.bincount(seeds.cell_of_leaf).tolist())
    assert narrow <= 2
    assert narrow + wide == 40
