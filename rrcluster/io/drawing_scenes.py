"""What is behind the objects and on them: backgrounds and textures as small float arrays.

Every function takes the generator it draws from; values are 0..255 in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.float32]  # (height, width, 3), or what broadcasts to it

# Commonest first, as everywhere in the drawings.
RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 34, 34), "blue": (36, 72, 214), "yellow": (246, 216, 38),
    "green": (36, 150, 54), "white": (246, 246, 246), "orange": (244, 132, 22),
    "black": (24, 24, 24), "purple": (122, 44, 168), "pink": (250, 140, 186),
    "brown": (118, 70, 30),
}  # fmt: skip
TEXTURES: tuple[str, ...] = ("solid", "striped", "dotted", "checkered")
BACKGROUNDS: tuple[str, ...] = (
    "white", "grass", "sky", "sand", "night", "brick", "sea", "black", "grid", "noise",
)  # fmt: skip
_BASE: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246), "grass": (118, 186, 82), "sky": (150, 204, 246),
    "sand": (232, 208, 152), "night": (22, 26, 72), "brick": (172, 90, 70),
    "sea": (38, 128, 156), "black": (18, 18, 18), "grid": (240, 240, 228),
    "noise": (128, 128, 128),
}  # fmt: skip


def colour_near(rng: np.random.Generator, rgb: tuple[int, int, int], spread: float) -> Picture:
    """A shade of a colour: each channel and the whole moved by up to ``spread``."""
    moved = np.array(rgb) + spread * (rng.random(3) - 0.5) + 2 * spread * (rng.random() - 0.5)
    return np.clip(moved, 0, 255).astype(np.float32)


def _grain(rng: np.random.Generator, height: int, width: int, cell: int) -> Picture:
    """Smooth random values in -1..1 whose grains are about ``cell`` pixels, (height, width, 1)."""
    coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    return (np.asarray(smooth, dtype=np.float32)[:, :, None] - 127.5) / 127.5


def background(rng: np.random.Generator, name: str, height: int, width: int) -> Picture:
    """A background of that name, never twice the same."""
    behind: Picture
    base = colour_near(rng, _BASE[name], 16)
    y = np.arange(height, dtype=np.float32)[:, None, None]
    x = np.arange(width, dtype=np.float32)[None, :, None]
    scale = np.float32(max(height, width) / 8 * (0.8 + 0.5 * rng.random()))
    if name in ("white", "black"):
        behind = np.broadcast_to(base, (height, width, 3)) + 3 * _grain(rng, height, width, 16)
    elif name == "sky":
        clouds = np.maximum(_grain(rng, height, width, int(scale) * 2), 0)
        behind = base + 40 * (y / height) + 60 * clouds
    elif name == "grass":
        blades = np.float32(1.4) * x + 3 * _grain(rng, height, width, 8)
        behind = base + 26 * np.sin(blades) + 22 * _grain(rng, height, width, 4)
    elif name == "sand":
        behind = base + 20 * _grain(rng, height, width, 2) + 10 * _grain(rng, height, width, 12)
    elif name == "night":
        stars = rng.random((height, width, 1), dtype=np.float32) > 0.993
        behind = base + 20 * (y / height) + 190 * stars
    elif name == "brick":
        row = y // (scale / 2)
        mortar = (y % (scale / 2) < 2.5) | ((x + row * scale / 2) % scale < 2.5)
        behind = np.where(mortar, np.float32(206), base + 16 * _grain(rng, height, width, 6))
    elif name == "sea":
        waves = np.sin((y + 3 * np.sin(x * (6 / scale))) * (9 / scale))
        behind = base + 26 * waves + 8 * _grain(rng, height, width, 8)
    elif name == "grid":
        lines = ((x + scale / 3) % (scale * 0.8) < 1.8) | ((y + scale / 4) % (scale * 0.8) < 1.8)
        behind = np.where(lines, np.array([120, 150, 205], np.float32), base)
    else:
        assert name == "noise", f"no background is called {name}"
        cells = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        blocks = cells.repeat(4, axis=0).repeat(4, axis=1)[:height, :width].astype(np.float32)
        behind = base + np.float32(0.6) * (blocks - 128)
    return behind


def paint(
    rng: np.random.Generator, colour: str, texture: str, height: int, width: int, size: float
) -> tuple[Picture, Picture]:
    """The object's surface, and its one-colour trim; ``size`` is the object's radius in pixels."""
    main = colour_near(rng, RGB[colour], 22)
    light = float(main.mean())
    trim = main * np.float32(0.45) if light > 60 else main + 70
    if texture == "solid":
        return main[None, None], trim[None, None]
    far = np.float32(250 if light < 150 else 70)
    other = main * np.float32(0.3) + far * np.float32(0.7)
    angle = 2 * np.pi * rng.random() if texture == "striped" else 0.6 * (rng.random() - 0.5)
    turn, step = np.exp(1j * angle), max(4.5, size * (0.36 + 0.14 * rng.random()))
    y = np.arange(height, dtype=np.float32)[:, None, None] / np.float32(step)
    x = np.arange(width, dtype=np.float32)[None, :, None] / np.float32(step)
    u = np.float32(turn.real) * x + np.float32(turn.imag) * y
    v = np.float32(turn.real) * y - np.float32(turn.imag) * x
    if texture == "striped":
        second = np.mod(u, 1) < 0.45
    elif texture == "dotted":
        second = (np.mod(u, 1) - 0.5) ** 2 + (np.mod(v, 1) - 0.5) ** 2 < 0.085
    else:
        assert texture == "checkered", f"no texture is called {texture}"
        second = (np.mod(u, 1) < 0.5) ^ (np.mod(v, 1) < 0.5)
    return np.where(second, other, main), trim[None, None]
