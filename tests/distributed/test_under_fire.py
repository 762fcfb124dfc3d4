"""A job on several nodes loses its workers, a machine and its own process, and ends the same.

The long version is ``tests/benchmarks/faults.py``.
"""

from __future__ import annotations

from faulty_cluster import FaultyCluster, Killer, differences, disturbed_run
from job_fixtures import SMALL

ROLES = ("encoder", "holder", "coordinator", "raylet", "driver")


def test_killed_at_random_in_every_role_the_job_ends_with_the_same_files(
    drawn, finished, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    with FaultyCluster(nodes=2) as cluster:
        killer = Killer(
            cluster, ROLES, seed=3, most=len(ROLES), pause=(0.1, 1.0), per_stage=3, slack=0
        )
        found = disturbed_run(
            run_dir,
            killer,
            (
                f"corpus.uri={drawn}", f"run_dir={run_dir}", "k=[3,8]", *SMALL, "compute.workers=2",
                f"compute.address={cluster.address}", "compute.coordinator_cpus=0",
            ),
            deadline=300,
        )  # fmt: skip
    assert found.status == 0, found.said[-3000:]
    assert {role for _, role in found.kills} >= {"raylet", "driver", "coordinator"}, found.kills
    assert differences(run_dir, finished) == []
    assert found.published_again <= 6  # a shard, or a stage's own file, for each kill
