"""k-means on a GPU is k-means on a CPU to the bit: its kernel, its sums, and where tensors lie."""

import os
import subprocess
import sys
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from pretend_device import DEVICE, pretend_device

from pipelines.compute import start_compute
from rrcluster.config import load
from rrcluster.core import anneal as annealing
from rrcluster.core.bottom_up import Level, bottom_up
from rrcluster.core.grid import Codebook
from rrcluster.core.kmeans import SeedingSpec, fit
from rrcluster.core.shards import MemoryShards
from rrcluster.core.summing import add_in_order
from rrcluster.records import UserError


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(40, d, generator=g), dim=1)
    x = centres[torch.randint(40, (n,), generator=g)] + torch.randn(n, d, generator=g) / d**0.5
    return torch.nn.functional.normalize(x, dim=1).half()


def nearest(codes: torch.Tensor, centroids: torch.Tensor, half: torch.Tensor):
    """What the kernel answers, in 64-bit numbers."""
    best, label = (codes.long() @ centroids.long().T - half).max(1)
    return label, best.int()


class InTurn:
    """Instead of threads, in which the pretended device is not there."""

    def __init__(self, *args, **kwargs) -> None:
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        pass


@contextmanager
def on_pretend_device():
    with (
        pretend_device({"rrcluster.core.fused.nearest": nearest}) as device,
        patch.object(annealing, "ThreadPoolExecutor", InTurn),
    ):
        yield device


KERNEL = """
import torch
from rrcluster.core import fused
from rrcluster.core.grid import Codebook
g = torch.Generator().manual_seed(0)
for n, k, d in [(300, 257, 96), (1, 1, 64), (65, 1100, 70), (0, 3, 64)]:
    x = torch.randint(-127, 128, (n, d), dtype=torch.int8, generator=g)
    c = torch.randint(-127, 128, (k, d), dtype=torch.int8, generator=g)
    c[k // 2] = c[k // 3]  # the first of equals
    x[: n // 2] = c[k // 2]
    book = Codebook(c)
    label, best = fused.nearest(x, book._codes, book._half)
    expected = book.nearest(x)
    assert torch.equal(label, expected[0]) and torch.equal(best, expected[1]), (n, k, d)
print("equal")
"""


def test_the_fused_kernel_answers_like_the_codebook_of_a_cpu_to_the_bit() -> None:
    pytest.importorskip("triton")
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", KERNEL], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.parametrize("shape", [(), (7,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_in_order_are_the_same_bits_where_additions_are_not_atomic(shape, dtype) -> None:
    g = torch.Generator().manual_seed(1)
    label = torch.randint(5, (400,), generator=g) * 2  # odd ones get nothing
    x = torch.randn(400, *shape, generator=g, dtype=dtype) * 10 ** torch.randn(
        400, *([1] * len(shape)), generator=g, dtype=dtype
    )
    here = torch.randn(10, *shape, generator=g, dtype=dtype)
    before = here.clone()
    with on_pretend_device():
        there = before.to(DEVICE)
        add_in_order(there, label.to(DEVICE), x.to(DEVICE))
        found = there.cpu()
    add_in_order(here, label, x)
    assert torch.equal(found, here)
    assert torch.equal(found[1::2], before[1::2])


def fitted(x: torch.Tensor, k: int, device: str, **settings) -> torch.Tensor:
    weights = (
        list((torch.arange(len(x)) % 3 + 1).split(900)) if settings.pop("weighted", 0) else None
    )
    spec = SeedingSpec(anneal_from=0, **settings)
    shards = MemoryShards(list(x.split(900)), 2, weights, device=device)
    found = fit(shards, k, spec, 3)
    return torch.cat([found.centroids, found.count[:, None], found.inertia[:, None]], 1)


@pytest.mark.parametrize(
    "settings", [{}, {"metric": "spherical"}, {"epochs": 0.0}, {"sketch": 1}, {"weighted": 1}]
)
def test_a_fit_on_a_device_is_the_fit_on_the_cpu_to_the_bit(settings, monkeypatch) -> None:
    x, settings = rows(3000, 64), dict(settings)
    if settings.pop("sketch", 0):
        monkeypatch.setattr(annealing, "SKETCHED", 50)
    here = fitted(x, 60, "cpu", **settings)
    with on_pretend_device() as device:
        there = fitted(x, 60, device, **settings)
    assert torch.equal(here, there)


def test_narrow_rows_are_fitted_on_the_cpu_whatever_the_device() -> None:
    x = rows(600, 16)
    with on_pretend_device() as device:
        there = fitted(x, 12, device)
    assert torch.equal(there, fitted(x, 12, "cpu"))


@pytest.mark.parametrize("setting", ["gpus_per_worker", "gpus_per_holder"])
def test_a_gpu_that_is_not_there_is_the_users_mistake(setting, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overrides = ["compute=in_process", f"compute.{setting}=1"]
    with pytest.raises(UserError, match=rf"compute\.{setting}.*no GPU"):
        start_compute(load(overrides))


def test_bottom_up_levels_on_a_device_are_those_on_the_cpu() -> None:
    x, levels = rows(500, 64), [Level(30, resamplings=1, sample_size=3), Level(5)]
    spec = SeedingSpec(anneal_from=0)
    here = bottom_up(MemoryShards([x], 2), levels, spec, 1)
    with on_pretend_device() as device:
        there = bottom_up(MemoryShards([x], 2, device=device), levels, spec, 1)
    for one, other in zip(here.centroids, there.centroids, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(here.paths, there.paths)


def test_the_pretended_device_refuses_what_a_device_refuses() -> None:
    with on_pretend_device() as device, pytest.raises(AssertionError, match="two devices"):
        torch.ones(3).to(device) + torch.ones(3)
    assert Codebook(torch.ones(2, 64, dtype=torch.int8)).nearest(
        torch.ones(1, 64, dtype=torch.int8)
    )[0].tolist() == [0]
