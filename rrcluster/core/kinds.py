"""Words that cover others: a group of beagles, cats and horses is "animal".

A table says of nouns what they are kinds of. A word is the better name the more of the group it
covers and the more specific it is; how specific is its information content over the table itself
(Seco et al. 2004: a kind over few nouns says much).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST = 0.5  # of a group's samples that its words must cover, by the names of their clusters
WORDS = 3  # that may do so together
ENOUGH = 0.75  # of a group's samples: words that cover so many speak for it
FURTHER = 0.1  # of the samples that each word must add


@dataclass(frozen=True)
class Kinds:
    """Of each noun what it is a kind of, nearest first; of each kind how many nouns are."""

    above: Mapping[str, tuple[str, ...]]
    below: Mapping[str, int]

    @staticmethod
    def of(above: Mapping[str, tuple[str, ...]]) -> Kinds:
        return Kinds(above, Counter(kind for kinds in above.values() for kind in kinds))

    def specificity(self, word: str) -> float:
        """Information content in 0..1: 1 for a word that nothing is a kind of."""
        return 1.0 - math.log(1 + self.below.get(word, 0)) / math.log(2 + len(self.above))

    def look_up(self, name: str) -> str:
        """The table's noun for a name: itself, its singular, or its last word; else the name."""
        plain = re.sub(r"\(.*?\)", " ", name.casefold()).replace("_", " ").replace("-", " ")
        plain = " ".join(re.split(r"[,/]", plain)[0].split())
        for word in (plain, plain.rpartition(" ")[2]):
            for form in (word, word.removesuffix("s"), word.removesuffix("es")):
                if form in self.above or form in self.below:
                    return form
        return plain or name

    def covering(self, name: str) -> tuple[str, ...]:
        """The words that cover a name: itself, its noun, and what that is a kind of."""
        noun = self.look_up(name)
        above = (noun, *self.above.get(noun, ()))
        plain = " ".join(name.casefold().replace("_", " ").split())
        return above if plain in above else (plain, *above)


def cover(
    names: Sequence[tuple[str | None, int]], kinds: Kinds, top: int
) -> list[tuple[str, float]]:
    """Words for a group from its clusters' (name or None, weight): (word, share it covers).

    Each word adds what the ones before it leave uncovered. The first WORDS cover at least half of
    the weight, clusters without a name included; where they do not, there is no word.
    """
    total = sum(weight for _, weight in names)
    words = [kinds.covering(name) if name else () for name, _ in names]
    left = [weight for _, weight in names]
    found: list[tuple[str, float]] = []
    while total > 0 and len(found) < top:
        adds: Counter[str] = Counter()
        for own, weight in zip(words, left, strict=True):
            for word in own:
                adds[word] += weight
        fit = [word for word, weight in adds.items() if weight >= FURTHER * total]
        if not fit:
            break
        best = max(fit, key=lambda w: (adds[w] * math.sqrt(kinds.specificity(w)), w))
        found.append((_as_written(best, names, words), adds[best] / total))
        left = [0 if best in own else w for own, w in zip(words, left, strict=True)]
    return found if sum(share for _, share in found[:WORDS]) >= LEAST - 1e-9 else []


def _as_written(
    word: str, names: Sequence[tuple[str | None, int]], words: Sequence[tuple[str, ...]]
) -> str:
    """The word as a cluster has it ("Golden Gate Bridge"), when it is a cluster's own name."""
    return next((n for (n, _), own in zip(names, words, strict=True) if n and own[0] == word), word)
