"""Ready text vectors, and prompts around a tower that is a toy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rrcluster.models.encoder import EncoderSpec
from rrcluster.models.load import load_text_tower
from rrcluster.models.text import FixedTexts, PromptedTexts
from rrcluster.records import UserError


def test_ready_vectors_are_normalised_and_found_by_name() -> None:
    tower = FixedTexts(["cat", "dog"], np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float16))
    assert tower.fixed == ["cat", "dog"]
    assert np.allclose(tower.encode(["dog", "cat", "dog"]), [[0, 1], [0.6, 0.8], [0, 1]])


def test_a_name_without_a_vector_is_the_users_mistake() -> None:
    tower = FixedTexts(["cat"], np.ones((1, 2)))
    with pytest.raises(UserError, match="'horse'"):
        tower.encode(["horse"])


def test_a_file_without_the_arrays_is_the_users_mistake(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", vectors=np.ones((1, 2)))
    np.savez(tmp_path / "u.npz", x=np.ones((2, 2)), name=np.array(["one"]))
    for text in (str(tmp_path / "t.npz"), str(tmp_path / "u.npz"), "/none.npz", "something"):
        with pytest.raises(UserError) as caught:
            load_text_tower(EncoderSpec(kind="vectors", text=text), "cpu")
        assert caught.value.setting == "encoder.text"


def test_pickled_names_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.ones((1, 2)), name=np.array(["cat"], dtype=object))
    with pytest.raises(UserError, match=r"encoder\.text"):
        load_text_tower(EncoderSpec(kind="vectors", text=str(tmp_path / "t.npz")), "cpu")


def test_templates_are_averaged_as_unit_vectors() -> None:
    """A tower whose vector is (length, 1) of the prompt: by hand."""
    tower = PromptedTexts(
        lambda tokens: tokens.float(),
        lambda texts: torch.tensor([[len(text), 1] for text in texts]),
        "cpu",
        torch.float32,
        templates=("{}", "my {}"),
        batch_size=3,
    )
    a, b = np.array([3.0, 1.0]), np.array([6.0, 1.0])
    mean = a / np.linalg.norm(a) + b / np.linalg.norm(b)
    rows = tower.encode(["cat", "kitten"])
    assert np.allclose(rows[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
