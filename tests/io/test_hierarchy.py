"""Clusters of ssl-data-curation are read out of their pickle, and nothing in it is run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from rrcluster.io.hierarchy import NotPlain, level_folders, read_clusters, read_level
from rrcluster.io.store import Store
from rrcluster.records import UserError


def objects(items: list) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def file_of(array: np.ndarray, protocol: int | None = None, module: str = "") -> io.BytesIO:
    """The array as ``.npy``, pickled by a protocol and with numpy's modules as once named."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    if protocol is not None:
        header = buffer.getvalue()[: 10 + int.from_bytes(buffer.getvalue()[8:10], "little")]
        content = pickle.dumps(array, protocol)
        if module:  # only in the protocols in which the name's length is not written
            content = content.replace(b"numpy._core.multiarray", module.encode())
        buffer = io.BytesIO(header + content)
    buffer.seek(0)
    return buffer


CLUSTERS = [np.arange(5), np.array([7, 6]), np.array([], np.int64), np.array([9, 300, 70_000])]


@pytest.mark.parametrize("protocol", [None, 2, 3, 4])
def test_arrays_of_every_protocol_that_numpy_uses_come_out_as_they_went_in(protocol) -> None:
    found = list(read_clusters(file_of(objects(CLUSTERS), protocol)))
    assert [f.tolist() for f in found] == [c.tolist() for c in CLUSTERS]


def test_what_older_numpy_wrote_is_read() -> None:
    found = list(read_clusters(file_of(objects(CLUSTERS), 2, "numpy.core.multiarray")))
    assert [f.tolist() for f in found] == [c.tolist() for c in CLUSTERS]


@pytest.mark.parametrize("kind", [np.int32, np.uint8, ">i8"])
def test_integers_of_any_width_and_order_are_read(kind) -> None:
    arrays = [c.clip(0, 200).astype(kind) for c in CLUSTERS]
    found = list(read_clusters(file_of(objects(arrays))))
    assert [f.tolist() for f in found] == [a.tolist() for a in arrays]


def test_lists_and_equally_long_clusters_are_read() -> None:
    lists = [[1, 2], [3], []]
    assert [f.tolist() for f in read_clusters(file_of(objects(lists)))] == lists
    equal = np.array([[0, 3], [1, 2], [5, 4]], object)  # numpy makes two dimensions of these
    assert [f.tolist() for f in read_clusters(file_of(equal))] == equal.tolist()
    plain = equal.astype(np.int64)
    assert [f.tolist() for f in read_clusters(file_of(plain))] == equal.tolist()


def test_more_clusters_than_a_pickle_writes_at_once_are_read() -> None:
    many = [np.arange(i % 4) for i in range(2_500)]
    assert sum(len(f) for f in read_clusters(file_of(objects(many)))) == sum(map(len, many))


@pytest.mark.parametrize("where", ["cluster", "inside a cluster"])
def test_a_pickle_that_calls_something_is_refused_and_not_run(where, tmp_path) -> None:
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    item = Touch() if where == "cluster" else [Touch()]
    file = file_of(objects([np.arange(3), item]))
    with pytest.raises(NotPlain, match="calls"):
        list(read_clusters(file))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("item", [np.ones(3), "text", {"a": 1}, [1.5], None, np.array(["a"])])
def test_what_is_no_array_of_integers_is_refused(item) -> None:
    with pytest.raises(NotPlain):
        list(read_clusters(file_of(objects([np.arange(3), item]))))


def test_damage_is_refused_wherever_the_file_ends() -> None:
    whole = file_of(objects(CLUSTERS)).getvalue()
    for end in range(0, len(whole) - 1, 3):
        with pytest.raises(NotPlain):
            list(read_clusters(io.BytesIO(whole[:end])))


def test_a_missing_or_foreign_file_is_the_users_mistake_with_a_remedy(tmp_path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match="level1/sorted_clusters"):
        level_folders(store)
    (tmp_path / "level1").mkdir()
    (tmp_path / "level1/sorted_clusters.npy").write_bytes(pickle.dumps([1, 2]))
    assert level_folders(store) == ["level1"]
    with pytest.raises(UserError, match=r"save np\.array") as found:
        list(read_level(store, "level1"))
    assert found.value.setting == "adopt.hierarchy"
