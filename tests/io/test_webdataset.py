"""Tar shards: the grouping, the captions, and every way to end early."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
import xxhash
from corpora import encoded, jpeg, picture, rows, samples_of, shard, write_tar
from PIL import Image

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.images import iter_raw, probe_shard, read_images
from rrcluster.records import Bad, Sample


def test_a_shard_that_webdataset_wrote_is_read_in_order(tmp_path):
    path = tmp_path / "00000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(5):
            writer.write({"__key__": f"a/{i}", "jpg": jpeg(i), "txt": f"ein Bär, {i}, 熊"})
    found = rows(shard(path, index=7))
    assert [r.key for r in found] == [f"a/{i}" for i in range(5)]
    assert [r.caption for r in found] == [f"ein Bär, {i}, 熊" for i in range(5)]
    assert [r.sample_id for r in found] == [xxhash.xxh3_128_digest(jpeg(i)) for i in range(5)]
    assert {(r.width, r.height) for r in found} == {(40, 30)}


def test_every_image_extension_in_any_case_is_an_image(tmp_path):
    kinds = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "WebP": "WEBP", "GIF": "GIF",
             "bmp": "BMP", "TIFF": "TIFF", "tif": "TIFF"}  # fmt: skip
    members = [(f"{i}.{s}", encoded(picture(i), k)) for i, (s, k) in enumerate(kinds.items())]
    members.append(("wrong.jpg", encoded(picture(), "PNG")))
    found = rows(shard(write_tar(tmp_path / "a.tar", members)))
    assert all(isinstance(r, Sample) for r in found)
    assert len(found) == 9


def test_captions_come_from_text_then_json_and_uids_are_kept(tmp_path):
    uid = "0123456789abcdef0123456789ABCDEF"
    members = [
        ("0.jpg", jpeg()), ("0.json", json.dumps({"caption": "c", "text": "t"}).encode()),
        ("1.jpg", jpeg()), ("1.json", json.dumps({"text": "t", "uid": uid}).encode()),
        ("2.json", b'{"caption": "no"}'), ("2.jpg", jpeg()), ("2.txt", b" as it is\n"),
        ("3.jpg", jpeg()), ("3.json", b"[1, 2"),
        ("4.jpg", jpeg()), ("4.json", b'{"caption": 3, "text": "\\ud800", "uid": "short"}'),
        ("5.jpg", jpeg()), ("5.txt", b"\xff broken"),
        ("6.JPG", jpeg()), ("6.TXT", b"upper"),
    ]  # fmt: skip
    found = rows(shard(write_tar(tmp_path / "a.tar", members)))
    captions = [r.caption for r in found]
    assert captions[:4] == ["c", "t", " as it is\n", None]
    assert captions[4].encode()  # a lone surrogate would not
    assert captions[5] == "\ufffd broken"
    assert captions[6] == "upper"
    assert found[1].sample_id == bytes.fromhex(uid)
    assert found[4].sample_id == xxhash.xxh3_128_digest(jpeg())


def test_keys_end_at_the_first_dot_of_the_name(tmp_path):
    members = [
        ("./v1.0/cat.left.jpg", jpeg(1)), ("./v1.0/cat.jpg", jpeg(2)), ("./v1.0/cat.mask.png", b""),
        ("a/b.txt", b"alone"), ("a/c.jpg", jpeg(3)), ("a/._c.jpg", b"mac"), ("README", b"x"),
        ("a/c.txt", b"still c"), ("a/c.jpg", jpeg(4)),
    ]  # fmt: skip
    found = rows(shard(write_tar(tmp_path / "a.tar", members)))
    assert [r.key for r in found] == ["./v1.0/cat", "a/b", "a/c", "a/c"]
    assert found[0].sample_id == xxhash.xxh3_128_digest(jpeg(2))
    assert isinstance(found[1], Bad)
    assert found[1].reason == "missing_image"
    assert found[2].caption == "still c"
    assert found[3].sample_id == xxhash.xxh3_128_digest(jpeg(4))


def test_names_that_are_no_unicode_and_links_are_rows_too(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("caf\udce9.jpg")
        info.size = len(jpeg())
        tar.addfile(info, io.BytesIO(jpeg()))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "caf\udce9.jpg"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    found = rows(shard(path))
    assert found[0].key.encode().startswith(b"caf")
    assert found[1].reason == "missing_image"
    assert len(found) == 2


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_streamed(tmp_path, mode):
    path = write_tar(tmp_path / "a.tar.gz", samples_of(4), mode)
    assert [r.caption for r in rows(shard(path))] == [f"picture {i}" for i in range(4)]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_cut_anywhere_gives_its_rows_and_one_truncated(tmp_path, format):
    members = [(f"{'long' * 20}/{n}", c) for n, c in samples_of(3)]
    whole = write_tar(tmp_path / "whole.tar", members, format=format).read_bytes()
    end = whole.rstrip(b"\0")
    end = len(end) + -len(end) % 512
    previous = 0
    cuts = {*range(512, end + 1, 512), *np.random.default_rng(0).integers(1, end, 40).tolist()}
    for cut in sorted(cuts):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        found = rows(shard(path))
        assert found[-1].reason in (("truncated",) if cut >= 1536 else ("truncated", "read")), cut
        good = found[:-1]
        assert all(isinstance(r, Sample) for r in good), cut
        assert previous <= len(good) <= 3
        previous = len(good)
    assert previous == 3


def test_a_cut_gzip_and_damage_in_the_middle_are_truncated(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    members = [(f"{i}.png", encoded(Image.fromarray(noise + i))) for i in range(20)]
    packed = write_tar(tmp_path / "a.tar.gz", members, "w:gz").read_bytes()
    plain = bytearray(write_tar(tmp_path / "a.tar", members).read_bytes())
    at = plain.index(b"9.png\0")
    plain[at : at + 512] = b"garbage!" * 64
    for content, least in ((packed[: len(packed) * 3 // 4], 10), (bytes(plain), 9)):
        path = tmp_path / "b.tar"
        path.write_bytes(content)
        found = rows(shard(path))
        assert found[-1].reason == "truncated"
        assert len(found) > least
        assert all(isinstance(r, Sample) for r in found[:-1])


def test_what_is_no_tar_is_one_row_and_an_empty_tar_none(tmp_path):
    path = tmp_path / "a.tar"
    for content in (b"", b"x" * 3000, b"\x1f\x8b" + b"y" * 3000, b"short"):
        path.write_bytes(content)
        (only,) = rows(shard(path))
        assert (only.reason, only.row) == ("read", 0)
    assert rows(shard(write_tar(path, []))) == []
    path.unlink()
    (only,) = rows(shard(path))
    assert only.reason == "read"
    assert "no such file" in only.detail


def test_a_bad_image_costs_its_row_only(tmp_path):
    members = [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1)[:200]), ("2.jpg", b""), ("3.jpg", jpeg(3))]
    found = rows(shard(write_tar(tmp_path / "a.tar", members)))
    assert [r.reason if isinstance(r, Bad) else "" for r in found] == ["", "decode", "decode", ""]
    assert [r.key for r in found] == ["0", "1", "2", "3"]


def test_thumbnails_of_wanted_rows_stop_after_the_last(tmp_path):
    members = [*samples_of(6)[:8], ("9.jpg", b"bad")]
    cut = write_tar(tmp_path / "a.tar", members).read_bytes()
    path = tmp_path / "b.tar"
    path.write_bytes(cut)
    found = dict(read_images(shard(path), CorpusSpec(), [3, 1, 4, 99], 16))
    assert sorted(found) == [1, 3]
    assert max(Image.open(io.BytesIO(found[1])).size) == 16
    assert list(read_images(shard(path), CorpusSpec(), [], 16)) == []


def test_a_probe_sees_some_images_and_says_whether_that_was_all(tmp_path):
    at = shard(write_tar(tmp_path / "a.tar", samples_of(4)))
    # Two members a sample, each a header of 512 bytes and its content in blocks of as many.
    size = [512 * (3 + -(-len(jpeg(i)) // 512)) for i in range(4)]
    assert probe_shard(at, CorpusSpec(), 2) == {
        "images": 2, "bytes": sum(size[:2]), "shard_complete": False
    }  # fmt: skip
    for limit in (4, 10):
        assert probe_shard(at, CorpusSpec(), limit) == {
            "images": 4, "bytes": sum(size), "shard_complete": True
        }  # fmt: skip


def test_reading_is_streamed(tmp_path):
    """The first rows come before the end of the file is looked at."""
    whole = write_tar(tmp_path / "a.tar", samples_of(200)).read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[:-20_000])
    first = next(iter(iter_raw(shard(path), CorpusSpec())))
    assert first.key == "0000"
    assert first.problem is None


def test_of_several_images_the_first_by_extension_is_the_samples_and_the_others_count(tmp_path):
    members = [
        ("a.png", encoded(picture(1))), ("a.JPG", jpeg(2)), ("a.txt", b"a"),
        ("a.left.jpg", jpeg(3)),
        ("b.webp", encoded(picture(4), "WEBP")), ("b.0.jpg", jpeg(5)), ("b.1.jpg", jpeg(6)),
        ("c.jpg", b"broken"), ("c.png", encoded(picture(7))),
        ("d.1.jpg", jpeg(8)), ("d.0.jpg", jpeg(9)),
    ]  # fmt: skip
    raws = list(iter_raw(shard(write_tar(tmp_path / "a.tar", members)), CorpusSpec()))
    assert [raw.key for raw in raws] == list("abcd")
    wanted = [jpeg(2), encoded(picture(4), "WEBP"), b"broken", jpeg(9)]
    assert [raw.image for raw in raws] == wanted
    assert [raw.extra for raw in raws] == [2, 2, 1, 1]
    assert raws[0].caption == "a"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_longer_than_a_header_are_whole(tmp_path, format):
    """PAX and GNU put them into members of their own; the limits of the header are 100 and 255."""
    keys = [f"{'ä' * n}/{'x' * n}" for n in (49, 60, 120, 250)] + ["a/" * 600 + "b"]
    members = [m for k in keys for m in ((f"{k}.jpg", jpeg()), (f"{k}.txt", k.encode()))]
    found = rows(shard(write_tar(tmp_path / "a.tar", members, format=format)))
    assert [r.key for r in found] == keys
    assert [r.caption for r in found] == keys
