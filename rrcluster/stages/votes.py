"""The vote of typical images over candidate texts, block by block, and the names it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrcluster.compute import Compute, in_order
from rrcluster.core.caption import CaptionSpec, Origin, origins, pick, vote
from rrcluster.core.forest import Forest, label
from rrcluster.core.kinds import Kinds, cover
from rrcluster.models.joined import shared_part
from rrcluster.models.vocabulary import load_kinds
from rrcluster.records import UserError
from rrcluster.stages.gather import OUTLIER, Facts
from rrcluster.stages.run import Run
from rrcluster.stages.select import LoadBlock
from rrcluster.stages.texts import Texts

OWN = 32  # phrases of a cluster's own captions that are its candidates, at any level

Captions = list[list[tuple[str, float]]]  # of each cluster of a level, best first
Votes = list[tuple[Tensor, Tensor]]  # per level: summed votes (k, c) and voters (k,)


def vote_names(
    run: Run,
    compute: Compute,
    load: LoadBlock,
    forest: Forest,
    facts: Facts,
    phrases: Captions,
    texts: Texts,
    paths: npt.NDArray[np.int64],
) -> list[Captions]:
    """Per level and cluster, the picked names.

    A finest cluster is named by its images' votes, a group by the word that covers its clusters'
    names; where no word covers half of it, by its images' votes too.
    """
    spec = run.config.caption
    own = [own_phrases(phrases, paths[:, level], texts) for level in range(paths.shape[1])]
    width = texts.general_x.shape[1]
    _refuse_another_space(run, width, facts.typical.shape[1])
    facts = replace(facts, typical=shared_part(facts.typical, width))
    ballots = tuple(
        Ballot.of(facts, paths, level, own_indices(own[level], texts))
        for level in range(paths.shape[1])
    )
    per_block = max(4, -(-spec.samples_per_cluster // load.blocks))
    vectors = (torch.from_numpy(texts.general_x), torch.from_numpy(texts.phrases_x))
    work = VoteBlock(load, forest, vectors, ballots, per_block)
    summed = reduce(_add_votes, in_order(compute.map(work, list(range(load.blocks)))))
    voted = [
        pick(votes / voters.clamp_min(1)[:, None], texts.general, spec.top, spec.min_score, own[i])
        for i, (votes, voters) in enumerate(summed)
    ]
    kinds = Kinds.of(load_kinds())
    return [*(_covered(voted, i, paths, facts, kinds, spec.top) for i in range(len(voted) - 1)),
            voted[-1]]  # fmt: skip


def _refuse_another_space(run: Run, texts: int, images: int) -> None:
    encoder = run.config.encoder
    if texts == images or (encoder.beside and texts < images):
        return
    remedy = f"texts have {texts} dimensions, images {images}; name the text side of the same space"
    raise UserError("encoder.text", encoder.text, remedy)


def name_opened(
    texts: Texts,
    x: Tensor,
    group: Tensor,
    means: Tensor,
    parent: Tensor,
    spec: CaptionSpec,
) -> Captions:
    """Names of clusters opened between fits, by the votes of the rows x (n, d) that opened them.

    ``means`` (k, d) are those of all finest clusters, the opened ones last (``group`` 0.. of the
    rows), and ``parent`` (k,) is what each lies under.
    """
    count = int(group.max()) + 1
    cluster = len(means) - count + group
    votes = vote(x.float(), cluster, origins(means, parent), torch.from_numpy(texts.general_x))
    return pick(votes[-count:], texts.general, spec.top, spec.min_score)


def _covered(
    voted: Sequence[Captions],
    level: int,
    paths: npt.NDArray[np.int64],
    facts: Facts,
    kinds: Kinds,
    top: int,
) -> Captions:
    """The groups of a level by words that cover their finest clusters' names."""
    named: list[list[tuple[str | None, int]]] = [[] for _ in voted[level]]
    for finest, group in enumerate(paths[:, level].tolist()):
        best = voted[-1][finest][0][0] if voted[-1][finest] else None
        named[group].append((best, int(facts.count[finest])))
    return [cover(own, kinds, top) or voted[level][i] for i, own in enumerate(named)]


def own_phrases(
    phrases: Captions, cluster_of: npt.NDArray[np.int64], texts: Texts
) -> list[list[str]]:
    """Of each cluster of a level its weightiest phrases that have vectors of their own."""
    has = set(texts.phrases)
    found: list[list[str]] = []
    for index in range(int(cluster_of.max()) + 1):
        weight: dict[str, float] = {}
        for finest in np.flatnonzero(cluster_of == index).tolist():
            for phrase, value in phrases[finest]:
                if phrase in has:
                    weight[phrase] = max(weight.get(phrase, 0.0), value)
        found.append(sorted(weight, key=lambda p: (-weight[p], p))[:OWN])
    return found


def own_indices(own: Sequence[Sequence[str]], texts: Texts) -> Tensor:
    """(k, p) rows of the phrases, -1 where a cluster has fewer."""
    position = {phrase: i for i, phrase in enumerate(texts.phrases)}
    places = max(map(len, own), default=0)
    found = torch.full((len(own), places), -1, dtype=torch.int64)
    for cluster, some in enumerate(own):
        found[cluster, : len(some)] = torch.tensor([position[p] for p in some], dtype=torch.int64)
    return found


@dataclass(frozen=True)
class Ballot:
    """Of one level: what images are compared with, and each cluster's own phrases (k, p)."""

    origin: Origin
    own: Tensor

    @staticmethod
    def of(facts: Facts, paths: npt.NDArray[np.int64], level: int, own: Tensor) -> Ballot:
        cluster_of = torch.from_numpy(paths[:, level])
        k = int(cluster_of.max()) + 1
        total = torch.zeros(k, facts.typical.shape[1], dtype=torch.float64)
        total.index_add_(0, cluster_of, facts.typical)
        size = torch.zeros(k, dtype=torch.int64).index_add_(0, cluster_of, facts.typical_count)
        parent = torch.zeros(k, dtype=torch.int64)
        if level:
            parent[cluster_of] = torch.from_numpy(paths[:, level - 1])
        return Ballot(origins((total / size.clamp_min(1)[:, None]).float(), parent), own)


def _add_votes(a: Votes, b: Votes) -> Votes:
    return [(v + w, n + m) for (v, n), (w, m) in zip(a, b, strict=True)]


@dataclass(frozen=True)
class VoteBlock:
    """Map: summed votes and voters of the block's typical images, per level."""

    load: LoadBlock
    forest: Forest
    texts: tuple[Tensor, Tensor]  # of all candidates (m, d), of phrases (q, d)
    levels: tuple[Ballot, ...]
    per_cluster: int

    def __call__(self, block: int) -> Votes:
        x = self.load(block)
        found = label(self.forest, x)
        finest = found.path[:, -1]
        order = torch.from_numpy(np.lexsort((found.cost.numpy(), finest.numpy())))
        owner = finest[order]
        rank = torch.arange(len(order)) - torch.searchsorted(owner, owner)
        rows = order[(rank < self.per_cluster) & (found.outlier[order] <= OUTLIER)]
        rows = rows.sort().values
        general, phrases = self.texts
        voters_x = shared_part(x[rows], general.shape[1])
        answers: Votes = []
        for level, ballot in enumerate(self.levels):
            cluster = found.path[rows, level]
            voters = torch.bincount(cluster, minlength=len(ballot.own))
            share = vote(voters_x, cluster, ballot.origin, general, ballot.own, phrases)
            answers.append((share * voters.clamp_min(1)[:, None], voters))
        return answers
