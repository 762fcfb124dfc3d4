"""Drawings held in memory as small squares, and the small changes they go through in training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rrcluster.io.drawing_captions import Facts
from rrcluster.io.drawings import Split, draw

_CHUNK = 1000


class Pictures(NamedTuple):
    """Square pictures (n, s, s, 3) in uint8, their truth and their web captions."""

    pixels: npt.NDArray[np.uint8]
    facts: list[Facts]
    web: list[str | None]


def draw_many(seed: int, count: int, split: Split, side: int, workers: int = 2) -> Pictures:
    """Pictures 0..count-1 of a split; the answer does not depend on ``workers``."""
    starts = range(0, count, _CHUNK)
    one = partial(_chunk, seed, count, split, side)
    if workers > 1 and len(starts) > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            parts = list(pool.map(one, starts))
    else:
        parts = [one(start) for start in starts]
    return Pictures(
        np.concatenate([part.pixels for part in parts]),
        [facts for part in parts for facts in part.facts],
        [web for part in parts for web in part.web],
    )


def _chunk(seed: int, count: int, split: Split, side: int, start: int) -> Pictures:
    drawings = [draw(seed, i, split) for i in range(start, min(start + _CHUNK, count))]
    facts = [
        Facts(d.object, d.colour, d.texture, d.background, d.count, d.position) for d in drawings
    ]
    squares = np.stack([center_square(d.image, side) for d in drawings])
    return Pictures(squares, facts, [d.web_caption for d in drawings])


def center_square(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """The short side resized to ``side`` (bicubic), the middle cut out: (side, side, 3)."""
    width, height = image.size
    scale = side / min(width, height)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (n, s, s, 3) to the model's float images (n, 3, s, s)."""
    images = pixels.permute(0, 3, 1, 2).float() / 255
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images - shift) / scale


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image a little moved, zoomed and lit; hues and left/right stay as they are."""
    n = len(images)
    draws = torch.rand(n, 6, generator=generator) - 0.5
    zoom = 1 + 0.16 * draws[:, 0]
    grid = torch.zeros(n, 2, 3)
    grid[:, 0, 0] = zoom * (1 + 0.1 * draws[:, 1])
    grid[:, 1, 1] = zoom * (1 - 0.1 * draws[:, 1])
    grid[:, :, 2] = 0.16 * draws[:, 2:4]
    where = functional.affine_grid(grid, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, where, padding_mode="reflection", align_corners=False)
    light, contrast = draws[:, 4].view(n, 1, 1, 1), draws[:, 5].view(n, 1, 1, 1)
    return moved * (1 + 0.2 * contrast) + 0.2 * light
