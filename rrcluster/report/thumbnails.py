"""Which thumbnails go onto the page, so that it stays under its size."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rrcluster.report.scan import Example
from rrcluster.report.summary import Summary

Ref = tuple[int, int]  # shard, row
Thumbnails = Callable[[list[Ref]], dict[Ref, bytes]]

SMALLEST = 700  # bytes of the smallest thumbnail to expect: bounds how many are asked for
OVERHEAD = 160  # bytes of markup around each
JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class Album:
    """Thumbnails as data URIs by (shard, row), and how many were wanted and left out."""

    uris: dict[Ref, str] = field(default_factory=dict)
    wanted: int = 0
    left_out: int = 0  # there, but over the page's size
    absent: int = 0  # not to be had: ready vectors, or a shard that cannot be read again

    def get(self, example: Example) -> str:
        return self.uris.get((example.shard, example.row), "")


def choose(
    summary: Summary, thumbnails: Thumbnails, budget: int, others: Sequence[Example] = ()
) -> Album:
    """As many thumbnails as fit ``budget`` bytes: every cluster's first before anyone's second.

    ``others`` are samples that sections of other jobs show.
    """
    order = list(dict.fromkeys((e.shard, e.row) for e in by_importance(summary, others)))
    asked = order[: max(budget, 0) // SMALLEST]
    found = thumbnails(asked) if asked else {}
    uris: dict[Ref, str] = {}
    there, used = 0, 0
    for ref in asked:
        content = found.get(ref, b"")
        if not content.startswith(JPEG):
            continue
        there += 1
        uri = "data:image/jpeg;base64," + base64.b64encode(content).decode()
        size = len(uri) + OVERHEAD
        if used + size <= budget:
            uris[ref] = uri
            used += size
    left_out = there - len(uris) + len(order) - len(asked)
    return Album(uris, len(order), left_out, len(asked) - there)


def shards_worth_reading(wanted: Sequence[Ref], most: int) -> dict[int, set[int]]:
    """Rows to read per shard, of at most ``most`` shards: those that give most of ``wanted``.

    Earlier samples count more, but many later ones outweigh a single earlier one, so that few
    shards picture nearly every cluster.
    """
    worth: dict[int, float] = {}
    rows: dict[int, set[int]] = {}
    for place, (shard, row) in enumerate(wanted):
        worth[shard] = worth.get(shard, 0.0) + 1 / (1 + place / max(len(wanted) / 4, 1))
        rows.setdefault(shard, set()).add(row)
    best = sorted(worth, key=lambda s: (-worth[s], s))[:most]
    return {shard: rows[shard] for shard in sorted(best)}


def by_importance(summary: Summary, others: Sequence[Example] = ()) -> Iterable[Example]:
    """Examples in the order in which they deserve a thumbnail."""
    leaves = sorted(summary.leaves, key=lambda c: (-c.size, c.cluster_id))
    exemplars = [c.exemplars for c in leaves]
    borderline = [c.borderline for c in leaves]
    yield from _across(exemplars, 0, 4)
    yield from summary.outliers
    yield from others
    yield from _across(borderline, 0, 3)
    yield from _across(exemplars, 4, None)
    yield from _across(borderline, 3, None)


def _across(groups: Sequence[Sequence[Example]], start: int, stop: int | None) -> Iterable[Example]:
    longest = max(map(len, groups), default=0)
    for i in range(start, longest if stop is None else min(stop, longest)):
        yield from (g[i] for g in groups if i < len(g))
