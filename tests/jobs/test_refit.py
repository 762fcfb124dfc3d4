"""A refit starts from the clusters there are, and is adopted when it is better."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from growing import everything, grow, rows_of

from rrcluster.compute import Progress, silent
from rrcluster.config import load
from rrcluster.core.verdict import Verdict
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.stages import refit
from rrcluster.stages.count import HOMES, read_forest
from rrcluster.stages.recluster import recluster
from rrcluster.stages.report import report
from rrcluster.stages.run import existing_run
from rrcluster.stages.tensors import read_tensors, write_tensors
from rrcluster.stages.write import cluster_ids


def again(folder: Path, *settings: str) -> dict:
    words = [f"run_dir={folder / 'run'}", "compute=in_process", *settings]
    return recluster(load(words), lambda: InProcessCompute(), silent).facts


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    grow(tmp_path, "shard", np.concatenate([rows_of(i, 60, i) for i in range(4)]))
    return tmp_path


def add(folder: Path, number: int, concept: int) -> None:
    np.save(folder / f"corpus/{number}.npy", rows_of(concept, 40, 50 + number))


class Spilling(InProcessCompute):
    """A compute that something was spilled on, and that is watched."""

    def spilled_bytes(self) -> int:
        return 7

    def observed(self, progress: Progress) -> Progress:
        self.watched = True
        return progress


def test_an_increment_is_watched_and_says_what_was_spilled(run) -> None:
    compute = Spilling()
    add(run, 1, 0)
    words = [f"run_dir={run / 'run'}", "compute=in_process", "recluster.refit=never"]
    recluster(load(words), lambda: compute, silent)
    told = json.loads((run / "run/run.json").read_text())["increments"]["00001"]
    assert told["spilled_bytes"] == 7
    assert compute.watched


def test_old_clusters_keep_every_row_and_its_id_when_a_refit_brings_a_new_one(run) -> None:
    before = {(r["shard"], r["row"]): r["level_1"] for r in everything(run)}
    add(run, 1, 8)
    facts = again(run, "recluster.refit=always")
    after = {(r["shard"], r["row"]): r["level_1"] for r in everything(run)}
    assert facts["refit"]["adopted"]
    kept = [before[i] == after[i] for i in before]
    assert np.mean(kept) > 0.7  # k stays 4 for five concepts: one cluster at most gives way
    ended = set(before.values()) - set(after.values())
    assert all(before[i] in ended for i in before if before[i] != after[i])


def test_a_refit_has_room_for_what_was_opened_so_that_old_rows_keep_their_ids(run) -> None:
    add(run, 1, 8)
    assert len(again(run, "recluster.refit=never")["novelty"]["opened"]) == 1
    before = [r["level_1"] for r in everything(run)]
    facts = again(run, "recluster.refit=always")
    assert facts["refit"]["k"] == [2, 5]
    assert [r["level_1"] for r in everything(run)] == before


def test_a_row_that_comes_after_refits_is_where_its_twin_has_stayed(run) -> None:
    """Between two concepts rows could go either way; a stay without end shows who is held."""
    between = rows_of(0, 60, 9, beside=1.0)
    np.save(run / "corpus/1.npy", between)
    again(run, "recluster.refit=never", "recluster.novelty=false")
    first = [r["level_1"] for r in everything(run)]
    for number in (2, 3):
        add(run, number, 8)
        stay = ("recluster.refit_stay=1e9", "recluster.refit_stay_fresh=1e9")
        facts = again(run, "recluster.refit=always", *stay)
        alive = {r["level_1"] for r in everything(run)}
        now = [r["level_1"] for r in everything(run)[: len(first)]]
        assert all(a == b or a not in alive for a, b in zip(first, now, strict=True))
        assert facts["refit"]["churn"] == pytest.approx(np.mean(np.array(first) != now), abs=0.2)
        first = [r["level_1"] for r in everything(run)]
    np.save(run / "corpus/4.npy", between)
    again(run, "recluster.refit=never")
    found = everything(run)
    twins = [[r["level_1"] for r in found if r["shard"] == shard] for shard in (1, 4)]
    assert twins[0] == twins[1]


def nats_by_id(folder: Path) -> dict[int, float]:
    """What each finest cluster must save for a row that it takes from another, by its id."""
    store = current(Store(str(folder / "run"))).store
    forest = read_forest(store)
    ids = cluster_ids(store, forest)[-1].tolist()
    return dict(zip(ids, forest.homes.nats.tolist(), strict=True))


def test_rows_leave_easily_only_for_clusters_of_what_came_since_the_last_fit(run) -> None:
    before = {r["level_1"] for r in everything(run)}
    for concept in (8, 9):
        add(run, concept, concept)
        k = len(before) + 1
        again(run, "recluster.refit=always", f"recluster.refit_k=[2,{k}]")
        found = nats_by_id(run)
        rows = [r["level_1"] for r in everything(run) if r["shard"] == concept - 7]
        new = max(set(rows), key=rows.count)
        assert new not in before
        assert found == {i: 6.0 if i == new else 24.0 for i in {*before, new}}
        before.add(new)
    again(run, "recluster.refit=always", f"recluster.refit_k=[2,{len(before)}]")
    assert set(nats_by_id(run).values()) == {24.0}  # nothing came since
    again(run, "recluster.refit=always", "recluster.refit_stay=2")
    assert set(nats_by_id(run).values()) == {2.0}


def test_a_refitted_run_of_an_earlier_version_goes_on(run) -> None:
    """One number of nats for all clusters, and no paths or rates of its own."""
    add(run, 1, 8)
    again(run, "recluster.refit=always", "recluster.refit_k=[2,5]", "recluster.refit_stay=6")
    store = current(Store(str(run / "run"))).store
    tensors = read_tensors(store, HOMES)
    kept = {n: t for n, t in tensors.items() if n != "paths" and not n.startswith("rates.")}
    write_tensors(store, HOMES, kept | {"0.nats": torch.tensor([6.0])})
    before = [r["level_1"] for r in everything(run)]
    add(run, 2, 8)
    again(run, "recluster.refit=never")
    after = [r["level_1"] for r in everything(run)]
    assert after[: len(before)] == before
    assert set(after[len(before) :]) == set(before[240:])  # where the concept's rows are


def test_a_refit_leaves_no_cluster_whose_rows_stay_where_they_were(run) -> None:
    """Told to make many of four concepts, it cuts them up; rows that are held have not moved."""
    first = [r["level_1"] for r in everything(run)]
    add(run, 1, 0)
    facts = again(run, "recluster.refit=always", "recluster.refit_k=[2,9]")
    assert facts["refit"]["joined"] == 5
    assert any("5 clusters of the fit joined others" in words for words in facts["words"])
    assert [r["level_1"] for r in everything(run)][: len(first)] == first
    now = current(Store(str(run / "run")))
    finest = now.clusters(1, ["cluster_id", "size", "coding_rate"]).to_pylist()
    assert {r["cluster_id"] for r in finest} == set(first)
    assert all(r["size"] and r["coding_rate"] > 0 for r in finest)
    parents = now.clusters(0, ["cluster_id", "size"]).to_pylist()
    assert sum(r["size"] for r in parents) == len(first) + 40
    add(run, 2, 8)  # and the model goes on from there
    assert len(again(run, "recluster.refit=never")["novelty"]["opened"]) == 1
    again(run, "recluster.refit=always", "recluster.refit_k=[2,5]")
    assert [r["level_1"] for r in everything(run)][: len(first)] == first


def test_a_refit_that_holds_nothing_joins_nothing(run) -> None:
    add(run, 1, 0)
    stay = "recluster.refit_stay=0"
    facts = again(run, "recluster.refit=always", "recluster.refit_k=[2,9]", stay)
    assert facts["refit"]["joined"] == 0
    assert len({r["level_1"] for r in everything(run)}) == 9


def test_a_refit_cuts_rows_into_the_cells_that_they_were_in_unless_it_starts_afresh(
    tmp_path,
) -> None:
    (tmp_path / "corpus").mkdir()
    first = np.concatenate([rows_of(i, 60, i) for i in range(4)])
    grow(tmp_path, "shard", first, more=("seeding.cell_leaves=4",))
    cells = [read_forest(current(Store(str(tmp_path / "run"))).store).cells]
    for number, start in ((1, "model"), (2, "scratch")):
        add(tmp_path, number, 8)
        again(tmp_path, "recluster.refit=always", f"recluster.refit_start={start}")
        cells.append(read_forest(current(Store(str(tmp_path / "run"))).store).cells)
    assert len(cells[0]) == 3
    assert torch.equal(cells[0], cells[1])
    assert cells[2].shape != cells[1].shape or not torch.equal(cells[1], cells[2])


def test_a_refit_makes_as_many_clusters_as_it_is_told_to(run) -> None:
    add(run, 1, 8)
    stay = "recluster.refit_stay=0"  # else a cluster that gets hardly a row is none
    facts = again(run, "recluster.refit=always", "recluster.refit_k=[3,6]", stay)
    assert facts["refit"]["k"] == [3, 6]
    now = current(Store(str(run / "run")))
    assert [now.clusters(level).num_rows for level in range(now.levels)] == [3, 6]


def test_a_fit_that_is_not_better_is_told_and_left_unless_it_is_asked_for(run, monkeypatch) -> None:
    worse = Verdict((0.9, 0.8), 100, (20.0, 19.0))
    judged = refit.judged
    monkeypatch.setattr(refit, "judged", lambda *of: (worse, *judged(*of)[1:]))
    add(run, 1, 0)
    facts = again(run, "recluster.max_growth=1.05")
    assert facts["refit"] == {"adopted": False, "k": [2, 4], **worse.facts}
    assert "not better: the model stays" in facts["decision"]
    assert any("0.900 → 0.800" in words for words in facts["words"])
    now = current(Store(str(run / "run")))
    assert (now.content["model"], now.content["fitted_rows"]) == (None, 280)
    assert len(everything(run)) == 280
    report(*existing_run(load([f"run_dir={run / 'run'}"])), silent)
    assert "the model stays" in (run / "run/report/index.html").read_text()
    add(run, 2, 1)
    facts = again(run)  # shares moved, but the run has hardly grown since the fit that was refused
    assert facts["refit"] is None
    assert facts["reasons"]
    assert "a fit of 280 rows was not better" in facts["decision"]
    add(run, 3, 2)
    facts = again(run)
    assert facts["refit"] == {"adopted": False, "k": [2, 4], **worse.facts}
    add(run, 4, 2)
    facts = again(run, "recluster.refit=always")
    assert facts["refit"]["adopted"]
    assert any("adopted as recluster.refit=always" in words for words in facts["words"])
    assert current(Store(str(run / "run"))).content["model"]
