"""Sketches of rows: near enough to look centroids up by while they are annealed, and exact."""

import pytest
import torch

from rrcluster.core import anneal as annealing
from rrcluster.core import grid
from rrcluster.core.anneal import AnnealSpec, Space, annealed, starting_rows
from rrcluster.core.cells import nearest
from rrcluster.core.grid import Grid
from rrcluster.core.shards import Rows
from rrcluster.core.sketch import Sketch

WIDTH = 256


def narrow(n: int) -> torch.Tensor:
    """Unit rows that vary along few directions most, around uneven centres."""
    g = torch.Generator().manual_seed(0)
    along = torch.randn(24, WIDTH, generator=g)
    centres = 1.5 * torch.randn(60, 24, generator=g)
    inside = centres[torch.randint(60, (n,), generator=g)] + torch.randn(n, 24, generator=g)
    x = inside @ along + 0.3 * torch.randn(n, WIDTH, generator=g)
    return torch.nn.functional.normalize(x, dim=1).half()


def codes_of(x: torch.Tensor) -> tuple[Grid, torch.Tensor]:
    space = Grid.of(x)
    assert space is not None
    return space, space.round(space.place(x))


def test_a_sketch_is_a_quarter_as_wide_and_keeps_distances() -> None:
    space, codes = codes_of(narrow(1500))
    sketch = Sketch.of(codes, space.limit)
    assert sketch is not None
    short = sketch(codes)
    assert short.shape == (1500, WIDTH // 4)
    assert short.dtype == torch.int8
    near = torch.cdist(short.double(), short.double()).square() * sketch.square
    true = torch.cdist(codes.double(), codes.double()).square()
    pair = ~torch.eye(1500, dtype=torch.bool)
    ratio = near[pair] / true[pair]
    assert 0.9 < float(ratio.mean()) < 1.0  # what is left out is missing from every distance
    assert float(ratio.std()) < 0.05


def test_rows_that_vary_alike_in_all_directions_have_no_sketch() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(2000, WIDTH, generator=g), dim=1).half()
    space, codes = codes_of(x)
    assert Sketch.of(codes, space.limit) is None
    assert Space(space).rough(Rows([x]), 10**6).sketch is None


def test_rows_that_need_more_directions_get_half_their_width() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 110, generator=g)
    x = x @ torch.linalg.qr(torch.randn(WIDTH, 110, generator=g)).Q.T
    space, codes = codes_of(torch.nn.functional.normalize(x, dim=1).half())
    sketch = Sketch.of(codes, space.limit)
    assert sketch is not None
    assert sketch(codes).shape[1] == WIDTH // 2


def test_few_centroids_or_narrow_rows_are_looked_up_as_they_are() -> None:
    x = narrow(500)
    space = Space.of(Rows([x]))
    assert space.rough(Rows([x]), annealing.SKETCHED - 1) == space
    assert space.rough(Rows([x]), annealing.SKETCHED).sketch is not None
    thin = Space.of(Rows([x[:, :16]]))
    assert thin.rough(Rows([x[:, :16]]), annealing.SKETCHED) == thin


def test_sketches_are_the_same_numbers_without_int8_products(monkeypatch) -> None:
    space, codes = codes_of(narrow(1100))
    monkeypatch.setattr(grid, "int8_pays", grid.int8_is_exact)
    with_int8 = Sketch.of(codes, space.limit)
    monkeypatch.setattr(grid, "int8_pays", lambda: False)
    without = Sketch.of(codes, space.limit)
    assert with_int8 is not None
    assert without is not None
    assert torch.equal(with_int8(codes), without(codes))


@pytest.mark.parametrize("metric", ["euclidean", "spherical"])
def test_annealing_by_sketches_ends_where_annealing_without_does(metric: str, monkeypatch) -> None:
    x = narrow(6000)
    spec = AnnealSpec(anneal_from=0, metric=metric)
    whole = annealed(Rows([x]), 150, spec, 3, ())
    monkeypatch.setattr(annealing, "SKETCHED", 100)
    short = annealed(Rows([x]), 150, spec, 3, ())
    in_two = annealed(Rows(list(x.split(701))), 150, spec, 3, (), workers=2)
    assert not torch.equal(whole, short)
    assert torch.equal(short, in_two)
    inertia = [float(nearest(x, c)[1].mean()) for c in (whole, short)]
    assert inertia[1] < 1.01 * inertia[0]


def test_starting_rows_by_sketches_are_distinct_and_spread_out(monkeypatch) -> None:
    monkeypatch.setattr(annealing, "SKETCHED", 100)
    monkeypatch.setattr(annealing, "FEW", 0)  # as where a round draws many
    x = narrow(4000)
    start = starting_rows(Rows([x]), 200, 16, 4000, 1)
    assert len(start.unique(dim=0)) == 200
    drawn = float(nearest(x, start)[1].mean())
    uniform = float(nearest(x, x[:200].float())[1].mean())
    assert drawn < uniform
