from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch.utils._python_dispatch import TorchDispatchMode

from rrcluster.core import gate as gates
from rrcluster.core.cells import nearest
from rrcluster.core.codes import CentroidCodes, fit_codes
from rrcluster.core.features import Head, fit_projection
from rrcluster.core.head import Training, batch_membership, train_head
from rrcluster.core.merge import merge_tree
from rrcluster.core.model import CellModel, Moments, features_of, sum_by_label
from rrcluster.core.probe import KERNELS, Probe, nearest_others
from rrcluster.core.rate import rate, rate_reduction
from rrcluster.core.refine import Refined, RefineSpec, refine
from rrcluster.core.shards import MemoryShards

SPEC = RefineSpec(
    width=8, eps2=0.05, rank=3, passes=5, whitenings=1, rounds=1, steps=8, hidden=16, fit_rows=500,
    probe_rows=600,
)  # fmt: skip

SPEC_PLAIN = dataclasses.replace(SPEC, agreements=0, rounds=0)  # nothing but Lloyd and whitening
SPEC_RATES = dataclasses.replace(SPEC, agreements=0)  # what rate reduction does by itself


def planes(n: int, k: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows near k planes through the origin of d-space, with a shared nuisance direction."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(k, 2, d, generator=g)
    y = torch.randint(k, (n,), generator=g)
    weights = torch.stack([torch.full((n,), 2.0), torch.randn(n, generator=g)], 1)
    x = torch.einsum("nr,nrd->nd", weights, basis[y])
    x += 2.0 * torch.randn(n, 1, generator=g) * torch.randn(d, generator=g)
    return torch.nn.functional.normalize(x + 0.3 * torch.randn(n, d, generator=g), dim=1).half(), y


def test_refined_clusters_follow_the_truth_better_than_the_seed() -> None:
    x, y = planes(2000, 5, 20)
    shards = MemoryShards(list(x.split(500)))
    centroids = torch.stack([x[y == j][:3].float().mean(0) for j in range(5)])
    model, events = refine(shards, centroids, SPEC_RATES, seed=0)
    before = adjusted_rand_score(y, nearest(x, centroids)[0])
    assert adjusted_rand_score(y, model.cheapest(x)[0]) > before + 0.1
    assert events[0].accepted


def test_result_is_the_same_bits_on_one_worker_and_on_two() -> None:
    x, _ = planes(1500, 4, 16)
    found = []
    for workers in (1, 2):
        shards = MemoryShards(list(x.split(400)), workers)
        found.append(refine(shards, x[:6].float(), SPEC, seed=3, path=(1,)))
    (one, history), (two, other) = found
    assert history == other
    for name, value in one.tensors().items():
        assert torch.equal(value, two.tensors()[name]), name


def test_everything_refused_returns_the_partition_of_the_seed(monkeypatch) -> None:
    x, _ = planes(800, 4, 16)
    calls = iter(range(100))
    monkeypatch.setattr(gates.Probe, "consistency", lambda *_: 1.0 - next(calls))
    model, events = refine(MemoryShards([x]), x[:7].float(), SPEC, seed=0)
    assert len(events) > 1
    assert not any(e.accepted for e in events)
    assert isinstance(model.codes, CentroidCodes)
    assert torch.equal(model.cheapest(x)[0], nearest(x, x[:7].float())[0])


def test_refused_step_gives_back_the_very_model_it_started_from(monkeypatch) -> None:
    x, _ = planes(600, 4, 16)
    shards = MemoryShards([x])
    seed = CellModel(fit_projection(shards, 8), CentroidCodes.of(x[:4]))
    other = CellModel(seed.features, CentroidCodes.of(x[50:51]))
    gate = gates.Gate(Probe.of(shards, 300, 5), 0.5)
    kept = gate.judge(1, "head", seed, other)
    assert kept is seed
    assert not gate.events[0].accepted
    assert gate.judge(2, "head", other, seed) is seed


def test_no_step_leaves_fewer_clusters_than_asked() -> None:
    x, _ = planes(1500, 3, 16)
    spec = dataclasses.replace(SPEC, eps2=0.5)  # a coarse code, in which many clusters empty
    free, _ = refine(MemoryShards([x]), x[:30].float(), spec, seed=0)
    held, events = refine(MemoryShards([x]), x[:30].float(), spec, seed=0, least=29)
    assert free.num_leaves < 29 <= held.num_leaves
    assert not all(e.accepted for e in events)


@pytest.mark.parametrize(("eps2", "least"), [(0.5, 12), (0.2, 24), (0.5, 28)])
def test_as_many_clusters_as_asked_have_rows(eps2: float, least: int) -> None:
    x, _ = planes(300, 3, 16)
    spec = dataclasses.replace(SPEC, eps2=eps2)
    model, _ = refine(MemoryShards([x]), x[:30].float(), spec, seed=0, least=least)
    assert len(model.cheapest(x)[0].unique()) >= least


def test_consistency_never_drops_over_accepted_steps() -> None:
    x, _ = planes(1500, 6, 16)
    _, events = refine(MemoryShards([x]), x[:9].float(), SPEC, seed=0)
    for event in events:
        assert event.accepted == (event.after >= event.before - 1 / SPEC.probe_rows)


def test_events_are_told_as_they_happen_and_become_json() -> None:
    x, _ = planes(500, 4, 16)
    told: list[gates.GateEvent] = []
    _, events = refine(MemoryShards([x]), x[:5].float(), SPEC, 0, (), told.append)
    assert told == events
    assert [e.step for e in events[:2]] == ["agree", "lloyd"]
    back = json.loads(json.dumps([dataclasses.asdict(e) for e in events]))
    assert 1.0 <= back[0]["extra"]["clusters"] <= 5.0


def test_length_never_rises_in_a_lloyd_pass() -> None:
    x, _ = planes(1200, 5, 16)
    shards = MemoryShards(list(x.split(500)))
    features = fit_projection(shards, 8)
    model = CellModel(features, CentroidCodes.of(x[:10]))
    lengths = []
    for _ in range(8):
        sums = shards.reduce(Moments(model, features))
        codes = fit_codes(sums["mass"], sums["moments"], 0.5, 3)
        model = CellModel(features, codes)
        lengths.append(codes.length)
    assert all(b <= a + 1e-5 for a, b in itertools.pairwise(lengths))
    assert lengths[-1] < lengths[0]


def test_permuting_the_centroids_permutes_the_clusters() -> None:
    x, _ = planes(900, 4, 16)
    shards = MemoryShards([x])
    order = torch.tensor([2, 0, 3, 1])
    plain, _ = refine(shards, x[:4].float(), SPEC_PLAIN, 0)
    moved, _ = refine(shards, x[:4][order].float(), SPEC_PLAIN, 0)
    assert (order[moved.cheapest(x)[0]] == plain.cheapest(x)[0]).double().mean() > 0.99


@pytest.mark.parametrize("case", ["half identical", "one row per block", "more leaves than rows"])
def test_ugly_rows_are_refined_without_complaint(case: str) -> None:
    x, _ = planes(60, 3, 16)
    centroids = x[:5].float()
    blocks = [x]
    if case == "half identical":
        blocks = [torch.cat([x[:1].repeat(60, 1), x])]
    if case == "one row per block":
        blocks = list(x[:20].split(1))
    if case == "more leaves than rows":
        blocks, centroids = [x[:3]], x[:9].float()
    model, events = refine(MemoryShards(blocks), centroids, SPEC, seed=0)
    for value in model.tensors().values():
        assert not value.isnan().any()
    leaf, cost = model.cheapest(torch.cat(blocks))
    assert torch.isfinite(cost).all()
    assert int(leaf.max()) < model.num_leaves
    assert events


def test_training_raises_the_rate_reduction_of_its_clusters() -> None:
    x, y = planes(1000, 5, 20)
    u = features_of(fit_projection(MemoryShards([x]), 8), x)
    spec = dataclasses.replace(SPEC, steps=60, learning_rate=3e-3)
    head = train_head(u, y, None, spec, seed=0)
    assert head is not None
    before = rate_reduction(*sum_by_label(u, y, 5), SPEC.eps2)
    assert rate_reduction(*sum_by_label(head.residual(u), y, 5), SPEC.eps2) > before


def test_training_depends_on_its_seed_and_leaves_global_randomness_alone() -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(300, 8, generator=g))
    y = torch.arange(300) % 6
    state = torch.get_rng_state()
    heads = [train_head(u, y, None, SPEC, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0].outer, heads[1].outer)
    assert not torch.equal(heads[0].outer, heads[2].outer)


def test_training_that_goes_on_from_any_checkpoint_ends_in_the_same_bits() -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(300, 8, generator=g))
    spec = dataclasses.replace(SPEC, steps=8, checkpoint_steps=3, learning_rate=1e-2)
    kept: list[Training] = []
    whole = train_head(u, torch.arange(300) % 6, None, spec, 0, on_steps=kept.append)
    assert [t.step for t in kept] == [3, 6]
    for training in kept:
        again = train_head(u, torch.arange(300) % 6, None, spec, 0, resume=training)
        assert again is not None
        for name, value in vars(whole).items():
            assert torch.equal(value, getattr(again, name)), name


def test_clusters_of_one_row_leave_the_head_as_it_is() -> None:
    u = torch.eye(4)
    start = Head.new(4, 8, torch.Generator().manual_seed(0))
    assert train_head(u, torch.arange(4), start, SPEC, 0) is start


def test_consistency_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.99, 0.14], [0.0, 1.0], [0.14, 0.99]])
    probe = Probe.of_rows(x, 1)
    assert probe.neighbours[:, 0].tolist() == [1, 0, 3, 2]
    assert probe.consistency(torch.tensor([0, 0, 1, 1])) == 1.0
    assert probe.consistency(torch.tensor([0, 1, 0, 1])) == pytest.approx(-1.0)
    assert probe.consistency(torch.tensor([0, 0, 0, 0])) == 0.0, "one cluster earns nothing"


def test_a_row_is_not_its_own_neighbour_even_among_duplicates() -> None:
    x = torch.eye(3)[[0, 0, 0, 0, 0, 1, 2]]
    found = nearest_others(x, 2)
    assert found.shape == (7, 2)
    assert not (found == torch.arange(7)[:, None]).any()


@pytest.mark.parametrize("asked", ["", "Haswell"])
def test_faiss_takes_kernels_made_for_this_cpu_and_leaves_the_environment_alone(asked: str) -> None:
    known = KERNELS.get(torch.backends.cpu.get_cpu_capability())
    if known is None:
        pytest.skip("torch names no instructions of this CPU that OpenBLAS has kernels for")
    script = (
        "import os, torch; from rrcluster.core.probe import nearest_others\n"
        "before = dict(os.environ); nearest_others(torch.eye(8), 2)\n"
        "assert dict(os.environ) == before"
    )
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    env |= {"OPENBLAS_VERBOSE": "2"} | ({"OPENBLAS_CORETYPE": asked} if asked else {})
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # numpy and scipy have an OpenBLAS each; the last one loaded is faiss's
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Core: ")]
    if len(said) < 2:
        pytest.skip("faiss brings no OpenBLAS here")
    assert said[-1] == f"Core: {asked or known}"


def test_a_row_is_not_its_own_cluster_and_likeness_decides_memberships() -> None:
    z = torch.nn.functional.normalize(torch.eye(4).repeat(8, 1) + 0.01, dim=1)
    pi = batch_membership(z, 32, 0.1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(pi.sum(1), torch.ones(32))
    assert float(pi.max()) < 0.2  # seven others are as like as can be


def test_the_head_learns_from_likeness_in_the_batch_as_well() -> None:
    x, y = planes(600, 4, 16)
    u = torch.nn.functional.normalize(x.float(), dim=1)
    spec = dataclasses.replace(SPEC, membership="batch", anchors=16, steps=20, learning_rate=1e-3)
    head = train_head(u, y, None, spec, seed=0)
    again = train_head(u, y, None, spec, seed=0)
    z, before = head.residual(u), u
    assert all(
        torch.equal(a, b) for a, b in zip(vars(head).values(), vars(again).values(), strict=True)
    )

    def expansion(rows: torch.Tensor) -> float:
        return float(rate(rows, spec.eps2))

    assert expansion(z) > expansion(before)


def test_going_on_from_any_step_ends_in_the_same_bits() -> None:
    x, _ = planes(1200, 4, 16)
    shards = MemoryShards(list(x.split(500)))
    reached: list[Refined] = []
    whole, events = refine(shards, x[:6].float(), SPEC, 3, (1,), on_step=reached.append)
    assert [len(r.events) for r in reached] == list(range(1, len(events) + 1))
    for start in reached:
        again, history = refine(shards, x[:6].float(), SPEC, 3, (1,), start=start)
        assert history == events
        for name, value in whole.tensors().items():
            assert torch.equal(value, again.tensors()[name]), (len(start.events), name)


def test_features_that_fall_together_raise_an_alarm_and_are_refused() -> None:
    x, _ = planes(800, 4, 16)
    shards = MemoryShards([x])
    features = fit_projection(shards, 8)
    before = CellModel(features, CentroidCodes.of(x[:6]))
    one = torch.zeros_like(features.head.outer_bias) if features.head else torch.zeros(8)
    one[0] = 50.0
    head = Head.new(8, 16, torch.Generator().manual_seed(0))
    flat = features.with_head(dataclasses.replace(head, outer_bias=one))
    gate = gates.Gate(Probe.of(shards, 400, 5), 0.5)
    assert gate.judge(1, "head", before, CellModel(flat, before.codes)) is before
    assert any("features fell together" in a for a in gate.events[0].alarms)


def test_one_cluster_that_takes_all_raises_an_alarm_and_is_refused(monkeypatch) -> None:
    x, _ = planes(800, 4, 16)
    shards = MemoryShards([x])
    features = fit_projection(shards, 8)
    before = CellModel(features, CentroidCodes.of(x[:6]))
    far = torch.full((5, 16), 100.0)  # nothing is near these
    after = CellModel(features, CentroidCodes.of(torch.cat([x[:1].float(), far])))
    monkeypatch.setattr(gates.Probe, "consistency", lambda *_: 1.0)  # which would let it through
    gate = gates.Gate(Probe.of(shards, 400, 5), 0.5)
    assert gate.judge(0, "lloyd", before, after) is before
    assert any("clusters fell together" in a for a in gate.events[0].alarms)


def test_training_that_runs_away_leaves_the_head_it_started_from() -> None:
    x, y = planes(600, 4, 16)
    u = torch.nn.functional.normalize(x.float(), dim=1)
    wild = dataclasses.replace(SPEC, learning_rate=float("inf"))
    assert train_head(u, y, None, wild, seed=0) is None


class Calls(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def by_lu(names: set[str]) -> set[str]:
    """Those operators that factorise by LU; triangular and Cholesky solves do not."""
    unsafe = ("lu", "lu_", "det", "slogdet", "logdet", "inv", "inverse", "solve", "solve_ex")

    def stem(name: str) -> str:
        return name.removeprefix("aten.").split(".")[0].lstrip("_").removeprefix("linalg_")

    return {n for n in names if stem(n) in unsafe or stem(n).startswith(("lu_", "inv_"))}


@pytest.mark.parametrize(
    "operator", ["lu", "lu_factor", "det", "slogdet", "inv", "solve", "logdet", "inverse"]
)
def test_the_guard_knows_every_operator_that_factorises_by_lu(operator) -> None:
    a, b = 2 * torch.eye(4).expand(3, 4, 4), torch.ones(3, 4, 1)
    call = getattr(torch.linalg, operator, None) or getattr(torch, operator)
    with Calls() as calls:
        call(a, b) if operator == "solve" else call(a)
    assert by_lu(calls.names), calls.names
    with Calls() as calls:
        torch.cholesky_solve(b, torch.linalg.cholesky(a))
        torch.linalg.solve_triangular(a, b, upper=False)
    assert not by_lu(calls.names), calls.names


def test_no_operator_of_a_refinement_or_a_merge_tree_factorises_by_lu() -> None:
    x, _ = planes(900, 4, 16)
    shards = MemoryShards([x])
    with Calls() as calls:
        model, _ = refine(shards, x[:6].float(), SPEC, 0)
        z = features_of(model.features, x)
        merge_tree(*sum_by_label(z, model.cheapest(x)[0], model.num_leaves), 0.5)
    assert any("cholesky" in name for name in calls.names)
    assert not by_lu(calls.names)
