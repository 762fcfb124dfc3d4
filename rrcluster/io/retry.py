"""Patience with storage: a call that fails for a passing reason is made again, after a while.

Stores answer 500, 503 SlowDown, reset connections and cut bodies in normal operation. fsspec's
filesystems try some of these again by themselves, each in its own way; this is what holds for all.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fsspec import AbstractFileSystem

from rrcluster.io import tally

T = TypeVar("T")

# Seconds between tries: two minutes in all, which is longer than a store's usual hiccup.
PAUSES: Sequence[float] = (0.2, 0.5, 1, 2, 4, 8, 15, 30, 60)
SHORT: Sequence[float] = (0.2, 0.5, 1)  # where a person waits for the answer

_STORAGE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs",
                      "requests", "urllib3", "paramiko", "fsspec")  # fmt: skip
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
          FileExistsError)  # fmt: skip
_FINAL_NAMES = ("NoCredentials", "PartialCredentials", "CredentialRetrieval", "FileExpired",
                "ParamValidation", "SSOToken", "TokenRetrieval", "UnauthorizedSSO")  # fmt: skip
_jitter = random.Random()  # of its own: no result depends on when a call is tried again


class ShortRead(OSError):
    """A store answered with fewer bytes than the file has there."""


def of_storage(error: BaseException) -> bool:
    """Whether ``error`` comes from a filesystem or a library that talks to one."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in _STORAGE_LIBRARIES


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    names = (kind.__name__ for kind in type(error).__mro__)
    final = isinstance(error, _FINAL) or any(name.startswith(_FINAL_NAMES) for name in names)
    return of_storage(error) and not final


def persistently(call: Callable[[], T], pauses: Sequence[float] | None = None) -> T:
    """``call()``, made again after each of ``pauses`` (PAUSES) while it fails for a passing reason.

    The pauses are stretched or cut by up to half, so that many workers do not come back at once.
    """
    for pause in PAUSES if pauses is None else pauses:
        try:
            return call()
        except Exception as error:
            if not passing(error):
                raise
        tally.tried_again()
        time.sleep(pause * _jitter.uniform(0.5, 1.5))
    return call()


def briefly(call: Callable[[], T]) -> T:
    """``call()`` with the patience of somebody who waits at a terminal."""
    return persistently(call, SHORT)


class SteadyFile(io.RawIOBase):
    """A file of a store whose reads are tried again, and never come short before its end."""

    def __init__(self, fs: AbstractFileSystem, path: str, **options: Any) -> None:
        self._file = persistently(lambda: fs.open(path, "rb", **options))
        known = getattr(self._file, "details", None)  # what opening it has asked the store
        self.info: Mapping[str, Any] = (
            known if isinstance(known, Mapping) else persistently(lambda: fs.info(path))
        )
        self._size: int | None = self.info.get("size")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()
        return persistently(lambda: self._read(at, size))

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        content: bytes = self._file.read(size)
        if self._size is not None and len(content) != size:
            end = self._size if size < 0 else min(at + size, self._size)
            if at + len(content) < end:
                raise ShortRead(f"{len(content)} bytes from {at}, of {end - at}")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()
