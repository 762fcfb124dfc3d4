"""Listing the corpus: what counts, in which order, and what is said when it cannot be."""

from __future__ import annotations

import gzip
import os

import fsspec
import pytest

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.listing import access_error, expand_braces
from rrcluster.io.manifest import list_shards
from rrcluster.records import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(gzip.compress(name.encode()))


def names_of(spec):
    return [os.path.basename(s.uri) for s in list_shards(spec)]


def test_a_folder_is_listed_with_what_is_below_sorted_and_numbered(tmp_path):
    touch(tmp_path, "b/01.tar", "b/00.tar.gz", "a/09.TGZ", "_SUCCESS", "x.json", ".a.tar",
          "_temporary/0.tar", "c.txt", ".cache/1.tar")  # fmt: skip
    shards = list_shards(CorpusSpec(str(tmp_path)))
    assert [s.uri for s in shards] == [f"{tmp_path}/{n}" for n in
                                       ("a/09.TGZ", "b/00.tar.gz", "b/01.tar")]  # fmt: skip
    assert [s.index for s in shards] == [0, 1, 2]
    assert {s.format for s in shards} == {"webdataset"}
    assert [s.num_bytes for s in shards] == [os.path.getsize(s.uri) for s in shards]
    assert len({s.etag for s in shards}) == 3


def test_globs_ranges_lists_and_single_files_mean_the_same(tmp_path):
    touch(tmp_path, *(f"{i:03d}.tar" for i in range(12)))
    every = names_of(CorpusSpec(str(tmp_path)))
    for uri in (
        f"{tmp_path}/*.tar",
        f"{tmp_path}/",
        f"file://{tmp_path}",
        f"{tmp_path}/{{000..011}}.tar",
        [f"{tmp_path}/{{006..011}}.tar", f"{tmp_path}/00[0-5].tar", f"{tmp_path}/003.tar"],
        f"{tmp_path.parent}/{tmp_path.name[:-1]}*/",
    ):
        assert names_of(CorpusSpec(uri)) == every, uri
    assert names_of(CorpusSpec(f"{tmp_path}/004.tar")) == ["004.tar"]
    assert names_of(CorpusSpec(f"{tmp_path}/{{001,005}}.tar")) == ["001.tar", "005.tar"]


def test_a_local_path_may_be_relative_and_hold_brackets(tmp_path, monkeypatch):
    touch(tmp_path, "shards [v1]/{0}.tar", "part-0/0.tar", "part-1/1.tar")
    monkeypatch.chdir(tmp_path)
    (found,) = list_shards(CorpusSpec("shards [v1]"))
    assert found.uri == f"{tmp_path}/shards [v1]/{{0}}.tar"
    assert names_of(CorpusSpec("part-{0..1}")) == ["0.tar", "1.tar"]
    assert names_of(CorpusSpec("part-*")) == ["0.tar", "1.tar"]
    assert names_of(CorpusSpec("part-{0..1}/*.tar")) == ["0.tar", "1.tar"]


def test_ranges_count_with_their_zeros():
    assert list(expand_braces("a{08..10}b")) == ["a08b", "a09b", "a10b"]
    assert list(expand_braces("{9..11}")) == ["9", "10", "11"]
    assert sorted(expand_braces("{a,b}{0..1}")) == ["a0", "a1", "b0", "b1"]
    assert list(expand_braces("{a}")) == ["{a}"]
    with pytest.raises(UserError, match="upwards"):
        list(expand_braces("{3..1}"))


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (["a.parquet", "_metadata", "b.crc"], "parquet"),
        (["a.npy", "b.npy"], "embeddings"),
        (["a/1.JPG", "a/1.txt", "meta.csv"], "images"),
        (["0.tar", "0.parquet", "0_stats.json"], "webdataset"),  # as img2dataset leaves them
        (["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"], "embeddings"),
    ],
)
def test_the_format_follows_from_the_names(tmp_path, names, format):
    touch(tmp_path, *names)
    assert {s.format for s in list_shards(CorpusSpec(str(tmp_path)))} == {format}


def test_of_clip_retrievals_folders_only_the_images_vectors_are_taken(tmp_path):
    touch(
        tmp_path, "img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy", "metadata/metadata_0.parquet"
    )
    assert names_of(CorpusSpec(str(tmp_path))) == ["img_emb_0.npy"]


def test_several_formats_are_refused_unless_one_is_chosen(tmp_path):
    touch(tmp_path, "0.tar", "1.parquet", "a.jpg")
    with pytest.raises(UserError, match=r"corpus.format=auto.*webdataset.*parquet|parquet.*webd"):
        list_shards(CorpusSpec(str(tmp_path)))
    assert names_of(CorpusSpec(str(tmp_path), format="parquet")) == ["1.parquet"]


def test_a_named_file_needs_no_extension_when_the_format_is_set(tmp_path):
    touch(tmp_path, "shard-0", "shard-1")
    assert names_of(CorpusSpec(f"{tmp_path}/shard-{{0..1}}", format="webdataset")) == [
        "shard-0", "shard-1"
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"corpus\.format"):
        list_shards(CorpusSpec(f"{tmp_path}/shard-0"))


def test_mistakes_name_the_setting_and_what_would_work(tmp_path):
    touch(tmp_path, "0.tar", "notes/a.md")
    (tmp_path / "empty").mkdir()
    cases = {
        "": "set it to a folder",
        f"{tmp_path}/absent": "no such file or folder",
        f"{tmp_path}/empty": "no files",
        f"{tmp_path}/notes": "corpus.format",
        f"{tmp_path}/*.parquet": "no files",
        f"{tmp_path}/{{0..3}}.tar": r"3 of 4 are missing, first: .*/1\.tar",
        "nonsense://x/y": "rotocol",
    }
    for uri, remedy in cases.items():
        with pytest.raises(UserError, match=f"corpus.uri=.*{remedy}"):
            list_shards(CorpusSpec(uri))
    with pytest.raises(UserError, match=r"no \.npy files there, only 1 \.tar"):
        list_shards(CorpusSpec(str(tmp_path), format="embeddings"))
    with pytest.raises(UserError, match=r"corpus.uri='': set it"):
        list_shards(CorpusSpec([]))
    with pytest.raises(UserError, match=r"corpus.format=zip: choose"):
        list_shards(CorpusSpec(str(tmp_path), format="zip"))  # type: ignore[arg-type]


def test_trouble_with_access_says_what_to_set():
    class NoCredentialsError(Exception):
        pass

    for error in (NoCredentialsError(), PermissionError("Access Denied"), OSError("timeout")):
        found = access_error("s3://b/x", error)
        assert isinstance(found, UserError)
        assert "corpus.storage_options" in str(found)
    ours = ZeroDivisionError()
    assert access_error("s3://b/x", ours) is ours


def test_any_fsspec_filesystem_will_do():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/corpus/0.tar", b"0")
    fs.pipe_file("/corpus/1.tar", b"1")
    found = list_shards(CorpusSpec("memory://corpus"))
    assert [s.uri for s in found] == ["memory:///corpus/0.tar", "memory:///corpus/1.tar"]
    fs.rm("/corpus", recursive=True)
