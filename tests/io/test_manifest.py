"""Listing the corpus: what counts, in which order, and what is said when it cannot be."""

from __future__ import annotations

import gzip
import os

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from rrcluster.io import tables
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.listing import access_error, expand_braces
from rrcluster.io.manifest import list_shards
from rrcluster.io.store import Store, filesystem, s3_settings
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


def test_a_text_file_lists_files_folders_globs_and_ranges(tmp_path):
    touch(tmp_path / "data", "a/00.tar", "a/01.tar", "b/x.tar", "c/1.tar", "c/2.tar", "c/3.txt")
    text = f"# two of a kind\n\na/{{00..01}}.tar\n{tmp_path}/data/b/x.tar\r\n  c\nb/*.tar\n"
    for name in ("shards.txt", "shards.LIST"):
        (tmp_path / "data" / name).write_text(text)
        shards = list_shards(CorpusSpec(f"{tmp_path}/data/{name}"))
        assert [s.uri.removeprefix(f"{tmp_path}/data/") for s in shards] == [
            "a/00.tar", "a/01.tar", "b/x.tar", "c/1.tar", "c/2.tar",
        ]  # fmt: skip
        assert shards == list_shards(CorpusSpec(f"{tmp_path}/data"))
    many = "\n".join(f"a/{i:02d}.tar" for i in range(2)) + "\nabsent/1.tar\na/9.tar\n"
    (tmp_path / "data" / "shards.txt").write_text(many)
    with pytest.raises(UserError, match=r"1 of 4 are missing, first: .*(absent/1|a/9).tar"):
        list_shards(CorpusSpec(f"{tmp_path}/data/shards.txt"))
    for content, words in ((b"", "lists no files"), (b"\xff\xfe", "UTF-8"), (None, "no such file")):
        path = tmp_path / "data" / "shards.txt"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=rf"corpus\.uri=.*{words}"):
            list_shards(CorpusSpec(str(path)))


def test_a_long_list_asks_each_folder_once(tmp_path, monkeypatch):
    names = [f"{folder}/{i:03d}.tar" for folder in "ab" for i in range(200)]
    touch(tmp_path, *names)
    (tmp_path / "all.txt").write_text("\n".join(reversed(names)))
    asked = []
    original = LocalFileSystem.info
    monkeypatch.setattr(
        LocalFileSystem, "info", lambda *a, **k: asked.append(a[1]) or original(*a, **k)
    )
    shards = list_shards(CorpusSpec(f"{tmp_path}/all.txt"))
    assert [s.uri for s in shards] == [f"{tmp_path}/{name}" for name in names]
    assert sum(isinstance(path, str) for path in asked) < 20  # a listing asks by its own entries


@pytest.mark.parametrize("kind", ["webdataset", "images"])
def test_the_manifest_of_a_run_is_a_corpus(tmp_path, kind):
    suffix = "tar" if kind == "webdataset" else "jpg"
    touch(tmp_path / "data", *[f"{i}.{suffix}" for i in range(7)])
    shards = list_shards(CorpusSpec(f"{tmp_path}/data", images_per_shard=3))
    rows = [vars(s) | {"shard": s.index} for s in shards]
    name = "manifest/increment=00000.parquet"
    tables.write_table(Store(str(tmp_path)), name, "manifest", tables.table_of("manifest", rows))
    assert list_shards(CorpusSpec(f"{tmp_path}/{name}")) == shards
    touch(tmp_path / "more", "0.tar")
    if kind == "images":
        with pytest.raises(UserError, match=r"found 1 \.tar files and 3 image files"):
            list_shards(CorpusSpec([f"{tmp_path}/more", f"{tmp_path}/{name}"]))
    else:
        found = list_shards(CorpusSpec([f"{tmp_path}/more", f"{tmp_path}/{name}"]))
        assert [s.index for s in found] == list(range(8))


def test_region_and_path_style_reach_the_client():
    options = {"region": "eu-west-3", "path_style": True, "endpoint_url": "http://s3.test:9"}
    settings = s3_settings({**options, "key": "k"})
    assert settings["client_kwargs"] == {"region_name": "eu-west-3"}
    assert settings["config_kwargs"] == {"s3": {"addressing_style": "path"}}
    fs, path = filesystem("s3://bucket/name", {**options, "key": "k", "secret": "s"})
    assert path == "bucket/name"
    assert fs.url(path).startswith("http://s3.test:9/bucket/name")
    assert "eu-west-3" in fs.url(path)
    fs, _ = filesystem("s3://bucket/name", {**options, "path_style": False, "anon": True})
    assert fs.url(path).startswith("http://bucket.s3.test:9/name")
    assert "Signature" not in fs.url(path)
