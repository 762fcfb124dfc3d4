"""A storage that fails is not a shard that is damaged."""

from __future__ import annotations

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import jpeg, rows, samples_of, shard, write_tar

from rrcluster.io.source import Source
from rrcluster.records import UserError


class Outage:
    """Raises the given error at every read after the first so many bytes."""

    def __init__(self, file, after, error):
        self._file, self._left, self._error = file, after, error

    def read(self, size=-1):
        if self._left <= 0:
            raise self._error
        content = self._file.read(size)
        self._left -= len(content)
        return content

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def remote(tmp_path):
    """A function that puts a file on a filesystem that is not local and gives its shard."""
    fs = fsspec.filesystem("memory")

    def put(path, format):
        assert path.stat().st_size > 30_000 or path.name == "small.tar", "ends before the outage"
        fs.pipe_file(f"/outage/{path.name}", path.read_bytes())
        return shard(f"memory://outage/{path.name}", format)

    yield put
    fs.rm("/outage", recursive=True)


@pytest.fixture
def shards(remote, tmp_path):
    noise = np.random.default_rng(0)  # after the picture's end, so that nothing compresses away
    images = [jpeg(i) + noise.bytes(1000) for i in range(100)]
    members = [(f"{i}.jpg", image) for i, image in enumerate(images)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    return [
        remote(write_tar(tmp_path / "a.tar", members), "webdataset"),
        remote(write_tar(tmp_path / "b.tar.gz", members, "w:gz"), "webdataset"),
        remote(tmp_path / "a.parquet", "parquet"),
    ]


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OSError("connection reset"), RuntimeError, "the storage failed: connection reset"),
        (PermissionError("ExpiredToken"), UserError, r"corpus\.storage_options"),
    ],
)
@pytest.mark.parametrize("after", [0, 9000])
def test_an_outage_stops_the_job_and_loses_no_rows(
    shards, monkeypatch, error, raised, words, after
):
    original = Source.__init__

    def init(self, uri, options):
        original(self, uri, options)
        self._file = Outage(self._file, after, error)

    monkeypatch.setattr(Source, "__init__", init)
    for at in shards:
        with pytest.raises(raised, match=words):
            rows(at)


def test_an_object_that_was_deleted_is_one_bad_row(remote, tmp_path):
    at = remote(write_tar(tmp_path / "small.tar", samples_of(2)), "webdataset")
    gone = shard(at.uri.replace("small.tar", "gone.tar"))
    (only,) = rows(gone)
    assert only.reason == "read"
