"""The same readers on an object store."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from corpora import jpeg, rows, samples_of, write_tar

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.images import read_images
from rrcluster.io.manifest import list_shards
from rrcluster.io.vectors import read_vectors, vector_width
from rrcluster.records import Sample, UserError


@pytest.fixture
def bucket(s3, tmp_path):
    """(address, upload): ``upload(name, content)`` puts an object."""
    address = s3.bucket()
    fs = s3fs.S3FileSystem(**s3.storage_options)

    def upload(name, content):
        fs.pipe_file(f"{address}/{name}", content)

    return address, upload


def test_tars_are_listed_and_read(s3, bucket, tmp_path):
    address, upload = bucket
    content = write_tar(tmp_path / "a.tar", samples_of(5)).read_bytes()
    for name in ("x/00.tar", "x/01.tar", "x/_SUCCESS"):
        upload(name, content)
    spec = CorpusSpec(f"{address}/x", storage_options=s3.storage_options)
    shards = list_shards(spec)
    assert [s.uri for s in shards] == [f"{address}/x/00.tar", f"{address}/x/01.tar"]
    assert shards[0].etag == shards[1].etag  # the store's own: same bytes
    assert len(shards[0].etag) == 32
    assert [r.caption for r in rows(shards[1], spec)] == [f"picture {i}" for i in range(5)]
    assert sorted(dict(read_images(shards[0], spec, [1, 3], 16))) == [1, 3]
    for uri in (f"{address}/x/*.tar", f"{address}/x/{{00..01}}.tar", f"{address}"):
        found = list_shards(CorpusSpec(uri, storage_options=s3.storage_options))
        assert [s.uri for s in found] == [s.uri for s in shards]


def test_parquet_images_and_vectors_are_read(s3, bucket, tmp_path):
    address, upload = bucket
    table = pa.table({"image": [jpeg(0), jpeg(1)], "caption": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    upload("parquet/a.parquet", (tmp_path / "a.parquet").read_bytes())
    for i, name in enumerate(["a/0.jpg", "a/1 [é]#.jpg", "b/2.jpg", "b/3.jpg"]):
        upload(f"images/{name}", jpeg(i))
    upload("images/b/2.txt", b"two")
    np.save(tmp_path / "v.npy", np.eye(3, 4, dtype=np.float32))
    upload("vectors/v.npy", (tmp_path / "v.npy").read_bytes())

    spec = CorpusSpec(f"{address}/parquet", storage_options=s3.storage_options)
    assert [r.caption for r in rows(list_shards(spec)[0], spec)] == ["a", "b"]

    spec = CorpusSpec(f"{address}/images", storage_options=s3.storage_options, images_per_shard=3)
    found = [r for s in list_shards(spec) for r in rows(s, spec)]
    assert [r.key for r in found] == ["a/0.jpg", "a/1 [é]#.jpg", "b/2.jpg", "b/3.jpg"]
    assert [r.caption for r in found] == [None, None, "two", None]
    assert all(isinstance(r, Sample) for r in found)

    spec = CorpusSpec(f"{address}/vectors", storage_options=s3.storage_options)
    (at,) = list_shards(spec)
    assert vector_width(at, spec) == 4
    np.testing.assert_array_equal(read_vectors(at, spec).x, np.eye(3, 4))


def test_an_object_that_is_gone_is_a_row(s3, bucket):
    address, upload = bucket
    upload("0.tar", b"")
    spec = CorpusSpec(address, storage_options=s3.storage_options)
    (at,) = list_shards(spec)
    s3fs.S3FileSystem(**s3.storage_options).rm_file(f"{address}/0.tar")
    (only,) = rows(at, spec)
    assert only.reason == "read"


def test_mistakes_are_explained(s3, monkeypatch, tmp_path):
    address = s3.bucket()
    with pytest.raises(UserError, match=r"corpus\.uri=s3://.*no such file or folder"):
        list_shards(CorpusSpec(f"{address}/absent", storage_options=s3.storage_options))
    with pytest.raises(UserError, match=r"corpus\.uri=s3://.*no such"):
        list_shards(CorpusSpec("s3://no-such-bucket/x", storage_options=s3.storage_options))
    with pytest.raises(UserError, match=r"corpus\.uri=s3://.*no files"):
        list_shards(CorpusSpec(address, storage_options=s3.storage_options))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    keyless = {"client_kwargs": s3.storage_options["client_kwargs"]}
    with pytest.raises(UserError, match=r"no credentials.*corpus\.storage_options"):
        list_shards(CorpusSpec(f"{address}/x", storage_options=keyless))
