"""Clusters that there are stay whole: what a new partition costs for differing from the one before.

A fit that starts afresh cuts unsure clusters elsewhere, and ids that others rely on are lost for
nothing. With c_ko the rows of new cluster k that were in old cluster o, the code of a new partition
gets longer by ``nats`` times its variation of information from the old one (Meilă 2007),

    n·VI = −Σ_ko c_ko [log(c_ko/c_k) + log(c_ko/c_o)]

which is 0 where nothing changed, log 2 a row where a cluster was halved or two of one size became
one. Each cluster has its own part of the sum, so merging by coding length takes it along. Rows that
the old model coded badly have no say: they may be of something new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from jaxtyping import Int
from torch import Tensor

Counts = dict[int, int]  # rows by old cluster


def counted(leaf: Int[Tensor, " n"], old: Int[Tensor, " n"]) -> dict[tuple[int, int], int]:
    """Rows by (leaf, old cluster), of those with a say."""
    pairs = torch.stack([leaf, old], 1)[old >= 0]
    unique, rows = pairs.unique(dim=0, return_counts=True)
    return {(i, o): n for (i, o), n in zip(unique.tolist(), rows.tolist(), strict=True)}


@dataclass(frozen=True)
class Stay:
    """Rows of each leaf by old cluster, and the ``nats`` that a row's variation costs."""

    leaves: tuple[Counts, ...]
    nats: float

    @staticmethod
    def of(parts: Iterable[dict[tuple[int, int], int]], leaves: int, nats: float) -> Stay:
        found: tuple[Counts, ...] = tuple({} for _ in range(leaves))
        for part in parts:
            for (leaf, old), rows in part.items():
                found[leaf][old] = found[leaf].get(old, 0) + rows
        return Stay(found, nats)

    @cached_property
    def total(self) -> Counts:
        """Rows of each old cluster."""
        return reduce(joined, self.leaves, {})

    def price(self, counts: Counts) -> float:
        """Nats of one new cluster."""
        here = sum(counts.values())
        return -self.nats * sum(
            rows * (math.log(rows / here) + math.log(rows / self.total[old]))
            for old, rows in sorted(counts.items())
        )


def joined(one: Counts, other: Counts) -> Counts:
    """The rows of two clusters."""
    return one | {old: rows + one.get(old, 0) for old, rows in other.items()}
