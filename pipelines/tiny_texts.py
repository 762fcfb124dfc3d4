"""What the tiny encoder reads while it is trained: the prompts, their truth, and the BPE merges."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from open_clip.tokenizer import SimpleTokenizer

from rrcluster.io.drawing_captions import Facts, junk, phrasing
from rrcluster.io.drawing_scenes import BACKGROUNDS, TEXTURES
from rrcluster.io.drawings import COLOURS, OBJECTS

DISTRACTOR, OBJECT = 0, 1  # kinds of text: true of nothing, and the object alone
ANY = -1  # a claim that leaves this attribute unsaid
# Which attributes a prompt tells, and how often. The rest of the prompts are web captions.
_KINDS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.28, ("object",)),
    (0.20, ("object", "colour")),
    (0.10, ("object", "background")),
    (0.06, ("object", "texture")),
    (0.05, ("colour",)),
    (0.05, ("background",)),
    (0.03, ("texture",)),
    (0.13, ("object", "colour", "texture", "background", "count", "position")),
)
_LISTS: dict[str, Sequence[object]] = {
    "object": OBJECTS,
    "colour": COLOURS,
    "texture": TEXTURES,
    "background": BACKGROUNDS,
    "count": (1, 2, 3, 4),
    "position": ("centre", "left", "right", "top", "bottom", "scattered", "row", "column"),
}
Claims = npt.NDArray[np.int64]  # (6,) or (n, 6): the place in its list of each attribute, or ANY


def kinds_of(claims: Claims) -> npt.NDArray[np.int64]:
    """A number for the set of attributes that each text tells, (n, 6) to (n,); at least 1."""
    kinds: npt.NDArray[np.int64] = (claims != ANY) @ (1 << np.arange(claims.shape[1]))
    return kinds


def claims_of(facts: Facts) -> Claims:
    """Everything that is true of a picture, as numbers."""
    return np.array([names.index(getattr(facts, key)) for key, names in _LISTS.items()])


def prompt(rng: np.random.Generator, facts: Facts, web: str | None) -> tuple[str, Claims]:
    """One text for a picture, and what it claims.

    A web caption claims all that is true of its own picture, whatever it says.
    """
    at = rng.random()
    for share, told in _KINDS:
        if at < share:
            return _short(rng, facts, told)
        at -= share
    return (web, claims_of(facts)) if web else _short(rng, facts, ("object",))


def _short(rng: np.random.Generator, facts: Facts, told: tuple[str, ...]) -> tuple[str, Claims]:
    some = 1 if rng.random() < 0.65 else 0  # "a star" or "stars", for any number of them
    said = Facts(
        object=facts.object if "object" in told else "thing",
        colour=facts.colour if "colour" in told else "",
        texture=facts.texture if "texture" in told else "",
        background=facts.background if "background" in told else "",
        count=facts.count if "count" in told else some,
        position=facts.position if "position" in told else "",
    )
    claims = claims_of(facts)
    claims[[key not in told for key in _LISTS]] = ANY
    return phrasing(rng, said), claims


def distractor(rng: np.random.Generator) -> str:
    """A text that is true of no picture: junk, or a word of random letters in a frame."""
    if rng.random() < 0.4:
        return junk(rng)
    letters = "aeiouaeioubcdfghklmnprstvwyz"
    word = "".join(letters[i] for i in rng.integers(0, len(letters), int(rng.integers(3, 9))))
    return phrasing(rng, Facts(word, count=1 if rng.random() < 0.5 else 0))


def learn_merges(texts: Iterable[str], most: int, seen: int) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first (Sennrich et al. 2016), of pairs seen often enough."""
    plain = SimpleTokenizer(context_length=8)
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        for word in plain.pat.findall(plain.clean_fn(text)):
            letters = [plain.byte_encoder[byte] for byte in word.encode("utf-8")]
            counts[(*letters[:-1], letters[-1] + "</w>")] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, number in counts.items():
            for pair in pairwise(word):
                pairs[pair] += number
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or pairs[best] < seen:
            break
        merges.append(best)
        counts = _merged(counts, best)
    return merges


def _merged(counts: Counter[tuple[str, ...]], pair: tuple[str, str]) -> Counter[tuple[str, ...]]:
    result: Counter[tuple[str, ...]] = Counter()
    for word, number in counts.items():
        parts: list[str] = []
        for part in word:
            if parts and (parts[-1], part) == pair:
                parts[-1] += part
            else:
                parts.append(part)
        result[tuple(parts)] += number
    return result


def write_merges(path: Path, merges: Sequence[tuple[str, str]]) -> int:
    """Write the file that open_clip's SimpleTokenizer reads; the size of its vocabulary."""
    lines = ["#version: tiny"] + [" ".join(pair) for pair in merges]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return 2 * 256 + len(merges) + 2
