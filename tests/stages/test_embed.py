import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from corpora import samples_of, write_tar

from rrcluster.compute import EmbedPlan, ShardCounts
from rrcluster.io import tables
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.models.encoder import EncoderSpec
from rrcluster.models.load import load_encoder
from rrcluster.records import Shard
from rrcluster.stages import assemble
from rrcluster.stages.assemble import END, Assembler
from rrcluster.stages.embed import NO_VECTOR, Encoding, Flow, StoredCounts, columns, read_batches


def rows_of(shard: int, good: list[int], bad: list[int], width: int = 4, further: int = 0):
    """Batches of one row each, the end mark last."""
    total = len(good) + len(bad)
    for row in range(total + 1):
        status = END if row == total else "" if row in good else "decode"
        vector = np.full(width, (row + 1) / 10, np.float16)
        yield {
            "shard": np.array([shard]),
            "row": np.array([row]),
            "status": np.array([status], object),
            "key": np.array([f"{shard}:{row}"], object),
            "detail": np.array(["broken" if status == "decode" else ""], object),
            "caption": np.array([None if row % 2 else f"caption {row}"], object),
            "width": np.array([8]),
            "height": np.array([9]),
            "sample_id": np.full((1, 16), row, np.uint8),
            "embedding": vector[None].view(np.uint8),
            "further": np.array([further if row == 1 else 0], np.int32),
            "waited": np.array([0.5], np.float32),
            "busy": np.array([0.25], np.float32),
        }


def published(store: Store, shard: int):
    name = f"{shard:06d}"
    return (
        store.read_bytes(f"embeddings/{name}.npy"),
        store.read_bytes(f"samples/{name}.parquet"),
        store.read_bytes(f"bad/{name}.parquet"),
    )


def test_rows_in_any_order_and_twice_give_the_same_bytes(tmp_path) -> None:
    straight, shuffled = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    batches = list(rows_of(3, [0, 2, 3], [1], further=2))
    one, two = Assembler(straight), Assembler(shuffled)
    for batch in batches:
        one.add(batch)
    answers = []
    for batch in [batches[4], batches[2], batches[2], batches[0], batches[3], batches[1]]:
        answers += two.add(batch)
    assert answers == [ShardCounts(3, 4, 3, 1, 2)]
    assert list(StoredCounts(shuffled)([Shard(3, "", "webdataset", 0, "")])) == answers
    assert (answers[0].waited, answers[0].busy) == (4 * 0.5, 4 * 0.25)  # a row twice counts once
    assert published(straight, 3) == published(shuffled, 3)


def test_a_shard_is_not_published_before_its_last_row(tmp_path) -> None:
    store = Store(str(tmp_path))
    assembler = Assembler(store)
    for batch in list(rows_of(0, [0, 1], []))[1:]:
        assert assembler.add(batch) == []
    assert store.names("samples") == set()


def test_the_mark_comes_after_everything_else(tmp_path, monkeypatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(Store, "write_bytes", lambda self, name, content: order.append(name))
    assembler = Assembler(Store(str(tmp_path)))
    for batch in rows_of(0, [0], []):
        assembler.add(batch)
    assert order[-1] == "samples/000000.parquet"
    assert sorted(order[:-1]) == ["bad/000000.parquet", "embeddings/000000.npy"]


@pytest.mark.parametrize(("good", "bad"), [([], []), ([], [0, 1]), ([0], [])])
def test_small_and_wholly_bad_shards_are_published_too(tmp_path, good, bad) -> None:
    store = Store(str(tmp_path))
    assembler = Assembler(store)
    answers = [c for batch in rows_of(7, good, bad) for c in assembler.add(batch)]
    assert answers == [ShardCounts(7, len(good) + len(bad), len(good), len(bad))]
    assert store.read_npy("embeddings/000007.npy").shape == (len(good), 4)
    assert tables.read_table(store, "samples/000007.parquet").schema.names == tables.SAMPLES.names
    reasons = tables.read_table(store, "bad/000007.parquet")["reason"].to_pylist()
    assert reasons == ["decode"] * len(bad)


def test_shards_that_share_batches_are_kept_apart(tmp_path) -> None:
    store = Store(str(tmp_path))
    assembler = Assembler(store)
    pairs = zip(rows_of(0, [0, 1], []), rows_of(1, [0], [1]), strict=True)
    answers = []
    for a, b in pairs:
        answers += assembler.add({n: np.concatenate([a[n], b[n]]) for n in a})
    assert sorted(answers, key=lambda c: c.shard) == [
        ShardCounts(0, 2, 2, 0),
        ShardCounts(1, 2, 1, 1),
    ]
    assert tables.read_table(store, "samples/000001.parquet")["key"].to_pylist() == ["1:0"]


class Overflowing:
    """An encoder whose second row is NaN and whose third is nothing, as after an overflow."""

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        x = np.full((len(pixels), 4), 0.5, np.float32)
        x[1], x[2] = np.nan, 0
        return x


def test_a_picture_without_a_finite_vector_becomes_a_counted_bad_row(tmp_path) -> None:
    rows = [
        {
            "further": 0, "shard": 0, "row": row,
            "status": END if row == 4 else "", "key": str(row),
            "detail": "", "caption": None, "width": 8, "height": 8,
            "sample_id": np.full(16, row, np.uint8), "pixels": np.zeros((2, 2, 3), np.uint8),
        }
        for row in range(5)
    ]  # fmt: skip
    store = Store(str(tmp_path))
    batch = columns(rows)
    assert Assembler(store).add(Encoding(Overflowing())(batch)) == [ShardCounts(0, 4, 2, 2)]
    bad = tables.read_table(store, "bad/000000.parquet").to_pylist()
    assert [(b["row"], b["reason"], b["detail"]) for b in bad] == [
        (1, "decode", NO_VECTOR), (2, "decode", NO_VECTOR),
    ]  # fmt: skip
    assert batch["status"][1] == ""  # the batch that was read is as it was: a task may run again


def test_a_shard_of_many_rows_is_written_from_a_file_to_the_same_bytes(
    tmp_path, monkeypatch
) -> None:
    n, width, choice = 30_000, 256, np.random.default_rng(0)
    order = choice.permutation(n)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for rows in [*np.split(order, 30), order[:50]]:  # the last ones come a second time
            yield {
                "shard": np.zeros(len(rows), np.int32), "row": rows.astype(np.int32),
                "status": np.where(rows % 7 == 0, "decode", "").astype(object),
                "key": np.array([f"{r}" for r in rows], object),
                "detail": np.full(len(rows), "", object),
                "caption": np.array([None if r % 2 else f"{r}" for r in rows], object),
                "width": rows, "height": rows, "sample_id": np.zeros((len(rows), 16), np.uint8),
                "further": np.zeros(len(rows), np.int32),
                "waited": np.zeros(len(rows), np.float32), "busy": np.ones(len(rows), np.float32),
                "embedding": np.repeat(rows[:, None] % 2000, width, 1).astype(np.float16)
                .view(np.uint8),
            }  # fmt: skip
        end = next(iter(rows_of(0, [], [], width)))
        yield end | {"row": np.array([n])}

    peaks, files = [], []
    for limit in (1 << 30, 1 << 20):
        monkeypatch.setattr(assemble, "SPOOLED", limit)
        store = Store(str(tmp_path / str(limit)))
        assembler = Assembler(store)
        tracemalloc.start()
        counts = [c for batch in batches() for c in assembler.add(batch)]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        good = n - len(range(0, n, 7))
        assert counts == [ShardCounts(0, n, good, n - good)]
        files.append(published(store, 0))
        rows = tables.read_table(store, "samples/000000.parquet")["row"].to_numpy()
        found = store.read_npy("embeddings/000000.npy")
        assert np.array_equal(found[:, 0], (rows % 2000).astype(np.float16))
    assert files[0] == files[1]
    assert peaks[1] < n * width * 2 < peaks[0]


def test_two_attempts_at_a_shard_at_once_give_the_files_of_one(tmp_path) -> None:
    path = write_tar(tmp_path / "0.tar", [*samples_of(70), ("x.jpg", b"no picture")])
    shard = Shard(0, str(path), "webdataset", path.stat().st_size, "")
    encoder = EncoderSpec()
    alone, both = Store(str(tmp_path / "alone")), Store(str(tmp_path / "both"))
    together = threading.Barrier(2)

    def attempt(store: Store, wait: bool) -> ShardCounts:
        assembler, encode = Assembler(store), Encoding(load_encoder(encoder, "cpu"))
        for batch in read_batches(shard, EmbedPlan(store, CorpusSpec(), encoder)):
            if wait:
                together.wait(60)  # the last rows arrive together, so both publish at once
            if whole := assembler.add(encode(batch)):
                return whole[0]
        raise AssertionError("not published")

    expected = attempt(alone, False)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(attempt, [both, both], [True, True]))
    assert answers == [expected, expected]
    assert published(both, 0) == published(alone, 0)
    assert both.names("samples") == {"000000.parquet"}
    assert both.names("embeddings") == {"000000.npy"}


@pytest.mark.parametrize("workers", [2, 3])
def test_files_do_not_depend_on_how_many_encode_side_by_side(tmp_path, workers) -> None:
    shards = []
    for index, rows in enumerate([45, 3, 0, 80]):
        path = write_tar(tmp_path / f"{index}.tar", samples_of(rows))
        shards.append(Shard(index, str(path), "webdataset", path.stat().st_size, ""))
    files, answers = [], []
    for count in (1, workers):
        store = Store(str(tmp_path / f"run{count}"))
        with InProcessCompute(count) as compute:
            plan = EmbedPlan(store, CorpusSpec(), EncoderSpec(batch_size=16))
            answers.append(sorted(compute.embed(plan, shards), key=lambda c: c.shard))
        files.append([published(store, s.index) for s in shards])
    assert files[0] == files[1]
    assert answers[0] == answers[1]


class Timed:
    """An encoder that takes as long as it is told to, by a clock of the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        self.now += 3.0
        return np.full((len(pixels), 4), 0.5, np.float32)


def test_rows_carry_the_seconds_that_their_encoder_waited_and_was_busy(monkeypatch) -> None:
    timed = Timed()
    monkeypatch.setattr("rrcluster.stages.embed.time.monotonic", lambda: timed.now)
    flow = Flow(10, 0, _began=0.0)
    encode = Encoding(timed, _since=0.0)
    batch = next(iter(rows_of(0, [0], []))) | {"pixels": np.zeros((1, 2, 2, 3), np.uint8)}
    for idle in (2.0, 0.0, 1.0):
        timed.now += idle
        found = encode(batch)
        assert (found["waited"].tolist(), found["busy"].tolist()) == ([idle], [3.0])
        flow.add(ShardCounts(0, 40, 40, 0, 0, idle, 3.0))
    assert flow.facts == {"encoder_wait_share": 0.25}
    assert flow.words == "130 images read, 0 bad, 10 images/s, encoders waited 25%"


def test_calls_that_overlap_are_busy_once(monkeypatch) -> None:
    clock = iter([1.0, 2.0, 4.0, 5.0])  # in, in, out, out
    monkeypatch.setattr("rrcluster.stages.embed.time.monotonic", lambda: next(clock))
    encode = Encoding(Timed(), _since=0.0)
    ticks = [encode._tick(change) for change in (1, 1, -1, -1)]
    assert ticks == [(1.0, 0.0), (0.0, 1.0), (0.0, 2.0), (0.0, 1.0)]
