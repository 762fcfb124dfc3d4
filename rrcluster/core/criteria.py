"""Other criteria for the number of clusters, beside the coding length; they decide nothing.

Each looks at a bounded sample of rows in the merge space. *silhouette* (Rousseeuw 1987) and *elbow*
judge the cuts of the merge tree; *gap* (Tibshirani, Walther and Hastie 2001) compares the spread
within clusters of Ward's tree with that of rows without any clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import silhouette_score
from torch import Tensor

from rrcluster.core import keys
from rrcluster.core.merge import MergeTree, cut

STEPS = 24  # numbers of clusters that are tried
REFERENCES = 5  # sets without clusters behind the gap
GAP_ROWS = 1000


@dataclass(frozen=True)
class Criteria:
    """The number of clusters that each criterion would take; ``rows`` were looked at."""

    silhouette: int
    elbow: int
    gap: int
    rows: int


def criteria(
    z: Float[Tensor, "n e"], leaf: Int[Tensor, " n"], tree: MergeTree, seed: int
) -> Criteria | None:
    """From rows in the merge space and their leaves; None where there are too few."""
    rows = z.numpy().astype(np.float64)
    most = min(tree.num_leaves, len(rows) // 4)
    if most < 3:
        return None
    tried = np.unique(np.geomspace(2, most, STEPS).round().astype(int))
    labels = [cut(tree, int(k))[leaf].numpy() for k in tried]
    whole = float(np.square(rows - rows.mean(0)).sum())
    inertia = np.asarray([whole, *(spread(rows, one) for one in labels)])
    squares = np.square(rows).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distance, 0)
    scores = [
        silhouette_score(distance, one, metric="precomputed")
        if 1 < len(np.unique(one)) < len(rows)
        else -1.0
        for one in labels
    ]
    return Criteria(
        int(tried[int(np.argmax(scores))]),
        int(knee(np.r_[1, tried], inertia)),
        gap(rows[:GAP_ROWS], most, seed),
        len(rows),
    )


def spread(rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Σ squared distances to the own cluster's mean."""
    _, at, count = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), rows.shape[1]))
    np.add.at(sums, at, rows)
    return float(np.square(rows).sum() - (np.square(sums).sum(1) / count).sum())


def knee(k: npt.NDArray[np.int64], inertia: npt.NDArray[np.float64]) -> int:
    """Where the curve over log k lies lowest below its chord (Satopää et al. 2011)."""
    x, y = np.log(k), (inertia - inertia[-1]) / max(inertia[0] - inertia[-1], 1e-30)
    x = (x - x[0]) / (x[-1] - x[0])
    return int(k[int(np.argmin(y - (1 - x)))])


def gap(rows: npt.NDArray[np.float64], most: int, seed: int) -> int:
    """The smallest k whose gap is within one standard error of the next one's.

    References are uniform in the box of the principal directions (the paper's choice b).
    """
    most = min(most, len(rows) // 4)
    tried = np.unique(np.geomspace(1, max(most, 2), STEPS).round().astype(int))
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    turned = (rows - rows.mean(0)) @ axes.T
    low, high = turned.min(0), turned.max(0)
    draw = np.random.default_rng(keys.generator(seed, "gap").initial_seed())
    found = log_spreads(turned, tried)
    others = np.stack([
        log_spreads(draw.uniform(low, high, turned.shape), tried) for _ in range(REFERENCES)
    ])  # fmt: skip
    gaps = others.mean(0) - found
    error = others.std(0) * np.sqrt(1 + 1 / REFERENCES)
    fits = np.flatnonzero(gaps[:-1] >= gaps[1:] - error[1:])
    return int(tried[fits[0]] if len(fits) else tried[-1])


def log_spreads(
    rows: npt.NDArray[np.float64], tried: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    tree = linkage(rows, "ward")
    return np.log(
        [max(spread(rows, fcluster(tree, k, "maxclust").astype(np.int64)), 1e-300) for k in tried]
    )
