"""caption: names for clusters at every level, from CLIP's text tower and the corpus's own words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrcluster.compute import Compute, Progress
from rrcluster.core.forest import Forest
from rrcluster.core.ngrams import cluster_ngrams
from rrcluster.stages.count import read_forest
from rrcluster.stages.gather import EXEMPLARS, Facts, Picks, gather, look_up
from rrcluster.stages.names import NAMES, Named, Names, read_names
from rrcluster.stages.run import Record, Run
from rrcluster.stages.select import LoadBlock
from rrcluster.stages.texts import candidate_texts
from rrcluster.stages.votes import vote_names

EXAMPLES = "model/caption/examples.json"
CAPTIONS_READ = 64  # of a cluster, for its n-grams
NGRAMS_KEPT = 12  # candidates from a cluster's own captions


def caption(run: Run, compute: Compute, record: Record, progress: Progress) -> None:
    """Write ``model/caption/examples.json``, then ``names.json``."""
    with record.stage("caption") as counts:
        if not run.store.exists(NAMES):
            _caption(run, compute, progress)
        names = read_names(run.store)
        every = [named for level in names.levels for named in level]
        counts |= {"clusters": len(every), "named": sum(bool(n.captions) for n in every)}


def _caption(run: Run, compute: Compute, progress: Progress) -> None:
    store, spec = run.store, run.config.caption
    forest, load = read_forest(store), LoadBlock.of(run)
    progress("caption", 0, 4, "typical samples")
    facts = gather(compute, load, forest, CAPTIONS_READ)
    paths = finest_paths(forest)
    progress("caption", 1, 4, "the corpus's own words")
    shown = np.concatenate([facts.exemplars.where, facts.borderline.where, facts.texts.where])
    rows = look_up(compute, store, shown)
    phrases = ngrams_of(facts.texts, rows, len(paths), spec.ngrams)
    progress("caption", 2, 4, "candidate texts")
    texts = candidate_texts(run, compute, [p for own in phrases for p, _ in own], progress)
    progress("caption", 3, 4, "voting")
    if texts is None:  # no text tower: the corpus's own words are all there is
        captions = [
            own_words(phrases, paths[:, level], spec.top) for level in range(paths.shape[1])
        ]
    else:
        captions = vote_names(run, compute, load, forest, facts, phrases, texts, paths)
    names = Names(
        [
            [
                Named(captions[level][i], _exemplars(facts.exemplars, paths[:, level] == i), radius)
                for i, radius in enumerate(radii(facts, paths[:, level]))
            ]
            for level in range(paths.shape[1])
        ],
        paths.tolist(),
    )
    store.write_json(EXAMPLES, examples(facts, paths, rows, forest))
    store.write_json(NAMES, {"levels": [[asdict(n) for n in level] for level in names.levels],
                             "paths": names.paths})  # fmt: skip
    progress("caption", 4, 4)


def finest_paths(forest: Forest) -> npt.NDArray[np.int64]:
    """(k, L): cluster at each level of every finest cluster, in the order of their numbers."""
    paths: npt.NDArray[np.int64] = forest.paths.unique(dim=0).numpy()
    return paths[paths[:, -1].argsort()]


def ngrams_of(
    picks: Picks, rows: dict[tuple[int, int], Any], clusters: int, longest: int
) -> list[list[tuple[str, float]]]:
    """Phrases that set each finest cluster's captions apart, with their tf-idf weights."""
    captions: list[list[str]] = [[] for _ in range(clusters)]
    for cluster, where in zip(picks.cluster.tolist(), picks.where.tolist(), strict=True):
        text = rows[tuple(where)][2]
        if text:
            captions[cluster].append(text)
    if not longest or not any(captions):
        return [[] for _ in range(clusters)]
    return cluster_ngrams(captions, NGRAMS_KEPT, longest)


def own_words(
    phrases: list[list[tuple[str, float]]], cluster_of: npt.NDArray[np.int64], top: int
) -> list[list[tuple[str, float]]]:
    """Names without a text tower: the weightiest phrases of each cluster's captions."""
    found: list[list[tuple[str, float]]] = []
    for index in range(int(cluster_of.max()) + 1):
        best: dict[str, float] = {}
        for finest in np.flatnonzero(cluster_of == index).tolist():
            for phrase, weight in phrases[finest]:
                best[phrase] = max(best.get(phrase, 0.0), weight)
        found.append(sorted(best.items(), key=lambda p: (-p[1], p[0]))[:top])
    return found


def radii(facts: Facts, cluster_of: npt.NDArray[np.int64]) -> list[float]:
    """Root mean squared distance to the mean of each cluster of a level, on the unit sphere."""
    index = torch.from_numpy(cluster_of)
    k = int(index.max()) + 1
    total = torch.zeros(k, facts.total.shape[1], dtype=torch.float64)
    total.index_add_(0, index, facts.total)
    size = torch.zeros(k, dtype=torch.int64).index_add_(0, index, facts.count).clamp_min(1)
    mean = total / size[:, None]
    values: list[float] = (1 - mean.square().sum(1)).clamp_min(0).sqrt().tolist()
    return values


def _exemplars(picks: Picks, inside: npt.NDArray[np.bool_]) -> list[str]:
    """Ids of the lowest-cost rows of a cluster that is made of the finest clusters ``inside``."""
    rows = _best(picks, inside, EXEMPLARS)
    return [picks.ids[r].tobytes().hex() for r in rows]


def _best(picks: Picks, inside: npt.NDArray[np.bool_], most: int) -> list[int]:
    """Rows of the finest clusters ``inside``, taken in turns so that every child is seen."""
    rows = np.flatnonzero(inside[picks.cluster])
    cluster = picks.cluster[rows]
    rank = np.arange(len(rows)) - np.searchsorted(cluster, cluster)
    order = np.lexsort((picks.value[rows], rank))
    chosen: list[int] = rows[order][:most].tolist()
    return chosen


def examples(
    facts: Facts, paths: npt.NDArray[np.int64], rows: dict[tuple[int, int], Any], forest: Forest
) -> dict[str, Any]:
    """Exemplars and borderline samples of every cluster, keyed by its id, for the report."""

    def shown(picks: Picks, inside: npt.NDArray[np.bool_], most: int) -> list[dict[str, Any]]:
        listed = []
        for r in _best(picks, inside, most):
            shard, position = picks.where[r].tolist()
            row, key, text = rows[(shard, position)]
            listed.append(
                {
                    "sample_id": picks.ids[r].tobytes().hex(),
                    "shard": shard,
                    "row": row,
                    "key": key,
                    "caption": text,
                    "confidence": round(float(picks.confidence[r]), 4),
                    "outlier": round(float(picks.outlier[r]), 3),
                }
            )
        return listed

    found, first = {}, 0
    for level in range(paths.shape[1]):
        for index in range(forest.clusters_per_level[level]):
            inside = paths[:, level] == index
            found[str(first + index)] = {
                "exemplars": shown(facts.exemplars, inside, EXEMPLARS),
                "borderline": shown(facts.borderline, inside, 6),
            }
        first += forest.clusters_per_level[level]
    return found
