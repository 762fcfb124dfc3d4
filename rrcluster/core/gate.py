"""The gate: a step of the refinement is kept only if raw neighbours agree no less than before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rrcluster.core.model import CellModel, features_of, sum_by_label
from rrcluster.core.probe import Probe
from rrcluster.core.rate import effective_rank, rate_reduction

RANK_LEFT, ENTROPY_LEFT = 0.25, 0.5  # of before: less is a collapse
Step = Literal["agree", "lloyd", "whiten", "head"]


@dataclass(frozen=True)
class GateEvent:
    """One step tried: adjusted neighbour consistency before and after, and whether it was kept."""

    round: int
    step: Step
    accepted: bool
    before: float
    after: float
    extra: dict[str, float] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()  # signs of collapse, each a sentence; any one refuses the step


class Gate:
    """Judges one model against another on a fixed probe, and remembers every verdict."""

    def __init__(
        self,
        probe: Probe,
        eps2: float,
        on_event: Callable[[GateEvent], None] | None = None,
        least: int = 1,
        whole: bool = False,
    ) -> None:
        """``whole``: the probe is all rows, so a cluster that none of them chooses is empty."""
        self._probe, self._eps2, self._on_event = probe, eps2, on_event
        self._least, self._whole = least, whole
        # Below the weight of one probe row the criterion cannot tell two partitions apart.
        self.tolerance = 1.0 / max(len(probe.x), 1)
        self.events: list[GateEvent] = []

    def judge(
        self, round: int, step: Step, before: CellModel, after: CellModel, trusted: bool = False
    ) -> CellModel:
        """``after`` if its consistency is not below that of ``before``, else ``before`` itself.

        A step that leaves fewer than ``least`` clusters, or that looks like a collapse, is refused
        too. A ``trusted`` step is only asked for those two: leaves that are parts of clusters
        which passed before are compared where they are clusters again (``verdict.py``).
        """
        old, _ = before.cheapest(self._probe.x)
        new, _ = after.cheapest(self._probe.x)
        was, now = self._probe.consistency(old), self._probe.consistency(new)
        extra = self._extra(before, after, old, new)
        alarms = collapses(extra)
        # Codes had rows when they were fitted, which by now may choose others.
        left = extra["clusters"] if self._whole else after.codes.num_live
        enough = left >= self._least
        agrees = trusted or now >= was - self.tolerance
        accepted = agrees and enough and not alarms
        event = GateEvent(round, step, accepted, was, now, extra, alarms)
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        return after if accepted else before

    def _extra(
        self, before: CellModel, model: CellModel, old: Tensor, new: Tensor
    ) -> dict[str, float]:
        """What to watch, on the probe; entropies in nats, ranks out of e."""
        k = max(model.num_leaves, int(old.max()) + 1)
        z = features_of(model.features, self._probe.x)
        mass, moments = sum_by_label(z, new, k)
        earlier = features_of(before.features, self._probe.x).double()
        return {
            "rate_reduction": rate_reduction(mass, moments, self._eps2),
            "rank_before": effective_rank(earlier.T @ earlier),
            "effective_rank": effective_rank(moments.sum(0)),
            "entropy_before": _entropy(old),
            "entropy": _entropy(new),
            "clusters": float((mass > 0).sum()),
            "moved_share": float((old != new).double().mean()),
        }


def collapses(extra: dict[str, float]) -> tuple[str, ...]:
    """Sentences on what fell together in a step, from its ``extra``; none in a healthy one.

    Features collapse when the effective rank falls below a quarter, clusters when the entropy of
    their sizes falls below a half of what it was.
    """
    found = []
    rank, rank_before = extra["effective_rank"], extra["rank_before"]
    if rank < RANK_LEFT * rank_before:
        found.append(f"features fell together: effective rank {rank_before:.1f} to {rank:.1f}")
    entropy, entropy_before = extra["entropy"], extra["entropy_before"]
    if entropy < ENTROPY_LEFT * entropy_before:
        words = f"entropy of their sizes {entropy_before:.2f} to {entropy:.2f} nats"
        found.append(f"clusters fell together: {words}")
    return tuple(found)


def _entropy(labels: Tensor) -> float:
    share = torch.bincount(labels).double() / max(len(labels), 1)
    return float(torch.special.entr(share).sum())
