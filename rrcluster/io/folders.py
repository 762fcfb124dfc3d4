"""Folders of image files (corpus.format=images): a shard is a run of files in tree order.

Tree order compares paths folder by folder, so that a run touches few folders. A shard's address
is ``<root>#first=<path>&last=<path>`` (with ``&glob=<pattern>`` when a glob chose the files), and
all of its files are found again from that, by listing only the folders between the two ends.
"""

from __future__ import annotations

import bisect
import contextlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import xxhash
from fsspec import AbstractFileSystem
from fsspec.utils import get_protocol, glob_translate

from rrcluster.io import tally
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.listing import Listing, uri_of
from rrcluster.io.retry import ShortRead, of_storage, passing, persistently
from rrcluster.io.source import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    Damaged,
    Raw,
    caption_text,
    clean,
    one_line,
    unreadable,
)
from rrcluster.io.store import LOCAL_PROTOCOLS, filesystem
from rrcluster.records import Shard

Parts = tuple[str, ...]  # a path relative to the root, folder by folder

_BATCH = 32  # files fetched at once (concurrently on an object store)
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class _Run:
    """The address of a shard: the first and last file, both included."""

    root: str
    first: Parts
    last: Parts
    pattern: str = ""

    @property
    def uri(self) -> str:
        ends = f"{self.root}#first={_quote(self.first)}&last={_quote(self.last)}"
        return ends + (f"&glob={quote(self.pattern, safe='')}" if self.pattern else "")

    @classmethod
    def parse(cls, uri: str) -> _Run:
        root, mark, ends = uri.rpartition("#first=")
        assert mark, f"{uri} is no shard of image files"
        fields = dict(field.split("=", 1) for field in f"first={ends}".split("&"))
        pattern = unquote(fields.get("glob", ""))
        return cls(root, _unquote(fields["first"]), _unquote(fields["last"]), pattern)


def is_image(path: str) -> bool:
    return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES and "." in posixpath.basename(path)


def image_shards(
    listing: Listing, images_per_shard: int, known: Iterable[Shard] = ()
) -> list[tuple[str, int, str]]:
    """(uri, bytes, etag) of the runs that hold the listing's images, in tree order.

    ``known`` runs of the same root keep their ends: new files outside of them form runs of their
    own, so that files which are added later do not move others from shard to shard.
    """
    root = uri_of(listing.fs, listing.root)
    images, captions = {}, {}
    for file in listing.files:
        parts = _relative(file.path, listing.root)
        if not any(p.startswith(".") for p in parts):
            if is_image(file.path):
                images[parts] = file
            elif parts[-1].endswith(".txt"):
                captions[parts] = file
    kept = [_Run.parse(s.uri) for s in known if s.format == "images"]
    kept = sorted(
        (r for r in kept if r.root == root and r.pattern == listing.pattern), key=lambda r: r.first
    )
    starts = [run.first for run in kept]
    runs: list[list[Parts]] = []
    previous: tuple[int, bool] | None = None
    for parts in sorted(images):
        # Which kept run this file is in, or which gap between two of them.
        before = bisect.bisect_right(starts, parts)
        inside = before > 0 and parts <= kept[before - 1].last
        full = bool(runs) and len(runs[-1]) >= images_per_shard and not inside
        if previous != (before, inside) or full or listing.exact:
            runs.append([])
        runs[-1].append(parts)
        previous = (before, inside)
    found = []
    for run in runs:
        ends = next((k for k in kept if k.first <= run[0] <= k.last), None)
        ends = ends or _Run(root, run[0], run[-1], listing.pattern)
        texts = (captions.get(_caption_of(parts)) for parts in run)
        files = [(parts, images[parts].size) for parts in run]
        files += [(parts, text.size) for parts, text in zip(run, texts, strict=True) if text]
        found.append((ends.uri, sum(images[parts].size for parts in run), _etag(files)))
    return found


def _etag(files: Sequence[tuple[Parts, int]]) -> str:
    """From names and sizes: the images first, then those that have a caption and its size."""
    digest = xxhash.xxh3_128()
    for parts, size in files:
        digest.update(f"{_quote(parts)} {size}\n".encode())
    return digest.hexdigest()


def iter_folder(shard: Shard, spec: CorpusSpec) -> Iterator[Raw]:
    """The shard's images in tree order; key = path below the root, caption = sidecar ``.txt``."""
    run = _Run.parse(shard.uri)
    fs, root = filesystem(run.root, spec.storage_options)
    try:
        entries = persistently(
            lambda: dict(_between(fs, root.rstrip("/"), run, ())), _pauses(run.root)
        )
    except Exception as error:
        if of_storage(error):
            raise unreadable(run.root, error) from error
        raise
    images = [parts for parts in sorted(entries) if run.first <= parts <= run.last
              and is_image(parts[-1])]  # fmt: skip
    if run.pattern:
        matches = re.compile(glob_translate(run.pattern)).fullmatch
        images = [parts for parts in images if matches(entries[parts]["name"])]
    if not images:
        raise Damaged("read", f"none of the files is left in {run.root}")
    files = [parts for parts in images if entries[parts]["type"] == "file"]  # no broken link
    listed = [(parts, _size(entries[parts])) for parts in files]
    captions = [(p, _size(entries[t])) for p in files if (t := _caption_of(p)) in entries]
    for start, batch in _batches(images, entries):
        texts = [_caption_of(parts) for parts in batch]
        texts = [t for t in texts if t in entries and _size(entries[t]) <= MAX_TEXT_BYTES]
        wanted = [parts for parts in batch if _size(entries[parts]) <= MAX_IMAGE_BYTES] + texts
        content = dict(zip(wanted, _fetch(fs, wanted, entries, _pauses(run.root)), strict=True))
        for row, parts in enumerate(batch, start):
            text = content.get(_caption_of(parts))
            caption = caption_text(text) if isinstance(text, bytes) else None
            yield _raw(row, parts, content.get(parts), caption, _size(entries[parts]))
    # A glob lists no captions: what was listed then are the images alone.
    if shard.etag and shard.etag not in (_etag(listed + captions), _etag(listed)):
        raise Damaged("read", f"files of {run.root} were added, removed or changed after listing")


def _raw(
    row: int, parts: Parts, content: bytes | Exception | None, caption: str | None, size: int
) -> Raw:
    key = clean("/".join(parts))
    if content is None:
        return Raw(row, key, caption, problem=("too_large", f"{size} bytes"))
    if isinstance(content, Exception):
        error = unreadable(key, content)
        if isinstance(error, Damaged):  # this file only: the others go on
            return Raw(row, key, caption, problem=("read", one_line(error.detail)))
        raise error from content
    return Raw(row, key, caption, content)


def _between(
    fs: AbstractFileSystem, folder: str, run: _Run, at: Parts
) -> Iterator[tuple[Parts, dict[str, Any]]]:
    """The files below ``folder``, leaving out the sub-folders that lie before or after the run."""
    for entry in fs.ls(folder, detail=True):
        name = posixpath.basename(entry["name"].rstrip("/"))
        parts = (*at, name)
        if name.startswith(".") or not name:
            continue
        if entry["type"] != "directory":
            yield parts, entry
        elif run.first[: len(parts)] <= parts <= run.last[: len(parts)]:
            yield from _between(fs, entry["name"].rstrip("/"), run, parts)


def _batches(
    images: Sequence[Parts], entries: dict[Parts, dict[str, Any]]
) -> Iterator[tuple[int, list[Parts]]]:
    """(row of the first, images), few enough to be held in memory together."""
    start, size, batch = 0, 0, list[Parts]()
    for row, parts in enumerate(images):
        if batch and (len(batch) == _BATCH or size + _size(entries[parts]) > _BATCH_BYTES):
            yield start, batch
            start, size, batch = row, 0, []
        batch.append(parts)
        size += _size(entries[parts])
    yield start, batch


def _fetch(
    fs: AbstractFileSystem,
    wanted: Sequence[Parts],
    entries: dict[Parts, dict[str, Any]],
    pauses: Sequence[float] | None,
) -> list[bytes | Exception]:
    """Whole files, each with its content or why there is none; those that fail are tried again."""
    found: dict[Parts, bytes | Exception] = {}

    def fetch() -> None:
        rest = [p for p in wanted if p not in found or _may_pass(found[p])]
        none = [None] * len(rest)  # not cat(): it would read brackets in a name as a glob
        names = [entries[p]["name"] for p in rest]
        answers = fs.cat_ranges(names, none, none, on_error="return")
        tally.read(sum(len(a) for a in answers if isinstance(a, bytes)))
        for parts, answer in zip(rest, answers, strict=True):
            if isinstance(answer, bytes) and len(answer) < _size(entries[parts]):
                answer = ShortRead(f"{len(answer)} of {_size(entries[parts])} bytes")
            found[parts] = answer
        failed = next((a for a in map(found.__getitem__, rest) if _may_pass(a)), None)
        if isinstance(failed, Exception):
            raise failed

    with contextlib.suppress(Exception):  # every file has its own answer in ``found``
        persistently(fetch, pauses)
    return [found[parts] for parts in wanted]


def _may_pass(answer: bytes | Exception) -> bool:
    return isinstance(answer, Exception) and passing(answer)


def _pauses(uri: str) -> Sequence[float] | None:
    return () if get_protocol(uri) in LOCAL_PROTOCOLS else None


def _size(entry: dict[str, Any]) -> int:
    return int(entry.get("size") or 0)


def _caption_of(parts: Parts) -> Parts:
    return (*parts[:-1], f"{parts[-1].rpartition('.')[0]}.txt")


def _relative(path: str, root: str) -> Parts:
    return tuple(path[len(root) :].strip("/").split("/"))


def _quote(parts: Parts) -> str:
    # Names of local files may hold bytes that are no UTF-8; quoting leaves plain ASCII.
    return quote("/".join(parts), safe="/", errors="surrogateescape")


def _unquote(text: str) -> Parts:
    return tuple(unquote(text, errors="surrogateescape").split("/"))
