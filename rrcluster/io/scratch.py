"""The memory of fits in one process: rows in a file, and threads that share what is let go of.

Rows lie in a file without a name: read from there as they are needed, gone with the job. It is
mapped, so a block is a tensor like any other, and its pages are given back once it has been worked
on: the fit's memory does not grow with its rows, and what room there is caches them.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import BinaryIO

import torch
from torch import Tensor

log = logging.getLogger("rrcluster")

IN_MEMORY = 1 << 26  # bytes of rows up to which no file is needed
TRIMMED = 0.1  # seconds between two times that what the C library keeps is given back
ALLOCATOR = {  # settings of glibc's by their names for users: its number, and what is set here
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_THRESHOLD_": (-3, 4 << 20),  # bytes from which freed memory is given back at once
    "MALLOC_TRIM_THRESHOLD_": (-1, 16 << 20),  # free bytes at the end that are kept
}


def share_memory() -> None:
    """Threads of this process allocate from one arena, and large tables outside of it.

    What one lets go of is room for another so: with arenas of their own a fit takes a quarter to a
    half more, and another tenth where freed tables are cut up for small ones. Another C library
    than glibc is left alone, and so is what the user set in the environment.
    """
    for name, (number, value) in ALLOCATOR.items():
        if name not in os.environ:
            _of_glibc("mallopt", number, value)


def _of_glibc(name: str, *numbers: int) -> None:
    """Call what glibc has for its allocator, where it is the C library."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*numbers)


class Scratch:
    """Blocks (n, d) of rows: in memory while they take few bytes, else in a file.

    ``let_go(b)`` gives back the memory of block b, ``let_go()`` that of all, and both what the C
    library keeps of tables that are gone; their rows stay.
    """

    def __init__(self, blocks: Iterable[Tensor], in_memory: int = IN_MEMORY) -> None:
        self.blocks: list[Tensor] = []
        self._maps: list[mmap.mmap | None] = []
        self._file: BinaryIO | None = None
        self._full = False
        self._trimmed = 0.0
        size = 0
        for x in blocks:
            self.blocks.append(x)
            self._maps.append(None)
            size += x.nbytes
            if size > in_memory and not self._full:
                self._move()

    def let_go(self, block: int | None = None) -> None:
        for mapped in self._maps if block is None else [self._maps[block]]:
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)
        if self._file and time.monotonic() > self._trimmed + TRIMMED:
            _of_glibc("malloc_trim", 0)
            self._trimmed = time.monotonic()

    def close(self) -> None:
        """Tensors that are still held keep their rows."""
        self.blocks, self._maps = [], []
        if self._file is not None:
            self._file.close()

    def _move(self) -> None:
        """Put what is in memory into the file; what it has no room for stays."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this
            for number, x in enumerate(self.blocks):
                if self._maps[number] is None and x.nbytes:
                    mapped = self._mapped(x)
                    self.blocks[number] = torch.frombuffer(mapped, dtype=x.dtype).view(x.shape)
                    self._maps[number] = mapped
        except OSError as error:
            self._full = True
            log.warning(
                "rows of the fit stay in memory, as there is no room for them in %s (TMPDIR): %s",
                tempfile.gettempdir(), error,
            )  # fmt: skip

    def _mapped(self, x: Tensor) -> mmap.mmap:
        assert self._file is not None
        end = self._file.seek(0, os.SEEK_END)
        start = -(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._file.seek(start)
        left = x.contiguous().numpy().data.cast("B")
        while left:
            left = left[self._file.write(left) :]
        return mmap.mmap(self._file.fileno(), x.nbytes, offset=start)
