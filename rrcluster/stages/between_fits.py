"""Between fits: one look at what is set aside, and what follows from it for model, ids and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from rrcluster.compute import Compute, Progress, in_order
from rrcluster.core.forest import Forest
from rrcluster.io import tables
from rrcluster.io.current import Current
from rrcluster.io.store import Store
from rrcluster.records import Shard
from rrcluster.stages.count import read_space
from rrcluster.stages.extend import Ids, extend, move, opened_before
from rrcluster.stages.novelty import Aside, SetAside, history, look
from rrcluster.stages.run import Run


@dataclass(frozen=True)
class Grown:
    """What a look changed. ``change`` (k,) is added to the rows of the finest clusters of ``ids``;
    ``content`` goes into the commit."""

    store: Store  # whose model is the wider one
    forest: Forest
    ids: Ids
    new_ids: tuple[int, ...]
    change: npt.NDArray[np.int64]
    content: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def look_between_fits(
    run: Run, now: Current, every: Sequence[Shard], number: int, forest: Forest, ids: Ids,
    unused: int, compute: Compute, progress: Progress,
) -> Grown:  # fmt: skip
    """Set rows of the run's (new) shards aside, look at all that is, and open what passes.

    ``every`` are all shards, of which rows may move; ``ids`` belong to ``forest``.
    """
    store, spec = now.store, run.config.recluster
    same = Grown(store, forest, ids, (), np.zeros(len(ids[-1]), np.int64))
    if not spec.novelty or not run.shards:
        return same
    fitted = history(run, compute, forest)
    space = read_space(store)
    if fitted is None or space is None:
        words = "no look for new concepts: too many clusters for it, or a model of an older version"
        return Grown(store, forest, ids, (), same.change, {}, {"words": [words]})
    version = f"versions/increment={number:05d}"
    to = store.with_folder("novelty", f"{version}/novelty").with_folder("aside", f"{version}/aside")
    work = SetAside(store, forest, spec.novelty_score, number)
    shards = [(s.index, s.name) for s in run.shards]
    parts = list(in_order(compute.map(work, shards)))
    earlier = Aside.read(store, forest.cells.shape[1])
    alive = {s.index for s in every}
    earlier = earlier.take(np.array([s in alive for s in earlier.shard.tolist()], bool))
    aside = reduce(Aside.followed_by, parts, earlier).bounded(spec.buffer_rows, run.config.seed)
    before = opened_before(store, space.width)
    found = look(aside, forest, fitted, before, space, spec, run.config.seed)
    found.aside.write(to)
    content: dict[str, Any] = {"aside": f"{version}/aside"}
    facts: dict[str, Any] = {
        "aside": len(found.aside.x), "candidates": found.candidates, "opened": found.facts,
        "words": [],
    }  # fmt: skip
    if found.novel is None:
        return Grown(store, forest, ids, (), same.change, content, facts)
    wider, new_ids = extend(store, to, forest, found, fitted.known, ids, unused)
    change, moved = move(store, every, forest, wider, new_ids, number, compute, progress)
    opened = tuple(range(unused, unused + len(found.facts)))
    for cluster, told in zip(opened, found.facts, strict=True):
        told["cluster_id"] = cluster
        facts["words"].append(
            f"a new concept opened cluster {cluster}: {told['rows']} rows of {told['increments']} "
            f"increments, {told['times']:.0f} times as frequent as in the fit, "
            f"{told['nats_per_row']:.1f} nats per row shorter"
        )
    facts["words"].append(f"{moved} rows went to new clusters; {sum(len(_.x) for _ in parts)} rows "
                          "of this increment had been set aside")  # fmt: skip
    facts["moved"] = moved
    old = {s.index for s in now.shards}
    facts["asked_again"] = sum(  # rows of earlier increments that the wider model was asked for
        tables.num_rows(store, f"samples/{s.name}.parquet") for s in every if s.index in old
    )
    content |= {"novelty": f"{version}/novelty", "next_id": unused + len(opened)}
    return Grown(to, wider, new_ids, opened, change, content, facts)
