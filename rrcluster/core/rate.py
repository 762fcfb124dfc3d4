"""Coding rates and coding lengths, in nats.

The rate R(Z; ε²) = ½ log det(I + e/(n ε²) ZᵀZ) is the number of nats per sample that a Gaussian
code needs to describe the rows of Z (n, e) up to a squared error of ε² (Ma, Derksen, Hong and
Wright 2007); rate reduction is the rate of all rows less the mean rate of the clusters (Yu et al.
2020). Cluster statistics are (mass n_k, moments S_k = Σ z zᵀ): they add over blocks.

Determinants come from Cholesky factors only: batched LU in one tested build of torch (2.15, MKL)
returned garbage for widths from about 200 with more than one thread.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log_det(matrices: Float[Tensor, "*b e e"]) -> Float[Tensor, "*b"]:
    """log det of symmetric positive definite matrices."""
    factor = torch.linalg.cholesky(matrices)
    logs: Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 2 * logs


def coding_rate(x: Float[Tensor, "n e"], eps2: float) -> float:
    """R(x; ε²) = ½ log det(I + e/(n ε²) xᵀx), nats per sample; 0 without rows."""
    return float(rate(x.float(), eps2)) if len(x) else 0.0


def rate(z: Float[Tensor, "n e"], eps2: float) -> Float[Tensor, ""]:
    """R(z; ε²), nats per sample, differentiable."""
    return _row_rates(z[None], eps2)[0]


def moment_rates(
    mass: Float[Tensor, " k"], moments: Float[Tensor, "k e e"], eps2: float
) -> Float[Tensor, " k"]:
    """R_k = ½ log det(I + e/(ε² n_k) S_k), nats per sample of each cluster; 0 where n_k = 0."""
    e = moments.shape[-1]
    scale = torch.where(mass > 0, e / (eps2 * mass.clamp_min(1e-12)), torch.zeros_like(mass))
    eye = torch.eye(e, dtype=moments.dtype)
    return 0.5 * log_det(eye + scale.to(moments.dtype)[:, None, None] * moments)


def coding_lengths(
    mass: Float[Tensor, " k"], moments: Float[Tensor, "k e e"], total: float, eps2: float
) -> Float[Tensor, " k"]:
    """L_k = (n_k + e) R_k + n_k (−log(n_k/total)), nats (Ma et al. 2007).

    The e R_k pays for the description of the cluster's own subspace, the last term for the labels.
    """
    rates = moment_rates(mass, moments, eps2)
    labels = torch.where(mass > 0, -mass * (mass.clamp_min(1e-12) / total).log(), 0.0 * mass)
    return (mass + moments.shape[-1]) * rates + labels


def rate_reduction(
    mass: Float[Tensor, " k"], moments: Float[Tensor, "k e e"], eps2: float
) -> float:
    """ΔR = R(Σ_k S_k) − Σ_k n_k/n R_k, nats per sample: never negative, 0 for one cluster."""
    total = mass.sum()
    whole = moment_rates(total[None], moments.sum(0, keepdim=True), eps2)[0]
    parts = (mass * moment_rates(mass, moments, eps2)).sum() / total.clamp_min(1e-12)
    return float(whole - parts)


def effective_rank(moment: Float[Tensor, "e e"]) -> float:
    """exp of the entropy of the normalised spectrum (Roy and Vetterli 2007): 1 .. e."""
    share = torch.linalg.eigvalsh(moment).clamp_min(0)
    share = share / share.sum().clamp_min(1e-30)
    return float(torch.special.entr(share).sum().exp())


def rate_reduction_loss(
    z: Float[Tensor, "n e"],
    labels: Int[Tensor, " n"],
    eps2: float,
    spread: Float[Tensor, "m e"] | None = None,
) -> Float[Tensor, ""]:
    """−ΔR = R_c(z, labels) − R(spread), nats per sample, differentiable; ``spread`` defaults to z.

    Clusters of the batch are bucketed by size and each takes the smaller of the two determinants
    of log det(I_e + a ZᵀZ) = log det(I_n + a ZZᵀ), so the cost does not grow with k·e³.
    """
    order = labels.argsort(stable=True)
    _, sizes = labels[order].unique_consecutive(return_counts=True)
    ends = sizes.cumsum(0)
    compressed = z.new_zeros(())
    for size in sizes.unique().tolist():
        first = (ends - sizes)[sizes == size]
        rows = order[first[:, None] + torch.arange(size)]  # (clusters of this size, size)
        compressed = compressed + size / len(z) * _row_rates(z[rows], eps2).sum()
    whole = z if spread is None else spread
    return compressed - rate(whole, eps2)


def membership_compression(
    z: Float[Tensor, "n e"], membership: Float[Tensor, "n k"], eps2: float
) -> Float[Tensor, ""]:
    """R_c(Z, Π) of soft memberships (n, k), nats per sample, differentiable in both.

    The literal form of CPP (arXiv 2306.05272): k determinants of e × e.
    """
    n, e = z.shape
    mass = membership.sum(0)
    outer = (z[:, :, None] * z[:, None, :]).flatten(1)
    moments = (membership.T @ outer).view(-1, e, e)
    scale = e / (eps2 * mass.clamp_min(1e-8))
    eye = torch.eye(e, dtype=z.dtype)
    rates: Tensor = mass * 0.5 * log_det(eye + scale[:, None, None] * moments)
    return rates.sum() / n


def _row_rates(z: Float[Tensor, "b n e"], eps2: float) -> Float[Tensor, " b"]:
    n, e = z.shape[-2:]
    gram = z @ z.mT if n < e else z.mT @ z
    return 0.5 * log_det(torch.eye(gram.shape[-1], dtype=z.dtype) + e / (n * eps2) * gram)
