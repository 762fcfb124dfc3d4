"""What this process moved to and from stores, and how often it had to try again.

One sum per process. A carrier takes the difference that a piece of work made on a worker and adds
it here (``add``), so that the driver's sum is the job's.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Tally:
    """Bytes read and written, and calls or workers that were tried again."""

    bytes_read: int = 0
    bytes_written: int = 0
    retries: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.retries + other.retries,
        )

    def __sub__(self, other: Tally) -> Tally:
        return self + Tally(-other.bytes_read, -other.bytes_written, -other.retries)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


_total = Tally()
_lock = threading.Lock()


def add(part: Tally) -> None:
    """Add what was moved, here or by a worker of this process."""
    global _total
    with _lock:
        _total = _total + part


def read(size: int) -> None:
    """``size`` bytes came from a store."""
    add(Tally(bytes_read=size))


def written(size: int) -> None:
    """``size`` bytes went to a store."""
    add(Tally(bytes_written=size))


def tried_again(times: int = 1) -> None:
    """A call failed, or a worker died, and is tried again."""
    add(Tally(retries=times))


def total() -> Tally:
    """Everything so far; differences of it are what counts."""
    return _total
