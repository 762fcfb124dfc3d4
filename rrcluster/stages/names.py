"""What the caption stage says about clusters, as other stages read it."""

from __future__ import annotations

from dataclasses import dataclass

from rrcluster.io.store import Store

NAMES = "model/caption/names.json"


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
        """One caption per finest cluster: its own, else a named ancestor's, else empty."""
        found = []
        for path in self.paths:
            named = [self.levels[level][index].captions for level, index in enumerate(path)]
            found.append(next((c[0][0] for c in reversed(named) if c), ""))
        return found


def read_names(store: Store) -> Names:
    content = store.read_json(NAMES)
    levels = [
        [Named([(t, s) for t, s in n["captions"]], n["exemplars"], n["radius"]) for n in level]
        for level in content["levels"]
    ]
    return Names(levels, content["paths"])
