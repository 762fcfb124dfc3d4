"""One fit by one system, in a process of its own, so that its time and memory are its own.

    python tests/benchmarks/seed_systems.py SYSTEM CASE.json

CASE.json: rows (a float16 .npy), k, cells (0: flat), passes, seed, threads, out (where centroids
go). Prints one JSON object: seconds and CPU seconds of the fit, the passes that were made, and the
peak of memory in bytes above what the system took before, the rows included. Systems that take
starting centroids get the first k rows, which are random ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from resident import forget_peak, resident

Fit = Callable[[Any, dict[str, Any]], tuple[np.ndarray, int]]
# The type of rows that the system wants in memory (None: the name of their file), and its fit.
Prepared = tuple[type | None, Fit]
ALL_ROWS = 1 << 30  # rows per centroid: peers fit on every row
READ = 4096  # rows at a time


def ours(in_file: bool = False, device: str = "cpu", **settings: Any) -> Prepared:
    import torch

    from rrcluster.core.hierarchy import top_down
    from rrcluster.core.kmeans import SeedingSpec
    from rrcluster.core.shards import MemoryShards
    from rrcluster.io.scratch import Scratch, share_memory

    torch.set_num_threads(1)
    share_memory()

    def fit(x: np.ndarray | str, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        passes = []
        leaves = -(-case["k"] // case["cells"]) if case["cells"] else case["k"]
        spec = SeedingSpec(cell_leaves=leaves, **settings)
        parts = map(torch.from_numpy, blocks_of(x, spec.block_rows))
        rows = Scratch(parts, 0 if in_file else sys.maxsize)
        shards = MemoryShards(rows.blocks, case["threads"], let_go=rows.let_go, device=device)
        found = top_down(shards, case["k"], spec, case["seed"], lambda *at: passes.append(at))
        return found.leaves.numpy(), len(passes)

    return (None if in_file else np.float16), fit


def on_ray() -> Prepared:
    """Ours against actors that hold the blocks; Ray's start and the loading are not timed."""
    import ray
    import torch

    from rrcluster.config import ComputeSpec
    from rrcluster.core.kmeans import SeedingSpec, fit
    from rrcluster.distributed.shards import hold

    torch.set_num_threads(1)

    def prepared(x: np.ndarray, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        passes = []
        spec = SeedingSpec()
        blocks = [
            torch.from_numpy(part)
            for part in np.split(x, range(spec.block_rows, len(x), spec.block_rows))
        ]
        ray.init(num_cpus=case["threads"], include_dashboard=False, logging_level="ERROR")
        held = ray.put(blocks)
        with hold(
            lambda b: ray.get(held)[b].clone(), len(blocks), case["threads"], ComputeSpec()
        ) as shards:
            wall, cpu = time.perf_counter(), time.process_time()
            found = fit(shards, case["k"], spec, case["seed"], (), lambda *at: passes.append(at))
            case["timed"] = time.perf_counter() - wall, time.process_time() - cpu
        ray.shutdown()
        return found.centroids.numpy(), len(passes)

    return np.float16, prepared


def faiss_kmeans() -> Prepared:
    import faiss

    def fit(x: np.ndarray, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        faiss.omp_set_num_threads(case["threads"])
        model = faiss.Kmeans(
            x.shape[1], case["k"], niter=case["passes"], seed=case["seed"],
            min_points_per_centroid=1, max_points_per_centroid=ALL_ROWS,
        )  # fmt: skip
        model.train(x, init_centroids=x[: case["k"]])
        return model.centroids, case["passes"]

    return np.float32, fit


def faiss_super() -> Prepared:
    import faiss

    def fit(x: np.ndarray, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        faiss.omp_set_num_threads(case["threads"])
        model = faiss.SuperKmeans(
            x.shape[1], case["k"], niter=case["passes"], seed=case["seed"],
            min_points_per_centroid=1, max_points_per_centroid=ALL_ROWS,
        )  # fmt: skip
        model.train(x)
        return model.centroids, len(model.obj)

    return np.float32, fit


def superkmeans() -> Prepared:
    from superkmeans import SuperKMeans

    def fit(x: np.ndarray, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        model = SuperKMeans(
            case["k"], x.shape[1], hierarchical=False, iters=case["passes"], sampling_fraction=1.0,
            max_points_per_cluster=1 << 20, n_threads=case["threads"], seed=case["seed"],
        )  # fmt: skip
        centroids = model.train(x)
        return np.asarray(centroids), len(model.iteration_stats)

    return np.float32, fit


def fastkmeans() -> Prepared:
    import torch
    from fastkmeans import FastKMeans

    def fit(x: np.ndarray, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        torch.set_num_threads(case["threads"])
        model = FastKMeans(
            x.shape[1], case["k"], niter=case["passes"], seed=case["seed"], gpu=False
        )
        model.train(x)
        return model.centroids, case["passes"]

    return np.float32, fit


def sklearn_kmeans() -> Prepared:
    from sklearn.cluster import KMeans

    def fit(x: np.ndarray, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        model = KMeans(case["k"], init=x[: case["k"]], n_init=1, max_iter=case["passes"], tol=0.0)
        model.fit(x)
        return model.cluster_centers_, model.n_iter_

    return np.float32, fit


def sklearn_minibatch() -> Prepared:
    from sklearn.cluster import MiniBatchKMeans

    def fit(x: np.ndarray, case: dict[str, Any]) -> tuple[np.ndarray, int]:
        k = case["k"]
        model = MiniBatchKMeans(
            k, init=x[:k], n_init=1, batch_size=max(4096, k), random_state=case["seed"],
            max_iter=case["passes"], max_no_improvement=None,
        )  # fmt: skip
        model.fit(x)
        return model.cluster_centers_, model.n_iter_

    return np.float32, fit


SYSTEMS: dict[str, Callable[[], Prepared]] = {
    "rrcluster": ours,
    "rrcluster, rows in a file": lambda: ours(in_file=True),
    "rrcluster, short": lambda: ours(
        epochs=1.0, iterations=1, start_rounds=16, start_rows=4, min_steps=40
    ),
    "rrcluster on a GPU": lambda: ours(device="cuda"),
    "rrcluster on Ray": on_ray,
    "faiss.Kmeans": faiss_kmeans,
    "faiss.SuperKMeans": faiss_super,
    "superkmeans": superkmeans,
    "fastkmeans": fastkmeans,
    "scikit-learn KMeans": sklearn_kmeans,
    "scikit-learn MiniBatchKMeans": sklearn_minibatch,
}


def rows_of(path: str, kind: type) -> np.ndarray:
    """Stored float16 rows as the system wants them, read in pieces: no second copy beside them."""
    x = np.empty(np.load(path, mmap_mode="r", allow_pickle=False).shape, kind)
    for part, read in zip(blocks_of(x, READ), blocks_of(path, READ), strict=True):
        part[:] = read
    return x


def blocks_of(x: np.ndarray | str, rows: int) -> Iterator[np.ndarray]:
    """Parts of so many rows, of an array or of the file of one, which is read in turn."""
    if not isinstance(x, str):
        yield from (x[start : start + rows] for start in range(0, len(x), rows))
        return
    with open(x, "rb") as file:
        np.lib.format.read_magic(file)
        (n, d), _, dtype = np.lib.format.read_array_header_1_0(file)
        for start in range(0, n, rows):
            yield np.fromfile(file, dtype, min(rows, n - start) * d).reshape(-1, d)


def warm_up(fit: Fit, kind: type | None, case: dict[str, Any]) -> None:
    """A fit of few rows: libraries load their kernels and start their threads."""
    few = np.random.default_rng(0).standard_normal((2048, case["d"])).astype(kind or np.float16)
    fit(few, case | {"k": 64, "cells": 0, "passes": 1})
    forget_peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=list(SYSTEMS))
    parser.add_argument("case")
    options = parser.parse_args()
    case = json.loads(Path(options.case).read_text())
    kind, fit = SYSTEMS[options.system]()
    if options.system != "rrcluster on Ray":
        warm_up(fit, kind, case)
    before = resident()
    x = rows_of(case["rows"], kind) if kind else case["rows"]
    wall, cpu = time.perf_counter(), time.process_time()
    centroids, passes = fit(x, case)
    wall, cpu = case.get("timed") or (time.perf_counter() - wall, time.process_time() - cpu)
    peak_bytes = resident("VmHWM") - before
    np.save(case["out"], centroids)
    print(json.dumps({"seconds": wall, "cpu": cpu, "passes": passes, "peak": peak_bytes}))


if __name__ == "__main__":
    main()
