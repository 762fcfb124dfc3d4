"""dry_run: list the shards, probe a few, and say what the job would take."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.table import Table

from rrcluster.config import Config
from rrcluster.io.images import probe_shard
from rrcluster.io.manifest import list_shards
from rrcluster.io.vectors import read_vectors, vector_width
from rrcluster.models.load import load_encoder

PROBED_SHARDS = 4  # spread over the corpus
PROBED_IMAGES = 1000  # of each; a small shard is then read whole and its tar overhead known
TIMED_BATCHES = 3


def estimate_job(config: Config, console: Console) -> None:
    """Print estimated images, bytes, encoder hours and storage."""
    shards = list_shards(config.corpus)
    total_bytes = sum(s.num_bytes for s in shards)
    picks = np.unique(np.linspace(0, len(shards) - 1, PROBED_SHARDS).astype(int))
    table = Table(title="estimate, nothing was written", show_header=False)
    table.add_row("shards", f"{len(shards):,}")
    table.add_row("bytes", f"{total_bytes / 1e9:,.3f} GB")
    if shards[0].format == "embeddings":
        width = vector_width(shards[0], config.corpus)
        seen = [(read_vectors(shards[i], config.corpus).read, shards[i].num_bytes) for i in picks]
        rows = sum(n for n, _ in seen) / max(sum(b for _, b in seen), 1) * total_bytes
        table.add_row("vectors", f"{rows:,.0f} of width {width}")
    else:
        seen = []
        for i in picks:
            probe = probe_shard(shards[i], config.corpus, PROBED_IMAGES)
            size = shards[i].num_bytes if probe["shard_complete"] else probe["bytes"]
            seen.append((probe["images"], size))
        rows = sum(n for n, _ in seen) / max(sum(b for _, b in seen), 1) * total_bytes
        width, rate = _encoder_rate(config)
        table.add_row("images", f"{rows:,.0f}, from {sum(n for n, _ in seen):,} probed")
        table.add_row("encoder", f"{rate:,.0f} images/s for one worker, timed on this machine")
        kind = "GPU-hours" if config.compute.gpus_per_worker else "worker-hours"
        table.add_row(kind, f"{rows / rate / 3600:,.2f} for embedding, decoding beside it")
    fit = min(rows, config.seeding.fit_rows)
    storage = rows * (2 * width + 150) + fit * (2 * width + 32)
    table.add_row("storage", f"{storage / 1e9:,.3f} GB in run_dir")
    console.print(table)


def _encoder_rate(config: Config) -> tuple[int, float]:
    """(width, images per second) of the encoder on ready pixels."""
    device = "cuda" if config.compute.gpus_per_worker else "cpu"
    encoder = load_encoder(config.encoder, device)
    side = encoder.image_size
    blank = np.zeros((config.encoder.batch_size, side, side, 3), np.uint8)
    encoder.encode_images(blank)
    started = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        encoder.encode_images(blank)
    seconds = time.perf_counter() - started
    return encoder.width, TIMED_BATCHES * len(blank) / seconds
