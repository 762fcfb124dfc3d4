"""What is gathered from the folder: one pass, either layout, bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from report.synthetic_run import make_run

from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.report import advice
from rrcluster.report.duplicates import DuplicateCounter
from rrcluster.report.scan import OUTLIERS
from rrcluster.report.summary import gather


def test_both_layouts_of_the_assignments_give_the_same_summary(tmp_path: Path) -> None:
    by_shard = gather(make_run(tmp_path / "a"))
    by_cluster = gather(make_run(tmp_path / "b", hive=True))
    assert by_shard.roots == by_cluster.roots
    assert by_shard.outliers == by_cluster.outliers
    assert by_shard.confidence == by_cluster.confidence
    assert by_shard.assigned == by_cluster.assigned == 120


def test_confidence_counts_add_up_to_the_cluster_sizes(run: Store) -> None:
    summary = gather(run)
    for root in summary.roots:
        for cluster in root.walk():
            assert sum(cluster.confidence) == cluster.size


def test_outliers_are_the_largest_scores_with_their_captions(run: Store) -> None:
    summary = gather(run)
    scores = [
        r["outlier"]
        for shard in range(3)
        for r in tables.read_table(
            run, f"assignments/increment=00000/{shard:06d}.parquet", ["outlier"]
        ).to_pylist()
    ]
    found = [e.outlier for e in summary.outliers]
    assert found == sorted(scores, reverse=True)[:OUTLIERS]
    assert all(e.key for e in summary.outliers)


def test_repeated_ids_are_counted_exactly_when_they_fit(tmp_path: Path) -> None:
    found = gather(make_run(tmp_path, repeats=5)).duplicates
    assert (found.extra, found.ids, found.largest, found.exact) == (4, 1, 5, True)


def test_repeats_of_a_large_corpus_are_estimated_whatever_the_batches() -> None:
    ids = [hashlib.md5(str(i % 9000).encode()).digest() for i in range(18_000)]
    results = []
    for batch in (500, 7000):
        counter = DuplicateCounter(capacity=1000)
        for start in range(0, len(ids), batch):
            counter.add(pa.chunked_array([ids[start : start + batch]], pa.binary(16)))
        results.append(counter.result())
    assert results[0] == results[1]
    assert not results[0].exact
    np.testing.assert_allclose(results[0].extra, 9000, rtol=0.15)


def test_ids_that_are_counters_are_sampled_evenly_too() -> None:
    counter = DuplicateCounter(capacity=1000)
    ids = [(i % 8000).to_bytes(16, "little") for i in range(16_000)]
    counter.add(pa.chunked_array([ids], pa.binary(16)))
    np.testing.assert_allclose(counter.result().extra, 8000, rtol=0.15)


def test_a_run_without_assignments_has_clusters_but_no_outliers(run: Store) -> None:
    for shard in range(3):
        Path(run.path(f"assignments/increment=00000/{shard:06d}.parquet")).unlink()
    summary = gather(run)
    assert len(summary.leaves) == 6
    assert not summary.outliers
    assert not summary.confidence


def test_advice_names_the_setting_when_the_asked_number_is_outside_the_range(run: Store) -> None:
    curve = run.read_json("model/count/curve.json") | {"asked": 6, "low": 20, "high": 30}
    run.write_json("model/count/curve.json", curve | {"estimate": 25})
    summary = gather(run)
    assert any("`k=25`" in step for step in advice.next_steps(summary.progress, summary))


def test_advice_speaks_of_too_many_bad_images(run: Store) -> None:
    progress = gather(run).progress
    strict = {"config": {"corpus": {"max_bad_fraction": 0.01}}}
    strict_progress = dataclasses.replace(progress, record=strict)
    assert any("max_bad_fraction=0.01" in s for s in advice.next_steps(strict_progress))
    assert not any("max_bad_fraction" in s for s in advice.next_steps(progress))


def test_clusters_without_a_name_are_left_out_of_the_headline_and_advised_on(run: Store) -> None:
    for level, count in ((0, 3), (1, 5)):
        name = f"clusters/level={level}.parquet"
        rows = tables.read_table(run, name).to_pylist()
        rows = [r | {"captions": []} if i < count else r for i, r in enumerate(rows)]
        tables.write_table(run, name, "clusters", tables.table_of("clusters", rows))
    summary = gather(run)
    assert "the largest with a name: teal circle (" in advice.headline(summary)
    steps = advice.next_steps(summary.progress, summary)
    assert any("5 of 6 clusters have no name" in step for step in steps)


def test_a_group_is_called_by_as_many_words_as_cover_it(run: Store) -> None:
    root = gather(run).roots[0]
    called = {
        "animal": [("animal", 0.8), ("car", 0.2)],
        "circles / trees": [("circles", 0.56), ("trees", 0.44)],
        "car / bus / tram": [("car", 0.3), ("bus", 0.2), ("tram", 0.1), ("moon", 0.1)],
        f"cluster {root.cluster_id}": [],
    }
    for name, captions in called.items():
        assert dataclasses.replace(root, captions=tuple(captions)).name == name
    leaf = dataclasses.replace(root.children[0], captions=(("cat", 0.4), ("dog", 0.3)))
    assert leaf.name == "cat"
