"""Cluster codes: what it costs, in nats, to describe one row as a member of each cluster.

With A_k = I + (c/n_k) S_k and c = e/ε², the cost

    g_k(z) = ½ [log det A_k + c zᵀ A_k⁻¹ z − tr(I − A_k⁻¹)]

is the tangent of n_k ½ log det A_k in (n_k, S_k), which is concave and homogeneous of degree 1: the
mean cost of a partition is never below its R_c and equals it where the codes were fitted, so giving
each row to its cheapest cluster never raises R_c. The tangent argument holds as well when A_k is
replaced by its best approximation of low rank plus a multiple of the identity (probabilistic PCA,
Tipping and Bishop 1999), which is what is stored: k·e·r numbers, and costs by one matrix product.
To g is added the label's own cost −log(n_k/n) (Ma et al. 2007), the tangent of the label entropy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

POWER_STEPS = 10  # the first direction of a cluster has some ten times the second's variance
NEAR_STEPS = 4
SUBSPACE_STEPS = 8  # after which .9999 of rows had the cluster that exact directions give
SPARE = 3  # times as many directions are followed as are wanted
SETTLED = 1e-3  # of λ: |M u − λ u| where u is taken as found; λ is then right to its square


@dataclass(frozen=True)
class Codes(ABC):
    """How a cell prices rows. ``cost_mean`` and ``cost_std`` (k,) are those of a cluster's rows."""

    cost_mean: Float[Tensor, " k"]
    cost_std: Float[Tensor, " k"]
    refined: ClassVar[bool]  # whether costs are of z (n, e) or of the raw rows (n, d)

    @property
    @abstractmethod
    def num_clusters(self) -> int:
        """k."""

    @property
    def num_live(self) -> int:
        """Clusters that a row can choose; the others are empty."""
        return self.num_clusters

    @abstractmethod
    def costs(self, rows: Float[Tensor, "n w"]) -> Float[Tensor, "n k"]:
        """Cost of each row in each cluster."""

    def outlier(self, cost: Float[Tensor, " n"], leaf: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """z-score of a cost against the costs of the cluster's own rows."""
        return (cost - self.cost_mean[leaf]) / self.cost_std[leaf]

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for storage; ``from_tensors`` reads them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Codes:
        kind = CentroidCodes if "centroids" in tensors else RateCodes
        return kind(**tensors)


AnyCodes = TypeVar("AnyCodes", bound=Codes)


@dataclass(frozen=True)
class CentroidCodes(Codes):
    """The seed's partition: cost ½‖c‖² − xᵀc, half the squared distance less the constant ½‖x‖²."""

    centroids: Float[Tensor, "k d"]
    refined: ClassVar[bool] = False

    @staticmethod
    def of(centroids: Float[Tensor, "k d"]) -> CentroidCodes:
        k = len(centroids)
        return CentroidCodes(torch.zeros(k), torch.ones(k), centroids.float())

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    def costs(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return 0.5 * self.centroids.square().sum(1) - rows @ self.centroids.T


@dataclass(frozen=True)
class RateCodes(Codes):
    """cost_k(z) = constant_k + label_k + isotropic_k ‖z‖² − ‖V_kᵀz‖², nats per sample."""

    loadings: Float[Tensor, "e rk"]  # a column of every V_k, then the next; the last k: the first u
    isotropic: Float[Tensor, " k"]
    constant: Float[Tensor, " k"]
    label: Float[Tensor, " k"]  # −log share; +inf for an empty cluster
    rate: Float[Tensor, " k"]  # ½ log det of the stored A_k
    mass: Float[Tensor, " k"]
    refined: ClassVar[bool] = True

    @property
    def num_clusters(self) -> int:
        return len(self.mass)

    @property
    def num_live(self) -> int:
        return int((self.mass > 0).sum())

    @property
    def length(self) -> float:
        """R_c plus the label cost at the fit's own partition, nats per sample."""
        live = self.mass > 0
        nats = (self.mass * (self.rate + self.label))[live].double().sum()
        return float(nats / self.mass.double().sum().clamp_min(1e-12))

    def costs(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n k"]:
        k = self.num_clusters
        explained = (rows @ self.loadings).square_().view(len(rows), -1, k).sum(1)
        norm = rows.square().sum(1, keepdim=True)
        return norm * self.isotropic - explained + (self.constant + self.label)

    def cheapest_left_out(
        self, z: Float[Tensor, "n e"], eps2: float
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Cost and cluster of rows that choose as if they were not in their cheapest one.

        A cluster of few rows describes each too well for it to leave (Hartigan 1975 on k-means).
        """
        costs = self.costs(z)
        cost, leaf = costs.min(1)
        left_out = cost + self.saved_by_itself(z, leaf, eps2)
        second, other = costs.scatter(1, leaf[:, None], float("inf")).min(1)
        leaves = left_out > second
        return torch.where(leaves, second, cost), torch.where(leaves, other, leaf)

    def saved_by_itself(
        self, z: Float[Tensor, "n e"], leaf: Int[Tensor, " n"], eps2: float
    ) -> Float[Tensor, " n"]:
        """What each row saves in ``leaf`` because that was fitted to the row as well.

        Without the row z, the first direction √λ u is, up to scale, n √λ u − z (to first order in
        1/n); the row saves the square of its product with that, and the cluster's label costs more.
        A cluster of one row saves nothing.
        """
        e, k = len(self.loadings), self.num_clusters
        top = self.loadings[:, -k:].T  # √saving · u, (k, e)
        saving = top.square().sum(1)
        inside = 0.5 * (e / eps2) / (self.isotropic - saving).clamp_min(1e-12)  # 1 + e λ / ε²
        pull = (self.mass * ((inside - 1) * eps2 / e).clamp_min(0).sqrt())[leaf]  # n √λ
        along = (z * top[leaf]).sum(1).abs() / saving[leaf].clamp_min(1e-12).sqrt()  # |u·z|
        norm, n = z.square().sum(1), self.mass[leaf]
        rest = (pull.square() - 2 * pull * along + norm).clamp_min(1e-12)
        without = torch.minimum((pull * along - norm).square() / rest, along.square())
        without = torch.where(n > 1, without, 0.0)
        label = torch.where(n > 1, n.log() - (n - 1).log(), 0.0)
        return saving[leaf] * (along.square() - without) + label

    def followed_by(self, other: RateCodes, start: int) -> RateCodes:
        """These clusters, then those of ``other`` from number ``start`` on."""
        k, e = self.num_clusters, len(self.loadings)
        both = {
            f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)[start:]])
            for f in fields(self)
            if f.name != "loadings"
        }
        of_each = (self.loadings.view(e, -1, k), other.loadings.view(e, -1, other.num_clusters))
        loadings = torch.cat([of_each[0], of_each[1][:, :, start:]], 2)
        return RateCodes(loadings=loadings.reshape(e, -1), **both)

    def live(self) -> RateCodes:
        """Without the empty clusters, which no row can choose."""
        keep = (self.mass > 0).nonzero()[:, 0]
        k = self.num_clusters
        loadings = self.loadings.view(len(self.loadings), -1, k)[:, :, keep]
        kept = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "loadings"}
        return RateCodes(loadings=loadings.reshape(len(loadings), -1), **kept)


def fit_codes(
    mass: Float[Tensor, " k"],
    moments: Float[Tensor, "k e e"],
    eps2: float,
    rank: int = 8,
    shrinkage: float = 0.0,
) -> RateCodes:
    """Codes of rank ``rank`` from cluster statistics; a cluster of mass 0 costs +inf.

    ``shrinkage`` is a number of pseudo-rows with the pooled spread of all clusters that is mixed
    into each cluster's own spread (all but its first direction). Without it a cluster with fewer
    rows than e describes its own rows too cheaply and its membership freezes.
    """
    k, e = moments.shape[:2]
    mass = mass.double()
    live = mass > 0
    # What is stored is float32, and so is the search for it, at half the time of float64.
    mean = moments.float() / mass.clamp_min(1e-12).float()[:, None, None]
    pooled = None
    if shrinkage > 0:
        line = first_lines(mean)
        mean -= line
        pooled = _pool(mass, mean)
        own = (mass / (mass + shrinkage)).float()[:, None, None]
        mean.mul_(own).add_((1 - own) * pooled)
        mean += line
    r = min(rank, e)
    c = e / eps2
    top, vectors = (found.double() for found in leading(mean, r, pooled))
    top = top.clamp_min(0)
    residual = (mean.diagonal(dim1=1, dim2=2).double().sum(1) - top.sum(1)).clamp_min(0)
    inside = 1 + c * top
    outside = 1 + c * residual / max(e - r, 1)
    log_det = inside.log().sum(1) + (e - r) * outside.log()
    trace = (1 - 1 / inside).sum(1) + (e - r) * (1 - 1 / outside)
    # ½c (1/outside − 1/inside) along each stored direction, where inside ≥ outside up to rounding
    saving = (0.5 * c * (1 / outside[:, None] - 1 / inside)).clamp_min(0).sqrt()
    loadings = (vectors * saving[:, None, :]).permute(1, 2, 0).reshape(e, r * k)
    share = mass / mass.sum().clamp_min(1e-12)
    label = torch.where(live, -share.clamp_min(1e-300).log(), float("inf"))
    rate = 0.5 * log_det
    return RateCodes(
        cost_mean=(rate + label).float(),
        cost_std=torch.ones(k),
        loadings=loadings.float().contiguous(),
        isotropic=(0.5 * c / outside).float(),
        constant=(rate - 0.5 * trace).float(),
        label=label.float(),
        rate=rate.float(),
        mass=mass.float(),
    )


def leading(
    mean: Float[Tensor, "k e e"], rank: int, pooled: Float[Tensor, "e e"] | None = None
) -> tuple[Float[Tensor, "k r"], Float[Tensor, "k e r"]]:
    """The largest ``rank`` eigenvalues of each and their vectors, the largest last.

    Matrices that were shrunk to a ``pooled`` spread share most of their leading directions: steps
    of subspace iteration from those and each one's largest column, then Rayleigh and Ritz (Golub
    and Van Loan), take less than half of an eigendecomposition's time. What is not settled by then
    are directions of nearly equal variance, which describe rows nearly equally well.
    """
    k, e = mean.shape[:2]
    width = SPARE * rank
    if pooled is None or width >= e:
        spectrum, vectors = torch.linalg.eigh(mean)
        return spectrum[:, e - rank :], vectors[:, :, e - rank :]
    shared = torch.linalg.eigh(pooled.float())[1][:, e - width + 1 :]
    column = mean[torch.arange(k), :, mean.diagonal(dim1=1, dim2=2).argmax(1)]
    basis = torch.cat([shared.expand(k, e, width - 1), column[:, :, None]], 2)
    for _ in range(SUBSPACE_STEPS):
        basis = torch.linalg.qr((basis.mT @ mean).mT)[0]
    values, turn = torch.linalg.eigh(basis.mT @ mean @ basis)
    return values[:, -rank:], basis @ turn[:, :, -rank:]


def pooled_spread(
    mass: Float[Tensor, " k"], moments: Float[Tensor, "k e e"]
) -> Float[Tensor, "e e"]:
    """W = Σ_k n_k/n (M_k − λ_k u_k u_kᵀ): what rows of a cluster do off its first direction."""
    mean = moments.double() / mass.double().clamp_min(1e-12)[:, None, None]
    return _pool(mass.double(), mean - first_lines(mean))


def first_lines(mean: Float[Tensor, "k e e"]) -> Float[Tensor, "k e e"]:
    """λ u uᵀ of the first direction of each, by power iteration from the largest column."""
    root = first_directions(mean)
    return root[:, :, None] * root[:, None, :]


def first_directions(
    mean: Float[Tensor, "k e e"], near: Float[Tensor, "k e"] | None = None
) -> Float[Tensor, "k e"]:
    """√λ u of the first direction of each, by power iteration from the largest column.

    Where that has not settled, as between two equally strong directions, an eigendecomposition
    decides. From a guess ``near`` it few steps are taken, and what they reach is the answer.
    """
    if near is not None:
        u, moved = _power(mean, near, NEAR_STEPS)
        return u * (u * moved).sum(1, keepdim=True).clamp_min(0).sqrt()
    column = mean.diagonal(dim1=-2, dim2=-1).argmax(1)
    u, moved = _power(mean, mean[torch.arange(len(mean)), :, column], POWER_STEPS)
    variance = (u * moved).sum(1, keepdim=True).clamp_min(0)
    open = ((moved - variance * u).norm(dim=1) > SETTLED * variance[:, 0]).nonzero()[:, 0]
    if len(open):
        spectrum, vectors = torch.linalg.eigh(mean[open])
        u[open], variance[open] = vectors[:, :, -1], spectrum[:, -1:].clamp_min(0)
    return u * variance.sqrt()


def _power(mean: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """u after so many steps, and M u."""
    u = start[:, :, None]
    for _ in range(steps):
        u = F.normalize((u.mT @ mean).mT, dim=1)
    return u[:, :, 0], (u.mT @ mean)[:, 0]


def _pool(mass: Tensor, matrices: Tensor) -> Tensor:
    """Mean of the matrices by mass, in their precision."""
    share = mass / mass.sum().clamp_min(1e-12)
    return torch.einsum("k,kij->ij", share.to(matrices.dtype), matrices)


def costs(z: Float[Tensor, "n e"], codes: Codes) -> Float[Tensor, "n k"]:
    """Nats per sample of every row in every cluster: g_k(z) and the label's cost."""
    return codes.costs(z)


def with_statistics(
    codes: AnyCodes,
    count: Float[Tensor, " k"],
    total: Float[Tensor, " k"],
    squares: Float[Tensor, " k"],
    pseudo_rows: float = 10.0,
) -> AnyCodes:
    """``codes`` with the mean and standard deviation of the winning costs per cluster.

    Small clusters borrow ``pseudo_rows`` rows of the pooled variance: two rows have no spread.
    Those of fewer rows borrow the missing ones' mean, too, from all rows: what two rows cost that
    are like no others must not pass for usual.
    """
    mean = total / count.clamp_min(1)
    within = (squares - count * mean.square()).clamp_min(0)
    pooled = within.sum() / count.sum().clamp_min(1)
    variance = (within + pseudo_rows * pooled) / (count + pseudo_rows)
    overall = total.sum() / count.sum().clamp_min(1)
    mean += (overall - mean) * (1 - count / pseudo_rows).clamp_min(0)
    return replace(codes, cost_mean=mean.float(), cost_std=variance.sqrt().clamp_min(1e-6).float())
