"""Ready vectors in the place of images."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from corpora import shard

from rrcluster.io import vectors
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.images import probe_shard
from rrcluster.io.tables import SAMPLES
from rrcluster.io.vectors import read_vectors, vector_width
from rrcluster.records import UserError

SPEC = CorpusSpec()


def write(path, array, **options):
    np.save(path, array, **options)
    return shard(path, "embeddings", 3)


def noise(n, d, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f4"])
@pytest.mark.parametrize("chunk", [1, 1 << 10, 1 << 25])
def test_rows_come_out_as_unit_vectors_with_their_ids(tmp_path, monkeypatch, dtype, chunk):
    monkeypatch.setattr(vectors, "_CHUNK_BYTES", chunk)
    x = noise(50, 8, dtype)
    at = write(tmp_path / "emb_7.npy", x)
    found = read_vectors(at, SPEC)
    expected = x.astype(np.float32) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
    assert found.x.dtype == np.float16
    np.testing.assert_allclose(found.x, expected, atol=1e-3)
    assert found.samples.schema == SAMPLES
    assert found.samples["key"].to_pylist() == [f"emb_7:{i}" for i in range(50)]
    assert found.samples["sample_id"].to_pylist() == [
        xxhash.xxh3_128_digest(x[i].tobytes() + f"emb_7:{i}".encode()) for i in range(50)
    ]
    assert found.samples["caption"].null_count == 50
    assert set(found.samples["shard"].to_pylist()) == {3}
    assert (found.read, found.bad) == (50, [])
    assert vector_width(at, SPEC) == 8
    assert probe_shard(at, SPEC, 5)["images"] == 50


def test_bad_rows_are_counted_and_leave_no_hole(tmp_path):
    x = noise(6, 4)
    x[1, 2], x[3, 0], x[4] = np.nan, np.inf, 0
    found = read_vectors(write(tmp_path / "a.npy", x), SPEC)
    assert [(b.row, b.reason, b.detail, b.key) for b in found.bad] == [
        (1, "decode", "not finite", "a:1"),
        (3, "decode", "not finite", "a:3"),
        (4, "decode", "zero vector", "a:4"),
    ]
    assert found.samples["row"].to_pylist() == [0, 2, 5]
    assert found.read == 6
    assert len(found.x) == 3


def test_lengths_at_the_ends_of_the_range_are_no_trouble(tmp_path):
    x = noise(4, 16) * np.float32([[1e-38], [1e37], [1], [60_000]])
    found = read_vectors(write(tmp_path / "a.npy", x), SPEC)
    np.testing.assert_allclose(np.linalg.norm(found.x.astype(np.float32), axis=1), 1, atol=1e-3)


def test_keys_and_captions_come_from_the_table_that_goes_with_them(tmp_path):
    table = pa.table({"image_path": ["a", None, "ç"], "caption": ["one", "two", None]})
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    pq.write_table(table, tmp_path / "metadata" / "metadata_00.parquet")
    pq.write_table(table, tmp_path / "x.parquet")
    for at in (
        write(tmp_path / "img_emb" / "img_emb_00.npy", noise(3, 4)),
        write(tmp_path / "x.npy", noise(3, 4)),
    ):
        samples = read_vectors(at, SPEC).samples
        assert samples["key"].to_pylist()[::2] == ["a", "ç"]
        assert samples["key"].to_pylist()[1].endswith(":1")
        assert samples["caption"].to_pylist() == ["one", "two", None]
    with pytest.raises(UserError, match=r"x\.npy: has 2 rows, but .*x\.parquet has 3"):
        read_vectors(write(tmp_path / "x.npy", noise(2, 4)), SPEC)
    (tmp_path / "x.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read"):
        read_vectors(write(tmp_path / "x.npy", noise(2, 4)), SPEC)


def test_other_arrays_are_the_users_mistake(tmp_path):
    path = tmp_path / "a.npy"
    cases = [
        np.zeros(4, np.float32),
        np.zeros((2, 2, 2), np.float32),
        np.zeros((2, 0), np.float32),
        np.zeros((2, 2), np.float64),
        np.zeros((2, 2), np.int32),
        np.asfortranarray(noise(3, 2)),
        np.array([[{}]], object),
    ]
    for array in cases:
        at = write(path, array, allow_pickle=True)
        for read in (read_vectors, vector_width):
            with pytest.raises(UserError, match=r"corpus\.uri=.*a\.npy"):
                read(at, SPEC)
    for content in (b"", b"no array", np.lib.format.MAGIC_PREFIX):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npy"):
            read_vectors(at, SPEC)


def test_a_cut_file_gives_its_rows_and_one_truncated(tmp_path):
    at = write(tmp_path / "a.npy", noise(10, 4))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-50])
    found = read_vectors(at, SPEC)
    assert len(found.x) == 6
    assert [(b.row, b.reason) for b in found.bad] == [(6, "truncated")]
    assert found.read == 7


def test_no_rows_and_no_file_are_results_too(tmp_path):
    found = read_vectors(write(tmp_path / "a.npy", noise(0, 4)), SPEC)
    assert (found.x.shape, found.read, found.samples.num_rows) == ((0, 4), 0, 0)
    gone = read_vectors(shard(tmp_path / "gone.npy", "embeddings"), SPEC)
    assert [b.reason for b in gone.bad] == ["read"]
    assert gone.read == 1
