"""Parquet shards: which column is what, and damage."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from corpora import jpeg, rows, shard

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.images import iter_raw, probe_shard, read_images
from rrcluster.io.source import Source
from rrcluster.records import Bad, Sample, UserError


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return shard(path, "parquet")


def test_usual_columns_are_found_by_name_and_type(tmp_path):
    uid = "f" * 31 + "0"
    at = write(
        tmp_path / "a.parquet",
        {
            "image": ["not bytes", "either"],
            "JPG": [jpeg(0), jpeg(1)],
            "TEXT": ["größer", None],
            "id": [7, 8],
            "uid": [uid, "none"],
        },
    )
    found = rows(at)
    assert [r.caption for r in found] == ["größer", None]
    assert [r.key for r in found] == ["7", "8"]
    assert found[0].sample_id == bytes.fromhex(uid)
    assert found[1].sample_id == xxhash.xxh3_128_digest(jpeg(1))


def test_columns_that_the_settings_name_win(tmp_path):
    columns = {"image": [b"x"], "second": [jpeg()], "caption": ["a"], "other": ["b"], "k": ["c"]}
    at = write(tmp_path / "a.parquet", columns)
    spec = CorpusSpec(image_column="second", caption_column="other", key_column="k")
    (found,) = rows(at, spec)
    assert (found.caption, found.key) == ("b", "c")


def test_hugging_face_structs_and_large_types_are_images(tmp_path):
    struct = pa.array([{"bytes": jpeg(0), "path": "a.jpg"}, {"bytes": None, "path": "b"}, None])
    found = rows(write(tmp_path / "a.parquet", {"image": struct}))
    assert [getattr(r, "reason", "") for r in found] == ["", "missing_image", "missing_image"]
    assert [r.key for r in found] == ["a:0", "a:1", "a:2"]
    large = pa.array([jpeg()], pa.large_binary())
    text = pa.array(["words"], pa.large_string()).dictionary_encode()
    (found,) = rows(write(tmp_path / "b.parquet", {"pixels": large, "caption": text}))
    assert found.caption == "words"


def test_wrong_columns_are_the_users_mistake(tmp_path):
    at = write(
        tmp_path / "a.parquet", {"url": ["http://"], "caption": ["x"], "a": [b""], "b": [b""]}
    )
    with pytest.raises(UserError, match=r"corpus.image_column=None.*url \(string\), caption"):
        rows(at)
    for name in ("url", "absent"):
        with pytest.raises(UserError, match=f"corpus.image_column={name}.*url"):
            rows(at, CorpusSpec(image_column=name))
    with pytest.raises(UserError, match=r"corpus.caption_column=b.*url"):
        rows(at, CorpusSpec(image_column="a", caption_column="b"))


def test_null_and_bad_images_cost_their_row_only(tmp_path):
    at = write(tmp_path / "a.parquet", {"image": [jpeg(0), None, b"", b"text", jpeg(4)]})
    reasons = [r.reason if isinstance(r, Bad) else "" for r in rows(at)]
    assert reasons == ["", "missing_image", "decode", "unsupported", ""]
    assert sorted(dict(read_images(at, CorpusSpec(), range(5), 32))) == [0, 4]
    assert probe_shard(at, CorpusSpec(), 9)["images"] == 4


def test_many_row_groups_and_none_are_read_in_order(tmp_path):
    images, keys = [jpeg(i % 3) for i in range(50)], [str(i) for i in range(50)]
    at = write(tmp_path / "a.parquet", {"image": images, "key": keys}, row_group_size=7)
    assert [r.key for r in rows(at)] == keys
    assert rows(write(tmp_path / "b.parquet", {"image": pa.array([], pa.binary())})) == []


def test_a_row_group_is_streamed_and_not_read_as_a_whole(tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    images = [noise.bytes(5_000) for _ in range(8_000)]  # 40 MB in one row group
    at = write(
        tmp_path / "a.parquet", {"image": images}, row_group_size=8_000, use_dictionary=False
    )
    asked = []
    original = Source.read

    def read(self, size=-1):
        content = original(self, size)
        asked.append(len(content))
        return content

    monkeypatch.setattr(Source, "read", read)
    reader = iter_raw(at, CorpusSpec())
    assert next(reader).image == images[0]
    assert sum(asked) < 15_000_000
    assert sum(1 for _ in reader) == 7_999
    assert max(asked) < 10_000_000


def test_a_cut_file_is_truncated_and_garbage_is_read(tmp_path):
    at = write(tmp_path / "a.parquet", {"image": [jpeg(i) for i in range(9)]})
    whole = (tmp_path / "a.parquet").read_bytes()
    cases = {"truncated": whole[:-30], "read": b"garbage" * 100}
    for reason, content in (*cases.items(), ("read", b"")):
        (tmp_path / "a.parquet").write_bytes(content)
        (only,) = rows(at)
        assert only.reason == reason


def test_damage_in_the_middle_ends_the_shard_after_the_rows_before(tmp_path):
    images = [jpeg(i) + bytes([i]) * 40_000 for i in range(64)]
    at = write(
        tmp_path / "a.parquet", {"image": images}, row_group_size=16, compression="zstd",
        use_dictionary=False,
    )  # fmt: skip
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0)
    start = group.data_page_offset
    whole[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(whole)
    found = rows(at)
    assert len(found) == 33
    assert all(isinstance(r, Sample) for r in found[:-1])
    assert found[-1].reason == "truncated"
