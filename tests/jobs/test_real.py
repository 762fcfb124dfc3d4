"""The main job on real photos and real CLIP vectors, where they are at hand."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from job_fixtures import assignments, estimated_well, job, record

from rrcluster.io import tables

FAST = ("compute=in_process", "refine.steps=50", "refine.rounds=1", "count.replicates=2")


def test_a_thousand_real_photos_end_in_named_clusters(test_data, tmp_path) -> None:
    photos = sorted((test_data / "images/caltech101").rglob("*.jpg"))[:1000]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for shard in range(5):
        with tarfile.open(corpus / f"{shard}.tar", "w") as tar:
            for path in photos[shard * 200 : shard * 200 + 200]:
                tar.add(path, f"{path.parent.name}/{path.stem}.jpg")
    models, run_dir = test_data / "models", tmp_path / "run"
    settings = (
        f"corpus.uri={corpus}", f"run_dir={run_dir}", "encoder=timm", *FAST,
        "encoder.model=mobilenetv2_100",
        "encoder.model_options={num_classes:1001,pad_type:same}",
        f"encoder.checkpoint={models / 'mobilenetv2_100_coral_fp16.safetensors'}",
        f"encoder.projection={models / 'mobilenetv2_to_clip_vitb32_projection.npz'}",
        "encoder.feature_transform=sqrt_unit", "encoder.mean=[0.5,0.5,0.5]",
        "encoder.std=[0.5,0.5,0.5]", "encoder.image_size=224",
        f"encoder.text={test_data / 'vectors/text_lvis.npz'}", "k=[8,40]",
    )  # fmt: skip
    result = job("cluster", *settings)
    assert result.status == 0, result.err
    estimated_well(settings, run_dir)
    counts = record(run_dir)["reconciliation"]
    assert counts == {"read": 1000, "embedded": 1000, "bad": 0, "ok": True}
    table = assignments(run_dir)
    assert table.num_rows == 1000
    assert table.schema.remove_metadata().equals(tables.assignments_schema(2))
    for level, clusters in enumerate((8, 40)):
        found = pq.read_table(run_dir / f"clusters/level={level}.parquet", partitioning=None)
        assert found.schema.remove_metadata().equals(tables.CLUSTERS)
        assert found.num_rows == clusters
        assert sum(found["size"].to_pylist()) == 1000
    assert sum(bool(c) for c in table["cluster_caption"].to_pylist()) > 500
    labels = pa.table(
        {"key": table["key"], "label": [k.split("/")[0] for k in table["key"].to_pylist()]}
    )
    pq.write_table(labels, tmp_path / "labels.parquet")
    scores = job("evaluate", f"run_dir={run_dir}", f"evaluate.labels={tmp_path / 'labels.parquet'}")
    finest = json.loads(scores.out)["levels"][-1]
    assert finest["nmi"]["value"] > 0.6


def test_real_clip_vectors_are_clustered_and_named_by_ready_text_vectors(
    test_data, tmp_path
) -> None:
    found = np.load(test_data / "vectors/image_food10.npz", allow_pickle=False)
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    for shard, rows in enumerate(np.array_split(np.arange(len(found["x"])), 4)):
        np.save(corpus / f"part{shard}.npy", found["x"][rows])
    settings = (
        f"corpus.uri={corpus}", "corpus.format=embeddings", f"run_dir={run_dir}",
        f"encoder.text={test_data / 'vectors/text_lvis.npz'}", "k=10", *FAST,
    )  # fmt: skip
    result = job("cluster", *settings)
    assert result.status == 0, result.err
    estimated_well(settings, run_dir)
    table = assignments(run_dir)
    assert table.num_rows == 2500
    from sklearn.metrics import normalized_mutual_info_score

    assert normalized_mutual_info_score(found["y"], table["level_0"].to_numpy()) > 0.8
