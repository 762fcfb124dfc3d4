"""verdict: a refit beside the model before it, on the fit's rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrcluster.compute import Compute, in_order
from rrcluster.core.count import LeafMoments
from rrcluster.core.features import FeatureMap
from rrcluster.core.forest import Forest, label
from rrcluster.core.model import features_of
from rrcluster.core.novelty import Known
from rrcluster.core.probe import Probe
from rrcluster.core.verdict import Verdict
from rrcluster.stages.count import read_space
from rrcluster.stages.novelty import MOST_NUMBERS
from rrcluster.stages.run import Run
from rrcluster.stages.select import INDEX, LoadBlock

Overlap = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float64]


def judged(
    again: Run, compute: Compute, old: Forest, new: Forest, first: int
) -> tuple[Verdict, Overlap, Counts]:
    """The verdict; the fit's rows by their finest clusters in both models (k_old, k_new); and by
    the new ones alone (k_new), those of shards from ``first`` on.

    ``again`` holds the new fit, and its rows.
    """
    load, spec = LoadBlock.of(again), again.config.refine
    work = JudgeProbe(load, old, new, spec.probe_rows, spec.probe_neighbours)
    [(rows, *consistency)] = [found for _, found in compute.map(work, [0])]
    pairs, late, lengths = _compared(again, compute, old, new, first)
    return Verdict((consistency[0], consistency[1]), rows, lengths), pairs, late


@dataclass(frozen=True)
class JudgeProbe:
    """Map: the first rows of the fit, and the consistency of both models on them."""

    load: LoadBlock
    old: Forest
    new: Forest
    rows: int
    neighbours: int

    def __call__(self, _: int) -> tuple[int, float, float]:
        parts: list[Tensor] = []
        for block in range(self.load.blocks):
            if sum(len(x) for x in parts) < self.rows:
                parts.append(self.load(block))
        x = torch.cat(parts)[: self.rows]
        probe = Probe.of_rows(x, self.neighbours)
        old, new = (label(forest, x).path[:, -1] for forest in (self.old, self.new))
        return len(x), probe.consistency(old), probe.consistency(new)


@dataclass(frozen=True)
class DescribeBoth:
    """Map: the rows of one fit block by their finest clusters in both models, whether they are of
    shards from ``first`` on, and features if there is a space to have them in."""

    load: LoadBlock
    old: Forest
    new: Forest
    space: FeatureMap | None
    first: int

    def __call__(self, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        rows = self.load.full(block)
        x = torch.from_numpy(rows.x.copy())
        late = torch.from_numpy(rows.where[:, 0] >= self.first)
        old, new = (label(forest, x).path[:, -1] for forest in (self.old, self.new))
        return old, new, late, None if self.space is None else features_of(self.space, x)


def _compared(
    again: Run, compute: Compute, old: Forest, new: Forest, first: int
) -> tuple[Overlap, Counts, tuple[float, float] | None]:
    """Rows by both clusters; late ones by the new; nats per row of both, in the new features."""
    space, code = read_space(again.store), again.config.count
    sizes = [forest.clusters_per_level[-1] for forest in (old, new)]
    if space is not None and sum(sizes) * space.width**2 > MOST_NUMBERS:
        space = None
    pairs, since = np.zeros(sizes), np.zeros(sizes[1])
    sums = [] if space is None else [LeafMoments.none(k, space.width) for k in sizes]
    work = DescribeBoth(LoadBlock.of(again), old, new, space, first)
    blocks = int(again.store.read_json(INDEX)["blocks"])
    for were, are, late, z in in_order(compute.map(work, list(range(blocks)))):
        np.add.at(pairs, (were.numpy(), are.numpy()), 1.0)
        since += np.bincount(are[late].numpy(), minlength=len(since))
        if z is not None:
            sums[0].add(z, were)
            sums[1].add(z, are)
    if not sums:
        return pairs, since, None
    known = [Known(s.mass, s.moments, code.eps2, code.shrinkage) for s in sums]
    rows = float(pairs.sum())
    before, after = (float(k.lengths(k.mass, k.moments, rows).sum()) / rows for k in known)
    return pairs, since, (before, after)
