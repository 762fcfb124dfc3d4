"""A finished hierarchy of ssl-data-curation: ``level1/sorted_clusters.npy``, ``level2/...``, read
without running anything.

Each file is numpy's object array of integer arrays, which is a pickle inside an ``.npy``. Python's
own ``pickletools`` tells the operations of a pickle without executing them; here the few that such
an array is made of are followed by hand, and any other one is refused. Level 1 is the finest: its
clusters list rows of the data, those of a higher level list clusters of the level below.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from rrcluster.io.store import Store
from rrcluster.records import UserError, setting

Ints = npt.NDArray[np.int64]
FILE = "sorted_clusters.npy"
_RECONSTRUCT = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
_SCALAR = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_NDARRAY, _DTYPE = ("numpy", "ndarray"), ("numpy", "dtype")
_ENCODE = ("_codecs", "encode")  # bytes, as protocol 2 writes them
_BYTES = {("__builtin__", "bytes"), ("builtins", "bytes")}  # and those of length 0
_PUSH = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINBYTES",
         "SHORT_BINBYTES", "BINBYTES8", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE",
         "BINUNICODE8"}  # fmt: skip
_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class AdoptSpec:
    """A clustering that was made elsewhere."""

    hierarchy: str = setting(
        "", "folder of a finished hierarchy of ssl-data-curation: level1/sorted_clusters.npy, ..."
    )


class NotPlain(ValueError):
    """The file holds something else than integer arrays."""


class _Array:
    """An array whose state has not been read yet, or was."""

    value: Ints | None = None


class _Type:
    """A dtype by its code, e.g. ``i8``; its state says the byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def numpy(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[iu][1248]", self.code):
            raise NotPlain(f"holds values of type {self.code}")
        return np.dtype(("=" if self.order == "|" else self.order) + self.code)


class _Mark:
    pass


def read_clusters(file: BinaryIO) -> Iterator[Ints]:
    """The arrays of an object array (``.npy``), one after another; nothing else is kept.

    Takes what numpy writes for a list of integer arrays or of lists of integers, and the plain
    two-dimensional array that it makes of lists of equal length. Raises NotPlain for all else.
    """
    try:
        major, _ = np.lib.format.read_magic(file)
        header = (
            np.lib.format.read_array_header_1_0
            if major == 1
            else (np.lib.format.read_array_header_2_0)
        )
        shape, fortran, dtype = header(file)
    except Exception as error:
        raise NotPlain(f"is no .npy file ({error})") from error
    if dtype.kind in "iu" and len(shape) == 2 and not fortran:
        for _ in range(shape[0]):
            row = np.frombuffer(file.read(shape[1] * dtype.itemsize), dtype)
            yield row.astype(np.int64)
        return
    if dtype.kind != "O" or len(shape) not in (1, 2):
        raise NotPlain(f"holds {dtype} of shape {tuple(shape)}, not one array per cluster")
    count, found = 0, list[Any]()
    for item in _items(file):
        if len(shape) == 1:
            yield _integers(item)
            count += 1
            continue
        found.append(item)
        if len(found) == shape[1]:
            yield _integers(found)
            found, count = [], count + 1
    if count != shape[0] or found:
        raise NotPlain(f"ends after {count:,} of {shape[0]:,} clusters")


def _integers(item: Any) -> Ints:
    if isinstance(item, _Array) and item.value is not None:
        return item.value
    if isinstance(item, list) and all(type(i) is int for i in item):
        return np.asarray(item, np.int64)
    raise NotPlain("holds a cluster that is no array of integers")


def _items(file: BinaryIO) -> Iterator[Any]:
    """What the outermost list of a pickled object array holds, given out as it is read."""
    try:
        yield from _follow(file)
    except NotPlain:
        raise
    except Exception as error:  # any damage: a pickle that ends early, a stack that is too short
        raise NotPlain(f"is damaged ({type(error).__name__}: {error})") from error


def _follow(file: BinaryIO) -> Iterator[Any]:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    outer: list[Any] | None = None
    operations = cast("Iterator[tuple[Any, Any, Any]]", pickletools.genops(file))
    for operation, argument, _ in operations:
        name = operation.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return
        if name in _PUSH:
            stack.append(argument)
        elif name in _CONSTANT:
            stack.append(_CONSTANT[name])
        elif name == "MARK":
            stack.append(_Mark)
        elif name == "GLOBAL":
            stack.append(tuple(argument.split(" ")))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [tuple(stack[-2:])]
        elif name in _TUPLE:
            stack[-_TUPLE[name] :] = [tuple(stack[-_TUPLE[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif name == "EMPTY_LIST":
            stack.append([])
            outer = stack[-1] if outer is None else outer
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            at = len(memo) if name == "MEMOIZE" else argument
            memo[at] = None if isinstance(stack[-1], _Array) else stack[-1]  # arrays are let go
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if memo[argument] is None:
                raise NotPlain("names one array twice")
            stack.append(memo[argument])
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else _to_mark(stack)
            if stack[-1] is outer:
                yield from items
            else:
                stack[-1].extend(items)
        else:
            raise NotPlain(f"asks for {name}, which integer arrays have no need of")


def _to_mark(stack: list[Any]) -> list[Any]:
    """What lies above the last mark, taken off with it."""
    items = []
    while stack[-1] is not _Mark:
        items.append(stack.pop())
    stack.pop()
    return items[::-1]


def _made(function: Any, arguments: Any) -> Any:
    """What a call would give, for the few calls that integer arrays are made with."""
    if function in _RECONSTRUCT and arguments[0] == _NDARRAY:
        return _Array()
    if function == _DTYPE:
        return _Type(arguments[0])
    if function == _ENCODE and arguments[1] == "latin1":
        return arguments[0].encode("latin1")
    if function in _BYTES and not arguments:
        return b""
    if function in _SCALAR:
        return int(np.frombuffer(arguments[1], arguments[0].numpy())[0])
    raise NotPlain(f"calls {'.'.join(map(str, function))}")


def _build(made: Any, state: tuple[Any, ...]) -> None:
    if isinstance(made, _Type):
        made.order = state[1]
    elif isinstance(made, _Array):
        _, shape, dtype, _, content = state
        if isinstance(content, bytes) and len(shape) == 1:
            made.value = np.frombuffer(content, dtype.numpy()).astype(np.int64)
            if len(made.value) != shape[0]:
                raise NotPlain("has an array of another length than it says")
    else:
        raise NotPlain("sets the state of something that is no array")


def level_folders(store: Store) -> list[str]:
    """``level1``, ``level2``, ... as far as they go, finest first. Raises UserError without any."""
    found: list[str] = []
    while store.exists(f"level{len(found) + 1}/{FILE}"):
        found.append(f"level{len(found) + 1}")
    if not found:
        remedy = f"name the folder that holds level1/{FILE}, level2/{FILE}, ..."
        raise UserError("adopt.hierarchy", store.uri, remedy)
    return found


def read_level(store: Store, folder: str) -> Iterator[Ints]:
    """The clusters of one level. Raises UserError for a file that cannot be read safely."""
    name = f"{folder}/{FILE}"
    try:
        with store.open(name) as file:
            yield from read_clusters(file)
    except NotPlain as error:
        raise UserError(
            "adopt.hierarchy",
            store.path(name),
            f"{error}; it is read without running it, so it must be plain: where it was made, save "
            "np.array([np.asarray(c) for c in clusters], dtype=object) with np.save",
        ) from error
