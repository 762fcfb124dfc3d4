"""What every reader shares: one undecoded row, damage to a shard, and the open shard itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, cast

import fsspec
import xxhash
from fsspec import AbstractFileSystem

from rrcluster.io import tally
from rrcluster.io.retry import SteadyFile, of_storage
from rrcluster.io.store import LOCAL_PROTOCOLS, filesystem
from rrcluster.records import BadReason, Shard, UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff", "tif")
MAX_IMAGE_BYTES = 1 << 30  # twice the largest plain bitmap under the default max_pixels
MAX_TEXT_BYTES = 16 << 20  # a longer caption or json file is none

_BLOCK = 16 << 20  # bytes per request and read-ahead on an object store; s3fs would take 50 MB
_UID = re.compile(r"[0-9a-fA-F]{32}")


@dataclass(frozen=True)
class Raw:
    """One row of a shard before decoding: its image's bytes, or the reason why there are none."""

    row: int
    key: str
    caption: str | None = None
    image: bytes | None = None
    uid: str | None = None  # 32 hex digits
    problem: tuple[BadReason, str] | None = None
    extra: int = 0  # further images under the same key, which are counted and not read
    end: int = 0  # bytes of a tar up to the end of this sample; 0: not told


class Damaged(Exception):
    """The shard cannot be read (further): becomes its one last row."""

    def __init__(self, reason: BadReason, detail: str, key: str = "") -> None:
        super().__init__(reason, detail, key)
        self.reason, self.detail, self.key = reason, one_line(detail), key


class Source:
    """An open shard that remembers when it was the storage that failed, and not the content.

    Damaged content is a row in ``bad/``. A storage that fails in the middle (an outage, a token
    that ran out) must not turn thousands of good rows into one bad one: reads are tried again for
    a while, then the job stops and can be resumed. A shard that is not the ``listed`` one any more
    is damaged: reason ``read``.
    """

    def __init__(
        self, uri: str, options: Mapping[str, Any] | None, listed: Shard | None = None
    ) -> None:
        self.uri = uri
        self.failure: Exception | None = None
        fs, path = filesystem(uri, options)
        local = fsspec.utils.get_protocol(uri) in LOCAL_PROTOCOLS
        self._file: BinaryIO
        try:
            if local:  # a disk's errors do not pass
                self._file = cast(BinaryIO, fs.open(path, "rb"))
                info: Mapping[str, Any] = fs.info(path)
            else:
                steady = SteadyFile(fs, path, block_size=_BLOCK)
                self._file, info = cast(BinaryIO, steady), steady.info
        except Exception as error:
            if of_storage(error):
                raise unreadable(uri, error) from error
            raise
        if listed is not None and changed(fs, info, listed):
            self.close()
            raise Damaged("read", f"{uri} is not the file that was listed: it was changed since")

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        try:
            content = self._file.read(size)
            tally.read(len(content))
            return content
        except Exception as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def damage(self, reason: BadReason, error: Exception, key: str = "") -> Damaged:
        """``error`` as damage of the content; raises instead when the storage had failed."""
        if self.failure is not None:
            raise unreadable(self.uri, self.failure) from error
        return Damaged(reason, str(error) or type(error).__name__, key)


def etag_of(info: Mapping[str, Any]) -> str:
    """The store's own tag, else a hash of size and time of change."""
    tag = _own_tag(info)
    if tag:
        return tag
    times = (info.get(n) for n in ("mtime", "LastModified", "last_modified", "updated", "created"))
    changed = next((t for t in times if t is not None), "")
    return xxhash.xxh3_128_hexdigest(f"{info.get('size')} {changed}".encode())


def _own_tag(info: Mapping[str, Any]) -> str:
    tags = (info.get(name) for name in ("ETag", "etag", "md5Hash", "content_md5"))
    return next((str(tag).strip('"') for tag in tags if tag), "")


def changed(fs: AbstractFileSystem, info: Mapping[str, Any], listed: Shard) -> bool:
    """Whether a file is another one than was listed.

    By the store's tag, or by size and time on a disk. Of other filesystems only the size is sure
    to be the same in a listing and by itself; the web lists nothing but names.
    """
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not listed.etag or protocols & {"http", "https"}:
        return False
    if _own_tag(info) or protocols & set(LOCAL_PROTOCOLS):
        return etag_of(info) != listed.etag
    size = info.get("size")
    return size is not None and int(size) != listed.num_bytes


def unreadable(uri: str, error: Exception) -> Exception:
    """The exception to raise for a file that does not open or stops in the middle.

    A file that is gone, and any trouble with a local file, is damage (reason ``read``). Lost
    permissions on an object store concern every file that follows, so the user has to act.
    """
    if isinstance(error, FileNotFoundError):
        return Damaged("read", f"no such file: {uri}")
    if fsspec.utils.get_protocol(uri) in LOCAL_PROTOCOLS:
        return Damaged("read", str(error))
    if isinstance(error, PermissionError):
        return UserError(
            "corpus.uri", uri, "permission denied; renew the keys in corpus.storage_options"
        )
    return RuntimeError(f"{uri}: the storage failed: {one_line(str(error))}; run again to resume")


def one_line(text: str, limit: int = 300) -> str:
    """A detail for ``bad/``: one line of bounded length."""
    return clean(" ".join(text.split()))[:limit]


def clean(text: str) -> str:
    """``text`` as valid Unicode: names of files and json strings may hold lone surrogates."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def caption_text(content: bytes) -> str:
    """The caption in a ``.txt`` file, as it is; bytes that are no UTF-8 are replaced."""
    return content.decode("utf-8-sig", "replace")


def caption_and_uid(content: bytes) -> tuple[str | None, str | None]:
    """The caption (``caption``, else ``text``) and ``uid`` in a sample's json, where usable."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(facts, dict):
        return None, None
    texts = (facts.get(name) for name in ("caption", "text"))
    caption = next((t for t in texts if isinstance(t, str)), None)
    return None if caption is None else clean(caption), valid_uid(facts.get("uid"))


def valid_uid(value: object) -> str | None:
    """``value`` if it is a 128-bit uid in hex."""
    return value if isinstance(value, str) and _UID.fullmatch(value) else None
