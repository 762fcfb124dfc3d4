"""Rows of a fit in a file without a name: read from there as they are needed, gone with the job.

The file is mapped, so a block is a tensor like any other, and its pages are given back once it has
been worked on: the fit's memory does not grow with its rows, and what room there is caches them.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import torch
from torch import Tensor

log = logging.getLogger("rrcluster")

IN_MEMORY = 1 << 26  # bytes of rows up to which no file is needed


class Scratch:
    """Blocks (n, d) of rows: in memory while they take few bytes, else in a file.

    ``let_go(b)`` gives back the memory of block b, ``let_go()`` that of all; their rows stay.
    """

    def __init__(self, blocks: Iterable[Tensor], in_memory: int = IN_MEMORY) -> None:
        self.blocks: list[Tensor] = []
        self._maps: list[mmap.mmap | None] = []
        self._file: BinaryIO | None = None
        self._full = False
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
