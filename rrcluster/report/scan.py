"""One pass over a run's rows: confidence counts per cluster, top outliers, duplicates.

Memory is bounded by the number of clusters, not of samples: histograms and a short list are kept,
rows are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rrcluster.io import tables
from rrcluster.io.current import Current
from rrcluster.io.store import Store
from rrcluster.report.duplicates import DuplicateCounter, Duplicates

BINS = 10  # of the confidence histogram, over 0..1
OUTLIERS = 24
BAD_EXAMPLES = 8  # kept per reason


@dataclass(frozen=True)
class Example:
    """One sample worth a look; ``sample_id`` in hexadecimal."""

    sample_id: str
    shard: int
    row: int
    key: str
    caption: str | None
    confidence: float
    outlier: float
    cluster_id: int | None = None


@dataclass(frozen=True)
class Scan:
    """What the pass over assignments found. ``confidence[i]`` belongs to leaf ``leaf_ids[i]``."""

    rows: int
    leaf_ids: npt.NDArray[np.int64]  # (k,), ascending
    confidence: npt.NDArray[np.int64]  # (k, BINS)
    outliers: tuple[Example, ...]
    duplicates: Duplicates


def scan_assignments(now: Current, leaf_ids: npt.NDArray[np.int64], level: int) -> Scan:
    """Stream the assignments; ``leaf_ids`` are the clusters of the finest ``level``.

    Rows of clusters that are not among them (retired since) count in ``rows`` only.
    """
    leaf_ids = np.sort(leaf_ids)
    histogram = np.zeros(len(leaf_ids) * BINS, np.int64)
    column = f"level_{level}"
    columns = ("sample_id", "shard", "row", column, "confidence", "outlier")
    duplicates, top, rows = DuplicateCounter(), _no_rows(columns), 0
    for batch in now.batches(columns):
        batch = batch.cast(top.schema)
        rows += len(batch)
        duplicates.add(batch["sample_id"])
        ids = batch[column].to_numpy()
        at = np.minimum(np.searchsorted(leaf_ids, ids), max(len(leaf_ids) - 1, 0))
        known = leaf_ids[at] == ids if len(leaf_ids) else np.zeros(len(ids), bool)
        confidence = batch["confidence"].to_numpy()
        known &= ~np.isnan(confidence)  # of clusters that were adopted
        bins = np.clip((np.nan_to_num(confidence) * BINS).astype(np.int64), 0, BINS - 1)
        histogram += np.bincount((at * BINS + bins)[known], minlength=len(histogram))
        scored = batch.filter(pc.is_valid(batch["outlier"]))
        top = _most_outlying(pa.concat_tables([top, scored]))
    found = [
        Example(
            r["sample_id"].hex(), r["shard"], r["row"], "", None,
            r["confidence"], r["outlier"], r[column],
        )
        for r in top.to_pylist()
    ]  # fmt: skip
    return Scan(
        rows,
        leaf_ids,
        histogram.reshape(-1, BINS),
        tuple(_with_captions(now.store, found)),
        duplicates.result(),
    )


def scan_sample_ids(store: Store) -> Duplicates:
    """Duplicates of a run that has samples but no assignments yet."""
    counter = DuplicateCounter()
    for name in sorted(store.names("samples", ".parquet")):
        counter.add(tables.read_table(store, f"samples/{name}", ["sample_id"])["sample_id"])
    return counter.result()


def scan_bad(store: Store) -> tuple[dict[str, int], dict[str, list[dict[str, object]]]]:
    """Bad rows counted by reason, and a few of each to look at."""
    counts: dict[str, int] = {}
    examples: dict[str, list[dict[str, object]]] = {}
    for name in sorted(store.names("bad", ".parquet")):
        with store.open(f"bad/{name}") as file:
            for batch in pq.ParquetFile(file).iter_batches():
                for entry in batch.column("reason").value_counts().to_pylist():
                    reason = str(entry["values"])
                    counts[reason] = counts.get(reason, 0) + entry["counts"]
                    kept = examples.setdefault(reason, [])
                    if len(kept) < BAD_EXAMPLES:
                        same = batch.filter(pc.equal(batch.column("reason"), reason))
                        kept += same.slice(0, BAD_EXAMPLES - len(kept)).to_pylist()
    return dict(sorted(counts.items(), key=lambda c: (-c[1], c[0]))), examples


def _no_rows(names: tuple[str, ...]) -> pa.Table:
    """A table without rows that has these columns of the assignments."""
    levels = 1 + max(int(n[6:]) for n in names if n.startswith("level_"))
    return tables.assignments_schema(levels).empty_table().select(list(names))


def _most_outlying(table: pa.Table) -> pa.Table:
    """The OUTLIERS rows that are most expensive to code with their cluster; ties by shard, row."""
    outlier = table["outlier"].to_numpy(zero_copy_only=False)
    order = np.lexsort((table["row"].to_numpy(), table["shard"].to_numpy(), -outlier))
    return table.take(order[:OUTLIERS])


def _with_captions(store: Store, found: list[Example]) -> list[Example]:
    """The examples with key and caption, from at most OUTLIERS files of ``samples/``."""
    texts: dict[tuple[int, int], Mapping[str, str]] = {}
    wanted = {(e.shard, e.row) for e in found}
    for shard in sorted({s for s, _ in wanted}):
        name = f"samples/{shard:06d}.parquet"
        if not store.exists(name):
            continue
        table = tables.read_table(store, name, ["row", "key", "caption"])
        rows = pa.array([r for s, r in wanted if s == shard], pa.int32())
        for r in table.filter(pc.is_in(table["row"], rows)).to_pylist():
            texts[(shard, r["row"])] = r
    return [
        Example(
            e.sample_id, e.shard, e.row,
            texts.get((e.shard, e.row), {}).get("key", ""),
            texts.get((e.shard, e.row), {}).get("caption"),
            e.confidence, e.outlier, e.cluster_id,
        )
        for e in found
    ]  # fmt: skip
