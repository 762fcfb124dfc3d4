"""A small CLIP with random weights as an open_clip folder, and a machine without network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESSING = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.2, 0.3],
    "resize_mode": "squash",
    "interpolation": "bilinear",
}


class NetworkUsed(AssertionError):
    """Somebody opened a connection."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection attempt fails the test."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise NetworkUsed("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``open_clip_config.json`` and random weights beside it."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    config = {"model_cfg": ARCHITECTURE, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**json.loads(json.dumps(ARCHITECTURE)))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture
def pixels() -> npt.NDArray[np.uint8]:
    """40 random images of the small CLIP's size."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
