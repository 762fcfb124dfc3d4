"""A finished run of drawn vectors with a long tail of clusters, written as the contract says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from rrcluster.io import tables
from rrcluster.io.store import Store

WIDTH = 16
PARENTS = (0, 0, 0, 1, 1, 2)  # of the six leaves, which have ids 10..15
SIZES = (400, 120, 30, 200, 8, 2)
RECORD = {
    "format_version": 1,
    "config": {"corpus": {"uri": "none", "max_bad_fraction": 0.05}},
    "stages": {},
    "reconciliation": {},
    "finished": None,
}


def vectors_run(
    folder: Path,
    sizes: Sequence[int] = SIZES,
    shards: int = 5,
    seed: int = 0,
    hive: bool = False,
    copies: int = 0,
) -> Store:
    """Rows in random order over the shards; every 7th row of a shard is bad, so rows have gaps.

    ``seed`` moves rows between shards and nothing else. ``copies`` rows of the first leaf share one
    sample_id.
    """
    store = Store(str(folder))
    rng = np.random.default_rng(5)
    leaf = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(size=(len(sizes), WIDTH))
    x = centres[leaf] + 0.4 * rng.normal(size=(len(leaf), WIDTH))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    ids = [
        xxhash.xxh3_128_digest(f"{c}/{i}".encode())
        for c, i in zip(leaf, ranks_of(leaf), strict=True)
    ]
    x[:copies] = x[0] if copies else 0
    ids[:copies] = [ids[0]] * copies
    outlier = rng.normal(size=len(leaf)).astype(np.float32)
    shuffled = np.random.default_rng(seed).permutation(len(leaf))
    manifest = [
        {"shard": s, "uri": f"/{s}.tar", "format": "webdataset", "num_bytes": 1, "etag": ""}
        for s in range(shards)
    ]
    tables.write_table(
        store, "manifest/increment=00000.parquet", "manifest", tables.table_of("manifest", manifest)
    )
    assigned = []
    for s, mine in enumerate(np.array_split(shuffled, shards)):
        row = np.arange(len(mine)) * 7 // 6
        samples = pa.table(
            {
                "sample_id": pa.array([ids[i] for i in mine], tables.SAMPLE_ID),
                "shard": np.full(len(mine), s, np.int32),
                "row": row.astype(np.int32),
                "key": [f"k{i:06d}" for i in mine],
                "caption": pa.nulls(len(mine), pa.string()),
                "width": np.zeros(len(mine), np.int32),
                "height": np.zeros(len(mine), np.int32),
            },
            schema=tables.SAMPLES,
        )
        lost = sorted({*range(int(row[-1]))} - {*row.tolist()})
        bad = [{"shard": s, "row": r, "key": "", "reason": "decode", "detail": ""} for r in lost]
        store.write_npy(f"embeddings/{s:06d}.npy", x[mine])
        tables.write_table(store, f"bad/{s:06d}.parquet", "bad", tables.table_of("bad", bad))
        tables.write_table(store, f"samples/{s:06d}.parquet", "samples", samples)
        coarse = np.asarray(PARENTS)[leaf[mine]]
        columns = {name: samples[name] for name in samples.column_names[:5]} | {
            "level_0": coarse, "level_1": leaf[mine] + 10,
            "confidence": np.ones(len(mine), np.float32), "outlier": outlier[mine],
            "cluster_caption": [f"thing {c}" for c in leaf[mine]],
        }  # fmt: skip
        table = pa.table(columns, schema=tables.assignments_schema(2))
        assigned.append(table)
        if not hive:
            name = f"assignments/increment=00000/{s:06d}.parquet"
            tables.write_table(store, name, "assignments", table)
    if hive:
        table = pa.concat_tables(assigned)
        for group in range(3):
            part = table.filter(pa.array(table["level_0"].to_numpy() == group))
            name = f"assignments/increment=00000/level_0={group}/part-00000.parquet"
            tables.write_table(store, name, "assignments", part.drop_columns("level_0"))
    own = np.bincount(leaf, minlength=len(sizes))
    above = np.bincount(np.asarray(PARENTS)[: len(sizes)], own, 3).astype(int)
    clusters(
        store, 1, [(10 + i, p, int(n)) for i, (p, n) in enumerate(zip(PARENTS, own, strict=False))]
    )
    clusters(store, 0, [(g, None, int(n)) for g, n in enumerate(above)])
    store.write_json("run.json", RECORD)
    return store


def ranks_of(leaf: np.ndarray) -> np.ndarray:
    return np.arange(len(leaf)) - np.searchsorted(leaf, leaf)


def clusters(store: Store, level: int, found: Sequence[tuple[int, int | None, int]]) -> None:
    rows = [
        {
            "cluster_id": i, "level": level, "parent_id": parent, "size": n, "coding_rate": 1.0,
            "radius": 0.1, "exemplars": [], "since_increment": 0,
            "captions": [{"text": f"thing {i - 10}" if level else f"group {i}", "score": 1.0}],
        }
        for i, parent, n in found
    ]  # fmt: skip
    name = f"clusters/level={level}.parquet"
    tables.write_table(store, name, "clusters", tables.table_of("clusters", rows))
