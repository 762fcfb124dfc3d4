"""Rows of a fit in a file: the same rows, without their memory."""

from __future__ import annotations

import ctypes
import errno
import logging
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from shards_contract import ShardsContract

from rrcluster.core.hierarchy import top_down
from rrcluster.core.kmeans import SeedingSpec
from rrcluster.core.shards import MemoryShards
from rrcluster.io import scratch as scratch_module
from rrcluster.io.scratch import ALLOCATOR, Scratch
from rrcluster.local import InProcessCompute


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1).half()


class TestInAFile(ShardsContract):
    @contextmanager
    def make(self, blocks):
        with closing(Scratch(iter(blocks), 0)) as scratch:
            yield MemoryShards(scratch.blocks, 2, let_go=scratch.let_go)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fit_on_rows_in_a_file_gives_the_bits_of_one_in_memory(workers: int) -> None:
    blocks = list(rows(6000, 64).split(1000))
    spec = SeedingSpec(anneal_from=100, start_rows=4)
    held = top_down(MemoryShards(blocks), 50, spec, 3)
    with closing(Scratch(blocks, 0)) as scratch:
        shards = MemoryShards(scratch.blocks, workers, let_go=scratch.let_go)
        found = top_down(shards, 50, spec, 3)
    assert torch.equal(found.leaves, held.leaves)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_rows_in_a_file(workers: int) -> None:
    blocks = (rows(16_384, 256, b) for b in range(12))  # 8 MiB each
    with closing(Scratch(blocks, 0)) as scratch:
        shards = MemoryShards(scratch.blocks, workers, let_go=scratch.let_go)
        before, most = memory("RssFile"), 0
        for _ in shards.map(lambda x: float(x.float().sum())):
            most = max(most, memory("RssFile") - before)
        whole = sum(x.nbytes for x in scratch.blocks)
        assert most < whole / 2
        assert memory("RssFile") - before < whole / 10
        sample = shards.rows(shards.num_rows)
        for start in range(0, shards.num_rows, 10_000):
            sample.batch(start, 10_000)[0].float().sum()
            assert memory("RssFile") - before < whole / 3
        sample.take(torch.arange(0, shards.num_rows, 7))
        assert memory("RssFile") - before < whole / 10


def test_rows_that_were_let_go_of_are_there_again_also_after_closing() -> None:
    x = rows(100, 8)
    scratch = Scratch(x.split(30), 0)
    held = scratch.blocks[1]
    scratch.let_go(1)
    assert torch.equal(held, x[30:60])
    scratch.let_go()
    scratch.close()
    assert torch.equal(held, x[30:60])


def test_few_rows_need_no_file() -> None:
    x = rows(100, 8)
    scratch = Scratch([x[:40], x[40:]], x.nbytes)
    assert [part.data_ptr() for part in scratch.blocks] == [x.data_ptr(), x[40:].data_ptr()]
    scratch.let_go()


def test_where_the_disk_is_full_rows_stay_in_memory_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = rows(100, 8)
    made = tempfile.TemporaryFile

    class Full:
        def __init__(self, file) -> None:
            self.file, self.left = file, 2

        def __getattr__(self, name: str):
            return getattr(self.file, name)

        def write(self, content) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(content[: len(content) // 2 or 1])  # short at first

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **how: Full(made(**how)))
    with caplog.at_level(logging.WARNING), closing(Scratch(x.split(20), 0)) as scratch:
        scratch.let_go()
        assert torch.equal(torch.cat(scratch.blocks), x)
    assert caplog.text.count("stay in memory") == 1
    assert "TMPDIR" in caplog.text


def test_a_job_in_this_process_keeps_many_rows_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(40_000, 1024)  # 78 MiB
    files = []
    made = tempfile.TemporaryFile
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda **how: files.append(made(**how)) or files[-1]
    )
    blocks = x.split(8192)
    with InProcessCompute(2) as compute, compute.hold(lambda b: blocks[b], len(blocks)) as shards:
        assert torch.equal(shards.head(40_000), x)
        assert not files[0].closed
    assert files[0].closed


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_letting_go_gives_back_what_the_c_library_keeps() -> None:
    blocks = [rows(64, 64)]
    with closing(Scratch(blocks, 0)) as scratch:
        scratch.let_go()
        small = [torch.zeros(16_384) for _ in range(600)]  # 64 KiB each, none mapped on its own
        pinned = small[::100]
        del small
        held = memory("RssAnon")
        scratch._trimmed = 0.0
        scratch.let_go()
        assert memory("RssAnon") < held - (16 << 20)
    assert len(pinned) == 6


@pytest.mark.parametrize("named", [[], ["MALLOC_ARENA_MAX"], list(ALLOCATOR)])
def test_threads_share_memory_but_for_what_the_environment_sets(
    named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(scratch_module, "_of_glibc", lambda *what: asked.append(what))
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    for name in named:
        monkeypatch.setenv(name, "4")
    with closing(InProcessCompute(1)):
        assert asked == [("mallopt", *ALLOCATOR[name]) for name in ALLOCATOR if name not in named]


def memory(kind: str) -> int:
    """Bytes in memory: RssFile of mapped files, RssAnon of everything that is allocated."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024
