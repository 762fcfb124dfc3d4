"""Candidate texts are encoded once and kept in the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from rrcluster.compute import silent
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.models.encoder import EncoderSpec
from rrcluster.stages import texts


class Counting:
    """A tower that counts what it encodes: a text's vector is its length and first letter."""

    fixed = None
    asked: ClassVar[list[str]] = []

    def encode(self, some: Sequence[str]) -> Any:
        self.asked.extend(some)
        return np.array([[len(t), ord(t[0])] for t in some], np.float32)


def test_a_text_is_encoded_once_in_the_life_of_a_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(texts, "load_text_tower", lambda *_: Counting())
    monkeypatch.setattr(texts, "PART", 2)
    Counting.asked = []
    store, spec = Store(str(tmp_path)), EncoderSpec()
    with InProcessCompute(2) as compute:
        first = texts.vectors_of(store, compute, spec, ["cat", "a tree", "cat", "Zug"], silent)
        assert first.tolist() == [[3, 99], [6, 97], [3, 99], [3, 90]]
        again = texts.vectors_of(store, compute, spec, ["Zug", "猫", "cat"], silent)
    assert again.tolist() == [[3, 90], [1, 29483], [3, 99]]
    assert sorted(Counting.asked) == ["Zug", "a tree", "cat", "猫"]


@pytest.mark.parametrize("text", [None, "texts.npz"])
def test_without_a_model_texts_come_from_a_file_or_there_are_none(
    tmp_path, text: str | None
) -> None:
    np.savez(tmp_path / "texts.npz", x=np.eye(3, 8), name=np.array(["cat", "dog", "sea"]))
    spec = EncoderSpec(kind="vectors", text=text and str(tmp_path / text))
    assert texts.text_needs_model(spec) is False
    tower = texts.load_text_tower(spec, "cpu")
    assert (tower.fixed if tower else None) == (["cat", "dog", "sea"] if text else None)
