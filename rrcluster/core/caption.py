"""Names for clusters: the images of a cluster vote over candidate texts in CLIP's shared space.

Voting over names follows CPP (arXiv 2306.05272). What is ours, with top-1 over k-means clusters of
real CLIP ViT-B/32 vectors (171 pairs of cluster and vocabulary from 3 corpora; the constants below
were set on these, and CIFAR-10 was kept apart: 7 of 8 with LVIS names, plain cosine 1 of 8):

- both sides are centred, since images and texts lie in two narrow cones (arXiv 2203.02053) and a
  plain cosine mostly measures those: .79 to .88;
- half of an image's votes go by reciprocal rank, which finds the specific word of a fine cluster
  (.90), and half to all texts that fit it, which finds the general word of a coarse one (two
  clusters of 37 breeds are "dog" and "cat"). Ranks need no temperature, so the score means the same
  for every encoder: right names had at least .62, the best name of shuffled clusters at most .28;
- the images' centre is half the corpus and half the sibling clusters, so that a name says what
  distinguishes (.89 and .91 with 5 and 10 families).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from rrcluster.records import setting

SHRINK = 0.85  # of the centre: at 1 nothing is left of an only cluster (top-1 .88 at .95)
SIBLINGS = 0.5  # of the centre is the family's; at 1 small families lose what they share (.84)
BALLOT = 10  # texts that an image ranks
FITTING = 0.02  # of the texts fit an image
ENDINGS = (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"))
CHUNK = 4096  # images that vote at once: CHUNK * m floats of working memory


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


def origins(
    clusters: Float[Tensor, "k d"],
    siblings: Int[Tensor, " k"],
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "k d"]:
    """What the images of each cluster are compared with: corpus and family, half each, shrunken.

    ``siblings`` is the index of the parent; clusters with one parent are a family (all zeros: one
    flat family). With ``weights`` (sizes) large clusters count more.
    """
    if not len(clusters):
        return clusters.clone()
    mass = torch.ones(len(clusters)) if weights is None else weights
    mass = mass.to(clusters)
    families = int(siblings.max()) + 1
    total = clusters.new_zeros(families, clusters.shape[1])
    total.index_add_(0, siblings, clusters * mass[:, None])  # (families, d)
    count = clusters.new_zeros(families).index_add_(0, siblings, mass)
    tiny = torch.finfo(clusters.dtype).tiny
    family = (total / count.clamp_min(tiny)[:, None])[siblings]  # (k, d)
    corpus = total.sum(dim=0) / count.sum().clamp_min(tiny)
    return SHRINK * (SIBLINGS * family + (1.0 - SIBLINGS) * corpus)


def score_candidates(
    clusters: Float[Tensor, "k d"],
    texts: Float[Tensor, "m d"],
    siblings: Int[Tensor, " k"],
    allowed: Bool[Tensor, "k m"] | None = None,
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "k m"]:
    """Centred cosines of mean image vectors with texts, in deviations over each row's candidates.

    For when only the means are at hand, and to shortlist; ``vote`` is better and says how sure.
    Candidates that are not allowed get -inf.
    """
    images = normalize(clusters - origins(clusters, siblings, weights), dim=-1)
    cosine = images @ _centred(texts).T
    ok = torch.ones_like(cosine, dtype=torch.bool) if allowed is None else allowed
    count = ok.sum(dim=1, keepdim=True).clamp_min(1)
    mean = cosine.where(ok, 0.0).sum(dim=1, keepdim=True) / count
    spread = (cosine - mean).where(ok, 0.0).square().sum(dim=1, keepdim=True) / count
    z = (cosine - mean) / spread.sqrt().clamp_min(1e-6)
    return z.masked_fill(~ok, float("-inf"))


def vote(
    images: Float[Tensor, "n d"],
    cluster_of: Int[Tensor, " n"],
    origin: Float[Tensor, "k d"],
    texts: Float[Tensor, "m d"],
    allowed: Bool[Tensor, "k m"] | None = None,
) -> Float[Tensor, "k m"]:
    """The clusters' mean votes, in 0..1: 1/(2r) to an image's r-th nearest text, r <= 10, and 1/2
    to each of its nearest 2 %.

    1 means that every image of the cluster has this text first; a cluster whose images agree on
    nothing stays low everywhere. ``images`` are unit rows, a sample of each cluster; ``origin`` is
    from ``origins``.
    """
    k, m = len(origin), len(texts)
    total = origin.new_zeros(k, m, dtype=torch.float32)
    if not m:
        return total
    centred_texts = _centred(texts.float())
    fitting = math.ceil(FITTING * m)
    ballot = min(max(BALLOT, fitting), m)
    rank = torch.arange(1, ballot + 1, device=total.device)
    shares = 0.5 / rank * (rank <= BALLOT) + 0.5 * (rank <= fitting)  # (ballot,)
    for start in range(0, len(images), CHUNK):
        owner = cluster_of[start : start + CHUNK]  # (c,)
        rows = images[start : start + CHUNK].float() - origin[owner].float()
        cosine = normalize(rows, dim=-1) @ centred_texts.T  # (c, m)
        if allowed is not None:
            cosine = cosine.masked_fill(~allowed[owner], float("-inf"))
        best, choice = cosine.topk(ballot, dim=1)  # (c, ballot)
        share = shares.expand_as(choice).where(best.isfinite(), 0.0)
        cell = owner[:, None] * m + choice
        total.view(-1).index_add_(0, cell.reshape(-1), share.reshape(-1))
    voters = torch.bincount(cluster_of, minlength=k).clamp_min(1)
    return total / voters[:, None]


def pick(
    scores: Float[Tensor, "k m"],
    texts: Sequence[str],
    top: int,
    min_score: float = 0.0,
) -> list[list[tuple[str, float]]]:
    """Each cluster's best texts with their scores, without near-duplicates of a better one.

    A cluster whose best score is below ``min_score`` gets an empty list: it says that it has no
    name instead of a wrong one. Further names of a named cluster must reach a tenth of the first.
    """
    deep = min(len(texts), 6 * top)  # enough that duplicates leave ``top``
    if not deep:
        return [[] for _ in range(len(scores))]
    best, choice = scores.topk(deep, dim=1)
    stems = {j: _stems(texts[j]) for j in set(choice.reshape(-1).tolist())}
    names: list[list[tuple[str, float]]] = []
    for values, indices in zip(best.tolist(), choice.tolist(), strict=True):
        kept: list[int] = []
        named: list[tuple[str, float]] = []
        least = max(0.1 * values[0], torch.finfo(torch.float32).tiny)
        for value, j in zip(values, indices, strict=True):
            if values[0] < min_score or value < least or len(named) == top:
                break
            if any(_same(stems[j], stems[other]) for other in kept):
                continue
            kept.append(j)
            named.append((texts[j], value))
        names.append(named)
    return names


def _centred(texts: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    unit = normalize(texts, dim=-1)
    # A single text, or all alike, has no centre of its own: shrunken, so that something is left.
    centre = unit.mean(dim=0) * (1.0 if len(unit) > BALLOT else SHRINK)
    return normalize(unit - centre, dim=-1)


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
