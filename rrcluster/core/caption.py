"""Names for clusters: the images of a cluster vote over candidate texts in CLIP's shared space.

Voting over names follows CPP (arXiv 2306.05272). What is ours (``tests/benchmarks/captions.py``
measures it against CPP's voting; the constants below were chosen while looking at such scores):

- both sides are centred, since images and texts lie in two narrow cones (arXiv 2203.02053) and a
  plain cosine mostly measures those. What the corpus as a whole says for a text is taken off, but
  at most CLIP_AT deviations of it: the cones tilt all texts a little, while a text that stands out
  is what the corpus is about, and pets are to be called cats and dogs;
- half of an image's votes go by reciprocal rank, which finds the specific word of a fine cluster,
  and half to all texts that fit it, which finds the general word of a mixed one. Ranks need no
  temperature, so the score means the same for every encoder;
- what the sibling clusters share beyond the corpus is taken off by half, so that a name says what
  distinguishes.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from rrcluster.records import setting

SHRINK = 0.85  # of the corpus's part: at 1 nothing is left of an only cluster
SIBLINGS = 0.5  # of what the family adds to the corpus; at 1 small families lose what they share
CLIP_AT = 2.0  # standard deviations over the texts that the corpus's part may take off
BALLOT = 10  # texts that an image ranks
FITTING = 0.02  # of the texts fit an image
ENDINGS = (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"))
CHUNK = 1024  # images that vote at once: CHUNK * (m + own * d) floats of working memory


@dataclass
class CaptionSpec:
    """How clusters get their names."""

    vocabulary: str | None = setting(
        None, "text file of candidate names, one per line; null is the vocabulary that ships"
    )
    top: int = setting(5, "names kept per cluster")
    samples_per_cluster: int = setting(256, "images of a cluster that vote, its most typical ones")
    ngrams: int = setting(
        3, "longest phrase taken from the corpus's own captions as a candidate; 0 takes none"
    )
    min_score: float = setting(
        0.3, "a best name with fewer votes (0..1) is not given: the cluster says it has no name"
    )


@dataclass(frozen=True)
class Origin:
    """What images are compared with: the corpus (d,), and what each family adds to it (k, d)."""

    corpus: Float[Tensor, " d"]
    family: Float[Tensor, "k d"]


def origins(
    clusters: Float[Tensor, "k d"],
    siblings: Int[Tensor, " k"],
    weights: Float[Tensor, " k"] | None = None,
) -> Origin:
    """The origin of clusters with mean vectors ``clusters``.

    ``siblings`` is the index of the parent; clusters with one parent are a family (all zeros: one
    flat family). With ``weights`` (sizes) large clusters count more.
    """
    if not len(clusters):
        return Origin(clusters.new_zeros(clusters.shape[1]), clusters.clone())
    mass = torch.ones(len(clusters)) if weights is None else weights
    mass = mass.to(clusters)
    families = int(siblings.max()) + 1
    total = clusters.new_zeros(families, clusters.shape[1])
    total.index_add_(0, siblings, clusters * mass[:, None])  # (families, d)
    count = clusters.new_zeros(families).index_add_(0, siblings, mass)
    tiny = torch.finfo(clusters.dtype).tiny
    family = (total / count.clamp_min(tiny)[:, None])[siblings]  # (k, d)
    corpus = total.sum(dim=0) / count.sum().clamp_min(tiny)
    return Origin(SHRINK * corpus, SHRINK * SIBLINGS * (family - corpus))


def vote(
    images: Float[Tensor, "n d"],
    cluster_of: Int[Tensor, " n"],
    origin: Origin,
    texts: Float[Tensor, "m d"],
    own: Int[Tensor, "k p"] | None = None,
    phrases: Float[Tensor, "q d"] | None = None,
) -> Float[Tensor, "k c"]:
    """The clusters' mean votes, in 0..1: 1/(2r) to an image's r-th nearest text, r <= 10, and 1/2
    to each of its nearest 2 %.

    Columns are the ``texts``, then p places for the rows of ``phrases`` that are candidates of this
    cluster alone (``own``, -1 for none). 1 means that every image of the cluster has this text
    first; a cluster whose images agree on nothing stays low everywhere. ``images`` are unit rows, a
    sample of each cluster.
    """
    k, m = len(origin.family), len(texts)
    places = 0 if own is None else own.shape[1]
    total = origin.family.new_zeros(k, m + places, dtype=torch.float32)
    if not m + places:
        return total
    centre = _centre(texts.float())
    general = normalize(normalize(texts.float(), dim=-1) - centre, dim=-1)  # (m, d)
    corpus = general @ origin.corpus.float()  # (m,)
    limit = _limit(corpus)
    fitting = math.ceil(FITTING * (m + places))
    ballot = min(max(BALLOT, fitting), m + places)
    rank = torch.arange(1, ballot + 1, device=total.device)
    shares = 0.5 / rank * (rank <= BALLOT) + 0.5 * (rank <= fitting)  # (ballot,)
    for start in range(0, len(images), CHUNK):
        owner = cluster_of[start : start + CHUNK]  # (c,)
        rows = images[start : start + CHUNK].float() - origin.family[owner].float()
        score = rows @ general.T - corpus.clamp_max(limit)  # (c, m)
        if own is not None and phrases is not None and places:
            mine = own[owner]  # (c, p); the phrase of an empty place is masked below
            words = normalize(normalize(phrases[mine].float(), dim=-1) - centre, dim=-1)
            bias = (words @ origin.corpus.float()).clamp_max(limit)  # (c, p)
            extra = torch.einsum("cd,cpd->cp", rows, words) - bias
            score = torch.cat([score, extra.masked_fill(mine < 0, float("-inf"))], dim=1)
        best, choice = score.topk(ballot, dim=1)  # (c, ballot)
        share = shares.expand_as(choice).where(best.isfinite(), 0.0)
        cell = owner[:, None] * (m + places) + choice
        total.view(-1).index_add_(0, cell.reshape(-1), share.reshape(-1))
    voters = torch.bincount(cluster_of, minlength=k).clamp_min(1)
    return total / voters[:, None]


def _limit(corpus: Float[Tensor, " m"]) -> float:
    """The most that the corpus takes off a text's score."""
    if len(corpus) <= BALLOT:  # too few to tell what stands out
        return float("inf")
    return float(corpus.mean() + CLIP_AT * corpus.std())


def _centre(texts: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """The texts' cone; a single text, or all alike, has none of its own: shrunken."""
    if not len(texts):
        return texts.new_zeros(texts.shape[1])
    unit = normalize(texts, dim=-1)
    return unit.mean(dim=0) * (1.0 if len(unit) > BALLOT else SHRINK)


def pick(
    scores: Float[Tensor, "k c"],
    texts: Sequence[str],
    top: int,
    min_score: float = 0.0,
    own: Sequence[Sequence[str]] = (),
) -> list[list[tuple[str, float]]]:
    """Each cluster's best texts with their scores, without near-duplicates of a better one.

    Columns are the ``texts``, then the cluster's ``own``. A cluster whose best score is below
    ``min_score`` gets an empty list: it says that it has no name instead of a wrong one. Further
    names of a named cluster must reach a tenth of the first.
    """
    deep = min(scores.shape[1], 6 * top)  # enough that duplicates leave ``top``
    if not deep:
        return [[] for _ in range(len(scores))]
    best, choice = scores.topk(deep, dim=1)
    names: list[list[tuple[str, float]]] = []
    for i, (values, indices) in enumerate(zip(best.tolist(), choice.tolist(), strict=True)):
        named: list[tuple[str, float]] = []
        least = max(0.1 * values[0], torch.finfo(torch.float32).tiny)
        for value, j in zip(values, indices, strict=True):
            if values[0] < min_score or value < least or len(named) == top:
                break
            text = texts[j] if j < len(texts) else own[i][j - len(texts)]
            if not any(_same(_stems(text), _stems(better)) for better, _ in named):
                named.append((text, value))
        names.append(named)
    return names


@functools.lru_cache(1 << 16)
def _stems(text: str) -> frozenset[str]:
    """The words of a text without case, accents and common English endings."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    first = re.sub(r"\(.*?\)", " ", plain) or plain
    return frozenset(_stem(word) for word in re.findall(r"\w+", first.replace("_", " ")))


def _stem(word: str) -> str:
    for ending, rest in ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + rest
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def _same(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether one text adds no word to the other ("dogs", "dog", "a brown dog")."""
    return a <= b or b <= a
