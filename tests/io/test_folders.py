"""Folders of image files: runs that find their files again, sidecar captions, odd names."""

from __future__ import annotations

import os
from itertools import chain

import pytest
from corpora import encoded, jpeg, picture, rows, shard

from rrcluster.io import tally
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.images import read_images
from rrcluster.io.manifest import corpus_fingerprint, list_shards
from rrcluster.records import Bad, Sample


def tree(root, names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i % 5))


def keys_of(spec):
    return [[r.key for r in rows(s, spec)] for s in list_shards(spec)]


NAMES = [
    "a.jpg", "a/b.jpg", "a-b/c.jpg", "a/b/d.JPEG", "b/x.png", "b/y.jpg", "b/z/q.jpg", "é/[1].jpg",
    "é/50%.jpg", "é/#first=x&last=y.jpg", "_DSC001.jpg", "z z/{0..1}.jpg",
]  # fmt: skip


@pytest.mark.parametrize("per_shard", [1, 2, 3, 5, 100])
def test_every_image_is_in_exactly_one_shard_however_many_each_holds(tmp_path, per_shard):
    tree(tmp_path, NAMES)
    for extra in ("notes.md", ".hidden.jpg", ".git/x.jpg", "_SUCCESS", "a/b.json"):
        (tmp_path / extra).parent.mkdir(exist_ok=True)
        (tmp_path / extra).write_bytes(b"")
    spec = CorpusSpec(str(tmp_path), images_per_shard=per_shard)
    shards = list_shards(spec)
    assert {s.format for s in shards} == {"images"}
    assert len(shards) == -(-len(NAMES) // per_shard)
    keys = keys_of(spec)
    assert all(len(k) <= per_shard for k in keys)
    assert sorted(chain(*keys)) == sorted(NAMES)
    assert sum(s.num_bytes for s in shards) == sum((tmp_path / n).stat().st_size for n in NAMES)


def test_captions_come_from_text_files_beside(tmp_path):
    tree(tmp_path, ["a/1.jpg", "a/2.v2.jpg"])
    (tmp_path / "a/1.txt").write_text("ein Bär", encoding="utf-8")
    (tmp_path / "a/2.v2.txt").write_text("two")
    spec = CorpusSpec(str(tmp_path))
    (at,) = list_shards(spec)
    assert [r.caption for r in rows(at, spec)] == ["ein Bär", "two"]


def test_only_folders_between_the_ends_are_listed(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    tree(tmp_path, [f"{c}/{i}.jpg" for c in "abcdef" for i in range(4)])
    spec = CorpusSpec(str(tmp_path), images_per_shard=4)
    third = list_shards(spec)[2]
    listed = []
    original = LocalFileSystem.ls

    def ls(self, path, *args, **kwargs):
        listed.append(os.path.relpath(path, tmp_path))
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert [r.key for r in rows(third, spec)] == [f"c/{i}.jpg" for i in range(4)]
    assert sorted(listed) == [".", "c"]


def test_a_glob_chooses_and_chooses_the_same_when_read_again(tmp_path):
    tree(tmp_path, ["a/1.jpg", "a/2.png", "b/1.jpg", "b/c/3.jpg", "b/2.gif"])
    assert keys_of(CorpusSpec(f"{tmp_path}/**/*.jpg")) == [["a/1.jpg", "b/1.jpg", "b/c/3.jpg"]]
    assert keys_of(CorpusSpec(f"{tmp_path}/a/*.png")) == [["2.png"]]
    assert keys_of(CorpusSpec([f"{tmp_path}/b/c", f"{tmp_path}/a"])) == [
        ["1.jpg", "2.png"], ["3.jpg"]
    ]  # fmt: skip
    assert keys_of(CorpusSpec(f"{tmp_path}/a/1.jpg")) == [["1.jpg"]]


def test_the_etag_changes_with_the_files_and_the_order_with_nothing(tmp_path):
    tree(tmp_path, [f"{i:02d}.jpg" for i in range(7)])
    spec = CorpusSpec(str(tmp_path), images_per_shard=3)
    before = list_shards(spec)
    assert list_shards(spec) == before
    (tmp_path / "04.jpg").write_bytes(encoded(picture(9, 90, 90)))
    after = list_shards(spec)
    assert [a.etag == b.etag for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert corpus_fingerprint(before) != corpus_fingerprint(after)
    assert corpus_fingerprint(before) == corpus_fingerprint(before[::-1])


def test_files_that_are_added_later_form_shards_of_their_own(tmp_path):
    tree(tmp_path, [f"b/{i:02d}.jpg" for i in range(7)])
    spec = CorpusSpec(str(tmp_path), images_per_shard=3)
    before = list_shards(spec)
    tree(tmp_path, ["a/0.jpg", "c/0.jpg", "c/1.jpg", "c/2.jpg", "c/3.jpg", "b/02a.jpg"])
    after = list_shards(spec, known=before)
    assert {s.uri for s in before} < {s.uri for s in after}
    assert {s.etag for s in before} < {s.etag for s in after}
    keys = [[r.key for r in rows(s, spec)] for s in after]
    assert sorted(map(len, keys)) == [1, 1, 1, 1, 3, 3, 3]
    assert len(set(chain(*keys))) == 13


def test_a_file_that_vanished_or_is_bad_costs_its_row_only(tmp_path):
    tree(tmp_path, ["1.jpg", "3.jpg"])
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "2b.jpg").symlink_to(tmp_path / "nowhere.jpg")
    spec = CorpusSpec(str(tmp_path))
    (at,) = list_shards(spec)
    found = rows(at, spec)
    assert [r.reason if isinstance(r, Bad) else "" for r in found] == ["", "decode", "read", ""]
    assert sorted(dict(read_images(at, spec, range(4), 8))) == [0, 3]
    for file in tmp_path.iterdir():
        file.unlink()
    (only,) = rows(at, spec)
    assert only.reason == "read"
    tmp_path.rmdir()
    (only,) = rows(at, spec)
    assert only.reason == "read"
    tmp_path.mkdir()


def test_names_that_are_no_unicode_are_read(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(jpeg())
    spec = CorpusSpec(str(tmp_path))
    (at,) = list_shards(spec)
    assert at.uri.isascii()
    (found,) = rows(at, spec)
    assert isinstance(found, Sample)
    assert found.key.encode()


def test_two_hundred_real_photos_are_read(test_data):
    spec = CorpusSpec(str(test_data / "images" / "caltech101"), images_per_shard=100)
    shards = list_shards(spec)
    assert sum(s.num_bytes for s in shards) > 10_000_000
    before = tally.total()
    found = [r for s in shards[:2] for r in rows(s, spec)]
    assert (tally.total() - before).bytes_read == sum(s.num_bytes for s in shards[:2])
    assert len(found) == 200
    assert all(isinstance(r, Sample) for r in found)
    assert len({r.sample_id for r in found}) == 200
    assert rows(shard(shards[1].uri, "images", 1), spec)[0].key == found[100].key
