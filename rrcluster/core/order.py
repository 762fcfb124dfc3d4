"""In which order a cluster gives its rows: the first b of them are the sample, for any budget b.

Rows come sorted by the 128-bit hash of (seed, sample_id), so nothing here depends on the order of
the files or on who else is in the corpus, and a larger budget keeps what a smaller one took.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from rrcluster.core.keys import row_keys
from rrcluster.core.waterfill import Floats, Ints, ranks

TILE = 2048  # rows of a product of near-duplicate search
STRATA = (0, 4, 2, 6, 1, 5, 3, 7)  # strata of distance in the order in which they give a row


def hash_keys(sample_ids: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint64]:
    """(n, 2) the 128-bit key of each sample: equal for equal ids, uniform otherwise."""
    return np.stack(
        [row_keys(sample_ids, seed, "sample"), row_keys(sample_ids, seed, "sample/tie")], axis=1
    )


@dataclass(frozen=True)
class Parts:
    """Which part of an exchange holds which groups: runs of small groups, or slices of a large one.

    Slices cut a group by ranges of the first half of the key. ``first``, ``slices`` are (groups,).
    """

    first: Ints
    slices: Ints

    @property
    def parts(self) -> int:
        return int(self.first[-1] + self.slices[-1])

    def of(self, group: Ints, key: npt.NDArray[np.uint64]) -> Ints:
        """The part of each row, by its group and the first half of its key."""
        width = np.uint64(2**64 - 1) // self.slices[group].astype(np.uint64) + np.uint64(1)
        whole = self.slices[group] == 1
        inside = np.where(whole, 0, key // np.where(whole, np.uint64(1), width))
        return self.first[group] + inside.astype(np.int64)

    def groups(self, part: int) -> range:
        """The groups whose rows are in this part."""
        start = int(np.searchsorted(self.first, part, "right")) - 1
        if self.slices[start] > 1:
            return range(start, start + 1)
        return range(
            int(np.searchsorted(self.first, part, "left")),
            int(np.searchsorted(self.first, part, "right")),
        )


def cut_into_parts(sizes: Ints, rows: int, sliced: bool) -> Parts:
    """Parts of about ``rows`` rows; larger groups are cut if ``sliced``, else kept whole."""
    slices = np.maximum(-(-sizes // rows), 1) if sliced else np.ones_like(sizes)
    alone = sizes > rows
    run = np.cumsum(np.where(alone, 0, sizes)) // rows
    new = np.r_[False, (run[1:] != run[:-1]) | alone[1:] | alone[:-1]]
    before = np.r_[0, slices[:-1]]
    return Parts(np.cumsum(np.where(new, before, 0)), slices)


def repeats(group: Ints, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """(n,) whether a row has the id of the row before it in the same group; rows are sorted."""
    same = (group[1:] == group[:-1]) & (keys[1:] == keys[:-1]).all(1)
    return np.r_[False, same] if len(group) else np.zeros(0, bool)


def near_duplicates(x: Float[Tensor, "n d"], threshold: float) -> npt.NDArray[np.bool_]:
    """(n,) whether an earlier row has at least this cosine to the row; ``x`` are unit rows.

    As in SemDeDup (arXiv 2303.09540), an earlier row counts also when it is left out itself.
    """
    near = torch.zeros(len(x), dtype=torch.bool)
    for i in range(0, len(x), TILE):
        rows = x[i : i + TILE].float()
        for j in range(0, i + 1, TILE):
            close = rows @ x[j : j + TILE].float().T >= threshold
            if j == i:
                close = close.tril(-1)
            near[i : i + TILE] |= close.any(1)
    return near.numpy()


def squared_distances(x: Float[Tensor, "n d"]) -> Floats:
    """(n,) squared distance of each row to the mean of all, the same bits in any company."""
    rows = x.numpy()
    mean = np.zeros(rows.shape[1])
    for i in range(0, len(rows), TILE):
        mean += rows[i : i + TILE].sum(0, dtype=np.float64)
    mean /= max(len(rows), 1)
    parts = [
        ((rows[i : i + TILE].astype(np.float64) - mean) ** 2).sum(1)
        for i in range(0, len(rows), TILE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def order_rows(
    choice: str, squared: Floats, keys: npt.NDArray[np.uint64]
) -> tuple[Ints, Floats | None]:
    """The order in which one cluster's rows are taken, and the clocks of sensitivity sampling.

    Rows come in the order of their ``keys`` (n, 2). *sensitivity*: a row's chance q = 1/2n + half
    its share of the squared distance (k-means sensitivity, as in arXiv 2402.17327), drawn without
    repetition by exponential clocks −ln(u)/q: the first b to ring.
    """
    n = len(squared)
    if choice == "closest":
        return np.argsort(squared, kind="stable"), None
    if choice == "furthest":
        return np.argsort(-squared, kind="stable"), None
    if choice == "stratified":
        stratum = np.empty(n, np.int64)
        by_distance = np.argsort(squared, kind="stable")
        stratum[by_distance] = np.arange(n) * len(STRATA) // max(n, 1)
        inside = np.argsort(stratum, kind="stable")
        turn = np.empty(n, np.int64)
        turn[inside] = ranks(stratum[inside])
        return np.lexsort((np.asarray(STRATA)[stratum], turn)), None
    assert choice == "sensitivity", choice
    total = float(squared.sum())
    chance = np.full(n, 1 / max(n, 1)) if total == 0 else 0.5 / n + 0.5 * squared / total
    uniform = (keys[:, 0].astype(np.float64) + 0.5) / 2.0**64
    clock = -np.log(np.minimum(uniform, 1 - 2**-53)) / chance
    order = np.argsort(clock, kind="stable")
    # Clock times the row's chance and the chance itself are both needed for its weight.
    return order, np.stack([clock, chance], 1)[order]


def sensitivity_weights(clocks: Floats, taken: int) -> Floats:
    """(taken,) the rows of the cluster that each taken row stands for, unbiased for any sum.

    1 / P(clock < c), with c the first clock that did not ring in time (rank conditioning, Cohen
    and Kaplan 2007). ``clocks`` (n, 2) are clock and chance in the order of the clocks.
    """
    if taken >= len(clocks):
        return np.ones(taken)
    limit = clocks[taken, 0]
    weights: Floats = 1 / -np.expm1(-clocks[:taken, 1] * limit)
    return weights
