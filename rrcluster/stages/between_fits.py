"""Between fits: a look at what is set aside and at how clusters grew, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrcluster.compute import Compute, Progress, in_order
from rrcluster.core.count import LeafMoments
from rrcluster.core.forest import Forest
from rrcluster.core.novelty import Known
from rrcluster.core.regroup import Regrouping, regrouped
from rrcluster.io import tables
from rrcluster.io.current import Current
from rrcluster.records import Shard
from rrcluster.stages.count import read_space
from rrcluster.stages.drift import fitted_sums
from rrcluster.stages.extend import Ids, Wider, move, with_names, with_opened, with_regrouped
from rrcluster.stages.novelty import (
    ADDED,
    Aside,
    History,
    Look,
    SetAside,
    add_rows,
    history,
    look,
    opening_clusters,
)
from rrcluster.stages.run import Run
from rrcluster.stages.tensors import write_tensors
from rrcluster.stages.texts import candidate_texts


@dataclass(frozen=True)
class Grown:
    """What a look changed: nothing, or the wider model, whose finest clusters get ``change`` rows
    more than those that they come from. ``content`` goes into the commit."""

    wider: Wider | None = None
    change: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    content: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def look_between_fits(
    run: Run, now: Current, every: Sequence[Shard], number: int, forest: Forest, ids: Ids,
    unused: int, compute: Compute, progress: Progress,
) -> Grown:  # fmt: skip
    """Set rows of the run's (new) shards aside, open clusters for groups of what is set aside, and
    merge and split clusters where the new rows ask for it.

    ``every`` are all shards, of which rows may move; ``ids`` belong to ``forest``.
    """
    store, spec = now.store, run.config.recluster
    if not (spec.novelty or spec.regroup) or not run.shards:
        return Grown()
    fitted, space = history(run, compute, forest), read_space(store)
    if fitted is None or space is None:
        words = "no look for new concepts: too many clusters for it, or a model of an older version"
        return Grown(facts={"words": [words]})
    version = f"versions/increment={number:05d}"
    to = store.with_folder("novelty", f"{version}/novelty").with_folder("aside", f"{version}/aside")
    work = SetAside(store, forest, space, spec.novelty_score, number)
    shards = [(s.index, s.name) for s in run.shards]
    parts = list(in_order(compute.map(work, shards)))
    earlier = Aside.read(store, forest.cells.shape[1])
    alive = {s.index for s in every}
    earlier = earlier.take(np.array([s in alive for s in earlier.shard.tolist()], bool))
    aside = reduce(Aside.followed_by, [part for part, _, _ in parts], earlier)
    aside = aside.bounded(spec.buffer_rows, run.config.seed)
    leaves = forest.first_leaf[-1]
    added = add_rows(store, leaves, space.width, [(leaf, z) for _, leaf, z in parts])
    write_tensors(to, ADDED, {"mass": added.mass.float(), "moments": added.moments.float()})
    wider = Wider.of(store, forest, ids, space.width)
    asked = _regrouping(run, forest, fitted, added)
    found = Look.nothing(aside)
    if spec.novelty:
        found = look(aside, forest, fitted, wider.opened, space, spec, run.config.seed)
    found.aside.write(to)
    content: dict[str, Any] = {"aside": f"{version}/aside"}
    facts: dict[str, Any] = {
        "aside": len(found.aside.x), "candidates": found.candidates, "opened": found.facts,
        "merged": [], "split": [], "words": [],
    }  # fmt: skip
    if asked is not None:
        grouping, rows = asked
        wider = with_regrouped(wider, grouping, rows, unused)
        unused += len(grouping.split)
        _tell_regrouped(facts, wider, grouping)
    if found.novel is not None:
        own = opening_clusters(forest)
        wider = with_opened(wider, found, fitted.known, own, unused)
        texts = candidate_texts(run, compute, [], progress)
        if texts is not None:
            sums = fitted_sums(run, compute, forest)
            wider = with_names(wider, found, sums, texts, run.config.caption)
        _tell_opened(facts, unused, wider)
        unused += len(found.facts)
    if not wider.kinds:
        return Grown(content=content, facts=facts)
    wider.publish(to)
    change, moved = move(store, every, forest, wider, number, compute, progress)
    facts["words"].append(f"{moved} rows went to other clusters than before")
    facts["moved"] = moved
    old = {s.index for s in now.shards}
    facts["asked_again"] = sum(  # rows of earlier increments that the wider model was asked for
        tables.num_rows(store, f"samples/{s.name}.parquet") for s in every if s.index in old
    )
    content |= {"novelty": f"{version}/novelty", "next_id": unused}
    return Grown(wider, change, content, facts)


def _regrouping(
    run: Run, forest: Forest, fitted: History, added: LeafMoments
) -> tuple[Regrouping, Known] | None:
    """What to merge and split of the fit's clusters, and the moments of all rows of its leaves;
    None for nothing. Clusters opened since take no part: they passed a test of their own."""
    spec, fit = run.config.recluster, fitted.leaves
    if not spec.regroup:
        return None
    every = replace(fit, mass=fit.mass + added.mass, moments=fit.moments + added.moments)
    paths = forest.paths[: len(fit.mass)]
    parent = paths[:, -2] if paths.shape[1] > 1 else torch.zeros(len(paths), dtype=torch.int64)
    found = regrouped(fit, every, paths[:, -1], parent, spec.regroup_gain)
    return (found, every) if found.merged or found.split else None


def _tell_regrouped(facts: dict[str, Any], wider: Wider, found: Regrouping) -> None:
    saved = {"merged": [s for *_, s in found.merged], "split": [s for *_, s in found.split]}
    for kind, said in (("merged", "was merged into"), ("split", "was split; a part of it is now")):
        pairs = [(old, new) for old, new, what in wider.kinds if what == kind]
        for (old, new), nats in zip(pairs, saved[kind], strict=True):
            facts[kind].append({"old_id": old, "new_id": new, "nats": round(nats, 1)})
            facts["words"].append(
                f"cluster {old} {said} {new}: the code is {nats:.0f} nats shorter by the new rows"
            )


def _tell_opened(facts: dict[str, Any], first: int, wider: Wider) -> None:
    named = wider.names.levels[-1][-len(facts["opened"]) :]
    for cluster, told in enumerate(facts["opened"], first):
        best = named[cluster - first].captions[:1]
        told |= {"cluster_id": cluster, "name": best[0][0] if best else ""}
        name = f" ({told['name']})" if best else ""
        facts["words"].append(
            f"a new concept opened cluster {cluster}{name}: {told['rows']} rows of "
            f"{told['increments']} increments, {told['times']:.0f} times as frequent as in the "
            f"fit, {told['nats_per_row']:.1f} nats per row shorter"
        )
