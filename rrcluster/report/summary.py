"""Everything the page shows, gathered from a run folder into plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rrcluster.core.kinds import ENOUGH, WORDS
from rrcluster.io.current import Current, current
from rrcluster.io.store import Store
from rrcluster.report.duplicates import Duplicates
from rrcluster.report.progress import Progress, read_progress
from rrcluster.report.scan import (
    BINS,
    Example,
    Scan,
    scan_assignments,
    scan_bad,
    scan_sample_ids,
)

T = TypeVar("T")
SHOWN = 10_000  # leaf clusters in the report, largest first; the tables hold them all


@dataclass(frozen=True)
class Cluster:
    """A node of the tree. ``confidence`` counts samples in BINS equal parts of 0..1."""

    cluster_id: int
    level: int
    parent_id: int | None
    size: int
    share: float
    coding_rate: float
    radius: float
    captions: tuple[tuple[str, float], ...]
    since_increment: int
    confidence: tuple[int, ...]
    exemplars: tuple[Example, ...] = ()
    borderline: tuple[Example, ...] = ()
    children: tuple[Cluster, ...] = ()

    @property
    def name(self) -> str:
        """Its best caption, or its id when it has none; of a group the words that cover it."""
        if not self.captions:
            return f"cluster {self.cluster_id}"
        words, covered = [], 0.0
        for text, share in self.captions[: WORDS if self.children else 1]:
            if covered >= ENOUGH:
                break
            words.append(text)
            covered += share
        return " / ".join(words)

    def walk(self) -> Iterator[Cluster]:
        """This cluster and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Curve:
    """Coding length against the number of clusters, and what was made of it."""

    clusters: Sequence[int]
    nats_per_sample: Sequence[float]
    estimate: int
    low: int
    high: int
    enough_data: bool
    chosen: Sequence[int]
    asked: Any
    criteria: Mapping[str, int] = field(default_factory=dict)  # others' numbers, and rows seen


@dataclass(frozen=True)
class Gate:
    """One attempt at refinement and whether the criterion let it through."""

    cell: int
    round: int
    step: str
    accepted: bool
    before: float
    after: float
    extra: Mapping[str, Any]
    alarms: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """A finished or partial run; what a stage has not written yet is empty here."""

    progress: Progress
    roots: tuple[Cluster, ...]  # coarsest level, largest first; children likewise
    sizes: tuple[npt.NDArray[np.int64], ...]  # per level, all clusters, descending
    confidence: tuple[int, ...]  # of all assigned samples
    assigned: int
    outliers: tuple[Example, ...]
    duplicates: Duplicates
    bad: Mapping[str, int]
    bad_examples: Mapping[str, Sequence[Mapping[str, object]]] = field(repr=False)
    curve: Curve | None
    gates: tuple[Gate, ...]

    @property
    def leaves(self) -> list[Cluster]:
        """Clusters of the finest level that are shown, in the tree's order."""
        finest = len(self.sizes) - 1
        return [c for root in self.roots for c in root.walk() if c.level == finest]

    @property
    def num_leaves(self) -> int:
        return len(self.sizes[-1]) if self.sizes else 0


def gather(store: Store) -> Summary:
    """Read the run. Raises UserError when the folder holds no run."""
    progress = read_progress(store)
    now = current(store)
    store, levels = now.store, now.levels
    scan: Scan | None = None
    if levels and now.assignments:
        leaves = now.clusters(levels - 1, ["cluster_id"])["cluster_id"].to_numpy()
        scan = scan_assignments(now, leaves, levels - 1)
    bad, bad_examples = scan_bad(store)
    roots, sizes = read_tree(now, scan)
    curve, history = "model/count/curve.json", "model/refine/history.json"
    return Summary(
        progress=progress,
        roots=roots,
        sizes=sizes,
        confidence=tuple(map(int, scan.confidence.sum(0))) if scan else (),
        assigned=scan.rows if scan else 0,
        outliers=scan.outliers if scan else (),
        duplicates=scan.duplicates if scan else scan_sample_ids(store),
        bad=bad,
        bad_examples=bad_examples,
        curve=_known(Curve, store.read_json(curve)) if store.exists(curve) else None,
        gates=tuple(
            _known(Gate, {"extra": {}} | g)
            for g in (store.read_json(history) if store.exists(history) else ())
        ),
    )


def _known(kind: type[T], values: Mapping[str, Any]) -> T:
    """The value, leaving out what a later version may have added to the file."""
    names = {f.name for f in fields(cast(Any, kind))}
    return kind(**{n: v for n, v in values.items() if n in names})


def read_tree(
    now: Current, scan: Scan | None = None
) -> tuple[tuple[Cluster, ...], tuple[npt.NDArray[np.int64], ...]]:
    """The shown part of the tree, built from its leaves up, and the sizes of every level."""
    levels, examples = now.levels, _examples(now.store)
    sizes: list[npt.NDArray[np.int64]] = []
    below: dict[int | None, list[Cluster]] = {}
    for level in reversed(range(levels)):
        table = now.clusters(level)
        size = table["size"].to_numpy()
        sizes.insert(0, -np.sort(-size))
        total = max(int(size.sum()), 1)
        if level == levels - 1:
            order = np.lexsort((table["cluster_id"].to_numpy(), -size))
            shown = table.take(order[:SHOWN])
        else:
            wanted = pa.array([p for p in below if p is not None], pa.int64())
            shown = table.filter(pc.is_in(table["cluster_id"], wanted))
        nodes: dict[int | None, list[Cluster]] = {}
        for row in shown.to_pylist():
            children = tuple(sorted(below.get(row["cluster_id"], []), key=_largest_first))
            node = _cluster(row, total, children, scan, examples)
            nodes.setdefault(row["parent_id"], []).append(node)
        below = nodes
    roots = sorted((c for group in below.values() for c in group), key=_largest_first)
    return tuple(roots), tuple(sizes)


def _largest_first(cluster: Cluster) -> tuple[int, int]:
    return -cluster.size, cluster.cluster_id


def _cluster(
    row: Mapping[str, Any],
    total: int,
    children: tuple[Cluster, ...],
    scan: Scan | None,
    examples: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
) -> Cluster:
    own = examples.get(str(row["cluster_id"]), {})
    return Cluster(
        cluster_id=row["cluster_id"],
        level=row["level"],
        parent_id=row["parent_id"],
        size=row["size"],
        share=row["size"] / total,
        coding_rate=float(row["coding_rate"] or 0.0),
        radius=float(row["radius"] or 0.0),
        captions=tuple((c["text"], float(c["score"] or 0.0)) for c in row["captions"] or ()),
        since_increment=row["since_increment"] or 0,
        confidence=_confidence(row["cluster_id"], children, scan),
        exemplars=tuple(_example(e) for e in own.get("exemplars", ())),
        borderline=tuple(_example(e) for e in own.get("borderline", ())),
        children=children,
    )


def _confidence(cluster_id: int, children: Sequence[Cluster], scan: Scan | None) -> tuple[int, ...]:
    """Counts of the leaf, or the sum over the shown children."""
    if children:
        found = np.sum([c.confidence or (0,) * BINS for c in children], axis=0)
        return tuple(map(int, found))
    if scan is None or not len(scan.leaf_ids):
        return ()
    at = min(int(np.searchsorted(scan.leaf_ids, cluster_id)), len(scan.leaf_ids) - 1)
    if scan.leaf_ids[at] != cluster_id:
        return ()
    return tuple(map(int, scan.confidence[at]))


def _examples(store: Store) -> Mapping[str, Any]:
    name = "model/caption/examples.json"
    return dict(store.read_json(name)) if store.exists(name) else {}


def _example(e: Mapping[str, Any]) -> Example:
    return Example(
        e["sample_id"],
        e["shard"],
        e["row"],
        e.get("key") or "",
        e.get("caption"),
        float(e.get("confidence") or 0.0),
        float(e.get("outlier") or 0.0),
    )
