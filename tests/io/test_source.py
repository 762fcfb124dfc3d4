"""A storage that fails is not a shard that is damaged."""

from __future__ import annotations

import os

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import jpeg, rows, samples_of, shard, write_tar

from rrcluster.io import retry
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.manifest import list_shards
from rrcluster.io.source import Source
from rrcluster.io.vectors import read_vectors
from rrcluster.records import Bad, Sample, UserError


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
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0))
    original = Source.__init__

    def init(self, uri, options, listed=None):
        original(self, uri, options, listed)
        self._file._file = Outage(self._file._file, after, error)

    monkeypatch.setattr(Source, "__init__", init)
    for at in shards:
        with pytest.raises(raised, match=words):
            rows(at)


def test_an_object_that_was_deleted_is_one_bad_row(remote, tmp_path):
    at = remote(write_tar(tmp_path / "small.tar", samples_of(2)), "webdataset")
    gone = shard(at.uri.replace("small.tar", "gone.tar"))
    (only,) = rows(gone)
    assert only.reason == "read"


class Flaky:
    """Every other read fails, or ends too soon, as connections do."""

    def __init__(self, file):
        self._file, self._reads = file, 0

    def read(self, size=-1):
        self._reads += 1
        if self._reads % 4 == 1:
            raise ConnectionResetError("by peer")
        content = self._file.read(size)
        return content[: len(content) // 2] if self._reads % 4 == 3 else content

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_hiccups_of_a_storage_change_no_row(shards, monkeypatch):
    straight = [rows(at) for at in shards]
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * 3)
    original = Source.__init__

    def init(self, uri, options, listed=None):
        original(self, uri, options, listed)
        self._file._file = Flaky(self._file._file)

    monkeypatch.setattr(Source, "__init__", init)
    for at, wanted in zip(shards, straight, strict=True):
        found = rows(at)
        assert len(found) == 100
        assert [r.sample_id for r in found] == [r.sample_id for r in wanted]


def test_patience_is_bounded_and_none_is_had_with_what_is_final(monkeypatch):
    slept = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)

    def failing(error):
        calls.append(error)
        raise error

    for error, tries in (
        (OSError("reset"), 1 + len(retry.PAUSES)),
        (TimeoutError(), 1 + len(retry.PAUSES)),
        (FileNotFoundError("a"), 1),
        (PermissionError("a"), 1),
        (ValueError("ours"), 1),
    ):
        calls, slept[:] = [], []
        with pytest.raises(type(error)):
            retry.persistently(lambda error=error: failing(error))
        assert len(calls) == tries
        assert len(slept) == tries - 1
        assert slept == sorted(slept) or max(slept) > 10 * slept[0]
        assert sum(slept) < 200


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "embeddings"])
def test_a_shard_that_is_not_the_listed_one_is_one_row(tmp_path, kind):
    """Changed in size, or in time only: what is in it is not what the manifest says."""
    path = tmp_path / {"webdataset": "a.tar", "parquet": "a.parquet", "embeddings": "a.npy"}[kind]

    def write(count):
        if kind == "webdataset":
            write_tar(path, samples_of(count))
        elif kind == "parquet":
            pq.write_table(pa.table({"image": [jpeg(i) for i in range(count)]}), path)
        else:
            np.save(path, np.ones((count, 4), np.float32))

    def read(at):
        if kind == "embeddings":
            found = read_vectors(at, CorpusSpec())
            return len(found.samples), [b.reason for b in found.bad]
        found = rows(at)
        return sum(isinstance(r, Sample) for r in found), [
            r.reason for r in found if isinstance(r, Bad)
        ]

    write(2)
    (at,) = list_shards(CorpusSpec(str(path)))
    assert read(at) == (2, [])
    os.utime(path, (1, 1))
    assert read(at) == (0, ["read"])
    (again,) = list_shards(CorpusSpec(str(path)))
    assert read(again) == (2, [])
    write(3)
    assert read(again) == (0, ["read"])
    path.unlink()
    assert read(again) == (0, ["read"])


def test_a_folder_of_images_that_changed_says_so_in_a_row_after_its_own(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "1.txt").write_text("one")
    (at,) = list_shards(CorpusSpec(str(tmp_path)))
    assert [r.key for r in rows(at)] == [f"{i}.jpg" for i in range(4)]
    (tmp_path / "2.jpg").unlink()
    found = rows(at)
    assert [r.key for r in found[:-1]] == ["0.jpg", "1.jpg", "3.jpg"]
    assert found[-1].reason == "read"
    assert "after listing" in found[-1].detail
    (only,) = list_shards(CorpusSpec(f"{tmp_path}/*.jpg"))  # a glob lists no captions
    assert [r.caption for r in rows(only)] == [None, "one", None]
