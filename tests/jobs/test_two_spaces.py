"""encoder=[tiny,timm]: clusters in both spaces, names in the first one's."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from job_fixtures import assignments, in_process, job, record
from safetensors.torch import save_file

from rrcluster.io.store import Store
from rrcluster.models.encoder import EncoderSpec
from rrcluster.models.load import load_encoder


def test_a_job_in_two_spaces_names_its_clusters_by_the_first(drawn, tmp_path) -> None:
    path, run_dir = tmp_path / "vit.safetensors", tmp_path / "run"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", num_classes=3).state_dict(), path)
    result = job(
        "cluster", f"corpus.uri={drawn}", f"run_dir={run_dir}", "encoder=[tiny,timm]",
        "encoder.beside.model=test_vit", f"encoder.beside.checkpoint={path}",
        "encoder.beside.model_options={num_classes:3}", "k=8", *in_process(),
    )  # fmt: skip
    assert result.status == 0, result.err
    rows = Store(str(run_dir)).read_npy("embeddings/000000.npy")
    assert np.abs(np.linalg.norm(rows.astype(np.float32), axis=1) - 1).max() < 2e-3
    width = load_encoder(EncoderSpec(), "cpu").width
    halves = np.linalg.norm(rows[:, :width].astype(np.float32), axis=1)
    assert np.abs(halves - 0.5**0.5).max() < 2e-3
    assert len(set(assignments(run_dir)["level_0"].to_pylist())) == 8
    named = pq.read_table(run_dir / "clusters/level=0.parquet", partitioning=None)["captions"]
    assert sum(bool(c) for c in named.to_pylist()) > 4  # half of the rows is noise
    assert record(run_dir)["identity"]["encoder.beside"]["model"] == "test_vit"
