"""embed: input shards → ``embeddings/``, ``samples/`` and ``bad/``, a shard at a time.

Rows of many shards share batches, so that a small shard does not starve the encoder. Identity
travels with every row: whatever order the batches come in, and however often a task is run again,
a shard's files have the same names and the same bytes. ``samples/<shard>.parquet`` comes last.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rrcluster.compute import Compute, EmbedPlan, Progress, ShardCounts
from rrcluster.io import tables
from rrcluster.io.images import PixelSpec, read_shard
from rrcluster.io.store import Store
from rrcluster.io.vectors import read_vectors
from rrcluster.models.encoder import Encoder, EncoderSpec
from rrcluster.models.load import load_encoder, views
from rrcluster.records import Bad, Sample, Shard, UserError
from rrcluster.stages.assemble import END, FURTHER, Batch, publish_shard
from rrcluster.stages.run import Record, Run, split_evenly

log = logging.getLogger("rrcluster")
NO_VECTOR = "the encoder gave no finite vector for it"
READ_ROWS = 32  # rows per block between reading and encoding: bounds memory, 5 MB at 224 pixels


def embed(
    run: Run, compute: Compute, record: Record, progress: Progress, may_be_empty: bool = False
) -> None:
    """Embed the shards that have no mark yet, and reconcile the counts.

    Raises UserError when no row could be used, unless that may be (new shards of a run).
    """
    plan = EmbedPlan(run.store, run.config.corpus, run.config.encoder)
    with record.stage("embed") as counts:
        marks = run.store.names("samples", ".parquet")
        marked = tuple(s for s in run.shards if f"{s.name}.parquet" in marks)
        groups = split_evenly(marked, 4 * compute.workers)
        done = {
            counts.shard: counts
            for _, found in compute.map(StoredCounts(run.store), groups)
            for counts in found
        }
        todo = [s for s in run.shards if s.index not in done]
        resumed = sum(c.read for c in done.values())
        if todo and run.config.encoder.kind != "vectors":
            _refuse_other_weights(run, compute, record)
        flow = Flow(resumed, sum(c.bad for c in done.values()))
        progress("embed", len(done), len(run.shards), flow.words)
        for result in compute.embed(plan, todo):
            done[result.shard] = result
            flow.add(result)
            progress("embed", len(done), len(run.shards), flow.words, **flow.facts)
        missing = [s.uri for s in run.shards if s.index not in done]
        if missing:
            raise RuntimeError(f"{len(missing)} shards were not embedded, first: {missing[0]}")
        read = sum(c.read for c in done.values())
        embedded = sum(c.embedded for c in done.values())
        bad = sum(c.bad for c in done.values())
        counts |= {"shards": len(done), "read": read, "embedded": embedded, "bad": bad}
        further = sum(c.further for c in done.values())
        counts |= {"resumed": resumed, "further_images": further}
        if further:
            log.info("%d images were passed over: their keys have other images", further)
    seconds = record.content["stages"]["embed"]["seconds"]
    gpus = run.config.compute.gpus_per_worker * compute.workers
    record.describe(
        "embed",
        rates={"images_per_second": round(read / max(seconds, 1e-9), 1)} | flow.facts,
        gpu_hours=round(gpus * seconds / 3600, 4),
    )
    record.note(
        "reconciliation",
        {"read": read, "embedded": embedded, "bad": bad, "ok": read == embedded + bad},
    )
    if embedded == 0 and not may_be_empty:
        raise UserError(
            "corpus.uri",
            run.config.corpus.uri,
            f"none of {read} rows could be used; see bad/ in the run folder for the reasons",
        )


def _refuse_other_weights(run: Run, compute: Compute, record: Record) -> None:
    """Record the hash of the encoder's weights; raise UserError when the run has another."""
    ((_, found),) = compute.map(weights_hash, [run.config.encoder])
    stored = record.content.get("model_hash", found)
    if stored != found:
        raise UserError(
            "encoder",
            run.config.encoder.model or run.config.encoder.kind,
            f"the run was begun with other weights (hash {stored[:12]}, now {found[:12]}); "
            "use those, or choose another run_dir",
        )
    record.note("model_hash", found)


def weights_hash(spec: EncoderSpec) -> str:
    """The hash of the weights that ``spec`` loads."""
    return load_encoder(spec, "cpu").weights_hash


@dataclass
class Flow:
    """How embedding goes: what was read before this attempt, and its own rows and seconds."""

    read: int
    bad: int
    waited: float = 0.0
    busy: float = 0.0
    _new: int = 0
    _began: float = field(default_factory=time.monotonic)

    def add(self, counts: ShardCounts) -> None:
        self.read, self.bad = self.read + counts.read, self.bad + counts.bad
        self.waited, self.busy = self.waited + counts.waited, self.busy + counts.busy
        self._new += counts.read

    @property
    def facts(self) -> dict[str, float]:
        """The share of their time that encoders waited for rows; nothing where there are none."""
        whole = self.waited + self.busy
        return {"encoder_wait_share": round(self.waited / whole, 3)} if whole else {}

    @property
    def words(self) -> str:
        said = f"{self.read:,} images read, {self.bad:,} bad"
        seconds = time.monotonic() - self._began
        if self._new and seconds > 0:
            said += f", {self._new / seconds:,.0f} images/s"
        for share in self.facts.values():
            said += f", encoders waited {share:.0%}"
        return said


@dataclass(frozen=True)
class StoredCounts:
    """Map: the counts of finished shards, from their files' footers."""

    store: Store

    def __call__(self, shards: list[Shard]) -> list[ShardCounts]:
        found = []
        for shard in shards:
            footer = tables.footer(self.store, f"samples/{shard.name}.parquet")
            bad = tables.num_rows(self.store, f"bad/{shard.name}.parquet")
            embedded, further = footer.num_rows, int(footer.metadata.get(FURTHER.encode(), 0))
            found.append(ShardCounts(shard.index, embedded + bad, embedded, bad, further))
        return found


def read_batches(shard: Shard, plan: EmbedPlan) -> Iterator[Batch]:
    """The shard's rows, decoded, in blocks of some rows; the last row's status is END."""
    pixels = pixel_spec(plan.encoder)
    rows: list[dict[str, Any]] = []
    total = 0
    for item in read_shard(shard, plan.corpus, pixels):
        total += 1
        rows.append(row_of(item, pixels.shape))
        if len(rows) == READ_ROWS:
            yield columns(rows)
            rows = []
    rows.append(end_row(shard, total, pixels.shape))
    yield columns(rows)


def pixel_spec(encoder: EncoderSpec) -> PixelSpec:
    """What the encoder wants to see."""
    beside = None
    for size, resize, interpolation in reversed(views(encoder)):
        beside = PixelSpec(size, resize, interpolation, beside)  # type: ignore[arg-type]
    assert beside is not None, "an encoder looks at something"
    return beside


def row_of(item: Sample | Bad, shape: tuple[int, ...]) -> dict[str, Any]:
    """A row of a batch; a bad one carries a blank picture and its reason as status."""
    row = {"shard": item.shard, "row": item.row, "key": item.key, "further": item.further}
    if isinstance(item, Bad):
        return (
            _UNREAD | row | {"status": item.reason, "detail": item.detail, "pixels": _blank(shape)}
        )
    return row | {
        "status": "",
        "detail": "",
        "caption": item.caption,
        "width": item.width,
        "height": item.height,
        "sample_id": np.frombuffer(item.sample_id, np.uint8),
        "pixels": item.pixels,
    }


def end_row(shard: Shard, rows: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The row after the last one of a shard with ``rows`` rows."""
    end = {"shard": shard.index, "row": rows, "key": "", "status": END, "detail": ""}
    return _UNREAD | end | {"pixels": _blank(shape)}


_UNREAD = {
    "caption": None, "width": 0, "height": 0, "sample_id": np.zeros(16, np.uint8), "further": 0,
}  # fmt: skip


def _blank(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.zeros(shape, np.uint8)


_TEXT = ("status", "key", "detail", "caption")


def columns(rows: Sequence[dict[str, Any]]) -> Batch:
    """Rows as a batch of columns."""
    batch = {}
    for name in rows[0]:
        values = [r[name] for r in rows]
        if name in _TEXT:
            column = np.empty(len(rows), object)
            column[:] = values
        elif name in ("sample_id", "pixels"):
            column = np.stack(values)
        else:
            column = np.asarray(values, np.int32)
        batch[name] = column
    return batch


@dataclass
class Encoding:
    """An encoder that batches go through, one at a time or overlapping, and its clock.

    Time with a call inside is busy, other time is waiting; each row carries its part of both, so
    that they come to whoever counts the rows, without messages of their own.
    """

    encoder: Encoder
    _inside: int = 0
    _since: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, batch: Batch) -> Batch:
        """The encoded batch with ``waited`` and ``busy`` (n,) float32, in seconds."""
        waited, busy = self._tick(1)
        try:
            encoded = encode_batch(self.encoder, batch)
        finally:
            more = self._tick(-1)
        n = len(batch["row"])
        return encoded | {
            "waited": np.full(n, (waited + more[0]) / n, np.float32),
            "busy": np.full(n, (busy + more[1]) / n, np.float32),
        }

    def _tick(self, change: int) -> tuple[float, float]:
        """Seconds waited and busy since the last tick, of any thread."""
        with self._lock:
            now = time.monotonic()
            passed, busy = now - self._since, self._inside > 0
            self._since, self._inside = now, self._inside + change
        return (0.0, passed) if busy else (passed, 0.0)


def encode_batch(encoder: Encoder, batch: Batch) -> Batch:
    """The batch with ``embedding`` (n, 2d) uint8, the bytes of float16 rows, instead of pixels.

    Bad rows are encoded as blanks with the rest, so that the shape stays constant; the assembler
    drops them. A picture that the encoder has no unit vector for becomes a bad row.
    """
    vectors = encoder.encode_images(batch["pixels"]).astype(np.float16)
    rest = {name: column for name, column in batch.items() if name != "pixels"}
    squares = np.square(vectors.astype(np.float32)).sum(1)
    lost = (rest["status"] == "") & ~(squares > 0.5)  # NaN too
    if lost.any():
        rest["status"], rest["detail"] = rest["status"].copy(), rest["detail"].copy()
        rest["status"][lost], rest["detail"][lost] = "decode", NO_VECTOR
    return rest | {"embedding": vectors.view(np.uint8)}


@dataclass(frozen=True)
class TakeVectors:
    """corpus.format=embeddings: a shard of ready vectors becomes the same files, no encoder."""

    plan: EmbedPlan

    def __call__(self, shard: Shard) -> ShardCounts:
        found = read_vectors(shard, self.plan.corpus)
        bad = tables.table_of("bad", [vars(b) for b in found.bad])
        publish_shard(self.plan.store, shard.name, found.x, found.samples, bad)
        return ShardCounts(shard.index, found.read, len(found.x), len(found.bad))
