from __future__ import annotations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from rrcluster.core.cells import nearest
from rrcluster.core.features import fit_projection
from rrcluster.core.hierarchy import top_down
from rrcluster.core.kmeans import SeedingSpec
from rrcluster.core.neighbours import (
    agree,
    nearest_among,
    neighbour_spread,
    smoothed,
    within_spread,
)
from rrcluster.core.probe import nearest_others
from rrcluster.core.shards import MemoryShards


def drowned(n: int, k: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows of k classes whose means are drowned by a few loud directions all classes share."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(k, (n,), generator=g)
    means = torch.randn(k, d, generator=g)
    loud = torch.linalg.qr(torch.randn(d, 4, generator=g))[0]
    x = means[y] + 0.5 * torch.randn(n, d, generator=g)
    x += 4.0 * torch.randn(n, 4, generator=g) @ loud.T
    return torch.nn.functional.normalize(x, dim=1).half(), y


def test_the_spread_of_neighbours_is_half_the_mean_outer_difference() -> None:
    u = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    neighbours = torch.tensor([[1], [0], [0]])
    expected = torch.tensor([[8.0, 0.0], [0.0, 16.0]]).double() / 6
    assert torch.allclose(neighbour_spread(u, neighbours), expected)


def test_the_spread_within_clusters_is_about_their_means() -> None:
    u = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 5.0]])
    found = within_spread(u, torch.tensor([0, 0, 2]), 3)
    assert torch.allclose(found, torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double() / 3)


def test_a_smoothed_row_is_the_direction_of_itself_and_the_mean_of_its_neighbours() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = smoothed(z, torch.tensor([[1, 2], [0, 2], [0, 1]]))
    assert torch.allclose(found[0], torch.tensor([0.5, 0.5]).sqrt())
    assert torch.equal(smoothed(z, torch.zeros(3, 0).long()), z)


def test_classes_drowned_by_shared_directions_are_found_where_kmeans_fails() -> None:
    x, y = drowned(1500, 8, 32)
    shards = MemoryShards([x])
    found = agree(x, fit_projection(shards, 32), 8, 10, 0.1, 3, 0)
    seeds = top_down(shards, 8, SeedingSpec(), 0)
    plain = adjusted_rand_score(y, nearest(x, seeds.leaves)[0])
    assert adjusted_rand_score(y, found.labels) > plain + 0.3


def test_agreement_is_the_same_bits_again_and_its_labels_are_dense() -> None:
    x, _ = drowned(600, 5, 16)
    projection = fit_projection(MemoryShards([x]), 16)
    one, two = (agree(x, projection, 7, 10, 0.1, 2, 3) for _ in range(2))
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.features.basis, two.features.basis)
    assert sorted(one.labels.unique().tolist()) == list(range(one.clusters))


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_equal_rows_make_one_cluster_and_no_error(rows: int) -> None:
    x = torch.nn.functional.normalize(torch.ones(rows, 6), dim=1).half()
    found = agree(x, fit_projection(MemoryShards([x]), 4), 3, 10, 0.1, 2, 0)
    assert found.clusters == 1
    assert torch.isfinite(found.features.basis).all()


def test_neighbours_do_not_depend_on_threads() -> None:
    x = torch.randn(700, 24, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(nearest_others(x, 10))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_nearest_among_all_others_are_the_nearest_and_among_few_the_best_of_them() -> None:
    z = torch.nn.functional.normalize(
        torch.randn(1100, 12, generator=torch.Generator().manual_seed(2)), dim=1
    )
    many = nearest_others(z, 60)
    assert torch.equal(nearest_among(z, many.flip(1), 5), many[:, :5])
    few = many[:, [40, 7, 22]]
    assert torch.equal(nearest_among(z, few, 2), few[:, [1, 2]])
