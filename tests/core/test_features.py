from __future__ import annotations

import numpy as np
import pytest
import torch

from rrcluster.core.features import FeatureMap, Head, fit_projection
from rrcluster.core.head import Groups
from rrcluster.core.model import features_of
from rrcluster.core.shards import MemoryShards


def unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * torch.linspace(2, 0.2, d) + 0.5
    return torch.nn.functional.normalize(x, dim=1).half()


def test_projection_agrees_with_numpy_singular_vectors() -> None:
    x = unit(200, 12)
    found = fit_projection(MemoryShards([x]), 5)
    rows = x.double().numpy()
    centred = rows - rows.mean(0)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:5].T
    np.testing.assert_allclose(np.abs(basis.T @ found.basis.double().numpy()), np.eye(5), atol=1e-3)
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0), atol=1e-5)


def test_features_are_unit_rows() -> None:
    x = unit(100, 12)
    z = features_of(fit_projection(MemoryShards([x]), 4), x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(100))


@pytest.mark.parametrize(("width", "expected"), [(3, 3), (100, 6)])
def test_width_is_the_least_of_the_setting_and_the_width_of_the_rows(width, expected) -> None:
    assert fit_projection(MemoryShards([unit(50, 6)]), width).width == expected


def test_width_is_bounded_by_the_rank_of_the_rows() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(80, 3, generator=g) @ torch.eye(3, 10), dim=1)
    assert fit_projection(MemoryShards([x.half()]), 8).width == 3


def test_identical_rows_have_one_feature_and_no_nan() -> None:
    x = unit(1, 8).repeat(20, 1)
    found = fit_projection(MemoryShards([x]), 4)
    assert found.width == 1
    assert torch.isfinite(features_of(found, x)).all()


def test_projection_is_the_same_bits_on_one_worker_and_on_two() -> None:
    blocks = list(unit(300, 16).split(70))
    one = fit_projection(MemoryShards(blocks), 6)
    two = fit_projection(MemoryShards(blocks, workers=2), 6)
    assert torch.equal(one.basis, two.basis)
    assert torch.equal(one.mean, two.mean)


def test_new_head_changes_nothing() -> None:
    x = unit(60, 10)
    plain = fit_projection(MemoryShards([x]), 5)
    head = Head.new(5, 16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        features_of(plain.with_head(head), x), features_of(plain, x), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("with_head", [False, True])
def test_features_survive_storage(with_head: bool) -> None:
    x = unit(60, 10)
    plain = fit_projection(MemoryShards([x]), 5)
    if with_head:
        plain = plain.with_head(Head.new(5, 16, torch.Generator().manual_seed(0)))
    back = FeatureMap.from_tensors(plain.tensors())
    assert torch.equal(features_of(back, x), features_of(plain, x))


def test_batches_hold_rows_of_their_own_cluster_only() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 2, 3])
    rows, group = Groups.by_label(labels).draw(3, 4, torch.Generator().manual_seed(0))
    assert len(rows) == 12
    for g in range(3):
        assert len(labels[rows[group == g]].unique()) == 1
    assert 7 not in rows.tolist(), "a cluster of one row has nothing to compress"
