"""The fit on one device: spread-out starting rows, then annealed mini-batches.

A mini-batch moves the centroid of its m_j rows with mean b_j by an exponential average,

    c_j ← (1 − w_j) c_j + w_j b_j,   w_j = 1 − (1 − η)^{m_j},

with η falling from ``anneal_rate`` to 0 by a cosine. A centroid whose running share of the inertia
falls below ``split_below`` of the average is put beside the centroid with the largest share: those
jumps leave the local minima in which Lloyd's iterations end. Rows come in key order, so a batch is
a range of hash keys: it does not depend on shards or workers. On a GPU rows are looked up and added
there, in whole numbers and in their order; what is decided with them is decided on the CPU, so that
a fit is the same bits on both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.cells import nearest
from rrcluster.core.grid import Codebook, Grid
from rrcluster.core.shards import Rows
from rrcluster.core.sketch import Sketch
from rrcluster.core.summing import add_in_order
from rrcluster.core.tiles import TILE, rows_at_once
from rrcluster.records import setting

MIN_BATCH = 256
PLUS_PLUS = 256  # rounds of drawing where nothing is annealed: k-means++ up to so many centroids
LEAST = 128  # rows of a product at least: fewer cost more than a thread's share of them saves
FEW = 8  # rows of a round that are compared in one product; more are looked up in a book
MIN_DRAWN = 4096  # rows that starting rows are drawn from at least
SPLIT_UNTIL = 0.7  # share of the steps after which nothing is split any more
SAMPLE = 4096  # rows that a grid and a sketch are fitted to
SKETCHED = 4096  # centroids from which looking rows up costs so much that sketches pay
MEMORY = 0.1  # weight of the newest batch in the running shares
NUDGE = 0.05  # of the data's spread: how far the halves of a split centroid are apart


@dataclass
class AnnealSpec:
    """The part of the seeding settings that steers the fit on one device."""

    rows_per_centroid: int = setting(256, "rows per centroid that are annealed on at most")
    epochs: float = setting(2.0, "walks over those rows in annealed mini-batches; 0: none")
    min_steps: int = setting(100, "mini-batches at least: small samples are walked more often")
    anneal_rate: float = setting(0.4, "initial weight of a row in its centroid, falling to 0")
    split_below: float = setting(
        0.1, "a centroid with less than this share of the mean inertia splits the widest instead"
    )
    anneal_from: int = setting(
        32_768,
        "rows from which annealing is worth it; fewer are fitted from k-means++ by Lloyd, but for "
        "bottom_up",
    )
    start_rows: int = setting(8, "rows per centroid that starting rows to anneal are drawn from")
    start_rounds: int = setting(64, "rounds of drawing them")
    metric: str = setting("euclidean", "euclidean, or spherical: centroids are kept of unit length")


def annealed(
    rows: Rows, k: int, spec: AnnealSpec, seed: int, path: tuple[str | int, ...], workers: int = 1
) -> Float[Tensor, "k d"]:
    """k centroids of the rows; ``workers`` threads share the products and change no bit.

    Nor does the rows' device. Narrow rows, whose products are not exact, stay on the CPU.
    """
    if rows.device != "cpu" and Space.of(rows).grid is None:
        rows = rows.on("cpu")
    if not anneals(len(rows), spec):
        return starting_rows(rows, k, PLUS_PLUS, len(rows), seed, path).cpu()
    rounds, drawn_from = spec.start_rounds, spec.start_rows * k
    return anneal(  # the starting rows are nobody else's: they can be let go of
        rows, starting_rows(rows, k, rounds, drawn_from, seed, path, workers), spec, seed, path,
        workers,
    )  # fmt: skip


def anneals(rows: int, spec: AnnealSpec) -> bool:
    """Whether a fit on so many rows is annealed.

    Not where Lloyd's iterations cost little anyhow: k-means++ leaves more centroids at outlying
    rows, and on small sets the refinement does better from those than from the lowest inertia.
    """
    return spec.epochs > 0 and rows >= spec.anneal_from


def anneal(
    rows: Rows,
    start: Float[Tensor, "k d"],
    spec: AnnealSpec,
    seed: int,
    path: tuple[str | int, ...] = (),
    workers: int = 1,
) -> Float[Tensor, "k d"]:
    """Annealed mini-batches from ``start``, on its device; see the module's text."""
    space, k, device = Space.of(rows), len(start), start.device
    rough = space.rough(rows, k)
    centroids = space.place(start)
    del start
    batch = min(max(k, MIN_BATCH), len(rows))
    steps = max(round(spec.epochs * len(rows) / batch), spec.min_steps)
    shares = torch.full((k,), -1.0)
    # On a grid products are exact however rows are cut: so that every thread has its part, and a
    # GPU all of them.
    piece = TILE if space.grid is None else min(max(-(-batch // workers), LEAST), TILE)
    tile = rows_at_once(centroids)
    piece = piece if device.type == "cpu" else tile
    squared, label = torch.empty(batch), torch.empty(batch, dtype=torch.int64)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step in range(steps):
            eta = spec.anneal_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            splits = step < SPLIT_UNTIL * steps
            looked_up_in = rough if splits else space
            book = looked_up_in.book(centroids)
            x, weight = rows.batch(step * batch, batch)
            tiles = (t.split(piece) for t in (x, label, squared))
            list(pool.map(partial(_look_up, looked_up_in, book), *tiles))
            del book  # a table of centroids less beside the next one
            weight = torch.ones(len(x)) if weight is None else weight.float() / rows.mean_weight
            mass = torch.bincount(label, weights=weight, minlength=k).float()
            pull = 1 - (1 - eta) ** mass
            centroids.mul_((1 - pull)[:, None].to(device))
            share = weight * (pull / mass.clamp_min(1e-9))[label]
            parts = (t.split(tile) for t in (x, label.to(device), share.to(device)))
            for part, to, of_it in zip(*parts, strict=True):  # placed again: no table of the batch
                add_in_order(centroids, to, space.place(part).mul_(of_it[:, None]))
            found = torch.bincount(label, weights=weight * squared, minlength=k).float()
            found *= looked_up_in.square
            if step == 0:
                shares = found.double().mean().float().expand(k).clone()
            shares.lerp_(found, MEMORY)
            if splits and step > 0:
                _split(centroids, shares, spec, keys.generator(seed, *path, "split", step))
            if spec.metric == "spherical":
                centroids = space.place(unit(space.back(centroids))).to(device)
    return space.back(centroids)


def _look_up(space: Space, book: Book, x: Tensor, label: Tensor, squared: Tensor) -> None:
    """Fill in the last two for the rows x."""
    label[:], squared[:] = book.label(space.coded(x))


def _split(centroids: Tensor, shares: Tensor, spec: AnnealSpec, generator: torch.Generator) -> None:
    """Put centroids of little inertia beside those of most; in place."""
    low = (shares < spec.split_below * shares.double().mean()).nonzero()[:, 0]
    if not len(low):
        return
    wide = shares.sort(descending=True, stable=True).indices[: len(low)]
    spread = shares[wide].double().mean().sqrt().float() / math.sqrt(centroids.shape[1])
    tile = rows_at_once(centroids)
    for away, beside in zip(low.split(tile), wide.split(tile), strict=True):
        step = NUDGE * torch.randn(len(away), centroids.shape[1], generator=generator)
        step = step.mul_(spread).to(centroids.device)
        away, beside = away.to(step.device), beside.to(step.device)
        centroids[away] = centroids[beside] + step
        centroids[beside] -= step
    shares[wide] /= 2
    shares[low] = shares[wide]


@dataclass(frozen=True)
class Space:
    """Where a fit computes: on a grid of whole numbers, or in float32 for narrow rows.

    With a sketch, rows and centroids are looked up by it; they are placed as without.
    """

    grid: Grid | None
    sketch: Sketch | None = None

    @staticmethod
    def of(rows: Rows) -> Space:
        return Space(Grid.of(_sample(rows)))

    def rough(self, rows: Rows, k: int) -> Space:
        """This space with a sketch of the rows, where looking up k centroids is worth one."""
        if self.grid is None or k < SKETCHED:
            return self
        return Space(self.grid, Sketch.of(self.coded(_sample(rows)), self.grid.limit))

    @property
    def square(self) -> float:
        """A squared distance of 1 in a book, as one between placed rows."""
        return 1.0 if self.sketch is None else self.sketch.square

    def place(self, x: Tensor) -> Tensor:
        return x.float().clone() if self.grid is None else self.grid.place(x)

    def back(self, placed: Tensor) -> Tensor:
        """Placed rows as rows of the data, in place."""
        return placed if self.grid is None else self.grid.back(placed)

    def coded(self, x: Tensor) -> Tensor:
        """Rows as a book looks them up."""
        return x.float() if self.grid is None else self._codes(self.grid, self.grid.place(x))

    def _codes(self, grid: Grid, placed: Tensor) -> Tensor:
        codes = grid.round(placed)
        return codes if self.sketch is None else self.sketch(codes)

    def book(self, placed: Tensor) -> Book:
        if self.grid is None:
            return Book(placed, None)
        tiles = (self._codes(self.grid, tile) for tile in placed.split(rows_at_once(placed)))
        return Book(None, Codebook(_joined(tiles, len(placed))))

    def book_of(self, centroids: Tensor) -> Book:
        """``book`` of centroids as they are; on a grid they are placed a tile at a time."""
        if self.grid is None:
            return Book(self.place(centroids), None)
        tiles = (self.coded(tile) for tile in centroids.split(rows_at_once(centroids)))
        return Book(None, Codebook(_joined(tiles, len(centroids))))


@dataclass(frozen=True)
class Book:
    """Centroids of one moment, to look rows up in: as they are, or on a grid."""

    centroids: Tensor | None
    codebook: Codebook | None

    def labels(self, coded: Tensor) -> Tensor:
        """The nearest centroid of each row."""
        return self._found(coded)[0]

    def squared(self, coded: Tensor) -> Tensor:
        """Squared distances in the space, of rounded rows: 0 for a row that is a centroid."""
        return self.label(coded)[1]

    def label(self, coded: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest centroid of each row, and the squared distance to it."""
        label, found = self._found(coded)
        if self.codebook is None:
            return label, found
        return label, (coded.float().square().sum(1) - 2 * found).clamp_min_(0)

    def _found(self, coded: Tensor) -> tuple[Tensor, Tensor]:
        if self.codebook is not None:
            return self.codebook.nearest(coded)
        assert self.centroids is not None
        return nearest(coded, self.centroids)


def starting_rows(
    rows: Rows,
    k: int,
    rounds: int,
    drawn_from: int,
    seed: int,
    path: tuple[str | int, ...] = (),
    workers: int = 1,
) -> Float[Tensor, "k d"]:
    """k of the first ``drawn_from`` rows, drawn by squared distance to those of earlier rounds.

    k-means|| (Bahmani et al. 2012) with draws of exact size: a round takes the rows with the
    smallest e_i / D_i² for exponential e_i (Efraimidis and Spirakis 2006), without replacement, so
    nothing is left to reduce. With k rounds it is k-means++ (Arthur and Vassilvitskii 2007).
    Rows repeat where there are fewer distinct ones than k.
    """
    n = min(len(rows), max(drawn_from, MIN_DRAWN))
    space = Space.of(rows).rough(rows, k)
    read = (rows.batch(start, min(TILE, n - start))[0] for start in range(0, n, TILE))
    codes = _joined((space.coded(x) for x in read), n)
    generator = keys.generator(seed, *path, "start")
    rounds = max(min(k, rounds), 1)
    to_few = DistancesToFew(codes) if k <= FEW * rounds else None
    squared = torch.ones(n)
    chosen = torch.empty(0, dtype=torch.int64)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for r in range(rounds):
            size = k * (r + 1) // rounds - k * r // rounds
            key = torch.empty(n).exponential_(generator=generator) / squared.clamp_min(1e-30)
            key[chosen] = math.inf
            drawn = key.topk(min(size, n), largest=False).indices.sort().values
            chosen = torch.cat([chosen, drawn])
            if r == 0:
                squared.fill_(math.inf)
            if to_few is not None:
                squared = torch.minimum(squared, to_few(codes[drawn.to(codes.device)]).cpu())
            else:
                book = space.book(space.place(rows.take(drawn)))
                tiles = (t.split(rows_at_once(codes)) for t in (codes, squared))
                list(pool.map(partial(_lower, book), *tiles))
    del codes, to_few, squared, key  # as large as several tables of centroids
    return rows.take(chosen[torch.arange(k) % len(chosen)]).float()


def _lower(book: Book, codes: Tensor, squared: Tensor) -> None:
    torch.minimum(squared, book.squared(codes).cpu(), out=squared)


def _joined(tiles: Iterable[Tensor], rows: int) -> Tensor:
    """Tiles of ``rows`` rows in all as one tensor; none is kept beside it."""
    joined, start = torch.empty(0), 0
    for tile in tiles:
        if start == 0:
            joined = tile.new_empty(rows, tile.shape[1])
        joined[start : start + len(tile)] = tile
        start += len(tile)
    return joined


class DistancesToFew:
    """Squared distances of rows to the nearest of a few, as ``Book.squared`` gives them."""

    def __init__(self, coded: Tensor) -> None:
        self._rows = coded.float()  # whole numbers whose sums stay exact
        self._whole = not coded.is_floating_point()
        self._norms = self._rows.square().sum(1)

    def __call__(self, coded: Tensor) -> Tensor:
        few = coded.float()
        half = few.square().sum(1) / 2
        half = half.ceil() if self._whole else half
        return (self._norms - 2 * (self._rows @ few.T - half).amax(1)).clamp_min_(0)


def _sample(rows: Rows) -> Tensor:
    """What a grid and a sketch are made for, on the CPU: they span these rows."""
    return rows.batch(0, min(len(rows), SAMPLE))[0].cpu()


def unit(x: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Rows of unit length; zero rows stay."""
    return torch.nn.functional.normalize(x, dim=1)
