"""How far a run has come, from its folder alone: ``run.json`` and the files that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rrcluster.io import tables
from rrcluster.io.current import current, manifest
from rrcluster.io.store import Store
from rrcluster.records import UserError

STAGES = (
    "manifest", "embed", "select", "seed", "refine", "count", "caption", "write", "report",
)  # fmt: skip
ADOPTED = ("manifest", "embed", "adopt", "report")  # of a run whose clusters came from elsewhere
OPTIONAL = ("select",)  # shown only when the run has it
PER_SHARD = {
    "embed": "samples", "write": "assignments/increment=00000",
    "adopt": "assignments/increment=00000",
}  # fmt: skip
FOOTERS = 512  # shards whose row counts are read while embedding runs; above that, an estimate


@dataclass(frozen=True)
class Stage:
    """One stage: ``status`` is waiting, running, failed or done; units are shards or the whole."""

    name: str
    status: str
    done: int
    total: int
    seconds: float = 0.0  # of work; a running stage's go on
    left: float | None = None  # seconds that a running stage still needs at its rate so far
    counts: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    gpu_hours: float = 0.0


@dataclass(frozen=True)
class Increment:
    """Shards that came later; ``status`` is running, failed or done, and ``decision`` what a
    finished one made of the clusters. A running one has read ``done`` of its ``shards``."""

    number: int
    status: str
    stage: str  # where a running or failed one stands
    done: int
    shards: int
    rows: int  # of a finished one
    decision: str


@dataclass(frozen=True)
class Progress:
    """The run's stages and its counts; ``reconciles`` is None until embedding has finished."""

    uri: str
    record: Mapping[str, Any] = field(repr=False)
    stages: tuple[Stage, ...]
    read: int
    embedded: int
    bad: int
    estimated: bool  # counts are scaled up from FOOTERS shards
    reconciles: bool | None
    increments: tuple[Increment, ...] = ()

    @property
    def finished(self) -> bool:
        return all(s.status == "done" for s in self.stages if s.name != "report")

    def stage(self, name: str) -> Stage:
        return next((s for s in self.stages if s.name == name), Stage(name, "waiting", 0, 1))


def read_progress(store: Store, now: datetime | None = None) -> Progress:
    """Where the run stands. Raises UserError when the folder holds no run."""
    now = now or datetime.now(UTC)
    if not store.exists("run.json"):
        raise UserError("run_dir", store.uri, "holds no run.json; name the folder of a run")
    record = store.read_json("run.json")
    shards = int(record.get("corpus", {}).get("shards", 0))
    known = record.get("stages", {})
    expected = ADOPTED if "adopted" in record else STAGES
    stages = tuple(
        _stage(store, name, known.get(name, {}), shards, now)
        for name in (*expected, *(other for other in known if other not in expected))
        if name in known or name not in OPTIONAL
    )
    counts = record.get("reconciliation") or {}
    if counts:
        read, embedded, bad = (int(counts[n]) for n in ("read", "embedded", "bad"))
        ok = read == embedded + bad
        later = tuple(_increments(store, record.get("increments", {})))
        return Progress(store.uri, record, stages, read, embedded, bad, False, ok, later)
    names = sorted(store.names("samples", ".parquet"))
    embedded, bad = count_rows(store, "samples", names), count_rows(store, "bad", names)
    estimated = len(names) > FOOTERS
    return Progress(store.uri, record, stages, embedded + bad, embedded, bad, estimated, None)


def _increments(store: Store, known: Mapping[str, Any]) -> Iterator[Increment]:
    last = current(store).increment if known else 0
    for name, part in sorted(known.items()):
        number, rows = int(name), int(part.get("rows", 0))
        decision, shards = part.get("decision", ""), int(part.get("shards", 0))
        if number <= last:
            yield Increment(number, "done", "", shards, shards, rows, decision)
            continue
        stages = {**part.get("stages", {}), **part.get("fit", {}).get("stages", {})}
        open_ones = [n for n, stage in stages.items() if stage.get("status") != "done"]
        stage = open_ones[-1] if open_ones else next(reversed(stages), "manifest")
        failed = any(stages[n].get("status") == "failed" for n in open_ones)
        listed = {f"{s.name}.parquet" for s in manifest(store, number)}
        done = len(listed & store.names("samples", ".parquet"))
        status = "failed" if failed else "running"
        yield Increment(number, status, stage, done, len(listed), rows, decision)


def _stage(store: Store, name: str, known: Mapping[str, Any], shards: int, now: datetime) -> Stage:
    status = known.get("status", "waiting")
    done, total = int(status == "done"), 1
    if name in PER_SHARD and shards:
        files = len(store.names(PER_SHARD[name], ".parquet"))
        total = shards
        done = shards if status == "done" else min(files, shards)
    seconds, left = float(known.get("seconds", 0.0)), None
    if status == "running" and known.get("since"):
        seconds += max((now - datetime.fromisoformat(known["since"])).total_seconds(), 0.0)
        left = seconds / done * (total - done) if 0 < done < total else None
    return Stage(
        name,
        status,
        done,
        total,
        seconds,
        left,
        known.get("counts", {}),
        known.get("rates", {}),
        float(known.get("gpu_hours", 0.0)),
    )


def count_rows(store: Store, folder: str, names: Iterable[str]) -> int:
    """Rows of these files from their footers; beyond FOOTERS files, scaled from an even choice."""
    names = sorted({*names} & store.names(folder, ".parquet"))
    step = -(-len(names) // FOOTERS) or 1
    chosen = names[::step]
    with ThreadPoolExecutor(16) as pool:  # waiting for an object store, mostly
        rows = sum(pool.map(lambda n: tables.num_rows(store, f"{folder}/{n}"), chosen))
    return rows if step == 1 else round(rows * len(names) / len(chosen))
