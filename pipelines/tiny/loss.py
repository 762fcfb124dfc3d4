"""The two losses of the tiny encoder: name every attribute, and match captions with pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.tiny.texts import ANY, DISTRACTOR, LISTS, Claims, kinds_of

# Weight of an attribute in the naming loss, and the mass its target spreads over all names. Easy
# attributes weigh less and are spread, else they fill the vectors and objects get no room. With
# 0.25, 0.1 for textures and 0.15, 0.1 for colours these reached 0.57 and 0.94 in zero-shot.
NAMING = {
    "object": (1.0, 0.0),
    "colour": (0.35, 0.03),
    "background": (0.15, 0.1),
    "texture": (0.7, 0.0),
}


def name_all(
    images: Tensor, names: Mapping[str, Tensor], strangers: Tensor, truth: Claims, scale: Tensor
) -> tuple[Tensor, float]:
    """The weighted naming losses of every kind, and the share of images whose object was found.

    ``images`` (n, d), ``names`` (values, d) of every kind, ``strangers`` (s, d), ``truth`` (n, 6).
    """
    total, share = torch.zeros(()), 0.0
    for kind, vectors in names.items():
        weight, spread = NAMING[kind]
        answers = torch.from_numpy(truth[:, list(LISTS).index(kind)])
        loss, guesses = naming_loss(images, vectors, strangers, answers, scale, spread)
        total = total + weight * loss
        if kind == "object":
            share = float((guesses == answers).float().mean())
    return total, share


def match_all(
    images: Tensor, texts: Tensor, claims: Claims, truth: Claims, scale: Tensor
) -> Tensor:
    """The mean matching loss of ``texts`` (m, d): captions with ``claims`` (c, 6), then strangers.

    ``truth`` (n, 6) are the attributes of ``images`` (n, d).
    """
    kinds = np.full(len(texts), DISTRACTOR)
    kinds[: len(claims)] = kinds_of(claims)
    agrees = (claims[None] == ANY) | (claims[None] == truth[:, None])
    true = np.zeros((len(truth), len(texts)), dtype=np.float32)
    true[:, : len(claims)] = agrees.all(axis=2)
    losses = matching_loss(images, texts, torch.from_numpy(true), torch.from_numpy(kinds), scale)
    return torch.stack(list(losses.values())).mean()


def naming_loss(
    images: Tensor, names: Tensor, strangers: Tensor, answers: Tensor, scale: Tensor, spread: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the right name of one kind among all its names, and the images' guesses.

    ``images`` (n, d), ``names`` (m, d) and ``strangers`` (s, d) are unit rows; strangers are never
    the answer. ``answers`` (n,) in 0..m-1. The target gives ``spread`` of its mass to all m names
    alike, which bounds how far apart the names of an easy kind are worth pushing.
    """
    scores = scale * images @ torch.cat([names, strangers]).T
    logs = functional.log_softmax(scores, dim=1)[:, : len(names)]
    loss = functional.nll_loss(logs, answers)
    return (1 - spread) * loss - spread * logs.mean(), logs.argmax(dim=1)


def matching_loss(
    images: Tensor, texts: Tensor, true: Tensor, kinds: Tensor, scale: Tensor
) -> dict[int, Tensor]:
    """Cross-entropies between unit rows, spread evenly over all true pairs, one per kind of text.

    ``images`` (n, d), ``texts`` (m, d), ``true`` (n, m) in 0/1, ``kinds`` (m,): texts of one kind
    tell the same attributes, so that they compete. Those of kind DISTRACTOR compete with every
    kind and are never the answer. Each entry is the mean of text-of-image and image-of-text.
    """
    logits = scale * images @ texts.T
    losses: dict[int, Tensor] = {}
    for kind in kinds.unique().tolist():
        if kind == DISTRACTOR:
            continue
        asked = (kinds == kind) & true.any(dim=0)
        offered = asked | (kinds == DISTRACTOR)
        told = true[:, asked].any(dim=1)  # images with a true text of this kind
        ways = (
            (logits[told][:, offered], true[told][:, offered]),
            (logits[:, asked].T, true[:, asked].T),
        )
        there, back = (
            functional.cross_entropy(scores, truth / truth.sum(dim=1, keepdim=True))
            for scores, truth in ways
        )
        losses[kind] = (there + back) / 2
    return losses
