"""A device that is not there: its tensors are computed on the CPU, but mixing the two is an error.

``with pretend_device():`` makes ``x.to("meta")`` a tensor of the device; what is computed from it
stays there until ``.cpu()``. Code for GPUs runs through it as it would on one, but for the kernels
that only a GPU has: those are given as ``kernels`` of CPU tensors by their module and name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"


class Far(Tensor):
    """A tensor of the device; ``near`` holds its numbers."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        far = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), dtype=near.dtype, device=DEVICE
        )
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
    device = kwargs.get("device")
    to = None if device is None else torch.device(device).type
    far = any(isinstance(a, Far) for a in tensors)
    if not far and to != DEVICE:
        return function(*args, **kwargs)
    name = function.name()
    moves = name in ("aten::_to_copy", "aten::copy_")
    if not moves:
        mixed = [a for a in tensors if not isinstance(a, Far) and a.dim() > 0]
        assert not mixed, f"{name} of tensors on two devices"
    here = dict(kwargs) if device is None else {**kwargs, "device": "cpu"}
    answer = function(*tree_map(_near, args), **tree_map(_near, here))
    if name == "aten::copy_":
        return args[0]
    if name == "aten::_to_copy" and to not in (None, DEVICE):
        return answer
    mine = {id(a.near): a for a in tensors if isinstance(a, Far)}  # what was changed in place
    return tree_map(lambda a: mine[id(a)] if id(a) in mine else _far(a), answer)


def _near(a: Any) -> Any:
    return a.near if isinstance(a, Far) else a


def _far(a: Any) -> Any:
    return Far(a) if isinstance(a, Tensor) else a


@contextmanager
def pretend_device(kernels: dict[str, Callable[..., Any]]) -> Iterator[str]:
    """Gives the device's name."""

    def lifted(kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: tree_map(_far, kernel(*map(_near, args)))

    patches = [patch(name, lifted(kernel)) for name, kernel in kernels.items()]
    for each in patches:
        each.start()
    try:
        with _Mode():
            yield DEVICE
    finally:
        for each in patches:
            each.stop()
