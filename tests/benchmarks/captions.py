"""Captions on real CLIP vectors: the job's own clusters, named by the job and by CPP's voting.

    python tests/benchmarks/captions.py [--quick] --json FILE

The whole job clusters each set once, at two levels; then its caption stage and CPP's voting
(softmax of 100 times the cosine, the best five texts of every image, summed; arXiv 2306.05272, as
its published code does) name the same clusters from the same vocabulary, with one setting for all.
The vocabularies are names with ready text vectors; names of classes are never added, chosen or kept
apart. A caption is judged by WordNet (``wordnet.py`` says how):

- ``right``: share of clusters whose caption is the majority class or a synonym or hypernym of it,
  over those for which the vocabulary has a right answer; a cluster left without a name is wrong;
- ``same``: the same without hypernyms, over those for which the vocabulary has a synonym;
- ``covered``: share of a cluster's images whose class the caption covers, mean over clusters;
- ``named``: share of clusters that got a name.

On flickr8k the job sees the captions of every second photo; a cluster's best phrase is looked for
in the unseen captions of its other photos (``lift``: how many times as often as anywhere). Needs
the folder of real data (RRCLUSTER_TEST_DATA, or shared/data beside the repository) and WordNet
(Debian: wordnet-base).
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import wordnet
from torch.nn.functional import normalize

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load as load_settings
from rrcluster.core.ngrams import ngrams
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.stages.caption import caption
from rrcluster.stages.names import Names, read_names
from rrcluster.stages.run import Record, Run, existing_run

SETS = ("food10", "oxford_pets", "caltech101", "cifar10")
VOCABULARIES = ("lvis", "oid", "o365", "coco", "imagenet1k_v1")
OURS, CPP = "rrcluster", "CPP voting"
CATS = {
    "abyssinian", "bengal", "birman", "bombay", "british_shorthair", "egyptian_mau", "maine_coon",
    "persian", "ragdoll", "russian_blue", "siamese", "sphynx",
}  # fmt: skip
# Class names that WordNet lacks or means otherwise, as it would say them.
SPELLED = {
    "cougar_body": "cougar", "cougar_face": "cougar", "car_side": "car",
    "binocular": "binoculars", "water_lilly": "water lily",
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """Clusters of a level: of each image its cluster, and the name that each system gives."""

    level: str
    cluster_of: npt.NDArray[np.int64]
    names: dict[str, list[str]]  # system → names, "" for none


def load(folder: Path, name: str) -> tuple[torch.Tensor, npt.NDArray[np.int64], list[str]]:
    file = "cifar10_test_first500" if name == "cifar10" else f"image_{name}"
    found = np.load(folder / f"{file}.npz", allow_pickle=False)
    x = normalize(torch.from_numpy(found["x"]).float(), dim=1).half()
    return x, found["y"].astype(np.int64), [str(c) for c in found["class_name"]]


def vocabulary(folder: Path, name: str) -> tuple[torch.Tensor, list[str]]:
    found = np.load(folder / f"text_{name}.npz", allow_pickle=False)
    return normalize(torch.from_numpy(found["x"]).float(), dim=1), [str(n) for n in found["name"]]


def cpp_votes(
    x: torch.Tensor, cluster_of: npt.NDArray[np.int64], texts: torch.Tensor, k: int
) -> torch.Tensor:
    """CPP's votes (k, m): every image gives its five best texts their softmax values."""
    share, best = (100.0 * x.float() @ texts.T).softmax(dim=1).topk(min(5, len(texts)), dim=1)
    cell = torch.from_numpy(cluster_of)[:, None] * len(texts) + best
    total = torch.zeros(k * len(texts)).index_add_(0, cell.reshape(-1), share.reshape(-1))
    return total.reshape(k, len(texts))


def fitted(work: str, x: torch.Tensor, k: list[int], seed: int, *more: str) -> Run:
    """The whole job on vectors."""
    Path(work, "corpus").mkdir(exist_ok=True)
    np.save(f"{work}/corpus/vectors.npy", x.numpy())
    overrides = [
        f"corpus.uri={work}/corpus", "corpus.format=embeddings", f"run_dir={work}/run",
        f"k={k}".replace(" ", ""), f"seed={seed}", "compute=in_process", *more,
    ]  # fmt: skip
    config = load_settings(overrides)
    cluster(config, silent)
    return existing_run(config)[0]


def renamed(run: Run, text: Path) -> Names:
    """The caption stage again, with another vocabulary."""
    for name in ("names.json", "examples.json", "texts.safetensors"):
        Path(run.store.path(f"model/caption/{name}")).unlink(missing_ok=True)
    encoder = replace(run.config.encoder, kind="vectors", text=str(text))
    again = replace(run, config=replace(run.config, encoder=encoder))
    record = Record.read(run.store)
    assert record is not None, "the run was fitted"
    with InProcessCompute(2) as compute:
        caption(again, compute, record, silent)
    return read_names(Store(run.store.uri))


def systems(
    folder: Path, run: Run, x: torch.Tensor, voc: str, ids: npt.NDArray[np.int64]
) -> Iterator[Named]:
    """Both systems' names for the clusters of each level."""
    found = renamed(run, folder / f"text_{voc}.npz")
    texts, names = vocabulary(folder, voc)
    first = 0
    for level, ours in enumerate(found.levels):
        cluster_of = ids[:, level] - first
        best = cpp_votes(x, cluster_of, texts, len(ours)).argmax(1).tolist()
        mine = [named.captions[0][0] if named.captions else "" for named in ours]
        first += len(ours)
        kind = "clusters" if level == len(found.levels) - 1 else "groups"
        yield Named(kind, cluster_of, {OURS: mine, CPP: [names[i] for i in best]})


class Judge:
    """Whether a caption is right for a class, remembered."""

    def __init__(self, nouns: wordnet.Nouns, of_pets: bool) -> None:
        self.nouns, self.of_pets = nouns, of_pets
        self._known: dict[tuple[str, str], tuple[bool, bool]] = {}

    def __call__(self, text: str, label: str) -> tuple[bool, bool]:
        """(same, covers)"""
        if (text, label) not in self._known:
            same = bool(text) and self.nouns.same(text, SPELLED.get(label, label))
            ways = [SPELLED.get(label, label)]
            if self.of_pets:  # WordNet lacks many breeds, and "bombay" is a city there
                ways.append("cat" if label in CATS else "dog")
            covers = bool(text) and any(self.nouns.covers(text, way) for way in ways)
            self._known[text, label] = (same, covers)
        return self._known[text, label]


def score(
    named: Named, system: str, y: npt.NDArray[np.int64], labels: list[str], judge: Judge,
    vocabulary: list[str],
) -> dict[str, float]:  # fmt: skip
    right, same, covered = [], [], []
    names = named.names[system]
    for index, text in enumerate(names):
        counts = np.bincount(y[named.cluster_of == index], minlength=len(labels))
        if not counts.sum():
            continue
        major = labels[int(counts.argmax())]
        if any(judge(t, major)[1] for t in vocabulary):
            right.append(judge(text, major)[1])
        if any(judge(t, major)[0] for t in vocabulary):
            same.append(judge(text, major)[0])
        by_class = [judge(text, label)[1] for label in labels]
        covered.append(float(counts @ np.asarray(by_class, float) / counts.sum()))
    found = {"named": float(np.mean([bool(n) for n in names])), "covered": float(np.mean(covered))}
    if right:
        found["right"] = float(np.mean(right))
    if same:
        found["same"] = float(np.mean(same))
    return found


def measure(folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    where = wordnet.folder()
    if where is None:
        raise SystemExit("no WordNet: apt-get install wordnet-base, or set WNSEARCHDIR")
    nouns = wordnet.Nouns(where)
    for name in SETS:
        x, y, labels = load(folder, name)
        k = [max(2, len(labels) // 5), len(labels)]
        judge = Judge(nouns, name == "oxford_pets")
        for seed in range(1 if quick else 3):
            with TemporaryDirectory() as work:
                text = f"encoder.text={folder / 'text_coco.npz'}"
                run = fitted(work, x, k, seed, text)
                table = pq.read_table(f"{work}/run/assignments/increment=00000/000000.parquet")
                ids = np.stack([table[f"level_{i}"].to_numpy() for i in range(2)], axis=1)
                for voc in VOCABULARIES[:3] if quick else VOCABULARIES:
                    candidates = vocabulary(folder, voc)[1]
                    for named in systems(folder, run, x, voc, ids):
                        for system in (OURS, CPP):
                            values = score(named, system, y, labels, judge, candidates)
                            for metric, value in values.items():
                                params = {"k": k, "seed": seed, "level": named.level}
                                case = f"{name}/{voc}/{named.level}"
                                yield row(system, case, metric, value, params)


def photos(folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Whether a cluster's best phrase is in captions that the job has not seen."""
    found = np.load(folder / "vectors/image_flickr8k_1000_captioned.npz", allow_pickle=False)
    x = normalize(torch.from_numpy(found["x"]).float(), dim=1).half()
    captions = [str(text) for text in found["caption"]]
    seen = [text if i % 2 else None for i, text in enumerate(captions)]
    hidden = np.arange(len(captions)) % 2 == 0
    for seed in range(1 if quick else 3):
        with TemporaryDirectory() as work:
            Path(work, "corpus").mkdir()
            pq.write_table(pa.table({"caption": seen}), f"{work}/corpus/vectors.parquet")
            run = fitted(work, x, [25], seed)
            table = pq.read_table(f"{work}/run/assignments/increment=00000/000000.parquet")
            cluster_of = table["level_0"].to_numpy()
            named = read_names(run.store).levels[0]
        has_phrase = [set(ngrams(text, 3)) for text in captions]
        phrases = {OURS: [n.captions[0][0] if n.captions else "" for n in named]}
        phrases["most frequent word"] = [
            frequent(seen, cluster_of, index) for index in range(len(named))
        ]
        phrases["another cluster's phrase"] = phrases[OURS][1:] + phrases[OURS][:1]
        for system, chosen in phrases.items():
            inside, lift = [], []
            for index, phrase in enumerate(chosen):
                has = np.array([phrase in phrases_of for phrases_of in has_phrase])
                mine = hidden & (cluster_of == index)
                if phrase and mine.any():
                    inside.append(has[mine].mean())
                    lift.append(has[mine].mean() / has.mean() if has.any() else 0.0)
            params = {"k": 25, "seed": seed, "clusters": len(inside)}
            yield row(system, "flickr8k", "in_unseen_captions", float(np.mean(inside)), params)
            yield row(system, "flickr8k", "lift", float(np.mean(lift)), params)


def frequent(captions: list[str | None], cluster_of: npt.NDArray[np.int64], index: int) -> str:
    """The word of at least four letters that most seen captions of the cluster have."""
    counts: Counter[str] = Counter()
    for text, owner in zip(captions, cluster_of.tolist(), strict=True):
        if owner == index and text:
            counts.update({word for word in ngrams(text, 1) if len(word) > 3})
    return max(counts, key=lambda w: (counts[w], w)) if counts else ""


def row(
    system: str, case: str, metric: str, value: float, params: dict[str, Any]
) -> dict[str, Any]:
    return {
        "bench": "captions", "system": system, "case": case, "metric": metric,
        "value": round(float(value), 4), "unit": "times" if metric == "lift" else "0..1",
        "params": params,
    }  # fmt: skip


def mean_of(rows: list[dict[str, Any]], case: str, system: str, metric: str) -> float:
    """Over seeds; nan where there is nothing."""
    key = (case, system, metric)
    values = [r["value"] for r in rows if (r["case"], r["system"], r["metric"]) == key]
    return float(np.mean(values)) if values else float("nan")


def show(rows: list[dict[str, Any]]) -> None:
    """Means over seeds per case, then over all pairs of set and vocabulary."""
    metrics = ("right", "same", "covered", "named")
    for level in ("clusters", "groups"):
        print(f"\n{level:34s}" + "".join(f"{m:>22s}" for m in metrics))
        cases = [c for c in dict.fromkeys(r["case"] for r in rows) if c.endswith(level)]
        table = np.array(
            [[[mean_of(rows, c, s, m) for s in (OURS, CPP)] for m in metrics] for c in cases]
        )  # (cases, metrics, systems)
        for case, cells in [*zip(cases, table, strict=True), ("mean", np.nanmean(table, axis=0))]:
            print(f"{case:34s}" + "".join(f"{a:12.3f} vs {b:6.3f}" for a, b in cells))
    for system in dict.fromkeys(r["system"] for r in rows if r["case"] == "flickr8k"):
        unseen, lift = (
            mean_of(rows, "flickr8k", system, m) for m in ("in_unseen_captions", "lift")
        )
        print(f"flickr8k  {system:26s} in unseen captions {unseen:.3f}  lift {lift:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, three vocabularies")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RRCLUSTER_TEST_DATA") or beside)
    if not folder.is_dir():
        raise SystemExit(f"no real data in {folder}; set RRCLUSTER_TEST_DATA")
    rows = [*measure(folder / "vectors", options.quick), *photos(folder, options.quick)]
    Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
