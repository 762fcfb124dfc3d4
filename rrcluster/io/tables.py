"""The Parquet tables of a run folder: schemas (version 1), whole-file reads and writes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rrcluster.io import tally
from rrcluster.io.store import Store

SCHEMA_VERSION = 1
SAMPLE_ID = pa.binary(16)

MANIFEST = pa.schema(
    [
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("format", pa.string()),
        ("num_bytes", pa.int64()),
        ("etag", pa.string()),
    ]
)
SAMPLES = pa.schema(
    [
        ("sample_id", SAMPLE_ID),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
BAD = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
CLUSTERS = pa.schema(
    [
        ("cluster_id", pa.int64()),
        ("level", pa.int32()),
        ("parent_id", pa.int64()),
        ("size", pa.int64()),
        ("coding_rate", pa.float32()),
        ("radius", pa.float32()),
        ("captions", pa.list_(pa.struct([("text", pa.string()), ("score", pa.float32())]))),
        ("exemplars", pa.list_(SAMPLE_ID)),
        ("since_increment", pa.int32()),
    ]
)
CLUSTER_MAP = pa.schema(
    [
        ("old_id", pa.int64()),
        ("new_id", pa.int64()),
        ("level", pa.int32()),
        ("kind", pa.string()),  # kept, split, merged, new or retired
        ("overlap", pa.float32()),
    ]
)
MOVED = pa.schema(
    [
        ("row", pa.int32()),
        ("old_id", pa.int64()),
        ("new_id", pa.int64()),
        ("confidence", pa.float32()),
        ("outlier", pa.float32()),
    ]
)
NAMES = {
    "manifest": MANIFEST,
    "samples": SAMPLES,
    "bad": BAD,
    "clusters": CLUSTERS,
    "cluster_map": CLUSTER_MAP,
    "moved": MOVED,
}


def assignments_schema(levels: int) -> pa.Schema:
    """The schema of an assignment table with columns ``level_0`` (coarsest) to ``level_{L-1}``."""
    return pa.schema(
        [
            ("sample_id", SAMPLE_ID),
            ("shard", pa.int32()),
            ("row", pa.int32()),
            ("key", pa.string()),
            ("caption", pa.string()),
            *[(f"level_{level}", pa.int64()) for level in range(levels)],
            ("confidence", pa.float32()),
            ("outlier", pa.float32()),
            ("cluster_caption", pa.string()),
        ]
    )


def weights_schema(levels: int) -> pa.Schema:
    """The schema of ``sample/<name>/weights.parquet``."""
    return pa.schema(
        [
            ("sample_id", SAMPLE_ID),
            ("shard", pa.int32()),
            ("key", pa.string()),
            ("row", pa.int32()),
            ("weight", pa.float64()),
            ("repeat", pa.int32()),
            *[(f"level_{level}", pa.int64()) for level in range(levels)],
        ]
    )


def with_metadata(kind: str, schema: pa.Schema) -> pa.Schema:
    """The schema with the format's metadata."""
    return schema.with_metadata(
        {b"rrcluster.schema": kind.encode(), b"rrcluster.schema_version": b"1"}
    )


def write_table(
    store: Store,
    name: str,
    kind: str,
    table: pa.Table,
    group_rows: int | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Publish ``table`` as Parquet with the format's metadata, and ``notes`` beside it in the
    footer; same rows, same bytes."""
    store.write_bytes(name, in_parquet(kind, table, group_rows, notes))


def in_parquet(
    kind: str,
    table: pa.Table,
    group_rows: int | None = None,
    notes: Mapping[str, str] | None = None,
) -> bytes:
    """The file that ``write_table`` publishes."""
    metadata = {**with_metadata(kind, table.schema).metadata, **(notes or {})}
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        row_group_size=group_rows,
    )
    return buffer.getvalue()


def table_of(kind: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of the named schema from row dictionaries (possibly none)."""
    return pa.Table.from_pylist(list(rows), schema=NAMES[kind])


def read_table(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    with store.open(name) as file:
        parquet = pq.ParquetFile(file)
        table = parquet.read(list(columns) if columns is not None else None)
        groups = [parquet.metadata.row_group(g) for g in range(parquet.num_row_groups)]
        chunks = [group.column(c) for group in groups for c in range(group.num_columns)]
        wanted = [c for c in chunks if columns is None or c.path_in_schema.split(".")[0] in columns]
        tally.read(sum(chunk.total_compressed_size for chunk in wanted))
    return table


def num_rows(store: Store, name: str) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(footer(store, name).num_rows)


def footer(store: Store, name: str) -> pq.FileMetaData:
    """The footer of a Parquet file; ``metadata`` of it has the notes that it was written with."""
    with store.open(name) as file:
        return pq.ParquetFile(file).metadata
