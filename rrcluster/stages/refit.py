"""refit: clusters fitted again on everything, with the ids of the old ones where they live on.

Nothing that readers see is touched: the new model, cluster tables and assignments are written under
``versions/increment=NNNNN/`` and become current with the increment's commit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrcluster.compute import Compute, Progress
from rrcluster.config import Config
from rrcluster.core.drift import changes, matched
from rrcluster.core.forest import Before, Forest, Homes, joined, label
from rrcluster.core.novelty import often
from rrcluster.core.verdict import Verdict
from rrcluster.io import tables
from rrcluster.io.current import Current, manifest
from rrcluster.stages.caption import caption
from rrcluster.stages.count import HOMES, fit_rates, read_fit, read_forest, write_homes
from rrcluster.stages.fit import fit
from rrcluster.stages.names import read_names
from rrcluster.stages.run import Record, Run
from rrcluster.stages.select import INDEX, LoadBlock, select
from rrcluster.stages.verdict import Counts, Overlap, judged
from rrcluster.stages.write import IDS, write_clusters, write_rows


@dataclass(frozen=True)
class Ids:
    """Ids per level, coarse to fine, of the model before; and the first that was never used."""

    levels: tuple[npt.NDArray[np.int64], ...]
    unused: int


@dataclass(frozen=True)
class Fitted:
    """A new fit on rows of ``again``'s shards, beside the model before; nobody reads it yet."""

    again: Run
    part: Record
    old: Forest
    new: Forest
    verdict: Verdict
    pairs: Overlap  # the fit's rows by their finest clusters in both models
    since: Counts  # those of shards that came since the last fit, by the new ones


@dataclass(frozen=True)
class Refitted:
    """What the commit says of the refit, and what the record does."""

    content: dict[str, Any]
    facts: dict[str, Any]


def fit_again(
    run: Run,
    now: Current,
    number: int,
    rows: int,
    compute: Compute,
    record: Record,
    progress: Progress,
) -> Fitted:
    """Fit on the run's shards, which hold ``rows`` rows, and judge the result."""
    store = run.store.with_folder("model", f"{_version(number)}/model")
    finest = now.clusters(now.levels - 1, ["cluster_id"]).num_rows
    again = Run(store, replace(run.config, k=_wanted(run.config, finest)), run.shards)
    part = Record(store, {"stages": {}, "reconciliation": {"embedded": rows}}, record)
    record.content["fit"] = part.content
    select(again, compute, part, progress)
    old, spec = read_forest(now.store), run.config.recluster
    warm = spec.refit_start == "model" and run.config.seeding.hierarchy == "top_down"
    start = Before(old, spec.refit_score, spec.refit_nats) if warm else None
    fit(again, compute, part, progress, start)
    new = read_fit(store)
    return Fitted(again, part, old, new, *judged(again, compute, old, new, _first_since_fit(now)))


def refit(
    fitted: Fitted, now: Current, number: int, ids: Ids, compute: Compute, progress: Progress
) -> Refitted:
    """Keep ids by overlap, and write everything anew beside what there is."""
    again, part, old, new = fitted.again, fitted.part, fitted.old, fitted.new
    store, version = again.store, _version(number)
    rows = part.content["reconciliation"]["embedded"]
    overlaps = per_level(fitted.pairs, old, new)
    chosen, unused = _choose(overlaps, ids, new, again.config.recluster.min_overlap)
    new = _with_homes(fitted, ids.levels[-1], chosen[-1])
    stayed, sizes = _stayed(again, compute, old, new, ids.levels[-1], chosen[-1])
    into = _joining(fitted.pairs, sizes, new, chosen[-1] >= ids.unused)
    paths, left = joined(new.paths, into)
    if many := int((into != torch.arange(len(into))).sum()):
        new = _with_joined(new, paths, left[-1])
        chosen = [level[own.numpy()] for level, own in zip(chosen, left, strict=True)]
        pairs = np.zeros((len(fitted.pairs), len(left[-1])))
        np.add.at(pairs.T, torch.searchsorted(left[-1], into).numpy(), fitted.pairs.T)
        overlaps = per_level(pairs, old, new)
        stayed, _ = _stayed(again, compute, old, new, ids.levels[-1], chosen[-1])
    store.write_json(IDS, [level.tolist() for level in chosen])
    if new.homes is not None:
        # Rates are of the fit's rows: what joined a cluster since brought it few.
        rates = [level[own] for level, own in zip(fit_rates(store), left, strict=True)]
        write_homes(store, new, rates)
    elif store.exists(HOMES):  # of an attempt with another setting
        store.remove(HOMES)
    part.note("levels", new.clusters_per_level)
    caption(again, compute, part, progress)
    folder = f"{version}/assignments"
    with part.stage("write") as counts:
        sizes = write_rows(again, compute, progress, rows, folder)
        counts |= {"shards": len(again.shards), "rows": int(sizes.sum())}
    known = {i for level in ids.levels for i in level.tolist()}
    since = since_increment(now) | {
        int(i): number for level in chosen for i in level if int(i) not in known
    }
    write_clusters(store, new, read_names(store), sizes, f"{version}/clusters", since)
    kinds = _write_map(again, number, overlaps, ids, chosen)
    return Refitted(
        {
            "assignments": [{"increment": number, "written": number, "folder": folder}],
            "model": f"{version}/model",
            "novelty": None,  # what was opened since the last fit, and what was set aside
            "aside": None,
            "next_id": unused,
        },
        {
            "kinds": kinds,
            "joined": many,
            "churn": round(1 - stayed / max(float(fitted.pairs.sum()), 1.0), 6),
        },
    )


def _wanted(config: Config, now: int) -> Any:
    """``k`` of a refit where there are ``now`` clusters at the finest level.

    What was opened since stands for a concept that the number asked for did not know of.
    """
    k, wanted = config.k, config.recluster.refit_k
    if wanted is not None or k == "auto" or config.seeding.hierarchy == "bottom_up":
        return k if wanted is None else wanted
    return [*k[:-1], max(k[-1], now)] if isinstance(k, list) else max(k, now)


def _version(number: int) -> str:
    return f"versions/increment={number:05d}"


def _first_since_fit(now: Current) -> int:
    """The first number that a shard of an increment after the last fit's can have."""
    model = now.content.get("model")
    fitted = 0 if model is None else int(model.split("=")[1].split("/")[0])
    return 1 + max(s.index for i in range(fitted + 1) for s in manifest(now.store, i))


def _with_homes(fitted: Fitted, were: npt.NDArray[np.int64], are: npt.NDArray[np.int64]) -> Forest:
    """The new model that keeps rows in the cluster of their id.

    What the fit before could not know of is left for more easily: clusters whose rows came since.
    """
    again, old, new = fitted.again, fitted.old, fitted.new
    spec = again.config.recluster
    if spec.refit_stay == 0 or again.config.seeding.hierarchy == "bottom_up":
        return new
    place = {int(i): j for j, i in enumerate(are)}
    successor = torch.tensor([place.get(int(i), -1) for i in were])
    since, before = fitted.since, fitted.pairs.sum(0) - fitted.since
    fresh = often(since, since.sum(), before, before.sum()) >= spec.novelty_times
    easily = min(spec.refit_stay_fresh, spec.refit_stay)
    nats = torch.from_numpy(np.where(fresh, easily, spec.refit_stay))
    return replace(new, homes=Homes(old, successor, new.paths[:, -1], nats))


def _joining(
    pairs: Overlap, sizes: npt.NDArray[np.int64], new: Forest, without_past: npt.NDArray[np.bool_]
) -> torch.Tensor:
    """The cluster that each finest one joins, or itself.

    One without a predecessor whose rows stay, most of them, in the clusters that they were in is
    none: a name with hardly a row. What is left of it joins the one that kept most.
    """
    own = torch.arange(len(sizes))
    if new.homes is None:
        return own
    successor = new.homes.successor.numpy()
    lives = successor >= 0
    hollow = without_past & (2 * sizes < pairs.sum(0)) & (pairs[lives].sum(0) > 0)
    keeps_most = successor[lives][pairs[lives].argmax(0)] if lives.any() else own.numpy()
    return torch.from_numpy(np.where(hollow, keeps_most, own.numpy()))


def _with_joined(new: Forest, paths: torch.Tensor, left: torch.Tensor) -> Forest:
    """Of ``new`` only the finest clusters ``left``, by their ``paths``."""
    assert new.homes is not None
    was = new.homes.successor
    successor = torch.where(was < 0, -1, torch.searchsorted(left, was))
    homes = replace(new.homes, successor=successor, of_leaf=paths[:, -1], nats=new.homes.nats[left])
    return replace(new, paths=paths, homes=homes)


def _stayed(
    again: Run,
    compute: Compute,
    old: Forest,
    new: Forest,
    were: npt.NDArray[np.int64],
    are: npt.NDArray[np.int64],
) -> tuple[int, npt.NDArray[np.int64]]:
    """The fit's rows that keep their id, and its rows per new finest cluster."""
    work = CountStayed(LoadBlock.of(again), old, new, were, are)
    blocks = list(range(again.store.read_json(INDEX)["blocks"]))
    found = [answer for _, answer in compute.map(work, blocks)]
    return sum(stayed for stayed, _ in found), np.sum([sizes for _, sizes in found], axis=0)


@dataclass(frozen=True)
class CountStayed:
    """Map: rows of one fit block that keep their id, and rows per new finest cluster; ``were`` and
    ``are`` are the ids of the finest clusters of both models."""

    load: LoadBlock
    old: Forest
    new: Forest
    were: npt.NDArray[np.int64]
    are: npt.NDArray[np.int64]

    def __call__(self, block: int) -> tuple[int, npt.NDArray[np.int64]]:
        x = self.load(block)
        old, new = (label(forest, x).path[:, -1].numpy() for forest in (self.old, self.new))
        sizes = np.bincount(new, minlength=len(self.are))
        return int((self.were[old] == self.are[new]).sum()), sizes


def per_level(pairs: Overlap, old: Forest, new: Forest) -> list[Overlap]:
    """The overlap at every level of the new tree, paired with the old ones from the finest up."""
    found = []
    depth = min(old.paths.shape[1], new.paths.shape[1])
    for up in reversed(range(new.paths.shape[1])):
        a = _ancestors(old, min(up, depth - 1))
        b = _ancestors(new, up)
        level = np.zeros((a.max() + 1, b.max() + 1))
        np.add.at(level, (a[:, None], b[None]), pairs)
        found.append(level)
    return found


def _ancestors(forest: Forest, up: int) -> npt.NDArray[np.int64]:
    """The cluster ``up`` levels above each finest one."""
    paths: npt.NDArray[np.int64] = forest.paths.unique(dim=0).numpy()
    order = np.argsort(paths[:, -1], kind="stable")
    above: npt.NDArray[np.int64] = paths[order, -1 - up]
    return above


def _choose(
    overlaps: list[Overlap], ids: Ids, new: Forest, least: float
) -> tuple[list[npt.NDArray[np.int64]], int]:
    unused, chosen = ids.unused, []
    for level, overlap in enumerate(overlaps):
        above = len(overlaps) - 1 - level
        old = ids.levels[-1 - above] if above < len(ids.levels) else np.zeros(0, np.int64)
        pairs = matched(overlap, least) if len(old) else {}
        found = np.zeros(new.clusters_per_level[level], np.int64)
        for j in range(len(found)):
            if j in pairs:
                found[j] = old[pairs[j]]
            else:
                found[j] = unused
                unused += 1
        chosen.append(found)
    return chosen, unused


def since_increment(now: Current) -> dict[int, int]:
    """The increment that each cluster id came with."""
    found: dict[int, int] = {}
    for level in range(now.levels):
        table = now.clusters(level, ["cluster_id", "since_increment"]).to_pydict()
        found |= dict(zip(table["cluster_id"], table["since_increment"], strict=True))
    return found


def _write_map(
    run: Run, number: int, overlaps: list[Overlap], ids: Ids, chosen: list[npt.NDArray[np.int64]]
) -> dict[str, int]:
    rows, kinds = [], dict.fromkeys(("kept", "split", "merged", "new", "retired"), 0)
    for level, overlap in enumerate(overlaps):
        above = len(overlaps) - 1 - level
        if above >= len(ids.levels):
            continue
        old = ids.levels[-1 - above].tolist()
        for old_id, new_id, kind, share in changes(overlap, old, chosen[level].tolist()):
            rows.append(
                {"old_id": old_id, "new_id": new_id, "level": level, "kind": kind, "overlap": share}
            )
            kinds[kind] += 1
    name = f"cluster_map/increment={number:05d}.parquet"
    tables.write_table(run.store, name, "cluster_map", tables.table_of("cluster_map", rows))
    return kinds
