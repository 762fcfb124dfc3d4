"""Increments on real CLIP vectors and photos: quality, forgetting, ids, novelty, and what is read.

    python tests/benchmarks/recluster.py [--quick] [--sets NAME ...] [--parts N ...]
                                         [--seeds N ...] [--told WHAT] --json FILE

A fifth of the classes is held out of the first run. Their rows, with a third of the other classes'
rows, come later, in 1, 5 or 20 increments of shuffled shards, without a refit and with one at the
last, from the clusters there are and from scratch. The yardstick is one run on everything: the mean
of five, with rows in other orders, since single runs differ by a point or two (of photos one, whose
ids do not depend on the order). Each fit is told the number of classes in its rows; ``--told
first`` leaves the refit to go by what was opened, ``--told all`` asks the first run for all
classes, so that it halves old ones and the halves must join when new ones come, and ``--told none``
leaves every number to the job. Labels only score.
``photos`` are the pictures of caltech101, read and embedded by a small image network. Needs the
folder of real vectors (RRCLUSTER_TEST_DATA, or shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from clip_like import vectors_folder

from pipelines.cluster import cluster
from rrcluster.compute import silent
from rrcluster.config import load
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.local import InProcessCompute
from rrcluster.report.metrics import accuracy, ari, contingency, nmi
from rrcluster.stages.recluster import recluster

VECTORS = ("food10", "oxford_pets", "dtd", "caltech101", "sun397")
SETS, QUICK = (*VECTORS, "photos"), ("food10", "dtd")
SHARDS = 20  # files that the later rows come in
LATER = 1 / 3  # of the rows of the first classes
YARDSTICKS = 5  # runs on everything, where another order of rows gives another run


class Vectors:
    """Rows of one labelled set of vectors, ``y`` from 0, and shards of them."""

    settings = ("corpus.format=embeddings",)
    suffix = "npy"

    def __init__(self, folder: Path, name: str) -> None:
        found = np.load(folder / f"image_{name}.npz", allow_pickle=False)
        x = found["x"].astype(np.float32)
        self.x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
        self.y = np.unique(found["y"], return_inverse=True)[1]

    def write(self, path: Path, rows: np.ndarray) -> None:
        np.save(path, self.x[rows])


class Photos:
    """The photos of caltech101 in tars, and the settings of an approximate CLIP for them."""

    suffix = "tar"

    def __init__(self, folder: Path, name: str) -> None:
        models = folder.parent / "models"
        self.files = sorted((folder.parent / "images/caltech101").rglob("*.jpg"))
        self.y = np.unique([f.parent.name for f in self.files], return_inverse=True)[1]
        self.settings = (
            "encoder=timm", "encoder.model=mobilenetv2_100",
            "encoder.model_options={num_classes:1001,pad_type:same}",
            f"encoder.checkpoint={models / 'mobilenetv2_100_coral_fp16.safetensors'}",
            f"encoder.projection={models / 'mobilenetv2_to_clip_vitb32_projection.npz'}",
            "encoder.feature_transform=sqrt_unit", "encoder.mean=[0.5,0.5,0.5]",
            "encoder.std=[0.5,0.5,0.5]", "encoder.image_size=224",
            f"encoder.text={folder / 'text_lvis.npz'}",
        )  # fmt: skip

    def write(self, path: Path, rows: np.ndarray) -> None:
        with tarfile.open(path, "w") as tar:
            for row in rows.tolist():
                tar.add(self.files[row], f"{row:06d}.jpg")


class Corpus:
    """A folder of shards that grows; labels are found again by (shard, row)."""

    def __init__(self, rows: Vectors | Photos, folder: Path, k: int | str) -> None:
        self.rows, self.folder, self.k = rows, folder, k
        self.run_dir, self.first = folder / "run", folder / "first-run"
        self.grown = folder / "grown-run"
        self.labels: list[np.ndarray] = []
        (folder / "corpus").mkdir(parents=True)

    def add(self, rows: np.ndarray) -> None:
        name = f"{len(self.labels):05d}.{self.rows.suffix}"
        self.rows.write(self.folder / "corpus" / name, rows)
        self.labels.append(self.rows.y[rows])

    def settings(self, *more: str) -> list[str]:
        return [f"run_dir={self.run_dir}", "compute=in_process", *more]

    def cluster(self) -> None:
        wanted = (*self.rows.settings, f"corpus.uri={self.folder / 'corpus'}", f"k={self.k}")
        cluster(load(self.settings(*wanted)), silent)
        shutil.copytree(self.run_dir, self.first)

    def start_again(self) -> None:
        """Back to the first run and its only shard."""
        shutil.rmtree(self.run_dir)
        shutil.copytree(self.first, self.run_dir)
        for path in sorted((self.folder / "corpus").iterdir())[1:]:
            path.unlink()
        del self.labels[1:]

    def keep(self) -> None:
        """Remember the run as it is."""
        shutil.rmtree(self.grown, ignore_errors=True)
        shutil.copytree(self.run_dir, self.grown)

    def back(self) -> None:
        """To the run that was remembered."""
        shutil.rmtree(self.run_dir)
        shutil.copytree(self.grown, self.run_dir)

    def recluster(self, *settings: str) -> dict[str, Any]:
        config = load(self.settings(*settings))
        return recluster(config, lambda: InProcessCompute(), silent).facts

    def assigned(self) -> tuple[np.ndarray, np.ndarray]:
        """(labels, finest ids) of all rows by (shard, row), as they are now."""
        now = current(Store(str(self.run_dir)))
        finest = f"level_{now.levels - 1}"
        table = pa.concat_tables(now.batches(["shard", "row", finest]))
        table = table.sort_by([("shard", "ascending"), ("row", "ascending")])
        shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
        y = np.array([self.labels[s][r] for s, r in zip(shard, row, strict=True)])
        return y, table[finest].to_numpy()


def scores(y: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    table = contingency(y, ids)
    return {"acc": accuracy(table), "nmi": nmi(table), "ari": ari(table)}


def row(case: str, metric: str, value: float, unit: str, **params: Any) -> dict[str, Any]:
    return {
        "bench": "recluster", "system": "rrcluster", "case": case, "metric": metric,
        "value": round(float(value), 4), "unit": unit, "params": params,
    }  # fmt: skip


def rows_named(name: str) -> Vectors | Photos:
    return (Photos if name == "photos" else Vectors)(vectors_folder(), name)


def yardstick(name: str, told: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores of one run on everything, the mean of a few; and the figures of each."""
    rows = rows_named(name)
    k = int(rows.y.max()) + 1
    found, figures = [], []
    for seed in range(1 if name == "photos" else YARDSTICKS):  # ids are of the pictures
        order = np.random.default_rng(seed).permutation(len(rows.y))
        with TemporaryDirectory() as scratch:
            whole = Corpus(rows, Path(scratch), "auto" if told == "none" else k)
            whole.add(order)
            whole.cluster()
            found.append(scores(*whole.assigned()))
        params = {"n": len(order), "k": k, "told": told, "seed": seed}
        for metric, value in found[-1].items():
            figures.append(row(f"{name}, one run on everything", metric, value, "0..1", **params))
    return {metric: float(np.mean([f[metric] for f in found])) for metric in found[0]}, figures


def measure(
    name: str, increments: tuple[int, ...], seed: int, told: str, best: dict[str, float]
) -> Iterator[dict]:
    rows = rows_named(name)
    y = rows.y
    k = int(y.max()) + 1
    choice = np.random.default_rng(seed)
    held_out = choice.permutation(k)[: max(1, k // 5)]
    late = np.isin(y, held_out) | (choice.random(len(y)) < LATER)
    at_first = k - len(held_out) if told in ("each", "first") else k
    refit_k = (f"recluster.refit_k={k}",) if told == "each" else ()
    order = choice.permutation(np.flatnonzero(late))
    pieces = np.array_split(order, SHARDS)
    params = {"n": len(y), "k": k, "told": told, "held_out": len(held_out), "seed": seed}

    def row_of(case: str, metric: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
        return row(f"{name}, {case}", metric, value, unit, **params, **more)

    with TemporaryDirectory() as scratch:
        corpus = Corpus(rows, Path(scratch), "auto" if told == "none" else at_first)
        corpus.add(np.flatnonzero(~late))
        corpus.cluster()
        for parts in increments:
            case = f"{parts} increments"
            corpus.start_again()
            labels, ids = corpus.assigned()
            yield row_of(case, "old classes, acc", scores(labels, ids)["acc"], "0..1", increment=0)
            first, top = ids, int(ids.max())
            for number, group in enumerate(np.array_split(np.arange(SHARDS), parts), 1):
                for piece in group:
                    corpus.add(pieces[piece])
                facts = corpus.recluster("recluster.refit=never")
                new = sum(len(pieces[piece]) for piece in group)
                yield row_of(case, "rows embedded over new rows", facts["rows"] / new, "ratio",
                          increment=number)  # fmt: skip
                asked = facts["novelty"].get("asked_again", 0)
                yield row_of(case, "old rows asked again", asked, "rows", increment=number)
                labels, ids = corpus.assigned()
                old = ~np.isin(labels, held_out)
                yield row_of(case, "old classes, acc", scores(labels[old], ids[old])["acc"], "0..1",
                          increment=number)  # fmt: skip
            found = scores(labels, ids)
            for metric, value in found.items():
                yield row_of(f"{case}, no refit", metric, value, "0..1")
                yield row_of(f"{case}, no refit", f"{metric} gap", best[metric] - value, "0..1")
            opened, concept = ids > top, np.isin(labels, held_out)
            case_novel = f"{case}, novelty"
            yield row_of(case_novel, "clusters opened", len(set(ids[opened])), "clusters")
            yield row_of(case_novel, "recall", (opened & concept).sum() / concept.sum(), "0..1")
            alarms = (opened & ~concept).sum() / (~concept).sum()
            yield row_of(case_novel, "false alarms", alarms, "0..1")
            changed = (first != ids[: len(first)]).mean()
            yield row_of(f"{case}, no refit", "first rows with another id", changed, "0..1")
            yield row_of(case, "refit asked for", bool(facts["reasons"]), "0/1")
            corpus.keep()
            for start in ("model", "scratch"):
                corpus.back()
                yield from refitted(
                    corpus, f"{case}, refit from {start}", held_out, best, row_of,
                    (f"recluster.refit_start={start}", *refit_k),
                )  # fmt: skip


def refitted(
    corpus: Corpus, case: str, held_out: np.ndarray, best: dict[str, float], row: Any,
    settings: tuple[str, ...],
) -> Iterator[dict]:  # fmt: skip
    """Quality after a refit, whether the job would have adopted it, and what became of ids."""
    _, was = corpus.assigned()
    facts = corpus.recluster("recluster.refit=always", *settings)
    labels, ids = corpus.assigned()
    for metric, value in scores(labels, ids).items():
        yield row(case, metric, value, "0..1")
        yield row(case, f"{metric} gap", best[metric] - value, "0..1")
    yield row(case, "clusters", len(set(ids)), "clusters")
    before, after = facts["refit"]["consistency"]
    yield row(case, "neighbours agree more by", after - before, "0..1")
    yield row(case, "would be adopted", "fit is better" in " ".join(facts["words"]), "0/1")
    kept = ~np.isin(labels, held_out)
    other, ended = (was != ids)[kept], ~np.isin(was, ids)[kept]
    yield row(case, "rows of old classes with another id", other.mean(), "0..1")
    yield row(case, "of these in clusters that live on", (other & ~ended).mean(), "0..1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sets, one increment and five")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="all")
    parser.add_argument("--parts", nargs="+", type=int, help="increments: 1, 5 and 20")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of classes and rows")
    parser.add_argument(
        "--told", choices=("each", "first", "all", "none"), default="each",
        help="who is told how many classes there are",
    )  # fmt: skip
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    increments = tuple(options.parts or ((1, 5) if options.quick else (1, 5, 20)))
    rows: list[dict[str, Any]] = []
    for name in options.sets or (QUICK if options.quick else SETS):
        best, figures = yardstick(name, options.told)
        cases = (measure(name, increments, seed, options.told, best) for seed in options.seeds)
        for part in (figures, *cases):
            for found in part:
                rows.append(found)
                words = f"{found['case']:44s} {found['metric']:36s} {found['value']:8.3f}"
                print(words, flush=True)
                Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
