"""A small synthetic run folder, written through the package's own tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from rrcluster.io import tables
from rrcluster.io.store import Store

COLOURS = ("crimson", "seagreen", "royalblue", "goldenrod", "darkorchid", "teal")
SHAPES = ("circle", "square", "star", "triangle", "ring", "cross")
BAD_PER_SHARD = (("decode", "not an image"), ("too_large", "99 megapixels"))
Ref = tuple[int, int]


def make_run(
    folder: Path,
    groups: int = 3,
    leaves: int = 6,
    shards: int = 3,
    rows: int = 40,
    upto: str = "write",
    hive: bool = False,
    caption: str | None = None,
    repeats: int = 0,
    empty_leaf: bool = False,
    examples: int = 6,
    single_level: bool = False,
) -> Store:
    """A run of ``shards`` × (``rows`` good + 2 bad) samples; ``upto="embed"`` stops there.

    Leaves are numbered from ``groups`` on and belong to groups in turn; ``caption`` replaces the
    best caption of the first leaf; the first ``repeats`` samples of shard 0 share one id.
    """
    store = Store(str(folder))
    manifest = [
        {"shard": s, "uri": f"file:///{s}.tar", "format": "webdataset", "num_bytes": 1, "etag": ""}
        for s in range(shards)
    ]
    _write(store, "manifest/increment=00000.parquet", "manifest", manifest)
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, leaves + 1)
    if empty_leaf:
        weights[-1] = 0
    samples: list[dict[str, Any]] = []
    for shard in range(shards):
        mine = [
            _sample(shard, row, shard == 0 and row < repeats, leaves, weights, rng)
            for row in range(rows)
        ]
        bad = [
            {"shard": shard, "row": rows + i, "key": f"{shard}/bad{i}", "reason": r, "detail": d}
            for i, (r, d) in enumerate(BAD_PER_SHARD)
        ]
        _write(store, f"samples/{shard:06d}.parquet", "samples", mine)
        _write(store, f"bad/{shard:06d}.parquet", "bad", bad)
        samples += mine
    finished = upto == "write"
    if finished:
        _write_clusters(store, samples, groups, leaves, caption, single_level)
        _write_assignments(store, samples, groups, shards, hive, single_level)
        _write_models(store, samples, groups, leaves, examples)
    store.write_json("run.json", _record(len(samples), shards, finished, [groups, leaves]))
    return store


def _sample(
    shard: int, row: int, repeated: bool, leaves: int, weights: Any, rng: np.random.Generator
) -> dict[str, Any]:
    leaf = int(rng.choice(leaves, p=weights / weights.sum()))
    name = "same" if repeated else f"{shard}/{row}"
    colour, shape = COLOURS[leaf % 6], SHAPES[leaf // 6 % 6]
    return {
        "sample_id": hashlib.md5(name.encode()).digest(),
        "shard": shard,
        "row": row,
        "key": f"{shard:03d}/{row:05d}",
        "caption": None if row % 7 == 3 else f"a {colour} {shape} on a plain ground",
        "width": 64,
        "height": 64,
        "leaf": leaf,
        "confidence": float(rng.beta(9, 1 + leaf % 3)),
        "outlier": float(rng.normal(-0.5, 0.4)),
    }


def _write(store: Store, name: str, kind: str, rows: Sequence[dict[str, Any]]) -> None:
    tables.write_table(store, name, kind, tables.table_of(kind, rows))


def _write_clusters(
    store: Store,
    samples: list[dict[str, Any]],
    groups: int,
    leaves: int,
    caption: str | None,
    single_level: bool,
) -> None:
    sizes = np.bincount([s["leaf"] for s in samples], minlength=leaves)
    coarse, fine = [], []
    for group in range(groups):
        size = int(sizes[group::groups].sum())
        coarse.append(_cluster(group, 0, None, size, [f"{SHAPES[group % 6]}-like things", "shape"]))
    for leaf in range(leaves):
        text = f"{COLOURS[leaf % 6]} {SHAPES[leaf // 6 % 6]}"
        texts = [caption if caption and leaf == 0 else text, SHAPES[leaf // 6 % 6], "drawing"]
        fine.append(_cluster(groups + leaf, 1, leaf % groups, int(sizes[leaf]), texts))
    if single_level:
        fine = [c | {"level": 0, "parent_id": None} for c in fine]
        _write(store, "clusters/level=0.parquet", "clusters", fine)
        return
    _write(store, "clusters/level=0.parquet", "clusters", coarse)
    _write(store, "clusters/level=1.parquet", "clusters", fine)


def _cluster(
    cluster_id: int, level: int, parent: int | None, size: int, texts: Sequence[str]
) -> dict[str, Any]:
    return {
        "cluster_id": cluster_id,
        "level": level,
        "parent_id": parent,
        "size": size,
        "coding_rate": 40.0 + cluster_id,
        "radius": 0.25 + 0.01 * cluster_id,
        "captions": [{"text": t, "score": 0.9 - 0.2 * i} for i, t in enumerate(texts)],
        "exemplars": [],
        "since_increment": 0,
    }


def _write_assignments(
    store: Store,
    samples: list[dict[str, Any]],
    groups: int,
    shards: int,
    hive: bool,
    single_level: bool,
) -> None:
    schema = tables.assignments_schema(1 if single_level else 2)
    table = pa.Table.from_pylist(
        [
            s
            | {
                "level_0": groups + s["leaf"] if single_level else s["leaf"] % groups,
                "level_1": groups + s["leaf"],
                "cluster_caption": "",
            }
            for s in samples
        ],
        schema=schema,
    )
    root = "assignments/increment=00000"
    if hive:
        ids = np.asarray(table["level_0"])
        for group in np.unique(ids).tolist():
            part = table.filter(pa.array(ids == group)).drop_columns(["level_0"])
            name = f"{root}/level_0={group}/part-00000.parquet"
            tables.write_table(store, name, "assignments", part)
        return
    ids = np.asarray(table["shard"])
    for shard in range(shards):
        part = table.filter(pa.array(ids == shard))
        tables.write_table(store, f"{root}/{shard:06d}.parquet", "assignments", part)


def _write_models(
    store: Store, samples: list[dict[str, Any]], groups: int, leaves: int, examples: int
) -> None:
    found = {}
    names = ("shard", "row", "key", "caption", "confidence", "outlier")
    for leaf in range(leaves):
        own = sorted((s for s in samples if s["leaf"] == leaf), key=lambda s: -s["confidence"])
        own = [{"sample_id": s["sample_id"].hex()} | {n: s[n] for n in names} for s in own]
        found[str(groups + leaf)] = {"exemplars": own[:examples], "borderline": own[examples:][-4:]}
    store.write_json("model/caption/examples.json", found)
    gates = [
        {
            "cell": i % 2, "round": i // 2, "step": "head" if i % 3 else "lloyd",
            "accepted": i % 4 != 3, "before": 0.6 + 0.01 * i, "after": 0.6 + 0.01 * i + (
                -0.004 if i % 4 == 3 else 0.02 / (i + 1)), "extra": {"moved": 0.1 / (i + 1)},
        }
        for i in range(8)
    ]  # fmt: skip
    store.write_json("model/refine/history.json", gates)
    ks = list(range(1, 2 * leaves + 1))
    curve = {
        "clusters": ks,
        "nats_per_sample": [30 + 12 / k + 0.12 * k for k in ks],
        "estimate": leaves, "low": max(leaves - 2, 1), "high": leaves + 3, "enough_data": True,
        "chosen": [groups, leaves], "asked": "auto",
    }  # fmt: skip
    store.write_json("model/count/curve.json", curve)


def _record(embedded: int, shards: int, finished: bool, levels: list[int]) -> dict[str, Any]:
    bad = len(BAD_PER_SHARD) * shards
    counts = {"shards": shards, "read": embedded + bad, "embedded": embedded, "bad": bad}
    stages: dict[str, Any] = {
        "manifest": {"status": "done", "seconds": 0.2, "counts": {"shards": shards}},
        "embed": {
            "status": "done", "seconds": 75.0, "counts": counts,
            "rates": {"encoder_wait_share": 0.034, "images_per_second": 412.5}, "gpu_hours": 0.02,
        },
    }  # fmt: skip
    if finished:
        later = ("seed", "refine", "count", "caption", "write", "report")
        stages |= {n: {"status": "done", "seconds": 3.5, "counts": {}} for n in later}
    return {
        "format_version": 1,
        "rrcluster": "0.1.0",
        "identity_hash": "0123456789abcdef",
        "config": {"corpus": {"uri": "s3://bucket/shards", "max_bad_fraction": 0.2}, "k": "auto"},
        "versions": {"numpy": "2.0"},
        "model_hash": "feedbeef",
        "corpus": {"fingerprint": "cafe", "shards": shards, "num_bytes": 1234567},
        "stages": stages,
        "reconciliation": {"read": embedded + bad, "embedded": embedded, "bad": bad, "ok": True},
        "levels": levels,
        "started": "2024-05-01T10:00:00+00:00",
        "finished": "2024-05-01T10:05:00+00:00" if finished else None,
    }


def picture(colour: str, shape: str, size: int = 96) -> bytes:
    """A drawn thumbnail, as the callable of ``build_report`` returns them."""
    image = Image.new("RGB", (size, size), "#f3eee4")
    draw = ImageDraw.Draw(image)
    box = (size * 0.2, size * 0.2, size * 0.8, size * 0.8)
    if shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape in ("star", "triangle"):
        sides = 3 if shape == "triangle" else 5
        draw.regular_polygon((size / 2, size / 2, size * 0.36), sides, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=10)
    else:
        draw.ellipse(box, fill=colour)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def thumbnails_of(store: Store) -> Callable[[list[Ref]], dict[Ref, bytes]]:
    """Pictures that match the samples' captions."""

    def thumbnails(refs: list[Ref]) -> dict[Ref, bytes]:
        found: dict[Ref, bytes] = {}
        for shard in {s for s, _ in refs}:
            table = tables.read_table(store, f"samples/{shard:06d}.parquet", ["row", "caption"])
            words = {r["row"]: (r["caption"] or "a gray square").split() for r in table.to_pylist()}
            found |= {(s, r): picture(words[r][1], words[r][2]) for s, r in refs if s == shard}
        return found

    return thumbnails


def no_thumbnails(refs: list[Ref]) -> dict[Ref, bytes]:
    return {}
