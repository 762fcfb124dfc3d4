"""Candidate texts and their vectors, which the run keeps: a text is encoded once in its life."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rrcluster.compute import Compute, Progress, in_order
from rrcluster.config import Config
from rrcluster.io.drawings import vocabulary as drawn_vocabulary
from rrcluster.io.store import Store
from rrcluster.io.tensors import read_arrays, write_arrays
from rrcluster.models.encoder import EncoderSpec
from rrcluster.models.load import load_text_tower, text_needs_model
from rrcluster.models.vocabulary import load_vocabulary
from rrcluster.stages.run import Run

PART = 640  # texts that a worker encodes at once; it loads the model for each part
TEXTS = "model/caption/texts.safetensors"  # x (m, d), and their texts as JSON in bytes


@dataclass(frozen=True)
class Texts:
    """Candidates of every cluster, and phrases that are candidates of some; with unit vectors."""

    general: list[str]
    phrases: list[str]
    general_x: npt.NDArray[np.float32]  # (m, d)
    phrases_x: npt.NDArray[np.float32]  # (q, d)


def candidates(config: Config) -> list[str]:
    """Candidate names: the user's, else those that the encoder has learned, else the shipped."""
    if config.caption.vocabulary is None and config.encoder.kind == "tiny":
        return drawn_vocabulary()
    return load_vocabulary(config.caption.vocabulary)


def candidate_texts(
    run: Run, compute: Compute, phrases: Sequence[str], progress: Progress
) -> Texts | None:
    """All candidates with their vectors; None when there is no text side.

    With ready text vectors (an ``.npz``) its names are the candidates, or those of the user's list
    that it has.
    """
    spec, general = run.config.encoder, candidates(run.config)
    if text_needs_model(spec):
        own = sorted({*phrases} - {*general})
        found = vectors_of(run.store, compute, spec, [*general, *own], progress)
        return Texts(general, own, found[: len(general)], found[len(general) :])
    tower = load_text_tower(spec, "cpu")
    if tower is None or tower.fixed is None:
        return None
    known = set(tower.fixed)
    wanted = [t for t in general if t in known] if run.config.caption.vocabulary else []
    texts = list(dict.fromkeys(wanted or tower.fixed))
    x = tower.encode(texts)
    keep(run.store, texts, x)
    return Texts(texts, [], x, x[:0])


def vectors_of(
    store: Store, compute: Compute, spec: EncoderSpec, texts: Sequence[str], progress: Progress
) -> npt.NDArray[np.float32]:
    """Unit vectors (m, d) of the texts; those that the run does not know yet are encoded, in parts
    of one size, so that nothing depends on the number of workers."""
    rows = kept(store)
    unknown = [text for text in dict.fromkeys(texts) if text not in rows]
    parts = [unknown[i : i + PART] for i in range(0, len(unknown), PART)]
    answers = compute.map(EncodeTexts(spec), parts)
    for part, x in zip(parts, in_order(answers), strict=True):
        rows |= dict(zip(part, x, strict=True))
        progress("caption", 2, 4, f"{len(rows):,} candidate texts encoded")
    if unknown:
        keep(store, list(rows), np.stack(list(rows.values())))
    return np.stack([rows[text] for text in texts])


def keep(store: Store, texts: Sequence[str], x: npt.NDArray[np.float32]) -> None:
    names = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    write_arrays(store, TEXTS, {"x": x, "texts": names})


def kept(store: Store) -> dict[str, npt.NDArray[np.float32]]:
    """Vectors that the run has, by their text."""
    if not store.exists(TEXTS):
        return {}
    found = read_arrays(store, TEXTS)
    return dict(zip(json.loads(found["texts"].tobytes()), found["x"], strict=True))


@dataclass(frozen=True)
class EncodeTexts:
    """Map: unit vectors of some texts."""

    encoder: EncoderSpec

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        tower = load_text_tower(self.encoder, "cpu")
        assert tower is not None, "asked for only where there is a model"
        return tower.encode(texts)
