"""Does a clustering still fit? New rows against old ones, cluster by cluster and as a whole.

Shares are compared with their uncertainty: a cluster's share of the new rows is unusual when its
score, (observed − expected) / standard deviation under the old share, is large. The corpus-level
distance is the total variation between old and new shares, less what sampling alone would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from rrcluster.records import setting

Counts = npt.NDArray[np.int64]
OUTLIER = 4.0  # z-score of a cost from which a row is an outlier
LOUD = 4.0  # score from which a cluster's change is more than chance


@dataclass
class ReclusterSpec:
    """Settings of increments: what happens to new, changed and old shards, and when to fit anew."""

    refit: Literal["auto", "never", "always"] = setting(
        "auto", "fit the clusters again: when they no longer fit, never, or each time"
    )
    refit_start: Literal["model", "scratch"] = setting(
        "model", "where a refit starts: from the clusters there are, or as a first run does"
    )
    refit_k: Any = setting(
        None,
        "clusters of a refit, in the forms of k; null: as k was, and at the finest level at least "
        "as many as there are now, opened ones among them; ones without a predecessor whose rows "
        "mostly stay in others (refit_stay) join those",
    )
    refit_nats: float = setting(
        1.0, "refit_start=model: nats per row that parting or joining clusters must save"
    )
    refit_score: float = setting(
        2.0,
        "refit_start=model: deviations above its cluster's own rows from which a row's cost gives "
        "it no say in what stays",
    )
    refit_stay: float = setting(
        24.0,
        "nats by which another cluster must be cheaper before a row leaves, at a refit and after "
        "it, the one it was in; 0: rows go where they are cheapest",
    )
    refit_stay_fresh: float = setting(
        6.0,
        "the same (never above it) for a cluster whose rows are novelty_times as frequent among "
        "those that came since the last fit as among those before",
    )
    on_changed: Literal["error", "skip", "reprocess"] = setting(
        "error", "a shard that changed since it was read: stop, keep the old rows, or read it again"
    )
    max_distance: float = setting(0.1, "refit=auto: move of cluster shares beyond chance, 0..1")
    max_growth: float = setting(2.0, "refit=auto: rows now per row at the last fit")
    min_overlap: float = setting(
        0.3, "a refitted cluster keeps the id of an old one when they share this part of their rows"
    )
    novelty: bool = setting(True, "open clusters for new concepts between fits")
    novelty_score: float = setting(
        1.0, "deviations above its cluster's own rows from which a row's cost sets it aside"
    )
    novelty_rows: int = setting(16, "distinct rows set aside that a new cluster needs")
    novelty_sure_rows: int = setting(
        32, "rows that open a cluster at once; fewer must pass in two increments"
    )
    novelty_gain: float = setting(0.5, "nats per row that a new cluster must save")
    novelty_times: float = setting(
        3.0, "how many times as frequent as in the fit a new cluster's rows must be"
    )
    regroup: bool = setting(True, "split and merge clusters between fits where new rows ask for it")
    regroup_gain: float = setting(
        0.2, "nats per row of the clusters concerned that a split or a merge must save"
    )
    buffer_rows: int = setting(20_000, "rows set aside that are kept at most (hash-chosen)")
    max_churn: float = setting(0.5, "warn when a refit moves a larger share of rows to other ids")


@dataclass(frozen=True)
class Drift:
    """Per cluster (k,) and for the corpus; ``score`` is in standard deviations."""

    old_share: npt.NDArray[np.float64]
    new_share: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    outlier_score: npt.NDArray[np.float64]
    distance: float  # total variation, 0..1
    expected_distance: float  # of a sample of this size without any drift
    old_outliers: float  # share of all rows
    new_outliers: float


@dataclass(frozen=True)
class Sums:
    """Per cluster: rows and outliers (k,), sum of rows (k, d), of their costs and squared costs."""

    rows: Counts
    outliers: Counts
    total: npt.NDArray[np.float64]
    cost: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @staticmethod
    def none(k: int, d: int) -> Sums:
        """Those of no rows."""
        count, real = np.zeros((2, k), np.int64), np.zeros((2, k))
        return Sums(count[0], count[1], np.zeros((k, d)), real[0], real[1])

    def add(self, clusters: Counts, part: Sums) -> None:
        """Take in the sums of some clusters; in place."""
        for mine, more in zip(vars(self).values(), vars(part).values(), strict=True):
            mine[clusters] += more


def sums_of(
    x: npt.NDArray[Any], cluster: Counts, k: int, outlier: npt.ArrayLike, cost: npt.ArrayLike
) -> Sums:
    """The sums of rows x (n, d) of ``cluster`` 0..k−1."""
    found = Sums.none(k, x.shape[1])
    costs = np.asarray(cost, np.float64)
    found.rows[:] = np.bincount(cluster, minlength=k)
    found.outliers[:] = np.bincount(cluster[np.asarray(outlier) > OUTLIER], minlength=k)
    found.cost[:] = np.bincount(cluster, costs, minlength=k)
    found.squares[:] = np.bincount(cluster, costs**2, minlength=k)
    order = np.argsort(cluster, kind="stable")
    first = np.concatenate([[0], np.cumsum(found.rows)])
    for j in range(k):
        found.total[j] = x[order[first[j] : first[j + 1]]].sum(0, dtype=np.float64)
    return found


@dataclass(frozen=True)
class Moved:
    """Per cluster (k,), not a number where it has no new rows or no old ones.

    ``shift`` is the distance between the means of old and new unit rows, ``shift_by_chance`` what
    sampling alone gives; ``rate`` is how many nats a new row costs more, and its standard error.
    """

    shift: npt.NDArray[np.float64]
    shift_by_chance: npt.NDArray[np.float64]
    rate: npt.NDArray[np.float64]
    rate_error: npt.NDArray[np.float64]


def moved(old: Sums, new: Sums) -> Moved:
    """How each cluster's new rows lie beside its old ones, and what they cost."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 1 / old.rows + 1 / new.rows  # of a variance, in that of a difference of means
        there, here = (s.total / s.rows[:, None] for s in (old, new))
        spread = np.clip(1 - (there**2).sum(1), 0, None)  # E‖x − mean‖² of unit rows
        before, after = old.cost / old.rows, new.cost / new.rows
        variance = np.clip(old.squares / old.rows - before**2, 0, None)
        empty = (old.rows == 0) | (new.rows == 0)
        found = Moved(
            np.sqrt(((there - here) ** 2).sum(1)), np.sqrt(spread * share),
            after - before, np.sqrt(variance * share),
        )  # fmt: skip
    for values in vars(found).values():
        values[empty] = np.nan
    return found


def against_history(
    what: str, now: float, earlier: Sequence[float], chance: float | None = None
) -> str:
    """A share in words beside what chance gives and that of the increments before."""
    share = f"{what} {now:.1%}" + ("" if chance is None else f" (chance gives {chance:.1%})")
    if not earlier:
        return f"{share}; no increment before it since the fit"
    if len(earlier) == 1:
        return f"{share}; {earlier[0]:.1%} in the increment before"
    middle, spread = float(np.mean(earlier)), float(np.std(earlier, ddof=1))
    return f"{share}; {middle:.1%} ± {spread:.1%} in the {len(earlier)} increments before"


def drift(old: Counts, new: Counts, old_outliers: Counts, new_outliers: Counts) -> Drift:
    """Compare rows and outliers per cluster (k,) of the increment with those before it."""
    n, m = max(int(old.sum()), 1), int(new.sum())
    p, q = old / n, new / max(m, 1)
    spread = np.sqrt(np.maximum(p * (1 - p), 1 / n) * (1 / max(m, 1) + 1 / n))
    before = (old_outliers + 0.5) / (old + 1.0)  # half an outlier in one row: no share is 0
    surprise = (new_outliers - new * before) / np.sqrt(np.maximum(new * before * (1 - before), 1))
    # E|q − p| of a normal variable is √(2/π) standard deviations.
    chance = 0.5 * float(np.sqrt(2 / np.pi) * np.sqrt(p * (1 - p) * (1 / max(m, 1) + 1 / n)).sum())
    return Drift(
        old_share=p,
        new_share=q,
        score=(q - p) / spread if m else np.zeros_like(p),
        outlier_score=surprise,
        distance=0.5 * float(np.abs(q - p).sum()) if m else 0.0,
        expected_distance=min(chance, 1.0) if m else 0.0,
        old_outliers=float(old_outliers.sum()) / n,
        new_outliers=float(new_outliers.sum()) / max(m, 1),
    )


def reasons(found: Drift, grown: float, max_distance: float, max_growth: float) -> list[str]:
    """Why the clustering should be fitted again, in words; none when it still fits.

    ``grown`` is how many rows there are for each row at the last fit.
    """
    said = []
    excess = found.distance - found.expected_distance
    if excess > max_distance:
        said.append(
            f"cluster shares moved by {found.distance:.1%}, "
            f"of which chance explains {found.expected_distance:.1%}"
        )
    if found.new_outliers > 2 * found.old_outliers + 0.01:
        said.append(
            f"{found.new_outliers:.1%} of the new rows are outliers, "
            f"of the fitted ones {found.old_outliers:.1%}"
        )
    if grown > max_growth:
        said.append(f"the run is {grown:.1f} times the size that it was fitted on")
    return said


def matched(overlap: npt.NDArray[np.float64], least: float) -> dict[int, int]:
    """new → old clusters by the largest total overlap, each used once (Hungarian method).

    ``overlap[i, j]`` is the weight of rows in old cluster i and new cluster j; a pair counts when
    its share of their union (Jaccard) is at least ``least``.
    """
    rows, columns = linear_sum_assignment(-overlap)
    union = overlap.sum(1)[:, None] + overlap.sum(0)[None] - overlap
    share = overlap / np.maximum(union, 1e-12)
    return {
        int(j): int(i)
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        if overlap[i, j] > 0 and share[i, j] >= least
    }


def changes(
    overlap: npt.NDArray[np.float64], old: Sequence[int], new: Sequence[int]
) -> list[tuple[int | None, int | None, str, float]]:
    """(old id, new id, kind, overlap) rows of the map, for one level.

    kept: the id is in both. An old id that went into the cluster of another is merged; a new id
    whose rows come from an old cluster that lives on is split from it. What has no counterpart is
    retired or new. ``overlap`` is the share of the old cluster's rows (of the new one's for split).
    """
    found: list[tuple[int | None, int | None, str, float]] = []
    from_old, from_new = overlap.sum(1), overlap.sum(0)
    place, were = {cluster: j for j, cluster in enumerate(new)}, set(old)
    for i, cluster in enumerate(old):
        if cluster in place:
            j = place[cluster]
            found.append((cluster, cluster, "kept", float(overlap[i, j] / max(from_old[i], 1e-12))))
            continue
        j = int(overlap[i].argmax())
        share = float(overlap[i, j] / max(from_old[i], 1e-12))
        whole = share > 0.5
        found.append((cluster, new[j] if whole else None, "merged" if whole else "retired", share))
    for j, cluster in enumerate(new):
        if cluster not in were:
            i = int(overlap[:, j].argmax())
            share = float(overlap[i, j] / max(from_new[j], 1e-12))
            split = share > 0.5
            found.append((old[i] if split else None, cluster, "split" if split else "new", share))
    return found
