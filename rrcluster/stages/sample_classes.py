"""How a sample moved the classes of labelled rows: for looking, never for choosing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rrcluster.compute import Compute, in_order
from rrcluster.core.sample import balance
from rrcluster.core.waterfill import Ints
from rrcluster.io.current import AssignmentFile, Current
from rrcluster.io.exports import Drawn
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.report.labels import Labels


def count_classes(
    now: Current, drawn: Drawn, labels: Labels, compute: Compute, store: Store, name: str
) -> dict[str, Any]:
    """Rows per class in the corpus and draws per class in the sample, left in ``name``.

    Raises UserError when no row has a label.
    """
    files = [[file] for file in now.assignments]
    before = total(compute, CountRun(now, labels), files, labels)
    after = total(compute, CountSample(drawn, labels), range(drawn.parts), labels)
    if not before.sum():
        remedy = f"none of its labels matches a row of the run by {labels.column}"
        raise UserError("evaluate.labels", f"({labels.column})", remedy)
    seen = np.flatnonzero(before)
    order = seen[np.argsort(-before[seen], kind="stable")]
    found = {
        "names": [labels.names[i] for i in order],
        "before": before[order].tolist(),
        "after": after[order].tolist(),
        "balance_before": balance(before[order]),
        "balance_after": balance(after[order]),
    }
    store.write_json(name, found)
    return found


def total(compute: Compute, count: Any, items: Sequence[Any], labels: Labels) -> Ints:
    """(classes,) the counts of all items."""
    counts = np.zeros(len(labels.names), np.int64)
    for part in in_order(compute.map(count, list(items))):
        counts += part
    return counts


def count(labels: Labels, values: pa.ChunkedArray, repeat: Ints | None = None) -> Ints:
    codes = labels.codes_of(values)
    known = codes >= 0
    weights = None if repeat is None else repeat[known]
    return np.bincount(codes[known], weights, len(labels.names)).astype(np.int64)


@dataclass(frozen=True)
class CountRun:
    """Map: rows per class of some assignment files."""

    now: Current
    labels: Labels

    def __call__(self, files: Sequence[AssignmentFile]) -> Ints:
        counts = np.zeros(len(self.labels.names), np.int64)
        for table in self.now.batches([self.labels.column], files):
            counts += count(self.labels, table[self.labels.column])
        return counts


@dataclass(frozen=True)
class CountSample:
    """Map: draws per class of a collected part."""

    drawn: Drawn
    labels: Labels

    def __call__(self, part: int) -> Ints:
        table = self.drawn.table(part)
        return count(self.labels, table[self.labels.column], table["repeat"].to_numpy())
