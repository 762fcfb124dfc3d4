"""From settings to a model: the one place that knows which module serves which kind.

open_clip and timm are imported only where a model is asked for: they take seconds, and most
processes of a job (the driver, k-means workers, writers) never need them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from rrcluster.models.encoder import (
    Encoder,
    EncoderSpec,
    PixelFacts,
    TorchEncoder,
    check,
    dtype_for,
    read_arrays,
)
from rrcluster.models.joined import JoinedEncoder, distinct, second
from rrcluster.models.text import FixedTexts, TextTower


def load_encoder(spec: EncoderSpec, device: str) -> Encoder:
    """The encoder with its weights on ``device`` ("cpu", "cuda", "cuda:1")."""
    if spec.beside:
        beside = second(spec)
        first = load_encoder(replace(spec, beside={}), device)
        return JoinedEncoder(first, load_encoder(beside, device))
    check(spec)
    dtype_for(spec.precision, device)  # a wrong precision is said before weights are read
    if spec.kind == "timm":
        from rrcluster.models import timm

        loaded = timm.load_images(spec, device)
    else:
        from rrcluster.models import clip

        loaded = clip.load_images(spec, device)
    return TorchEncoder(loaded, spec, device)


def pixel_facts(spec: EncoderSpec) -> PixelFacts:
    """(size, resize, interpolation) of the (first) model, without loading its weights."""
    check(spec)
    if spec.kind == "timm":
        from rrcluster.models import timm

        return timm.look(spec).pixels
    from rrcluster.models import clip

    return clip.look(spec).pixels


def views(spec: EncoderSpec) -> tuple[PixelFacts, ...]:
    """What has to be made of each image: one entry, or two where joined encoders look otherwise."""
    if not spec.beside:
        return (pixel_facts(spec),)
    return distinct([pixel_facts(spec), pixel_facts(second(spec))])


def text_needs_model(spec: EncoderSpec) -> bool:
    """Whether text vectors come from a model that must run, and not from a file or nowhere."""
    if spec.text is None:
        return spec.kind in ("tiny", "open_clip")
    return not spec.text.endswith(".npz")


def load_text_tower(spec: EncoderSpec, device: str) -> TextTower | None:
    """Where captions get text vectors from; None when the encoder has no text side."""
    if spec.text is not None and spec.text.endswith(".npz"):
        x, names = read_arrays("encoder.text", spec.text, ("x", "name"))
        return FixedTexts([str(name) for name in names], cast(Any, x))
    if not text_needs_model(spec):
        return None
    from rrcluster.models import clip

    if spec.text is None:
        return clip.load_texts(spec, device)
    return clip.load_named_tower(spec, device)
