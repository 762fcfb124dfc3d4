"""What stages run on. They never learn whether it is this process or a cluster of machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from rrcluster.core.shards import Shards
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.store import Store
from rrcluster.models.encoder import EncoderSpec
from rrcluster.records import Shard

T = TypeVar("T")
R = TypeVar("R")


class Progress(Protocol):
    """Where a stage says how far it is; implementations draw a bar, log a line, or drop it.

    ``facts`` are numbers to watch, by name: ``inertia=0.41``.
    """

    def __call__(
        self, stage: str, done: float, total: float | None, note: str = "", **facts: float
    ) -> None: ...


def silent(stage: str, done: float, total: float | None, note: str = "", **facts: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class EmbedPlan:
    """What a worker must know to turn a shard into its files; it travels to every worker."""

    store: Store
    corpus: CorpusSpec
    encoder: EncoderSpec


@dataclass(frozen=True)
class ShardCounts:
    """What embedding a shard came to: ``read = embedded + bad``.

    Its rows' parts of the seconds in which encoders ``waited`` for rows and were ``busy``.
    """

    shard: int
    read: int
    embedded: int
    bad: int
    further: int = 0  # images beside another one of their key
    waited: float = field(default=0.0, compare=False)
    busy: float = field(default=0.0, compare=False)


def in_order(answers: Iterator[tuple[int, R]]) -> Iterator[R]:
    """The answers of ``Compute.map`` in the order of the items; early ones wait."""
    waiting: dict[int, R] = {}
    wanted = 0
    for number, answer in answers:
        waiting[number] = answer
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1


class Compute(ABC):
    """Where work runs. Closing it gives back what it holds.

    Functions and items that are handed over must be importable or picklable values; a function is
    called with one torch thread, so that its sums do not depend on the machine's cores.
    """

    workers: int

    @abstractmethod
    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """(index, function(item)) for each item, as they end; answers must be small."""

    @abstractmethod
    def hold(self, load: Callable[[int], Tensor], blocks: int) -> AbstractContextManager[Shards]:
        """``load(b)`` of each block b, where it is worked on, for a with-statement's length."""

    @abstractmethod
    def embed(self, plan: EmbedPlan, shards: Sequence[Shard]) -> Iterator[ShardCounts]:
        """Embed the shards and publish their files; counts of each shard as it ends."""

    @abstractmethod
    def coordinate(self, task: Callable[[Compute, Progress], R], progress: Progress) -> R:
        """Run ``task`` in the one place that steers a fit; it resumes from what it finds stored."""

    def observed(self, progress: Progress) -> Progress:
        """``progress``, which also shows its facts wherever this compute is watched from."""
        return progress

    def spilled_bytes(self) -> int:
        """Bytes that went to disk because they found no room between tasks, since this started."""
        return 0

    def stored_bytes(self) -> int:
        """Bytes that tasks ever handed to each other through memory, here and before; 0: none."""
        return 0

    def close(self) -> None:  # noqa: B027 - optional
        """Give back workers."""

    def __enter__(self) -> Compute:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
