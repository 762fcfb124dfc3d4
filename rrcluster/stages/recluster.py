"""recluster: new shards of the corpus become the next increment of a run.

Only new shards are read and embedded; their rows are assigned by the stored model, so a row gets
the same cluster whether it came first or later. Everything is written beside what readers see, and
one file that can be made only once, the commit, makes all of it current. A job that is killed
leaves the increment's manifest: the next one goes on with that list, to the same bytes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rrcluster.compute import Compute, Progress
from rrcluster.config import Config
from rrcluster.core.drift import Drift, Moved, against_history, drift, moved, reasons
from rrcluster.io import tables
from rrcluster.io.current import COMMITS, Current, current, manifest, manifest_name
from rrcluster.io.lease import Lease, lease
from rrcluster.io.manifest import list_shards
from rrcluster.io.store import Store
from rrcluster.records import Shard, UserError
from rrcluster.stages.between_fits import look_between_fits
from rrcluster.stages.count import read_forest
from rrcluster.stages.drift import fitted_sums, new_sums
from rrcluster.stages.embed import embed
from rrcluster.stages.refit import Fitted, Ids, fit_again, refit, since_increment
from rrcluster.stages.run import Record, Run, existing_run
from rrcluster.stages.write import assignments_folder, cluster_ids, write_clusters, write_rows

log = logging.getLogger("rrcluster")
PATIENCE = 1.25  # rows now per row at a fit that was not adopted, before the next is tried
FAR = 2.0  # times what chance gives: a mean that moved so far is told in words
SHOWN = 20  # clusters that changed most, in the record


@dataclass(frozen=True)
class Plan:
    """What the next increment consists of; ``old`` are the shards that ``changed`` ones replace."""

    increment: int
    shards: tuple[Shard, ...]
    replaced: tuple[Shard, ...] = ()
    kept_back: tuple[Shard, ...] = ()  # changed, and left as they are
    vanished: tuple[Shard, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of it; ``facts`` are those of the record, empty when there was nothing to do."""

    plan: Plan
    facts: dict[str, Any]


def recluster(config: Config, start: Callable[[], Compute], progress: Progress) -> Outcome:
    """Add what is new to the run. ``start`` is called only when there is something to do.

    Raises UserError for a run that is not finished, for a changed shard (recluster.on_changed), and
    Busy when another job has the run.
    """
    run, record = existing_run(config)
    record.refuse_adopted()
    if config.corpus.uri:
        corpus = replace(run.config.corpus, uri=config.corpus.uri)
        run = replace(run, config=replace(run.config, corpus=corpus))
    if record.content.get("finished") is None:
        raise UserError("run_dir", config.run_dir, "the run is not finished; end it with `cluster`")
    mirror_clusters(current(run.store))
    plan = plan_increment(run, current(run.store))
    _warn(plan)
    if not plan.shards and config.recluster.refit != "always":
        return Outcome(plan, {})
    with lease(run.store, "rrcluster recluster") as held:
        now = current(run.store)
        plan = plan_increment(run, now)  # again: another job may have been faster
        if not plan.shards and config.recluster.refit != "always":
            return Outcome(plan, {})
        with start() as compute:
            facts = _add(run, now, plan, compute, record, held, compute.observed(progress))
    return Outcome(plan, facts)


def plan_increment(run: Run, now: Current) -> Plan:
    """What is in no manifest yet; an increment that was begun goes on with its own manifest."""
    number = now.increment + 1
    known = {s.uri: s for s in now.shards}
    begun = manifest(run.store, number)
    if begun or run.store.exists(manifest_name(number)):
        return Plan(number, begun, tuple(known[s.uri] for s in begun if s.uri in known))
    listed = list_shards(run.config.corpus, now.shards)
    changed = [s for s in listed if s.uri in known and _differs(s, known[s.uri])]
    fresh = [s for s in listed if s.uri not in known]
    here = {s.uri for s in listed}
    vanished = tuple(s for uri, s in known.items() if uri not in here)
    policy = run.config.recluster.on_changed
    if changed and policy == "error":
        raise UserError(
            "recluster.on_changed",
            policy,
            f"{len(changed)} shards changed since they were read, first: {changed[0].uri}; use "
            "skip to keep their old rows, reprocess to read them again",
        )
    if policy == "reprocess":
        fresh, again = fresh + changed, tuple(known[s.uri] for s in changed)
        kept_back: tuple[Shard, ...] = ()
    else:
        again, kept_back = (), tuple(known[s.uri] for s in changed)
    first = 1 + max(s.index for i in range(number) for s in manifest(run.store, i))
    numbered = tuple(replace(s, index=first + i) for i, s in enumerate(fresh))
    return Plan(number, numbered, again, kept_back, vanished)


def _differs(one: Shard, other: Shard) -> bool:
    return (one.num_bytes, one.etag) != (other.num_bytes, other.etag)


def _warn(plan: Plan) -> None:
    for what, shards in (("changed and left", plan.kept_back), ("vanished", plan.vanished)):
        if shards:
            log.warning("%d shards %s since they were read, first: %s", len(shards), what,
                        shards[0].uri)  # fmt: skip


def _add(
    run: Run,
    now: Current,
    plan: Plan,
    compute: Compute,
    whole: Record,
    held: Lease,
    progress: Progress,
) -> dict[str, Any]:
    """Embed, assign, look at the drift, fit again if need be, commit; the increment's facts."""
    number, store = plan.increment, run.store
    record = whole.of_increment(number)
    if not store.exists(manifest_name(number)):
        rows = [vars(s) | {"shard": s.index} for s in plan.shards]
        tables.write_table(
            store, manifest_name(number), "manifest", tables.table_of("manifest", rows)
        )
    fresh = Run(now.store, run.config, plan.shards)
    forest = read_forest(now.store)
    ids = cluster_ids(now.store, forest)
    sizes: npt.NDArray[np.int64] = np.zeros(len(ids[-1]), np.int64)
    folder = assignments_folder(number)
    embedded = 0
    if plan.shards:
        embed(fresh, compute, record, progress, may_be_empty=True)
        embedded = record.content["reconciliation"]["embedded"]
        with record.stage("write") as counts:
            sizes = write_rows(fresh, compute, progress, embedded, folder, f"{number:05d}-")
            counts |= {"shards": len(plan.shards), "rows": int(sizes.sum())}
    held.check()
    fitted, added = fitted_sums(fresh, compute, forest), new_sums(fresh, compute, forest)
    found = drift(fitted.rows, sizes, fitted.outliers, added.outliers)
    before = _sizes(now, ids[-1]) - _lost(now, plan.replaced, ids[-1])
    total = int(before.sum()) + embedded
    base = now.content.get("fitted_rows", int(_sizes(now, ids[-1]).sum()))
    spec = run.config.recluster
    why = reasons(found, total / max(base, 1), spec.max_distance, spec.max_growth)
    refused = now.content.get("refused_rows")
    waits = spec.refit == "auto" and refused is not None and total < PATIENCE * refused
    again = spec.refit == "always" or (spec.refit == "auto" and bool(why) and not waits)
    kept_by = f"recluster.refit={spec.refit}"
    if waits:
        kept_by += f": a fit of {refused} rows was not better; the next waits for more rows"
    content: dict[str, Any] = {
        "increment": number,
        "assignments": [{"increment": i, "written": w, "folder": f} for i, w, f in now.folders],
        "replaced": sorted(now.replaced | {s.index for s in plan.replaced}),
        "changes": list(now.changes),
        "model": now.content.get("model"),
        "novelty": now.content.get("novelty"),
        "aside": now.content.get("aside"),
        "next_id": now.content.get("next_id", _next_id(now)),
        "fitted_rows": base,
        "refused_rows": refused,
        "clusters": f"versions/increment={number:05d}/clusters",
    }
    facts = _facts(plan, found, moved(fitted, added), why, kept_by, again, ids[-1], embedded)
    facts["words"] += _history(whole, found, plan)
    left = tuple(s for s in now.shards if s.index not in set(content["replaced"]))
    every = (*left, *plan.shards)
    if again:
        tried = fit_again(
            Run(store, run.config, every), now, number, total, compute, record, progress
        )
        again = tried.verdict.better or spec.refit == "always"
        content |= {"fitted_rows": total, "refused_rows": None if again else total}
        _tell_verdict(facts, tried, again)
    if again:
        ids_before = Ids(tuple(ids), content["next_id"])
        done = refit(tried, now, number, ids_before, compute, progress)
        content |= done.content
        facts["refit"] |= done.facts
        if many := done.facts["joined"]:
            facts["words"].append(
                f"{many} clusters of the fit joined others: most of their rows stay in those"
            )
        if done.facts["churn"] > spec.max_churn:
            log.warning("the refit gave %.0f %% of the rows another id", 100 * done.facts["churn"])
    else:
        grown = look_between_fits(
            fresh, now, every, number, forest, ids, content["next_id"], compute, progress
        )
        content |= grown.content
        facts["novelty"] = grown.facts
        facts["words"] += grown.facts.get("words", [])
        sizes, written, wider = before + sizes, number, grown.wider
        if wider is not None:
            # Rows of this increment were written by the model before; some have moved already.
            written, content["changes"] = number - 1, [*content["changes"], number]
            k = len(wider.ids[-1])
            sizes = np.bincount(wider.place, sizes, k).astype(np.int64) + grown.change
            since = since_increment(now) | {
                new: number for _, new, kind in wider.kinds if kind != "merged"
            }
            to = now.store.with_folder("novelty", content["novelty"])
            write_clusters(to, wider.forest, wider.names, sizes, content["clusters"], since)
        else:
            _write_tables(now, content["clusters"], sizes, ids[-1])
        if plan.shards:
            content["assignments"].append(
                {"increment": number, "written": written, "folder": folder}
            )
        _write_map(store, number, now, wider.kinds if wider else ())
    held.check()
    name = f"{COMMITS}/increment={number:05d}.json"
    if not store.create(name, json.dumps(content, indent=1).encode()):
        raise RuntimeError(f"{name} is there already: another job added this increment")
    mirror_clusters(current(store))
    record.content |= facts | {"spilled_bytes": compute.spilled_bytes()}
    _reconcile(whole)
    whole.save()
    for line in facts["words"]:
        log.info("%s", line)
    return facts


def _facts(
    plan: Plan,
    found: Drift,
    means: Moved,
    why: Sequence[str],
    kept_by: str,
    again: bool,
    ids: npt.NDArray[np.int64],
    embedded: int,
) -> dict[str, Any]:
    order = np.argsort(-np.abs(found.score), kind="stable")[:SHOWN]
    because = "; ".join(why)
    if again:
        decision = f"fitted again: {because or 'recluster.refit=always'}"
    elif why:
        decision = f"not fitted again ({kept_by}), although {because}"
    else:
        decision = "the clusters still fit"
    words = [
        f"increment {plan.increment}: {len(plan.shards)} new shards, {embedded} rows",
        decision,
    ]
    with np.errstate(invalid="ignore", divide="ignore"):  # one row has no chance to compare with
        times = np.nan_to_num(means.shift / means.shift_by_chance, posinf=0.0)
    if len(times) and times.max() > FAR:
        i = int(times.argmax())
        words.append(
            f"cluster {ids[i]} moved most: its mean by {means.shift[i]:.3f} (chance gives "
            f"{means.shift_by_chance[i]:.3f}), its rows cost {means.rate[i]:+.2f} ± "
            f"{means.rate_error[i]:.2f} nats more"
        )
    return {
        "words": words,
        "decision": decision,
        "reasons": list(why),
        "shards": len(plan.shards),
        "rows": embedded,
        "replaced": [s.uri for s in plan.replaced],
        "changed": [s.uri for s in plan.kept_back],
        "vanished": [s.uri for s in plan.vanished],
        "drift": {
            "distance": round(found.distance, 6),
            "expected_distance": round(found.expected_distance, 6),
            "outliers_before": round(found.old_outliers, 6),
            "outliers": round(found.new_outliers, 6),
            "clusters": [
                {
                    "cluster_id": int(ids[i]),
                    "share_before": round(float(found.old_share[i]), 6),
                    "share": round(float(found.new_share[i]), 6),
                    "score": round(float(found.score[i]), 3),
                    "outlier_score": round(float(found.outlier_score[i]), 3),
                    **{
                        name: None if np.isnan(values[i]) else round(float(values[i]), 4)
                        for name, values in vars(means).items()
                    },
                }
                for i in order.tolist()
            ],
        },
        "refit": None,
    }


def _tell_verdict(facts: dict[str, Any], tried: Fitted, adopted: bool) -> None:
    verdict = tried.verdict
    if verdict.better:
        said = "the new fit is better and was adopted"
    elif adopted:
        said = "the new fit is not better, and was adopted as recluster.refit=always asks for it"
    else:
        said = "the new fit is not better: the model stays, with what it opens"
        facts["decision"] += f"; {said}"
    facts["words"].append(f"{said} ({verdict.words})")
    facts["refit"] = {"adopted": adopted, "k": tried.again.config.k, **verdict.facts}


def _history(whole: Record, found: Drift, plan: Plan) -> list[str]:
    """This increment beside those since the last fit, in words."""
    if not plan.shards:
        return []
    earlier: list[dict[str, Any]] = []
    for name, part in sorted(whole.content.get("increments", {}).items()):
        if int(name) < plan.increment and "drift" in part and part["rows"]:
            fitted = part["refit"] and part["refit"].get("adopted", True)
            earlier = [] if fitted else [*earlier, part["drift"]]
    return [
        against_history(
            "cluster shares moved by",
            found.distance,
            [e["distance"] for e in earlier],
            found.expected_distance,
        ),
        against_history("outliers are", found.new_outliers, [e["outliers"] for e in earlier]),
    ]


def _sizes(now: Current, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    table = now.clusters(now.levels - 1, ["cluster_id", "size"]).to_pydict()
    size = dict(zip(table["cluster_id"], table["size"], strict=True))
    return np.array([size[int(i)] for i in ids], np.int64)


def _lost(
    now: Current, replaced: Sequence[Shard], ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Rows per finest cluster of the shards that are read again."""
    lost = np.zeros(len(ids), np.int64)
    if not replaced:
        return lost
    gone, finest = {s.index for s in replaced}, f"level_{now.levels - 1}"
    files = [f for f in now.assignments if f.shard is None or f.shard in gone]
    place = {int(c): i for i, c in enumerate(ids)}
    for batch in now.batches(["shard", finest], files):
        mine = np.isin(batch["shard"].to_numpy(), list(gone))
        for cluster in batch[finest].to_numpy()[mine].tolist():
            lost[place[cluster]] += 1
    return lost


def _next_id(now: Current) -> int:
    tops = [now.clusters(level, ["cluster_id"])["cluster_id"] for level in range(now.levels)]
    return 1 + max(int(max(column.to_pylist())) for column in tops)


def _write_tables(
    now: Current, folder: str, sizes: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]
) -> None:
    """The cluster tables with new sizes, from the finest level up."""
    size = dict(zip(ids.tolist(), sizes.tolist(), strict=True))
    for level in reversed(range(now.levels)):
        rows = now.clusters(level).to_pylist()
        above: dict[int, int] = {}
        for row in rows:
            row["size"] = size[row["cluster_id"]]
            above[row["parent_id"]] = above.get(row["parent_id"], 0) + row["size"]
        size = above
        tables.write_table(
            now.store, f"{folder}/level={level}.parquet", "clusters",
            tables.table_of("clusters", rows),
        )  # fmt: skip


def _write_map(
    store: Store, number: int, now: Current, kinds: Sequence[tuple[int | None, int, str]]
) -> None:
    """What became of each id; ``kinds`` are the changes at the finest level."""
    away = {old for old, _, kind in kinds if kind == "merged"}
    finest = now.levels - 1
    rows: list[dict[str, Any]] = [
        {"old_id": i, "new_id": i, "level": level, "kind": "kept", "overlap": 1.0}
        for level in range(now.levels)
        for i in now.clusters(level, ["cluster_id"])["cluster_id"].to_pylist()
        if level < finest or i not in away
    ]
    rows += [
        {"old_id": old, "new_id": new, "level": finest, "kind": kind, "overlap": float(old in away)}
        for old, new, kind in kinds
    ]
    name = f"cluster_map/increment={number:05d}.parquet"
    tables.write_table(store, name, "cluster_map", tables.table_of("cluster_map", rows))


def mirror_clusters(now: Current) -> None:
    """Bring ``clusters/``, where other tools look, up to the current version."""
    if now.increment == 0:
        return
    for level in reversed(range(now.levels)):
        content = now.store.read_bytes(now.clusters_name(level))
        name = f"clusters/level={level}.parquet"
        if not now.store.exists(name) or now.store.read_bytes(name) != content:
            now.store.write_bytes(name, content)
    for name in now.store.names("clusters", ".parquet"):
        if name not in {f"level={level}.parquet" for level in range(now.levels)}:
            now.store.remove(f"clusters/{name}")  # of a tree that was deeper


def _reconcile(whole: Record) -> None:
    parts = [whole.content["stages"]["embed"]["counts"]]
    parts += [
        part["reconciliation"]
        for part in whole.content["increments"].values()
        if "reconciliation" in part
    ]
    read, embedded, bad = (sum(p[name] for p in parts) for name in ("read", "embedded", "bad"))
    whole.content["reconciliation"] = {
        "read": read, "embedded": embedded, "bad": bad, "ok": read == embedded + bad,
    }  # fmt: skip
