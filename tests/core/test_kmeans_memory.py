"""Memory of a worker in a pass of k-means is what the cost model says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rrcluster.core.costs import kmeans_memory

PASS = """
import sys
from pathlib import Path
import torch
from rrcluster.core.anneal import Space
from rrcluster.core.kmeans import ClusterSums
from rrcluster.core.shards import MemoryShards, Rows

def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024

torch.set_num_threads(1)
n, d, k = map(int, sys.argv[1:])
before = status("VmRSS")
x = torch.full((n, d), 0.5, dtype=torch.float16)
x[:100] = torch.randn(100, d).half()
statistic = ClusterSums(Space.of(Rows([x[:100]])), torch.ones(k, d))
MemoryShards(list(x.split(n // 4))).total(statistic)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("n", "d", "k"), [(8192, 512, 8000), (100_000, 512, 1000)])
def test_a_pass_takes_the_memory_that_the_formula_says(n: int, d: int, k: int) -> None:
    command = [sys.executable, "-c", PASS, str(n), str(d), str(k)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(kmeans_memory(n, d, k), rel=0.25)
