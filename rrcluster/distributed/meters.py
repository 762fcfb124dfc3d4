"""What a running job shows to Prometheus: Ray's own exporter carries it, Grafana draws it.

Every name stands in ``METERS``; Ray puts ``ray_`` before it, and ``_total`` after a counter's.
``cluster_configs/grafana.json`` draws these names and no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from rrcluster.compute import Progress


@dataclass(frozen=True)
class Meter:
    """One metric: its kind, what it counts, and what it is told apart by."""

    kind: Literal["counter", "gauge"]
    says: str
    tags: tuple[str, ...] = ()


METERS = {
    # Added up by the workers of embed.
    "rrcluster_images": Meter("counter", "images embedded"),
    "rrcluster_bad_images": Meter("counter", "images that cannot be used", ("reason",)),
    "rrcluster_decode_seconds": Meter("counter", "seconds that readers read and decoded"),
    "rrcluster_gpu_wait_seconds": Meter("counter", "seconds that readers waited for encoders"),
    "rrcluster_encode_seconds": Meter("counter", "seconds that encoders computed"),
    "rrcluster_decode_wait_seconds": Meter("counter", "seconds that encoders waited for readers"),
    # Set by the job's own process.
    "rrcluster_done": Meter("gauge", "shards, iterations or steps done", ("stage",)),
    "rrcluster_total": Meter("gauge", "shards, iterations or steps in all", ("stage",)),
    "rrcluster_inertia": Meter("gauge", "k-means: mean squared distance", ("stage",)),
    "rrcluster_moved_share": Meter("gauge", "share of probe rows that a step moved", ("stage",)),
    "rrcluster_consistency": Meter("gauge", "neighbour consistency after a step", ("stage",)),
    "rrcluster_rate_reduction": Meter("gauge", "coding rate gained, nats per sample", ("stage",)),
    "rrcluster_effective_rank": Meter("gauge", "dimensions the features fill", ("stage",)),
    "rrcluster_clusters": Meter("gauge", "clusters that are left", ("stage",)),
    "rrcluster_retries": Meter("gauge", "workers and calls that were tried again", ("stage",)),
}


@cache
def _instrument(name: str) -> Any:
    meter = METERS[name]
    kind = Counter if meter.kind == "counter" else Gauge
    return kind(name, description=meter.says, tag_keys=meter.tags)


def count(name: str, amount: float, **tags: str) -> None:
    """Add to a counter; nothing is sent for nothing."""
    if amount > 0:
        _instrument(name).inc(amount, tags)


@dataclass
class Metered:
    """A Progress that shows what it is told to Prometheus too."""

    inner: Progress

    def __call__(
        self, stage: str, done: float, total: float | None, note: str = "", **facts: float
    ) -> None:
        told = {"done": done, "total": total, **facts}
        for name, value in told.items():
            if value is not None and f"rrcluster_{name}" in METERS:
                _instrument(f"rrcluster_{name}").set(float(value), {"stage": stage})
        self.inner(stage, done, total, note, **facts)
