"""A shard that kills its workers costs its bad rows, a bounded number of workers, and no more."""

from __future__ import annotations

import poison_corpus
import pyarrow.parquet as pq
import pytest
from corpora import jpeg, samples_of, write_tar

from rrcluster.compute import EmbedPlan
from rrcluster.io.store import Store
from rrcluster.models.encoder import EncoderSpec
from rrcluster.records import Shard
from rrcluster.stages.quarantine import MAX_DEATHS, TRIES, Suspicion


def test_a_picture_that_kills_its_worker_is_one_bad_row_and_the_rest_is_embedded(
    ray_compute, tmp_path
) -> None:
    good = samples_of(6)
    deadly_picture = [*samples_of(3), ("x.jpg", poison_corpus.DEADLY_PICTURE), ("y.jpg", jpeg(9))]
    deadly_member = [*samples_of(2), ("x.jpg", jpeg(3)), ("x.json", poison_corpus.DEADLY_CAPTION)]
    shards = []
    for index, members in enumerate([good, deadly_picture, deadly_member, good]):
        path = write_tar(tmp_path / f"{index}.tar", members)
        shards.append(Shard(index, str(path), "webdataset", path.stat().st_size, ""))
    store = Store(str(tmp_path / "run"))
    plan = EmbedPlan(store, poison_corpus.PoisonCorpus(), EncoderSpec())

    found = {c.shard: (c.read, c.embedded, c.bad) for c in ray_compute.embed(plan, shards)}

    assert found == {0: (6, 6, 0), 1: (5, 4, 1), 2: (3, 2, 1), 3: (6, 6, 0)}
    (picture,) = pq.read_table(tmp_path / "run/bad/000001.parquet").to_pylist()
    assert (picture["row"], picture["key"], picture["reason"]) == (3, "x", "decode")
    assert f"{TRIES} workers died" in picture["detail"]
    (member,) = pq.read_table(tmp_path / "run/bad/000002.parquet").to_pylist()
    assert (member["row"], member["reason"]) == (2, "read")  # what follows it cannot be read
    assert len(store.read_npy("embeddings/000001.npy")) == 4


def test_a_batch_that_kills_its_encoder_is_taken_apart_to_the_row() -> None:
    known = Suspicion()
    known.blame(("encode", 32, 32), "crash")
    assert known.alone == set(range(32, 64))
    for _ in range(TRIES):
        assert not known.poison
        known.blame(("encode", 40, 1), "crash")
    assert set(known.poison) == {40}
    assert known.end is None


def test_a_shard_of_nothing_but_poison_ends_after_a_bounded_number_of_deaths() -> None:
    known, deaths = Suspicion(), 0
    while known.end is None:
        row = next(r for r in range(1000) if r not in known.poison)
        known.blame(("decode", row, 1), "crash")
        deaths += 1
    assert deaths == MAX_DEATHS
    assert known.end == row
    assert set(known.poison) == set(range(row))


def test_an_encoder_that_never_loads_is_no_fault_of_the_shard() -> None:
    known = Suspicion()
    for _ in range(TRIES - 1):
        known.blame(("load", 0, 0), "crash")
    with pytest.raises(RuntimeError, match="step load"):
        known.blame(("load", 0, 0), "crash")
