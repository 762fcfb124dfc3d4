"""Seeding alone on real CLIP vectors: inertia, agreement with labels, balance of cluster sizes.

    python tests/benchmarks/seed_quality.py [--quick] [--seeds N] --json FILE

Flat k-means of ours and of scikit-learn (one start, and the best of ten) at the true number of
clusters; ours as it seeds these small sets (k-means++, which refinement goes on from), annealed (as
large ones and ``bottom_up`` hierarchies), and in two levels (cells of 32 leaves). *balance* is
exp(entropy of the sizes) over k, 1 for clusters of one size; *largest* is the largest cluster over
the mean one. Labels only score. Needs the folder of real vectors (RRCLUSTER_TEST_DATA, or
shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_like import vectors_folder
from quality import SCORES, SETS, load
from sklearn.cluster import KMeans

from rrcluster.core.cells import nearest
from rrcluster.core.hierarchy import nearest_in_cell, top_down, whole_blocks
from rrcluster.core.kmeans import SeedingSpec
from rrcluster.report.metrics import contingency

Answer = tuple[np.ndarray, float]  # labels, and the mean squared distance to the own centroid


def ours(**settings: int) -> Callable[[torch.Tensor, int, int], Answer]:
    def fit(x: torch.Tensor, k: int, seed: int) -> Answer:
        spec = SeedingSpec(cell_leaves=k, **settings)
        label, squared = nearest(x, top_down(whole_blocks(x, spec), k, spec, seed).leaves)
        return label.numpy(), float(squared.double().mean())

    return fit


def ours_two_levels(x: torch.Tensor, k: int, seed: int) -> Answer:
    spec = SeedingSpec(cell_leaves=32)
    label, squared = nearest_in_cell(x, top_down(whole_blocks(x, spec), k, spec, seed))
    return label.numpy(), float(squared.double().mean())


def sklearn(starts: int) -> Callable[[torch.Tensor, int, int], Answer]:
    def fit(x: torch.Tensor, k: int, seed: int) -> Answer:
        model = KMeans(k, n_init=starts, random_state=seed).fit(x.float().numpy())
        return model.labels_, float(model.inertia_) / len(x)

    return fit


SYSTEMS: dict[str, Callable[[torch.Tensor, int, int], Answer]] = {
    "rrcluster": ours(),
    "rrcluster, annealed": ours(anneal_from=0),
    "rrcluster, two levels": ours_two_levels,
    "scikit-learn, one start": sklearn(1),
    "scikit-learn, best of ten": sklearn(10),
}


def measure(folder: Path, sets: tuple[str, ...], seeds: int) -> Iterator[dict[str, Any]]:
    for name in sets:
        x, y = load(folder, name)
        k = int(y.max()) + 1
        for system, fit in SYSTEMS.items():
            for seed in range(seeds):
                label, inertia = fit(x, k, seed)
                share = np.bincount(label) / len(label)
                share = share[share > 0]
                table = contingency(y, label)
                found = {metric: score(table) for metric, score in SCORES.items()}
                found |= {"inertia": inertia, "largest": float(share.max() * k)}
                found["balance"] = float(np.exp(-(share * np.log(share)).sum()) / k)
                for metric, value in found.items():
                    yield {
                        "bench": "seed_quality", "system": system, "case": name, "metric": metric,
                        "value": float(f"{value:.5g}"), "unit": "ratio",
                        "params": {"n": len(x), "k": k, "seed": seed},
                    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one set, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    sets, seeds = (SETS[:1], 1) if options.quick else (SETS, options.seeds)
    rows = list(measure(vectors_folder(), sets, seeds))
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    for case, system in dict.fromkeys((r["case"], r["system"]) for r in rows):
        mine = [r for r in rows if (r["case"], r["system"]) == (case, system)]
        shown = []
        for metric in dict.fromkeys(r["metric"] for r in mine):
            mean = np.mean([r["value"] for r in mine if r["metric"] == metric])
            shown.append(f"{metric} {mean:.4g}")
        print(f"{case:12s} {system:26s} {'  '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
