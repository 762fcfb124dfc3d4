"""count: merge the leaves by coding length, choose the levels, publish the forest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from rrcluster.compute import Progress
from rrcluster.core.assign import calibrate
from rrcluster.core.cells import nearest
from rrcluster.core.count import (
    LeafRows,
    MergeSpace,
    bootstrap_counts,
    bootstrap_range,
    cut,
    enough_data,
    estimate,
    group_rates,
    merge_tree,
)
from rrcluster.core.criteria import criteria
from rrcluster.core.features import FeatureMap
from rrcluster.core.forest import Before, Forest, Homes, levels_for, nested_paths
from rrcluster.core.hierarchy import Seeds
from rrcluster.core.model import CellModel, under
from rrcluster.core.novelty import Novel
from rrcluster.core.shards import MemoryShards, Shards
from rrcluster.core.stay import Stay, counted
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.stages.levels import PATHS
from rrcluster.stages.refine import read_cell
from rrcluster.stages.run import Run
from rrcluster.stages.tensors import read_tensors, write_tensors

CURVE = "model/count/curve.json"
FOREST = "model/count/forest.safetensors"
OPENED = "novelty/forest.safetensors"  # clusters opened between fits, in an increment's version
HOMES = "model/count/homes.safetensors"  # of a refit: where rows were, and what stayed of it
GENERATIONS = 3  # of models that are asked where a row was: each takes as long as the row's own
CALIBRATION_ROWS = 50_000  # that the largest cell's share is taken from


def count(
    run: Run, shards: Shards, seeds: Seeds, models: list[CellModel], progress: Progress,
    start: Before | None = None,
) -> None:  # fmt: skip
    """Merge the leaves by coding length, choose the levels, and publish the forest.

    A refit ``start``s from clusters, which stay whole unless parting or joining them pays.
    """
    progress("count", 0, None, "merging leaves by coding length")
    spec, asked = run.config.count, run.config.k
    space = MergeSpace.of(shards, seeds.cells, tuple(models), spec, run.config.seed)
    rows = LeafRows.of(shards, space, spec.replicates)
    leaves = rows.moments()
    code = (spec.eps2, spec.neighbours, spec.shrinkage)
    stay = None
    if start is not None:
        parts = shards.map(CountStaying(space, start))
        stay = Stay.of(parts, space.num_leaves, start.nats)
    tree = merge_tree(leaves.mass, leaves.moments, *code, shards.workers, stay)
    found = estimate(tree)
    low, high = bootstrap_range(tree, bootstrap_counts(tree, rows, spec, shards.workers))
    del rows
    sample = shards.head(spec.criteria_rows)
    others = criteria(space.z(sample), space.leaf(sample), tree, run.config.seed)
    if run.store.exists(PATHS):  # levels of k-means; the curve is told and chooses nothing
        paths = read_tensors(run.store, PATHS)["paths"]
        chosen = [int(n) + 1 for n in paths.max(0).values]
    else:
        chosen = levels_for(asked, found)
        if chosen[-1] > tree.num_leaves:
            remedy = f"refinement left {tree.num_leaves} clusters; ask for fewer"
            raise UserError("k", asked, remedy)
        paths = nested_paths([cut(tree, k) for k in chosen])
    forest = Forest(seeds.cells, tuple(models), paths, 1.0)
    tensors = {"cells": seeds.cells, "paths": paths}
    tensors["temperature"] = torch.tensor([temperature_of(forest, shards)])
    if len(models) > 1:
        tensors |= {f"space.{name}": t for name, t in space.features.tensors().items()}
    for level in range(paths.shape[1]):
        tensors[f"rates.{level}"] = group_rates(leaves, paths[:, level], spec.eps2)
    run.store.write_json(
        CURVE,
        {
            "clusters": list(range(1, tree.num_leaves + 1)),
            "nats_per_sample": [round(float(v) / shards.num_rows, 6) for v in tree.lengths],
            "estimate": found,
            "low": low,
            "high": high,
            "enough_data": enough_data(leaves, found),
            "chosen": chosen,
            "asked": asked,
            "criteria": asdict(others) if others else {},
        },
    )
    write_tensors(run.store, FOREST, tensors)
    progress(
        "count", 1, 1, f"{found} clusters (range {low} to {high}), levels {chosen}", clusters=found
    )


@dataclass(frozen=True)
class CountStaying:
    """Map: rows of a block by their leaf and the cluster that they were in."""

    space: MergeSpace
    before: Before

    def __call__(self, x: torch.Tensor) -> dict[tuple[int, int], int]:
        return counted(self.space.leaf(x), self.before(x))


def temperature_of(forest: Forest, shards: Shards) -> float:
    """Calibrated on the largest cell: costs of all cells are nats at the same scale."""
    sample = shards.head(CALIBRATION_ROWS)
    cell, _ = nearest(sample, forest.cells)
    largest = int(torch.bincount(cell, minlength=len(forest.cells)).argmax())
    leaves = slice(forest.first_leaf[largest], forest.first_leaf[largest + 1])
    rows = MemoryShards([sample[cell == largest]])
    return calibrate(forest.models[largest], rows, forest.paths[leaves, -1])


def read_fit(store: Store) -> Forest:
    """The model as it was fitted, whatever became of it since."""
    found = read_tensors(store, FOREST)
    models = tuple(read_cell(store, c) for c in range(len(found["cells"])))
    return Forest(found["cells"], models, found["paths"], float(found["temperature"][0]))


def read_forest(store: Store) -> Forest:
    """The model that rows are assigned by."""
    forest = read_fit(store)
    if store.exists(HOMES):
        tensors = read_tensors(store, HOMES)
        paths = tensors.get("paths", forest.paths)  # earlier versions wrote none
        forest = replace(forest, paths=paths, homes=homes_of(tensors))
    if not store.exists(OPENED):
        return forest
    more = read_tensors(store, OPENED)
    novel = Novel.from_tensors(more) if "own" in more else None
    return replace(forest, paths=more["paths"], novel=novel)


def write_homes(store: Store, forest: Forest, rates: Sequence[torch.Tensor]) -> None:
    """The homes of rows, and of the model before those, not further back than ``GENERATIONS``; and
    the refit's paths and coding rates by level, in place of the fit's."""
    tensors = {"paths": forest.paths}
    tensors |= {f"rates.{level}": found for level, found in enumerate(rates)}
    last = forest.homes
    for generation in range(GENERATIONS):
        if last is not None:
            own = {"successor": last.successor, "of_leaf": last.of_leaf}
            own |= {"nats": last.nats} | last.before.tensors()
            tensors |= {f"{generation}.{name}": t for name, t in own.items()}
            last = last.before.homes
    write_tensors(store, HOMES, tensors)


def homes_of(tensors: dict[str, torch.Tensor]) -> Homes | None:
    found = None
    for generation in reversed(range(GENERATIONS)):
        if own := under(tensors, f"{generation}."):
            before = replace(Forest.from_tensors(own), homes=found)
            nats = own["nats"]
            if len(nats) == 1:  # earlier versions wrote one number for all clusters
                nats = nats.expand(int(own["of_leaf"].max()) + 1)
            found = Homes(before, own["successor"], own["of_leaf"], nats)
    return found


def read_space(store: Store) -> FeatureMap | None:
    """Where clusters of all cells are compared; None in a model that did not store it."""
    found = read_tensors(store, FOREST)
    if len(found["cells"]) == 1:
        return read_cell(store, 0).features
    own = under(found, "space.")
    return FeatureMap.from_tensors(own) if own else None


def read_rates(store: Store) -> list[list[float]]:
    """Coding rate (nats per sample) of each cluster, per level."""
    for name in (OPENED, HOMES):
        if store.exists(name) and "rates.0" in (found := read_tensors(store, name)):
            return [level.tolist() for level in _rates(found)]
    return [level.tolist() for level in fit_rates(store)]


def fit_rates(store: Store) -> list[torch.Tensor]:
    """The same of the model as it was fitted."""
    return _rates(read_tensors(store, FOREST))


def _rates(found: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [found[f"rates.{level}"] for level in range(found["paths"].shape[1])]
