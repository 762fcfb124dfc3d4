"""Captioned pictures without end, drawn on demand: the demo's corpus and the tiny encoder's school.

``draw(seed, index, split)`` is a pure function: every choice comes from a generator seeded with
its three arguments, so any picture can be drawn alone, in any order, on any machine. Objects,
colours, backgrounds and the rest are long-tailed (frequency 1 / rank^s). A fixed 15% of the
(object, colour, background) combinations appears only in the split "heldout".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from rrcluster.io.drawing_captions import (
    Facts,
    backgrounds_in_words,
    caption,
    plural,
    web_caption,
)
from rrcluster.io.drawing_scenes import BACKGROUNDS, RGB, TEXTURES, background, paint
from rrcluster.io.drawing_shapes import OBJECTS, PARTS

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "OBJECTS",
    "TEXTURES",
    "Drawing",
    "Split",
    "draw",
    "is_heldout",
    "vocabulary",
]

Split = Literal["train", "heldout"]
COLOURS: tuple[str, ...] = tuple(RGB)
SIDES = (96, 160)  # pixels, of both width and height
HELDOUT_SHARE = 0.15
_STREAMS: dict[str, int] = {"train": 0, "heldout": 1}
_SINGLE = ("centre", "left", "right", "top", "bottom")
_SEVERAL = ("scattered", "row", "column")
_FINE = 2  # masks are drawn this many times larger, then averaged down: smooth edges
_TILT = 0.45  # radians: objects lean at most this far to either side


@dataclass(frozen=True)
class Drawing:
    """One picture with its truth and with the caption a careless web page would give it."""

    image: Image.Image  # RGB
    caption: str
    web_caption: str | None
    object: str
    colour: str
    texture: str
    background: str
    count: int
    position: str


class _Spot(NamedTuple):
    x: float  # pixels
    y: float
    radius: float
    tilt: float  # radians


def is_heldout(object: str, colour: str, background: str) -> bool:
    """Whether this combination is kept out of split "train". Fixed for ever by a hash."""
    digest = hashlib.sha256(f"{object}/{colour}/{background}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT_SHARE * 2**64


def draw(seed: int, index: int, split: Split = "train") -> Drawing:
    """Picture number ``index`` of a split; the same arguments give the same pixels."""
    rng = np.random.default_rng([seed, index, _STREAMS[split]])
    facts, other = _facts(rng, split), _facts(rng, split)
    image = _picture(rng, facts)
    return Drawing(
        image=image,
        caption=caption(facts),
        web_caption=web_caption(rng, facts, other),
        object=facts.object,
        colour=facts.colour,
        texture=facts.texture,
        background=facts.background,
        count=facts.count,
        position=facts.position,
    )


def vocabulary() -> list[str]:
    """Plain nouns and noun phrases that could name a group of drawings, shortest kinds first.

    "things" stand for objects of all sorts, in groups that only a colour, a texture or a
    background holds together.
    """
    places = backgrounds_in_words()
    words = list(OBJECTS)
    words += [f"{colour} things" for colour in COLOURS]
    words += [f"{texture} things" for texture in TEXTURES[1:]]
    words += [f"things {place}" for place in places.values()]
    words += [f"{texture} {plural(name)}" for name in OBJECTS for texture in TEXTURES[1:]]
    words += [f"{colour} {name}" for name in OBJECTS for colour in COLOURS]
    words += [f"{plural(name)} {place}" for name in OBJECTS for place in places.values()]
    return words


def _tail(count: int, exponent: float) -> npt.NDArray[np.float64]:
    """Frequencies that fall with the rank, adding up to 1."""
    weights = np.power(np.arange(1, count + 1, dtype=np.float64), -exponent)
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


@cache
def _combinations(split: Split) -> tuple[list[tuple[str, str, str]], npt.NDArray[np.float64]]:
    """The split's (object, colour, background) and their cumulated frequencies."""
    every = list(product(OBJECTS, COLOURS, BACKGROUNDS))
    weights = np.einsum(
        "i,j,k->ijk",
        _tail(len(OBJECTS), 0.7),
        _tail(len(COLOURS), 0.5),
        _tail(len(BACKGROUNDS), 0.5),
    ).ravel()
    mine = np.array([is_heldout(*triple) == (split == "heldout") for triple in every])
    cumulated = np.cumsum(np.where(mine, weights, 0.0))
    return every, cumulated / cumulated[-1]


def _choose(rng: np.random.Generator, options: tuple[str, ...], exponent: float) -> str:
    at = np.searchsorted(np.cumsum(_tail(len(options), exponent)), rng.random(), side="right")
    return options[min(int(at), len(options) - 1)]


def _facts(rng: np.random.Generator, split: Split) -> Facts:
    triples, cumulated = _combinations(split)
    # side="right" never lands on a combination of weight zero.
    name, colour, place = triples[int(np.searchsorted(cumulated, rng.random(), side="right"))]
    texture = _choose(rng, TEXTURES, 1.0)
    count = int(_choose(rng, ("1", "2", "3", "4"), 1.6))
    position = _choose(rng, _SINGLE if count == 1 else _SEVERAL, 0.7)
    return Facts(name, colour, texture, place, count, position)


def _spots(rng: np.random.Generator, facts: Facts, width: int, height: int) -> list[_Spot]:
    """Where each object goes: one in its part of the picture, several in cells of a lattice."""
    count, side = facts.count, min(width, height)
    centre = {"left": (0.34, 0.5), "right": (0.66, 0.5), "top": (0.5, 0.34), "bottom": (0.5, 0.66)}
    if count == 1:
        places = [centre.get(facts.position, (0.5, 0.5))]
        radius = side * (0.36 if facts.position == "centre" else 0.29)
    elif facts.position == "scattered":
        cells = [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)]
        places = [cells[i] for i in rng.permutation(4)[:count]]
        radius = side * 0.2
    else:
        steps = [0.5 + 0.8 * ((i + 0.5) / count - 0.5) for i in range(count)]
        places = [(s, 0.5) if facts.position == "row" else (0.5, s) for s in steps]
        radius = side * (0.42 / count if count > 2 else 0.19)
    spots = []
    for x, y in places:
        dx, dy, grow, lean = rng.random(4) - 0.5
        size = radius * (1 + 0.3 * grow)
        at_x = (width - side) / 2 + side * (x + 0.06 * dx)  # the square that a centre crop keeps
        at_y = (height - side) / 2 + side * (y + 0.06 * dy)
        spots.append(_Spot(at_x, at_y, size, 2 * _TILT * lean))
    return spots


def _masks(
    facts: Facts, spots: list[_Spot], width: int, height: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """How much of each pixel is body and how much is trim, both (height, width, 1) in 0..1."""
    fine = (width * _FINE, height * _FINE)
    body, trim = Image.new("L", fine), Image.new("L", fine)
    on_body, on_trim = ImageDraw.Draw(body), ImageDraw.Draw(trim)
    for spot in spots:
        turn = spot.radius * _FINE * np.exp(1j * spot.tilt)
        centre = complex(spot.x, spot.y) * _FINE
        for points, kind in PARTS[facts.object]:
            turned = (points[:, 0] + 1j * points[:, 1]) * turn + centre
            corners = np.stack([turned.real, turned.imag], axis=1).ravel().tolist()
            on_trim.polygon(corners, fill=255 if kind == "trim" else 0)
            if kind != "trim":
                on_body.polygon(corners, fill=255 if kind == "body" else 0)
                on_trim.line(corners + corners[:2], fill=255 if kind == "hole" else 150, width=2)
    smooth = [np.asarray(mask.reduce(_FINE), dtype=np.float32) for mask in (body, trim)]
    first, second = (np.divide(mask[:, :, None], 255, dtype=np.float32) for mask in smooth)
    return first, second


def _picture(rng: np.random.Generator, facts: Facts) -> Image.Image:
    low, high = SIDES
    width = int(rng.integers(low, high + 1))
    height = int(np.clip(width * (0.8 + 0.45 * rng.random()), low, high))
    behind = background(rng, facts.background, height, width)
    spots = _spots(rng, facts, width, height)
    size = float(np.mean([spot.radius for spot in spots]))
    surface, edge = paint(rng, facts.colour, facts.texture, height, width, size)
    body, trim = _masks(facts, spots, width, height)
    flat = behind + body * (surface - behind)
    flat = flat + trim * (edge - flat)
    return Image.fromarray(np.clip(flat, 0, 255).astype(np.uint8))
