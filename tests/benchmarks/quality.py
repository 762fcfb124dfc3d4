"""Clustering quality on real CLIP vectors against peers, with the number of clusters and without.

    python tests/benchmarks/quality.py [--quick] [--seeds N] [--plot FILE.html] --json FILE

Cases: five labelled sets, all of them as one corpus (*union*), and long-tailed versions of four in
which the largest class has 10 or 50 times the rows of the smallest. Ours is the whole job, with its
defaults for every case; labels score, they choose nothing. *stability* is the mean AMI between the
partitions of two seeds. CPP's membership and the spectral peer are n × n or nearly, so the union is
left out for them. Needs the folder of real vectors (RRCLUSTER_TEST_DATA, or shared/data beside the
repository).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow.parquet as pq
import torch
from clip_like import vectors_folder
from cpp import CppSpec, cpp
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load as load_settings
from rrcluster.report.metrics import accuracy, ami, ari, contingency, nmi

SETS = ("food10", "oxford_pets", "dtd", "caltech101", "sun397")
TAILED = ("food10", "oxford_pets", "dtd", "caltech101")  # sun397 has ten rows a class
TAILS = (10, 50)
LEAST = 3  # rows of a class in a tail
SCORES: dict[str, Callable[[Any], float]] = {"acc": accuracy, "nmi": nmi, "ari": ari, "ami": ami}
Labels = np.ndarray
Answer = tuple[Labels, int | None]  # labels, and the number of clusters estimated beside them


def load(folder: Path, name: str) -> tuple[torch.Tensor, Labels]:
    found = np.load(folder / f"image_{name}.npz", allow_pickle=False)
    x = torch.nn.functional.normalize(torch.from_numpy(found["x"]).float(), dim=1)
    return x.half(), np.unique(found["y"], return_inverse=True)[1]


def long_tailed(
    x: torch.Tensor, y: Labels, ratio: float, seed: int = 0
) -> tuple[torch.Tensor, Labels]:
    """Classes in random order keep n_max · ratio^(−i/(k−1)) rows, at least LEAST."""
    choice = np.random.default_rng(seed)
    counts = np.bincount(y)
    k, kept = len(counts), []
    for i, c in enumerate(choice.permutation(k)):
        wanted = max(LEAST, round(float(np.median(counts)) * ratio ** (-i / max(k - 1, 1))))
        kept.append(choice.permutation(np.flatnonzero(y == c))[:wanted])
    rows = np.sort(np.concatenate(kept))
    return x[rows], y[rows]


def cases(folder: Path, quick: bool) -> Iterator[tuple[str, torch.Tensor, Labels]]:
    sets = ("food10", "dtd") if quick else SETS
    loaded = {name: load(folder, name) for name in sets}
    for name, (x, y) in loaded.items():
        yield name, x, y
    for ratio in TAILS[-1:] if quick else TAILS:
        for name in sets if quick else TAILED:
            yield f"{name}, tail {ratio}:1", *long_tailed(*loaded[name], ratio)
    if not quick:
        first = np.cumsum([0, *(y.max() + 1 for _, y in loaded.values())])
        y = np.concatenate([y + f for (_, y), f in zip(loaded.values(), first, strict=False)])
        yield "union", torch.cat([x for x, _ in loaded.values()]), y


def unit(x: torch.Tensor, centred: bool = False) -> np.ndarray:
    rows = x.float() - (x.float().mean(0) if centred else 0)
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def starts(x: torch.Tensor) -> int:
    """Starts of which a k-means keeps the best: 10, and 3 on the union, which is large."""
    return 10 if len(x) < 10_000 else 3


def kmeans(x: torch.Tensor, k: int, seed: int) -> Answer:
    return KMeans(k, n_init=starts(x), random_state=seed).fit_predict(unit(x)), None


def centred_kmeans(x: torch.Tensor, k: int, seed: int) -> Answer:
    return KMeans(k, n_init=starts(x), random_state=seed).fit_predict(unit(x, True)), None


def spherical_kmeans(x: torch.Tensor, k: int, seed: int) -> Answer:
    """Centroids of unit length by Lloyd from rows drawn at random; the best of some starts."""
    rows, best = torch.from_numpy(unit(x)), (-1.0, np.zeros(0))
    for start in range(starts(x)):
        g = torch.Generator().manual_seed(1000 * seed + start)
        centroids = rows[torch.randperm(len(rows), generator=g)[:k]]
        for _ in range(50):
            similar, label = (rows @ centroids.T).max(1)
            sums = torch.zeros_like(centroids).index_add_(0, label, rows)
            moved = torch.nn.functional.normalize(sums, dim=1)
            moved = torch.where(sums.norm(dim=1, keepdim=True) > 0, moved, centroids)
            if float((moved - centroids).abs().max()) < 1e-4:
                break
            centroids = moved
        best = max(best, (float(similar.sum()), label.numpy()), key=lambda found: found[0])
    return best[1], None


def spectral(x: torch.Tensor, k: int, seed: int) -> Answer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph may be in pieces
        found = SpectralClustering(
            k, affinity="nearest_neighbors", n_neighbors=10, random_state=seed, n_init=10
        ).fit_predict(unit(x))
    return found, None


def mixture(x: torch.Tensor, k: int, seed: int) -> Answer:
    """Gaussians with variances per direction on the 64 leading directions of centred rows."""
    z = PCA(min(64, len(x) - 1), random_state=seed).fit_transform(unit(x, True))
    found = GaussianMixture(k, covariance_type="diag", reg_covar=1e-4, random_state=seed)
    return found.fit_predict(z), None


def cpp_parity(x: torch.Tensor, k: int, seed: int) -> Answer:
    return cpp(x, k, seed), None


def cpp_one_head(x: torch.Tensor, k: int, seed: int) -> Answer:
    return cpp(x, k, seed, CppSpec(heads=1)), None


def silhouette_kmeans(x: torch.Tensor, k: int, seed: int) -> Answer:
    """The k of 24 with the best silhouette on 2000 rows, then k-means."""
    rows = unit(x)
    some = np.random.default_rng(seed).permutation(len(rows))[:2000]
    tried = np.unique(np.geomspace(2, len(some) // 4, 24).round().astype(int))
    fits = [KMeans(int(j), n_init=1, random_state=seed).fit_predict(rows[some]) for j in tried]
    scores = [silhouette_score(rows[some], labels) for labels in fits]
    best = int(tried[int(np.argmax(scores))])
    return kmeans(x, best, seed)[0], best


def ours(x: torch.Tensor, k: int, seed: int, asked: str = "") -> Answer:
    """The whole job's finest clusters, and the number that the coding-length curve would take."""
    with TemporaryDirectory() as folder:
        Path(folder, "corpus").mkdir()
        np.save(f"{folder}/corpus/vectors.npy", x.numpy())
        overrides = [
            f"corpus.uri={folder}/corpus", "corpus.format=embeddings", "encoder=vectors",
            f"run_dir={folder}/run", f"k={asked or k}", f"seed={seed}", "compute=in_process",
        ]  # fmt: skip
        cluster(load_settings(overrides), silent)
        table = pq.read_table(f"{folder}/run/assignments/increment=00000/000000.parquet")
        curve = json.loads(Path(folder, "run/model/count/curve.json").read_text())
    finest = max(c for c in table.column_names if c.startswith("level_"))
    return table[finest].to_numpy(), curve["estimate"]


def ours_auto(x: torch.Tensor, k: int, seed: int) -> Answer:
    return ours(x, k, seed, "auto")


SYSTEMS: dict[str, Callable[[torch.Tensor, int, int], Answer]] = {
    "rrcluster": ours,
    "rrcluster, k=auto": ours_auto,
    "k-means, best of 10": kmeans,
    "k-means, centred": centred_kmeans,
    "spherical k-means": spherical_kmeans,
    "GMM on PCA": mixture,
    "spectral, kNN graph": spectral,
    "CPP parity": cpp_parity,
    "CPP parity, one head": cpp_one_head,
    "k-means, k by silhouette": silhouette_kmeans,
}
ON_SETS = (
    "CPP parity",
    "CPP parity, one head",
    "spectral, kNN graph",
)  # not on tails, not the union


def measure(
    folder: Path, quick: bool, seeds: int, systems: list[str], wanted: str
) -> Iterator[dict[str, Any]]:
    for case, x, y in cases(folder, quick):
        if wanted not in case:
            continue
        k = len(np.unique(y))
        for system in systems:
            answer = SYSTEMS[system]
            if system in ON_SETS and case not in SETS:
                continue
            partitions = []
            for seed in range(1 if case == "union" else seeds):
                started = time.perf_counter()
                labels, estimated = answer(x, k, seed)
                seconds = time.perf_counter() - started
                partitions.append(labels)
                params = {"k": k, "n": len(x), "seed": seed}
                table = contingency(y, labels)
                for metric, score in SCORES.items():
                    yield row(system, case, metric, score(table), params)
                yield row(system, case, "time", seconds, params, "s")
                if estimated is not None:
                    yield row(system, case, "estimated_k", estimated, params, "clusters")
            pairs = [ami(contingency(a, b)) for a, b in itertools.combinations(partitions, 2)]
            if pairs:
                yield row(system, case, "stability", float(np.mean(pairs)), {"k": k, "n": len(x)})


def row(
    system: str, case: str, metric: str, value: float, params: dict[str, Any], unit: str = "0..1"
) -> dict[str, Any]:
    return {
        "bench": "quality", "system": system, "case": case, "metric": metric,
        "value": round(float(value), 4), "unit": unit, "params": params,
    }  # fmt: skip


def mean(rows: list[dict[str, Any]], case: str, system: str, metric: str) -> float | None:
    wanted = (case, system, metric)
    values = [r["value"] for r in rows if (r["case"], r["system"], r["metric"]) == wanted]
    return float(np.mean(values)) if values else None


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Bars per case and system, one panel per score."""
    figure = go.Figure()
    shown = list(dict.fromkeys(r["case"] for r in rows))
    for metric in ("nmi", "acc", "ari"):
        for system in dict.fromkeys(r["system"] for r in rows):
            values = [mean(rows, case, system, metric) for case in shown]
            figure.add_bar(x=shown, y=values, name=system, visible=metric == "nmi", meta=metric)
    buttons = [
        {"label": m.upper(), "method": "update",
         "args": [{"visible": [t.meta == m for t in figure.data]}]}
        for m in ("nmi", "acc", "ari")
    ]  # fmt: skip
    figure.update_layout(
        title="Quality at the true number of clusters, means over seeds", barmode="group",
        updatemenus=[{"buttons": buttons, "x": 1, "y": 1.15}], yaxis_range=[0, 1],
    )  # fmt: skip
    figure.write_html(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two sets and their tails")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--cases", default="", help="only cases with this in their name")
    parser.add_argument("--plot", type=Path, help="HTML file for a picture of the scores")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    seeds = 1 if options.quick else options.seeds
    for found in measure(vectors_folder(), options.quick, seeds, options.systems, options.cases):
        rows.append(found)
        if found["metric"] in ("nmi", "stability"):
            where = f"{found['case']:24s} {found['system']:22s} {found['metric']}"
            print(f"{where} {found['value']:.3f} {found['params']}", flush=True)
            Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    for case, system in dict.fromkeys((r["case"], r["system"]) for r in rows):
        shown = []
        for metric in [*SCORES, "stability", "estimated_k", "time"]:
            value = mean(rows, case, system, metric)
            if value is not None:
                shown.append(f"{metric} {value:.3f}")
        print(f"{case:24s} {system:22s} {'  '.join(shown)}")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
