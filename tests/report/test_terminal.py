"""The tables in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from report.synthetic_run import make_run
from rich.console import Console
from rich.table import Table

from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.report.progress import read_progress
from rrcluster.report.summary import gather
from rrcluster.report.terminal import INCREMENTS, ROWS, clusters_table, status_table


def _text(table: Table) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def test_clusters_are_listed_under_their_groups_from_folder_or_summary(run: Store) -> None:
    text = _text(clusters_table(run))
    assert text == _text(clusters_table(gather(run)))
    lines = [line.split("  ")[0] or line.strip() for line in text.splitlines()]
    assert any(line.startswith("circle-like things") for line in lines)
    assert "  crimson circle" in text


def test_captions_cannot_steer_the_terminal(tmp_path: Path) -> None:
    store = make_run(tmp_path, caption="[red]x[/red] \x1b[31m\u202eevil")
    text = _text(clusters_table(store))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_long_list_ends_with_how_many_more_there_are(tmp_path: Path) -> None:
    store = make_run(tmp_path, groups=2, leaves=100, rows=10)
    assert f"and {100 - ROWS} more" in _text(clusters_table(store))


def test_no_clusters_yet_is_said(tmp_path: Path) -> None:
    assert "no clusters yet" in _text(clusters_table(make_run(tmp_path, upto="embed")))


def test_status_shows_every_stage_the_counts_and_what_to_do(run: Store) -> None:
    text = _text(status_table(run))
    assert "412 images/s, 3% encoder wait" in " ".join(text.split())
    assert "3 / 3" in text
    assert "✓ 126 read = 120 embedded + 6 bad" in text
    assert "/assignments" in text.replace("\n", "")


def test_status_of_a_run_that_is_embedding_counts_the_files(tmp_path: Path) -> None:
    store = make_run(tmp_path, upto="embed")
    Path(store.path("samples/000002.parquet")).unlink()
    record = store.read_json("run.json")
    record["stages"]["embed"] = {"status": "running", "seconds": 0.0}
    del record["reconciliation"]
    store.write_json("run.json", record)
    text = _text(status_table(store))
    assert "2 / 3" in text
    assert "84 read = 80 embedded + 4 bad so far" in text
    assert "The run stands at stage embed" in text


def test_status_of_a_failed_run_points_to_the_log(run: Store) -> None:
    record = run.read_json("run.json")
    record["stages"]["refine"]["status"] = "failed"
    run.write_json("run.json", record)
    assert "Stage refine failed" in _text(status_table(run))


def test_status_of_a_folder_without_run_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run_dir="):
        status_table(Store(str(tmp_path)))


def test_a_single_level_is_listed_without_groups(tmp_path: Path) -> None:
    text = _text(clusters_table(make_run(tmp_path, single_level=True)))
    assert "crimson circle" in text
    assert "-like things" not in text


def test_status_of_a_running_stage_says_how_long_it_still_needs(tmp_path: Path) -> None:
    store = make_run(tmp_path, upto="embed")
    Path(store.path("samples/000002.parquet")).unlink()
    record = store.read_json("run.json")
    record["stages"]["embed"] = {
        "status": "running", "seconds": 100.0, "since": "2024-05-01T10:00:00+00:00"
    }  # fmt: skip
    del record["reconciliation"]
    store.write_json("run.json", record)
    stage = read_progress(store, datetime(2024, 5, 1, 10, 3, 20, tzinfo=UTC)).stage("embed")
    assert (stage.done, stage.total, stage.seconds, stage.left) == (2, 3, 300.0, 150.0)
    assert "parts/min" in _text(status_table(store))


def test_stages_of_other_jobs_are_shown_too(run: Store) -> None:
    record = run.read_json("run.json")
    record["stages"]["sample"] = {"status": "done", "seconds": 2.0}
    run.write_json("run.json", record)
    assert "sample" in _text(status_table(run))


def _with_increment(store: Store, number: int, stages: dict, **facts: object) -> None:
    shard = {"shard": 2 + number, "uri": f"later-{number}", "index_uri": "", "num_bytes": 1}
    name = f"manifest/increment={number:05d}.parquet"
    tables.write_table(store, name, "manifest", tables.table_of("manifest", [shard]))
    record = store.read_json("run.json")
    record.setdefault("increments", {})[f"{number:05d}"] = {"stages": stages} | facts
    store.write_json("run.json", record)


def _commit(store: Store, number: int) -> None:
    content = {"increment": number, "assignments": [], "clusters": "clusters"}
    content |= {"replaced": [], "changes": []}
    store.write_json(f"commits/increment={number:05d}.json", content)


def test_status_shows_increments_and_where_the_last_one_stands(run: Store) -> None:
    done = {"embed": {"status": "done"}, "write": {"status": "done"}}
    _with_increment(run, 1, done, shards=1, rows=40, decision="the clusters still fit")
    _commit(run, 1)
    _with_increment(run, 2, {"embed": {"status": "running"}})
    text = " ".join(_text(status_table(run)).split())
    assert "1 done 1 40 the clusters still fit" in text
    assert "2 running 0 / 1 at stage embed" in text
    assert "Increment 2 stands at stage embed; readers see the run without it" in text
    assert "rrcluster resolve" in text
    _with_increment(run, 2, done, fit={"stages": {"seed": {"status": "failed"}}})
    text = " ".join(_text(status_table(run)).split())
    assert "2 failed 0 / 1 at stage seed" in text
    assert "Increment 2 failed at stage seed" in text


def test_status_of_a_run_of_many_nights_shows_the_last(run: Store) -> None:
    for number in range(1, INCREMENTS + 4):
        _with_increment(run, number, {}, shards=1, rows=1, decision=f"night {number} fits")
    _commit(run, INCREMENTS + 3)
    text = _text(status_table(run))
    assert "night 3 fits" not in text
    assert "night 4 fits" in text
    assert "and 3 before" in text
