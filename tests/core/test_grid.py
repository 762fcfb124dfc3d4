"""Products in whole numbers: exact on every path, and near the unrounded answer."""

import pytest
import torch

from rrcluster.core import grid
from rrcluster.core.cells import nearest
from rrcluster.core.grid import Codebook, Grid, products


def unit_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=g) + 0.3, dim=1).half()


@pytest.mark.parametrize(
    ("m", "k", "d"), [(1, 32, 64), (5, 32, 512), (513, 1024, 65), (7, 64, 3000)]
)
def test_int8_float32_and_int64_products_are_the_same_numbers(m: int, k: int, d: int) -> None:
    g = torch.Generator().manual_seed(d)
    limit = min(127, int((grid.EXACT // d) ** 0.5))
    a = torch.randint(-limit, limit + 1, (m, d), generator=g).to(torch.int8)
    b = torch.randint(-limit, limit + 1, (k, d), generator=g).to(torch.int8)
    a[0], b[0] = limit, limit  # the largest product there is
    wide = a.long() @ b.long().T
    assert torch.equal(products(a, b).long(), wide)
    assert torch.equal((a.float() @ b.float().T).long(), wide)
    if grid.int8_is_exact():  # also where it does not pay
        assert torch.equal(grid._in_bytes(a, b).long(), wide)


@pytest.mark.parametrize("bytes_pay", [True, False])
def test_the_clock_chooses_the_product_and_no_number(bytes_pay: bool, monkeypatch) -> None:
    slow = grid._in_floats if bytes_pay else grid._in_bytes
    monkeypatch.setattr(grid, "_seconds", lambda product, *_: float(product is slow))
    chosen = grid.int8_pays.__wrapped__()
    assert chosen == (bytes_pay and grid.int8_is_exact())
    monkeypatch.setattr(grid, "int8_pays", lambda: chosen)
    a = torch.randint(-127, 128, (64, 256), dtype=torch.int8)
    assert torch.equal(products(a, a).long(), a.long() @ a.long().T)


def test_a_machine_without_int8_gives_the_same_labels(monkeypatch) -> None:
    x, c = unit_rows(300, 64), unit_rows(40, 64, 1).float()
    space = Grid.of(x)
    assert space is not None
    codes = space.round(space.place(x))
    monkeypatch.setattr(grid, "int8_pays", grid.int8_is_exact)
    with_int8 = Codebook(space.round(space.place(c))).nearest(codes)
    monkeypatch.setattr(grid, "int8_pays", lambda: False)
    without = Codebook(space.round(space.place(c))).nearest(codes)
    assert torch.equal(with_int8[0], without[0])
    assert torch.equal(with_int8[1], without[1])


@pytest.mark.parametrize("k", [1, 31, 32, 1000, 1025, 2500])
def test_the_nearest_is_found_across_groups_and_tiles(k: int) -> None:
    x, c = unit_rows(700, 64), unit_rows(k, 64, 1).float()
    space = Grid.of(x)
    assert space is not None
    codes, places = space.round(space.place(x)), space.round(space.place(c))
    label, score = Codebook(space.round(space.place(c))).nearest(codes)
    half = (places.long().square().sum(1) + 1) // 2
    scores = codes.long() @ places.long().T - half
    assert torch.equal(score.long(), scores.max(1).values)
    assert torch.equal(label, (scores == scores.max(1).values[:, None]).int().argmax(1))


def test_rounding_costs_little_inertia() -> None:
    x, c = unit_rows(4000, 256), unit_rows(100, 256, 1).float()
    space = Grid.of(x)
    assert space is not None
    label, _ = Codebook(space.round(space.place(c))).nearest(space.round(space.place(x)))
    best, squared = nearest(x, c)
    found = (x.float() - c[label]).square().sum(1)
    assert found.mean() < squared.mean() * 1.0005
    assert (label == best).float().mean() > 0.95


def test_narrow_or_equal_rows_have_no_grid() -> None:
    assert Grid.of(unit_rows(100, 8)) is None
    assert Grid.of(unit_rows(1, 128).expand(50, 128)) is None
