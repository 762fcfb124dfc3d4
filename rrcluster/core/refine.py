"""Refinement of one cell: coding-rate Lloyd, learned features, and a gate on every step.

seed partition → features and clusters on which neighbours agree (``core/neighbours.py``) → Lloyd →
rounds of (whiten, Lloyd) → rounds of (train the head, Lloyd). A step that lowers the agreement of
raw neighbours on a probe (``core/probe.py``) is rolled back, so the result is never worse than the
seed by that criterion; when every step is refused it *is* the seed's partition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from rrcluster.core.codes import (
    CentroidCodes,
    Codes,
    RateCodes,
    fit_codes,
    pooled_spread,
    with_statistics,
)
from rrcluster.core.features import FeatureMap, fit_projection
from rrcluster.core.forest import Before
from rrcluster.core.gate import Gate, GateEvent, Step
from rrcluster.core.head import Training, train_head
from rrcluster.core.model import CellModel, Costs, Moments, features_of, sum_by_label
from rrcluster.core.neighbours import agree, seeds_within
from rrcluster.core.probe import Probe
from rrcluster.core.shards import MemoryShards, Shards
from rrcluster.core.tiles import by_tiles
from rrcluster.records import setting

__all__ = ["CellModel", "GateEvent", "RefineSpec", "Refined", "refine"]


@dataclass
class RefineSpec:
    """Settings of the refinement stage: minibatched rate reduction within each cell."""

    width: int = setting(96, "width of the refined features")
    eps2: float = setting(0.5, "squared coding error of the rates; width/eps2 (192) is what counts")
    rank: int = setting(4, "directions stored per cluster; the rest is one variance")
    shrinkage: float = setting(1000.0, "pseudo-rows of pooled spread in each cluster's code")
    passes: int = setting(4, "coding-rate Lloyd passes at most, each time")
    leave_one_out: bool = setting(
        True, "rows choose their cluster in Lloyd as if they were not in it; small ones let go"
    )
    moved_share: float = setting(0.002, "stop when fewer probe rows than this share move")
    agreements: int = setting(5, "rounds of whitening by neighbours and smoothed k-means; 0: none")
    neighbours: int = setting(10, "neighbours per row among which features should agree")
    sample_rows: int = setting(
        4096,
        "rows of a cell on which features and clusters are found; a pass over all rows follows",
    )
    whitenings: int = setting(
        0, "rounds more of whitening by the spread within clusters, and Lloyd"
    )
    ridge: float = setting(0.1, "share of the mean spread added to every direction's")
    rounds: int = setting(0, "rounds of head training by rate reduction, and Lloyd; 0: none")
    membership: Literal["labels", "batch"] = setting(
        "labels", "what the head takes for belonging together: the clusters, or likeness in a batch"
    )
    anchors: int = setting(64, "rows of a batch that membership=batch compares with")
    eta: float = setting(0.1, "temperature of membership=batch")
    fit_rows: int = setting(50_000, "rows that the head is trained on at most")
    steps: int = setting(300, "training steps per round")
    hidden: int = setting(256, "hidden width of the head")
    batch_clusters: int = setting(32, "clusters per batch, for R_c")
    cluster_rows: int = setting(8, "rows per cluster and batch")
    spread_rows: int = setting(512, "rows of the independent part of the batch, for R")
    learning_rate: float = setting(1e-4, "initial learning rate of Adam, falling to 0")
    weight_decay: float = setting(1e-2, "weight decay of the head")
    checkpoint_steps: int = setting(100, "training steps between checkpoints")
    probe_rows: int = setting(4000, "rows on which every step is judged")
    probe_neighbours: int = setting(3, "raw neighbours per row that should share its cluster")


@dataclass(frozen=True)
class Refined:
    """How far the refinement of a cell is: the model kept so far, every step tried, and where the
    training of the next head is, if it has begun."""

    model: CellModel
    events: tuple[GateEvent, ...]
    training: Training | None = None


def refine(
    shards: Shards,
    centroids: Float[Tensor, "k d"],
    spec: RefineSpec,
    seed: int,
    path: tuple[str | int, ...] = (),
    on_event: Callable[[GateEvent], None] | None = None,
    least: int = 1,
    start: Refined | None = None,
    on_step: Callable[[Refined], None] | None = None,
    before: Before | None = None,
) -> tuple[CellModel, list[GateEvent]]:
    """Refine the partition of nearest ``centroids``; returns the model and every step tried.

    Clusters may empty on the way; a step that leaves fewer than ``least`` is rolled back.
    ``on_step`` is told where the refinement is after each step, and within the training of a head;
    from there ``start`` goes on, to the same bits. A refit has clusters ``before``, of which it
    starts from parts.
    """
    probe = Probe.of(shards, spec.probe_rows, spec.probe_neighbours)
    whole = shards.num_rows <= spec.probe_rows
    gate = Gate(probe, spec.eps2, on_event, least, whole)
    if start is None:
        sample = shards.head(spec.sample_rows)
        projection = fit_projection(MemoryShards([sample]), spec.width)
        if before is not None:
            centroids = seeds_within(sample, len(centroids), seed, before(sample))
        model = CellModel(projection, CentroidCodes.of(centroids))
    else:
        model, gate.events = start.model, list(start.events)
    tried = {(e.round, e.step) for e in gate.events}
    training = None if start is None else start.training

    def trained(so_far: Training) -> None:
        if on_step is not None:
            on_step(Refined(model, tuple(gate.events), so_far))

    for round, step in steps_of(spec):
        refused = any(e.step == step and not e.accepted for e in gate.events)
        if (round, step) in tried or (
            round and refused
        ):  # a step that did not help is not repeated
            continue
        if step == "agree":
            new = agreement(shards, centroids, model.features, spec, seed, before)
        elif step == "lloyd":
            new = lloyd(shards, model, model.features, spec)
        elif step == "whiten":
            new = lloyd(shards, model, whiten(shards, model, spec), spec)
        else:
            at = (*path, "refine", round)
            features = learned(shards, model, spec, seed, at, training, trained)
            training = None
            new = lloyd(shards, model, features, spec)
        trusted = step == "agree" and before is not None
        model = gate.judge(round, step, model, new, trusted)
        if on_step is not None:
            on_step(Refined(model, tuple(gate.events)))
    return finish(shards, model), gate.events


def steps_of(spec: RefineSpec) -> list[tuple[int, Step]]:
    """(round, step) in their order."""
    first: list[tuple[int, Step]] = [(0, "agree")] if spec.agreements else []
    whitenings: list[tuple[int, Step]] = [(r, "whiten") for r in range(1, spec.whitenings + 1)]
    return [*first, (0, "lloyd"), *whitenings, *((r, "head") for r in range(1, spec.rounds + 1))]


def learned(
    shards: Shards,
    model: CellModel,
    spec: RefineSpec,
    seed: int,
    path: tuple[str | int, ...],
    resume: Training | None = None,
    on_steps: Callable[[Training], None] | None = None,
) -> FeatureMap:
    """The features of ``model`` with a head trained on the clusters that it gives."""
    sample = shards.head(spec.fit_rows)
    u = by_tiles(sample, lambda rows: (model.features.project(rows),))[0]
    labels, _ = model.cheapest(sample)
    head = train_head(u, labels, model.features.head, spec, seed, path, resume, on_steps)
    return model.features.with_head(head)


def unrefined(shards: Shards, centroids: Float[Tensor, "k d"], spec: RefineSpec) -> CellModel:
    """The partition of nearest ``centroids`` as a model; every centroid stays a leaf."""
    return finish(
        shards, CellModel(fit_projection(shards, spec.width), CentroidCodes.of(centroids))
    )


def agreement(
    shards: Shards,
    centroids: Float[Tensor, "k d"],
    projection: FeatureMap,
    spec: RefineSpec,
    seed: int,
    before: Before | None = None,
) -> CellModel:
    """Codes of the partition on which neighbours agree, in features whitened by them."""
    sample = shards.head(spec.sample_rows)
    found = agree(
        sample, projection, len(centroids), spec.neighbours, spec.ridge, spec.agreements, seed,
        None if before is None else before(sample),
    )  # fmt: skip
    mass, moments = sum_by_label(features_of(found.features, sample), found.labels, found.clusters)
    codes = fit_codes(mass, moments, spec.eps2, spec.rank, spec.shrinkage)
    return _refit(MemoryShards([sample]), CellModel(found.features, codes), found.features, spec)


def whiten(shards: Shards, model: CellModel, spec: RefineSpec) -> FeatureMap:
    """The features of ``model``, whitened by the spread within the clusters that it gives."""
    sums = shards.reduce(Moments(model, model.features))
    return model.features.whitened(pooled_spread(sums["mass"], sums["moments"]), spec.ridge)


def lloyd(shards: Shards, start: CellModel, features: FeatureMap, spec: RefineSpec) -> CellModel:
    """Coding-rate Lloyd from the partition of ``start``, in ``features``.

    Each pass fits the codes of the current partition and gives every row to its cheapest cluster.
    Passes are made over a sample, as many rows as tell what a cluster is, until few of the probe
    move, or the code of the partition does not get shorter; the shortest is fitted to all rows.
    """
    sample, probe = shards.head(spec.sample_rows), shards.head(spec.probe_rows)
    held = MemoryShards([sample])
    labels, _ = start.cheapest(probe)
    model = _refit(held, start, features, spec)
    for _ in range(1, spec.passes):
        moved_to, _ = model.cheapest(probe)
        if float((moved_to != labels).double().mean()) < spec.moved_share:
            break
        labels, shorter = moved_to, _refit(held, model, features, spec)
        if _length(shorter.codes) >= _length(model.codes):
            break
        model = shorter
    return model if len(sample) == shards.num_rows else _refit(shards, model, features, spec)


def finish(shards: Shards, model: CellModel) -> CellModel:
    """Drop empty clusters of a refined model and add the statistics of the winning costs."""
    if isinstance(model.codes, RateCodes):
        model = replace(model, codes=model.codes.live())
    sums = shards.reduce(Costs(model))
    codes = with_statistics(model.codes, sums["mass"], sums["cost"], sums["squares"])
    return replace(model, codes=codes)


def _refit(shards: Shards, model: CellModel, features: FeatureMap, spec: RefineSpec) -> CellModel:
    left_out = spec.eps2 if spec.leave_one_out else None
    sums = shards.reduce(Moments(model, features, left_out))
    codes = fit_codes(sums["mass"], sums["moments"], spec.eps2, spec.rank, spec.shrinkage)
    return CellModel(features, codes)


def _length(codes: Codes) -> float:
    assert isinstance(codes, RateCodes), "only rate codes are fitted"
    return codes.length
