"""From image bytes to the encoder's pixels, exactly as open_clip's evaluation transform.

PIL reads and torch resizes; this module decides what is refused, and what transparency,
orientation and deep samples become. Nothing of PIL's global state is changed.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from rrcluster.io.source import one_line
from rrcluster.records import BadReason

# Nothing else is opened: some of PIL's other formats run programs (EPS) or hold no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
# Each scan of a progressive JPEG is a pass over all of its pixels; cameras and encoders write about
# ten. Some kilobytes with thousands of scans would keep a core busy for hours.
MAX_SCANS = 200
STRIP = 3  # times its shorter side, from which a picture is so long that only its crop is resized
_ORIENTATION = 0x0112  # EXIF tag
_WARNINGS = threading.Lock()  # warnings.catch_warnings is not safe in threads by itself


@dataclass(frozen=True)
class PixelSpec:
    """What the encoder wants to see.

    ``center_crop``: the shorter side becomes ``size``, the middle is kept; ``squash``: both sides
    become ``size``. Both antialiased.
    """

    size: int
    resize: Literal["center_crop", "squash"] = "center_crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    beside: PixelSpec | None = None  # what a second encoder wants to see of the same image

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what ``decode`` gives: (size, size, 3), or flat with the second's pixels after it."""
        if self.beside is None:
            return (self.size, self.size, 3)
        return (3 * self.size**2 + 3 * self.beside.size**2,)


class Undecodable(Exception):
    """This image cannot be used: ``decode``, ``unsupported`` or ``too_large``."""

    def __init__(self, reason: BadReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, one_line(detail)


def decode(
    content: bytes, pixels: PixelSpec, max_pixels: int, margin: float = 0.0
) -> tuple[npt.NDArray[np.uint8], int, int]:
    """RGB of ``pixels.shape`` for the encoder, and the image's width and height as looked at.

    With a ``margin``, a JPEG comes at a half, a quarter or an eighth of its size (its blocks'
    lower frequencies) where its shorter side is still ``margin`` times the encoder's.
    """
    opened = _open(content, max_pixels)
    size = opened.size
    if margin:
        side = math.ceil(margin * max(p.size for p in (pixels, pixels.beside) if p is not None))
        opened.draft(None, (side, side))
    image = upright_rgb(opened)
    if (image.width < image.height) != (size[0] < size[1]):  # turned by a quarter
        size = size[::-1]
    seen = fit(image, pixels)
    if pixels.beside is not None:
        seen = np.concatenate([seen.reshape(-1), fit(image, pixels.beside).reshape(-1)])
    return seen, *size


def thumbnail(content: bytes, max_side: int, max_pixels: int) -> bytes:
    """A JPEG with sides of at most ``max_side``; decoded at reduced size where JPEG allows it."""
    image = _open(content, max_pixels)
    image.draft(None, (2 * max_side, 2 * max_side))
    image = upright_rgb(image)
    image.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _open(content: bytes, max_pixels: int) -> Image.Image:
    """The image with only its header read; raises Undecodable, also for too many pixels."""
    if not content:
        raise Undecodable("decode", "no bytes")
    try:
        with _quiet():
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        if content.startswith(_MAGIC) or content[8:12] == b"WEBP":
            raise Undecodable("decode", "damaged header") from None
        raise Undecodable("unsupported", f"no known image format, {len(content)} bytes") from None
    except Image.DecompressionBombError as error:  # PIL's own limit, twice MAX_IMAGE_PIXELS
        raise Undecodable("too_large", str(error)) from error
    except Exception as error:
        raise Undecodable("decode", str(error) or type(error).__name__) from error
    if image.width * image.height > max_pixels:
        raise Undecodable(
            "too_large", f"{image.width}x{image.height} is over corpus.max_pixels={max_pixels}"
        )
    if image.width < 1 or image.height < 1:
        raise Undecodable("decode", f"{image.width}x{image.height} pixels")
    if image.format == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS:
        raise Undecodable("too_large", f"a JPEG of more than {MAX_SCANS} scans")
    return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode: EXIF orientation applied, transparency on white, 8 bits per channel, RGB."""
    try:
        # Only TIFF looks at its tags again while loading; the others need no lock here.
        with _quiet() if image.format == "TIFF" else nullcontext():
            image.load()
        image = _eight_bit(_upright(image))
        if image.has_transparency_data:
            return _on_white(image)
    except Image.DecompressionBombError as error:
        raise Undecodable("too_large", str(error)) from error
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        raise Undecodable("decode", str(error) or type(error).__name__) from error
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:  # e.g. LAB
        raise Undecodable("unsupported", f"colour mode {image.mode}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    with _quiet():
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # broken EXIF says nothing about the picture
            return image
        if orientation not in range(2, 9):
            return image
        return ImageOps.exif_transpose(image)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Gray levels of 16 or more bits scaled down; PIL's own conversion would clip them to white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image) >> 8
    elif image.mode == "I":
        values = np.asarray(image)
        values = values.clip(0, 0xFFFF) >> 8 if values.max() > 255 else values.clip(0, 255)
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        values = (values * 255 if values.max() <= 1 else values).clip(0, 255)
    else:
        return image
    return Image.fromarray(values.astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def fit(image: Image.Image, pixels: PixelSpec) -> npt.NDArray[np.uint8]:
    """Resize and crop an RGB image to (size, size, 3), within a level of PIL's own resize.

    torch resizes bytes with the same filters as PIL, four times as fast. Of a long strip only the
    crop is computed, by PIL, which is handed it as a box: a picture of 30000 x 4 would cost a
    gigabyte on the way.
    """
    size, (width, height) = pixels.size, image.size
    if pixels.resize == "squash":
        return _resized(image, size, size, pixels.interpolation)
    short = min(width, height)
    # torchvision's arithmetic: the long side is cut to an integer, the crop's corner rounded.
    across, down = int(size * width / short), int(size * height / short)
    left, top = round((across - size) / 2), round((down - size) / 2)
    if max(width, height) <= STRIP * short:
        whole = _resized(image, across, down, pixels.interpolation)
        return np.ascontiguousarray(whole[top : top + size, left : left + size])
    box = (
        left * width / across,
        top * height / down,
        min((left + size) * width / across, width),
        min((top + size) * height / down, height),
    )
    method = Image.Resampling[pixels.interpolation.upper()]
    return np.asarray(image.resize((size, size), method, box))


def _resized(
    image: Image.Image, width: int, height: int, interpolation: str
) -> npt.NDArray[np.uint8]:
    bytes_ = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(
        bytes_, (height, width), mode=interpolation, antialias=True
    )
    rows: npt.NDArray[np.uint8] = found[0].permute(1, 2, 0).numpy()
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """PIL warns about odd metadata and large images: neither is news for the user's terminal."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
