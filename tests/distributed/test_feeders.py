"""Many encoders are fed by several processes; what comes out does not tell how many there were."""

from __future__ import annotations

from dataclasses import replace

import ray

from rrcluster.compute import EmbedPlan
from rrcluster.config import ComputeSpec, load
from rrcluster.distributed import embed, feeders
from rrcluster.io.manifest import list_shards
from rrcluster.io.store import Store
from rrcluster.records import Shard


def test_shards_and_encoders_are_dealt_out_whole() -> None:
    shards = [Shard(i, f"{i}.tar", "webdataset", 1, "") for i in range(10)]
    for workers in (1, 16, 17, 100, 1000):
        dealt = feeders.shares(shards, ComputeSpec(workers_per_feeder=16), workers)
        assert sorted(i for share in dealt for i in share.todo) == list(range(10))
        assert len(dealt) == min(-(-workers // 16), 10)
        assert sum(share.workers for share in dealt) == workers


def test_two_feeders_one_of_which_is_lost_publish_the_files_of_one_process(
    ray_compute, drawn, finished, tmp_path, monkeypatch
) -> None:
    placed, start = [], feeders.Share.start

    def noted(share, *arguments):
        answers = start(share, *arguments)
        placed.append(share.actor)
        return answers

    monkeypatch.setattr(feeders.Share, "start", noted)
    config = load([f"corpus.uri={drawn}"])
    shards = list_shards(config.corpus)
    plan = EmbedPlan(Store(str(tmp_path)), config.corpus, config.encoder)
    spec = replace(ray_compute.spec, workers_per_feeder=1, readers=2)
    found = []
    for counts in embed.embed(plan, shards, spec, 2):
        found.append(counts.shard)
        if len(found) == 1:
            ray.kill(placed[counts.shard % 2])
    assert sorted(found) == list(range(len(shards)))
    assert len(placed) == 3
    for name in ("embeddings", "samples", "bad"):
        for path in sorted((finished / name).iterdir()):
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), path
