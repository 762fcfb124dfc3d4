"""One writer at a time, on a disk and on an object store."""

from __future__ import annotations

import json
import threading
import time

import pytest

from rrcluster.io.lease import NAME, Busy, lease
from rrcluster.io.store import Store

TERM = 1.2  # seconds


class LeaseContract:
    """What a lease promises on every kind of store."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    def test_only_one_of_many_creates_a_file(self, store) -> None:
        won: list[int] = []

        def create(i: int) -> None:
            if Store(store.uri, store.options).create("only", f"{i}".encode()):
                won.append(i)

        threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read_bytes("only") == f"{won[0]}".encode()

    def test_a_swap_needs_the_content_that_it_expects(self, store) -> None:
        store.write_bytes("x", b"a")
        assert store.swap("x", b"a", b"b")
        assert not store.swap("x", b"a", b"c")
        assert store.read_bytes("x") == b"b"
        assert not store.swap("absent", b"a", b"c")
        assert not store.exists("absent")

    def test_the_second_job_is_told_who_is_at_work(self, store) -> None:
        second = lease(store, "recluster", TERM)
        with lease(store, "recluster", TERM), pytest.raises(Busy, match="recluster is at work"):
            second.__enter__()
        with lease(store, "recluster", TERM):  # given back: nothing to wait for
            pass

    def test_a_lease_that_nobody_keeps_is_taken_over_whatever_its_clock_says(self, store) -> None:
        told = {
            "id": "x", "what": "recluster", "host": "elsewhere", "pid": 1, "place": "elsewhere",
            "born": "1", "since": "2999-01-01T00:00:00+00:00", "beat": 3,
        }  # fmt: skip
        store.write_json(NAME, told)
        started = time.monotonic()
        with lease(store, "recluster", TERM):
            assert time.monotonic() - started >= TERM
            assert json.loads(store.read_bytes(NAME))["id"] != "x"

    def test_a_holder_that_lost_its_lease_may_not_publish(self, store) -> None:
        with lease(store, "recluster", TERM) as held:
            held.check()
            store.write_json(NAME, {"id": "another", "beat": 0})
            time.sleep(TERM)
            with pytest.raises(Busy, match="took this run over"):
                held.check()
        assert store.read_json(NAME)["id"] == "another"


class TestOnADisk(LeaseContract):
    @pytest.fixture
    def store(self, tmp_path) -> Store:
        return Store(str(tmp_path))

    def test_a_process_of_this_machine_that_is_gone_holds_nothing(self, store) -> None:
        with lease(store, "recluster", TERM):
            told = store.read_json(NAME)
        store.write_json(NAME, told | {"born": "1", "id": "killed"})
        started = time.monotonic()
        with lease(store, "recluster"):
            assert time.monotonic() - started < 5


class TestOnS3(LeaseContract):
    @pytest.fixture
    def store(self, s3) -> Store:
        return Store(s3.bucket(), s3.storage_options)
