"""sample: a balanced sample of a run, exact to the row, and its exports.

Four passes (``sample_rows``), each a map over files whose answers are counts; rows travel through
the store. The driver holds the tree and numbers per cluster, never rows.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from rrcluster.compute import Compute, Progress, in_order
from rrcluster.config import Config
from rrcluster.core.order import cut_into_parts
from rrcluster.core.sample import NOT_IDENTITY, Budgets, SampleSpec, balance, lorenz
from rrcluster.core.waterfill import Floats, Ints, sums
from rrcluster.io import exports
from rrcluster.io.current import AssignmentFile, Current, current
from rrcluster.io.exports import Drawn
from rrcluster.io.store import Store, npy_header
from rrcluster.records import UserError
from rrcluster.report.labels import labels_table, read_labels
from rrcluster.stages.adopt import FOLDER as ADOPTED_TREE
from rrcluster.stages.sample_classes import count_classes
from rrcluster.stages.sample_exports import COPIES, MARKS, write_exports
from rrcluster.stages.sample_plan import Population, check_spec, read_population
from rrcluster.stages.sample_rows import Collect, CountRows, Pick, Plan, Scatter, SortPart
from rrcluster.stages.steps import run_step

T = TypeVar("T")
GROUP_ROWS = 2_000_000  # rows that one worker reads or holds: 32 bytes each
VECTOR_BYTES = 512 << 20  # of embeddings that one worker holds where the choice needs them
SETTINGS, SUMMARY, WEIGHTS = "settings.json", "summary.json", "weights.parquet"
CLASSES = "classes.json"  # with evaluate.labels: rows per class before and after


def sample(config: Config, store: Store, compute: Compute, progress: Progress) -> dict[str, Any]:
    """Draw the sample and write its exports; its summary, as left in ``summary.json``.

    Raises UserError for a mistake in the settings, and when a sample of this name was drawn with
    others or from another state of the run.
    """
    spec = check_spec(config.sample, list(MARKS))
    given = config.evaluate.labels
    labels = read_labels(labels_table(given, config.corpus.storage_options)) if given else None
    now = current(store)
    population = read_population(now, spec)
    if spec.max_outlier is not None and store.exists(f"{ADOPTED_TREE}/levels.npy"):
        remedy = "rows of an adopted run have no outlier scores; leave it out"
        raise UserError("sample.max_outlier", spec.max_outlier, remedy)
    if not 0 <= spec.schedule_level < now.levels:
        remedy = f"the run has levels 0 to {now.levels - 1}"
        raise UserError("sample.schedule_level", spec.schedule_level, remedy)
    for name in spec.export:
        if name in COPIES and any(shard.format == "embeddings" for shard in now.shards):
            remedy = (
                f"{name} copies images, and this run has ready vectors only; take other formats"
            )
            raise UserError("sample.export", name, remedy)
    refuse_size(spec, int(population.sizes.sum()))
    population.budgets(np.where(population.kept, population.sizes, 0), spec, config.seed)
    folder = f"sample/{spec.name}"
    open_sample(store, folder, spec, config.seed, now)
    started = time.monotonic()
    draw = Draw(now, store, folder, spec, config.seed, population)
    if store.exists(f"{folder}/{SUMMARY}"):
        summary = dict(store.read_json(f"{folder}/{SUMMARY}"))
        drawn = draw.drawn(compute, summary["parts"], summary["draws"], progress)
    else:
        summary, drawn = draw.run(compute, progress)
        summary["seconds"] = round(time.monotonic() - started, 3)
        store.write_json(f"{folder}/{SUMMARY}", summary)
    write_exports(drawn, now, dataclasses.replace(config, sample=spec), compute, progress)
    if labels is not None:
        count_classes(now, drawn, labels, compute, store, f"{folder}/{CLASSES}")
    return summary


def refuse_size(spec: SampleSpec, rows: int) -> None:
    """Raise UserError for a size that a run of ``rows`` rows cannot give."""
    if spec.size > rows * spec.multiplier:
        times = f", each drawn up to {spec.multiplier} times" if spec.multiplier > 1 else ""
        raise UserError(
            "sample.size",
            spec.size,
            f"the run has {rows:,} rows{times}; draw at most that, or let rows repeat with "
            "sample.multiplier",
        )


def open_sample(store: Store, folder: str, spec: SampleSpec, seed: int, now: Current) -> None:
    """Note what this sample is. Raises UserError when another one has its name."""
    asked = {f"sample.{n}": v for n, v in dataclasses.asdict(spec).items() if n not in NOT_IDENTITY}
    asked |= {"seed": seed, "increment": now.increment}
    name = f"{folder}/{SETTINGS}"
    if not store.exists(name):
        store.write_json(name, asked)
        return
    stored = store.read_json(name)
    asked = json_of(asked)
    for setting in asked:
        if stored.get(setting) == asked[setting]:
            continue
        if setting == "increment":
            raise UserError(
                "sample.name",
                spec.name,
                f"this sample was drawn at increment {stored.get(setting)} and the run is at "
                f"{asked[setting]} now; choose another sample.name",
            )
        raise UserError(
            setting,
            asked[setting],
            f"the sample {spec.name} was drawn with {setting}={stored.get(setting)}; keep that "
            "value, or choose another sample.name",
        )


def json_of(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it comes back from JSON."""
    back: dict[str, Any] = json.loads(json.dumps(value))
    return back


@dataclass(frozen=True)
class Draw:
    """One sample on its way from the clusters to ``weights.parquet``."""

    now: Current
    store: Store
    folder: str
    spec: SampleSpec
    seed: int
    population: Population

    def run(self, compute: Compute, progress: Progress) -> tuple[dict[str, Any], Drawn]:
        plan, files = self.plan()
        work = f"{self.folder}/work"
        groups = evenly(files, self.pieces(plan.vectors))
        scattered = run_step(
            compute, self.store, f"{work}/scatter", Scatter(plan),
            list(enumerate(groups)), progress, "reading assignments",
        )  # fmt: skip
        parts = plan.parts.parts
        offsets = np.stack([answer[: parts + 1] for answer in scattered])
        unwanted, outliers = np.sum([answer[parts + 1 :] for answer in scattered], axis=0).tolist()
        slices = [(p, offsets[:, p], offsets[:, p + 1]) for p in range(parts)]
        sorted_ = run_step(
            compute, self.store, f"{work}/sort", SortPart(plan), slices, progress, "sorting"
        )
        exact, near = np.sum([answer[-2:] for answer in sorted_], axis=0).tolist()
        available = np.zeros(len(plan.parts.first), np.int64)
        for part, answer in enumerate(sorted_):
            here = plan.parts.groups(part)
            available[here.start : here.stop] += answer[:-2]
        budgets = self.budgets(available)
        shards = [s.index for s in self.now.shards]
        shard_groups = evenly(shards, self.pieces(False))
        pick = Pick(plan, np.asarray([g[0] for g in shard_groups]))
        picked = run_step(
            compute, self.store, f"{work}/pick", pick,
            list(self.shares(plan, [a[:-2] for a in sorted_], budgets, available)),
            progress, "picking",
        )  # fmt: skip
        offsets = np.stack(picked)
        collect = Collect(plan, self.population.levels.path())
        slices = [(g, offsets[:, g], offsets[:, g + 1]) for g in range(len(shard_groups))]
        collected = run_step(
            compute, self.store, f"{work}/collect", collect, slices, progress, "collecting"
        )
        rows, draws = np.sum(collected, axis=0).tolist()
        assert draws == budgets.total, f"{draws} rows were drawn of a budget of {budgets.total}"
        drawn = self.drawn(compute, len(shard_groups), draws, progress)
        if not self.store.exists(f"{self.folder}/{WEIGHTS}"):
            list(compute.map(Publish(drawn, self.now.levels), [0]))
        left_out = {
            "excluded": unwanted, "outliers": outliers,
            "duplicates": exact, "near_duplicates": near,
        }  # fmt: skip
        summary = {
            "name": self.spec.name, "method": self.spec.method, "wanted": budgets.wanted,
            "draws": draws, "rows": rows, "parts": len(shard_groups),
            "left_out": left_out, "available": int(available.sum()),
            "short": budgets.wanted - draws,
            "why_short": why_short(budgets, int(available.sum()), left_out, self.spec),
        }  # fmt: skip
        after = budgets.leaf
        if self.spec.method == "random":
            after = np.zeros(self.population.levels.num_leaves, np.int64)
            for _, (leaf, count) in compute.map(CountDraws(drawn), range(len(shard_groups))):
                after[np.searchsorted(plan.leaf_ids, leaf)] += count
        return summary | {"levels": balances(self.population, after)}, drawn

    def plan(self) -> tuple[Plan, Sequence[AssignmentFile]]:
        """How rows are cut into parts, and the files they come from."""
        levels, kept = self.population.levels, self.population.kept
        group = np.where(kept, np.arange(len(kept)), -1)
        sizes = np.where(kept, self.population.sizes, 0)
        if self.spec.method == "random":
            group, sizes = np.where(kept, 0, -1), np.asarray([sizes.sum()])
        vectors = self.spec.dedup_threshold is not None or self.spec.leaf_choice != "random"
        parts = cut_into_parts(sizes, self.piece_rows(vectors), sliced=not vectors)
        plan = Plan(
            self.now, self.store, f"{self.folder}/work", self.spec, self.seed,
            levels.ids[-1], group, parts, vectors,
        )  # fmt: skip
        return plan, self.now.assignments

    def piece_rows(self, vectors: bool) -> int:
        """Rows of one piece of work: bounded by the bytes that travel with a row."""
        if not vectors:
            return GROUP_ROWS
        first = f"embeddings/{self.now.shards[0].name}.npy"
        with self.store.open(first) as file:
            (_, width), _ = npy_header(file)
        return max(VECTOR_BYTES // (2 * width), 1)

    def pieces(self, vectors: bool) -> int:
        return -(-int(self.population.sizes.sum()) // self.piece_rows(vectors))

    def shares(
        self, plan: Plan, counts: list[Ints], budgets: Budgets, available: Ints
    ) -> Iterator[tuple[int, Ints, Ints, Ints, Floats]]:
        """What each part gives: a large cluster's slices give in turn, by ascending key."""
        times, further = np.divmod(budgets.leaf, np.maximum(available, 1))
        further[available == 0] = 0
        weight = available / np.maximum(budgets.leaf, 1)
        given = 0  # further rows of a sliced cluster that earlier slices gave
        for part, count in enumerate(counts):
            here = plan.parts.groups(part)
            at = slice(here.start, here.stop)
            more = further[at]
            if len(here) == 1 and plan.parts.slices[here.start] > 1:
                given = 0 if part == plan.parts.first[here.start] else given
                more = np.clip(more - given, 0, count)
                given += int(more[0])
            yield part, count, times[at], more, weight[at]

    def budgets(self, available: Ints) -> Budgets:
        if self.spec.method == "random":
            total = min(self.spec.size, int(available.sum()) * self.spec.multiplier)
            return Budgets(np.asarray([total]), self.spec.size)
        return self.population.budgets(available, self.spec, self.seed)

    def drawn(self, compute: Compute, parts: int, draws: int, progress: Progress) -> Drawn:
        """The drawn rows as exports see them."""
        shards = [s.index for s in self.now.shards]
        groups = evenly(shards, min(len(shards), 4 * compute.workers))
        found = compute.map(CountRows(self.store), groups)
        counts = np.concatenate(list(in_order(found))).reshape(-1, 2)
        return Drawn(
            self.store, self.folder, parts, draws, np.asarray(shards), counts[:, 0], counts[:, 1],
            self.seed, self.spec.batch_size, self.spec.schedule_level,
        )  # fmt: skip


@dataclass(frozen=True)
class Publish:
    """Map: join the collected parts to the one table of the contract."""

    drawn: Drawn
    levels: int

    def __call__(self, item: int) -> None:
        exports.write_weights(self.drawn, self.levels)


@dataclass(frozen=True)
class CountDraws:
    """Map: (cluster ids, draws) of a collected part."""

    drawn: Drawn

    def __call__(self, part: int) -> tuple[Ints, Ints]:
        table = self.drawn.table(part)
        ids, at = np.unique(table[table.column_names[-1]].to_numpy(), return_inverse=True)
        return ids, sums(table["repeat"].to_numpy().astype(np.int64), at, len(ids))


def evenly(items: Sequence[T], pieces: int) -> list[Sequence[T]]:
    """At most ``pieces`` runs of neighbours whose lengths differ by one at most."""
    pieces = max(min(pieces, len(items)), 1)
    cuts = [len(items) * i // pieces for i in range(pieces + 1)]
    return [items[a:b] for a, b in pairwise(cuts)]


def why_short(budgets: Budgets, available: int, left_out: dict[str, int], spec: SampleSpec) -> str:
    """One sentence on why fewer rows were drawn than wanted; empty when they were not."""
    if budgets.total == budgets.wanted:
        return ""
    reasons = [f"{n:,} {r.replace('_', ' ')} were left out" for r, n in left_out.items() if n]
    reasons.append(f"{available:,} rows are left to draw from")
    if spec.multiplier > 1:
        reasons.append(f"each up to sample.multiplier={spec.multiplier} times")
    if spec.max_per_cluster is not None:
        reasons.append(f"sample.max_per_cluster={spec.max_per_cluster} per cluster")
    return f"{budgets.total:,} of {budgets.wanted:,} drawn: " + ", ".join(reasons)


def balances(population: Population, after: Ints) -> list[dict[str, Any]]:
    """Per level, coarse first: how even the corpus and the sample are over its clusters."""
    levels, before = population.levels, population.sizes
    found: list[dict[str, Any]] = []
    for level in reversed(range(len(levels.ids))):
        found.insert(0, {
            "clusters": len(before),
            "before": balance(before) | {"curve": lorenz(before)},
            "after": balance(after) | {"curve": lorenz(after)},
        })  # fmt: skip
        if level:
            above = len(levels.ids[level - 1])
            before = sums(before, levels.parent[level], above)
            after = sums(after, levels.parent[level], above)
    return found
