"""Every random choice is a hash: of (seed, purpose, sample_id) for rows, of (seed, path) otherwise.

So a choice does not depend on the order of the rows, on the shards or on the workers, and it
stays the same for an old sample when the corpus grows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import xxhash

KEY_SPAN = 1 << 64  # keys are uniform on [0, KEY_SPAN)


def path_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``path_seed(seed, "kmeans", level, cell)``."""
    text = "/".join([str(seed), *map(str, path)])
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A generator of its own for one purpose; the global random state is never touched."""
    return torch.Generator().manual_seed(path_seed(seed, *path))


def row_keys(sample_ids: npt.NDArray[np.uint8], seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """Uniform 64-bit keys of the samples, shape (n,), from their ids, shape (n, 16).

    Both halves of the id go through the finalizer of SplitMix64 (Steele et al. 2014), so ids that
    are counters instead of hashes give uniform keys too.
    """
    halves = np.ascontiguousarray(sample_ids).view(np.uint64).reshape(-1, 2)
    salt = np.uint64(path_seed(seed, purpose))
    return _mix(_mix(halves[:, 0] ^ salt) + halves[:, 1])


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
