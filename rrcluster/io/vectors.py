"""Ready vectors (corpus.format=embeddings): ``.npy`` files in the place of images.

Keys and captions come from a Parquet file of the same stem beside the vectors, or from where
clip-retrieval leaves it: ``metadata/metadata_0.parquet`` for ``img_emb/img_emb_0.npy``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.parquet import file_stem, find_columns, open_parquet
from rrcluster.io.retry import persistently
from rrcluster.io.source import Damaged, Source
from rrcluster.io.store import filesystem, npy_header
from rrcluster.io.tables import SAMPLE_ID, SAMPLES
from rrcluster.records import Bad, BadReason, Shard, UserError

_CHUNK_BYTES = 32 << 20  # of float32 rows at a time


@dataclass(frozen=True)
class VectorShard:
    """A shard of ready vectors: ``read`` rows, of which those in ``x`` are usable."""

    x: npt.NDArray[np.float16]  # (m, d), unit rows
    samples: pa.Table  # m rows of tables.SAMPLES
    bad: list[Bad]
    read: int


def vector_width(shard: Shard, spec: CorpusSpec) -> int:
    """The number of columns, from the file's header."""
    return vector_shape(shard, spec)[1]


def vector_shape(shard: Shard, spec: CorpusSpec) -> tuple[int, int]:
    """(rows, columns), from the file's header. Raises UserError for a file that is no matrix."""
    try:
        with Source(shard.uri, spec.storage_options) as source:
            shape, _ = _header(source, shard)
            return shape
    except Damaged as damage:
        raise UserError("corpus.uri", shard.uri, damage.detail) from damage


def read_vectors(shard: Shard, spec: CorpusSpec) -> VectorShard:
    """The usable rows as unit vectors, their samples, and the rows that are not.

    A row with NaN or infinities and a row of zeros are bad (``decode``); a file shorter than its
    header says is one row ``truncated``; a file that is gone is one row ``read``. Raises UserError
    for pickles and for what is no (n, d) array of float16 or float32.
    """
    vectors: list[npt.NDArray[np.float16]] = []
    ids: list[bytes] = []
    rows: list[int] = []
    bad: list[Bad] = []
    read, width = 0, 0
    keys = captions = None
    stem = file_stem(shard.uri)
    try:
        with Source(shard.uri, spec.storage_options, shard) as source:
            (count, width), dtype = _header(source, shard)
            keys, captions = _companion(shard, spec, count)
            for chunk in _chunks(source, count, width, dtype):
                unit, problems = _unit_rows(chunk)
                good = np.flatnonzero(problems == 0)
                vectors.append(unit[good])
                for i in range(len(chunk)):
                    key = _key(keys, stem, read + i)
                    if problems[i]:
                        bad.append(_bad(shard, read + i, "decode", _PROBLEMS[problems[i]], key))
                    else:
                        rows.append(read + i)
                        ids.append(xxhash.xxh3_128_digest(chunk[i].tobytes() + key.encode()))
                read += len(chunk)
    except Damaged as damage:
        bad.append(_bad(shard, read, damage.reason, damage.detail))
        read += 1
    x = np.concatenate(vectors) if vectors else np.zeros((0, width), np.float16)
    samples = pa.table(
        {
            "sample_id": pa.array(ids, SAMPLE_ID),
            "shard": np.full(len(rows), shard.index, np.int32),
            "row": np.asarray(rows, np.int32),
            "key": pa.array([_key(keys, stem, row) for row in rows], pa.string()),
            "caption": pa.array([captions[r] if captions else None for r in rows], pa.string()),
            "width": np.zeros(len(rows), np.int32),
            "height": np.zeros(len(rows), np.int32),
        },
        schema=SAMPLES,
    )
    return VectorShard(x, samples, bad, read)


def _bad(shard: Shard, row: int, reason: BadReason, detail: str, key: str = "") -> Bad:
    return Bad(shard.index, row, key, reason, detail)


def _key(keys: list[str | None] | None, stem: str, row: int) -> str:
    key = keys[row] if keys is not None else None
    return f"{stem}:{row}" if key is None else key


def _header(source: Source, shard: Shard) -> tuple[tuple[int, int], np.dtype[Any]]:
    try:
        shape, dtype = npy_header(cast(BinaryIO, source))
    except Exception as error:
        if source.failure is not None:
            raise source.damage("read", error) from error
        raise UserError(
            "corpus.uri",
            shard.uri,
            f"not a plain (n, d) .npy array ({error}); save it with np.save(..., "
            "allow_pickle=False) from a C-ordered float16 or float32 array",
        ) from error
    if len(shape) != 2 or shape[1] < 1 or dtype.kind != "f" or dtype.itemsize not in (2, 4):
        raise UserError(
            "corpus.uri",
            shard.uri,
            f"holds {dtype} of shape {shape}; vectors are float16 or float32 of shape (n, d)",
        )
    return (shape[0], shape[1]), dtype


def _chunks(
    source: Source, count: int, width: int, dtype: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    """The rows as they are in the file, some megabytes at a time, each row once."""
    stride = width * dtype.itemsize
    size = max(1, _CHUNK_BYTES // (4 * width))
    for start in range(0, count, size):
        wanted = min(size, count - start)
        try:
            content = source.read(wanted * stride)
        except Exception as error:
            raise source.damage("read", error) from error
        whole = len(content) // stride
        if whole:
            yield np.frombuffer(content, dtype, whole * width).reshape(whole, width)
        if whole < wanted:
            raise Damaged("truncated", f"ends after {start + whole} of {count} rows")


_PROBLEMS = {1: "not finite", 2: "zero vector"}


def _unit_rows(
    chunk: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """Rows (n, d) of unit length, and a code of _PROBLEMS, or 0, for each."""
    x = chunk.astype(np.float32)
    peak = np.abs(x).max(axis=1)  # NaN and infinity come through
    problems = np.where(np.isfinite(peak), np.where(peak > 0, 0, 2), 1).astype(np.uint8)
    peak[problems != 0] = 1
    with np.errstate(invalid="ignore"):
        x /= peak[:, None]  # first by the largest: squares of 1e30 or 1e-30 leave float32's range
        x /= np.maximum(np.sqrt(np.einsum("nd,nd->n", x, x)), 1e-12)[:, None]
        return x.astype(np.float16), problems


def _companion(
    shard: Shard, spec: CorpusSpec, count: int
) -> tuple[list[str | None] | None, list[str | None] | None]:
    """Keys and captions from the Parquet file that goes with the vectors, if there is one."""
    for uri in _companion_uris(shard.uri):
        if _exists(uri, spec):
            break
    else:
        return None, None
    try:
        with Source(uri, spec.storage_options) as source:
            file = open_parquet(source)
            columns = find_columns(file.schema_arrow, spec, uri, image=False)
            names = [n for n in (columns.key, columns.caption) if n is not None]
            table = file.read(columns=names)
            rows = file.metadata.num_rows
    except (Damaged, pa.ArrowException, OSError) as error:
        raise UserError("corpus.uri", uri, f"cannot be read as Parquet: {error}") from error
    if rows != count:
        raise UserError("corpus.uri", shard.uri, f"has {count} rows, but {uri} has {rows}")
    return tuple(  # type: ignore[return-value]
        None if name is None else table.column(name).cast(pa.string()).to_pylist()
        for name in (columns.key, columns.caption)
    )


def _exists(uri: str, spec: CorpusSpec) -> bool:
    fs, path = filesystem(uri, spec.storage_options)
    try:
        persistently(lambda: fs.info(path))
    except FileNotFoundError:
        return False
    return True


def _companion_uris(uri: str) -> list[str]:
    folder, stem = posixpath.dirname(uri), file_stem(uri)
    beside = [f"{folder}/{stem}.parquet" if folder else f"{stem}.parquet"]
    if stem.startswith("img_emb_"):
        number = stem.removeprefix("img_emb_")
        beside.append(f"{posixpath.dirname(folder)}/metadata/metadata_{number}.parquet")
    return beside
