"""Training the residual head by minibatched rate reduction.

A batch holds some clusters with some rows each, which give R_c, and an independent random half,
which gives R. With random batches and many clusters each cluster would have less than one row and
R_c would say nothing. What belongs together is what the clusters say (``membership=labels``), or
how alike the batch's rows are to some of it, the anchors (``batch``: CPP's membership, arXiv
2306.05272, in which here no row is its own cluster).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.features import Head
from rrcluster.core.rate import membership_compression, rate, rate_reduction_loss
from rrcluster.core.sinkhorn import sinkhorn

MEANS = ("exp_avg", "exp_avg_sq")  # of gradients and of their squares, as torch calls them


@runtime_checkable
class HeadSpec(Protocol):
    """The settings that training reads; ``RefineSpec`` has them."""

    eps2: float
    membership: Literal["labels", "batch"]
    anchors: int
    eta: float
    hidden: int
    steps: int
    batch_clusters: int
    cluster_rows: int
    spread_rows: int
    learning_rate: float
    weight_decay: float
    checkpoint_steps: int


@dataclass(frozen=True)
class Training:
    """Where training stands before ``step``: going on from here gives the same bits.

    ``tensors`` are the weights, Adam's two means of each, and the state of the draws.
    """

    step: int
    tensors: dict[str, Tensor]

    @staticmethod
    def of(
        step: int,
        weights: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
        draw: torch.Generator,
    ) -> Training:
        kept = {"draws": draw.get_state()}
        for name, weight in weights.items():
            kept[name] = weight.detach().clone()
            for mean in MEANS:
                kept[f"{name}.{mean}"] = optimiser.state[weight][mean].clone()
        return Training(step, kept)

    def restore(
        self,
        weights: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
        draw: torch.Generator,
    ) -> None:
        """Bring all three to where they were; weights are changed in place."""
        draw.set_state(self.tensors["draws"])
        for name, weight in weights.items():
            with torch.no_grad():
                weight.copy_(self.tensors[name])
            means = {mean: self.tensors[f"{name}.{mean}"].clone() for mean in MEANS}
            optimiser.state[weight] = {"step": torch.tensor(float(self.step)), **means}


@dataclass(frozen=True)
class Groups:
    """Rows that belong together: ``members[first[g] : first[g] + size[g]]``, two or more each."""

    members: Int[Tensor, " m"]
    first: Int[Tensor, " g"]
    size: Int[Tensor, " g"]

    @staticmethod
    def by_label(labels: Int[Tensor, " n"]) -> Groups:
        members = labels.argsort(stable=True)
        _, size = labels[members].unique_consecutive(return_counts=True)
        first = size.cumsum(0) - size
        keep = size >= 2
        return Groups(members, first[keep], size[keep])

    def draw(
        self, groups: int, rows: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """``rows`` members (with replacement) of up to ``groups`` groups: (row, group) indices."""
        chosen = torch.randperm(len(self.size), generator=generator)[:groups]
        at = torch.rand(len(chosen), rows, generator=generator) * self.size[chosen][:, None]
        found = self.members[self.first[chosen][:, None] + at.long()]
        return found.flatten(), torch.arange(len(chosen)).repeat_interleave(rows)


def train_head(
    u: Float[Tensor, "n e"],
    labels: Int[Tensor, " n"],
    start: Head | None,
    spec: HeadSpec,
    seed: int,
    path: tuple[str | int, ...] = (),
    resume: Training | None = None,
    on_steps: Callable[[Training], None] | None = None,
) -> Head | None:
    """The head after ``spec.steps`` of Adam on −ΔR.

    ``start`` when no cluster has two rows, or when the features are not finite. ``on_steps`` is
    told every ``spec.checkpoint_steps`` steps where training is; ``resume`` goes on from there.
    """
    groups = Groups.by_label(labels)
    if len(groups.size) < 2:
        return start
    draw = keys.generator(seed, *path, "batches")
    head = start or Head.new(u.shape[1], spec.hidden, keys.generator(seed, *path, "head"))
    weights = {f.name: getattr(head, f.name).clone().requires_grad_() for f in fields(Head)}
    optimiser = torch.optim.AdamW(
        weights.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    if resume is not None:
        resume.restore(weights, optimiser, draw)
    for step in range(0 if resume is None else resume.step, spec.steps):
        for group in optimiser.param_groups:
            group["lr"] = spec.learning_rate * (1 - step / spec.steps)
        rows, mine = groups.draw(spec.batch_clusters, spec.cluster_rows, draw)
        half = torch.randint(len(u), (spec.spread_rows,), generator=draw)
        now = Head(**weights)
        z, spread = now.residual(u[rows]), now.residual(u[half])
        if not (torch.isfinite(z).all() and torch.isfinite(spread).all()):
            return start  # training ran away: nothing was learned
        if spec.membership == "labels":
            loss = rate_reduction_loss(z, mine, spec.eps2, spread)
        else:
            pi = batch_membership(z, spec.anchors, spec.eta, draw)
            loss = membership_compression(z, pi, spec.eps2) - rate(spread, spec.eps2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if on_steps is not None and (step + 1) % spec.checkpoint_steps == 0:
            on_steps(Training.of(step + 1, weights, optimiser, draw))
    return Head(**{name: weight.detach() for name, weight in weights.items()})


def batch_membership(
    z: Float[Tensor, "b e"], anchors: int, eta: float, generator: torch.Generator
) -> Float[Tensor, "b a"]:
    """Memberships of a batch's rows in some of its rows: a softmax of |cosine| at ``eta``.

    Columns have no target, since uniform ones harm long tails; a row that is an anchor does not
    count as like itself, or the diagonal would hold most of the mass.
    """
    chosen = torch.randperm(len(z), generator=generator)[:anchors]
    scores = (z @ z[chosen].T).abs()
    own = chosen[None] == torch.arange(len(z))[:, None]
    return sinkhorn(scores.masked_fill(own, -1.0), eta)
