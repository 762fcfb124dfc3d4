"""Vectors for benchmarks that are as many as wanted and shaped like CLIP's.

Real CLIP ViT-B/32 vectors are few here (about 19,000), so rows are mixed from them: a row is moved
part of the way to one of its near neighbours, then by the difference of another row and one of that
row's near neighbours, so that the spread around a point is the real, uneven local spread. Rows are
unit vectors in float16, as the run folder keeps them.
"""

from __future__ import annotations

import os
from pathlib import Path

import faiss
import numpy as np
import torch

SETS = ("food10", "caltech101", "oxford_pets", "dtd", "sun397", "flickr8k_1000_captioned")
NEIGHBOURS = 16
STEP = 0.5  # of the way to the neighbour at most
JITTER = 0.7  # of another pair's difference


def vectors_folder() -> Path:
    """The folder of real vectors, or an exit with a word on what is missing."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RRCLUSTER_TEST_DATA") or beside) / "vectors"
    if not folder.is_dir():
        raise SystemExit(f"no real vectors in {folder}; set RRCLUSTER_TEST_DATA")
    return folder


def clip_like(n: int, d: int = 512, seed: int = 0) -> torch.Tensor:
    """n unit rows (n, d) float16; for d < 512 the leading principal directions are kept."""
    files = [vectors_folder() / f"image_{name}.npz" for name in SETS]
    real = np.concatenate([np.load(f, allow_pickle=False)["x"] for f in files]).astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    _, near = faiss.knn(real, real, NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)
    if d < real.shape[1]:
        centred = real - real.mean(0)
        _, directions = np.linalg.eigh(centred.T @ centred)
        real = real @ np.ascontiguousarray(directions[:, ::-1][:, :d])
    choice = np.random.default_rng(seed)
    made = torch.empty(n, d, dtype=torch.float16)
    for start in range(0, n, 16_384):
        rows = min(16_384, n - start)
        here, there = choice.integers(len(real), size=(2, rows))
        beside, other = (near[i, choice.integers(1, NEIGHBOURS + 1, rows)] for i in (here, there))
        step = choice.uniform(0, STEP, (rows, 1)).astype(np.float32)
        x = real[here] + step * (real[beside] - real[here])
        x += JITTER * (real[there] - real[other])
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        made[start : start + rows] = torch.from_numpy(x).half()
    return made
