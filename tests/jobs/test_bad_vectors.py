"""Vectors that cannot be clustered as asked: each case has one outcome, in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.records import UserError


def rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def job(folder: Path, *shards: np.ndarray, k: object = 2):
    """The record of a job on these shards."""
    (folder / "corpus").mkdir()
    for number, x in enumerate(shards):
        np.save(folder / f"corpus/{number}.npy", x)
    settings = [
        f"corpus.uri={folder}/corpus", "corpus.format=embeddings", "encoder=vectors", f"k={k}",
        f"run_dir={folder}/run", "compute=in_process", "count.replicates=2", "refine.rounds=0",
    ]  # fmt: skip
    return cluster(load(settings), silent)


def test_more_clusters_than_rows_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(UserError, match=r"k=40.*30 distinct samples"):
        job(tmp_path, rows(30), k=40)


def test_duplicates_only_are_refused_with_how_many_there_are(tmp_path) -> None:
    with pytest.raises(UserError, match=r"k=5.*only 2 distinct vectors"):
        job(tmp_path, rows(2)[np.arange(50) % 2], k=5)


def test_duplicates_only_are_one_cluster_where_one_is_asked_for(tmp_path) -> None:
    record = job(tmp_path, rows(1)[np.zeros(50, int)], k=1)
    assert record.content["reconciliation"]["embedded"] == 50


def test_one_row_is_one_cluster(tmp_path) -> None:
    record = job(tmp_path, rows(1), k=1)
    assert (
        record.content["reconciliation"] | {"read": 1, "embedded": 1, "bad": 0}
        == (record.content["reconciliation"])
    )


def test_rows_that_are_not_finite_and_zero_vectors_are_counted_and_left_out(tmp_path) -> None:
    x = rows(40)
    x[3, 1], x[7, 0], x[11] = np.nan, np.inf, 0
    counts = job(tmp_path, x).content["reconciliation"]
    assert (counts["read"], counts["embedded"], counts["bad"]) == (40, 37, 3)


def test_shards_of_different_widths_are_refused_with_both_widths(tmp_path) -> None:
    with pytest.raises(UserError, match=r"16.*12|12.*16"):
        job(tmp_path, rows(30, 16), rows(30, 12))
