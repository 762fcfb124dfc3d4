"""What a sample is to be: the tree it is drawn from, wishes per cluster, the user's mistakes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rrcluster.core.sample import Budgets, Levels, SampleSpec, allocate
from rrcluster.core.waterfill import Floats, Ints
from rrcluster.io.current import Current
from rrcluster.io.store import filesystem
from rrcluster.records import UserError


@dataclass(frozen=True)
class Population:
    """The clusters that a sample is drawn from, and what was wished for each of them."""

    levels: Levels
    sizes: Ints  # (leaves,) rows in the corpus
    kept: npt.NDArray[np.bool_]  # (leaves,) clusters that are not excluded
    weights: dict[int, Floats]

    def budgets(self, available: Ints, spec: SampleSpec, seed: int) -> Budgets:
        """Rows per leaf. Raises UserError when the wished minima are more than the size."""
        try:
            return allocate(self.levels, available, spec, seed, self.weights)
        except ValueError as error:
            raise UserError(
                "sample.min_per_cluster",
                spec.min_per_cluster,
                f"{error}, more than sample.size={spec.size:,}; lower it or draw more",
            ) from error


def check_spec(spec: SampleSpec, formats: Sequence[str]) -> SampleSpec:
    """The settings with ``export`` as a list. Raises UserError for what no run could satisfy."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spec.name):
        remedy = "name the sample with letters, digits, dots, dashes: it becomes sample/<name>/"
        raise UserError("sample.name", spec.name, remedy)
    if spec.size < 1:
        raise UserError("sample.size", spec.size, "draw at least 1 row, e.g. sample.size=100_000")
    asked = as_list(spec.export)
    for name in asked:
        if name not in formats:
            raise UserError("sample.export", name, f"choose from: {', '.join(formats)}")
    if spec.multiplier < 1:
        raise UserError("sample.multiplier", spec.multiplier, "must be at least 1 (no repetition)")
    if spec.min_per_cluster < 0:
        raise UserError("sample.min_per_cluster", spec.min_per_cluster, "must be 0 or more")
    most = spec.max_per_cluster
    if most is not None and most < max(spec.min_per_cluster, 1):
        remedy = f"must be at least 1 and sample.min_per_cluster={spec.min_per_cluster}"
        raise UserError("sample.max_per_cluster", most, remedy)
    if spec.dedup_threshold is not None and not 0 < spec.dedup_threshold <= 1:
        remedy = "a cosine between 0 and 1, e.g. 0.95, or null"
        raise UserError("sample.dedup_threshold", spec.dedup_threshold, remedy)
    if spec.temperature < 0:
        raise UserError("sample.temperature", spec.temperature, "must be 0 or more")
    for name in ("rows_per_tar", "batch_size"):
        if getattr(spec, name) < 1:
            raise UserError(f"sample.{name}", getattr(spec, name), "must be at least 1")
    if spec.method == "random":
        for name, unset in (("weights", None), ("min_per_cluster", 0), ("max_per_cluster", None)):
            if getattr(spec, name) != unset:
                raise UserError(
                    f"sample.{name}",
                    getattr(spec, name),
                    "has no meaning with sample.method=random; choose another method",
                )
    return replace(spec, export=list(dict.fromkeys(asked)))


def as_list(export: Any) -> list[str]:
    """Formats, of which one may be given without brackets."""
    return [export] if isinstance(export, str) else [str(name) for name in export or []]


def read_population(now: Current, spec: SampleSpec) -> Population:
    """The current clusters. Raises UserError for a run without them, or for unknown clusters."""
    if not now.levels or not now.assignments:
        raise UserError(
            "run_dir",
            now.store.uri,
            "this run has no levels to sample from: its clusters and assignments are not written "
            "yet; finish `rrcluster cluster run_dir=...` first",
        )
    for level in spec.levels:
        if not isinstance(level, int) or not 0 <= level < now.levels:
            raise UserError(
                "sample.levels", spec.levels, f"the run has levels 0 to {now.levels - 1}"
            )
    ids, parents, texts, size = [], [], [], np.zeros(0, np.int64)
    for level in range(now.levels):
        columns = ["cluster_id", "parent_id", "size", "captions"]
        table = now.clusters(level, columns).sort_by("cluster_id")
        ids.append(table["cluster_id"].to_numpy())
        if level:
            parents.append(np.searchsorted(ids[level - 1], table["parent_id"].to_numpy()))
        else:
            parents.append(np.zeros(len(table), np.int64))
        size = table["size"].to_numpy()
        wanted = bool(spec.weights) or bool(spec.exclude)
        captions = table["captions"].to_pylist() if wanted else []
        texts.append([c[0]["text"] if c else None for c in captions])
    levels = Levels(tuple(ids), tuple(parents))
    excluded = [np.zeros(len(i), bool) for i in ids]
    for name in spec.exclude:
        for level, at in enumerate(_find("sample.exclude", name, ids, texts)):
            excluded[level][at] = True
    weights: dict[int, Floats] = {}
    for name, weight in _read_weights(spec.weights).items():
        for level, at in enumerate(_find("sample.weights", name, ids, texts)):
            if not len(at):
                continue
            out = levels_above(levels, excluded, level)[at]
            if out.any():
                raise UserError(
                    "sample.weights",
                    f"{{{name}: {weight}}}",
                    f"cluster {ids[level][at[out.argmax()]]} is left out by sample.exclude; "
                    "name it in one of the two only",
                )
            if weight == 0:
                excluded[level][at] = True
            else:
                weights.setdefault(level, np.ones(len(ids[level])))[at] = weight
    kept = ~levels.below(excluded)
    if not size[kept].sum():
        raise UserError("sample.exclude", spec.exclude, "leaves no row to draw from")
    return Population(levels, size, kept, weights)


def levels_above(
    levels: Levels, marked: list[npt.NDArray[np.bool_]], level: int
) -> npt.NDArray[np.bool_]:
    """Clusters of a level that are marked themselves or through an ancestor."""
    return Levels(levels.ids[: level + 1], levels.parent[: level + 1]).below(marked[: level + 1])


def _read_weights(given: str | None) -> dict[str, float]:
    """Cluster → weight from ``{12: 3, red circle: 0.5}`` or a JSON file of such an object."""
    remedy = "give clusters and weights of 0 or more, e.g. {12: 3, red circle: 0.5}, or a JSON file"
    found: dict[str, Any] = {}
    if given is None:
        return {}
    try:
        if given.startswith("{") and given.endswith("}"):
            entries = [entry.rpartition(":") for entry in given[1:-1].split(",")]
            found = {name.strip(" '\""): float(weight) for name, _, weight in entries}
        else:
            fs, path = filesystem(given)
            found = {str(n): float(w) for n, w in json.loads(fs.cat_file(path)).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError("sample.weights", given, f"{remedy} ({error})") from error
    for name, weight in found.items():
        if not 0 <= weight < float("inf"):
            raise UserError("sample.weights", f"{{{name}: {weight:g}}}", remedy)
    return found


def _find(setting: str, name: object, ids: list[Ints], texts: list[list[str | None]]) -> list[Ints]:
    """Positions per level of the clusters with this id or best caption."""
    number = name if isinstance(name, int) else None
    if isinstance(name, str) and re.fullmatch(r"-?\d+", name):
        number = int(name)
    found = [
        np.flatnonzero(own == number)
        if number is not None
        else np.asarray([i for i, text in enumerate(captions) if text == name], np.int64)
        for own, captions in zip(ids, texts, strict=True)
    ]
    if not any(map(len, found)):
        last = max(int(own.max()) for own in ids)
        raise UserError(
            setting,
            name,
            f"no cluster has this id or best caption; ids go up to {last}, see clusters/level=*",
        )
    return found
