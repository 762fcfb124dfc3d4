"""A concept that comes slowly, over increments, gets a cluster, and all its rows go there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from growing import everything, grow, rows_of
from job_fixtures import record

from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.core.regroup import Regrouping
from rrcluster.io import tables
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.stages import between_fits
from rrcluster.stages.recluster import recluster
from rrcluster.stages.report import report
from rrcluster.stages.run import existing_run


@pytest.mark.parametrize("draw", [13, 18, 22])  # the two rows of the fit: a leaf, or in another's
def test_two_rows_in_the_fit_do_not_hide_their_concept(tmp_path, draw) -> None:
    (tmp_path / "corpus").mkdir()
    old = np.concatenate([rows_of(c, 120, 1000 * draw + c) for c in range(4)])
    few = rows_of(7, 2, 1000 * draw + 7)
    grow(tmp_path, "shard", np.concatenate([old, few]), more=(f"seed={draw}",))
    opened = []
    for night in range(4):
        seed = 1000 * draw + night
        mixed = np.concatenate([rows_of(7, 9, seed + 50), rows_of(night, 40, seed + 90)])
        facts = grow(tmp_path, "shard", mixed)
        opened += [o["cluster_id"] for o in facts["novelty"]["opened"]]
    (new,) = opened
    ids = [r["level_1"] for r in everything(tmp_path) if r["row"] < 9 and r["shard"] > 0]
    assert ids.count(new) >= 0.9 * len(ids)


@pytest.mark.parametrize("layout", ["shard", "cluster"])
def test_a_slow_concept_opens_a_cluster_and_early_rows_of_it_move_there(tmp_path, layout) -> None:
    (tmp_path / "corpus").mkdir()
    old = np.concatenate([rows_of(c, 120, c) for c in range(4)])
    few = rows_of(7, 2, 7)  # of the concept to come, too few to be seen
    grow(tmp_path, layout, np.concatenate([old, few]))
    before = everything(tmp_path)
    opened = []
    for night in range(4):
        mixed = np.concatenate([rows_of(7, 9, 50 + night), rows_of(night, 40, 90 + night)])
        facts = grow(tmp_path, layout, mixed)
        opened += [o["cluster_id"] for o in facts["novelty"]["opened"]]
        if night == 0:
            assert not opened  # nine rows are not enough, and one look is not
    (new,) = opened
    told = record(tmp_path / "run")["increments"].values()
    assert "a new concept opened cluster" in str([part["words"] for part in told])
    rows = everything(tmp_path)
    concept = [r for r in rows if (r["row"] >= 480 if r["shard"] == 0 else r["row"] < 9)]
    inside = [r for r in rows if r["level_1"] == new]
    assert sum(r["level_1"] == new for r in concept) >= 0.8 * len(concept)
    assert all(r in concept for r in inside)
    assert any(r["shard"] == 0 for r in inside)
    unchanged = [r for r in rows if r["shard"] == 0 and r["level_1"] != new]
    assert all(r in before for r in unchanged)
    # The same rows once more, in a later shard: the same answers to the bit.
    again = np.load(tmp_path / "corpus/0.npy")
    grow(tmp_path, layout, again)
    rows = everything(tmp_path)
    last = max(r["shard"] for r in rows)
    first, copied = ([r | {"shard": 0} for r in rows if r["shard"] == s] for s in (0, last))
    assert first == copied
    fine = pq.read_table(tmp_path / "run/clusters/level=1.parquet", partitioning=None).to_pylist()
    sizes = {c["cluster_id"]: c["size"] for c in fine}
    assert sizes == {i: sum(r["level_1"] == i for r in rows) for i in sizes}
    (opened_row,) = [c for c in fine if c["cluster_id"] == new]
    assert opened_row["since_increment"] > 0
    assert opened_row["exemplars"]
    assert opened_row["captions"][0]["text"] == "concept 7"
    parent = {c["cluster_id"]: c["parent_id"] for c in fine}
    assert all(r["level_0"] == parent[r["level_1"]] for r in rows)
    report(*existing_run(load([f"run_dir={tmp_path / 'run'}"])), silent)
    # A fit on everything ends the waiting, and starts anew.
    settings = [f"run_dir={tmp_path / 'run'}", "recluster.refit=always"]
    facts = recluster(load(settings), lambda: InProcessCompute(), silent).facts
    assert facts["refit"]["churn"] < 0.5
    assert len(everything(tmp_path)) == len(rows)


def resolved(folder: Path) -> list[int]:
    """Each row's finest cluster now, which must be what the cluster table counts."""
    now = current(Store(str(folder / "run")))
    finest = f"level_{now.levels - 1}"
    ids = pa.concat_tables(now.batches([finest]))[finest].to_pylist()
    table = now.clusters(now.levels - 1, ["cluster_id", "size"]).to_pydict()
    sizes = dict(zip(table["cluster_id"], table["size"], strict=True))
    assert sizes == {i: ids.count(i) for i in sizes}
    return ids


def test_ids_and_rows_follow_a_merge_and_a_split(tmp_path, monkeypatch) -> None:
    """That new rows ask for them is core's business (tests/core/test_regroup.py)."""
    (tmp_path / "corpus").mkdir()
    clouds = [rows_of(2 * c, 60, c, side) for c in range(4) for side in (0.4, -0.4)]
    grow(tmp_path, "shard", np.concatenate(clouds), k="5")
    before = np.array(resolved(tmp_path))
    chosen: list[int] = []

    def prescribed(fit, every, cluster, parent, margin) -> Regrouping:
        leaves = [(cluster == c).nonzero()[:, 0].tolist() for c in range(5)]
        split = next(c for c in range(5) if len(leaves[c]) > 1 and every.mass[leaves[c][0]] > 0)
        away, into = [c for c in range(5) if c != split][:2]
        chosen.extend([split, away, into])
        return Regrouping(((away, into, 7.0),), ((split, (leaves[split][0],), 5.0),))

    monkeypatch.setattr(between_fits, "regrouped", prescribed)
    facts = grow(tmp_path, "shard", np.concatenate(clouds[::2]))
    monkeypatch.undo()
    split, away, into = chosen
    (parted,) = facts["novelty"]["split"]
    (merged,) = facts["novelty"]["merged"]
    assert (parted["old_id"], merged["old_id"], merged["new_id"]) == (split, away, into)
    ids = np.array(resolved(tmp_path))
    first = ids[: len(before)]
    assert set(first[before == away]) == {into}
    assert set(first[before == split]) == {split, parted["new_id"]}
    rest = ~np.isin(before, (away, split))
    assert (first[rest] == before[rest]).all()
    table = tables.read_table(Store(str(tmp_path / "run")), "cluster_map/increment=00001.parquet")
    told = {(r["old_id"], r["new_id"], r["kind"]) for r in table.to_pylist()}
    assert {(away, into, "merged"), (split, parted["new_id"], "split")} <= told
    assert not any(old == away and kind == "kept" for old, _, kind in told)
    # The same pictures once more: the same clusters, with the same confidence.
    grow(tmp_path, "shard", np.concatenate(clouds))
    ids = np.array(resolved(tmp_path))
    assert (ids[: len(before)] == ids[-len(before) :]).all()
    now = current(Store(str(tmp_path / "run")))
    found = pa.concat_tables(now.batches(["confidence"]))["confidence"].to_numpy()
    assert (found[: len(before)] == found[-len(before) :]).all()
