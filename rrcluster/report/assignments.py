"""The assignment tables of a run as one stream of batches, whichever way they are partitioned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rrcluster.io.store import Store

ROOT = "assignments"
BATCH_ROWS = 1 << 16  # a batch of the columns used here is a few megabytes
HIVE_COLUMN = "level_0"  # the column that names the folder with ``write.partition_by=cluster``


def assignment_files(store: Store) -> list[str]:
    """Names of all assignment files: every increment, by shard or by cluster."""
    found = []
    for increment in sorted(store.folders(ROOT)):
        folder = f"{ROOT}/{increment}"
        found += [f"{folder}/{name}" for name in sorted(store.names(folder, ".parquet"))]
        for cell in sorted(store.folders(folder)):
            found += [
                f"{folder}/{cell}/{name}"
                for name in sorted(store.names(f"{folder}/{cell}", ".parquet"))
            ]
    return found


def assignment_batches(
    store: Store, columns: Sequence[str], files: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The asked columns of every assigned sample, at most BATCH_ROWS rows at a time.

    In the hive layout a file may leave ``level_0`` to its folder's name; it is filled in here.
    """
    for name in assignment_files(store) if files is None else files:
        with store.open(name) as file:
            parquet = pq.ParquetFile(file)
            stored = [c for c in columns if c in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(BATCH_ROWS, columns=stored):
                table = pa.Table.from_batches([batch])
                if HIVE_COLUMN in columns and HIVE_COLUMN not in stored:
                    cell = pa.repeat(pa.scalar(_cell_of(name), pa.int64()), len(table))
                    table = table.append_column(HIVE_COLUMN, cell)
                yield table.select(list(columns))


def num_levels(store: Store) -> int:
    """Levels of the tree, from the files under ``clusters/`` (none in an unfinished run)."""
    names = store.names("clusters", ".parquet")
    return sum(f"level={level}.parquet" in names for level in range(len(names)))


def _cell_of(name: str) -> int:
    for part in name.split("/"):
        column, _, value = part.partition("=")
        if column == HIVE_COLUMN:
            return int(value)
    raise ValueError(f"{name} has no column {HIVE_COLUMN} and no folder that names it")
