"""From a stored row to the features that rates are measured in: centred PCA, then a residual head.

u = normalize(Bᵀ(x − mean)) and z = normalize(u + f(u)). The head f ends in zeros when it is new, so
training starts from z = u and can only move away from it on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rrcluster.core.shards import Shards

RANK_TOLERANCE = 1e-6  # of the mean squared norm: the rounding of float32 second moments


@dataclass(frozen=True)
class Head:
    """f(u) = W₂ gelu(W₁ LayerNorm(u) + b₁) + b₂."""

    gain: Float[Tensor, " e"]
    shift: Float[Tensor, " e"]
    inner: Float[Tensor, "h e"]
    inner_bias: Float[Tensor, " h"]
    outer: Float[Tensor, "e h"]
    outer_bias: Float[Tensor, " e"]

    @staticmethod
    def new(width: int, hidden: int, generator: torch.Generator) -> Head:
        """Random inner layer of variance 1/width, zero outer layer: f = 0."""
        inner = torch.randn(hidden, width, generator=generator) * width**-0.5
        zero = torch.zeros
        return Head(
            torch.ones(width), zero(width), inner, zero(hidden), zero(width, hidden), zero(width)
        )

    def __call__(self, u: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        normal = F.layer_norm(u, (u.shape[1],), self.gain, self.shift)
        hidden = F.gelu(F.linear(normal, self.inner, self.inner_bias))
        return F.linear(hidden, self.outer, self.outer_bias)

    def residual(self, u: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        """z = normalize(u + f(u))."""
        return F.normalize(u + self(u), dim=1)


@dataclass(frozen=True)
class FeatureMap:
    """x (n, d) → z (n, e), unit rows (a row equal to the mean gives zeros)."""

    mean: Float[Tensor, " d"]
    basis: Float[Tensor, "d e"]
    head: Head | None = None

    @property
    def width(self) -> int:
        """e."""
        return self.basis.shape[1]

    def project(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """u: the unit rows before the head."""
        return F.normalize(x.float() @ self.basis - self.mean @ self.basis, dim=1)

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        u = self.project(x)
        return u if self.head is None else self.head.residual(u)

    def with_head(self, head: Head | None) -> FeatureMap:
        return replace(self, head=head)

    def whitened(self, spread: Float[Tensor, "e e"], ridge: float) -> FeatureMap:
        """u ← normalize((W + ridge·mean(W))^(−½) u) for the pooled spread W within clusters.

        Directions in which rows of one cluster differ (pose, background, style) count less
        (within-class covariance normalisation, Hatch, Kajarekar and Stolcke 2006). It is the
        closed-form start of the learned features: the residual head is trained after it.
        """
        e = self.width
        mean = spread.trace() / e
        loaded = spread.double() + (ridge * mean + 1e-12) * torch.eye(e, dtype=torch.float64)
        variance, vectors = torch.linalg.eigh(loaded)
        scale = (mean.clamp_min(1e-12) / variance.clamp_min(1e-12)).sqrt()
        root = (vectors * scale) @ vectors.T
        return FeatureMap(self.mean, (self.basis.double() @ root).float().contiguous())

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for storage; ``from_tensors`` reads them back."""
        found = {"mean": self.mean, "basis": self.basis}
        if self.head is not None:
            found |= {f"head.{f.name}": getattr(self.head, f.name) for f in fields(Head)}
        return found

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> FeatureMap:
        head = None
        if "head.gain" in tensors:
            head = Head(**{f.name: tensors[f"head.{f.name}"] for f in fields(Head)})
        return FeatureMap(tensors["mean"], tensors["basis"], head)


def _sums(x: Tensor) -> dict[str, Tensor]:
    """Statistic of the PCA: rows, their sum (d,) and second moment (d, d), added in float64."""
    d = x.shape[1]
    total, moment = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for rows in x.split(4096):
        rows = rows.float()
        total += rows.sum(0).double()
        moment += (rows.T @ rows).double()
    return {"count": torch.tensor(len(x)), "sum": total, "moment": moment}


def fit_projection(shards: Shards, width: int) -> FeatureMap:
    """Mean-centred PCA of width e = min(width, d, rank of the data), largest variance first."""
    sums = shards.reduce(_sums)
    count = max(int(sums["count"]), 1)
    mean = sums["sum"] / count
    variance, vectors = torch.linalg.eigh(sums["moment"] / count - torch.outer(mean, mean))
    variance, vectors = variance.flip(0), vectors.flip(1)
    floor = RANK_TOLERANCE * max(float(sums["moment"].trace()) / count, 1e-30)
    rank = max(int((variance > floor).sum()), 1)
    basis = vectors[:, : min(width, rank)]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * torch.where(largest < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary
    return FeatureMap(mean.float(), basis.float().contiguous())
