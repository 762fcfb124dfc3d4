import io
import os

import numpy as np
import pytest

from rrcluster.io.store import Store, npy_header


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("a/b.bin", b"old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        store.write_bytes("a/b.bin", b"new")
    assert store.read_bytes("a/b.bin") == b"old"
    assert os.listdir(tmp_path / "a") == ["b.bin"]


def test_rows_of_an_array_are_read_in_part(tmp_path) -> None:
    store = Store(str(tmp_path))
    x = np.arange(60, dtype=np.float16).reshape(20, 3)
    store.write_npy("x.npy", x)
    assert np.array_equal(store.read_npy("x.npy"), x)
    assert np.array_equal(store.read_npy("x.npy", 5, 9), x[5:9])
    assert store.read_npy("x.npy", 20).shape == (0, 3)


def test_names_of_an_absent_folder_are_none(tmp_path) -> None:
    assert Store(str(tmp_path)).names("nothing") == set()


def test_a_pickled_array_is_refused() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    file.seek(0)
    with pytest.raises(ValueError, match="plain numbers"):
        npy_header(file)


def test_storage_options_are_not_shown() -> None:
    assert "hidden" not in repr(Store("s3://bucket/run", {"secret": "hidden"}))


def test_an_object_store_answers_like_a_disk(s3) -> None:
    store = Store(f"{s3.bucket()}/run", s3.storage_options)
    x = np.arange(60, dtype=np.float16).reshape(20, 3)
    assert store.names("embeddings") == set()
    store.write_npy("embeddings/000000.npy", x)
    assert store.names("embeddings", ".npy") == {"000000.npy"}
    assert np.array_equal(store.read_npy("embeddings/000000.npy", 5, 9), x[5:9])
    assert not store.exists("embeddings/000001.npy")
    store.write_json("run.json", {"a": 1})
    store.write_json("run.json", {"a": 2})
    assert store.read_json("run.json") == {"a": 2}
