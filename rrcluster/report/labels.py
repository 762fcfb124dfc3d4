"""Labels of samples, joined to a stream of samples by hash: 12 bytes of memory per label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from rrcluster.io.store import filesystem
from rrcluster.records import UserError


@dataclass(frozen=True)
class Labels:
    """Labels by the hash of what they are joined on: 12 bytes per label, sorted for look-up."""

    column: str  # sample_id or key
    hashes: npt.NDArray[np.uint64]  # (n,), ascending
    codes: npt.NDArray[np.int32]  # (n,)
    names: tuple[str, ...]

    def codes_of(self, values: pa.ChunkedArray) -> npt.NDArray[np.int32]:
        """Label codes (m,) of these samples, -1 where there is no label."""
        hashes = _hashes(values)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, self.codes[at], -1).astype(np.int32)


def labels_table(uri: str, options: Mapping[str, Any]) -> pa.Table:
    """The table that evaluate.labels names. Raises UserError when there is none."""
    fs, path = filesystem(uri, options)
    try:
        with fs.open(path, "rb") as file:
            return pq.read_table(file)
    except FileNotFoundError:
        raise UserError("evaluate.labels", uri, "there is no such file") from None
    except pa.ArrowInvalid as error:
        raise UserError("evaluate.labels", uri, f"is no Parquet file ({error})") from error


def read_labels(table: pa.Table) -> Labels:
    """Labels from columns ``label`` and ``sample_id`` (16 bytes or hexadecimal) or ``key``."""
    columns = ", ".join(table.column_names) or "none"
    column = next((c for c in ("sample_id", "key") if c in table.column_names), "")
    if not column or "label" not in table.column_names:
        raise UserError(
            "evaluate.labels", f"({columns})", "needs a column label, and sample_id or key"
        )
    table = table.filter(pc.and_(pc.is_valid(table[column]), pc.is_valid(table["label"])))
    if not len(table):
        raise UserError("evaluate.labels", f"({columns})", "holds no row with a label")
    encoded = pc.cast(table["label"], pa.string()).combine_chunks().dictionary_encode()
    values = _joinable(table[column], column)
    hashes, codes = _hashes(values), encoded.indices.to_numpy().astype(np.int32)
    order = np.argsort(hashes, kind="stable")
    hashes, codes = hashes[order], codes[order]
    same = np.flatnonzero((hashes[1:] == hashes[:-1]) & (codes[1:] != codes[:-1]))
    if len(same):
        twice = values[int(order[same[0]])].as_py()
        twice = twice.hex() if isinstance(twice, bytes) else twice
        raise UserError(
            "evaluate.labels", f"{column} {twice}", "has two labels; leave one label per sample"
        )
    return Labels(column, hashes, codes, tuple(encoded.dictionary.to_pylist()))


def _joinable(values: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """Ids as bytes even when they were written in hexadecimal; keys as they are."""
    if column == "key":
        return pc.cast(values, pa.string())
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        try:
            return pa.chunked_array([[bytes.fromhex(v) for v in values.to_pylist()]], pa.binary())
        except ValueError as error:
            raise UserError(
                "evaluate.labels", "sample_id", "must be 16 bytes or 32 hexadecimal digits"
            ) from error
    return pc.cast(values, pa.binary())


def _hashes(values: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter(
        (digest(v) for v in pc.cast(values, pa.binary()).to_pylist()), np.uint64, len(values)
    )
