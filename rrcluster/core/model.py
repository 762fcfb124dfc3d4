"""The fitted model of one cell, and the statistics that it takes from a block.

Nothing is stored per row: whoever needs a row's cluster asks the model again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rrcluster.core.codes import Codes, RateCodes
from rrcluster.core.features import FeatureMap
from rrcluster.core.tiles import by_tiles


@dataclass(frozen=True)
class CellModel:
    """Features and cluster codes of one cell: x (n, d) → cost of each of the cell's k leaves."""

    features: FeatureMap
    codes: Codes

    @property
    def num_leaves(self) -> int:
        """k."""
        return self.codes.num_clusters

    def costs(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Cost of each row in each leaf; call it on tiles of constant shape."""
        return self.codes.costs(self.features(rows) if self.codes.refined else rows)

    def cheapest(self, x: Float[Tensor, "n d"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The cheapest leaf of each row (the first of equals) and its cost."""

        def choose(rows: Tensor) -> tuple[Tensor, ...]:
            cost, leaf = self.costs(rows).min(1)
            return leaf, cost

        leaf, cost = by_tiles(x, choose)
        return leaf, cost

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for storage; ``from_tensors`` reads them back."""
        found = {f"features.{name}": t for name, t in self.features.tensors().items()}
        return found | {f"codes.{name}": t for name, t in self.codes.tensors().items()}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> CellModel:
        return CellModel(
            FeatureMap.from_tensors(under(tensors, "features.")),
            Codes.from_tensors(under(tensors, "codes.")),
        )


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by the rest of their names."""
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}


def features_of(features: FeatureMap, x: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
    """z of every row, by tiles."""
    return by_tiles(x, lambda rows: (features(rows),))[0]


def sum_by_label(
    z: Float[Tensor, "n e"], labels: Int[Tensor, " n"], k: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k e e"]]:
    """Mass n_k and moments S_k = Σ z zᵀ of each label, float64, one product per cluster present."""
    e = z.shape[1]
    moments = torch.zeros(k, e, e, dtype=torch.float64)
    for label, second in moments_by_label(z, labels, k):
        moments[label] = second
    return torch.bincount(labels, minlength=k).double(), moments


def moments_by_label(
    z: Float[Tensor, "n e"], labels: Int[Tensor, " n"], k: int
) -> Iterator[tuple[int, Float[Tensor, "e e"]]]:
    """(label, Σ z zᵀ of its rows) of each label that is present, float64."""
    grouped, start = z[labels.argsort(stable=True)], 0
    for label, size in enumerate(torch.bincount(labels, minlength=k).tolist()):
        if size:
            rows = grouped[start : start + size]
            yield label, (rows.T @ rows).double()
            start += size


@dataclass(frozen=True)
class Costs:
    """Statistic: mass (k,) of the leaves that ``model`` chooses, with the sum and the sum of
    squares of the winning costs."""

    model: CellModel

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        leaf, cost = self.model.cheapest(x)
        k, cost = self.model.num_leaves, cost.double()
        return {
            "mass": torch.bincount(leaf, minlength=k).double(),
            "cost": torch.bincount(leaf, weights=cost, minlength=k),
            "squares": torch.bincount(leaf, weights=cost.square(), minlength=k),
        }


@dataclass(frozen=True)
class Moments:
    """Statistic: mass (k,) and moments (k, e, e) in ``space`` of the leaves that ``model`` chooses.

    With ``left_out`` (ε² of its codes) rows choose by leave-one-out costs.
    """

    model: CellModel
    space: FeatureMap
    left_out: float | None = None

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        model, codes, k = self.model, self.model.codes, self.model.num_leaves
        same = codes.refined and model.features is self.space  # projected once for both

        def choose(rows: Tensor) -> tuple[Tensor, ...]:
            z = model.features(rows) if codes.refined else rows
            if isinstance(codes, RateCodes) and self.left_out is not None:
                leaf = codes.cheapest_left_out(z, self.left_out)[1]
            else:
                leaf = codes.costs(z).min(1).indices
            return (leaf, z) if same else (leaf,)

        leaf, *z_found = by_tiles(x, choose)
        z = z_found[0] if same else features_of(self.space, x)
        mass, moments = sum_by_label(z, leaf, k)
        return {"mass": mass, "moments": moments}
