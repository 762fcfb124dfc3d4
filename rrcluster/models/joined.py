"""Two encoders as one: their unit vectors side by side, scaled so that the row is a unit vector.

A cosine of joined rows is the mean of the two cosines, so both spaces count alike in clustering.
The first encoder's part is the one that texts are compared with (``shared_part``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rrcluster.models.encoder import Encoder, EncoderSpec, PixelFacts
from rrcluster.records import UserError

# Of the second encoder too, unless it says otherwise.
_INHERITED = ("precision", "batch_size", "compile")


def second(spec: EncoderSpec) -> EncoderSpec:
    """The settings of the encoder beside this one. Raises UserError for what cannot be joined."""
    known = {f.name for f in dataclasses.fields(EncoderSpec)} - {"beside"}
    if unknown := sorted({*spec.beside} - known):
        remedy = f"no such setting; an encoder beside another has {', '.join(sorted(known))}"
        raise UserError(f"encoder.beside.{unknown[0]}", spec.beside[unknown[0]], remedy)
    if spec.kind == "timm" and spec.text is None and spec.beside.get("kind") != "timm":
        remedy = "name the encoder with a text tower first: captions use the first one's space"
        raise UserError("encoder.beside", spec.beside.get("model"), remedy)
    inherited = {name: getattr(spec, name) for name in _INHERITED}
    return EncoderSpec(**(inherited | spec.beside))


class JoinedEncoder(Encoder):
    """``[x / sqrt(2), y / sqrt(2)]`` of two encoders' unit vectors x and y."""

    def __init__(self, first: Encoder, second: Encoder) -> None:
        self._first, self._second = first, second
        self.name = f"{first.name}+{second.name}"
        self.width = first.width + second.width
        both = f"{first.weights_hash}{second.weights_hash}"
        self.weights_hash = hashlib.sha256(both.encode()).hexdigest()
        self.image_size, self.resize, self.interpolation = _facts(first)
        self._same = _facts(first) == _facts(second)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of one encoder where both look at the same pixels; else both one after the other."""
        if self._same:
            return self._first.shape
        return (math.prod(self._first.shape) + math.prod(self._second.shape),)

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        views = [pixels, pixels]
        if not self._same:
            n, cut = len(pixels), math.prod(self._first.shape)
            views = [
                pixels[:, :cut].reshape(n, *self._first.shape),
                pixels[:, cut:].reshape(n, *self._second.shape),
            ]
        x, y = self._first.encode_images(views[0]), self._second.encode_images(views[1])
        rows: npt.NDArray[np.float32] = np.concatenate([x, y], axis=1) * np.float32(0.5**0.5)
        return rows


def shared_part(x: Tensor, width: int) -> Tensor:
    """Of rows (n, d), or sums of rows, the part (n, width) that lies in the space of texts.

    Joined rows hold the first encoder's unit vector divided by sqrt(2); others are all of it.
    """
    return x if x.shape[1] == width else x[:, :width] * math.sqrt(2.0)


def _facts(encoder: Encoder) -> PixelFacts:
    return PixelFacts(encoder.image_size, encoder.resize, encoder.interpolation)


def distinct(views: Sequence[PixelFacts]) -> tuple[PixelFacts, ...]:
    """What has to be made of each image."""
    return tuple(dict.fromkeys(views))
