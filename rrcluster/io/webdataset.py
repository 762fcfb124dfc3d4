"""WebDataset shards: tar files, plain or compressed, streamed from front to back.

A sample is a run of members with the same key: the path up to the first dot of the file's name.
Of several images of one key the first in the order of IMAGE_SUFFIXES is the sample's, ``key.jpg``
before ``key.<more>.jpg``; the others are counted.
Names without an extension or with a leading dot (``._a.jpg``) are no samples, as in webdataset.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.source import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    Damaged,
    Raw,
    Source,
    caption_and_uid,
    caption_text,
    clean,
)
from rrcluster.records import BadReason, Shard

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


class _Member(tarfile.TarInfo):
    """A member header; anything but the end-of-archive mark where a header should be is an error.

    tarfile itself takes a missing mark or garbage after the first member for the end, and so
    would hide a shard that was cut between two members.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"no end-of-archive mark: {error}") from error


@dataclass
class _Group:
    """The members of one sample, so far."""

    row: int
    key: str
    suffixes: set[str] = field(default_factory=set)
    image: bytes | None = None
    rank: tuple[bool, int, str] | None = None  # of the image at hand; the lowest is the sample's
    images: int = 0
    problem: tuple[BadReason, str] | None = None
    text: str | None = None
    json_text: str | None = None
    uid: str | None = None

    @property
    def has_image(self) -> bool:
        return self.image is not None or self.problem is not None

    def raw(self, end: int = 0) -> Raw:
        problem = self.problem
        if not self.has_image:
            members = ", ".join(sorted(self.suffixes))
            problem = ("missing_image", clean(f"members: {members}")[:300])
        caption = self.text if self.text is not None else self.json_text
        image = None if problem else self.image
        extra = max(self.images - 1, 0)
        return Raw(self.row, clean(self.key), caption, image, self.uid, problem, extra, end)


def iter_webdataset(shard: Shard, spec: CorpusSpec) -> Iterator[Raw]:
    """The shard's samples in order. Raises Damaged where it ends early or is no tar at all."""
    with Source(shard.uri, spec.storage_options, shard) as source:
        tar = _open(source)
        group: _Group | None = None
        try:
            for row, key, suffix, member in _numbered(tar, source):
                if group is None or row != group.row:
                    if group is not None:
                        yield group.raw(member.offset)
                    group = _Group(row, key)
                _take(group, suffix, tar, member, source)
        except Damaged as damage:
            if group is not None and group.has_image:
                yield group.raw()  # its image is whole; of its caption we cannot know
            elif group is not None:
                damage.key = clean(group.key)
            raise
        if group is not None:
            yield group.raw(tar.offset)


def iter_members(
    shard: Shard, spec: CorpusSpec, rows: Collection[int]
) -> Iterator[tuple[int, str, list[tuple[str, bytes]]]]:
    """(row, key, members) of the wanted samples: names after the key (``.jpg``) and bytes as they
    are in the tar. Stops after the last of them. Raises Damaged where the shard ends early.
    """
    wanted, last = set(rows), max(rows, default=-1)
    with Source(shard.uri, spec.storage_options, shard) as source:
        tar = _open(source)
        at, found, own = -1, "", list[tuple[str, bytes]]()
        for row, key, _, member in _numbered(tar, source):
            if row != at:
                if at in wanted:
                    yield at, found, own
                if row > last:
                    return
                at, found, own = row, key, []
            if row in wanted and member.isreg():
                own.append((member.name[len(key) :], _content(tar, member, source)))
        if at in wanted:
            yield at, found, own


def _numbered(
    tar: tarfile.TarFile, source: Source
) -> Iterator[tuple[int, str, str, tarfile.TarInfo]]:
    """(row, key, suffix in lower case, member) of every member that belongs to a sample."""
    row, before, suffixes = -1, "", set[str]()
    while (member := _next(tar, source)) is not None:
        match = _NAME.fullmatch(member.name)
        if match is None or member.isdir():
            continue
        key, suffix = match[1], match[2].lower()
        if row < 0 or key != before or suffix in suffixes:
            row, before, suffixes = row + 1, key, set()
        suffixes.add(suffix)
        yield row, key, suffix, member


def _open(source: Source) -> tarfile.TarFile:
    try:
        options: dict[str, Any] = {"fileobj": source, "mode": "r|*", "tarinfo": _Member}
        return tarfile.open(**options)  # "|": streamed; "*": whatever the compression
    except Exception as error:
        raise source.damage("read", error) from error


def _next(tar: tarfile.TarFile, source: Source) -> tarfile.TarInfo | None:
    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
    try:
        return tar.next()
    except Exception as error:  # damaged headers raise more than TarError: ValueError, zlib.error
        raise source.damage("truncated", error) from error


def _take(
    group: _Group, suffix: str, tar: tarfile.TarFile, member: tarfile.TarInfo, source: Source
) -> None:
    """Read the member into the group if it is the sample's image or caption."""
    group.suffixes.add(suffix)
    if not member.isreg():
        return
    kind = suffix.rpartition(".")[2]
    if kind in IMAGE_SUFFIXES:
        group.images += 1
        rank = ("." in suffix, IMAGE_SUFFIXES.index(kind), suffix)
        if group.rank is not None and group.rank < rank:
            return
        group.rank, group.problem = rank, None
        if member.size > MAX_IMAGE_BYTES:
            group.image = None
            group.problem = ("too_large", f"{member.size} bytes")
        else:
            group.image = _content(tar, member, source)
    elif suffix in ("txt", "json") and member.size <= MAX_TEXT_BYTES:
        content = _content(tar, member, source)
        if suffix == "txt":
            group.text = caption_text(content)
        else:
            group.json_text, group.uid = caption_and_uid(content)


def _content(tar: Any, member: tarfile.TarInfo, source: Source) -> bytes:
    try:
        content: bytes = tar.extractfile(member).read()
    except Exception as error:
        raise source.damage("truncated", error) from error
    if len(content) != member.size:  # tarfile reports a cut member only when nothing is left of it
        raise Damaged("truncated", f"{member.name} has {len(content)} of {member.size} bytes")
    return content
