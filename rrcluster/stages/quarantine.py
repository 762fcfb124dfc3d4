"""One shard whose workers die: embedded alone, row by row, so that what kills is found and counted.

Before each step the worker says what it is about to do. When it dies, the last word tells which
row was at fault; a row that kills ``TRIES`` workers is passed over as a bad row, and the rest of
the shard is kept. All of it is bounded: after ``MAX_DEATHS`` the shard ends where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rrcluster.compute import EmbedPlan, ShardCounts
from rrcluster.io import tables
from rrcluster.io.images import decoded, iter_raw
from rrcluster.io.vectors import vector_width
from rrcluster.models.load import load_encoder
from rrcluster.records import Bad, Sample, Shard
from rrcluster.stages.assemble import END, Assembler, Batch, publish_shard
from rrcluster.stages.embed import (
    READ_ROWS,
    Encoding,
    columns,
    end_row,
    pixel_spec,
    row_of,
)

TRIES = 3  # workers that a row may kill before it is passed over
MAX_DEATHS = 24  # workers that a shard may kill in all: eight bad rows, then it ends
# (step, first row, rows): load an encoder; read, decode or encode rows; publish the shard.
Step = tuple[str, int, int]
LOAD, PUBLISH = ("load", 0, 0), ("publish", 0, 0)


@dataclass
class Suspicion:
    """What the deaths of a shard's workers have taught so far; it travels to the next worker."""

    deaths: Counter[Step] = field(default_factory=Counter)
    poison: dict[int, str] = field(default_factory=dict)  # row → what it did
    alone: set[int] = field(default_factory=set)  # rows to encode one at a time
    end: int | None = None  # the shard ends before this row
    why_end: str = ""

    def blame(self, step: Step, how: str) -> None:
        """Learn from one more death in ``step``. Raises RuntimeError when it is no shard's fault.

        ``how`` is the carrier's word for the death, e.g. that the machine ran out of memory.
        """
        self.deaths[step] += 1
        name, row, rows = step
        spent = self.deaths[step] >= TRIES
        times = f"{self.deaths[step]} workers died ({how})"
        if self.end == 0 or (step == LOAD and spent):
            raise RuntimeError(f"{times} at step {name} of an empty shard; see the log of Ray")
        if self.deaths.total() >= MAX_DEATHS or (spent and name in ("read", "publish")):
            # What is before this row has been survived, unless the shard was cut once already.
            self.end = row if self.end is None and name != "publish" else 0
            self.why_end = f"{times} at step {name}; the rest of the shard was passed over"
        elif name == "encode" and rows > 1:
            self.alone |= set(range(row, row + rows))
        elif spent:
            self.poison[row] = f"{times} at step {name} of this row"


def embed_alone(
    plan: EmbedPlan, shard: Shard, known: Suspicion, note: Callable[[Step], None], device: str
) -> ShardCounts:
    """Embed and publish one shard with what is known of it, saying each step before it is taken."""
    note(LOAD)
    encode = Encoding(load_encoder(plan.encoder, device))
    assembler = Assembler(plan.store)
    for batch in _batches(shard, plan, known, note):
        if batch["status"][0] != END:
            note(("encode", int(batch["row"][0]), len(batch["row"])))
        if whole := assembler.add(encode(batch)):
            return whole[0]
    raise AssertionError("the row after the last one makes a shard whole")


def _batches(
    shard: Shard, plan: EmbedPlan, known: Suspicion, note: Callable[[Step], None]
) -> Iterator[Batch]:
    shape = pixel_spec(plan.encoder).shape
    held: list[dict[str, Any]] = []
    total = 0
    for item in _rows(shard, plan, known, note):
        total += 1
        if held and (item.row in known.alone or len(held) == READ_ROWS):
            yield columns(held)
            held = []
        held.append(row_of(item, shape))
        if item.row in known.alone:
            yield columns(held)
            held = []
    if held:
        yield columns(held)
    note(PUBLISH)
    yield columns([end_row(shard, total, shape)])


def _rows(
    shard: Shard, plan: EmbedPlan, known: Suspicion, note: Callable[[Step], None]
) -> Iterator[Sample | Bad]:
    raws = iter_raw(shard, plan.corpus)
    row = 0
    while row != known.end:
        note(("read", row, 1))
        raw = next(raws, None)
        if raw is None:
            return
        if row in known.poison:
            yield Bad(shard.index, row, raw.key, "decode", known.poison[row])
        else:
            note(("decode", row, 1))
            yield decoded(raw, shard, plan.corpus, pixel_spec(plan.encoder))
        row += 1
    yield Bad(shard.index, row, "", "read", known.why_end)


@dataclass(frozen=True)
class PassOver:
    """Map: publish a shard of ready vectors without reading its rows, as one bad row."""

    plan: EmbedPlan
    why: str

    def __call__(self, shard: Shard) -> ShardCounts:
        width = vector_width(shard, self.plan.corpus)
        bad = [vars(Bad(shard.index, 0, "", "read", self.why))]
        publish_shard(
            self.plan.store,
            shard.name,
            np.zeros((0, width), np.float16),
            tables.table_of("samples", []),
            tables.table_of("bad", bad),
        )
        return ShardCounts(shard.index, 1, 0, 1)
