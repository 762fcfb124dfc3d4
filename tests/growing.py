"""A run on vectors of concepts, each around an axis of its own, and shards added to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from job_fixtures import SMALL

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.stages.recluster import recluster

WIDTH = 24


def rows_of(concept: int, count: int, seed: int, beside: float = 0.0) -> np.ndarray:
    x = (
        np.eye(WIDTH)[concept]
        + beside * np.eye(WIDTH)[concept + 1]
        + 0.07 * np.random.default_rng(seed).normal(size=(count, WIDTH))
    )
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def grow(
    folder: Path, layout: str, *shards: np.ndarray, k: str = "[2,4]", more: tuple[str, ...] = ()
) -> dict:
    number = len(list((folder / "corpus").glob("*.npy")))
    for i, x in enumerate(shards, number):
        np.save(folder / "corpus" / f"{i}.npy", x)
    settings = [f"run_dir={folder / 'run'}", "compute=in_process", "recluster.refit=never"]
    if number == 0:
        made = ["corpus.format=embeddings", f"corpus.uri={folder / 'corpus'}", f"k={k}", *SMALL]
        texts = folder / "texts.npz"
        names = [f"concept {i}" for i in range(WIDTH)]
        np.savez(texts, x=np.eye(WIDTH, dtype=np.float32), name=np.array(names))
        made += [f"encoder.text={texts}"]
        made += ["refine.rounds=0", "recluster.novelty_rows=12", f"write.partition_by={layout}"]
        cluster(load([*settings[:2], *made, *more]), silent)
        return {}
    return recluster(load(settings), lambda: InProcessCompute(), silent).facts


def everything(folder: Path) -> list[dict]:
    now = current(Store(str(folder / "run")))
    columns = ["shard", "row", "level_0", "level_1", "confidence", "outlier"]
    found = pa.concat_tables(now.batches(columns)).to_pylist()
    return sorted(found, key=lambda r: (r["shard"], r["row"]))
