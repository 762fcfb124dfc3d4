"""Assemble the candidate names that ship with the package, and what kinds of things they are.

    python -m pipelines.build_vocabulary WORDNET TAGS WORDS

- WORDNET: the ``dict`` folder of WordNet 3.0 (Debian's ``wordnet-base``); WordNet licence.
- TAGS: visual tags, one per line (``ram_tag_list.txt`` of Recognize Anything; Apache-2.0).
- WORDS: words of image captions, rarest first, one per line (SpLiCE's LAION unigrams; Apache-2.0).

A tag becomes a name when its first sense in WordNet is something that can be seen: an animal, a
thing, food, a plant, a person, a place, weather, or an activity such as a sport. A tag of two words
or more that WordNet lacks is judged by its last word. The most common ones are kept.

Kinds are WordNet's hypernyms by names that people use (words of TAGS or WORDS whose first sense it
is), nearest first. Nothing here is fitted to any corpus that the package is measured on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rrcluster.models.vocabulary import NOTICE

NAMES_KEPT = 2500
FAMILIAR = 5_000  # most common words; nouns made of them are common too ("musical instrument")
# Numbers of WordNet's lexicographer files (lexnames(5WN)) whose things can be seen.
SEEN = {
    5: "animal", 6: "artifact", 8: "body", 13: "food", 15: "location", 17: "object",
    18: "person", 19: "phenomenon", 20: "plant", 25: "shape", 27: "substance",
}  # fmt: skip
TOPS = 3  # the file of the most general nouns: kinds, such as "animal", but no names
ACTIVITIES = ("sport", "dance", "ceremony", "celebration", "party", "music")  # with what is below
PICTURES = (  # kinds of pictures: of a web corpus as much as things, and in no file of things
    "advertisement", "banner", "barcode", "cartoon", "chart", "collage", "comic book", "diagram",
    "document", "flyer", "icon", "illustration", "infographic", "logo", "magazine cover", "map",
    "newspaper", "pattern", "poster", "receipt", "screenshot", "sketch", "stripe", "text",
    "web page",
)  # fmt: skip
VAGUE = 0.25  # a kind over more than this share of all nouns says nothing
HIGHEST = 4  # steps below "entity" from which on a kind may be one
SAID = {"plane figure": "shape"}  # where people have another word than WordNet
UNFIT = {"drug", "sex", "man", "thing", "part", "unit"}  # common, and unfit to name a cluster


class WordNet:
    """Nouns: senses of words, words of senses, what is above a sense, its lexicographer file."""

    def __init__(self, folder: Path) -> None:
        self.senses: dict[str, list[int]] = {}
        self.words: dict[int, list[str]] = {}
        self.above: dict[int, list[int]] = {}
        self.file: dict[int, int] = {}
        self.uses: dict[tuple[str, bool], int] = {}  # of a word in tagged texts, as a noun or not
        for key, _, count in _lines(folder / "cntlist.rev"):
            word, _, rest = key.partition("%")
            noun = rest.startswith("1")
            self.uses[word, noun] = self.uses.get((word, noun), 0) + int(count)
        for fields in _lines(folder / "index.noun"):
            self.senses[fields[0]] = [int(f) for f in fields[-int(fields[2]) :]]
        for fields in _lines(folder / "data.noun"):
            sense, words = int(fields[0]), int(fields[3], 16)
            self.file[sense] = int(fields[1])
            self.words[sense] = [w.replace("_", " ") for w in fields[4 : 4 + 2 * words : 2]]
            text = " ".join(fields).split(" | ")[0]
            self.above[sense] = [int(p) for p in re.findall(r" @i? (\d{8}) n ", text)]

    def first(self, name: str) -> int | None:
        """The most frequent sense of a name, its singular when it is a plural."""
        word = name.casefold().replace(" ", "_")
        for form in (word, word.removesuffix("s"), word.removesuffix("es")):
            if form in self.senses:
                return self.senses[form][0]
        return None

    def is_noun(self, name: str) -> bool:
        """Whether the word is used as a noun at least as often as otherwise ("modern" is not)."""
        word = name.casefold().replace(" ", "_")
        return self.uses.get((word, True), 0) >= self.uses.get((word, False), 0)

    def line(self, sense: int) -> list[int]:
        """What is above a sense, nearest first, along first hypernyms: a car is no container."""
        found: list[int] = []
        while self.above[sense]:
            sense = self.above[sense][0]
            found.append(sense)
        return found

    def height(self, sense: int) -> int:
        """Steps below "entity"."""
        return len(self.line(sense))


def names_of(wordnet: WordNet, tags: Iterable[str], rank: dict[str, int]) -> list[str]:
    """The visible tags, the most common NAMES_KEPT of them, in alphabetical order."""
    activities = {s for word in ACTIVITIES for s in wordnet.senses[word][:2]}

    def seen(sense: int | None) -> bool:
        if sense is None:
            return False
        return wordnet.file[sense] in SEEN or bool(activities & {sense, *wordnet.line(sense)})

    def commonness(tag: str) -> int:
        return min(rank.get(word, -1) for word in tag.split())

    kept: dict[str, str] = {}
    for tag in tags:
        whole = wordnet.first(tag)
        judged = whole if whole is not None or " " not in tag else wordnet.first(tag.split()[-1])
        fit = (seen(judged) and wordnet.is_noun(tag)) or tag.casefold() in PICTURES
        if fit and tag.casefold() not in UNFIT and len(tag) > 2:
            kept.setdefault(tag.casefold(), tag)
    first = set(PICTURES)
    common = sorted(kept.values(), key=lambda t: (t not in first, -commonness(t.casefold()), t))
    return sorted(common[:NAMES_KEPT], key=str.casefold)


def kinds_of(wordnet: WordNet, common: set[str]) -> dict[str, list[str]]:
    """Each common visible noun with the common kinds of thing that it is, nearest first."""
    visible = [s for s, file in wordnet.file.items() if file in SEEN]
    general = [s for s, file in wordnet.file.items() if file == TOPS]
    name = {s: _name(wordnet, s, common) for s in (*visible, *general)}
    named = [s for s in visible if name[s]]
    over: dict[int, int] = {}
    for sense in named:
        for up in wordnet.line(sense):
            over[up] = over.get(up, 0) + 1
    fit = {
        s
        for s, count in over.items()
        if name.get(s) and count <= VAGUE * len(named) and wordnet.height(s) >= HIGHEST
    }
    found: dict[str, list[str]] = {}
    for sense in named:
        above = sorted((s for s in wordnet.line(sense) if s in fit), key=lambda s: over[s])
        for word in wordnet.words[sense]:
            first = wordnet.senses[word.casefold().replace(" ", "_")][0]
            plural = word.endswith("s") and wordnet.senses.get(word[:-1].casefold())
            if plural and wordnet.file[sense] not in (6, 8, 13):  # "hearts" is a game of cards
                continue
            if first == sense and (word.casefold() in common or " " not in word):
                kinds = [name[s] for s in above if name[s] != word.casefold()]
                if word.casefold() != name[sense] and (kinds or sense in fit):
                    kinds = [name[sense], *kinds]  # a synonym is a kind of the usual word
                found.setdefault(word.casefold(), list(dict.fromkeys(filter(None, kinds))))
    return found


def _name(wordnet: WordNet, sense: int, common: set[str]) -> str:
    """The word for a sense: the first common one that means this first of all."""
    for word in wordnet.words[sense]:
        plain = word.replace(" ", "_")
        if word.islower() and word in common and wordnet.senses[plain][0] == sense:
            return SAID.get(word, word)
    return ""


def _spaced(word: str) -> str:
    return word.replace("_", " ")


def _lines(path: Path) -> Iterable[list[str]]:
    for line in path.read_text("latin-1").splitlines():
        if not line.startswith(" "):
            yield line.split()


def main(arguments: list[str]) -> None:
    if len(arguments) != 3:
        raise SystemExit(__doc__)
    wordnet = WordNet(Path(arguments[0]))
    tags = [t.strip() for t in Path(arguments[1]).read_text("utf-8").splitlines() if t.strip()]
    words = [w.strip() for w in Path(arguments[2]).read_text("utf-8").splitlines()]
    rank = {word.casefold(): i for i, word in enumerate(words)}
    names = names_of(wordnet, tags, rank)
    familiar = {word for word, i in rank.items() if i >= len(words) - FAMILIAR}
    common = {t.casefold() for t in tags} | rank.keys()
    common |= {n for n in map(_spaced, wordnet.senses) if familiar.issuperset(n.split())}
    kinds = kinds_of(wordnet, common)
    folder = Path(__file__).resolve().parents[1] / "rrcluster" / "models"
    head = "".join(f"# {line}\n" for line in NOTICE.splitlines())
    (folder / "vocabulary.txt").write_text(head + "\n".join(names) + "\n", "utf-8")
    lines = [f"{name}: {', '.join(above)}".strip() for name, above in sorted(kinds.items())]
    (folder / "kinds.txt").write_text(head + "\n".join(lines) + "\n", "utf-8")
    print(f"{len(names)} names, {len(lines)} nouns with their kinds")


if __name__ == "__main__":
    main(sys.argv[1:])
