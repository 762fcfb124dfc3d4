"""Class balance and downstream accuracy of samples of real CLIP vectors; growth; time and memory.

    python tests/benchmarks/sample.py [--quick] --json FILE

Each corpus is made long-tailed, clustered by the whole job, and sampled at equal size by every
method. *kl*: nats from the sample's classes to uniform. *probe*: mean per-class accuracy on
held-out rows of a linear classifier trained on the sample. *persists*: share of a sample that is in
one of the same size after an increment of 10 %. Labels only score. Needs the folder of real vectors
(RRCLUSTER_TEST_DATA, or shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clip_like import vectors_folder
from resident import forget_peak, resident
from sklearn.linear_model import LogisticRegression

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.core.sample import Levels, SampleSpec, allocate
from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.stages.recluster import recluster
from rrcluster.stages.sample import sample

METHODS = ("hierarchical", "flat", "random")
CASES = {
    "union": ("food10", "oxford_pets", "dtd", "caltech101"),
    "caltech101": ("caltech101",),
    "oxford_pets": ("oxford_pets",),
}
SHARE = (1.0, 0.5, 0.25, 0.12)  # of the sets of a union: one is dense, one is rare
HELD_OUT = 5  # rows of each class that no corpus holds
GROWTH = 1.1
SYNTHETIC_SHARD = 250_000  # rows of a shard in the selection's case
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, y, held-out x, held-out y


def long_tailed(folder: Path, names: tuple[str, ...], seed: int) -> Data:
    """Rows of the sets, classes cut to sizes that fall as 1/rank, and held-out rows."""
    rng = np.random.default_rng(seed)
    parts, first = [], 0
    for share, name in zip(SHARE, names, strict=False):
        found = np.load(folder / f"image_{name}.npz", allow_pickle=False)
        x, y = found["x"].astype(np.float32), np.unique(found["y"], return_inverse=True)[1]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        for rank, c in enumerate(rng.permutation(y.max() + 1)):
            rows = rng.permutation(np.flatnonzero(y == c))
            held, rest = rows[:HELD_OUT], rows[HELD_OUT:]
            rest = rest[: max(int(len(rest) * share / (1 + rank / 8)), 2)]
            parts.append(
                (x[rest], np.full(len(rest), first + c), x[held], np.full(len(held), first + c))
            )
        first += int(y.max()) + 1
    x, y, hx, hy = (np.concatenate([p[i] for p in parts]) for i in range(4))
    order = rng.permutation(len(x))
    return x[order], y[order], hx, hy


class Run:
    """A clustered corpus of two shards, of which the second comes with ``grow``."""

    def __init__(self, x: np.ndarray, folder: Path, k: list[int], seed: int) -> None:
        self.cut = round(len(x) / GROWTH)
        self.x, self.folder, self.seed = x.astype(np.float16), folder, seed
        (folder / "corpus").mkdir()
        np.save(folder / "corpus/0.npy", self.x[: self.cut])
        cluster(
            load([
                f"corpus.uri={folder}/corpus", "corpus.format=embeddings", f"run_dir={folder}/run",
                f"k={k}", f"seed={seed}", "compute=in_process",
            ]),
            silent,
        )  # fmt: skip
        self.store = Store(f"{folder}/run")

    def grow(self) -> None:
        np.save(self.folder / "corpus/1.npy", self.x[self.cut :])
        config = load([f"run_dir={self.store.uri}", "compute=in_process", "recluster.refit=never"])
        recluster(config, lambda: InProcessCompute(2), silent)

    def sample(self, size: int, method: str, name: str) -> np.ndarray:
        """Positions in ``x``."""
        wanted = load([
            f"run_dir={self.store.uri}", f"sample.name={name}", f"sample.size={size}",
            f"sample.method={method}", f"seed={self.seed}", "compute=in_process",
        ])  # fmt: skip
        with InProcessCompute(2) as compute:
            sample(wanted, self.store, compute, silent)
        table = pq.read_table(f"{self.store.uri}/sample/{name}/weights.parquet")
        return table["row"].to_numpy() + self.cut * table["shard"].to_numpy()


def kl_to_uniform(y: np.ndarray, classes: int) -> float:
    share = np.bincount(y, minlength=classes) / len(y)
    positive = share[share > 0]
    return float((positive * np.log(positive * classes)).sum())


def probe(x: np.ndarray, y: np.ndarray, hx: np.ndarray, hy: np.ndarray) -> float:
    found = LogisticRegression(C=10.0, max_iter=200).fit(x, y).predict(hx) == hy
    return float(np.mean([found[hy == c].mean() for c in np.unique(hy)]))


def balance_cases(quick: bool) -> Iterator[dict[str, Any]]:
    for case in ("union",) if quick else CASES:
        for seed in range(1 if quick else 3):
            x, y, hx, hy = long_tailed(vectors_folder(), CASES[case], seed)
            classes = len(np.unique(y))
            k = [max(2 * classes // 3, 2), 2 * classes]
            with TemporaryDirectory() as folder:
                run = Run(x, Path(folder), k, seed)
                size = run.cut // 4
                params = {"n": len(x), "classes": classes, "size": size, "k": k, "seed": seed}
                before = {}
                for method in METHODS:
                    rows = before[method] = run.sample(size, method, method)
                    kl = kl_to_uniform(y[rows], classes)
                    yield row(f"{method} sample", case, "kl", kl, params, "nats")
                    right = probe(x[rows], y[rows], hx, hy)
                    yield row(f"{method} sample", case, "probe", right, params, "0..1")
                run.grow()
                for method in METHODS:
                    after = run.sample(size, method, f"{method}-after")
                    kept = len(np.intersect1d(before[method], after)) / size
                    yield row(f"{method} sample", case, "persists", kept, params, "0..1")


def allocation_case(quick: bool) -> Iterator[dict[str, Any]]:
    """CPU seconds to allocate a budget over a four-level tree, on one thread."""
    leaves = 1_000_000 if quick else 10_000_000
    rng = np.random.default_rng(0)
    counts = (50, 5_000, 500_000, leaves)
    above = (1, *counts[:-1])
    ids = tuple(np.arange(n) for n in counts)
    parent = tuple(np.sort(rng.integers(0, p, n)) for p, n in zip(above, counts, strict=True))
    sizes = (rng.pareto(1.1, leaves) * 20 + 1).astype(np.int64)
    for method in ("hierarchical", "flat", "proportional"):
        started = time.process_time()
        spec = SampleSpec(size=10 * leaves, method=method)  # type: ignore[arg-type]
        assert allocate(Levels(ids, parent), sizes, spec, 0).total == 10 * leaves
        seconds = time.process_time() - started
        yield row(
            "rrcluster", f"allocation, {method}", "CPU time", seconds, {"leaves": leaves}, "s"
        )


def selection_cases(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows a second and peak memory of a tenth drawn from n rows, each n in its own process."""
    for n in (500_000, 1_000_000) if quick else (2_000_000, 8_000_000):
        with TemporaryDirectory() as folder:
            made = [sys.executable, __file__, "--select", f"{folder}/run", str(n)]
            told = json.loads(subprocess.run(made, check=True, capture_output=True).stdout)
        params = {"n": n, "size": n // 10, "clusters": 1000, "workers": 1}
        yield row("rrcluster", f"selection of {n:,}", "rate", n / told["seconds"], params, "rows/s")
        yield row(
            "rrcluster", f"selection of {n:,}", "memory above imports", told["grown"], params, "MB"
        )


def select_alone(run_dir: str, n: int) -> None:
    """The child process: a run of n drawn rows without images, sampled; prints what it took."""
    store, clusters = Store(run_dir), 1000
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, clusters + 1)
    sizes = np.zeros(clusters, np.int64)
    shards = -(-n // SYNTHETIC_SHARD)
    found = []
    for shard in range(shards):
        rows = min(SYNTHETIC_SHARD, n - shard * SYNTHETIC_SHARD)
        leaf = rng.choice(clusters, rows, p=share / share.sum())
        sizes += np.bincount(leaf, minlength=clusters)
        ids = pa.FixedSizeBinaryArray.from_buffers(
            tables.SAMPLE_ID, rows, [None, pa.py_buffer(rng.bytes(16 * rows))]
        )
        nothing = pa.nulls(rows, pa.string())
        columns = {
            "sample_id": ids, "shard": np.full(rows, shard, np.int32),
            "row": np.arange(rows, dtype=np.int32),
            "key": pa.array(np.arange(rows)).cast(pa.string()),
            "caption": nothing,
        }  # fmt: skip
        pixels = {"width": np.zeros(rows, np.int32), "height": np.zeros(rows, np.int32)}
        table = pa.table(columns | pixels, schema=tables.SAMPLES)
        tables.write_table(store, f"samples/{shard:06d}.parquet", "samples", table)
        scores = {"confidence": np.ones(rows, np.float32), "outlier": np.zeros(rows, np.float32)}
        level = {"level_0": leaf.astype(np.int64)}
        schema = tables.assignments_schema(1)
        table = pa.table(columns | level | scores | {"cluster_caption": nothing}, schema=schema)
        tables.write_table(
            store, f"assignments/increment=00000/{shard:06d}.parquet", "assignments", table
        )
        found.append(
            {
                "shard": shard,
                "uri": f"/{shard}.tar",
                "format": "webdataset",
                "num_bytes": 1,
                "etag": "",
            }
        )
    tables.write_table(
        store, "manifest/increment=00000.parquet", "manifest", tables.table_of("manifest", found)
    )
    rows = [
        {"cluster_id": c, "level": 0, "parent_id": None, "size": int(sizes[c]), "coding_rate": 1.0,
         "radius": 1.0, "captions": [], "exemplars": [], "since_increment": 0}
        for c in range(clusters)
    ]  # fmt: skip
    tables.write_table(
        store, "clusters/level=0.parquet", "clusters", tables.table_of("clusters", rows)
    )
    config = load([f"run_dir={run_dir}", "sample.name=v", f"sample.size={n // 10}"])
    del table, columns, scores, ids, leaf
    pa.default_memory_pool().release_unused()
    before = resident()
    forget_peak()
    started = time.perf_counter()
    with InProcessCompute(1) as compute:
        sample(config, store, compute, silent)
    told = {"seconds": time.perf_counter() - started, "grown": (resident("VmHWM") - before) / 2**20}
    print(json.dumps(told))


def row(
    system: str, case: str, metric: str, value: float, params: dict[str, Any], unit: str
) -> dict[str, Any]:
    return {
        "bench": "sample", "system": system.replace("hierarchical sample", "rrcluster"),
        "case": case, "metric": metric, "value": round(float(value), 4), "unit": unit,
        "params": params,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of the union, smaller trees")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--select", nargs=2, metavar=("RUN_DIR", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.select:
        select_alone(options.select[0], int(options.select[1]))
        return
    if not options.json:
        parser.error("name a file for the figures: --json FILE")
    rows: list[dict[str, Any]] = []
    for part in (allocation_case, selection_cases, balance_cases):
        for found in part(options.quick):
            rows.append(found)
            figure = f"{found['value']:12.4f} {found['unit']}"
            print(f"{found['case']:28s} {found['metric']:22s} {found['system']:16s} {figure}")
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    for case, metric, system in sorted({(r["case"], r["metric"], r["system"]) for r in rows}):
        values = [
            r["value"]
            for r in rows
            if (r["case"], r["metric"], r["system"]) == (case, metric, system)
        ]
        print(
            f"mean of {len(values)}: {case:28s} {metric:22s} {system:16s} {np.mean(values):12.4f}"
        )


if __name__ == "__main__":
    main()
