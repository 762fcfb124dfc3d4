"""Speed of one step of rate reduction, against the literal form and the machine's product peak.

    python tests/benchmarks/refine.py [--quick] --json FILE

The literal form is a full batched log det of every cluster's e × e matrix in torch autograd, as
Yu et al. (2020) write the loss. Loss and gradient of the same batch are timed in turns; the largest
difference of the gradients is relative to the largest entry of the literal one.

The *whole* case is a job on CLIP-like vectors (200,000 × 512 into 1000 clusters; --quick: 20,000
into 200) in a process of its own: seconds of each stage from ``run.json``, the process's peak
memory, and by how much each stage's peak lies above what was there when it began.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from clip_like import clip_like
from torch import Tensor

from pipelines.cluster import cluster
from rrcluster.config import load
from rrcluster.core.rate import rate_reduction_loss

ROWS, WIDTH, EPS2 = 1500, 128, 0.5
CLUSTERS = (10, 100, 1000)


def literal_loss(z: Tensor, labels: Tensor, k: int) -> Tensor:
    """−ΔR with one e × e determinant per cluster, members picked by a 0/1 membership."""
    n, e = z.shape
    membership = torch.nn.functional.one_hot(labels, k).to(z.dtype)
    eye, compressed = torch.eye(e), z.new_zeros(())
    for part in membership.T.split(100):  # a part at a time: all at once needs k·n·e numbers
        mass = part.sum(1).clamp_min(1e-8)
        second = (z.T * part[:, None]) @ z
        rates = torch.logdet(eye + e / (EPS2 * mass)[:, None, None] * second)
        compressed = compressed + (mass * rates).sum() / (2 * n)
    return compressed - 0.5 * torch.logdet(eye + e / (n * EPS2) * z.T @ z)


def step(loss: Callable[..., Tensor], z: Tensor, *rest: Any) -> tuple[float, Tensor]:
    """Seconds of loss and gradient, and the gradient."""
    leaf = z.clone().requires_grad_()
    start = time.perf_counter()
    (gradient,) = torch.autograd.grad(loss(leaf, *rest), leaf)
    return time.perf_counter() - start, gradient


def peak() -> float:
    """GFLOP per second of a square float32 product, the best of five."""
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(times) / 1e9


def measure(repeats: int) -> Iterator[dict[str, Any]]:
    yield row("machine", "float32 product", "speed", peak(), "GFLOP/s", {"size": 1024})
    generator = torch.Generator().manual_seed(0)
    for k in CLUSTERS:
        z = torch.nn.functional.normalize(torch.randn(ROWS, WIDTH, generator=generator), dim=1)
        labels = torch.randint(k, (ROWS,), generator=generator)
        ours, literal = [], []
        for _ in range(repeats + 1):  # the first of each warms up
            ours.append(step(rate_reduction_loss, z, labels, EPS2))
            literal.append(step(literal_loss, z, labels, k))
        fast, slow = (min(t for t, _ in found[1:]) for found in (ours, literal))
        scale = literal[-1][1].abs().max()
        error = float((ours[-1][1] - literal[-1][1]).abs().max() / scale)
        params = {"rows": ROWS, "width": WIDTH, "k": k, "threads": torch.get_num_threads()}
        case = f"step, {k} clusters"
        yield row("rrcluster", case, "seconds", fast, "s", params)
        yield row("literal log det", case, "seconds", slow, "s", params)
        yield row("rrcluster", case, "times as fast", slow / fast, "ratio", params)
        yield row("rrcluster", case, "gradient difference", error, "of the largest", params)


def whole_job(quick: bool) -> Iterator[dict[str, Any]]:
    n, d, k = (20_000, 512, 200) if quick else (200_000, 512, 1000)
    params = {"n": n, "d": d, "k": k, "threads": torch.get_num_threads()}
    with TemporaryDirectory() as folder:
        Path(folder, "corpus").mkdir()
        np.save(f"{folder}/corpus/x.npy", clip_like(n, d).numpy())
        command = [sys.executable, __file__, "--job", folder, str(k)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        told = json.loads(Path(folder, "told.json").read_text())
    for stage in ("select", "seed", "refine", "count"):
        yield row("rrcluster", "whole", stage, told["seconds"][stage], "s", params)
        yield row(
            "rrcluster", "whole", f"{stage}, memory added", told["added"][stage], "MB", params
        )
    ratio = told["seconds"]["refine"] / max(told["seconds"]["seed"], 1e-9)
    yield row("rrcluster", "whole", "refine over seed", ratio, "ratio", params)
    yield row("rrcluster", "whole", "peak memory", told["peak"] / 2**20, "GB", params)


def job(folder: str, k: str) -> None:
    """The child process."""
    wanted = [
        f"corpus.uri={folder}/corpus", "corpus.format=embeddings", f"run_dir={folder}/run",
        f"k={k}", "compute=in_process", "compute.workers=2",
    ]  # fmt: skip
    watch = Watch()
    record = cluster(load(wanted), watch)
    seconds = {name: stage["seconds"] for name, stage in record.content["stages"].items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"seconds": seconds, "peak": peak, "added": watch.added}
    Path(folder, "told.json").write_text(json.dumps(told))


class Watch:
    """A progress that looks at the process's memory 50 times a second: MB that each stage added."""

    def __init__(self) -> None:
        self.added: dict[str, float] = {}
        self._stage, self._before = "", 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def __call__(self, stage: str, *_: Any, **__: Any) -> None:
        if stage != self._stage:
            self._stage, self._before = stage, resident()
            self.added[stage] = 0.0

    def _look(self) -> None:
        while True:
            if self._stage:
                more = resident() - self._before
                self.added[self._stage] = max(self.added[self._stage], more)
            time.sleep(0.02)


def resident() -> float:
    """MB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def row(
    system: str, case: str, metric: str, value: float, unit: str, params: dict[str, Any]
) -> dict[str, Any]:
    return {
        "bench": "refine", "system": system, "case": case, "metric": metric,
        "value": float(f"{value:.4g}"), "unit": unit, "params": params,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one timed step instead of five")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--job", nargs=2, metavar=("FOLDER", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(*options.job)
        return
    if not options.json:
        parser.error("name a file for the figures: --json FILE")
    rows = []
    steps = measure(1 if options.quick else 5)
    for found in itertools.chain(steps, whole_job(options.quick)):
        rows.append(found)
        print(f"{found['system']:16s} {found['case']:20s} {found['metric']:20s} {found['value']:g}")
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
