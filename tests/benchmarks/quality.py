"""Clustering quality on real CLIP vectors against k-means, at the true number of clusters.

    python tests/benchmarks/quality.py [--quick] --json FILE

Ours is the whole job, with its defaults for every set; labels score, they choose nothing. Needs the
folder of real vectors (RRCLUSTER_TEST_DATA, or shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.cluster import KMeans

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load as load_settings
from rrcluster.report.metrics import accuracy, ami, ari, contingency, nmi

SETS = ("food10", "oxford_pets", "dtd", "caltech101", "sun397")
QUICK = ("food10", "dtd", "caltech101")
SCORES: dict[str, Callable[[Any], float]] = {"acc": accuracy, "nmi": nmi, "ari": ari, "ami": ami}


def load(folder: Path, name: str) -> tuple[torch.Tensor, np.ndarray]:
    found = np.load(folder / f"image_{name}.npz", allow_pickle=False)
    x = torch.nn.functional.normalize(torch.from_numpy(found["x"]).float(), dim=1)
    return x.half(), found["y"]


def kmeans(x: torch.Tensor, k: int, seed: int) -> np.ndarray:
    return KMeans(k, n_init=10, random_state=seed).fit_predict(x.float().numpy())


def centred_kmeans(x: torch.Tensor, k: int, seed: int) -> np.ndarray:
    centred = torch.nn.functional.normalize(x.float() - x.float().mean(0), dim=1)
    return KMeans(k, n_init=10, random_state=seed).fit_predict(centred.numpy())


def ours(x: torch.Tensor, k: int, seed: int) -> tuple[np.ndarray, int]:
    """Labels at k of the whole job, and the number that the coding-length curve would take."""
    with TemporaryDirectory() as folder:
        Path(folder, "corpus").mkdir()
        np.save(f"{folder}/corpus/vectors.npy", x.numpy())
        overrides = [
            f"corpus.uri={folder}/corpus", "corpus.format=embeddings", "encoder=vectors",
            f"run_dir={folder}/run", f"k={k}", f"seed={seed}", "compute=in_process",
        ]  # fmt: skip
        cluster(load_settings(overrides), silent)
        table = pq.read_table(f"{folder}/run/assignments/increment=00000/000000.parquet")
        curve = json.loads(Path(folder, "run/model/count/curve.json").read_text())
    return table["level_0"].to_numpy(), curve["estimate"]


def measure(folder: Path, sets: tuple[str, ...], seeds: int) -> Iterator[dict[str, Any]]:
    for name in sets:
        x, y = load(folder, name)
        k = len(np.unique(y))
        for seed in range(seeds):
            labels, found = ours(x, k, seed)
            answers = {
                "rrcluster": labels,
                "scikit-learn k-means, best of 10": kmeans(x, k, seed),
                "scikit-learn k-means, best of 10, mean-centred": centred_kmeans(x, k, seed),
            }
            params = {"k": k, "n": len(x), "seed": seed}
            for system, answer in answers.items():
                table = contingency(y, answer)
                for metric, score in SCORES.items():
                    yield row(system, name, metric, score(table), params)
            yield row("rrcluster", name, "estimated_k", found, params)


def row(
    system: str, case: str, metric: str, value: float, params: dict[str, Any]
) -> dict[str, Any]:
    return {
        "bench": "quality", "system": system, "case": case, "metric": metric,
        "value": round(float(value), 4), "unit": "clusters" if metric == "estimated_k" else "0..1",
        "params": params,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, three sets")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RRCLUSTER_TEST_DATA") or beside) / "vectors"
    if not folder.is_dir():
        raise SystemExit(f"no real vectors in {folder}; set RRCLUSTER_TEST_DATA")
    rows = list(measure(folder, QUICK if options.quick else SETS, 1 if options.quick else 3))
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    for case in dict.fromkeys(r["case"] for r in rows):
        for system in dict.fromkeys(r["system"] for r in rows):
            shown = []
            for metric in [*SCORES, "estimated_k"]:
                values = [
                    r["value"]
                    for r in rows
                    if (r["case"], r["system"], r["metric"]) == (case, system, metric)
                ]
                if values:
                    shown.append(f"{metric} {np.mean(values):.3f}")
            print(f"{case:12s} {system:48s} {'  '.join(shown)}")


if __name__ == "__main__":
    main()
