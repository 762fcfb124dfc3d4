"""A tree too large for one page, cut into pages of whole branches where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rrcluster.report.summary import Cluster

NAMED = 4  # clusters named in a page's title


@dataclass(frozen=True)
class Leaf:
    """One page of clusters: its file, the part of the tree on it, and how many finest clusters."""

    file: str
    roots: tuple[Cluster, ...]
    first: int  # number of its first finest cluster, from 1 on
    count: int

    @property
    def size(self) -> int:
        """Samples in its finest clusters."""
        return sum(c.size for root in self.roots for c in root.walk() if not c.children)

    @property
    def title(self) -> str:
        """Its largest clusters by name, those at the top of its part."""
        named = [c.name for c in sorted(self.roots, key=lambda c: -c.size)][:NAMED]
        more = ", …" if len(self.roots) > NAMED else ""
        return ", ".join(named) + more


def cut(roots: Sequence[Cluster], most: int) -> list[Leaf]:
    """Pages of at most ``most`` finest clusters, in the tree's order.

    A branch that is larger than a page goes on over several; its head is repeated on each.
    """
    parts: list[list[Cluster]] = []
    room = 0
    for root in roots:
        for piece in _pieces(root, most):
            count = _leaves(piece)
            if count > room:
                parts.append([])
                room = most
            parts[-1].append(piece)
            room -= count
    pages, first = [], 1
    for number, part in enumerate(parts, 1):
        count = sum(map(_leaves, part))
        pages.append(Leaf(f"clusters-{number:04d}.html", tuple(part), first, count))
        first += count
    return pages


def _leaves(cluster: Cluster) -> int:
    return sum(not c.children for c in cluster.walk())


def _pieces(cluster: Cluster, most: int) -> list[Cluster]:
    """The branch itself, or parts of it with at most ``most`` leaves under the same head."""
    if _leaves(cluster) <= most:
        return [cluster]
    pieces: list[Cluster] = []
    held: list[Cluster] = []
    for child in (piece for c in cluster.children for piece in _pieces(c, most)):
        if held and sum(map(_leaves, held)) + _leaves(child) > most:
            pieces.append(replace(cluster, children=tuple(held)))
            held = []
        held.append(child)
    return [*pieces, replace(cluster, children=tuple(held))]
