"""Exports of a drawn sample: what is asked for and not there yet is written, format by format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rrcluster.compute import Compute, Progress, in_order
from rrcluster.config import Config
from rrcluster.core.waterfill import Ints, sums
from rrcluster.io import copies, exports
from rrcluster.io.current import Current
from rrcluster.io.exports import Drawn
from rrcluster.stages.steps import run_step

COPIES: dict[
    str, tuple[Any, Callable[..., None], str]
] = {  # formats that copy images: the map, what concludes it, its mark
    "webdataset": (copies.WriteTar, copies.write_tar_sizes, "sizes.json"),
    "streaming": (copies.WriteMds, copies.write_mds_index, "index.json"),
}
MARKS = {name: mark for name, (_, mark) in exports.FORMATS.items()} | {
    name: mark for name, (_, _, mark) in COPIES.items()
}


@dataclass(frozen=True)
class Export:
    """Map: write one format."""

    drawn: Drawn

    def __call__(self, name: str) -> None:
        write, _ = exports.FORMATS[name]
        write(self.drawn, f"{self.drawn.folder}/{name}")


@dataclass(frozen=True)
class DrawsPerShard:
    """Map: (part, shard, draws) of the input shards in a collected part."""

    drawn: Drawn

    def __call__(self, part: int) -> Ints:
        table = self.drawn.table(part)
        shards, at = np.unique(table["shard"].to_numpy(), return_inverse=True)
        draws = sums(table["repeat"].to_numpy().astype(np.int64), at, len(shards))
        return np.stack([np.full(len(shards), part), shards, draws], axis=1).astype(np.int64)


def write_exports(
    drawn: Drawn, now: Current, config: Config, compute: Compute, progress: Progress
) -> None:
    """Every asked format that is not there yet."""
    asked = [
        name
        for name in config.sample.export
        if not drawn.store.exists(f"{drawn.folder}/{name}/{MARKS[name]}")
    ]
    todo = [name for name in asked if name in exports.FORMATS]
    for done, (at, _) in enumerate(compute.map(Export(drawn), todo), 1):
        progress("sample", done, len(todo), f"export {todo[at]}")
    todo = [name for name in asked if name in COPIES]
    if not todo:
        return
    found = np.concatenate(
        list(in_order(compute.map(DrawsPerShard(drawn), range(drawn.parts))))
    ).reshape(-1, 3)
    shards = {shard.index: shard for shard in now.shards}
    files = copies.stretches(
        shards, found[:, 0], found[:, 1], found[:, 2], config.sample.rows_per_tar
    )
    for name in todo:
        write, conclude, _ = COPIES[name]
        folder = f"{drawn.folder}/{name}"
        if name == "streaming":
            draws = np.zeros(len(shards), np.int64)
            draws[np.searchsorted(drawn.shards, found[:, 1])] = found[:, 2]
            copies.write_shard_weights(drawn, folder, list(now.shards), draws)
        sizes = run_step(
            compute, drawn.store, f"{drawn.folder}/work/{name}",
            write(drawn, config.corpus, folder), list(enumerate(files)),
            progress, f"export {name}",
        )  # fmt: skip
        conclude(drawn, folder, np.stack(sizes))
