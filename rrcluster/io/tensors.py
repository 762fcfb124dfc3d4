"""Named arrays in one safetensors file: no pickle, no code, whole or absent."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from rrcluster.io.store import Store


def write_arrays(store: Store, name: str, arrays: dict[str, npt.NDArray[Any]]) -> None:
    store.write_bytes(name, save({n: np.ascontiguousarray(a) for n, a in arrays.items()}))


def read_arrays(store: Store, name: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays are writable copies."""
    return {n: a.copy() for n, a in load(store.read_bytes(name)).items()}
