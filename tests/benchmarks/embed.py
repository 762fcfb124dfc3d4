"""Reading and embedding: how near the pipeline comes to the bare model, and what decoding costs.

    python tests/benchmarks/embed.py [--quick] --json FILE

The model is a ViT-Ti/16 at 224 pixels with random weights in float32: a small encoder, so that
reading weighs as much as it ever does. The corpus is JPEGs of 500 x 375 pixels that are drawn here.

- ``pipeline``: images per second of the embed stage in one process, from tars to published files;
  of a plain PyTorch DataLoader loop on the same JPEGs, model and transform (with the faster of one
  or two loading processes); and of the bare model on ready pixels, by threads of one core each. In
  turns; medians. ``efficiency`` is the share of the bare model's rate.
- ``decode``: images per second of one core from JPEG bytes to the encoder's pixels, and the
  greatest difference of an image's mean level and the signal-to-noise ratio in dB against
  open_clip's evaluation transform. OpenCV and simplejpeg take part where they are installed.
- ``memory``: peak memory of the embed stage in a process of its own, on a corpus and on ten times
  it, in MB.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from embed_decoders import DECODERS, reference
from PIL import Image
from resident import forget_peak, resident
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from rrcluster.compute import EmbedPlan
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.models.encoder import EncoderSpec
from rrcluster.models.load import load_encoder
from rrcluster.records import Shard

MODEL, SIDE, BATCH = "vit_tiny_patch16_224", 224, 32
CORES = len(os.sched_getaffinity(0))
PER_SHARD = 100
Rows = Iterator[dict[str, Any]]


def row(system: str, case: str, metric: str, value: float, unit: str, **params: Any) -> dict:
    return {
        "bench": "embed", "system": system, "case": case, "metric": metric,
        "value": round(float(value), 4), "unit": unit, "params": {"cores": CORES, **params},
    }  # fmt: skip


def picture(seed: int) -> bytes:
    """A JPEG of 500 x 375 with edges and noise at several scales."""
    rng = np.random.default_rng(seed)
    levels = np.zeros((375, 500, 3), np.float32)
    for cells in (4, 16, 64, 192):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        levels += np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray((levels / 4).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def write_corpus(folder: Path, pictures: list[bytes], copies: int = 1) -> list[Shard]:
    """Tars of PER_SHARD pictures; of copies, each has its own key."""
    shards = []
    chosen = [p for _ in range(copies) for p in pictures]
    folder.mkdir(exist_ok=True)
    for index in range(-(-len(chosen) // PER_SHARD)):
        path = folder / f"{index:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for i, content in enumerate(chosen[index * PER_SHARD : (index + 1) * PER_SHARD]):
                entry = tarfile.TarInfo(f"{index:05d}{i:05d}.jpg")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        shards.append(Shard(index, str(path), "webdataset", path.stat().st_size, ""))
    return shards


def encoder_spec(folder: Path) -> EncoderSpec:
    path = folder / "weights.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(timm.create_model(MODEL, num_classes=2).state_dict(), path)
    return EncoderSpec(
        kind="timm", model=MODEL, checkpoint=str(path), batch_size=BATCH, precision="fp32",
        model_options={"num_classes": 2},
    )  # fmt: skip


def ours(folder: Path, shards: list[Shard]) -> float:
    """Seconds from tars to published files, without loading the model (the first shard waits)."""
    spec = encoder_spec(folder)
    with TemporaryDirectory(dir=folder) as run, InProcessCompute(CORES) as compute:
        began = time.perf_counter()
        load_encoder(spec, "cpu")
        loading = time.perf_counter() - began
        plan = EmbedPlan(Store(run), CorpusSpec(), spec)
        began = time.perf_counter()
        assert sum(c.embedded for c in compute.embed(plan, shards)) > 0
        return time.perf_counter() - began - loading


def bare(folder: Path, images: int) -> float:
    """Seconds of the model alone on ready pixels, on every core by a thread of its own."""
    encoder = load_encoder(encoder_spec(folder), "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    torch.set_num_threads(1)
    with ThreadPoolExecutor(CORES, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        encoder.encode_images(pixels)
        began = time.perf_counter()
        list(pool.map(lambda _: encoder.encode_images(pixels), range(-(-images // BATCH))))
        seconds = time.perf_counter() - began
    return seconds * images / (BATCH * -(-images // BATCH))


class Pictures(Dataset):  # type: ignore[type-arg]
    def __init__(self, pictures: list[bytes]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        return reference(self.pictures[index])


def loader(folder: Path, pictures: list[bytes], processes: int) -> float:
    """Seconds of the loop that everybody writes; starting its processes counts, the model not."""
    encoder: Any = load_encoder(encoder_spec(folder), "cpu")
    torch.set_num_threads(CORES)
    batches = DataLoader(Pictures(pictures), BATCH, num_workers=processes)
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.5)
    began = time.perf_counter()
    with torch.inference_mode():
        rows = [encoder._module((b.float() / 255 - mean) / std) for b in batches]
    assert sum(map(len, rows)) == len(pictures)
    return time.perf_counter() - began


def pipeline(folder: Path, pictures: list[bytes], repeats: int) -> Rows:
    shards, images = write_corpus(folder / "corpus", pictures), len(pictures)
    systems: dict[str, Callable[[], float]] = {
        "rrcluster": lambda: ours(folder, shards),
        "bare model": lambda: bare(folder, images),
        "DataLoader, 1 process": lambda: loader(folder, pictures, 1),
        "DataLoader, 2 processes": lambda: loader(folder, pictures, 2),
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(repeats):
        for name, seconds in systems.items():
            rates[name].append(images / seconds())
    facts = {"images": images, "model": MODEL, "repeats": repeats}
    for name, found in rates.items():
        yield row(name, "pipeline", "rate", median(found), "images/s", **facts)
        pairs = [a / b for a, b in zip(found, rates["bare model"], strict=True)]
        yield row(name, "pipeline", "efficiency", median(pairs), "of the bare model", **facts)


def decoding(pictures: list[bytes], repeats: int) -> Rows:
    torch.set_num_threads(1)
    exact = [reference(p).permute(1, 2, 0).numpy().astype(np.float64) for p in pictures]
    times: dict[str, list[float]] = {}
    outputs: dict[str, list[npt.NDArray[np.uint8]]] = {}
    present = {n: d for n, d in DECODERS.items() if all(map(importlib.util.find_spec, d.needs))}
    for _ in range(repeats):
        for name, decoder in present.items():
            began = time.perf_counter()
            outputs[name] = [decoder.decode(p) for p in pictures]
            times.setdefault(name, []).append(time.perf_counter() - began)
    for name, found in outputs.items():
        rate = len(pictures) / min(times[name])
        errors = [float(((a - b) ** 2).mean()) for a, b in zip(found, exact, strict=True)]
        shift = max(abs(float((a - b).mean())) for a, b in zip(found, exact, strict=True))
        psnr = 10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-6))
        facts = {"images": len(pictures), "pixels": "500x375", "side": SIDE}
        yield row(name, "decode", "rate", rate, "images/s per core", **facts)
        yield row(name, "decode", "psnr", min(psnr, 99.0), "dB, 99: equal", **facts)
        yield row(name, "decode", "shift", shift, "levels of 255", **facts)


def peak(folder: str, shards: list[Shard], answer: Any) -> None:
    forget_peak()
    ours(Path(folder), shards)
    answer.put(resident("VmHWM") / 2**20)


def memory(folder: Path, pictures: list[bytes]) -> Rows:
    context = multiprocessing.get_context("spawn")
    found = []
    for copies in (1, 10):
        shards = write_corpus(folder / f"memory-{copies}", pictures, copies)
        answer = context.Queue()
        child = context.Process(target=peak, args=(str(folder), shards, answer))
        child.start()
        found.append(answer.get())
        child.join()
        facts = {"images": copies * len(pictures), "per_shard": PER_SHARD}
        yield row("rrcluster", "memory", f"peak x{copies}", found[-1], "MB", **facts)
    yield row("rrcluster", "memory", "growth", found[1] / found[0], "x for 10x the corpus")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under five minutes")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    images, repeats = (400, 3) if options.quick else (2000, 5)
    pictures = [picture(seed) for seed in range(images)]
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part in (
            pipeline(folder, pictures, repeats),
            decoding(pictures[:100], repeats),
            memory(folder, pictures[: images // 2]),
        ):
            for found in part:
                print(f"{found['case']:9s} {found['system']:25s} {found['metric']:10s} "
                      f"{found['value']:10.3f} {found['unit']}", flush=True)  # fmt: skip
                rows.append(found)
                Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
