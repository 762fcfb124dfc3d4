"""What the caption stage says about clusters, as other stages read it."""

from __future__ import annotations

from dataclasses import dataclass

from rrcluster.core.kinds import ENOUGH
from rrcluster.io.store import Store

NAMES = "model/caption/names.json"
OPENED_NAMES = "novelty/names.json"  # the same, with clusters opened between fits


@dataclass(frozen=True)
class Named:
    """What is written about one cluster: (caption, score) best first, exemplar ids, radius."""

    captions: list[tuple[str, float]]
    exemplars: list[str]
    radius: float


@dataclass(frozen=True)
class Names:
    """Per level, coarse to fine, what is written about each cluster; ``parents`` of the finest."""

    levels: list[list[Named]]
    paths: list[list[int]]  # of each finest cluster

    def label_of_finest(self) -> list[str]:
        """One caption per finest cluster: its own, else the word of the nearest group that speaks
        for nearly all of it, else empty: a word for a part of a group says nothing of the rest."""
        found = []
        for path in self.paths:
            *groups, own = [self.levels[lv][index].captions for lv, index in enumerate(path)]
            sure = [c for c in groups if c and c[0][1] >= ENOUGH]
            found.append(next((c[0][0] for c in (own, *reversed(sure)) if c), ""))
        return found


def read_names(store: Store) -> Names:
    content = store.read_json(OPENED_NAMES if store.exists(OPENED_NAMES) else NAMES)
    levels = [
        [Named([(t, s) for t, s in n["captions"]], n["exemplars"], n["radius"]) for n in level]
        for level in content["levels"]
    ]
    return Names(levels, content["paths"])
