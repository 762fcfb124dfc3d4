"""Named tensors in the run folder: safetensors, whole or absent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rrcluster.io.store import Store
from rrcluster.io.tensors import read_arrays, write_arrays


def write_tensors(store: Store, name: str, tensors: Mapping[str, Tensor]) -> None:
    write_arrays(store, name, {n: t.detach().cpu().numpy() for n, t in tensors.items()})


def read_tensors(store: Store, name: str) -> dict[str, Tensor]:
    return {n: torch.from_numpy(a) for n, a in read_arrays(store, name).items()}
