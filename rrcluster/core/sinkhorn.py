"""Soft memberships by entropic transport, in the log domain, under three kinds of marginals.

Π maximises Σ π_ij s_ij + η H(Π) with every row of mass 1. What the columns must hold differs:
*none* (rows are softmaxes), *relaxed* (each column pays strength · KL from its target), and, as the
limit of that, exact (``strength=inf``, the doubly stochastic membership of CPP, arXiv 2306.05272).
*partial* moves only a share of the rows' mass and sets the least likely aside (P²OT, arXiv
2401.09266). Uniform exact columns on a long tail force large clusters apart; see
``tests/core/test_sinkhorn.py``.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

HALF_STEPS = 5  # as published; a row step comes last, so that rows hold exactly 1


def sinkhorn(
    scores: Float[Tensor, "n k"],
    eta: float,
    columns: Float[Tensor, " k"] | None = None,
    strength: float = math.inf,
    half_steps: int = HALF_STEPS,
) -> Float[Tensor, "n k"]:
    """Memberships π (n, k), rows of sum 1, from ``scores`` at temperature ``eta``.

    ``columns`` are the targets of the column shares, of sum 1 (None: no constraint at all).
    ``strength`` in units of the scores pulls towards them; inf demands them. Differentiable.
    Raises ValueError for a temperature that is not positive.
    """
    if not eta > 0:
        raise ValueError(f"eta={eta}: the temperature must be positive")
    log_pi = scores / eta
    if columns is None:
        return log_pi.softmax(1)
    pull = 1.0 if math.isinf(strength) else strength / (strength + eta)
    target = columns.clamp_min(torch.finfo(scores.dtype).tiny).log() + math.log(len(scores))
    u = -log_pi.logsumexp(1)
    v = torch.zeros_like(target)
    for step in range(max(half_steps - 1, 2)):
        if step % 2 == 0:
            v = pull * (target - (log_pi + u[:, None]).logsumexp(0))
        else:
            u = -(log_pi + v[None]).logsumexp(1)
    return (log_pi + v[None]).softmax(1)


def partial_sinkhorn(
    scores: Float[Tensor, "n k"],
    eta: float,
    share: float,
    columns: Float[Tensor, " k"] | None = None,
    strength: float = math.inf,
    half_steps: int = 50,
) -> Float[Tensor, "n k"]:
    """Memberships of which only ``share`` of all mass is given out, at most 1 to a row.

    A column for what is set aside takes the rest at score 0; scores are those against that.
    Raises ValueError for a share outside 0..1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: between 0 and 1")
    if share == 1:
        return sinkhorn(scores, eta, columns, strength, half_steps)
    k = scores.shape[1]
    wanted = scores.new_full((k,), 1 / k) if columns is None else columns
    aside = scores.new_zeros(len(scores), 1)
    padded = torch.cat([scores, aside], 1) / eta
    n = len(scores)
    target = torch.cat([wanted * share, wanted.new_tensor([1 - share])]).clamp_min(1e-30).log()
    target = target + math.log(n)
    pull = 0.0 if columns is None else 1.0 if math.isinf(strength) else strength / (strength + eta)
    v = torch.zeros_like(target)
    u = -padded.logsumexp(1)
    for _ in range(max(half_steps // 2, 1)):
        column = (padded + u[:, None]).logsumexp(0)
        v = torch.cat([pull * (target - column)[:k], (target - column)[k:]])
        u = -(padded + v[None]).logsumexp(1)
    return (padded + v[None]).softmax(1)[:, :k]
