"""Bottom-up levels as a setting: what a run folder holds, what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.core.bottom_up import Level
from rrcluster.core.cells import nearest
from rrcluster.core.kmeans import SeedingSpec
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.stages.levels import levels_of, nested
from rrcluster.stages.tensors import read_tensors


def run(folder: Path, *settings: str) -> Path:
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 32, generator=g)
    x = centres[torch.arange(900) % 12] + 0.7 * torch.randn(900, 32, generator=g)
    x = torch.nn.functional.normalize(x, dim=1).half()
    np.save(folder / "corpus/vectors.npy", x.numpy())
    given = [
        f"corpus.uri={folder}/corpus", "corpus.format=embeddings", "encoder=vectors",
        f"run_dir={folder}/run", "compute=in_process", "count.replicates=2",
        "seeding.hierarchy=bottom_up", *settings,
    ]  # fmt: skip
    cluster(load(given), silent)
    return folder / "run"


@pytest.mark.parametrize("splits", ["1", "[1,1,4]"])
def test_a_run_has_the_levels_asked_for_and_rows_go_to_nearest_centroids(tmp_path, splits) -> None:
    settings = ["seeding.resamplings=[3,2,0]", "seeding.sample_size=[2,3,1]"]
    made = run(tmp_path, "k=[3,10,40]", f"seeding.splits={splits}", *settings)
    table = pq.read_table(made / "assignments/increment=00000/000000.parquet")
    columns = [table[f"level_{level}"].to_numpy() for level in range(3)]
    assert [len(set(c.tolist())) for c in columns] == [3, 10, 40]
    for above, below in ((0, 1), (1, 2)):  # nested
        assert len(set(zip(columns[above], columns[below], strict=True))) == len(
            set(columns[below])
        )
    if splits == "1":
        store = Store(str(made))
        leaves = read_tensors(store, "model/seed/seeds.safetensors")["leaves"]
        x = torch.from_numpy(np.load(made / "embeddings/000000.npy"))
        mine = nearest(x, leaves)[0]
        pairs = set(zip(mine.tolist(), columns[2].tolist(), strict=True))
        assert len(pairs) == 40
    sizes = pq.read_table(made / "clusters/level=0.parquet")["size"].to_pylist()
    assert sum(sizes) == 900


def test_levels_are_those_of_the_curation_papers_code() -> None:
    """n_clusters=[1000, 100, 10], splits of the finest, resampling of the others."""
    spec = SeedingSpec(
        splits=[1, 1, 10], resamplings=[10, 10, 0], sample_size=[5, 5, 1], sample_choice="random"
    )
    assert levels_of([10, 100, 1000], spec, 5000) == [
        Level(1000, 10, 0, 1, "random"),
        Level(100, 1, 10, 5, "random"),
        Level(10, 1, 10, 5, "random"),
    ]


@pytest.mark.parametrize(
    ("k", "settings", "named"),
    [
        ("auto", {}, "k"),
        ([10, 6000], {}, "k"),
        ([10, 100], {"splits": 3}, "seeding.splits"),
        ([10, 100], {"splits": [1, 2, 3]}, "seeding.splits"),
        ([10, 100], {"resamplings": -1}, "seeding.resamplings"),
        ([10, 100], {"sample_size": "many"}, "seeding.sample_size"),
        ([10, 100], {"sample_size": 0}, "seeding.sample_size"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_its_name(k, settings, named) -> None:
    with pytest.raises(UserError) as refused:
        levels_of(k, SeedingSpec(**settings), 5000)
    assert refused.value.setting == named


def test_clusters_without_a_child_are_no_gap_in_the_numbers() -> None:
    paths = torch.tensor([[5, 0], [2, 1], [5, 3]])
    assert nested(paths).tolist() == [[1, 0], [0, 1], [1, 2]]


def test_levels_of_spherical_k_means_have_centroids_of_unit_length(tmp_path) -> None:
    made = run(tmp_path, "k=[3,10,40]", "seeding.metric=spherical")
    leaves = read_tensors(Store(str(made)), "model/seed/seeds.safetensors")["leaves"]
    torch.testing.assert_close(leaves.norm(dim=1), torch.ones(40))
    table = pq.read_table(made / "assignments/increment=00000/000000.parquet")
    assert [len(table[f"level_{level}"].unique()) for level in range(3)] == [3, 10, 40]


def test_levels_go_on_after_a_kill_between_them_to_the_same_bytes(tmp_path) -> None:
    settings = ("k=[3,10,40]", "seeding.resamplings=[2,2,0]", "seeding.sample_size=[2,3,1]")
    made = run(tmp_path, *settings)
    wanted = (made / "assignments/increment=00000/000000.parquet").read_bytes()
    seeds = (made / "model/seed/seeds.safetensors").read_bytes()
    levels = sorted(p.name for p in (made / "model/seed").glob("level-*"))
    assert len(levels) == 3
    for later in ("refine", "count", "caption", "write"):
        shutil.rmtree(made / "model" / later)
    shutil.rmtree(made / "assignments")
    for name in ("seeds.safetensors", "paths.safetensors", levels[-1]):  # the finest is done
        (made / "model/seed" / name).unlink()
    kept = {name: (made / "model/seed" / name).stat().st_mtime_ns for name in levels[:-1]}
    run(tmp_path, *settings)
    assert (made / "model/seed/seeds.safetensors").read_bytes() == seeds
    assert (made / "assignments/increment=00000/000000.parquet").read_bytes() == wanted
    for name, when in kept.items():
        assert (made / "model/seed" / name).stat().st_mtime_ns == when, "fitted again"
