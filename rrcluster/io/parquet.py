"""Parquet shards: a column of image bytes, with a caption, a key and a uid where there are."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.source import MAX_IMAGE_BYTES, Raw, Source, valid_uid
from rrcluster.records import Shard, UserError

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "bytes", "img", "image_bytes", "img_bytes",
               "image_data", "content", "data", "picture", "photo")  # fmt: skip
CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "txt", "title", "description")
KEY_NAMES = ("key", "__key__", "id", "image_id", "image_path", "file_name", "filename", "path",
             "uid", "name")  # fmt: skip

_ROWS = 16  # per batch: bounds memory to some images
_BUFFER = 4 << 20  # bytes read at once from a column chunk


@dataclass(frozen=True)
class Columns:
    """Which columns of a file mean what."""

    image: str | None
    caption: str | None
    key: str | None
    uid: str | None


def iter_parquet(shard: Shard, spec: CorpusSpec) -> Iterator[Raw]:
    """The shard's rows in order. Raises Damaged where it cannot be read (further).

    Raises UserError when the file has no usable image column.
    """
    with Source(shard.uri, spec.storage_options, shard) as source:
        file = open_parquet(source)
        columns = find_columns(file.schema_arrow, spec, shard.uri, image=True)
        assert columns.image is not None, "detection finds an image column or raises"
        nested = pa.types.is_struct(file.schema_arrow.field(columns.image).type)
        image = f"{columns.image}.bytes" if nested else columns.image
        rest = [n for n in (columns.caption, columns.key, columns.uid) if n is not None]
        batches = file.iter_batches(batch_size=_ROWS, columns=list(dict.fromkeys([image, *rest])))
        stem = file_stem(shard.uri)
        row = 0
        while True:
            try:
                batch = next(batches, None)
                values = [] if batch is None else batch.to_pylist()
            except Exception as error:  # Arrow raises OSError, ArrowInvalid and others for damage
                raise source.damage("truncated", error) from error
            if batch is None:
                return
            for value in values:
                yield _raw(row, value, columns, stem)
                row += 1


def open_parquet(source: Source) -> pq.ParquetFile:
    """The open file; raises Damaged: ``truncated`` when it starts as Parquet, else ``read``."""
    try:
        # Arrow's default pre_buffer=True reads all of a row group first and makes buffer_size moot:
        # 695 MB of resident memory instead of 176 for a row group of 600 MB (pyarrow 26).
        return pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)
    except Exception as error:
        damage = source.damage("read", error)
        source.seek(0)
        if source.read(4) == b"PAR1":
            damage.reason = "truncated"
        raise damage from error


def _raw(row: int, value: dict[str | None, Any], columns: Columns, stem: str) -> Raw:
    image = value[columns.image]
    if isinstance(image, dict):
        image = image["bytes"]
    key = value[columns.key] if columns.key is not None else None
    caption = value[columns.caption] if columns.caption is not None else None
    uid = valid_uid(value[columns.uid]) if columns.uid is not None else None
    key = f"{stem}:{row}" if key is None else str(key)
    if image is None:
        return Raw(row, key, caption, None, uid, ("missing_image", f"{columns.image} is null"))
    if len(image) > MAX_IMAGE_BYTES:
        return Raw(row, key, caption, None, uid, ("too_large", f"{len(image)} bytes"))
    return Raw(row, key, caption, image, uid)


def file_stem(uri: str) -> str:
    """``00000`` of ``s3://bucket/00000.parquet``."""
    return posixpath.splitext(posixpath.basename(uri))[0]


def find_columns(schema: pa.Schema, spec: CorpusSpec, uri: str, image: bool) -> Columns:
    """The columns that the settings name, or that names and types suggest.

    Raises UserError that names the file's columns. ``image=False`` looks for no image column.
    """
    found = None
    if image:
        found = _find(schema, uri, "image_column", spec.image_column, IMAGE_NAMES, _is_image)
        if found is None:
            only = [f.name for f in schema if _is_image(f.type)]
            if len(only) != 1:
                raise UserError(
                    "corpus.image_column",
                    spec.image_column,
                    f"name the column of image bytes; {uri} has {_describe(schema)}",
                )
            found = only[0]
    caption = _find(schema, uri, "caption_column", spec.caption_column, CAPTION_NAMES, _is_text)
    key = _find(schema, uri, "key_column", spec.key_column, KEY_NAMES, _is_key)
    return Columns(found, caption, key, _find(schema, uri, "", None, ("uid",), _is_text))


def _find(
    schema: pa.Schema,
    uri: str,
    setting: str,
    name: str | None,
    candidates: Sequence[str],
    fits: Callable[[pa.DataType], bool],
) -> str | None:
    if name is not None:
        if schema.names.count(name) == 1 and fits(schema.field(name).type):
            return name
        raise UserError(
            f"corpus.{setting}", name, f"no usable column of {uri}, which has {_describe(schema)}"
        )
    usable = {f.name.lower(): f.name for f in reversed(list(schema)) if fits(f.type)}
    return next((usable[c] for c in candidates if c in usable), None)


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema) or "no columns"


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))
