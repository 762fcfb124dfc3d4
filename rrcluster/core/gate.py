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


class Gate:
    """Judges one model against another on a fixed probe, and remembers every verdict."""

    def __init__(
        self,
        probe: Probe,
        eps2: float,
        on_event: Callable[[GateEvent], None] | None = None,
        least: int = 1,
    ) -> None:
        self._probe, self._eps2, self._on_event, self._least = probe, eps2, on_event, least
        # Below the weight of one probe row the criterion cannot tell two partitions apart.
        self.tolerance = 1.0 / max(len(probe.x), 1)
        self.events: list[GateEvent] = []

    def judge(self, round: int, step: Step, before: CellModel, after: CellModel) -> CellModel:
        """``after`` if its consistency is not below that of ``before``, else ``before`` itself.

        A step that leaves fewer than ``least`` clusters is refused too.
        """
        old, _ = before.cheapest(self._probe.x)
        new, _ = after.cheapest(self._probe.x)
        was, now = self._probe.consistency(old), self._probe.consistency(new)
        accepted = now >= was - self.tolerance and after.codes.num_live >= self._least
        event = GateEvent(round, step, accepted, was, now, self._extra(after, old, new))
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        return after if accepted else before

    def _extra(self, model: CellModel, old: Tensor, new: Tensor) -> dict[str, float]:
        """What to watch, on the probe; entropies in nats, ranks out of e."""
        k = max(model.num_leaves, int(old.max()) + 1)
        z = features_of(model.features, self._probe.x)
        mass, moments = sum_by_label(z, new, k)
        return {
            "rate_reduction": rate_reduction(mass, moments, self._eps2),
            "effective_rank": effective_rank(moments.sum(0)),
            "entropy_before": _entropy(old),
            "entropy": _entropy(new),
            "clusters": float((mass > 0).sum()),
            "moved_share": float((old != new).double().mean()),
        }


def _entropy(labels: Tensor) -> float:
    share = torch.bincount(labels).double() / max(len(labels), 1)
    return float(torch.special.entr(share).sum())
