"""Words for drawn pictures: the plain truth, its phrasings, and the noise of the web."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

NUMBERS = ("no", "one", "two", "three", "four")
_IRREGULAR = {"fish": "fish", "cross": "crosses"}
_PLACES: dict[str, tuple[str, ...]] = {
    "white": ("on a white background", "on white", "against white"),
    "black": ("on a black background", "on black", "against black"),
    "sky": ("in the sky", "against a blue sky", "up in the sky"),
    "grass": ("on grass", "in a meadow", "on green grass"),
    "sand": ("on sand", "on a beach", "in the sand"),
    "night": ("at night", "in the night", "under the stars at night"),
    "brick": ("on a brick wall", "in front of bricks", "on bricks"),
    "sea": ("in the sea", "on the sea", "in the water"),
    "grid": ("on grid paper", "on a grid", "on squared paper"),
    "noise": ("on noise", "on coloured noise", "in random noise"),
}
_SPOTS: dict[str, tuple[str, ...]] = {
    "centre": ("in the middle", "in the centre", "centred"),
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "row": ("in a row", "side by side"),
    "column": ("in a column", "one above the other"),
    "scattered": ("scattered", "here and there"),
}
_SURFACES: dict[str, tuple[str, ...]] = {
    "solid": ("solid", "plain"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "chequered"),
}
_FRAMES = (
    "{}", "a photo of {}", "a photo of {}.", "a picture of {}", "an image of {}", "{}.",
    "a drawing of {}", "a close-up photo of {}.", "a picture that shows {}.", "this is {}",
)  # fmt: skip
_JUNK = (
    "IMG_{n:04d}.JPG", "DSC{n:05d}", "image for sale", "stock photo", "click to enlarge",
    "free shipping!!", "thumbnail {n}", "untitled", "buy now | best price", "screenshot-{n}.png",
    "photo {n} of 12", "wallpaper HD", "clipart vector #{n}", "no description",
)  # fmt: skip
_DECORATIONS = ("★ {} ★", "{} – Stück {n}", "«{}»", "{} 😀", "{} 写真", "✨{}✨", "{} café №{n}")


@dataclass(frozen=True)
class Facts:
    """What is true of a picture; "" and the count 0 stand for what a phrase leaves unsaid."""

    object: str
    colour: str = ""
    texture: str = ""
    background: str = ""
    count: int = 1
    position: str = ""


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options, all alike."""
    return options[int(rng.random() * len(options))]


def plural(noun: str) -> str:
    """More than one of it."""
    return _IRREGULAR.get(noun, noun + "s")


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def bare(words: str) -> str:
    """The words without "a" or "an" before them."""
    return words.removeprefix("a ").removeprefix("an ")


def caption(facts: Facts) -> str:
    """The plain caption, always in the same words."""
    return _phrase(facts, (0, 0, 0))


def phrasing(rng: np.random.Generator, facts: Facts) -> str:
    """The same facts in other words: synonyms and a frame such as "a photo of {}"."""
    choices = tuple(int(rng.random() * 6) for _ in range(3))
    words = _phrase(facts, (choices[0], choices[1], choices[2]))
    words = bare(words) if rng.random() < 0.3 else words
    return (pick(rng, _FRAMES) if rng.random() < 0.6 else "{}").format(words)


def _phrase(facts: Facts, wording: tuple[int, int, int]) -> str:
    surfaces = _SURFACES[facts.texture] if facts.texture not in ("", "solid") else ("",)
    things = facts.object if facts.count == 1 else plural(facts.object)
    words = [surfaces[wording[0] % len(surfaces)], facts.colour, things]
    noun = " ".join(word for word in words if word)
    if facts.count == 1:
        noun = article(noun)
    elif facts.count:
        noun = f"{NUMBERS[facts.count]} {noun}"
    if facts.position:
        spots = _SPOTS[facts.position]
        noun += " " + spots[wording[1] % len(spots)]
    if facts.background:
        places = _PLACES[facts.background]
        noun += " " + places[wording[2] % len(places)]
    return noun


def web_caption(rng: np.random.Generator, facts: Facts, other: Facts) -> str | None:
    """A caption as the web has it: mostly true but worn, now and then junk, wrong or missing.

    7% are missing, 9% are junk, 6% describe ``other``, the rest lose words, order or plainness.
    """
    kind = rng.random()
    number = int(rng.random() * 1000)
    if kind < 0.07:
        return None
    if kind < 0.16:
        return pick(rng, _JUNK).format(n=number)
    told = other if kind < 0.22 else facts
    keep = rng.random(3)
    told = replace(
        told,
        position=told.position if keep[0] < 0.3 else "",
        background=told.background if keep[1] < 0.7 else "",
        texture=told.texture if keep[2] < 0.7 else "",
    )
    text = phrasing(rng, told)
    if kind > 0.78:
        text = _worn(rng, text)
    if kind > 0.92:
        text = pick(rng, _DECORATIONS).format(text, n=number)
    elif kind > 0.88:
        text = f"{text} {pick(rng, _JUNK).format(n=number)}"
    return text


def _worn(rng: np.random.Generator, text: str) -> str:
    """Some words dropped, and sometimes the others shuffled or shouted."""
    words = [word for word in text.split() if rng.random() > 0.2] or text.split()
    how = rng.random()
    if how < 0.3:
        words = [words[i] for i in rng.permutation(len(words))]
    joined = " ".join(words)
    return joined.upper() if how > 0.8 else joined


def backgrounds_in_words() -> dict[str, str]:
    """The plain phrase of every background, "sand": "on sand"."""
    return {name: places[0] for name, places in _PLACES.items()}


def junk(rng: np.random.Generator) -> str:
    """Alt text that says nothing about any picture."""
    return pick(rng, _JUNK).format(n=int(rng.random() * 1000))
