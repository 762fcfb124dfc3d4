"""From JPEG bytes to 224 x 224 pixels, by several libraries, for ``embed.py``."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from open_clip.transform import image_transform
from PIL import Image

from rrcluster.io.decode import PixelSpec, decode

SIDE = 224
Pixels = npt.NDArray[np.uint8]
# open_clip's evaluation transform, up to the normalisation that is linear.
_REFERENCE = image_transform(SIDE, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def reference(content: bytes) -> torch.Tensor:
    """(3, 224, 224) uint8, exactly as open_clip makes it."""
    seen: torch.Tensor = _REFERENCE(Image.open(io.BytesIO(content)))
    return (seen * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Decoder:
    decode: Callable[[bytes], Pixels]
    needs: tuple[str, ...] = ()  # modules


def _ours(content: bytes) -> Pixels:
    return decode(content, PixelSpec(SIDE), 10**9)[0]


def _pil(content: bytes) -> Pixels:
    return reference(content).permute(1, 2, 0).numpy()


def _pil_scaled(content: bytes) -> Pixels:
    """JPEG decoded at a half, quarter or eighth where that is still larger than the target."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (SIDE, SIDE))
    return np.asarray(_cropped(image))


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    scale = SIDE / min(width, height)
    size = (int(width * scale + 1e-6), int(height * scale + 1e-6))
    image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
    return image.crop((left, top, left + SIDE, top + SIDE))


def _torchvision(content: bytes) -> Pixels:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional as v2

    image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    image = v2.resize(image, [SIDE], v2.InterpolationMode.BICUBIC, antialias=True)
    return v2.center_crop(image, [SIDE]).permute(1, 2, 0).numpy()


def _area(image: Any) -> Pixels:
    import cv2

    height, width = image.shape[:2]
    scale = SIDE / min(width, height)
    size = (int(width * scale + 1e-6), int(height * scale + 1e-6))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
    cropped: Pixels = image[top : top + SIDE, left : left + SIDE]
    return cropped


def _opencv(content: bytes) -> Pixels:
    import cv2

    cv2.setNumThreads(1)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    return _area(image)


def _simplejpeg(content: bytes) -> Pixels:
    import simplejpeg

    return _area(simplejpeg.decode_jpeg(content, "RGB"))


DECODERS = {
    "rrcluster": Decoder(_ours),
    "PIL (open_clip)": Decoder(_pil),
    "PIL, scaled decoding": Decoder(_pil_scaled),
    "torchvision": Decoder(_torchvision),
    "OpenCV, area": Decoder(_opencv, ("cv2",)),
    "simplejpeg and OpenCV, area": Decoder(_simplejpeg, ("simplejpeg", "cv2")),
}
