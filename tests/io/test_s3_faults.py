"""An object store that fails now and then changes no row; and one of 100,000 keys is listed."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from corpora import jpeg, rows, samples_of, write_tar
from fuzzing import Bounds
from s3_faults import FAULTS, faulty_s3

from rrcluster.io import retry
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.manifest import list_shards
from rrcluster.io.store import Store
from rrcluster.io.vectors import read_vectors
from rrcluster.records import UserError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", (0.01,) * 30)
    monkeypatch.setattr(retry, "SHORT", (0.01,) * 30)


def options_of(proxy, s3, **more):
    # Without botocore's own second tries, so that it is ours that are tested.
    config = {"retries": {"max_attempts": 0}, "read_timeout": 5}
    keys = {name: s3.storage_options[name] for name in ("key", "secret")}
    return {"endpoint_url": proxy.endpoint, "config_kwargs": config, **keys, **more}


@pytest.fixture
def corpus(s3, tmp_path):
    """A bucket with shards of every format, and what is in them."""
    address = s3.bucket()
    fs = s3fs.S3FileSystem(**s3.storage_options)
    noise = np.random.default_rng(0)
    write_tar(tmp_path / "a.tar", [
        (f"{i}.{kind}", content) for i in range(60)
        for kind, content in (("jpg", jpeg(i) + noise.bytes(2000)), ("txt", b"%d" % i))
    ])  # fmt: skip
    write_tar(tmp_path / "b.tar.gz", samples_of(20), "w:gz")
    images = [jpeg(i) + noise.bytes(1000) for i in range(50)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=10)
    np.save(tmp_path / "a.npy", noise.standard_normal((50, 8), dtype=np.float32))
    for name in ("tars/a.tar", "tars/b.tar.gz", "parquet/a.parquet", "vectors/a.npy"):
        fs.put_file(str(tmp_path / name.partition("/")[2]), f"{address}/{name}")
    for i in range(40):
        fs.pipe_file(f"{address}/images/{i % 3}/{i}.jpg", jpeg(i))
    return address


def read_all(address, options):
    found = []
    for kind in ("tars", "parquet", "images"):
        spec = CorpusSpec(f"{address}/{kind}", storage_options=options, images_per_shard=15)
        for at in list_shards(spec):
            found += [
                (kind, at.uri, at.etag, r.row, r.key, getattr(r, "sample_id", None))
                for r in rows(at, spec)
            ]
    spec = CorpusSpec(f"{address}/vectors", storage_options=options)
    found += [read_vectors(at, spec).x.tobytes() for at in list_shards(spec)]
    return found


def test_faults_change_no_row(s3, corpus):
    straight = read_all(corpus, s3.storage_options)
    assert len(straight) == 60 + 20 + 50 + 40 + 1
    with faulty_s3(s3.endpoint, 0.4) as proxy:
        assert read_all(corpus, options_of(proxy, s3)) == straight
        seen = {fault.partition(" ")[2] for fault in proxy.faults}
        assert len(seen) >= len(FAULTS) - 1, proxy.faults


def test_what_is_written_through_faults_is_whole(s3):
    address = s3.bucket()
    straight = Store(f"{address}/run", s3.storage_options)
    rng = np.random.default_rng(1)
    with faulty_s3(s3.endpoint, 0.3) as proxy:
        store = Store(f"{address}/run", options_of(proxy, s3))
        for i in range(8):
            content, array = rng.bytes(3000), rng.standard_normal((20, 4))
            store.write_bytes(f"a/{i}", content)
            store.write_npy(f"b/{i}.npy", array)
            assert store.exists(f"a/{i}")
            assert not store.exists(f"c/{i}")
            assert store.read_bytes(f"a/{i}") == straight.read_bytes(f"a/{i}") == content
            np.testing.assert_array_equal(store.read_npy(f"b/{i}.npy", 5, 9), array[5:9])
        assert store.names("a") == {str(i) for i in range(8)}
        assert store.names("absent") == set()
        assert store.folders("") == {"a", "b"}
        assert proxy.faults.total() > 8


def test_an_outage_ends_in_one_sentence(s3, corpus, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", (0.01,) * 2)
    monkeypatch.setattr(retry, "SHORT", (0.01,) * 2)
    spec = CorpusSpec(f"{corpus}/tars", storage_options=s3.storage_options)
    (at, _) = list_shards(spec)
    with faulty_s3(s3.endpoint, 1.0, kinds=("500",)) as proxy:
        down = CorpusSpec(spec.uri, storage_options=options_of(proxy, s3))
        with pytest.raises(UserError, match=r"corpus\.uri=.*cannot be listed"):
            list_shards(down)
        with pytest.raises(RuntimeError, match=r"the storage failed.*run again to resume"):
            rows(at, down)


def test_a_public_bucket_is_read_without_keys(s3, corpus, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    fs = s3fs.S3FileSystem(**s3.storage_options)
    fs.chmod(corpus, acl="public-read")
    fs.chmod(f"{corpus}/parquet/a.parquet", acl="public-read")
    with faulty_s3(s3.endpoint, 0.0) as proxy:
        options = {"endpoint_url": proxy.endpoint, "anon": True, "region": "eu-west-3"}
        spec = CorpusSpec(f"{corpus}/parquet", storage_options={**options, "path_style": True})
        assert len(rows(list_shards(spec)[0], spec)) == 50
        assert proxy.requests
        assert not any("Authorization" in headers for _, _, headers in proxy.requests)
        assert all(path.startswith("/test-") for _, path, _ in proxy.requests)


def test_a_hundred_thousand_keys_are_listed_in_pages(s3):
    bounds = Bounds(seconds=60, megabytes=400)
    with faulty_s3(s3.endpoint, 0.0) as proxy:
        proxy.many_keys = 100_000
        spec = CorpusSpec("s3://many/shards", storage_options=options_of(proxy, s3))
        started = time.monotonic()
        with bounds.case("the listing"):
            shards = list_shards(spec)
        assert len(shards) == 100_000
        assert shards[99_999].uri == "s3://many/shards/099999.tar"
        assert shards[99_999].etag == f"{99_999:032x}"
        assert len(proxy.requests) < 105  # pages of a thousand
        assert time.monotonic() - started < 60  # 13 s on a shared machine, most of it XML
