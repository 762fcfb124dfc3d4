"""CLIP models through open_clip: named architectures, local folders, hub tags, and the tiny one.

Nothing is downloaded unless the settings name a hub tag (``encoder.pretrained``) or a hub model
(``hf-hub:``), and that is logged.
"""

from __future__ import annotations

import difflib
import json
import logging
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from rrcluster.models.encoder import (
    EncoderSpec,
    Loaded,
    Look,
    dtype_for,
    existing_file,
    hash_weights,
    look_from,
)
from rrcluster.models.text import PromptedTexts, TextTower
from rrcluster.records import UserError

log = logging.getLogger(__name__)

LOCAL, HUB = "local-dir:", "hf-hub:"
# What reading a foreign or damaged weights file can raise.
LOAD_ERRORS = (
    RuntimeError,
    ValueError,
    OSError,
    KeyError,
    AssertionError,
    EOFError,
    pickle.UnpicklingError,
)


class ImageTower(nn.Module):
    """The image half of a CLIP model as a module of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(images)  # type: ignore[operator]
        return features


def look(spec: EncoderSpec) -> Look:
    """Preprocessing as open_clip has it for this model and tag; loads no weights."""
    spec = _as_open_clip(spec)
    assert spec.model is not None
    facts = asdict(PreprocessCfg())
    if spec.model.startswith((LOCAL, HUB)):
        config = _packaged_config(spec.model)
        architecture, own = config["model_cfg"], config.get("preprocess_cfg", {})
    else:
        architecture, own = _architecture(spec.model), _tag(spec)
    facts |= {key: value for key, value in own.items() if key in facts}
    facts["size"] = architecture["vision_cfg"].get("image_size", facts["size"])
    ways = {"shortest": "center_crop", "squash": "squash"}
    way = ways.get(facts["resize_mode"], facts["resize_mode"])
    return look_from(spec, facts["size"], way, facts["interpolation"], facts["mean"], facts["std"])


def load_images(spec: EncoderSpec, device: str) -> Loaded:
    """The image tower on its device."""
    facts, model = look(spec), _load(_as_open_clip(spec))
    # The text side counts too: captions depend on it.
    weights_hash = hash_weights(model.state_dict().items())
    name = "tiny" if spec.kind == "tiny" else f"open_clip/{spec.model}"
    return Loaded(name, ImageTower(model).to(device).eval(), facts, weights_hash)


def load_texts(spec: EncoderSpec, device: str) -> TextTower:
    """The text tower of the same model."""
    model: Any = _load(_as_open_clip(spec)).to(device).eval()
    if spec.kind == "tiny":
        from rrcluster.models.tiny import load_tokenizer

        tokenize: Any = load_tokenizer()
    else:
        tokenize = _tokenizer(str(spec.model))
    return PromptedTexts(model.encode_text, tokenize, device, dtype_for(spec.precision, device))


def load_named_tower(spec: EncoderSpec, device: str) -> TextTower:
    """The tower that ``encoder.text`` names: ``tiny``, ``model:tag``, ``model:path``, a folder."""
    assert spec.text is not None
    model, _, weights = spec.text.partition(":")
    if spec.text == "tiny":
        named = EncoderSpec(kind="tiny", precision=spec.precision)
    elif spec.text.startswith((LOCAL, HUB)):
        named = EncoderSpec(kind="open_clip", model=spec.text, precision=spec.precision)
    elif not weights:
        remedy = "give an .npz of vectors (x, name), or an open_clip model:tag or model:path"
        raise UserError("encoder.text", spec.text, remedy)
    else:
        is_tag = open_clip.is_pretrained_cfg(model.replace("/", "-"), weights)
        named = EncoderSpec(
            kind="open_clip",
            model=model,
            precision=spec.precision,
            pretrained=weights if is_tag else None,
            checkpoint=None if is_tag else weights,
        )
    try:
        return load_texts(named, device)
    except UserError as error:
        raise UserError("encoder.text", spec.text, f"{error.value}: {error.remedy}") from error


def _load(spec: EncoderSpec) -> nn.Module:
    """The whole model on CPU in float32."""
    assert spec.model is not None
    common: dict[str, Any] = {
        "force_image_size": spec.image_size,
        "require_pretrained": True,
        "pretrained_text": False,  # never half a model from elsewhere
        **spec.model_options,
    }
    if spec.model.startswith((LOCAL, HUB)):
        if spec.checkpoint or spec.pretrained:
            remedy = f"leave it out: {spec.model} brings its own weights"
            key = "checkpoint" if spec.checkpoint else "pretrained"
            raise UserError(f"encoder.{key}", spec.checkpoint or spec.pretrained, remedy)
        _packaged_config(spec.model)
        try:
            packaged: nn.Module = open_clip.create_model(spec.model, weights_only=True, **common)
            return packaged
        except LOAD_ERRORS as error:
            raise UserError("encoder.model", spec.model, _first_line(error)) from error
    architecture = spec.model.replace("/", "-")
    _architecture(spec.model)
    tag = _tag(spec)
    path = _weights_path(spec, tag)
    # OpenAI's and some other weights were trained with x * sigmoid(1.702 x) for GELU.
    common["force_quick_gelu"] = bool(tag.get("quick_gelu", False))
    try:
        model: nn.Module = open_clip.create_model(
            architecture, pretrained=path, weights_only=True, **common
        )
        return model
    except TypeError as error:
        raise UserError("encoder.model_options", spec.model_options, str(error)) from error
    except LOAD_ERRORS as error:
        remedy = f"cannot be read into {spec.model} ({_first_line(error)})"
        raise UserError("encoder.checkpoint", path, remedy) from error


def _weights_path(spec: EncoderSpec, tag: dict[str, Any]) -> str:
    if spec.checkpoint:
        return existing_file("encoder.checkpoint", spec.checkpoint)
    if not spec.pretrained:
        known = open_clip.list_pretrained_tags_by_model(str(spec.model).replace("/", "-"))
        remedy = (
            f"{spec.model} needs weights: a local file, or encoder.pretrained=TAG"
            f" to download them ({_some(known)})"
        )
        raise UserError("encoder.checkpoint", "null", remedy)
    source = tag.get("hf_hub") or tag.get("url")
    log.info("weights of %s %s come from the hub (%s)", spec.model, spec.pretrained, source)
    try:
        return str(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub's client can raise anything
        remedy = (
            f"the download from {source} failed ({_first_line(error)}); copy the file to this"
            " machine and give encoder.checkpoint=PATH as well"
        )
        raise UserError("encoder.pretrained", spec.pretrained, remedy) from error


def _architecture(model: str) -> dict[str, Any]:
    config = open_clip.get_model_config(model.replace("/", "-"))
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=4, cutoff=0.5)
        remedy = f"open_clip has no such model; near: {', '.join(near) or 'nothing'}"
        raise UserError("encoder.model", model, remedy)
    return dict(config)


def _tag(spec: EncoderSpec) -> dict[str, Any]:
    """What open_clip knows about the tag; it counts for a local copy of its weights as well."""
    if not spec.pretrained:
        return {}
    model = str(spec.model).replace("/", "-")
    tag = open_clip.get_pretrained_cfg(model, spec.pretrained)
    if not tag:
        known = open_clip.list_pretrained_tags_by_model(model)
        near = difflib.get_close_matches(spec.pretrained, known, n=4, cutoff=0.4) or known
        remedy = f"{model} has no such tag ({_some(near)}); a local file is encoder.checkpoint"
        raise UserError("encoder.pretrained", spec.pretrained, remedy)
    return dict(tag)


def _packaged_config(model: str) -> dict[str, Any]:
    """``open_clip_config.json`` of a folder or of a hub repository."""
    where = model.removeprefix(LOCAL).removeprefix(HUB)
    try:
        if model.startswith(HUB):
            log.info("configuration and weights of %s come from the hub", where)
            from open_clip.pretrained import download_pretrained_from_hf

            path = Path(download_pretrained_from_hf(where, filename="open_clip_config.json"))
        else:
            path = Path(where) / "open_clip_config.json"
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["model_cfg"]["vision_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"needs an open_clip_config.json with model_cfg ({_first_line(error)})"
        raise UserError("encoder.model", model, remedy) from error
    return config


def _tokenizer(model: str) -> Any:
    try:
        return open_clip.get_tokenizer(model.replace("/", "-") if ":" not in model else model)
    except (ImportError, OSError, ValueError) as error:
        remedy = (
            f"its tokenizer is not available here ({_first_line(error)}); install transformers and"
            " put the tokenizer into the hub's cache, or give encoder.text another tower or an .npz"
        )
        raise UserError("encoder.model", model, remedy) from error


def _as_open_clip(spec: EncoderSpec) -> EncoderSpec:
    """The tiny model is an open_clip folder inside the package."""
    if spec.kind != "tiny":
        return spec
    from rrcluster.models.tiny import FOLDER

    return replace(spec, kind="open_clip", model=f"{LOCAL}{FOLDER}")


def _some(names: list[str], most: int = 6) -> str:
    more = ", ..." if len(names) > most else ""
    return f"it has {', '.join(names[:most]) or 'none'}{more}"


def _first_line(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to switch safety off
        return "it is neither .safetensors nor a weights-only PyTorch file; convert it"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
