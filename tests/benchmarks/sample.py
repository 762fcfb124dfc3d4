"""Class balance, downstream accuracy of samples of real CLIP vectors, and time to allocate.

    python tests/benchmarks/sample.py [--quick] --json FILE

Each corpus is made long-tailed, clustered by the whole job with its defaults, and sampled at equal
size by every method. *kl*: nats from the sample's classes to uniform. *probe*: mean per-class
accuracy on held-out rows of a linear classifier trained on the sample. Labels only score.
Needs the folder of real vectors (RRCLUSTER_TEST_DATA, or shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load as load_settings
from rrcluster.core.sample import Levels, SampleSpec, allocate
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.stages.sample import sample

METHODS = ("hierarchical", "flat", "random")
SINGLE = ("caltech101", "sun397", "oxford_pets")
UNION = ("food10", "oxford_pets", "dtd", "caltech101")
HELD_OUT = 5  # rows of each class that no corpus holds
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, y, held-out x, held-out y


def long_tailed(folder: Path, names: tuple[str, ...], seed: int) -> Data:
    """Rows of the sets, classes cut to sizes that fall as 1/rank, and held-out rows."""
    rng = np.random.default_rng(seed)
    parts, first = [], 0
    for scale, name in zip((1.0, 0.5, 0.25, 0.12), names, strict=False):
        found = np.load(folder / f"image_{name}.npz", allow_pickle=False)
        x, y = found["x"].astype(np.float32), np.unique(found["y"], return_inverse=True)[1]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        classes = rng.permutation(y.max() + 1)
        for rank, c in enumerate(classes):
            rows = rng.permutation(np.flatnonzero(y == c))
            held, rest = rows[:HELD_OUT], rows[HELD_OUT:]
            keep = max(int(len(rest) * max(scale, 0.12) / (1 + rank / 8)), 2)
            parts.append((x[rest[:keep]], np.full(min(keep, len(rest)), first + c),
                          x[held], np.full(len(held), first + c)))  # fmt: skip
        first += int(y.max()) + 1
    x, y, hx, hy = (np.concatenate([p[i] for p in parts]) for i in range(4))
    order = rng.permutation(len(x))
    return x[order], y[order], hx, hy


def clustered(x: np.ndarray, folder: Path, seed: int, k: str) -> Store:
    (folder / "corpus").mkdir()
    np.save(folder / "corpus/vectors.npy", x.astype(np.float16))
    cluster(
        load_settings([
            f"corpus.uri={folder}/corpus", "corpus.format=embeddings", f"run_dir={folder}/run",
            f"k={k}", f"seed={seed}", "compute=in_process",
        ]),
        silent,
    )  # fmt: skip
    return Store(f"{folder}/run")


def drawn(store: Store, size: int, method: str, seed: int, compute: InProcessCompute) -> np.ndarray:
    """Input rows of the sample."""
    name = f"{method}-{size}"
    settings = load_settings([
        f"run_dir={store.uri}", f"sample.name={name}", f"sample.size={size}", f"seed={seed}",
        f"sample.method={method}", "compute=in_process",
    ])  # fmt: skip
    sample(settings, store, compute, silent)
    table = pq.read_table(f"{store.uri}/sample/{name}/weights.parquet")
    return table["row"].to_numpy()


def kl_to_uniform(y: np.ndarray, classes: int) -> float:
    share = np.bincount(y, minlength=classes) / len(y)
    positive = share[share > 0]
    return float((positive * np.log(positive * classes)).sum())


def probe(x: np.ndarray, y: np.ndarray, hx: np.ndarray, hy: np.ndarray) -> float:
    found = LogisticRegression(C=10.0, max_iter=200).fit(x, y).predict(hx) == hy
    return float(np.mean([found[hy == c].mean() for c in np.unique(hy)]))


def allocation(leaves: int) -> float:
    """Seconds to allocate a budget over a four-level tree, on one thread."""
    rng = np.random.default_rng(0)
    counts = (50, 5_000, 500_000, leaves)
    ids = tuple(np.arange(n) for n in counts)
    above = (1, *counts[:-1])
    parent = tuple(np.sort(rng.integers(0, p, n)) for p, n in zip(above, counts, strict=True))
    sizes = (rng.pareto(1.1, leaves) * 20 + 1).astype(np.int64)
    started = time.perf_counter()
    found = allocate(Levels(ids, parent), sizes, SampleSpec(size=10 * leaves), 0)
    assert found.total == 10 * leaves
    return time.perf_counter() - started


def measure(folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    leaves = 1_000_000 if quick else 10_000_000
    yield row("rrcluster", "allocation", "seconds", allocation(leaves), {"leaves": leaves}, "s")
    cases = {name: (name,) for name in (SINGLE[:1] if quick else SINGLE)} | {"union": UNION}
    for case, names in cases.items():
        for seed in range(1 if quick else 3):
            x, y, hx, hy = long_tailed(folder, names, seed)
            classes, size = len(np.unique(y)), len(x) // 4
            with TemporaryDirectory() as at, InProcessCompute(2) as compute:
                k = f"[{max(len(names), 2) * 4},{classes * 2}]"
                store = clustered(x, Path(at), seed, k)
                params = {"n": len(x), "classes": classes, "size": size, "k": k, "seed": seed}
                for method in METHODS:
                    rows = drawn(store, size, method, seed, compute)
                    kl = kl_to_uniform(y[rows], classes)
                    yield row(method, case, "kl", kl, params, "nats")
                    accuracy = probe(x[rows], y[rows], hx, hy)
                    yield row(method, case, "probe", accuracy, params, "0..1")


def row(
    method: str, case: str, metric: str, value: float, params: dict[str, Any], unit: str
) -> dict[str, Any]:
    system = "rrcluster" if method in ("hierarchical", "rrcluster") else f"{method} sample"
    return {
        "bench": "sample", "system": system, "case": case, "metric": metric,
        "value": round(float(value), 4), "unit": unit, "params": params,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, one set and the union")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RRCLUSTER_TEST_DATA") or beside) / "vectors"
    if not folder.is_dir():
        raise SystemExit(f"no real vectors in {folder}; set RRCLUSTER_TEST_DATA")
    rows = list(measure(folder, options.quick))
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    for found in sorted({(r["case"], r["metric"], r["system"]) for r in rows}):
        values = [r["value"] for r in rows if (r["case"], r["metric"], r["system"]) == found]
        print(f"{found[0]:12s} {found[1]:8s} {found[2]:20s} {np.mean(values):.4f}")


if __name__ == "__main__":
    main()
