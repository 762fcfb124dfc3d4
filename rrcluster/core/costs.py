"""What a job costs, on paper: seconds of every resource in every stage, and which one is the last.

Work inside a stage overlaps, so a stage takes as long as its slowest resource; stages follow each
other. Rates are measured (``tests/benchmarks/scaling.py``) or stated as assumptions by the caller;
nothing here is a measurement. The formulas are those of ARCHITECTURE.md, "Costs".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ROW_BYTES = 40  # of samples/: id, shard, row, key, caption, sizes, compressed by Parquet
ASSIGNED_BYTES = 60  # of assignments/ per row, compressed
KMEANS_PASSES = 30  # seeding.iterations, the most
LLOYD_PASSES = 12  # coding-rate Lloyd: whitenings and rounds together
HEAD_FLOPS = 300 * 2048 * 6 * 2 * 64 * 256  # steps × batch × forward and backward of the head


@dataclass(frozen=True)
class Rates:
    """What one core, one GPU, one worker and the job's own process do in a second."""

    encode: float  # images of one GPU (or of one core, without GPUs)
    decode: float  # images of one core, read, decoded and resized
    flops: float  # of one core, in matrix products of float32
    factor_flops: float  # of one core, in the small factorizations of the merge tree
    store: float  # bytes of one worker, to and from the store
    tasks: float  # tasks that the job's own process hands out
    messages: float  # answers that the coordinator takes
    adding: float  # bytes of answers that the coordinator adds
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
    """The sizes of a fit: rows, blocks, width d, leaves k, cells, refined width e, rank r."""

    rows: float = 1e6
    block_rows: float = 16_384
    d: int = 768
    leaves: int = 2500
    cell_leaves: int = 256
    e: int = 64
    rank: int = 16
    neighbours: int = 16

    @property
    def blocks(self) -> int:
        return math.ceil(self.rows / self.block_rows)

    @property
    def cells(self) -> int:
        return math.ceil(self.leaves / self.cell_leaves)


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


def kmeans_traffic(fit: Fit) -> tuple[int, float]:
    """(messages, bytes) that the coordinator takes per iteration: one answer per block with count,
    sum and inertia of every leaf, 8 (d + 2) bytes each."""
    return fit.blocks, fit.blocks * fit.leaves * 8.0 * (fit.d + 2)


def rate_traffic(fit: Fit, leaves: int) -> tuple[int, float]:
    """(messages, bytes) per pass over the moments of ``leaves`` clusters: 8 e² bytes each, and
    three scalars."""
    return fit.blocks, fit.blocks * leaves * 8.0 * (fit.e**2 + 3)


def job(corpus: Corpus, fit: Fit, pool: Pool, rates: Rates, block_images: float) -> list[Stage]:
    """The stages of a whole job. ``block_images`` is how many images one task hands on."""
    n, workers = corpus.images, pool.encoders
    cores = pool.machines * pool.cores
    store = workers * rates.store
    moved = 2.0 * fit.d * n  # bytes of all embeddings
    rows = min(fit.rows, n)
    leaves = fit.leaves / fit.cells  # of one cell
    messages, answer = kmeans_traffic(fit)
    tree = fit.leaves * fit.neighbours * 2 * fit.e**3 / 3
    lloyd = 2 * rows * fit.e * (fit.d + leaves * fit.rank) + rows * fit.e**2
    route = 2.0 * fit.d * (fit.cells + fit.e) + 2.0 * fit.e * leaves * fit.rank
    return [
        Stage("manifest", {"listing": corpus.shards / rates.listing}),
        Stage(
            "embed",
            {
                "encoders": n / (workers * rates.encode),
                "decoding": n / (cores * rates.decode),
                "network": n * corpus.image_bytes / (pool.machines * pool.network),
                "handing out tasks": (2 * corpus.shards + n / block_images) / rates.tasks,
                "store": n * (2 * fit.d + ROW_BYTES) / store,
            },
        ),
        Stage("select", {"store": (moved + n * ROW_BYTES) / store}),
        Stage(
            "seed",
            {
                "products": KMEANS_PASSES * 2 * rows * fit.d * (fit.cells + leaves)
                / (min(workers, fit.blocks) * rates.flops),
                "coordinator": 2 * KMEANS_PASSES
                * (messages / rates.messages + answer / rates.adding),
            },
        ),
        Stage(
            "refine",
            {
                "products": (LLOYD_PASSES * lloyd + fit.cells * HEAD_FLOPS)
                / (min(workers, fit.cells) * rates.flops),
            },
        ),
        Stage("count", {"coordinator": tree / rates.factor_flops}),
        Stage("caption", {"products": 2 * rows * route / (workers * rates.flops)}),
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
