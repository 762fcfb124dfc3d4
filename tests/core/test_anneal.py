"""The fit on one device: starting rows, annealing, weights, metrics."""

from dataclasses import replace

import pytest
import torch

from rrcluster.core.anneal import (
    AnnealSpec,
    DistancesToFew,
    Space,
    anneal,
    annealed,
    starting_rows,
)
from rrcluster.core.cells import nearest
from rrcluster.core.kmeans import SeedingSpec, State, fit, lloyd
from rrcluster.core.shards import MemoryShards, Rows


def blobs(n: int, k: int, d: int, noise: float, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(k, d, generator=g), dim=1)
    share = torch.rand(k, generator=g) ** 3 + 0.02  # uneven sizes
    labels = torch.multinomial(share, n, replacement=True, generator=g)
    x = centres[labels] + noise * torch.randn(n, d, generator=g) / d**0.5
    return torch.nn.functional.normalize(x, dim=1).half()


def inertia(x: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(nearest(x, centroids)[1].mean())


def test_annealing_and_a_pass_end_below_converged_lloyd_from_the_same_rows() -> None:
    x = blobs(6000, 80, 64, 1.0)
    start = starting_rows(Rows([x]), 60, 1, 6000, 0)
    thorough = SeedingSpec(tolerance=0.0, moved_share=0.0, iterations=60)
    plain = lloyd(MemoryShards([x]), State(0, 1, start), thorough, 0)
    better = anneal(Rows([x]), start, AnnealSpec(), 0)
    settled = lloyd(MemoryShards([x]), State(0, 1, better), SeedingSpec(), 0)
    assert inertia(x, settled.centroids) < 0.995 * inertia(x, plain.centroids)


def test_threads_parts_and_runs_give_the_same_bits() -> None:
    x = blobs(3000, 20, 64, 0.8)
    one = annealed(Rows([x]), 50, AnnealSpec(anneal_from=0), 3, ())
    two = annealed(Rows(list(x.split(701))), 50, AnnealSpec(anneal_from=0), 3, (), workers=2)
    assert torch.equal(one, two)


def test_starting_rows_are_distinct_while_there_are_distinct_rows() -> None:
    x = blobs(500, 5, 64, 0.5)[torch.arange(1000) % 40]
    assert len(starting_rows(Rows([x]), 30, 30, 1000, 0).unique(dim=0)) == 30
    assert len(starting_rows(Rows([x]), 70, 70, 1000, 0).unique(dim=0)) == 40


@pytest.mark.parametrize("d", [8, 64])
def test_a_weight_counts_like_repeated_rows(d: int) -> None:
    x = blobs(300, 6, d, 0.5)
    times = torch.arange(300) % 3 + 1
    spec = SeedingSpec(tolerance=0.0, moved_share=0.0, iterations=50)
    start = starting_rows(Rows([x]), 8, 8, 300, 0)
    once = lloyd(MemoryShards([x], weights=[times]), State(0, 1, start), spec, 0)
    repeated = lloyd(MemoryShards([x.repeat_interleave(times, 0)]), State(0, 1, start), spec, 0)
    assert once.count.sum() == times.sum()
    assert inertia(x, once.centroids) == pytest.approx(inertia(x, repeated.centroids), rel=0.02)
    fitted = fit(MemoryShards([x], weights=[times]), 8, SeedingSpec(), 0)
    assert fitted.count.sum() == times.sum()


def test_spherical_centroids_have_unit_length() -> None:
    x = blobs(800, 10, 64, 0.5)
    found = fit(MemoryShards([x]), 10, SeedingSpec(metric="spherical"), 0)
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(10), atol=1e-5, rtol=0)
    cosine = float((x.float() @ found.centroids.T).amax(1).mean())
    euclidean = fit(MemoryShards([x]), 10, SeedingSpec(), 0).centroids
    directions = torch.nn.functional.normalize(euclidean, dim=1)
    assert cosine > float((x.float() @ directions.T).amax(1).mean()) - 0.005


def test_lloyd_without_annealing_grows_its_blocks_and_ends_on_all() -> None:
    x = blobs(4000, 10, 64, 0.5)
    seen: list[int] = []
    fit(
        MemoryShards(list(x.split(250))),
        10,
        SeedingSpec(epochs=0.0, rows_per_centroid=25),
        0,
        on_pass=lambda state, inertia: seen.append(state.blocks),
    )
    assert seen[0] == 1
    assert seen[-1] == 16
    assert seen == sorted(seen)


@pytest.mark.parametrize("annealing", [True, False])
def test_going_on_from_any_pass_ends_with_the_same_bits(annealing: bool) -> None:
    x = blobs(4000, 30, 64, 0.9)
    shards = MemoryShards(list(x.split(500)))
    spec = SeedingSpec(tolerance=0.0, iterations=6)
    states: list[State] = []
    spec = replace(spec, anneal_from=0 if annealing else 10**6)
    whole = fit(shards, 40, spec, 0, on_pass=lambda state, inertia: states.append(state))
    for state in states[1:]:
        again = fit(shards, 40, spec, 0, resume=state)
        assert torch.equal(again.centroids, whole.centroids)


class TestBadInput:
    """What is refused, and what is answered with fewer clusters."""

    @pytest.mark.parametrize("d", [8, 64])
    def test_one_row_is_one_cluster(self, d: int) -> None:
        x = blobs(1, 1, d, 0.1)
        found = fit(MemoryShards([x]), 3, SeedingSpec(), 0)
        assert torch.equal(found.centroids, x.float())

    @pytest.mark.parametrize("d", [8, 64])
    def test_more_clusters_than_rows_give_one_per_distinct_row(self, d: int) -> None:
        x = blobs(9, 9, d, 0.5)
        found = fit(MemoryShards([x, x]), 30, SeedingSpec(), 0)
        assert len(found.centroids) == 9
        assert inertia(x, found.centroids) < 1e-5

    @pytest.mark.parametrize("d", [8, 64])
    def test_duplicates_only_are_one_cluster(self, d: int) -> None:
        x = blobs(1, 1, d, 0.1).expand(100, d)
        found = fit(MemoryShards([x]), 4, SeedingSpec(), 0)
        assert len(found.centroids) == 1
        assert found.count.tolist() == [100]

    @pytest.mark.parametrize("d", [8, 64])
    def test_zero_vectors_are_rows_like_others(self, d: int) -> None:
        x = torch.cat([torch.zeros(50, d).half(), blobs(200, 4, d, 0.1)])
        for metric in ("euclidean", "spherical"):
            found = fit(MemoryShards([x]), 5, SeedingSpec(metric=metric), 0)
            assert torch.isfinite(found.centroids).all()
            assert found.count.sum() == 250

    def test_blocks_of_different_widths_are_refused(self) -> None:
        with pytest.raises(ValueError, match="widths"):
            MemoryShards([torch.zeros(2, 3).half(), torch.zeros(2, 4).half()])

    def test_rows_that_are_not_finite_are_refused(self) -> None:
        x = blobs(50, 2, 64, 0.1)
        x[7, 3] = torch.nan
        with pytest.raises(ValueError, match="finite"):
            fit(MemoryShards([x]), 3, SeedingSpec(), 0)


@pytest.mark.parametrize("few", [1, 5])
@pytest.mark.parametrize("width", [8, 96])
def test_distances_to_few_rows_are_those_of_a_book_of_them(width: int, few: int) -> None:
    x = blobs(1500, 6, width, 0.5)
    space = Space.of(MemoryShards([x]).rows(len(x)))
    codes = space.coded(x)
    found = DistancesToFew(codes)(codes[7 : 7 + few])
    book = space.book(space.place(x[7 : 7 + few]))
    if width < 64:  # not on a grid: rounded as the product rounds
        torch.testing.assert_close(found, book.squared(codes), atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(found, book.squared(codes))
        assert float(found[7 : 7 + few].max()) <= 1
