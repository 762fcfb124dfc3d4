"""Scores against labels: by hand, against scikit-learn, by property."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report.synthetic_run import make_run
from rich.console import Console
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)

from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.report.confusion import confusion_chart, confusion_page
from rrcluster.report.metrics import (
    ami,
    ari,
    clustering_accuracy,
    contingency,
    evaluate_run,
    evaluation_table,
    nmi,
    scores,
)

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=60)


def _labels(store: Store, column: str = "key", level: int = 1) -> pa.Table:
    parts = [
        tables.read_table(store, f"assignments/increment=00000/{s:06d}.parquet") for s in range(3)
    ]
    table = pa.concat_tables(parts)
    return pa.table({column: table[column], "label": table[f"level_{level}"]})


def test_accuracy_by_hand() -> None:
    assert clustering_accuracy([0, 0, 1, 1], [5, 5, 3, 5]) == 0.75
    assert clustering_accuracy(["a", "a", "b"], [1, 2, 3]) == pytest.approx(2 / 3)
    assert clustering_accuracy([0, 1, 2, 3], [0, 0, 0, 0]) == 0.25


@settings(deadline=None)
@given(pairs)
def test_scores_agree_with_scikit_learn(found: list[tuple[int, int]]) -> None:
    a, b = map(list, zip(*found, strict=True))
    t = contingency(a, b)
    assert nmi(t) == pytest.approx(
        1.0 if len({*a}) == len({*b}) == 1 else normalized_mutual_info_score(a, b), abs=1e-9
    )
    assert ari(t) == pytest.approx(adjusted_rand_score(a, b), abs=1e-9)
    assert ami(t) == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-6)


@given(pairs, st.permutations(range(7)))
@settings(deadline=None)
def test_renaming_clusters_changes_no_score(found: list[tuple[int, int]], names: list[int]) -> None:
    a, b = map(list, zip(*found, strict=True))
    t, renamed = contingency(a, b), contingency(a, [names[x] for x in b])
    assert clustering_accuracy(a, b) == clustering_accuracy(a, [names[x] for x in b])
    for metric in (nmi, ari, ami):
        assert metric(t) == pytest.approx(metric(renamed), abs=1e-9)


def test_intervals_hold_the_value_shrink_with_more_samples_and_follow_the_seed() -> None:
    rng = np.random.default_rng(1)

    def table(n: int) -> np.ndarray:
        a = rng.integers(0, 5, n)
        return contingency(a, np.where(rng.random(n) < 0.8, a, rng.integers(0, 5, n)))

    few, many = table(100), table(10_000)
    wide, narrow = scores(few, 0, 100), scores(many, 0, 100)
    for name, found in wide.items():
        assert found["low"] <= found["value"] <= found["high"]
        assert found["high"] - found["low"] > narrow[name]["high"] - narrow[name]["low"]
    assert scores(few, 0, 100) == wide != scores(few, 1, 100)


@pytest.mark.parametrize("hive", [False, True])
def test_a_run_scores_one_at_the_level_its_labels_come_from(tmp_path: Path, hive: bool) -> None:
    labels = _labels(make_run(tmp_path / "flat"))
    found = evaluate_run(make_run(tmp_path / "run", hive=hive), labels, 0, 20)
    assert found["matched"] == found["samples"] == 120
    assert found["matched_by"] == "key"
    fine = found["levels"][1]
    assert [fine[m]["value"] for m in ("accuracy", "nmi", "ari", "ami")] == pytest.approx([1] * 4)
    assert found["levels"][0]["accuracy"]["value"] < 1


def test_ids_join_as_bytes_and_as_hexadecimal(run: Store) -> None:
    raw = _labels(run, "sample_id")
    text = pa.table(
        {"sample_id": [i.hex() for i in raw["sample_id"].to_pylist()], "label": raw["label"]}
    )
    assert evaluate_run(run, raw, 0, 5) == evaluate_run(run, text, 0, 5)


def test_only_samples_with_a_label_count(run: Store) -> None:
    labels = _labels(run).slice(0, 50)
    found = evaluate_run(run, labels, 0, 5)
    assert (found["matched"], found["samples"]) == (50, 120)
    console = Console(width=120, record=True, file=StringIO())
    console.print(evaluation_table(found))
    assert "50 of 120 samples have one of" in console.export_text()


def test_labels_that_cannot_be_used_are_refused_with_the_setting(run: Store) -> None:
    labels = _labels(run)
    for wrong, words in (
        (labels.rename_columns(["name", "label"]), "needs a column label, and sample_id or key"),
        (labels.rename_columns(["key", "class"]), "needs a column label"),
        (pa.table({"key": ["no such key"], "label": [1]}), "none of 1 labels matches"),
        (pa.table({"key": ["a", "a"], "label": [1, 2]}), "has two labels"),
        (pa.table({"key": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), "no row"),
        (pa.table({"sample_id": ["xyz"], "label": [1]}), "32 hexadecimal digits"),
    ):
        with pytest.raises(UserError, match=words) as error:
            evaluate_run(run, wrong, 0, 5)
        assert error.value.setting == "evaluate.labels"


def test_a_run_without_assignments_is_refused(tmp_path: Path) -> None:
    labels = pa.table({"key": ["a"], "label": [1]})
    with pytest.raises(UserError, match="run_dir"):
        evaluate_run(make_run(tmp_path, upto="embed"), labels, 0, 5)


def test_the_worst_mixed_clusters_come_first_with_their_labels_and_names(run: Store) -> None:
    labels = _labels(run, level=1)
    mixed = np.asarray(labels["label"]).copy()
    mixed[mixed == 3] = np.where(np.arange((mixed == 3).sum()) % 2, 70, 71)  # half and half
    table = pa.table({"key": labels["key"], "label": mixed})
    worst = evaluate_run(run, table, 0, 10)["worst_mixed"]
    assert [w["cluster_id"] for w in worst] == [3]
    assert worst[0]["caption"] == "crimson circle"
    assert worst[0]["of_other_labels"] == worst[0]["samples"] // 2
    assert set(worst[0]["labels"]) == {"70", "71"}
    chart = confusion_chart(worst)
    shares = chart.figure["data"][0]["z"][0]
    assert sum(shares) == pytest.approx(1)
    page = confusion_page(run, worst)
    assert 'data-figure="confusion"' in page
    assert "crimson circle #3" in page
    assert "one label only" in confusion_page(run, [])
