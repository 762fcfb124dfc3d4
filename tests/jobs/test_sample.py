"""`rrcluster sample` on a run of real tars; every export is read by the library it is made for."""

from __future__ import annotations

import itertools
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from job_fixtures import job

FORMATS = "keys,datacomp,ssl,hf,torch,schedule,webdataset,streaming"


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """A run with a sample of 300 draws, small clusters repeated."""
    folder = tmp_path_factory.mktemp("sampled") / "run"
    shutil.copytree(finished, folder)
    result = job(
        "sample", f"run_dir={folder}", "compute=in_process", "sample.name=v1", "sample.size=300",
        "sample.multiplier=3", f"sample.export=[{FORMATS}]", "sample.rows_per_tar=64",
        "sample.batch_size=30",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "effective" in result.out
    return folder


@pytest.fixture(scope="module")
def out(run) -> Path:
    return run / "sample/v1"


@pytest.fixture(scope="module")
def table(out):
    return pq.read_table(out / "weights.parquet")


@pytest.fixture(scope="module")
def draws(table) -> list[str]:
    """The key of every draw, in corpus order."""
    repeat = table["repeat"].to_numpy()
    assert repeat.sum() == 300
    assert repeat.max() == 3
    return np.repeat(table["key"].to_pylist(), repeat).tolist()


def originals(run: Path) -> dict[str, dict[str, bytes]]:
    """Members of every sample of the corpus by key and suffix."""
    found: dict[str, dict[str, bytes]] = {}
    corpus = json.loads((run / "run.json").read_text())["config"]["corpus"]["uri"]
    for path in sorted(Path(corpus).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                found.setdefault(key, {})[kind] = tar.extractfile(member).read()
    return found


def read_keys(run: Path) -> list[str]:
    """The key of every input row, good or bad, in corpus order."""
    rows = []
    for kind in ("samples", "bad"):
        for path in sorted((run / kind).glob("*.parquet")):
            rows += pq.read_table(path, columns=["shard", "row", "key"]).to_pylist()
    return [r["key"] for r in sorted(rows, key=lambda r: (r["shard"], r["row"]))]


def test_keys_are_text_and_parquet(out, draws) -> None:
    assert (out / "keys/keys.txt").read_text().splitlines() == draws
    keys = pq.read_table(out / "keys/keys.parquet")
    assert np.repeat(keys["key"].to_pylist(), keys["repeat"].to_numpy()).tolist() == draws


def test_datacomp_uids_are_sorted_pairs_that_a_resharder_counts(out, table) -> None:
    subset = np.load(out / "datacomp/subset.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    assert (np.sort(subset, order=["f0", "f1"]) == subset).all()
    for row in table.to_pylist():  # a resharder looks each uid up between two bisections
        uid = row["sample_id"].hex()
        pair = np.asarray([(int(uid[:16], 16), int(uid[16:], 16))], subset.dtype)
        left = np.searchsorted(subset, pair, "left")
        assert np.searchsorted(subset, pair, "right") - left == row["repeat"]


def test_datasets_select_takes_the_indices(run, out, draws) -> None:
    datasets = pytest.importorskip("datasets")
    every = datasets.Dataset.from_dict({"key": read_keys(run)})
    chosen = every.select(np.load(out / "hf/indices.npy", allow_pickle=False))
    assert chosen["key"][:] == draws


def test_ssl_indices_are_rows_of_the_embeddings(run, out, draws) -> None:
    files = sorted((run / "samples").glob("*.parquet"))
    keys = [k for f in files for k in pq.read_table(f)["key"].to_pylist()]
    indices = np.load(out / "ssl/indices.npy", allow_pickle=False)
    assert indices.dtype == np.int64
    assert (np.diff(indices) >= 0).all()
    assert [keys[i] for i in indices] == draws


def test_torch_samplers_draw_the_sample(out) -> None:
    weights = np.load(out / "torch/weights.npy", allow_pickle=False)
    indices = np.load(out / "torch/indices.npy", allow_pickle=False)
    assert np.repeat(np.arange(len(weights)), weights.astype(int)).tolist() == indices.tolist()
    generator = torch.Generator().manual_seed(0)
    whole = torch.utils.data.SubsetRandomSampler(indices, generator)
    assert sorted(map(int, whole)) == indices.tolist()
    sampler = torch.utils.data.WeightedRandomSampler(weights, 60_000, generator=generator)
    drawn = np.bincount(list(sampler), minlength=len(weights)) / 60_000
    assert np.abs(drawn - weights / 300).max() < 0.004
    assert (drawn[weights == 0] == 0).all()


def test_webdataset_reads_tars_with_the_original_members(run, out, draws) -> None:
    import webdataset

    tars = sorted(str(p) for p in (out / "webdataset").glob("*.tar"))
    sizes = json.loads((out / "webdataset/sizes.json").read_text())
    assert [Path(t).name for t in tars] == list(sizes) == [f"shard-{i:06d}.tar" for i in range(5)]
    assert list(sizes.values()) == [64, 64, 64, 64, 44]
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len({s["__key__"] for s in found}) == 300
    original = originals(run)
    for sample, key in zip(found, draws, strict=True):
        assert sample["__key__"].partition("-")[0] == key
        members = {k: v for k, v in sample.items() if not k.startswith("__")}
        assert members == original[key]


def test_streaming_shards_hold_the_original_images(run, out, draws) -> None:
    index = json.loads((out / "streaming/index.json").read_text())
    assert sum(s["samples"] for s in index["shards"]) == 300
    original, at = originals(run), 0
    for shard in index["shards"]:  # by the format's description
        content = (out / "streaming" / shard["raw_data"]["basename"]).read_bytes()
        assert len(content) == shard["raw_data"]["bytes"]
        count = int(np.frombuffer(content, "<u4", 1)[0])
        offsets = np.frombuffer(content, "<u4", count + 1, 4)
        for a, b in itertools.pairwise(offsets):
            sizes = np.frombuffer(content, "<u4", 4, a)
            ends = int(a) + 16 + np.cumsum([0, *sizes])
            caption, image, key, _ = (content[i:j] for i, j in itertools.pairwise(ends))
            assert int(ends[-1]) == b
            assert key.decode() == draws[at]
            assert image == original[draws[at]]["jpg"]
            assert caption == original[draws[at]].get("txt", b"")
            at += 1
    assert at == 300


def test_mosaicml_streaming_opens_the_shards(run, out, draws) -> None:
    streaming = pytest.importorskip("streaming")
    dataset = streaming.StreamingDataset(local=str(out / "streaming"), batch_size=1)
    original = originals(run)
    assert len(dataset) == 300
    for i in (0, 63, 64, 299):
        assert dataset[i]["key"] == draws[i]
        assert dataset[i]["image"] == original[draws[i]]["jpg"]


def test_open_clip_takes_the_weights_of_input_shards(out, table) -> None:
    from open_clip_train.data import expand_urls

    told = json.loads((out / "streaming/open_clip.json").read_text())
    urls, weights = expand_urls(told["train_data"], told["train_data_upsampling_factors"])
    drawn = np.bincount(table["shard"].to_numpy(), table["repeat"].to_numpy())
    assert len(urls) == len(weights) == np.count_nonzero(drawn)
    assert all(url.endswith(".tar") for url in urls)
    assert told["train_num_samples"] == 300


def test_batches_of_the_schedule_hold_each_coarse_cluster_in_proportion(out, table) -> None:
    schedule = pq.read_table(out / "schedule/schedule.parquet")
    assert schedule.num_rows == 300
    assert schedule["step"].to_pylist() == np.repeat(np.arange(10), 30).tolist()
    share = np.bincount(table["level_0"].to_numpy(), table["repeat"].to_numpy()) / 10
    for step in range(10):
        batch = schedule.filter(np.asarray(schedule["step"]) == step)
        counts = np.bincount(batch["level_0"].to_numpy(), minlength=len(share))
        assert np.abs(counts - share).max() <= 2


def test_a_dry_run_shows_the_curve_and_writes_nothing(run) -> None:
    result = job("sample", f"run_dir={run}", "sample.name=v9", "sample.size=50", "dry_run=true")
    assert result.status == 0, result.err
    assert "hierarchical" in result.out
    assert not (run / "sample/v9").exists()


def test_a_mistake_is_one_line_and_status_2(run) -> None:
    result = job("sample", f"run_dir={run}", "sample.name=v9", "sample.size=0")
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "sample.size=0" in result.err
