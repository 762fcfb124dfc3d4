"""Bottom-up levels as settings: ``k`` from coarse to fine, and per level splits and resampling.

The words are those of ssl-data-curation, whose ``n_clusters=[10_000_000, 500_000, 50_000, 10_000]``
(fine to coarse) is ``k=[10000,50000,500000,10000000] seeding.hierarchy=bottom_up`` here; lists of
the other settings are in the order of ``k``.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rrcluster.config import Config
from rrcluster.core.bottom_up import Level
from rrcluster.core.kmeans import SeedingSpec
from rrcluster.records import UserError

LEVEL = "model/seed/level-{:02d}.safetensors"  # 0: the finest
PATHS = "model/seed/paths.safetensors"


def check_levels(config: Config) -> None:
    """Refuse bottom-up settings that do not fit together, before anything is embedded."""
    if config.seeding.hierarchy == "bottom_up":
        levels_of(config.k, config.seeding, sys.maxsize)


def levels_of(k: Any, spec: SeedingSpec, rows: int) -> list[Level]:
    """The levels from fine to coarse. Raises UserError for what does not fit together."""
    if k == "auto":
        raise UserError(
            "k", k, "seeding.hierarchy=bottom_up needs a list from coarse to fine, e.g. [10,100]"
        )
    clusters = list(k) if isinstance(k, list) else [k]
    if clusters[-1] > rows:
        raise UserError("k", k, f"the corpus has {rows} distinct samples to fit on; ask for fewer")
    splits = _per_level("seeding.splits", spec.splits, clusters, 1)
    resamplings = _per_level("seeding.resamplings", spec.resamplings, clusters, 0)
    sizes = _per_level("seeding.sample_size", spec.sample_size, clusters, 1)
    for number, parts in zip(clusters, splits, strict=True):
        if number % parts:
            raise UserError("seeding.splits", spec.splits, f"{number} clusters are not {parts} × n")
    levels = [
        Level(number, parts, times, size, spec.sample_choice)
        for number, parts, times, size in zip(clusters, splits, resamplings, sizes, strict=True)
    ]
    return levels[::-1]


def _per_level(name: str, value: Any, clusters: list[int], least: int) -> list[int]:
    found = value if isinstance(value, list) else [value] * len(clusters)
    if len(found) != len(clusters):
        raise UserError(name, value, f"one number, or {len(clusters)} in the order of k={clusters}")
    if any(not isinstance(v, int) or isinstance(v, bool) or v < least for v in found):
        raise UserError(name, value, f"whole numbers from {least} on, one or a list of them")
    return found


def nested(paths: Int[Tensor, "k L"]) -> Int[Tensor, "k L"]:
    """Paths with the clusters of each level numbered without gaps: a centroid may be nobody's."""
    columns = [column.unique(return_inverse=True)[1] for column in paths.T]
    return torch.stack(columns, 1)
