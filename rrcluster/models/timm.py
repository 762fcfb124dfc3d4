"""Image encoders of timm (DINO, ConvNeXt, MobileNet, ...): pooled features, optionally projected.

Without a projection the features have no text side; ``encoder.text`` then has nothing to compare.
"""

from __future__ import annotations

import difflib
import logging
from typing import Any

import numpy as np
import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from rrcluster.models.encoder import (
    EncoderSpec,
    Loaded,
    Look,
    existing_file,
    hash_weights,
    look_from,
    read_arrays,
)
from rrcluster.records import UserError

log = logging.getLogger(__name__)


class PooledFeatures(nn.Module):
    """Pooled features before any classifier, transformed and projected; float32 after pooling."""

    def __init__(
        self, model: nn.Module, transform: str, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.model, self.transform = model, transform
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.model
        x: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        with torch.autocast(x.device.type, enabled=False):  # a small product, worth its bits
            x = x.float()
            if self.transform == "sqrt_unit":
                # max(x, 0): the transform is for rectified features; others may dip below zero.
                x = nn.functional.normalize(x.clamp_min(0.0).sqrt(), dim=-1)
            if isinstance(self.weight, Tensor) and isinstance(self.bias, Tensor):
                x = x @ self.weight + self.bias
        return x


def look(spec: EncoderSpec) -> Look:
    """Preprocessing as timm has it for this model and tag; loads no weights.

    timm's evaluation crop keeps the central ``crop_pct`` of the short side; here the whole short
    side is kept, since what is embedded should be what the picture shows.
    """
    config: Any = timm.get_pretrained_cfg(_full_name(spec))
    resolve: Any = resolve_data_config
    facts = resolve(pretrained_cfg=config.to_dict() if config else None, args={"_": 0})
    side = spec.model_options.get("img_size") or facts["input_size"][1:]
    way = "squash" if facts["crop_mode"] == "squash" else "center_crop"
    return look_from(spec, side, way, facts["interpolation"], facts["mean"], facts["std"])


def load_images(spec: EncoderSpec, device: str) -> Loaded:
    """The pooled-feature module on its device."""
    name, facts = _full_name(spec), look(spec)
    model: Any = _load(spec, name)
    weight = bias = None
    if spec.projection:
        w, b = read_arrays("encoder.projection", spec.projection, ("W", "b"))
        weight, bias = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (w, b))
        if weight.shape[0] != model.num_features and weight.shape[0] != model.head_hidden_size:
            remedy = f"W has {weight.shape[0]} rows, {name} has {model.head_hidden_size} features"
            raise UserError("encoder.projection", spec.projection, remedy)
    module = PooledFeatures(model, spec.feature_transform, weight, bias).eval()
    # The classifier is never asked, and may have been left at random: it does not count.
    heads = (model.pretrained_cfg or {}).get("classifier") or ()
    unused = tuple(f"model.{h}." for h in ((heads,) if isinstance(heads, str) else heads))
    used = ((n, t) for n, t in module.state_dict().items() if not n.startswith(unused))
    weights_hash = hash_weights(used)
    placed = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Loaded(f"timm/{name}", placed, facts, weights_hash)


def _full_name(spec: EncoderSpec) -> str:
    """``model.tag``, or the user's error with names that are near."""
    model = str(spec.model)
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.5)
        remedy = f"timm has no such model; near: {', '.join(near) or 'nothing'}"
        raise UserError("encoder.model", model, remedy)
    tag = spec.pretrained or tag
    name = f"{architecture}.{tag}" if tag else architecture
    known = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        remedy = f"{architecture} has no such tag (it has: {', '.join(known) or 'none'}; or null)"
        raise UserError("encoder.pretrained", tag, remedy)
    return name


def _load(spec: EncoderSpec, name: str) -> nn.Module:
    """The model on CPU in float32, with the checkpoint's or the hub's weights."""
    overlay: dict[str, Any] = {}
    if spec.checkpoint:
        overlay["file"] = existing_file("encoder.checkpoint", spec.checkpoint)
        if spec.model_options.get("num_classes"):
            # The file has the classifier that the model is asked for: load it strictly.
            overlay["num_classes"] = spec.model_options["num_classes"]
    elif not spec.pretrained:
        remedy = f"{name} needs weights: a local file, or encoder.pretrained=TAG to download them"
        raise UserError("encoder.checkpoint", "null", remedy)
    else:
        log.info("weights of %s come from the hub", name)
    try:
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **spec.model_options
        )
    except TypeError as error:
        raise UserError("encoder.model_options", spec.model_options, str(error)) from error
    except Exception as error:  # a foreign file or the hub's client can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if spec.checkpoint:
            if "weights_only" in reason:  # timm's own advice is to switch safety off
                reason = "it is neither .safetensors nor a weights-only PyTorch file; convert it"
            remedy = f"cannot be read into {name} ({reason})"
            raise UserError("encoder.checkpoint", spec.checkpoint, remedy) from error
        remedy = f"the download failed ({reason}); give the file as encoder.checkpoint=PATH as well"
        raise UserError("encoder.pretrained", spec.pretrained, remedy) from error
