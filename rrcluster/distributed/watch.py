"""What the workers of ``embed`` report, and the end of a stream that cannot succeed.

Ray Data drops the block of a task that fails, so that one bad shard does not end the job. Two
things must end it, and at once: an error that concerns every shard (lost permissions, a storage
that is down), and encoders that die before they have encoded anything, again and again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

from rrcluster.io.tally import Tally

FRUITLESS_LIVES = 5  # of an encoder, above the encoders that there are
POLL_SECONDS = 1.0


@dataclass
class Seen:
    """What a ledger has been told."""

    fruitless: int = 0  # lives of encoders that ended, or have not yet encoded, since a batch was
    error: Exception | None = None  # the first that was no worker's death
    lives: int = 0  # of encoders
    readings: int = 0  # of shards that were begun
    moved: Tally = field(default_factory=Tally)  # by readers and assemblers


class Ledger:
    """Actor: a few words from each worker and shard, none per row."""

    def __init__(self) -> None:
        self._seen = Seen()

    def begun(self) -> None:
        self._seen.fruitless += 1
        self._seen.lives += 1

    def reading(self) -> None:
        self._seen.readings += 1

    def move(self, part: Tally) -> None:
        self._seen.moved += part

    def encoded(self) -> None:
        self._seen.fruitless = 0

    def failed(self, error: Exception) -> None:
        self._seen.error = self._seen.error or error

    def seen(self) -> Seen:
        return self._seen


def watching(ledger: Any, encoders: int) -> type[ExecutionCallback]:
    """A callback class for Ray Data that ends the stream when the ledger says so."""

    class Watch(ExecutionCallback):
        def __init__(self) -> None:
            self._asked: Any = None
            self._next = 0.0

        def on_execution_step(self, executor: Any) -> None:
            if self._asked is None:
                if time.monotonic() >= self._next:
                    self._asked = ledger.seen.remote()
                return
            if not ray.wait([self._asked], timeout=0)[0]:
                return
            try:
                seen: Seen = ray.get(self._asked)
            except ray.exceptions.RayActorError:  # the ledger's machine was lost: it starts anew
                seen = Seen()
            self._asked, self._next = None, time.monotonic() + POLL_SECONDS
            if seen.error is not None:
                raise seen.error
            if seen.fruitless > encoders + FRUITLESS_LIVES:
                raise RuntimeError(
                    f"encoders were started {seen.fruitless} times and died before they encoded a "
                    "batch: too little memory for the model (compute.memory_per_worker), or a "
                    "broken GPU or driver; the workers' logs of Ray say more"
                )

    return Watch
