"""Sums of labelled rows whose order is fixed, so that they are the same bits on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def add_in_order(total: Tensor, label: Tensor, x: Tensor) -> None:
    """``total[label[i]] += x[i]`` for one row after the other; in place.

    A GPU's own ``index_add_`` is atomic additions in any order. There, rows are sorted by label
    behind what was summed before, and each label's are added from the first to the last.
    """
    if total.device.type == "cpu":
        total.index_add_(0, label, x)
        return
    present, place = label.unique(return_inverse=True)
    before = torch.arange(len(present), device=label.device)
    order = torch.cat([before, place]).argsort(stable=True)
    lengths = torch.bincount(place, minlength=len(present)) + 1
    rows = torch.cat([total[present], x])[order]
    total[present] = torch.segment_reduce(rows, "sum", lengths=lengths, axis=0, unsafe=True)
