"""What turns images into unit vectors: the settings, the interface, and the constant-shape batches.

Every batch has exactly ``batch_size`` rows, the last one padded with black: with constant shapes
the libraries choose the same kernels, and a row's vector does not depend on the rows beside it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rrcluster.records import UserError, setting

log = logging.getLogger(__name__)
KINDS = ("tiny", "open_clip", "timm", "vectors")
RESIZES = ("auto", "center_crop", "squash")
TRANSFORMS = ("none", "sqrt_unit")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class EncoderSpec:
    """Which model embeds the images, and where the captions' text vectors come from."""

    kind: str = setting(
        "tiny", "tiny (ships with the package), open_clip, timm, or vectors (ready embeddings)"
    )
    model: str | None = setting(
        None, "open_clip or timm model name; open_clip also takes local-dir:PATH and hf-hub:REPO"
    )
    pretrained: str | None = setting(
        None, "tag of the weights on the hub; downloads them unless a checkpoint is given as well"
    )
    checkpoint: str | None = setting(
        None, "local weights file (.safetensors or a weights-only .pt/.bin); nothing is downloaded"
    )
    precision: str = setting("auto", "fp32, bf16 or fp16; auto is bf16 on a GPU and fp32 on CPU")
    batch_size: int = setting(
        64, "images per forward pass; every batch is padded to it; halved where memory runs out"
    )
    channels_last: bool | None = setting(
        None, "convolution weights with channels last; null is the model's own way (timm: true)"
    )
    compile: bool = setting(
        False, "torch.compile the model: about a minute per encoder at its start, then faster"
    )
    image_size: int | None = setting(None, "side in pixels; null is the model's own")
    mean: list[float] | None = setting(None, "RGB mean in 0..1; null is the model's own")
    std: list[float] | None = setting(None, "RGB deviation in 0..1; null is the model's own")
    resize: str = setting(
        "auto", "center_crop (short side, then crop), squash (ignores the aspect), auto (model's)"
    )
    model_options: dict[str, Any] = setting({}, "more arguments of the model's constructor")
    projection: str | None = setting(
        None, "path of an .npz with W (features, d) and b (d,): features to the shared space"
    )
    feature_transform: str = setting(
        "none", "none, or sqrt_unit: sqrt(x) / |sqrt(x)| of the pooled features, before projection"
    )
    text: str | None = setting(
        None,
        "text vectors for captions: an .npz with x and name, or an open_clip text tower as"
        " model:tag or model:checkpoint; null is the encoder's own tower, if it has one",
    )
    beside: dict[str, Any] = setting(
        {},
        "settings of a second encoder for images only, whose vectors are joined to this one's;"
        " encoder=[clip_l14,dinov2_l14] fills it in",
    )


class PixelFacts(NamedTuple):
    """How images must be prepared before ``encode_images``."""

    image_size: int
    resize: str  # "center_crop" | "squash"
    interpolation: str  # "bicubic" | "bilinear"


class Encoder(ABC):
    """Images in, unit vectors out."""

    name: str
    width: int  # d
    image_size: int
    resize: str
    interpolation: str
    weights_hash: str  # sha256 over parameter names, shapes and bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's pixels."""
        return (self.image_size, self.image_size, 3)

    @abstractmethod
    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit rows (n, d) of RGB images (n, s, s, 3)."""


class Look(NamedTuple):
    """The pixel facts together with the normalisation."""

    pixels: PixelFacts
    mean: Sequence[float]
    std: Sequence[float]


class Loaded(NamedTuple):
    """A module on its device whose call maps normalised images (n, 3, s, s) to features (n, d)."""

    name: str
    module: nn.Module
    look: Look
    weights_hash: str


class TorchEncoder(Encoder):
    """Padding, normalisation, precision and memory around any torch module.

    When the device has too little memory the batch is halved for good and the rows are encoded
    again; only UserError at one image ends that.
    """

    def __init__(self, loaded: Loaded, spec: EncoderSpec, device: str) -> None:
        self.name, module, look, self.weights_hash = loaded
        self.image_size, self.resize, self.interpolation = look.pixels
        self.batch_size, self._device = spec.batch_size, torch.device(device)
        self._dtype = dtype_for(spec.precision, device)
        # Threads may call at once: one batch is staged while another is on the device. On a CPU
        # each thread is a device.
        self._turn = nullcontext() if device == "cpu" else threading.Lock()
        self._contiguous = spec.channels_last is False
        if spec.channels_last is not None:
            layout = torch.contiguous_format if self._contiguous else torch.channels_last
            module = module.to(memory_format=layout)
        # Shapes are constant, so it is compiled once (and once more after a halving).
        self._module = torch.compile(module, dynamic=False) if spec.compile else module
        # One multiply-add on the device: (x / 255 - mean) / std = x * scale + shift.
        std = torch.tensor(look.std, dtype=torch.float32)
        mean = torch.tensor(look.mean, dtype=torch.float32)
        self._scale = (1.0 / (255.0 * std)).view(3, 1, 1).to(device)
        self._shift = (-mean / std).view(3, 1, 1).to(device)
        (blank,) = self._parts(np.zeros((1, *self.shape), dtype=np.uint8))
        self.width = int(blank.shape[1])

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        wrong = f"{self.name} takes uint8 {self.shape}, not {pixels.dtype} {pixels.shape[1:]}"
        assert pixels.dtype == np.uint8, wrong
        assert pixels.shape[1:] == self.shape, wrong
        if not len(pixels):
            return np.zeros((0, self.width), dtype=np.float32)
        return torch.cat(list(self._parts(pixels))).numpy()

    def _parts(self, pixels: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
        start = 0
        while start < len(pixels):
            size = self.batch_size  # another thread may halve it meanwhile
            part = pixels[start : start + size]
            try:
                staged = self._staged(part, size)
                with self._turn:
                    rows = self._forward(staged)[: len(part)].cpu()  # waits for the device
            except torch.OutOfMemoryError:
                rows = None  # halved below: here the error still holds the tensors
            if rows is None:
                self._halve(size)
            else:
                yield rows
                start += len(rows)

    def _halve(self, size: int) -> None:
        if size == 1:
            remedy = f"one image of {self.name} is too much for {self._device}; use another device"
            raise UserError("encoder.batch_size", 1, remedy)
        self.batch_size = size // 2
        log.warning("%s: out of memory, now %d images at once", self._device, self.batch_size)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _staged(self, pixels: npt.NDArray[np.uint8], size: int) -> Tensor:
        """The pixels on the device or on their way there, padded to ``size``."""
        pinned = self._device.type == "cuda"
        batch = torch.empty((size, *pixels.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        batch[: len(pixels)] = torch.from_numpy(pixels)
        batch[len(pixels) :] = 0
        return batch.to(self._device, non_blocking=True)

    @torch.inference_mode()
    def _forward(self, staged: Tensor) -> Tensor:
        images = staged.permute(0, 3, 1, 2).float() * self._scale + self._shift
        if self._contiguous:
            images = images.contiguous()
        with autocast(self._device, self._dtype):
            features: Tensor = self._module(images)
        return nn.functional.normalize(features.float(), dim=-1)


def dtype_for(precision: str, device: str) -> torch.dtype:
    """The dtype of the matrix products; ``auto`` is bf16 on CUDA and fp32 elsewhere."""
    on_gpu = torch.device(device).type == "cuda"
    if precision == "auto":
        return torch.bfloat16 if on_gpu else torch.float32
    if precision not in DTYPES:
        raise UserError("encoder.precision", precision, "use auto, fp32, bf16 or fp16")
    if precision == "fp16" and not on_gpu:
        raise UserError("encoder.precision", precision, "needs a GPU; on CPU use bf16 or fp32")
    return DTYPES[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Lower precision for products only: norms, softmax and the final unit rows stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def hash_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, shapes, dtypes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(flat.shape)}{flat.dtype}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def existing_file(setting_name: str, path: str) -> str:
    """``path``, or the user's error that it is missing."""
    if not Path(path).is_file():
        raise UserError(setting_name, path, "there is no such file; give the path of a local file")
    return path


def read_arrays(setting_name: str, path: str, names: Sequence[str]) -> list[npt.NDArray[Any]]:
    """The named arrays of an .npz (never pickled objects), or the user's error."""
    existing_file(setting_name, path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        wanted = " and ".join(names)
        raise UserError(setting_name, path, f"must be an .npz with {wanted} ({error})") from error


def look_from(
    spec: EncoderSpec,
    size: Any,
    resize: str,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Look:
    """The model's own facts with the settings' overrides on top, checked."""
    side = spec.image_size or (max(size) if isinstance(size, (tuple, list)) else int(size))
    chosen = resize if spec.resize == "auto" else spec.resize
    if chosen not in RESIZES[1:]:
        remedy = f"the model's own way is {chosen!r}; use center_crop or squash"
        raise UserError("encoder.resize", spec.resize, remedy)
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if values is not None and len(values) != 3:
            raise UserError(f"encoder.{name}", values, "give three numbers, for R, G and B")
    # Random, nearest or Lanczos ("random" in some timm configurations) is read as bicubic.
    filter_name = interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"
    return Look(PixelFacts(side, chosen, filter_name), spec.mean or mean, spec.std or std)


def check(spec: EncoderSpec) -> None:
    if spec.kind not in KINDS:
        raise UserError("encoder.kind", spec.kind, f"use one of {', '.join(KINDS)}")
    if spec.batch_size < 1:
        raise UserError("encoder.batch_size", spec.batch_size, "must be at least 1")
    if spec.feature_transform not in TRANSFORMS:
        remedy = f"use one of {', '.join(TRANSFORMS)}"
        raise UserError("encoder.feature_transform", spec.feature_transform, remedy)
    if spec.kind == "vectors":
        remedy = "reads ready vectors (corpus.format=embeddings); to embed images choose another"
        raise UserError("encoder.kind", spec.kind, remedy)
    if spec.kind in ("open_clip", "timm") and not spec.model:
        raise UserError("encoder.model", spec.model, f"name a {spec.kind} model")
