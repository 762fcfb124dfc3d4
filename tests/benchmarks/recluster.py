"""Increments on real CLIP vectors: quality, forgetting, ids, and what an increment reads.

    python tests/benchmarks/recluster.py [--quick] --json FILE

A fifth of the classes is held out of the first run. Their rows, with a third of the other classes'
rows, come later, in 1, 5 or 20 increments of shuffled shards, without a refit and with one at the
last. The run on everything is the yardstick. Labels only score. Needs the folder of real vectors
(RRCLUSTER_TEST_DATA, or shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from clip_like import vectors_folder

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.report.metrics import accuracy, ari, contingency, nmi
from rrcluster.stages.recluster import recluster

SETS, QUICK = ("food10", "oxford_pets", "dtd", "caltech101"), ("food10", "dtd")
SHARDS = 20  # files that the later rows come in
LATER = 1 / 3  # of the rows of the first classes


def rows_of(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = np.load(folder / f"image_{name}.npz", allow_pickle=False)
    x = found["x"].astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float16), np.unique(found["y"], return_inverse=True)[1]


class Corpus:
    """A folder of ``.npy`` shards that grows; labels are found again by (shard, row)."""

    def __init__(self, folder: Path, run_dir: Path, k: int) -> None:
        self.folder, self.run_dir, self.k = folder, run_dir, k
        self.labels: list[np.ndarray] = []
        folder.mkdir()

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        np.save(self.folder / f"{len(self.labels):05d}.npy", x)
        self.labels.append(y)

    def settings(self, *more: str) -> list[str]:
        return [f"run_dir={self.run_dir}", "compute=in_process", *more]

    def cluster(self) -> None:
        wanted = ("corpus.format=embeddings", f"corpus.uri={self.folder}", f"k={self.k}")
        cluster(load(self.settings(*wanted)), silent)

    def recluster(self, refit: str) -> dict[str, Any]:
        config = load(self.settings(f"recluster.refit={refit}"))
        return recluster(config, lambda: InProcessCompute(), silent).facts

    def assigned(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(labels, finest ids, shards) of all rows, as they are now."""
        now = current(Store(str(self.run_dir)))
        finest = f"level_{now.levels - 1}"
        table = pa.concat_tables(now.batches(["shard", "row", finest]))
        shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
        y = np.array([self.labels[s][r] for s, r in zip(shard, row, strict=True)])
        return y, table[finest].to_numpy(), shard


def scores(y: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    table = contingency(y, ids)
    return {"acc": accuracy(table), "nmi": nmi(table), "ari": ari(table)}


def measure(folder: Path, name: str, increments: tuple[int, ...], seed: int) -> Iterator[dict]:
    x, y = rows_of(folder, name)
    k = int(y.max()) + 1
    choice = np.random.default_rng(seed)
    held_out = choice.permutation(k)[: max(1, k // 5)]
    late = np.isin(y, held_out) | (choice.random(len(y)) < LATER)
    order = choice.permutation(np.flatnonzero(late))
    first = np.flatnonzero(~late)

    def row(case: str, metric: str, value: float, unit: str, **params: Any) -> dict[str, Any]:
        return {
            "bench": "recluster", "system": "rrcluster", "case": f"{name}, {case}",
            "metric": metric, "value": round(float(value), 4), "unit": unit,
            "params": {"n": len(x), "k": k, "held_out": len(held_out), "seed": seed, **params},
        }  # fmt: skip

    with TemporaryDirectory() as scratch:
        whole = Corpus(Path(scratch, "whole"), Path(scratch, "whole-run"), k)
        whole.add(x, y)
        whole.cluster()
        labels, ids, _ = whole.assigned()
        for metric, value in scores(labels, ids).items():
            yield row("one run on everything", metric, value, "0..1")
        for parts in increments:
            case = f"{parts} increments"
            corpus = Corpus(Path(scratch, f"c{parts}"), Path(scratch, f"r{parts}"), k)
            corpus.add(x[first], y[first])
            corpus.cluster()
            labels, before, _ = corpus.assigned()
            old = ~np.isin(labels, held_out)
            yield row(case, "old classes, acc", scores(labels[old], before[old])["acc"], "0..1",
                      increment=0)  # fmt: skip
            pieces = np.array_split(order, SHARDS)
            for number, group in enumerate(np.array_split(np.arange(SHARDS), parts), 1):
                for piece in group:
                    corpus.add(x[pieces[piece]], y[pieces[piece]])
                facts = corpus.recluster("never")
                new = sum(len(pieces[piece]) for piece in group)
                yield row(case, "rows read over new rows", facts["rows"] / new, "ratio",
                          increment=number)  # fmt: skip
                labels, ids, _ = corpus.assigned()
                old = ~np.isin(labels, held_out)
                yield row(case, "old classes, acc", scores(labels[old], ids[old])["acc"], "0..1",
                          increment=number)  # fmt: skip
            for metric, value in scores(labels, ids).items():
                yield row(f"{case}, no refit", metric, value, "0..1")
            yield row(case, "refit asked for", bool(facts["reasons"]), "0/1")
            was = ids
            facts = corpus.recluster("always")
            labels, ids, _ = corpus.assigned()
            for metric, value in scores(labels, ids).items():
                yield row(f"{case}, refit", metric, value, "0..1")
            kept = ~np.isin(labels, held_out)
            changed = float((was[kept] != ids[kept]).mean())
            yield row(f"{case}, refit", "rows of old classes with another id", changed, "0..1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sets, one increment and five")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    increments = (1, 5) if options.quick else (1, 5, 20)
    rows = []
    for name in QUICK if options.quick else SETS:
        for found in measure(vectors_folder(), name, increments, 0):
            rows.append(found)
            print(f"{found['case']:40s} {found['metric']:36s} {found['value']:8.3f}", flush=True)
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
