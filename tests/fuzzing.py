"""Seeded damage: the same number gives the same damaged bytes, so that failures can be repeated."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SEED = int(os.environ.get("RRCLUSTER_FUZZ_SEED", "0"))
# Times as many cases as in CI, e.g. 100 for a night.
TIMES = float(os.environ.get("RRCLUSTER_FUZZ_TIMES", "1"))

_EXTREMES = [struct.pack(f, v) for f in (">I", "<I") for v in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF)]
_EXTREMES += [struct.pack(f, v) for f in (">H", "<H") for v in (0, 1, 0x7FFF, 0xFFFF)]


def damaged(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """``content`` with one to four kinds of damage; ``other`` is spliced in now and then."""
    for _ in range(int(rng.integers(1, 5))):
        content = _DAMAGE[rng.integers(len(_DAMAGE))](content, other, rng)
        if not content:
            return content
    return content


def cases(name: str, count: int) -> Iterator[tuple[int, np.random.Generator]]:
    """(number, generator) of each case of a test."""
    for number in range(int(count * TIMES)):
        yield number, np.random.default_rng([SEED, number, *name.encode()])


def _flips(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for at in rng.integers(0, len(content), int(rng.integers(1, 9))):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _head_flips(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for at in rng.integers(0, min(len(content), 600), int(rng.integers(1, 5))):
        changed[at] = int(rng.integers(256))
    return bytes(changed)


def _cut(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(0, len(content))]


def _cut_out(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(rng.integers(0, len(content), 2))
    return content[:a] + content[b:]


def _doubled(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(rng.integers(0, len(content), 2))
    return content[:b] + content[a:]


def _noise(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, length = int(rng.integers(len(content))), int(rng.integers(1, 300))
    return content[:at] + rng.bytes(length) + content[at + length :]


def _zeros(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at, length = int(rng.integers(len(content))), int(rng.integers(1, 2000))
    return content[:at] + bytes(length) + content[at + length :]


def _extreme(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    value = _EXTREMES[rng.integers(len(_EXTREMES))]
    near = len(content) if rng.integers(2) else min(len(content), 200)
    at = int(rng.integers(near))
    return content[:at] + value + content[at + len(value) :]


def _spliced(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))] + other[rng.integers(len(other)) :]


_DAMAGE: list[Callable[[bytes, bytes, np.random.Generator], bytes]] = [
    _flips, _head_flips, _cut, _cut_out, _doubled, _noise, _zeros, _extreme, _spliced,
]  # fmt: skip


class Bounds:
    """What one case may take: seconds of this thread, and megabytes above what there was."""

    def __init__(self, seconds: float, megabytes: float) -> None:
        self.seconds, self.megabytes = seconds, megabytes
        self.worst_seconds = self.worst_megabytes = 0.0

    @contextmanager
    def case(self, what: str) -> Iterator[None]:
        before = _forget_peak()
        started = time.thread_time()
        yield
        seconds = time.thread_time() - started
        megabytes = (_status("VmHWM") - before) / 1024
        self.worst_seconds = max(self.worst_seconds, seconds)
        self.worst_megabytes = max(self.worst_megabytes, megabytes)
        assert seconds <= self.seconds, f"{what} took {seconds:.2f} s"
        assert megabytes <= self.megabytes, f"{what} took {megabytes:.0f} MB"


def _forget_peak() -> int:
    """Begin a new peak of resident memory (Linux); kilobytes resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0
