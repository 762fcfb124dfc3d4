"""Ray carries: what comes out is what the one-process twin gives, bit for bit."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pyarrow.parquet as pq
import pytest
import ray
import torch
from corpora import jpeg, write_tar
from job_fixtures import SMALL
from sample_run import vectors_run
from shards_contract import ShardsContract

from pipelines.cluster import cluster
from rrcluster.compute import EmbedPlan, ShardCounts, silent
from rrcluster.config import ComputeSpec, load
from rrcluster.core.hierarchy import top_down
from rrcluster.core.kmeans import SeedingSpec, fit
from rrcluster.core.shards import MemoryShards, Rows
from rrcluster.distributed import embed
from rrcluster.distributed.session import RayCompute
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.models.encoder import EncoderSpec
from rrcluster.records import Shard, UserError
from rrcluster.stages.sample import sample


def make_block(b: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(b)
    return torch.nn.functional.normalize(torch.randn(100, 8, generator=g), dim=1).half()


class TestShardActors(ShardsContract):
    @pytest.fixture(autouse=True)
    def _compute(self, ray_compute):
        self.compute = ray_compute

    def make(self, blocks):
        return self.compute.hold(blocks.__getitem__, len(blocks))


def square(x: int) -> int:
    return x * x


def refuse(x: int) -> int:
    raise UserError("k", x, "ask for fewer")


def test_map_answers_every_item_once(ray_compute) -> None:
    assert dict(ray_compute.map(square, list(range(30)))) == {i: i * i for i in range(30)}


def test_a_users_mistake_on_a_worker_reaches_the_user_as_itself(ray_compute) -> None:
    with pytest.raises(UserError, match="ask for fewer") as found:
        list(ray_compute.map(refuse, [3]))
    assert type(found.value) is UserError


def test_kmeans_on_actors_gives_the_bits_of_kmeans_in_memory(ray_compute) -> None:
    spec = SeedingSpec(cell_leaves=4)
    here = top_down(MemoryShards([make_block(b) for b in range(6)]), 10, spec, 1)
    with ray_compute.hold(make_block, 6) as shards:
        there = top_down(shards, 10, spec, 1)
    assert torch.equal(here.leaves, there.leaves)
    assert torch.equal(here.cell_of_leaf, there.cell_of_leaf)


def test_a_fit_that_a_holder_anneals_gives_the_bits_of_one_in_memory(ray_compute) -> None:
    """As where holders have GPUs; here theirs are cores."""
    spec = SeedingSpec(anneal_from=0)
    here = fit(MemoryShards([make_block(b) for b in range(6)]), 10, spec, 1)
    with ray_compute.hold(make_block, 6) as shards:
        shards.device = "that of the holders"
        assert shards.in_one_place(process_of, 30) == (30, next(iter(shards.map(worker_pid))))
        there = fit(shards, 10, spec, 1)
    assert torch.equal(here.centroids, there.centroids)


def process_of(rows: Rows) -> tuple[int, int]:
    return len(rows), os.getpid()


def worker_pid(x: torch.Tensor) -> int:
    return os.getpid()


def first_value(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"sum": x.float().sum(0)}


def test_a_killed_shard_actor_comes_back_with_its_blocks(ray_compute) -> None:
    with ray_compute.hold(make_block, 3) as shards:
        before = shards.reduce(first_value)["sum"]
        os.kill(next(iter(shards.map(worker_pid))), signal.SIGKILL)
        assert torch.equal(shards.reduce(first_value)["sum"], before)


def die_once(mark: str, compute, progress) -> str:
    progress("seed", 1, 2)
    if not os.path.exists(mark):
        open(mark, "w").close()
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_a_killed_coordinator_is_started_again_and_ends(ray_compute, tmp_path) -> None:
    task = partial(die_once, str(tmp_path / "mark"))
    assert ray_compute.coordinate(task, silent) == "done"


def test_a_corpus_without_captions_goes_through_at_the_first_try(
    ray_compute, tmp_path, monkeypatch
) -> None:
    """Columns of nothing but None lose their type between tasks."""
    shards = []
    for index in range(2):
        members = [(f"{i}.jpg", jpeg(10 * index + i)) for i in range(5)]
        path = write_tar(tmp_path / f"{index}.tar", members)
        shards.append(Shard(index, str(path), "webdataset", path.stat().st_size, ""))
    monkeypatch.setattr(embed, "ROUNDS", 1)
    monkeypatch.setattr(embed, "isolate", lambda *_: iter(()))
    plan = EmbedPlan(Store(str(tmp_path / "run")), CorpusSpec(), EncoderSpec())
    found = sorted(ray_compute.embed(plan, shards), key=lambda counts: counts.shard)
    assert found == [ShardCounts(i, 5, 5, 0) for i in range(2)]
    table = pq.read_table(tmp_path / "run/samples/000001.parquet")
    assert table["caption"].to_pylist() == [None] * 5


def test_the_job_on_ray_gives_the_bytes_of_the_job_in_process(
    ray_compute, drawn, finished, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    config = load(
        [f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", "compute.workers=4", *SMALL]
    )
    cluster(config, silent)
    for path in sorted(finished.rglob("*.parquet")):
        assert (run_dir / path.relative_to(finished)).read_bytes() == path.read_bytes(), path
    assert ray.is_initialized()


def test_a_ray_that_runs_already_is_joined_and_left_running(ray_compute) -> None:
    with RayCompute.start(ComputeSpec(workers=1)) as compute:
        assert [found for _, found in compute.map(abs, [-3])] == [3]
    assert ray.is_initialized()


def test_a_sample_is_the_same_bytes_on_ray_and_in_process(ray_compute, tmp_path) -> None:
    wanted = ["sample.name=v", "sample.size=200", "sample.leaf_choice=stratified",
              "sample.dedup_threshold=0.98", "sample.export=[keys,torch,schedule]"]  # fmt: skip
    for name, compute in (("here", InProcessCompute(1)), ("ray", ray_compute)):
        store = vectors_run(tmp_path / name)
        sample(load([f"run_dir={store.uri}", *wanted]), store, compute, silent)
    compared = 0
    for path in (tmp_path / "here/sample").rglob("*"):
        if path.is_file() and path.name != "summary.json":
            other = tmp_path / "ray" / path.relative_to(tmp_path / "here")
            assert path.read_bytes() == other.read_bytes(), path.name
            compared += 1
    assert compared > 8
