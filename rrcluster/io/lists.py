"""Manifest files as ``corpus.uri``: a text file of addresses, or the manifest of another run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rrcluster.io.listing import access_error, expand_braces
from rrcluster.io.retry import briefly
from rrcluster.io.store import filesystem
from rrcluster.records import Shard, UserError

TEXTS = (".txt", ".list", ".lst")
_MAX_BYTES = 1 << 30
_WHOLE = re.compile(r"[/~]|\w[\w+.-]*://")


def is_text_list(uri: str) -> bool:
    """Whether the name says that the file lists addresses, one per line."""
    return uri.lower().endswith(TEXTS) and next(iter(expand_braces(uri))) == uri


def read_text_list(uri: str, options: Mapping[str, Any]) -> list[str]:
    """The addresses in a text file: files, folders, globs or brace ranges, one per line.

    Empty lines and lines that start with ``#`` say nothing; a relative address counts from the
    list's own folder. Raises UserError when the file is missing or lists nothing.
    """
    content = _content(uri, options)
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(
            "corpus.uri", uri, "is no UTF-8 text; a list has one address per line"
        ) from error
    wanted = [line for line in lines if line and not line.startswith("#")]
    if not wanted:
        raise UserError("corpus.uri", uri, "lists no files; write one address per line")
    folder = uri[: uri.rfind("/") + 1]
    return [line if _WHOLE.match(line) else folder + line for line in wanted]


def read_manifest_table(uri: str, options: Mapping[str, Any]) -> list[Shard] | None:
    """The shards of a run's ``manifest/increment=NNNNN.parquet``; None when ``uri`` is none."""
    if not uri.lower().endswith(".parquet"):
        return None
    fs, path = filesystem(uri, options)
    try:
        with briefly(lambda: fs.open(path, "rb")) as file:
            table = pq.ParquetFile(file)
            facts = table.schema_arrow.metadata or {}
            if facts.get(b"rrcluster.schema") != b"manifest":
                return None
            rows = table.read().to_pylist()
    except (OSError, pa.ArrowException):
        return None  # a shard perhaps: listing and reading it will say what is wrong
    if not rows:
        raise UserError("corpus.uri", uri, "is a manifest of no shards; name another")
    return [Shard(r["shard"], r["uri"], r["format"], r["num_bytes"], r["etag"]) for r in rows]


def _content(uri: str, options: Mapping[str, Any]) -> bytes:
    fs, path = filesystem(uri, options)
    try:
        size = briefly(lambda: fs.info(path)).get("size") or 0
        if size > _MAX_BYTES:
            raise UserError("corpus.uri", uri, f"is too long for a list ({size} bytes); split it")
        return bytes(briefly(lambda: fs.cat_file(path)))
    except UserError:
        raise
    except Exception as error:
        raise access_error(uri, error) from error
