"""What a job costs, on paper: seconds of every resource in every stage, and which one is the last.

Work inside a stage overlaps, so a stage takes as long as its slowest resource; stages follow each
other. Rates are measured (``tests/benchmarks/scaling.py``) or stated as assumptions by the caller;
nothing here is a measurement. The formulas are those of ARCHITECTURE.md, "Costs".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

ROW_BYTES = 40  # of samples/: id, shard, row, key, caption, sizes, compressed by Parquet
ASSIGNED_BYTES = 60  # of assignments/ per row, compressed
KMEANS_PASSES = 30  # seeding.iterations, the most
ANNEAL_EPOCHS = 2  # seeding.epochs, over 256 rows per centroid
ANNEAL_ROWS = 256
SAMPLE_ROWS, AGREE_FITS = 4096, 6  # refine.sample_rows of a cell; k-means of them
SAMPLE_PASSES = 5  # over those: of agreement, and refine.passes at most
FULL_PASSES = 2  # over all rows: codes fitted to them, and the statistics that are stored
AGREE_PASSES = 6  # of each k-means, its start among them
REPLICATES = 8  # count.replicates
PAIRS = 1.5  # joined pairs that count prices for each of a leaf's neighbours


@dataclass(frozen=True)
class Rates:
    """What one core, one GPU, one worker and the job's own process do in a second."""

    encode: float  # images of one GPU (or of one core, without GPUs)
    decode: float  # images of one core, read, decoded and resized
    flops: float  # of one core, in matrix products of float32
    factor_flops: float  # of one core, in the small factorizations of the merge tree
    store: float  # bytes of one worker, to and from the store
    tasks: float  # tasks that one process hands out
    messages: float  # calls of holders that the coordinator makes, small answers taken
    adding: float  # bytes of answers that the coordinator takes and adds
    listing: float = 5000.0  # keys that a store lists


@dataclass(frozen=True)
class Pool:
    """Machines of one kind, and the price of one for an hour (with its share of the head)."""

    name: str
    machines: int
    cores: int
    gpus: int
    network: float  # bytes/s of one machine
    price: float = math.nan

    @property
    def encoders(self) -> int:
        """One per GPU, or one per core where there are none."""
        return self.machines * (self.gpus or self.cores)


@dataclass(frozen=True)
class Corpus:
    """How many images, in what sizes and shards."""

    images: float
    image_bytes: float = 100e3
    images_per_shard: float = 10e3

    @property
    def shards(self) -> float:
        return self.images / self.images_per_shard


@dataclass(frozen=True)
class Fit:
    """The sizes of a fit: rows, blocks, width d, leaves k, cells, refined width e, rank r.

    Those of the settings' defaults for a thousand clusters, on vectors of CLIP ViT-L/14.
    """

    rows: float = 1e6
    block_rows: float = 16_384.0
    d: int = 768
    leaves: int = 2500
    cell_leaves: int = 256
    e: int = 96
    rank: int = 4
    neighbours: int = 8

    @property
    def blocks(self) -> int:
        return math.ceil(self.rows / self.block_rows)

    @property
    def cells(self) -> int:
        return math.ceil(self.leaves / self.cell_leaves)

    @property
    def top(self) -> int:
        """Centroids of the level that runs on the holders: the cells, or all leaves of one cell."""
        return self.cells if self.cells > 1 else self.leaves


@dataclass(frozen=True)
class Traffic:
    """What one pass sends about. Calls are the coordinator's; bytes are those of statistics."""

    calls: int
    taken: float  # bytes of answers that reach the coordinator
    made: float  # bytes of all answers, also those that holders add among themselves


@dataclass(frozen=True)
class Stage:
    """Seconds that each resource is busy; the stage takes as long as the busiest."""

    name: str
    busy: dict[str, float]

    @property
    def seconds(self) -> float:
        return max(self.busy.values())

    @property
    def bound(self) -> str:
        """The resource that the stage waits for."""
        return max(self.busy, key=lambda name: self.busy[name])


def kmeans_traffic(fit: Fit, workers: int) -> Traffic:
    """A pass of k-means: each holder adds its blocks, pairs of holders add theirs in a tree, one
    answer is taken. It has count, sum and squares of every centroid, 8 (d + 2) bytes each."""
    holders = min(workers, fit.blocks)
    answer = fit.top * 8.0 * (fit.d + 2)
    return Traffic(2 * holders - 1, answer, (2 * holders - 1) * answer)


def rate_traffic(fit: Fit) -> Traffic:
    """A pass of coding-rate Lloyd over one cell: one answer per block, added in block order, with
    mass and moments of every leaf, 8 (e² + 1) bytes each. The cells of a larger fit are refined
    where their rows are, and send nothing."""
    if fit.cells > 1:
        return Traffic(0, 0.0, 0.0)
    size = fit.blocks * fit.leaves * 8.0 * (fit.e**2 + 1)
    return Traffic(fit.blocks, size, size)


def count_traffic(fit: Fit) -> Traffic:
    """The one pass of count: every row's leaf, features and hash, 4 e + 16 bytes a row."""
    size = fit.rows * (4.0 * fit.e + 16)
    return Traffic(fit.blocks, size, size)


def coordinator_bytes(fit: Fit) -> float:
    """What count holds in one place: rows as they came and by leaf, with a weight in each
    replicate, and moments of all leaves, which the merge tree copies."""
    rows = fit.rows * (2 * 4.0 * fit.e + 16 + REPLICATES)
    return rows + 2 * 8.0 * fit.leaves * fit.e**2


def kmeans_memory(rows: int, d: int, k: int) -> float:
    """Bytes of a worker in a pass of k-means over its ``rows``: float16 rows; per centroid and
    coordinate 8 of the sums, which blocks are added to in place, and 8 of the centroids as they
    come and coded; a tile of rows; what the libraries take."""
    return 2.0 * rows * d + 16.0 * k * d + 21.0 * 1024 * d + 30e6


def kmeans_work(fit: Fit) -> dict[str, float]:
    """Floating-point operations of k-means, by level: annealing on 256 rows per centroid and passes
    over all rows, for the cells, and in every cell for its leaves."""

    def level(parts: int, rows: float, k: float) -> float:
        annealed = 2 * ANNEAL_EPOCHS * min(ANNEAL_ROWS * k, rows) * fit.d * k
        return parts * (annealed + KMEANS_PASSES * 2 * rows * fit.d * k)

    if fit.cells == 1:
        return {"leaves": level(1, fit.rows, float(fit.leaves))}
    inside = level(fit.cells, fit.rows / fit.cells, fit.leaves / fit.cells)
    return {"cells": level(1, fit.rows, float(fit.cells)), "leaves": inside}


def job(
    corpus: Corpus, fit: Fit, pool: Pool, rates: Rates, block_images: float, feeders: int = 1
) -> list[Stage]:
    """The stages of a whole job. ``block_images`` is how many images one task hands on:
    a task per shard reads, and one per block each encodes and delivers; ``feeders`` processes hand
    them out."""
    n, workers = corpus.images, pool.encoders
    cores = pool.machines * pool.cores
    store = workers * rates.store
    moved = 2.0 * fit.d * n  # bytes of all embeddings
    fit = replace(fit, rows=min(fit.rows, n))
    leaves = fit.leaves / fit.cells  # of one cell
    priced = fit.leaves * (PAIRS * fit.neighbours + 2 * REPLICATES)
    tree = priced * fit.e**3  # a factor and an inverse
    agreeing = min(SAMPLE_ROWS, fit.rows / fit.cells)
    passes = FULL_PASSES + SAMPLE_PASSES * agreeing * fit.cells / fit.rows
    fits = 2 * AGREE_FITS * AGREE_PASSES * agreeing * fit.e * leaves
    agreement = 2 * agreeing**2 * fit.e + fits
    lloyd = 2 * fit.rows * fit.e * (fit.d + leaves * fit.rank) + fit.rows * fit.e**2
    route = 2.0 * fit.d * (fit.cells + fit.e) + 2.0 * fit.e * leaves * fit.rank
    work = kmeans_work(fit)
    at_once = {"cells": min(workers, fit.blocks), "leaves": min(workers, max(fit.cells, 1))}
    at_once["leaves"] = at_once["leaves"] if fit.cells > 1 else min(workers, fit.blocks)

    def coordinator(traffic: Traffic, passes: int) -> float:
        return passes * (traffic.calls / rates.messages + traffic.taken / rates.adding)

    moments = 2 * (1 + REPLICATES) * fit.rows * fit.e**2
    return [
        Stage("manifest", {"listing": corpus.shards / rates.listing}),
        Stage(
            "embed",
            {
                "encoders": n / (workers * rates.encode),
                "decoding": n / (cores * rates.decode),
                "network": n * corpus.image_bytes / (pool.machines * pool.network),
                "handing out tasks": (corpus.shards + 2 * n / block_images)
                / (feeders * rates.tasks),
                "store": n * (2 * fit.d + ROW_BYTES) / store,
            },
        ),
        Stage("select", {"store": (moved + n * ROW_BYTES) / store}),
        Stage(
            "seed",
            {
                "products": sum(work[level] / (at_once[level] * rates.flops) for level in work),
                "coordinator": coordinator(kmeans_traffic(fit, workers), KMEANS_PASSES),
            },
        ),
        Stage(
            "refine",
            {
                "products": (passes * lloyd + fit.cells * agreement)
                / (at_once["leaves"] * rates.flops),
                "coordinator": coordinator(rate_traffic(fit), FULL_PASSES),
            },
        ),
        Stage(
            "count",
            {
                "coordinator": tree / rates.factor_flops + moments / rates.flops
                + coordinator(count_traffic(fit), 1)
            },
        ),
        Stage("caption", {"products": 2 * fit.rows * route / (workers * rates.flops)}),
        Stage(
            "write",
            {
                "products": n * route / (cores * rates.flops),
                "store": (moved + n * (ROW_BYTES + ASSIGNED_BYTES)) / store,
                "handing out tasks": corpus.shards / rates.tasks,
            },
        ),
    ]  # fmt: skip


def hours(stages: list[Stage]) -> float:
    """Of the whole job."""
    return sum(stage.seconds for stage in stages) / 3600


def stored_bytes(corpus: Corpus, fit: Fit) -> float:
    """What the run folder holds: embeddings, samples, assignments, and the fit's rows."""
    per_row = 2 * fit.d + ROW_BYTES + ASSIGNED_BYTES
    return corpus.images * per_row + min(fit.rows, corpus.images) * (2 * fit.d + 32)
