"""The whole job from and to an object store."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import s3fs
from job_fixtures import in_process, job

from rrcluster.io.current import current
from rrcluster.io.store import Store


def test_a_job_from_and_to_s3_and_its_sample_give_the_bytes_of_those_on_disk(
    s3, drawn, finished, tmp_path
) -> None:
    bucket = s3.bucket()
    fs = s3fs.S3FileSystem(**s3.storage_options)
    for path in drawn.glob("*.tar"):
        fs.put(str(path), f"{bucket}/shards/{path.name}")
    options = json.dumps(s3.storage_options).replace('"', "")
    result = job(
        "cluster", f"corpus.uri={bucket}/shards", f"run_dir={bucket}/run", "k=[3,8]",
        *in_process(f"corpus.storage_options={options}"),
    )  # fmt: skip
    assert result.status == 0, result.err
    store = Store(f"{bucket}/run", s3.storage_options)
    compared = 0
    for path in sorted(finished.rglob("*.parquet")):
        name = str(path.relative_to(finished))
        if not name.startswith("manifest"):  # it names where the shards are
            assert store.read_bytes(name) == path.read_bytes(), name
            compared += 1
    assert compared > 15
    secret = s3.storage_options["secret"]
    shown = json.loads(store.read_bytes("run.json"))["config"]["corpus"]["storage_options"]
    assert secret not in shown.values()
    assert set(shown) == set(s3.storage_options)
    sampled = ("sample.name=v1", "sample.size=60", "sample.export=[keys,torch,webdataset]",
               "sample.rows_per_tar=25", "compute=in_process")  # fmt: skip
    there = job("sample", f"run_dir={bucket}/run", f"corpus.storage_options={options}", *sampled)
    assert there.status == 0, there.err
    shutil.copytree(finished, tmp_path / "run")
    here = job("sample", f"run_dir={tmp_path}/run", *sampled)
    assert here.status == 0, here.err
    written = [p for p in (tmp_path / "run/sample/v1").rglob("*") if p.is_file()]
    for path in written:
        name = str(path.relative_to(tmp_path / "run"))
        if path.name != "summary.json":  # it tells seconds
            assert store.read_bytes(name) == path.read_bytes(), name
    assert len([p for p in written if p.suffix == ".tar"]) == 3
    manifest = pq.read_table(io.BytesIO(store.read_bytes("manifest/increment=00000.parquet")))
    assert all(uri.startswith(bucket) for uri in manifest["uri"].to_pylist())
    assert np.load(io.BytesIO(store.read_bytes("embeddings/000000.npy"))).dtype == np.float16


def test_an_increment_and_a_refit_on_s3_give_the_bytes_of_those_on_disk(s3, tmp_path) -> None:
    bucket = s3.bucket()
    fs = s3fs.S3FileSystem(**s3.storage_options)
    options = json.dumps(s3.storage_options).replace('"', "")
    disk, there = tmp_path / "corpus", f"{bucket}/vectors"
    disk.mkdir()
    storage = f"corpus.storage_options={options}"
    places = [(f"{disk}", f"{tmp_path}/run", ()), (there, f"{bucket}/run", (storage,))]
    choice = np.random.default_rng(0)
    for number, refit in enumerate(["none", "always"]):
        x = choice.normal(size=(80, 16)).astype(np.float32)
        path = disk / f"{number}.npy"
        np.save(path, x / np.linalg.norm(x, axis=1, keepdims=True))
        fs.put(str(path), f"{there}/{path.name}")
        for corpus, run_dir, more in places:
            if refit == "none":
                words = (f"corpus.uri={corpus}", "corpus.format=embeddings", "k=[2,4]", *more)
                done = job("cluster", f"run_dir={run_dir}", *words, *in_process("refine.steps=1"))
            else:
                words = ("compute=in_process", f"recluster.refit={refit}")
                done = job("recluster", f"run_dir={run_dir}", *words, *more)
            assert done.status == 0, done.err
    store, compared = Store(f"{bucket}/run", s3.storage_options), 0
    for path in sorted((tmp_path / "run").rglob("*.parquet")):
        name = str(path.relative_to(tmp_path / "run"))
        if not name.startswith("manifest"):
            assert store.read_bytes(name) == path.read_bytes(), name
            compared += 1
    assert compared > 12
    assert current(store).increment == 1
    last = "commits/increment=00001.json"
    assert store.read_bytes(last) == (tmp_path / "run" / last).read_bytes()
    again = job("recluster", f"run_dir={bucket}/run", "compute=in_process", storage)
    assert again.out.strip().endswith("nothing new")


def test_a_bucket_that_is_not_there_is_the_users_mistake(s3) -> None:
    options = json.dumps(s3.storage_options).replace('"', "")
    result = job(
        "cluster", "corpus.uri=s3://nowhere-at-all/x", "run_dir=s3://nowhere-at-all/run",
        *in_process(f"corpus.storage_options={options}"),
    )  # fmt: skip
    assert result.status == 2, result.err
    assert "corpus.uri" in result.err
    assert "Traceback" not in result.err
