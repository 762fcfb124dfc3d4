"""dry_run: list the shards, probe a few, and say what the job would take."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from rrcluster.config import ComputeSpec, Config
from rrcluster.io.images import probe_shard, read_shard
from rrcluster.io.manifest import list_shards
from rrcluster.io.tables import in_parquet, table_of
from rrcluster.io.vectors import read_vectors, vector_width
from rrcluster.models.encoder import Encoder
from rrcluster.models.load import load_encoder, load_text_tower, text_needs_model
from rrcluster.records import Sample, Shard
from rrcluster.stages.embed import pixel_spec
from rrcluster.stages.seed import leaves_wanted
from rrcluster.stages.texts import candidates

PROBED_SHARDS = 4  # spread over the corpus
PROBED_IMAGES = 1000  # of each
TIMED_IMAGES = 200  # of each: read and decoded, and their rows put into a table
TIMED_BATCHES = 3
# Beside what samples/ takes, measured: confidence, outlier and levels of a row in assignments/;
# the footers of a shard's tables; examples and names of a seeded leaf.
SCORE_BYTES, SHARD_BYTES, LEAF_BYTES = 10, 8500, 1200


@dataclass(frozen=True)
class Estimate:
    """What a job would read, do and write. Rates are of one core, or of one GPU for ``encode``."""

    shards: int
    num_bytes: int
    images: float
    probed: int
    width: int
    storage: float  # bytes in run_dir, without the report
    decode: float | None = None  # images/s
    encode: float | None = None  # images/s

    def seconds_here(self, spec: ComputeSpec) -> float:
        """Seconds of embedding on this machine: those of its slowest part, encoders, readers, or
        the cores that both share."""
        if self.decode is None or self.encode is None:
            return 0.0
        cores = os.cpu_count() or 1
        readers = spec.workers or cores
        encoders = 1 if spec.backend == "in_process" and spec.gpus_per_worker else readers
        on_cores = 1 / self.decode + (0 if spec.gpus_per_worker else 1 / self.encode)
        return self.images * max(
            1 / (encoders * self.encode), 1 / (readers * self.decode), on_cores / cores
        )


def estimate_job(config: Config, console: Console) -> None:
    """Print estimated images, bytes, encoder hours and storage."""
    found = estimate(config)
    table = Table(title="estimate, nothing was written", show_header=False)
    table.add_row("shards", f"{found.shards:,}")
    table.add_row("bytes", f"{found.num_bytes / 1e9:,.3f} GB")
    if found.encode is None or found.decode is None:
        table.add_row("vectors", f"{found.images:,.0f} of width {found.width}")
    else:
        table.add_row("images", f"{found.images:,.0f}, from {found.probed:,} probed")
        gpus = config.compute.gpus_per_worker > 0
        of = "one GPU" if gpus else "one core"
        table.add_row("encoder", f"{found.encode:,.0f} images/s of {of}, timed on this machine")
        table.add_row("decoding", f"{found.decode:,.0f} images/s of one core")
        if gpus:
            hours = found.images / found.encode / 3600
            table.add_row("GPU-hours", f"{hours:,.2f} for embedding")
            table.add_row("cores per GPU", f"{found.encode / found.decode:,.1f} to decode for it")
        else:
            hours = found.images * (1 / found.encode + 1 / found.decode) / 3600
            table.add_row("core-hours", f"{hours:,.3f} for embedding")
        if config.compute.address is None:
            seconds = found.seconds_here(config.compute)
            table.add_row("embedding here", f"{seconds:,.0f} s, after the start")
    table.add_row("storage", f"{found.storage / 1e9:,.3f} GB in run_dir, and the report")
    console.print(table)


def estimate(config: Config) -> Estimate:
    """List the corpus, probe some shards, time decoding and the encoder."""
    shards = list_shards(config.corpus)
    total = sum(s.num_bytes for s in shards)
    picks = np.unique(np.linspace(0, len(shards) - 1, PROBED_SHARDS).astype(int))
    probed = [shards[i] for i in picks]
    rates: dict[str, float] = {}
    if shards[0].format == "embeddings":
        width = vector_width(shards[0], config.corpus)
        vectors = [read_vectors(shard, config.corpus) for shard in probed]
        seen = [(v.read, s.num_bytes) for v, s in zip(vectors, probed, strict=True)]
        samples = vectors[0].samples
    else:
        seen = [_probe(shard, config) for shard in probed]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as every worker
        encoder = load_encoder(config.encoder, "cuda" if config.compute.gpus_per_worker else "cpu")
        cores = os.cpu_count() or 1
        side_by_side = min(config.compute.workers or cores, cores)
        with ThreadPoolExecutor(
            side_by_side, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            gpu = config.compute.gpus_per_worker > 0
            rates["encode"] = _encode_rate(encoder, config, pool, 1 if gpu else side_by_side)
            rates["decode"], samples = _decode(probed, config, pool, side_by_side)
        torch.set_num_threads(threads)
        width = encoder.width
    rows = sum(n for n, _ in seen) / max(sum(b for _, b in seen), 1) * total
    storage = _storage(config, round(rows), len(shards), width, _row_bytes(samples))
    return Estimate(
        len(shards), total, rows, sum(n for n, _ in seen), width, storage, **rates
    )  # fmt: skip


def _probe(shard: Shard, config: Config) -> tuple[int, int]:
    """(images, bytes) of the shard, or of its first images."""
    probe = probe_shard(shard, config.corpus, PROBED_IMAGES)
    return probe["images"], shard.num_bytes if probe["shard_complete"] else probe["bytes"]


def _storage(config: Config, rows: int, shards: int, width: int, row_bytes: float) -> float:
    """Bytes of the run folder: what every row has, what the fit keeps, what a leaf takes."""
    spec, fit = config.seeding, max(min(rows, config.seeding.fit_rows), 1)
    leaves = leaves_wanted(config.k, fit, spec)
    cells = -(-leaves // spec.cell_leaves)
    e = min(config.refine.width, width)
    cell = 4 * e * (width + 2 * config.refine.hidden)  # basis and head of its features
    leaf = 4 * (e * config.refine.rank + 2 * width) + LEAF_BYTES  # its code, its centroid twice
    return (
        rows * (2 * width + 2 * row_bytes + SCORE_BYTES) + shards * SHARD_BYTES
        + fit * ((1 if cells == 1 else 2) * 2 * width + 32)  # of several cells once more, by cell
        + cells * cell + leaves * leaf + _texts(config) * 4 * width
    )  # fmt: skip


def _texts(config: Config) -> int:
    """Candidate texts whose vectors the run keeps, phrases of the corpus not counted."""
    if text_needs_model(config.encoder):
        return len(candidates(config))
    tower = load_text_tower(config.encoder, "cpu")
    return len(tower.fixed or ()) if tower is not None else 0


def _row_bytes(samples: pa.Table) -> float:
    """What a row takes in ``samples/``, beside the table's footer."""
    footer = len(in_parquet("samples", samples.slice(0, 0)))
    return (len(in_parquet("samples", samples)) - footer) / max(len(samples), 1)


def _decode(
    shards: Sequence[Shard], config: Config, pool: ThreadPoolExecutor, side_by_side: int
) -> tuple[float, pa.Table]:
    """Images that one core reads and decodes in a second while the others do the same, and rows of
    ``samples/`` as they come."""
    pixels = pixel_spec(config.encoder)

    def read(part: Sequence[Shard]) -> tuple[float, int, list[dict[str, Any]]]:
        count, rows, started = 0, list[dict[str, Any]](), time.perf_counter()
        for shard in part:
            for item in islice(read_shard(shard, config.corpus, pixels), TIMED_IMAGES):
                count += 1
                if isinstance(item, Sample):
                    rows.append({k: v for k, v in vars(item).items() if k != "pixels"})
        return time.perf_counter() - started, count, rows

    parts = [part for i in range(side_by_side) if (part := shards[i::side_by_side])]
    found = list(pool.map(read, parts))
    rate = max(sum(n for _, n, _ in found), 1) / sum(seconds for seconds, _, _ in found)
    return rate, table_of("samples", [row for _, _, rows in found for row in rows])


def _encode_rate(
    encoder: Encoder, config: Config, pool: ThreadPoolExecutor, side_by_side: int
) -> float:
    """Images per second of the encoder on ready pixels, one of several on this machine: cores
    that share caches and memory are slower together than each alone."""
    blank = np.zeros((config.encoder.batch_size, *encoder.shape), np.uint8)
    batches = [blank] * side_by_side
    list(pool.map(encoder.encode_images, batches))
    started = time.perf_counter()
    list(pool.map(encoder.encode_images, TIMED_BATCHES * batches))
    return TIMED_BATCHES * len(blank) / (time.perf_counter() - started)
