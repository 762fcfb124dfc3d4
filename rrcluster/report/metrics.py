"""Agreement of clusters with labels, for benchmarks: all from the table of pair counts.

A contingency table ``t`` (classes, clusters) holds how many samples have each label and cluster;
it adds over shards, so a corpus of any size is scored in one pass. A bootstrap resample of the
samples is a multinomial draw of the table.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import expected_mutual_information

from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.report.confusion import worst_mixed
from rrcluster.report.labels import read_labels

Contingency = npt.NDArray[np.int64]  # (classes, clusters)
METRICS = ("accuracy", "nmi", "ari", "ami")


def contingency(labels: npt.ArrayLike, clusters: npt.ArrayLike) -> Contingency:
    """Counts of every (label, cluster) pair of two equally long lists."""
    _, rows = np.unique(np.asarray(labels), return_inverse=True)
    _, columns = np.unique(np.asarray(clusters), return_inverse=True)
    table = np.zeros((rows.max(initial=-1) + 1, columns.max(initial=-1) + 1), np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def clustering_accuracy(labels: npt.ArrayLike, clusters: npt.ArrayLike) -> float:
    """The share of samples that agree under the best one-to-one naming (Hungarian method)."""
    return accuracy(contingency(labels, clusters))


def accuracy(t: Contingency) -> float:
    rows, columns = linear_sum_assignment(t, maximize=True)
    return float(t[rows, columns].sum() / max(t.sum(), 1))


def nmi(t: Contingency) -> float:
    """Mutual information over the mean of both entropies; 1 when neither side divides anything."""
    shared, mean = _mutual_information(t), _mean_entropy(t)
    return shared / mean if mean > 0 else 1.0


def chance(t: Contingency) -> float:
    """The mutual information, in nats, that random clusters of these sizes have on average.

    The one slow part here: 0.5 s for 100 × 100, a minute for 1,000 × 1,000 and a million samples.
    """
    t = t[t.sum(1) > 0][:, t.sum(0) > 0]
    return float(expected_mutual_information(t, int(t.sum()))) if t.size else 0.0


def ami(t: Contingency, by_chance: float | None = None) -> float:
    """NMI corrected for what chance gives (Vinh et al. 2010), with the mean of the entropies."""
    classes, clusters = int((t.sum(1) > 0).sum()), int((t.sum(0) > 0).sum())
    if classes == clusters and classes in (0, 1, t.sum()):
        return 1.0  # one class in one cluster, or everything alone on both sides
    by_chance = chance(t) if by_chance is None else by_chance
    span = _mean_entropy(t) - by_chance
    span = min(span, -1e-12) if span < 0 else max(span, 1e-12)
    return (_mutual_information(t) - by_chance) / span


def ari(t: Contingency) -> float:
    """The Rand index corrected for chance (Hubert and Arabie 1985)."""

    def pairs(counts: npt.NDArray[np.int64]) -> float:
        x = counts.astype(np.float64)
        return float((x * (x - 1) / 2).sum())

    both, rows, columns = pairs(t), pairs(t.sum(1)), pairs(t.sum(0))
    expected = rows * columns / max(pairs(t.sum(keepdims=True).ravel()), 1.0)
    span = (rows + columns) / 2 - expected
    return (both - expected) / span if span else 1.0


def _mutual_information(t: Contingency) -> float:
    n = t.sum()
    i, j = np.nonzero(t)
    joint = t[i, j] / n
    independent = (t.sum(1)[i] / n) * (t.sum(0)[j] / n)
    return max(float((joint * np.log(joint / independent)).sum()), 0.0)


def _mean_entropy(t: Contingency) -> float:
    def entropy(counts: npt.NDArray[np.int64]) -> float:
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())

    return (entropy(t.sum(1)) + entropy(t.sum(0))) / 2


def scores(t: Contingency, seed: int, bootstraps: int) -> dict[str, dict[str, float]]:
    """Every metric with a 95% interval: value ± 1.96 standard errors over bootstrap resamples.

    A standard error, not percentiles: resampled tables are noisier than the real one, which moves
    every one of these metrics up and would leave the value outside its own interval. What
    chance gives is computed once and held, as sizes hardly change between resamples.
    """
    by_chance = chance(t)
    functions: dict[str, Callable[[Contingency], float]] = {
        "accuracy": accuracy,
        "nmi": nmi,
        "ari": ari,
        "ami": functools.partial(ami, by_chance=by_chance),
    }
    rng = np.random.default_rng(seed)
    at = np.nonzero(t)
    share = t[at] / t.sum()
    drawn: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(bootstraps):
        resampled = np.zeros_like(t)
        resampled[at] = rng.multinomial(int(t.sum()), share)
        for name in METRICS:
            drawn[name].append(functions[name](resampled))
    found = {}
    for name in METRICS:
        value = functions[name](t)
        error = 1.96 * float(np.std(drawn[name], ddof=1)) if bootstraps > 1 else 0.0
        floor = 0.0 if name in ("accuracy", "nmi") else -1.0
        found[name] = {
            "value": value, "low": max(value - error, floor), "high": min(value + error, 1.0),
        }  # fmt: skip
    return found


def evaluate_run(store: Store, labels: pa.Table, seed: int, bootstraps: int) -> dict[str, Any]:
    """Scores of every level against ``labels``, over the samples that have one; JSON-able.

    Raises UserError when columns are missing, nothing matches, or the run has no assignments.
    """
    known, now = read_labels(labels), current(store)
    levels = now.levels
    columns = [f"level_{level}" for level in range(levels)]
    counts: list[Counter[tuple[int, int]]] = [Counter() for _ in columns]
    samples = matched = 0
    for batch in now.batches([known.column, *columns]) if levels else ():
        codes = known.codes_of(batch[known.column])
        samples += len(codes)
        labelled = codes >= 0
        matched += int(labelled.sum())
        for level, column in enumerate(columns):
            counts[level].update(_pairs(codes[labelled], batch[column].to_numpy()[labelled]))
    if not samples:
        raise UserError("run_dir", store.uri, "holds no assignments yet; finish the run first")
    if not matched:
        raise UserError(
            "evaluate.labels",
            f"({known.column})",
            f"none of {len(labels):,} labels matches one of {samples:,} samples by {known.column}",
        )
    return {
        "samples": samples,
        "labels": len(labels),
        "matched": matched,
        "matched_by": known.column,
        "classes": len({code for code, _ in counts[0]}),
        "seed": seed,
        "bootstraps": bootstraps,
        "levels": [
            {"level": level, "clusters": len({c for _, c in pairs})}
            | scores(_dense(pairs), seed, bootstraps)
            for level, pairs in enumerate(counts)
        ],
        "worst_mixed": worst_mixed(store, counts[-1], known.names),
    }


def evaluation_table(found: dict[str, Any]) -> Table:
    """The scores of ``evaluate_run``, a row per level."""
    table = Table(
        title="Agreement with the labels", title_justify="left", box=None, pad_edge=False,
        caption_justify="left", caption_style="",
    )  # fmt: skip
    for name in ("level", "clusters", *METRICS):
        table.add_column(name.upper() if len(name) == 3 else name, justify="right")
    for entry in found["levels"]:
        cells = []
        for value, low, high in (
            (e["value"], e["low"], e["high"]) for e in map(entry.get, METRICS)
        ):
            cells.append(f"{value:.3f} ± {max(value - low, high - value):.3f}")
        table.add_row(str(entry["level"]), f"{entry['clusters']:,}", *cells)
    table.caption = (
        f"{found['matched']:,} of {found['samples']:,} samples have one of "
        f"{found['classes']:,} labels (by {found['matched_by']}); 95% intervals from "
        f"{found['bootstraps']:,} resamples, seed {found['seed']}"
    )
    return table


def _pairs(codes: npt.NDArray[np.int32], ids: npt.NDArray[np.int64]) -> dict[tuple[int, int], int]:
    clusters, columns = np.unique(ids, return_inverse=True)
    span = max(len(clusters), 1)
    cells, counts = np.unique(codes.astype(np.int64) * span + columns, return_counts=True)
    return {
        (int(cell // span), int(clusters[cell % span])): int(count)
        for cell, count in zip(cells, counts, strict=True)
    }


def _dense(pairs: Counter[tuple[int, int]]) -> Contingency:
    rows = {code: i for i, code in enumerate(sorted({code for code, _ in pairs}))}
    columns = {c: i for i, c in enumerate(sorted({c for _, c in pairs}))}
    table = np.zeros((len(rows), len(columns)), np.int64)
    for (code, cluster), count in pairs.items():
        table[rows[code], columns[cluster]] = count
    return table
