"""The objects of the drawn pictures, as polygons in the square [-1, 1] x [-1, 1], y downwards.

An object is a short list of parts, painted in order. A part is body (the object's colour and
texture), trim (a darker shade of it, for wheels, doors and eyes) or hole (background again).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # (corners, 2)


class Part(NamedTuple):
    """One filled polygon of an object."""

    points: Points
    kind: Literal["body", "trim", "hole"]


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _arc(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0
) -> Points:
    """Corners on an ellipse around (x, y), from ``start`` to ``stop`` degrees clockwise."""
    steps = max(6, round(abs(stop - start) / 12))
    angles = np.radians(np.linspace(start, stop, steps + 1))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _spikes(count: int, outer: float, inner: float) -> Points:
    angles = np.pi * np.arange(2 * count) / count - np.pi / 2
    lengths = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)


def _bodies(*outlines: Points) -> list[Part]:
    return [Part(outline, "body") for outline in outlines]


def _trims(*outlines: Points) -> list[Part]:
    return [Part(outline, "trim") for outline in outlines]


def _holes(*outlines: Points) -> list[Part]:
    return [Part(outline, "hole") for outline in outlines]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 36)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _bodies(np.stack([x / 17, -(y + 2) / 16], axis=1))


def _cross() -> list[Part]:
    return _bodies(_box(-0.3, -0.95, 0.3, 0.95), _box(-0.95, -0.3, 0.95, 0.3))


def _arrow() -> list[Part]:
    head = _polygon((0.15, -0.75), (1.0, 0.0), (0.15, 0.75))
    return _bodies(_box(-1.0, -0.26, 0.2, 0.26), head)


def _moon() -> list[Part]:
    outside = _arc(0.1, 0, 0.95, 0.95, 60, 300)
    inside = _arc(0.5, 0, 0.75, 0.78, 276, 84)
    return _bodies(np.concatenate([outside, inside]))


def _flower() -> list[Part]:
    angles = np.radians(np.arange(6) * 60)
    petals = [_arc(0.58 * np.cos(a), 0.58 * np.sin(a), 0.37, 0.37) for a in angles]
    return _bodies(*petals, _arc(0, 0, 0.4, 0.4)) + _trims(_arc(0, 0, 0.28, 0.28))


def _tree() -> list[Part]:
    trunk = _trims(_box(-0.14, 0.2, 0.14, 1.0))
    crown = [(-0.42, -0.1, 0.45), (0.42, -0.1, 0.45), (0.0, -0.5, 0.5), (0.0, 0.0, 0.45)]
    return trunk + _bodies(*[_arc(x, y, r, r) for x, y, r in crown])


def _house() -> list[Part]:
    walls = _box(-0.7, -0.15, 0.7, 0.9)
    roof = _polygon((-0.95, -0.15), (0.0, -0.95), (0.95, -0.15))
    openings = [_box(-0.5, 0.1, -0.15, 0.42), _box(0.12, 0.3, 0.48, 0.9)]
    return _bodies(walls) + _trims(roof, *openings)


def _car() -> list[Part]:
    cabin = _polygon((-0.6, -0.05), (-0.38, -0.5), (0.3, -0.5), (0.6, -0.05))
    glass = _polygon((-0.4, -0.1), (-0.28, -0.38), (0.22, -0.38), (0.42, -0.1))
    wheels = [_arc(-0.52, 0.4, 0.24, 0.24), _arc(0.52, 0.4, 0.24, 0.24)]
    return _bodies(cabin, _box(-1.0, -0.08, 1.0, 0.38)) + _holes(glass) + _trims(*wheels)


def _fish() -> list[Part]:
    tail = _polygon((-0.35, 0.0), (-1.0, -0.5), (-0.8, 0.0), (-1.0, 0.5))
    return _bodies(tail, _arc(0.2, 0, 0.78, 0.48)) + _trims(_arc(0.62, -0.12, 0.1, 0.1))


def _sun() -> list[Part]:
    return (
        _bodies(_spikes(12, 1.0, 0.66))
        + _holes(_arc(0, 0, 0.6, 0.6))
        + _bodies(_arc(0, 0, 0.5, 0.5))
    )


def _cup() -> list[Part]:
    bowl = _polygon((-0.75, -0.6), (0.45, -0.6), (0.32, 0.75), (-0.6, 0.75))
    return (
        _bodies(_arc(0.5, -0.05, 0.42, 0.42))
        + _holes(_arc(0.5, -0.05, 0.24, 0.24))
        + _bodies(bowl)
        + _trims(_box(-0.75, -0.6, 0.45, -0.45))
    )


def _boat() -> list[Part]:
    hull = _polygon((-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85))
    sails = [_polygon((0.08, -0.95), (0.08, 0.22), (0.75, 0.22))]
    sails.append(_polygon((-0.08, -0.7), (-0.08, 0.22), (-0.6, 0.22)))
    return _bodies(*sails) + _trims(_box(-0.06, -0.95, 0.06, 0.4), hull)


def _balloon() -> list[Part]:
    knot = _polygon((0.0, 0.38), (0.14, 0.58), (-0.14, 0.58))
    string = _polygon((-0.03, 0.55), (0.03, 0.55), (0.13, 1.0), (0.06, 1.0))
    return _trims(string, knot) + _bodies(_arc(0, -0.28, 0.58, 0.7))


def _umbrella() -> list[Part]:
    canopy = np.concatenate([_arc(0, 0, 1.0, 0.9, 180, 360)])
    scallops = [_arc(x, 0.02, 0.25, 0.16) for x in (-0.75, -0.25, 0.25, 0.75)]
    hook = np.concatenate(
        [_arc(0.18, 0.72, 0.24, 0.24, 0, 180), _arc(0.18, 0.72, 0.1, 0.1, 180, 0)]
    )
    return _bodies(canopy) + _holes(*scallops) + _trims(_box(-0.06, -0.1, 0.06, 0.74), hook)


def _key() -> list[Part]:
    teeth = [_box(0.45, 0.0, 0.62, 0.42), _box(0.8, 0.0, 0.98, 0.42)]
    bow = _arc(-0.52, 0, 0.46, 0.46)
    return _bodies(bow, _box(-0.2, -0.12, 1.0, 0.12), *teeth) + _holes(_arc(-0.58, 0, 0.22, 0.22))


def _cloud() -> list[Part]:
    puffs = [(-0.58, 0.15, 0.38), (-0.15, -0.2, 0.46), (0.35, -0.08, 0.42), (0.66, 0.2, 0.33)]
    return _bodies(*[_arc(x, y, r, r) for x, y, r in puffs], _box(-0.6, 0.1, 0.68, 0.53))


def _mushroom() -> list[Part]:
    stem = _polygon((-0.22, 0.0), (0.22, 0.0), (0.32, 0.9), (-0.32, 0.9))
    return _trims(stem) + _bodies(_arc(0, 0.05, 0.95, 0.85, 180, 360))


def _bottle() -> list[Part]:
    shoulders = _polygon((-0.14, -0.55), (0.14, -0.55), (0.4, -0.1), (-0.4, -0.1))
    body = [shoulders, _box(-0.4, -0.12, 0.4, 1.0), _box(-0.14, -0.8, 0.14, -0.5)]
    return _bodies(*body) + _trims(_box(-0.18, -1.0, 0.18, -0.8))


def _cat() -> list[Part]:
    ears = [_polygon((-0.72, -0.95), (-0.72, -0.1), (-0.1, -0.5))]
    ears.append(_polygon((0.72, -0.95), (0.72, -0.1), (0.1, -0.5)))
    eyes = [_arc(-0.32, 0.0, 0.13, 0.17), _arc(0.32, 0.0, 0.13, 0.17)]
    nose = _polygon((-0.12, 0.3), (0.12, 0.3), (0.0, 0.46))
    return _bodies(*ears, _arc(0, 0.12, 0.78, 0.7)) + _trims(*eyes, nose)


def _star() -> list[Part]:
    return _bodies(_spikes(5, 1.0, 0.42))


def _circle() -> list[Part]:
    return _bodies(_arc(0, 0, 0.88, 0.88))


def _square() -> list[Part]:
    return _bodies(_box(-0.8, -0.8, 0.8, 0.8))


def _triangle() -> list[Part]:
    return _bodies(_polygon((0.0, -0.9), (0.95, 0.75), (-0.95, 0.75)))


def _ring() -> list[Part]:
    return _bodies(_arc(0, 0, 0.9, 0.9)) + _holes(_arc(0, 0, 0.52, 0.52))


# Commonest first: how often an object is drawn falls with its place in this list.
_DRAWN: tuple[tuple[str, Callable[[], list[Part]]], ...] = (
    ("circle", _circle), ("star", _star), ("square", _square), ("heart", _heart),
    ("tree", _tree), ("house", _house), ("car", _car), ("flower", _flower),
    ("triangle", _triangle), ("fish", _fish), ("sun", _sun), ("cat", _cat),
    ("boat", _boat), ("cup", _cup), ("moon", _moon), ("arrow", _arrow),
    ("balloon", _balloon), ("ring", _ring), ("cloud", _cloud), ("umbrella", _umbrella),
    ("cross", _cross), ("mushroom", _mushroom), ("key", _key), ("bottle", _bottle),
)  # fmt: skip

PARTS: dict[str, tuple[Part, ...]] = {name: tuple(parts()) for name, parts in _DRAWN}
OBJECTS: tuple[str, ...] = tuple(PARTS)
