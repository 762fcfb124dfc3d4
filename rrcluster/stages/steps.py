"""Many independent items of one step: each is done once, its mark is a small array of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from rrcluster.compute import Compute, Progress
from rrcluster.io.store import Store

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]
MARK = ".done.npy"


@dataclass(frozen=True)
class Marked(Generic[T]):
    """Map: do the work, which publishes files, then publish its answer as the mark."""

    store: Store
    folder: str
    work: Callable[[T], Numbers]

    def __call__(self, item: tuple[int, T]) -> Numbers:
        number, what = item
        answer = np.asarray(self.work(what), np.int64)
        self.store.write_npy(f"{self.folder}/{number:06d}{MARK}", answer)
        return answer


def run_step(
    compute: Compute,
    store: Store,
    folder: str,
    work: Callable[[Any], Numbers],
    items: Sequence[Any],
    progress: Progress,
    note: str,
    stage: str = "sample",
) -> list[Numbers]:
    """The answers of all items, in their order; those that have a mark are not done again."""
    marks = store.names(folder, MARK)
    todo = [(i, item) for i, item in enumerate(items) if f"{i:06d}{MARK}" not in marks]
    new = {i for i, _ in todo}
    answers: list[Numbers | None] = [
        None if i in new else np.array(store.read_npy(f"{folder}/{i:06d}{MARK}"))
        for i in range(len(items))
    ]
    done = len(items) - len(todo)
    for at, answer in compute.map(Marked(store, folder, work), todo):
        answers[todo[at][0]] = answer
        done += 1
        progress(stage, done, len(items), note)
    return [a for a in answers if a is not None]
