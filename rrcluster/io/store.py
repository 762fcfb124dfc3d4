"""A folder, local or on an object store: reads, whole-or-absent writes, listings.

On a local disk a write goes beside and is renamed; on an object store it is one put (multipart
uploads complete atomically). A reader therefore never sees half a file.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from rrcluster.io import tally
from rrcluster.io.retry import SteadyFile, persistently

T = TypeVar("T")
LOCAL_PROTOCOLS = ("file", "local")


def filesystem(
    uri: str, options: Mapping[str, Any] | None = None
) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of ``uri`` and the path on it; ``options`` as fsspec takes them.

    Options are ignored for local paths, so that one ``storage_options`` serves a job that reads
    from an object store and writes to a disk.
    """
    protocol = fsspec.utils.get_protocol(uri)
    settings = dict(options or {}) if protocol not in LOCAL_PROTOCOLS else {}
    if protocol in ("s3", "s3a"):
        settings = s3_settings(settings)
    fs, path = url_to_fs(uri, **settings)
    return fs, path


def s3_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """s3fs's arguments: ``region`` and ``path_style`` go where botocore looks for them."""
    settings = {k: v for k, v in options.items() if k not in ("region", "path_style", "endpoint")}
    settings.setdefault("use_listings_cache", False)  # others write into the same folder
    if "endpoint" in options:
        settings.setdefault("endpoint_url", options["endpoint"])
    if "region" in options:
        client = dict(settings.get("client_kwargs") or {})
        settings["client_kwargs"] = {"region_name": options["region"], **client}
    if "path_style" in options:
        config = dict(settings.get("config_kwargs") or {})
        style = "path" if options["path_style"] else "virtual"
        config["s3"] = {"addressing_style": style, **dict(config.get("s3") or {})}
        settings["config_kwargs"] = config
    return settings


@dataclass(frozen=True)
class Store:
    """A folder addressed by relative names, e.g. ``store.write_bytes("model/tree.npz", ...)``."""

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold secrets
    renamed: tuple[tuple[str, str], ...] = ()  # (folder, where it really is), e.g. another model

    def with_folder(self, folder: str, instead: str) -> Store:
        """The same run with ``instead`` in the place of ``folder``, e.g. for another model."""
        return replace(self, renamed=((f"{folder}/", f"{instead}/"), *self.renamed))

    @cached_property
    def _fs(self) -> tuple[AbstractFileSystem, str]:
        fs, path = filesystem(self.uri, self.options)
        return fs, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        # Connections do not travel.
        return {"uri": self.uri, "options": dict(self.options), "renamed": self.renamed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def is_local(self) -> bool:
        return fsspec.utils.get_protocol(self.uri) in LOCAL_PROTOCOLS

    def path(self, name: str) -> str:
        """The path of ``name`` on the filesystem."""
        for folder, instead in self.renamed:
            if f"{name}/".startswith(folder):
                name = f"{instead}{name[len(folder) :]}".rstrip("/")
                break
        return f"{self._fs[1]}/{name}" if name else self._fs[1]

    def _call(self, call: Callable[[AbstractFileSystem], T]) -> T:
        """``call(filesystem)``, made again while a store that is not local fails."""
        fs, _ = self._fs
        return call(fs) if self.is_local else persistently(lambda: call(fs))

    def exists(self, name: str) -> bool:
        path = self.path(name)
        try:
            self._call(lambda fs: fs.info(path))  # fs.exists() takes any trouble for absence
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str, suffix: str = "") -> set[str]:
        """Names of the files directly in ``folder`` that end with ``suffix`` (none if absent)."""
        path = self.path(folder)
        try:
            entries = self._call(lambda fs: fs.ls(path, detail=True, refresh=True))
        except FileNotFoundError:
            return set()
        except TypeError:  # filesystems without a listing cache take no ``refresh``
            entries = self._call(lambda fs: fs.ls(path, detail=True))
        files = (PurePosixPath(e["name"]).name for e in entries if e["type"] == "file")
        return {n for n in files if n.endswith(suffix) and not n.startswith(".")}

    def folders(self, folder: str) -> set[str]:
        """Names of the folders directly in ``folder`` (none if absent)."""
        try:
            entries = self._call(lambda fs: fs.ls(self.path(folder), detail=True))
        except FileNotFoundError:
            return set()
        return {
            PurePosixPath(e["name"].rstrip("/")).name for e in entries if e["type"] == "directory"
        }

    def open(self, name: str) -> BinaryIO:
        """A seekable reader."""
        if self.is_local:
            return cast(BinaryIO, self._fs[0].open(self.path(name), "rb"))
        return cast(BinaryIO, SteadyFile(self._fs[0], self.path(name)))

    def read_bytes(self, name: str) -> bytes:
        content = bytes(self._call(lambda fs: fs.cat_file(self.path(name))))
        tally.read(len(content))
        return content

    def write_bytes(self, name: str, content: bytes) -> None:
        """Publish ``content`` under ``name``: whole or not at all, replacing what was there."""
        path = self.path(name)
        tally.written(len(content))
        if not self.is_local:
            self._call(lambda fs: fs.pipe_file(path, content))
            return
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write piece by piece, published under ``name`` when the block ends well.

        For an object store the content is first spooled to a temporary file on this machine.
        """
        path = self.path(name)
        folder = os.path.dirname(path) if self.is_local else None
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        beside = f"{folder or tempfile.gettempdir()}/.writing-{uuid.uuid4().hex}"
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if self.is_local:
                os.replace(beside, path)
            else:
                self._call(lambda fs: fs.put_file(beside, path))
        finally:
            if os.path.exists(beside):
                os.unlink(beside)

    def remove(self, name: str) -> None:
        """Delete one file; nothing happens where it is not there."""
        path = self.path(name)
        with suppress(FileNotFoundError):
            self._call(lambda fs: fs.rm_file(path))

    def create(self, name: str, content: bytes) -> bool:
        """Publish ``content`` under ``name`` only if nothing is there; whether this call did it.

        Exactly one of several callers succeeds: a hard link on a local disk, ``If-None-Match: *``
        on S3 and what compares with it elsewhere. A put whose answer was lost counts as done.
        """
        fs, _ = self._fs
        path = self.path(name)
        if not self.is_local:
            try:
                fs.pipe_file(path, content, mode="create")
            except (FileExistsError, OSError):
                if not fs.exists(path):
                    raise
                return self.read_bytes(name) == content
            return True
        beside = f"{name}.{uuid.uuid4().hex}"
        self.write_bytes(beside, content)
        try:
            os.link(self.path(beside), path)
        except FileExistsError:
            return self.read_bytes(name) == content
        finally:
            os.unlink(self.path(beside))
        return True

    def swap(self, name: str, expected: bytes, content: bytes) -> bool:
        """Replace ``expected``, the present content of ``name``, by ``content``; whether it did.

        Compared and replaced in one step: under a file lock on a local disk, with ``If-Match`` on
        S3. Elsewhere the comparison comes just before the write, which leaves a gap between them.
        """
        fs, _ = self._fs
        path = self.path(name)
        if self.is_local:
            with open(f"{path}.lock", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not os.path.exists(path) or self.read_bytes(name) != expected:
                    return False
                self.write_bytes(name, content)
            return True
        try:
            tag = fs.info(path, refresh=True).get("ETag")
            if self.read_bytes(name) != expected:
                return False
            if "s3" not in fs.protocol or tag is None:
                fs.pipe_file(path, content)
                return True
            bucket, key, _ = fs.split_path(path)
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfMatch=tag)
            fs.invalidate_cache(path)
        except OSError:  # S3 answers 412 to a stale tag; a put whose answer was lost is ours
            return bool(fs.exists(path)) and self.read_bytes(name) == content
        return True

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def write_npy(self, name: str, array: npt.NDArray[Any]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        self.write_bytes(name, buffer.getvalue())

    def read_npy(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows ``start:stop`` of an ``.npy`` file; only those bytes are read (mapped locally)."""
        if self.is_local:
            array = np.load(self.path(name), mmap_mode="r", allow_pickle=False)[start:stop]
            tally.read(array.nbytes)
            return cast(npt.NDArray[Any], array)
        with self.open(name) as file:
            shape, dtype = npy_header(file)
            stop = shape[0] if stop is None else min(stop, shape[0])
            stride = dtype.itemsize * int(np.prod(shape[1:]))
            file.seek(start * stride, io.SEEK_CUR)
            content = file.read(max(stop - start, 0) * stride)
        tally.read(len(content))
        return np.frombuffer(content, dtype).reshape(-1, *shape[1:])


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an open ``.npy`` file, which is left at its first value.

    Raises ValueError for what is no C-ordered array of plain numbers (pickled objects included).
    """
    major, _ = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if fortran or dtype.hasobject:
        raise ValueError("not a C-ordered array of plain numbers")
    return shape, dtype
