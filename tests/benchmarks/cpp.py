"""CPP's objective as published, on ready vectors, evaluated on the full set: a peer for benchmarks.

Written from the papers' formulas (arXiv 2306.05272, section 3; MLC, arXiv 2301.01805): features z
and cluster features c of a shared trunk, Π = Sinkhorn_η(|C Cᵀ|) over the batch, −R alone first,
then −R + R_c + 0.05 · ½‖Π‖², at whose start the cluster head is a copy of the feature head; at the
end spectral clustering of the whole set's Π. Membership is n × n, so it is for small sets only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import SpectralClustering
from torch import Tensor, nn
from torch.nn.functional import normalize

from rrcluster.core.rate import membership_compression, rate
from rrcluster.core.sinkhorn import sinkhorn


@dataclass(frozen=True)
class CppSpec:
    """Published settings, but for batch and widths, which are those that two cores can hold."""

    heads: int = 2
    eps2: float = 0.1
    eta: float = 0.13
    width: int = 64
    hidden: int = 1024
    batch: int = 512
    warm_up: int = 40  # steps on −R alone
    steps: int = 80
    penalty: float = 0.05
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-3


class Net(nn.Module):
    def __init__(self, d: int, spec: CppSpec) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(d, spec.hidden), nn.BatchNorm1d(spec.hidden), nn.ReLU(),
            nn.Linear(spec.hidden, spec.hidden), nn.BatchNorm1d(spec.hidden), nn.ReLU(),
        )  # fmt: skip
        self.feature = nn.Linear(spec.hidden, spec.width)
        self.cluster = nn.Linear(spec.hidden, spec.width) if spec.heads == 2 else self.feature

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return normalize(self.feature(h), dim=1), normalize(self.cluster(h), dim=1)


def membership(c: Tensor, eta: float) -> Tensor:
    """Doubly stochastic over the rows themselves: every row of the batch acts as a cluster."""
    return sinkhorn((c @ c.T).abs(), eta, c.new_full((len(c),), 1 / len(c)))


def train(x: Tensor, spec: CppSpec, seed: int) -> Net:
    """The net after warm-up and training on rows (n, d)."""
    torch.manual_seed(seed)
    net = Net(x.shape[1], spec)
    draw = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)

    def optimiser() -> torch.optim.Optimizer:
        return torch.optim.SGD(
            net.parameters(), spec.learning_rate, spec.momentum, weight_decay=spec.weight_decay
        )

    descent = optimiser()
    for step in range(spec.warm_up + spec.steps):
        if step == spec.warm_up and spec.heads == 2:
            net.cluster = copy.deepcopy(net.feature)
            descent = optimiser()
        if len(order) < min(spec.batch, len(x)):
            order = torch.randperm(len(x), generator=draw)
        rows, order = order[: spec.batch], order[spec.batch :]
        z, c = net(x[rows])
        loss = -rate(z, spec.eps2)
        if step >= spec.warm_up:
            pi = membership(c, spec.eta)
            loss = loss + membership_compression(z, pi, spec.eps2)
            loss = loss + spec.penalty * 0.5 * pi.square().sum()
        descent.zero_grad()
        loss.backward()
        descent.step()
    return net.eval()


def cpp(x: Tensor, k: int, seed: int, spec: CppSpec | None = None) -> np.ndarray:
    """Clusters (n,) of all rows."""
    spec = spec or CppSpec()
    rows = x.float()
    net = train(rows, spec, seed)
    with torch.no_grad():
        pi = membership(net(rows)[1], spec.eta)
    alike = (pi + pi.T).numpy() / 2
    found = SpectralClustering(k, affinity="precomputed", random_state=seed, n_init=10)
    return found.fit_predict(alike)
