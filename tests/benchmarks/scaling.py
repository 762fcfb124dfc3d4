"""The cost model, ``rrcluster/core/costs.py``: calibrated, and checked on many simulated workers.

    python tests/benchmarks/scaling.py [--quick] [--case NAME] --json FILE

1. constants: this machine's decoding, products, factorizations, store, tasks handed out.
2. coordinator: passes of a fit over 4, 16 and 64 holders of blocks (``--quick``: 16 at most), small
   but real, in 16 processes; calls, bytes and processor time are compared with the model.
3. predictions: time of the job for 10⁸, 10⁹ and 10¹⁰ images on named pools, from 1 and 2.
4. estimate: what ``dry_run=true`` says of embedding, against embedding.

Rates of GPUs are assumptions, 40 % of the peak that the vendor states: none was at hand.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import coordinator_load
import numpy as np
import ray.data
import torch
from PIL import Image

from pipelines.compute import start_compute
from rrcluster.config import ComputeSpec, load
from rrcluster.core.costs import (
    Corpus,
    Fit,
    Pool,
    Rates,
    coordinator_bytes,
    hours,
    job,
    kmeans_work,
    stored_bytes,
)
from rrcluster.distributed.session import RayCompute
from rrcluster.io.decode import PixelSpec, decode
from rrcluster.io.drawn_corpus import draw_corpus
from rrcluster.io.store import Store
from rrcluster.stages.embed import embed
from rrcluster.stages.estimate import estimate
from rrcluster.stages.run import open_run

S3_BYTES = 100e6  # of one worker, to and from an object store: assumed
PHOTO = 512  # pixels of a side of the picture that decoding is timed on
BLOCK_IMAGES = ComputeSpec().block_bytes / (224 * 224 * 3)
UTILIZATION = 0.4  # of a GPU's peak in bf16: assumed
VIT_L14 = 162e9  # floating-point operations per image of 224 pixels
GPUS = {"A10G": 70e12, "A100": 312e12, "H100": 989e12}  # dense bf16 peak, as the vendor states
POOLS = {
    "8 × g5.2xlarge": (Pool("8 × g5.2xlarge", 8, 8, 1, 1.25e9), "A10G"),
    "16 × p4d.24xlarge": (Pool("16 × p4d.24xlarge", 16, 96, 8, 12.5e9), "A100"),
    "125 × p5.48xlarge": (Pool("125 × p5.48xlarge", 125, 192, 8, 25e9), "H100"),
}
FITS = {"1,000": Fit(), "100,000": Fit(rows=1e8, leaves=250_000)}
Say = Callable[..., None]


def timed(call: Any, least: float = 0.5) -> float:
    """Seconds per call, over at least ``least`` seconds."""
    call()
    times, started = 0, time.perf_counter()
    while time.perf_counter() - started < least:
        call()
        times += 1
    return (time.perf_counter() - started) / times


def photo() -> bytes:
    """A JPEG with the detail of a photograph: smooth colours and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:PHOTO, 0:PHOTO] / 40
    waves = np.stack([np.sin(x + c) + np.cos(y * (1 + c)) for c in range(3)], -1)
    values = 127 + 50 * waves + rng.normal(0, 12, waves.shape)
    buffer = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def constants_of_a_core(folder: Path) -> dict[str, float]:
    """Images decoded, flops of products and of factorizations, bytes through the disk, a second."""
    torch.set_num_threads(1)
    content, pixels = photo(), PixelSpec(224)
    a, b = torch.randn(2048, 768), torch.randn(768, 512)
    small = torch.eye(64, dtype=torch.float64).expand(64, 64, 64).contiguous()
    store, array = Store(str(folder)), np.zeros((20_000, 768), np.float16)

    def through_the_disk() -> None:
        store.write_npy("x.npy", array)
        np.array(store.read_npy("x.npy"))

    return {
        "decode": 1 / timed(lambda: decode(content, pixels, 10**9)),
        "flops": 2 * 2048 * 768 * 512 / timed(lambda: a @ b),
        "factor_flops": 64 * 64**3 / 3 / timed(lambda: torch.linalg.cholesky(small)),
        "store": 2 * array.nbytes / timed(through_the_disk),
    }


def tasks_per_second(tasks: int = 600) -> float:
    """Tasks that one process hands out through Ray Data in a second of its own processor time, in a
    map over as many blocks; their work runs elsewhere."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    def run(number: int) -> float:
        rows = ray.data.range(number, override_num_blocks=number).map_batches(
            lambda batch: batch, num_cpus=0.5
        )
        started = time.process_time()
        for _ in rows.iter_batches(batch_size=None):
            pass
        return time.process_time() - started

    run(20)
    return 2 * tasks / run(tasks)  # each block is read and mapped


def coordinator(say: Say, quick: bool) -> dict[str, float]:
    """Case 2; rates of the coordinator."""
    workers = (4, 8, 16) if quick else (4, 16, 64)
    # Workers import this folder; they wait nearly always, and share the cores.
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    spec = ComputeSpec(workers=workers[-1], cpus_per_worker=0.01)
    found = {}
    with RayCompute.start(spec):
        tasks = tasks_per_second()
        say("constants", "tasks", tasks, "per second")
        for w, kind, took, says in coordinator_load.simulate(workers):
            found[w, kind] = took, says
            case = f"{w} workers, {kind}"
            compared = {
                "calls": (took.calls, says.calls), "bytes_taken": (took.taken, says.taken),
                "bytes_made": (took.made, says.made),
            }  # fmt: skip
            for metric, (measured, model) in compared.items():
                say(case, metric, measured, metric.split("_")[0], predicted=model)
            say(case, "seconds", took.seconds, "s")
    few, more = workers[:2]
    cpu = coordinator_load.Load.fitted(
        found[few, "small answers"][0], found[more, "small answers"][0], found[more, "rates"][0]
    )
    for (w, kind), (took, says) in found.items():
        case, model = f"{w} workers, {kind}", cpu.of(says)
        say(case, "coordinator_cpu", took.cpu, "s", predicted=model, fitted_on=[few, more])
        say(case, "cpu_against_model", took.cpu / model, "ratio", fitted_on=[few, more])
    return {"tasks": tasks, "messages": 1 / cpu.per_call, "adding": 1 / max(cpu.per_byte, 1e-12)}


def predictions(say: Say, rates: Rates) -> None:
    """Case 3: a row per corpus size, fit and pool; and a table."""
    for name, fit in FITS.items():
        say(f"{name} clusters", "coordinator_bytes", coordinator_bytes(fit), "bytes")
        for level, work in kmeans_work(fit).items():
            say(f"{name} clusters", f"kmeans_{level}", work, "operations")
    print(
        "| images | clusters | pool | run folder | feeders | hours | machine-hours | embed | fit | "
        "write |\n" + "|---" * 10 + "|"
    )
    for images, clusters, name, fed in itertools.product((1e8, 1e9, 1e10), FITS, POOLS, (0, 1)):
        (pool, gpu), fit, corpus = POOLS[name], FITS[clusters], Corpus(images)
        feeders = -(-pool.encoders // ComputeSpec().workers_per_feeder) if fed else 1
        own = replace(rates, encode=UTILIZATION * GPUS[gpu] / VIT_L14, store=S3_BYTES)
        stages = {s.name: s for s in job(corpus, fit, pool, own, BLOCK_IMAGES, feeders)}
        total, embedding, write = hours(list(stages.values())), stages["embed"], stages["write"]
        fitting = [stages[s] for s in ("select", "seed", "refine", "count", "caption")]
        slowest = max(fitting, key=lambda stage: stage.seconds)
        waits = {s.name: [round(s.seconds), s.bound] for s in stages.values()}
        about = {"images": images, "clusters": clusters, "feeders": feeders, "stages": waits}
        say(name, "hours", total, "h", quiet=True, **about)
        cells = [
            f"10^{round(np.log10(images))}", clusters, name,
            f"{stored_bytes(corpus, fit) / 1e12:,.2f} TB", f"{feeders}", f"{total:,.1f}",
            f"{total * pool.machines:,.0f}",
            f"{embedding.seconds / 3600:,.1f} h, {embedding.bound}",
            f"{sum(s.seconds for s in fitting) / 3600:,.2f} h, {slowest.name}: {slowest.bound}",
            f"{write.seconds / 3600:,.2f} h, {write.bound}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def photos(folder: Path, count: int) -> tuple[str, ...]:
    """A corpus of real photos and an encoder for them, or drawn pictures where there are none."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    data = Path(os.environ.get("RRCLUSTER_TEST_DATA") or beside)
    if not data.is_dir():
        draw_corpus(str(folder / "corpus"), 10 * count, 5 * count // 8, 7, lambda *_, **__: None)
        return (f"corpus.uri={folder}/corpus",)
    (folder / "corpus").mkdir()
    found = sorted((data / "images/imagenet-samples").glob("*"))[:count]
    for shard in range(32):
        with tarfile.open(folder / f"corpus/{shard:02d}.tar", "w") as tar:
            for path in found[shard::32]:
                tar.add(path, path.name)
    models = data / "models"
    return (
        f"corpus.uri={folder}/corpus", "encoder=timm", "encoder.model=mobilenetv2_100",
        "encoder.model_options={num_classes:1001,pad_type:same}",
        f"encoder.checkpoint={models / 'mobilenetv2_100_coral_fp16.safetensors'}",
        f"encoder.projection={models / 'mobilenetv2_to_clip_vitb32_projection.npz'}",
        "encoder.feature_transform=sqrt_unit", "encoder.mean=[0.5,0.5,0.5]",
        "encoder.std=[0.5,0.5,0.5]", "encoder.image_size=224",
    )  # fmt: skip


def estimates(say: Say, quick: bool) -> None:
    """Case 4: what a dry run says that embedding takes here, against embedding."""
    with TemporaryDirectory() as name:
        settings = photos(Path(name), 320 if quick else 960)
        for group in ("in_process", "local"):
            config = load([*settings, f"run_dir={name}/{group}", f"compute={group}"])
            told = estimate(config).seconds_here(config.compute)
            run, record = open_run(config)
            watch = Watch()
            with start_compute(config) as compute:
                embed(run, compute, record, watch)
            images = record.content["stages"]["embed"]["counts"]["read"]
            case = f"embedding, {group}"
            say(case, "seconds", watch.seconds, "s", predicted=told, images=images)
            say(case, "started_after", watch.first - watch.began, "s", images=images)
            say(case, "told_against_taken", told / watch.seconds, "ratio", images=images)


class Watch:
    """A progress that takes the time of an embedding at its pace after the first shards."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first = self.seconds = 0.0
        self._at = 0.0

    def __call__(
        self, stage: str, done: float, total: float | None, note: str = "", **facts: float
    ) -> None:
        now = time.perf_counter()
        if done and not self._at:
            self.first, self._at = now, done
        elif done == total and total > self._at:
            self.seconds = (now - self.first) * total / (total - self._at)


def main() -> None:
    cases = ("model", "estimate")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="16 simulated workers at most")
    parser.add_argument("--case", choices=cases, action="append", help="only these")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    out: list[dict[str, Any]] = []

    def say(
        case: str, metric: str, value: float, unit: str, quiet: bool = False, **params: Any
    ) -> None:
        out.append(
            {"bench": "scaling", "system": "rrcluster", "case": case, "metric": metric,
             "value": float(f"{value:.4g}"), "unit": unit, "params": params}
        )  # fmt: skip
        model = f"   model {params['predicted']:.4g}" if "predicted" in params else ""
        if not quiet:
            print(f"{case:28s} {metric:20s} {value:12.4g} {unit}{model}", flush=True)

    if "model" in (options.case or cases):
        with TemporaryDirectory() as folder:
            core = constants_of_a_core(Path(folder))
        for name, value in core.items():
            say("constants", name, value, "per second and core")
        predictions(say, Rates(encode=1.0, **core, **coordinator(say, options.quick)))
    if "estimate" in (options.case or cases):
        estimates(say, options.quick)
    Path(options.json).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
