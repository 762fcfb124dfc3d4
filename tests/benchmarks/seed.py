"""k-means by us and by the peers: seconds, inertia and memory, on CLIP-like vectors.

    python tests/benchmarks/seed.py [--quick] --json FILE [--plot FILE.html] [--case NAME …]

Every fit runs in a process of its own (``seed_systems.py``). The goal of flat cases is the inertia
of 25 iterations of ``faiss.Kmeans``, with the OPENBLAS_CORETYPE that is fastest on this machine.
``--timed-passes 3`` stops the exact Lloyd systems, whose iterations all take the same time, after
three and multiplies; ``--add`` keeps what FILE holds already. Peers that are not installed are left
out with a word (superkmeans and fastkmeans are in no extra: pip install them). So is a GPU that is
not there: on one, ``--case gpu`` is the share of its products' peak that looking rows up reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from clip_like import clip_like
from seed_gpu import speeds
from seed_views import compared, draw, scaling_cases

CORETYPES = ("Haswell", "Zen", "SkylakeX", "Cooperlake", "Sapphirerapids")
MEASURED = ("seconds", "cpu", "peak", "inertia", "speed", "share of peak")
EXACT = ("faiss.Kmeans", "fastkmeans", "scikit-learn KMeans")  # the same iterations, none skipped
OURS = ("rrcluster", "rrcluster, rows in a file", "rrcluster, short", "rrcluster on a GPU")
PEERS = (*EXACT, "faiss.SuperKMeans", "superkmeans", "scikit-learn MiniBatchKMeans")


@dataclass(frozen=True)
class Case:
    """n rows of width d into k clusters; ``cells`` of a two-level fit; who takes part."""

    name: str
    n: int
    d: int
    k: int
    cells: int = 0
    passes: int = 25
    threads: int = 2
    systems: tuple[str, ...] = (*OURS, *PEERS)

    @property
    def params(self) -> dict[str, Any]:
        return {
            "n": self.n, "d": self.d, "k": self.k, "cells": self.cells, "passes": self.passes,
            "threads": self.threads,
        }  # fmt: skip


TWO_LEVEL = ("rrcluster", "faiss.SuperKMeans")
RAY = ("rrcluster", "rrcluster on Ray")
ON_GPU = ("rrcluster, fused kernel", "bfloat16 products")
FULL = (
    Case("k1000", 200_000, 512, 1000),
    Case("k10000", 100_000, 512, 10_000),
    Case("two-level", 1_000_000, 256, 20_000, 1000, 10, systems=TWO_LEVEL),
    Case("ray", 400_000, 256, 1000, systems=RAY),
    Case("gpu", 10_000_000, 768, 10_000, systems=ON_GPU),
    *(Case(*c, systems=("rrcluster",)) for c in scaling_cases(800_000, 8000, 512)),
)
QUICK = (
    Case("k1000", 40_000, 256, 400, passes=10),
    Case("k10000", 20_000, 256, 1000, passes=10),
    Case("two-level", 40_000, 128, 1500, 75, 10, systems=TWO_LEVEL),
    Case("ray", 100_000, 128, 200, systems=RAY),
    Case("gpu", 1_000_000, 768, 1000, systems=ON_GPU),
    *(Case(*c, systems=("rrcluster",)) for c in scaling_cases(40_000, 400, 256)),
)


class Bench:
    """Rows of a benchmark, and the files and the machine that they are made with."""

    def __init__(self, folder: Path, timed_passes: int | None) -> None:
        self.folder, self.timed_passes = folder, timed_passes
        self.coretype = ""
        self.missing: set[str] = set()

    def rows(self, n: int, d: int) -> Path:
        path = self.folder / f"rows-{n}-{d}.npy"
        if not path.exists():
            np.save(path, clip_like(n, d).numpy())
        return path

    def run(self, system: str, case: Case) -> dict[str, Any] | None:
        """What one fit took; None where the system is not installed or fails."""
        if system in self.missing:
            return None
        passes = case.passes
        if self.timed_passes and system in EXACT:
            passes = min(passes, self.timed_passes)
        out, told = self.folder / "centroids.npy", self.folder / "case.json"
        settings = {"rows": str(self.rows(case.n, case.d)), "seed": 1, "out": str(out)}
        told.write_text(json.dumps(case.params | settings | {"passes": passes}))
        command = [sys.executable, str(Path(__file__).with_name("seed_systems.py")), system]
        env = os.environ | {"OMP_NUM_THREADS": str(case.threads)}
        env |= {"OPENBLAS_CORETYPE": self.coretype} if self.coretype else {}
        done = subprocess.run([*command, str(told)], env=env, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            print(f"left out: {system}, {case.name}: {why}", file=sys.stderr)
            self.missing.add(system)
            return None
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if passes < case.passes:
            found["seconds"] *= case.passes / passes
            found["cpu"] *= case.passes / passes
            return found | {"extrapolated from passes": passes}
        return found | {"inertia": inertia(self.rows(case.n, case.d), np.load(out))}

    def choose_coretype(self) -> None:
        """The OpenBLAS kernel that ``faiss.Kmeans`` is fastest with here."""
        small = Case("probe", 20_000, 512, 400, passes=2)
        taken = {}
        for name in CORETYPES:
            self.coretype = name
            found = self.run("faiss.Kmeans", small)
            self.missing.clear()  # a kernel that this CPU cannot run
            if found:
                taken[name] = found["seconds"]
                print(f"OPENBLAS_CORETYPE={name}: {found['seconds']:.2f} s")
        self.coretype = min(taken, key=lambda name: taken[name]) if taken else ""


def inertia(rows: Path, centroids: np.ndarray) -> float:
    """Mean squared distance of all rows to their nearest centroid, in float32."""
    x = np.load(rows, mmap_mode="r", allow_pickle=False)
    half = 0.5 * np.square(centroids).sum(1)
    total = 0.0
    for start in range(0, len(x), 4096):
        part = x[start : start + 4096].astype(np.float32)
        score = (part @ centroids.T - half).max(1)
        total += float((np.square(part).sum(1) - 2 * score).sum(dtype=np.float64))
    return total / len(x)


def measure(bench: Bench, case: Case, systems: list[str]) -> Iterator[dict[str, Any]]:
    if case.systems == ON_GPU:
        yield from measure_gpu(case)
        return
    params = case.params | {"OPENBLAS_CORETYPE": bench.coretype}
    for system in case.systems:
        if systems and system not in systems:
            continue
        found = bench.run(system, case)
        if found is None:
            continue
        more = params | {"passes made": found["passes"]}
        if "extrapolated from passes" in found:
            more["extrapolated from passes"] = found["extrapolated from passes"]
        yield row(system, case.name, "seconds", found["seconds"], "s", more)
        yield row(system, case.name, "cpu", found["cpu"], "CPU s", more)
        yield row(
            system, case.name, "peak", found["peak"] / (2 * case.n * case.d), "of float16", more
        )
        if "inertia" in found:
            yield row(system, case.name, "inertia", found["inertia"], "squared distance", more)


def measure_gpu(case: Case) -> Iterator[dict[str, Any]]:
    try:
        found = speeds(case.n, case.d, case.k)
    except RuntimeError as error:
        print(f"left out: {case.name}: {error}", file=sys.stderr)
        return
    for system, speed in zip(ON_GPU, found, strict=True):
        yield row(system, case.name, "speed", speed / 1e12, "TFLOP/s", case.params)
    share = found[0] / found[1]
    yield row(ON_GPU[0], case.name, "share of peak", share, "of bfloat16 products", case.params)


def named(found: dict[str, Any]) -> tuple[str, str, str]:
    return found["case"], found["system"], found["metric"]


def row(
    system: str, case: str, metric: str, value: float, unit: str, params: dict[str, Any]
) -> dict[str, Any]:
    return {
        "bench": "seed", "system": system, "case": case, "metric": metric,
        "value": float(f"{value:.5g}"), "unit": unit, "params": params,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under five minutes")
    parser.add_argument("--json", required=True, help="file for the figures")
    parser.add_argument("--plot", help="HTML file for the scaling curves")
    parser.add_argument(
        "--case", nargs="*", default=[], help="of: k1000 k10000 two-level ray gpu scale"
    )
    parser.add_argument("--system", nargs="*", default=[], help="only these systems")
    parser.add_argument("--timed-passes", type=int, help="passes of exact Lloyd that are timed")
    parser.add_argument("--add", action="store_true", help="keep the figures that FILE holds")
    options = parser.parse_args()
    file = Path(options.json)
    held = json.loads(file.read_text()) if options.add and file.exists() else []
    held = [r for r in held if r["metric"] in MEASURED]
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.timed_passes)
        bench.choose_coretype()
        for case in QUICK if options.quick else FULL:
            if options.case and case.name.split()[0] not in options.case:
                continue
            for found in measure(bench, case, options.system):
                print(
                    f"{case.name:12s} {found['system']:30s} {found['metric']:8s} {found['value']:g}"
                )
                held = [r for r in held if named(r) != named(found)] + [found]
                file.write_text(json.dumps(held, indent=1) + "\n")
    rows = [*held, *compared(held, row)]
    file.write_text(json.dumps(rows, indent=1) + "\n")
    for found in rows[len(held) :]:
        print(f"{found['case']:12s} {found['system']:30s} {found['metric']} {found['value']:g}")
    if options.plot:
        draw(rows, Path(options.plot))


if __name__ == "__main__":
    main()
