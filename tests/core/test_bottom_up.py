"""Bottom-up levels: paths compose, splits and resampling do what they say, density is flattened."""

import math

import pytest
import torch

from rrcluster.core.bottom_up import Level, Members, bottom_up, row_hash
from rrcluster.core.kmeans import SeedingSpec, fit
from rrcluster.core.shards import MemoryShards


def disc(n: int, low: float, high: float, g: torch.Generator) -> torch.Tensor:
    """n points uniform on the ring low ≤ r ≤ high around the origin."""
    r = (low**2 + torch.rand(n, generator=g) * (high**2 - low**2)).sqrt()
    angle = 2 * math.pi * torch.rand(n, generator=g)
    return torch.stack([r * angle.cos(), r * angle.sin()], 1)


def dense_core_in_a_sparse_disc() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.cat([disc(4500, 0, 0.3, g), disc(1500, 0.3, 1, g)])
    return x[torch.randperm(len(x), generator=g)].half()


def share_in_core(centroids: torch.Tensor) -> float:
    return float((centroids.norm(dim=1) < 0.3).float().mean())


def test_resampled_levels_cover_the_plane_by_extent_and_not_by_density() -> None:
    """The ring example of the curation paper: the core has 9 % of the area and 75 % of the rows."""
    shards = MemoryShards([dense_core_in_a_sparse_disc()])
    flat = fit(shards, 30, SeedingSpec(), 0).centroids
    levels = [
        Level(300),
        Level(100, resamplings=3, sample_size=2),
        Level(30, resamplings=3, sample_size=2),
    ]
    curated = bottom_up(shards, levels, SeedingSpec(), 0).centroids[-1]
    assert share_in_core(flat) > 0.3
    assert share_in_core(curated) < 0.7 * share_in_core(flat)


def test_paths_compose_and_every_row_has_one() -> None:
    x = dense_core_in_a_sparse_disc()[:2000]
    found = bottom_up(MemoryShards([x]), [Level(100), Level(20), Level(5)], SeedingSpec(), 0)
    assert [len(c) for c in found.centroids] == [100, 20, 5]
    assert found.paths.shape == (100, 3)
    assert torch.equal(found.paths[:, 2], torch.arange(100))
    assert torch.equal(found.paths[:, 0], found.parents[1][found.parents[0]])
    path = found.label(x)
    assert path.shape == (2000, 3)
    assert len(path[:, 0].unique()) == 5


def test_splits_cut_each_cluster_of_the_first_fit_into_equal_numbers() -> None:
    x = dense_core_in_a_sparse_disc()[:2000]
    found = bottom_up(MemoryShards([x]), [Level(80, splits=8), Level(10)], SeedingSpec(), 0)
    assert len(found.seeds.cells) == 10
    assert torch.bincount(found.seeds.cell_of_leaf).tolist() == [8] * 10


@pytest.mark.parametrize("choice", ["closest", "random"])
def test_members_of_a_resampling_are_few_of_each_cluster(choice) -> None:
    x = dense_core_in_a_sparse_disc()[:500]
    centroids = x[:10].float()
    work = Members(centroids, Level(10, sample_size=3, choice=choice), 7)
    rows, label, rank = work(x)
    squared = torch.cdist(x.float(), centroids)
    nearest = squared.argmin(1)
    for cluster in range(10):
        mine = (nearest == cluster).sum()
        assert (label == cluster).sum() == min(3, int(mine))
        if choice == "closest":
            worst = squared[nearest == cluster, cluster].sort().values[:3].max()
            assert (rows[label == cluster].float() - centroids[cluster]).norm(
                dim=1
            ).max() <= worst + 1e-5
    assert (rank >= 0).all()


def test_hashes_of_rows_are_even_and_belong_to_the_row() -> None:
    x = dense_core_in_a_sparse_disc()
    key = row_hash(x, 3)
    assert 0.48 < key.mean() < 0.52
    assert 0.28 < key.std() < 0.30
    assert torch.equal(row_hash(x[40:60], 3), key[40:60])
    assert not torch.equal(row_hash(x, 4), key)


def test_a_level_of_more_clusters_than_points_is_refused() -> None:
    x = dense_core_in_a_sparse_disc()[:50]
    with pytest.raises(ValueError, match="60 clusters of 50"):
        bottom_up(MemoryShards([x]), [Level(60)], SeedingSpec(), 0)
