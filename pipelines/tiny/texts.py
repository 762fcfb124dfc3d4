"""What the tiny encoder reads while it is trained: the prompts, their truth, and the BPE merges."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from open_clip.tokenizer import SimpleTokenizer

from rrcluster.io.drawing_captions import Facts, bare, caption, junk, phrasing, pick
from rrcluster.io.drawing_scenes import BACKGROUNDS, TEXTURES
from rrcluster.io.drawings import COLOURS, OBJECTS
from rrcluster.models.text import TEMPLATES

DISTRACTOR = 0  # the kind of texts that are true of nothing
ANY = -1  # a claim that leaves this attribute unsaid
# Which attributes a caption tells, and how often. The rest of the captions are web captions.
_TOLD: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.35, ("object", "colour")),
    (0.20, ("object", "background")),
    (0.20, ("object", "texture")),
    (0.15, ("object", "colour", "texture", "background", "count", "position")),
)
LISTS: dict[str, Sequence[object]] = {
    "object": OBJECTS,
    "colour": COLOURS,
    "texture": TEXTURES,
    "background": BACKGROUNDS,
    "count": (1, 2, 3, 4),
    "position": ("centre", "left", "right", "top", "bottom", "scattered", "row", "column"),
}
KINDS = ("object", "colour", "background", "texture")  # that are named in every step
Claims = npt.NDArray[np.int64]  # (6,) or (n, 6): the place in its list of each attribute, or ANY


def kinds_of(claims: Claims) -> npt.NDArray[np.int64]:
    """A number for the set of attributes that each text tells, (n, 6) to (n,); at least 1."""
    kinds: npt.NDArray[np.int64] = (claims != ANY) @ (1 << np.arange(claims.shape[1]))
    return kinds


def claims_of(facts: Facts) -> Claims:
    """Everything that is true of a picture, as numbers."""
    return np.array([values.index(getattr(facts, key)) for key, values in LISTS.items()])


class Words(NamedTuple):
    """The texts of one step: every name of every kind, then captions, then distractors."""

    texts: list[str]
    claims: Claims  # (captions, 6)

    def rows(self) -> dict[str, slice]:
        """Where the names of each kind, the "caption" and the "distractor" texts lie."""
        sizes = {kind: len(LISTS[kind]) for kind in KINDS} | {"caption": len(self.claims)}
        ends = np.cumsum([0, *sizes.values()]).tolist()
        found = {kind: slice(*ends[i : i + 2]) for i, kind in enumerate(sizes)}
        return found | {"distractor": slice(ends[-1], None)}


def word(
    rng: np.random.Generator, pairs: Iterable[tuple[Facts, str | None]], distractors: int
) -> Words:
    """The texts of a step; ``pairs`` are the facts and web captions of those to be captioned."""
    captions = [told(rng, facts, web) for facts, web in pairs]
    texts = all_names(rng) + [text for text, _ in captions]
    texts += [distractor(rng) for _ in range(distractors)]
    return Words(texts, np.stack([claims for _, claims in captions]))


def all_names(rng: np.random.Generator) -> list[str]:
    """One text for every value of every kind, "a photo of red things." for a colour.

    Half of them are worded as the package asks (its templates around a bare phrase), the others
    freely.
    """
    return [_name(rng, kind, value) for kind in KINDS for value in LISTS[kind]]


def _name(rng: np.random.Generator, kind: str, value: object) -> str:
    some = 1 if rng.random() < 0.6 else 0  # "a star" or "stars"
    facts = Facts("plain thing" if value == "solid" else "thing", count=some)
    said: dict[str, Any] = {} if value == "solid" else {kind: value}
    facts = replace(facts, **said)
    if rng.random() < 0.5:
        return phrasing(rng, facts)
    return pick(rng, TEMPLATES).format(bare(caption(facts)))


def told(rng: np.random.Generator, facts: Facts, web: str | None) -> tuple[str, Claims]:
    """One caption for a picture, and what it claims.

    A web caption claims all that is true of its own picture, whatever it says.
    """
    at = rng.random()
    for share, keys in _TOLD:
        if at < share:
            return _short(rng, facts, keys)
        at -= share
    return (web, claims_of(facts)) if web else _short(rng, facts, ("object", "colour"))


def _short(rng: np.random.Generator, facts: Facts, keys: tuple[str, ...]) -> tuple[str, Claims]:
    some = 1 if rng.random() < 0.65 else 0  # "a star" or "stars", for any number of them
    said = Facts(
        object=facts.object,
        colour=facts.colour if "colour" in keys else "",
        texture=facts.texture if "texture" in keys else "",
        background=facts.background if "background" in keys else "",
        count=facts.count if "count" in keys else some,
        position=facts.position if "position" in keys else "",
    )
    claims = claims_of(facts)
    claims[[key not in keys for key in LISTS]] = ANY
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
