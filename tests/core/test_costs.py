"""The cost model: by hand, and by what must hold however large the corpus is."""

from __future__ import annotations

import dataclasses

import pytest

from rrcluster.core.costs import (
    Corpus,
    Fit,
    Pool,
    Rates,
    Traffic,
    coordinator_bytes,
    count_traffic,
    hours,
    job,
    kmeans_traffic,
    kmeans_work,
    rate_traffic,
)

RATES = Rates(100.0, 400.0, 5e10, 5e9, 1e8, 500.0, 2000.0, 2e9)
POOL = Pool("pool", 10, 8, 1, 1e9)


def test_traffic_by_hand() -> None:
    fit = Fit(rows=1000.0, block_rows=300.0, d=6, leaves=5, e=2)
    assert kmeans_traffic(fit, 3) == Traffic(5, 320.0, 5 * 320.0)
    assert kmeans_traffic(fit, 99).calls == 7  # no more holders than blocks
    assert rate_traffic(fit) == Traffic(4, 4 * 200.0, 4 * 200.0)
    assert count_traffic(fit).taken == 1000 * (4 * 2 + 8 + 8)
    assert coordinator_bytes(fit) == 1000 * (2 * 8 + 16 + 8) + 2 * 5 * 4 * 8
    cells = dataclasses.replace(fit, cell_leaves=2)
    assert kmeans_traffic(cells, 3).taken == 3 * 8 * 8
    assert rate_traffic(cells).taken == 0


def test_two_levels_of_kmeans_cost_less_than_one() -> None:
    flat, split = (Fit(leaves=2500, cell_leaves=c) for c in (2500, 50))
    assert kmeans_work(flat).keys() == {"leaves"}
    assert sum(kmeans_work(split).values()) < kmeans_work(flat)["leaves"] / 20


def test_what_the_coordinator_takes_in_a_pass_of_kmeans_does_not_grow_with_workers() -> None:
    few, many = (kmeans_traffic(Fit(rows=1e7), workers) for workers in (8, 512))
    assert few.taken == many.taken
    assert many.calls == 1023


def test_embedding_is_bound_by_what_is_slowest() -> None:
    embed = job(Corpus(1e6), Fit(), POOL, RATES, 200.0)[1]
    assert embed.busy["encoders"] == pytest.approx(1e6 / 1000)
    assert embed.busy["decoding"] == pytest.approx(1e6 / (80 * 400))
    assert embed.bound == "encoders"
    slow = job(Corpus(1e6), Fit(), POOL, dataclasses.replace(RATES, decode=5.0), 200.0)[1]
    assert slow.bound == "decoding"


def test_the_fit_costs_the_same_for_any_corpus_above_its_rows() -> None:
    small, large = (job(Corpus(n), Fit(), POOL, RATES, 200.0) for n in (1e8, 1e10))
    for name in ("seed", "refine", "count", "caption"):
        (a,), (b,) = ([s for s in stages if s.name == name] for stages in (small, large))
        assert a == b


def test_more_machines_stop_helping_where_one_process_hands_out_the_work() -> None:
    stages = {}
    for machines in (10, 100, 10_000):
        pool = dataclasses.replace(POOL, machines=machines)
        stages[machines] = job(Corpus(1e9), Fit(), pool, RATES, 200.0)
    assert hours(stages[100]) < hours(stages[10]) / 5
    assert stages[10_000][1].bound == "handing out tasks"
    pool = dataclasses.replace(POOL, machines=10_000)
    many = job(Corpus(1e9), Fit(), pool, RATES, 200.0, feeders=625)[1]
    assert many.busy["handing out tasks"] < stages[10_000][1].seconds / 600
