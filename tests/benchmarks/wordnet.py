"""WordNet's nouns, read from its own files, to decide whether a caption is right.

The rule, for a caption and the name of a class:

- a name is looked up as WordNet writes it, whole, then without what is in parentheses, in singular
  form, then by its last word ("american bulldog" is a bulldog when WordNet lacks the whole);
  several names separated by commas or slashes are each looked up;
- ``same``: the strings are equal up to case, blanks, plural and parentheses, or some sense of the
  caption is a sense of the class (synonyms share a synset);
- ``covers``: ``same``, or some sense of the caption is a hypernym (or instance hypernym) of the
  class's first two senses, at least DEPTH steps below "entity": "animal" and "food" count,
  "object" and "artifact" do not.

Needs WordNet's ``dict`` folder (Debian: ``apt-get install wordnet-base``; or WNSEARCHDIR).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict")
DEPTH = 4  # steps below "entity" from which on a hypernym says something
SENSES = 2  # of a class name whose hypernyms count, most frequent first


def folder() -> Path | None:
    """WordNet's folder, where there is one."""
    for place in (os.environ.get("WNSEARCHDIR", ""), *FOLDERS):
        if place and (Path(place) / "data.noun").is_file():
            return Path(place)
    return None


class Nouns:
    """Senses of nouns and what is above them."""

    def __init__(self, where: Path) -> None:
        self.senses: dict[str, list[int]] = {}
        for line in (where / "index.noun").read_text("latin-1").splitlines():
            if not line.startswith(" "):
                parts = line.split()
                self.senses[parts[0]] = [int(p) for p in parts[-int(parts[2]) :]]
        self.above: dict[int, list[int]] = {}
        for line in (where / "data.noun").read_text("latin-1").splitlines():
            if not line.startswith(" "):
                pointers = re.findall(r" @i? (\d{8}) n ", line.split("|")[0])
                self.above[int(line[:8])] = [int(p) for p in pointers]
        self._depth: dict[int, int] = {}
        self.irregular = dict(
            line.split()[:2] for line in (where / "noun.exc").read_text().splitlines()
        )

    def look_up(self, name: str) -> list[int]:
        """Senses of a name, most frequent first; none when WordNet does not have it."""
        found: list[int] = []
        for one in parts_of(name):
            words = one.split()
            for start in range(len(words)):
                senses = self._senses("_".join(words[start:]))
                if senses:
                    found += senses
                    break
        return list(dict.fromkeys(found))

    def _senses(self, word: str) -> list[int]:
        for form in forms(word, self.irregular):
            if form in self.senses:
                return self.senses[form]
        return []

    def depth(self, sense: int) -> int:
        """Steps to "entity" by the shortest way."""
        if sense not in self._depth:
            self._depth[sense] = 1 + min((self.depth(s) for s in self.above[sense]), default=-1)
        return self._depth[sense]

    def hypernyms(self, sense: int) -> set[int]:
        found, todo = set(), [sense]
        while todo:
            for up in self.above[todo.pop()]:
                if up not in found:
                    found.add(up)
                    todo.append(up)
        return {s for s in found if self.depth(s) >= DEPTH}

    def same(self, caption: str, name: str) -> bool:
        if set(map(_bare, parts_of(caption))) & set(map(_bare, parts_of(name))):
            return True
        return bool(set(self._whole(caption)) & set(self.look_up(name)[:SENSES]))

    def covers(self, caption: str, name: str) -> bool:
        if self.same(caption, name):
            return True
        above = set().union(*(self.hypernyms(s) for s in self.look_up(name)[:SENSES]))
        return bool(set(self._whole(caption)) & above)

    def _whole(self, caption: str) -> list[int]:
        """Senses of a caption as a whole: "hot dog" is no dog."""
        return [s for one in parts_of(caption) for s in self._senses(one.replace(" ", "_"))]


def parts_of(name: str) -> list[str]:
    """The names in a name: "cock, rooster" are two, "crab (animal)" is "crab"."""
    plain = re.sub(r"\(.*?\)", " ", name.casefold().replace("_", " ").replace("-", " "))
    return [" ".join(p.split()) for p in re.split(r"[,/]", plain) if p.split()]


def forms(word: str, irregular: dict[str, str]) -> Iterator[str]:
    """The word, its singular, and WordNet's spelling with hyphens."""
    yield word
    if word in irregular:
        yield irregular[word]
    for ending, rest in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending):
            yield word[: -len(ending)] + rest
    if "_" in word:
        yield word.replace("_", "-")
        yield word.replace("_", "")


def _bare(name: str) -> str:
    return re.sub(r"(es|s)$", "", re.sub(r"[^a-z]", "", name))
