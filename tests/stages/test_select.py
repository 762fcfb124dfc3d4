import numpy as np
import pytest

from rrcluster.core.keys import KEY_SPAN, row_keys
from rrcluster.io import tables
from rrcluster.io.store import Store
from rrcluster.records import Shard
from rrcluster.stages.assemble import publish_shard
from rrcluster.stages.run import split_evenly
from rrcluster.stages.select import LoadBlock, WritePart


def corpus(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    ids = rng.integers(0, 256, (n, 16)).astype(np.uint8)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16), ids


def cut(store: Store, x: np.ndarray, ids: np.ndarray, shards: int) -> list[Shard]:
    """The corpus as embedded shards of uneven length."""
    cuts = sorted(np.random.default_rng(shards).integers(0, len(x), shards - 1).tolist())
    made = []
    for index, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(x)], strict=True)):
        rows = [
            {"sample_id": ids[i].tobytes(), "shard": index, "row": i - a, "key": str(i),
             "caption": None, "width": 1, "height": 1}
            for i in range(a, b)
        ]  # fmt: skip
        publish_shard(
            store, f"{index:06d}", x[a:b], tables.table_of("samples", rows),
            tables.table_of("bad", []),
        )  # fmt: skip
        made.append(Shard(index, f"s{index}", "webdataset", 0, ""))
    return made


def blocks_of(store: Store, shards: list[Shard], parts: int, blocks: int, limit: int):
    groups = split_evenly(tuple(shards), parts)
    for item in enumerate(groups):
        WritePart(store, 0, limit)(item)
    load = LoadBlock(store, 0, len(groups), blocks, limit)
    return [load.full(b) for b in range(blocks)]


@pytest.mark.parametrize("limit", [KEY_SPAN, KEY_SPAN // 3])
def test_blocks_do_not_depend_on_how_the_corpus_is_cut(tmp_path, limit: int) -> None:
    x, ids = corpus(500)
    results = []
    for shards, parts in [(1, 1), (7, 3), (20, 20)]:
        store = Store(str(tmp_path / f"{shards}"))
        results.append(blocks_of(store, cut(store, x, ids, shards), parts, 4, limit))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a.x, b.x)
            assert np.array_equal(a.ids, b.ids)


def test_the_blocks_hold_each_chosen_row_once_and_in_key_order(tmp_path) -> None:
    x, ids = corpus(400)
    store = Store(str(tmp_path))
    limit = KEY_SPAN // 2
    blocks = blocks_of(store, cut(store, x, ids, 5), 5, 3, limit)
    found = np.concatenate([b.ids for b in blocks])
    keys = row_keys(found, 0, "fit")
    assert (keys[:-1] <= keys[1:]).all()
    expected = ids[row_keys(ids, 0, "fit") < np.uint64(limit)]
    assert {i.tobytes() for i in found} == {i.tobytes() for i in expected}
    assert len(found) == len(expected)


def test_equal_images_count_once(tmp_path) -> None:
    x, ids = corpus(100)
    store = Store(str(tmp_path))
    shards = cut(store, np.concatenate([x, x]), np.concatenate([ids, ids]), 6)
    blocks = blocks_of(store, shards, 2, 2, KEY_SPAN)
    assert sum(len(b.x) for b in blocks) == 100


def test_a_row_knows_where_it_came_from(tmp_path) -> None:
    x, ids = corpus(60)
    store = Store(str(tmp_path))
    (block,) = blocks_of(store, cut(store, x, ids, 4), 2, 1, KEY_SPAN)
    for row, (shard, position) in zip(block.x, block.where.tolist(), strict=True):
        assert np.array_equal(store.read_npy(f"embeddings/{shard:06d}.npy")[position], row)


@pytest.mark.parametrize(("shards", "parts"), [(1, 64), (5, 2), (130, 64)])
def test_groups_are_even_and_cover_every_shard_once(shards: int, parts: int) -> None:
    every = tuple(Shard(i, "", "", 0, "") for i in range(shards))
    groups = split_evenly(every, parts)
    assert [s for g in groups for s in g] == list(every)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
