"""resolve: assignment tables with today's ids, for readers that know nothing of increments."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from rrcluster.compute import Compute, Progress
from rrcluster.io import tables
from rrcluster.io.current import AssignmentFile, Current, current
from rrcluster.io.store import Store


def resolve(store: Store, compute: Compute, progress: Progress) -> str:
    """Write every current assignment table under ``resolved/increment=<last>``; that folder."""
    now = current(store)
    folder = f"resolved/increment={now.increment:05d}"
    files = list(enumerate(now.assignments))
    for done, _ in enumerate(compute.map(ResolveFile(now, folder), files), 1):
        progress("resolve", done, len(files))
    return folder


@dataclass(frozen=True)
class ResolveFile:
    """Map: one table with current ids; its name is that of the shard, or of its place."""

    now: Current
    folder: str

    def __call__(self, item: tuple[int, AssignmentFile]) -> int:
        number, file = item
        schema = tables.assignments_schema(self.now.levels)
        found = list(self.now.batches(schema.names, [file]))
        table = pa.concat_tables(found).cast(schema) if found else schema.empty_table()
        name = f"{file.shard if file.shard is not None else number:06d}.parquet"
        tables.write_table(self.now.store, f"{self.folder}/{name}", "assignments", table)
        return len(table)
