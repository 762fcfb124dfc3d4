"""Phrases that set the captions of one cluster apart from those of the others.

Class-based tf-idf (arXiv 2203.05794, equation 1) over n-grams, with each caption counted once per
phrase, so that one long or repetitive caption does not outvote the others. Nothing is known about
the language: words are runs of letters, and stop words are learned from the clusters themselves.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

STOP_RATE = 0.02  # a stop word is in this share of all captions ...
STOP_SPREAD = 0.7  # ... in nearly as many clusters as if it were scattered at random ...
STOP_LIFT = 2.0  # ... and in none of them surely this many times as frequent as overall
LEAST_CAPTIONS = 2  # captions of the cluster that must have the phrase

# Combining marks belong to their word (Devanagari, Arabic, Thai, ...); re's \w leaves them out.
_MARKS = "".join(
    re.escape(chr(c)) for c in range(sys.maxunicode) if unicodedata.category(chr(c))[0] == "M"
)
# Scripts without spaces between words, where single characters are the tokens: kana and Han.
_UNSPACED = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_LETTER = rf"(?:(?![{_UNSPACED}])[^\W_]|[{_MARKS}])"
_TOKEN = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:['’\-]{_LETTER}+)*")
_ONE_UNSPACED = re.compile(rf"[{_UNSPACED}]")
_ADDRESS = re.compile(r"\S*(?:://|www\.|@)\S*")
_PAUSE = re.compile(r"[.,;:!?()\[\]{}\"|/\\\n。、，！？；：「」…–—]+")


def cluster_ngrams(
    captions: Sequence[Sequence[str]], top: int, longest: int = 3
) -> list[list[tuple[str, float]]]:
    """For each cluster its ``top`` phrases of up to ``longest`` words with their tf-idf.

    tf is the share of the cluster's captions that have the phrase, idf = log(1 + a / f) with a the
    mean number of captions per cluster and f the captions that have it anywhere.
    """
    counts = [_count(texts, longest) for texts in captions]
    sizes = [max(len(texts), 1) for texts in captions]
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    stops = _stop_words(counts, sizes, total)
    mean_size = sum(sizes) / max(len(sizes), 1)
    answer: list[list[tuple[str, float]]] = []
    for count, size in zip(counts, sizes, strict=True):
        scored = [
            (phrase, c / size * math.log1p(mean_size / total[phrase]))
            for phrase, c in count.items()
            if c >= min(LEAST_CAPTIONS, size) and _is_phrase(phrase, stops)
        ]
        scored.sort(key=lambda item: (-item[1], item[0]))
        answer.append(_without_parts(scored, count, top))
    return answer


def tokens(text: str) -> list[list[str]]:
    """The casefolded words of a text, in one list per stretch between pauses."""
    plain = _ADDRESS.sub(" ", unicodedata.normalize("NFKC", text)).casefold()
    return [_TOKEN.findall(stretch) for stretch in _PAUSE.split(plain)]


def ngrams(text: str, longest: int) -> Iterator[str]:
    """Runs of up to ``longest`` neighbouring words; Han and kana characters join without spaces."""
    for words in tokens(text):
        for i in range(len(words)):
            for n in range(1, min(longest, len(words) - i) + 1):
                run = words[i : i + n]
                unspaced = sum(bool(_ONE_UNSPACED.match(word)) for word in run)
                if unspaced in (0, n):
                    yield ("" if unspaced else " ").join(run)


def _count(texts: Sequence[str], longest: int) -> Counter[str]:
    count: Counter[str] = Counter()
    for text in texts:
        count.update(set(ngrams(text, longest)))
    return count


def _stop_words(
    counts: Sequence[Counter[str]], sizes: Sequence[int], total: Counter[str]
) -> frozenset[str]:
    """Words that are everywhere and nowhere special; needs three clusters to know any."""
    if len(counts) < 3:
        return frozenset()
    rows = sum(sizes)
    frequent = [w for w, c in total.items() if c >= STOP_RATE * rows and " " not in w]
    return frozenset(w for w in frequent if _is_everywhere(w, counts, sizes, total[w] / rows))


def _is_everywhere(
    word: str, counts: Sequence[Counter[str]], sizes: Sequence[int], rate: float
) -> bool:
    by_chance = sum(1.0 - (1.0 - min(rate, 1.0)) ** size for size in sizes)
    spread = sum(word in count for count in counts)
    # Less one standard deviation of a count: a small cluster is not special by accident.
    sure = (c - math.sqrt(c) for c in (count[word] for count in counts))
    lift = max(c / size for c, size in zip(sure, sizes, strict=True)) / rate
    return spread >= STOP_SPREAD * by_chance and lift < STOP_LIFT


def _is_phrase(phrase: str, stops: frozenset[str]) -> bool:
    """Whether both ends mean something; inside, "bowl of soup" may have its "of"."""
    words = phrase.split()
    if _ONE_UNSPACED.match(phrase):
        return len(phrase) > 1 and phrase not in stops
    ends = (words[0], words[-1])
    return not any(w in stops or len(w) < 2 or w.isnumeric() for w in ends)


def _without_parts(
    scored: Sequence[tuple[str, float]], count: Counter[str], top: int
) -> list[tuple[str, float]]:
    """The best phrases; a part gives way to the whole that it nearly always is part of."""
    kept: list[tuple[str, float]] = []
    for phrase, score in scored[: 8 * top]:
        whole = any(
            _within(phrase, other) and count[other] >= 0.7 * count[phrase]
            for other, _ in scored[: 8 * top]
        )
        if not whole and not any(
            _within(other, phrase) or _within(phrase, other) for other, _ in kept
        ):
            kept.append((phrase, score))
        if len(kept) == top:
            break
    return kept


def _within(part: str, whole: str) -> bool:
    if part == whole:
        return False
    if _ONE_UNSPACED.match(part):
        return part in whole
    return f" {part} " in f" {whole} "
