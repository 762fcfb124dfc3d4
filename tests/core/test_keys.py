import numpy as np
import torch

from rrcluster.core.keys import generator, row_keys


def test_keys_of_counters_are_spread_evenly() -> None:
    ids = np.zeros((20_000, 16), np.uint8)
    ids.view(np.uint64).reshape(-1, 2)[:, 0] = np.arange(20_000)
    share = row_keys(ids, 0, "fit").astype(np.float64) / 2**64
    counts, _ = np.histogram(share, 20, (0, 1))
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_key_depends_on_id_seed_and_purpose_only() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (50, 16)).astype(np.uint8)
    keys = row_keys(ids, 1, "fit")
    assert np.array_equal(row_keys(ids[::-1], 1, "fit"), keys[::-1])
    assert not np.array_equal(row_keys(ids, 2, "fit"), keys)
    assert not np.array_equal(row_keys(ids, 1, "sample"), keys)


def test_both_halves_of_an_id_count() -> None:
    ids = np.zeros((2, 16), np.uint8)
    ids[1, 15] = 1
    first, second = row_keys(ids, 0, "fit")
    assert first != second


def test_generators_leave_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    torch.randn(3, generator=generator(0, "kmeans", 1))
    assert torch.equal(before, torch.random.get_rng_state())
