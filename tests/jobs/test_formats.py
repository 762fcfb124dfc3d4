"""The same pictures in every format end in the same clusters."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from job_fixtures import assignments, in_process, job, record
from safetensors.torch import save_file


def samples(drawn: Path) -> list[tuple[str, bytes, str | None]]:
    """(key, image bytes, caption) of every sample."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(drawn.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                found.setdefault(key, {})[kind] = tar.extractfile(member).read()
    return [
        (key, parts["jpg"], parts["txt"].decode() if "txt" in parts else None)
        for key, parts in found.items()
    ]


def as_parquet(rows: list[tuple[str, bytes, str | None]], folder: Path) -> None:
    folder.mkdir()
    for shard in range(2):
        key, image, caption = zip(*rows[shard::2], strict=True)
        table = pa.table({"key": key, "image": image, "caption": pa.array(caption, pa.string())})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=50)


def as_folders(rows: list[tuple[str, bytes, str | None]], folder: Path) -> None:
    for number, (key, image, caption) in enumerate(rows):
        place = folder / f"part{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{key}.jpg").write_bytes(image)
        if caption is not None:
            (place / f"{key}.txt").write_text(caption)


@pytest.mark.parametrize("make", [as_parquet, as_folders])
def test_parquet_and_folders_give_the_clusters_of_tars(make, drawn, finished, tmp_path) -> None:
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    make(samples(drawn), corpus)
    result = job(
        "cluster", f"corpus.uri={corpus}", f"run_dir={run_dir}", "k=[3,8]",
        *in_process("corpus.images_per_shard=100"),
    )  # fmt: skip
    assert result.status == 0, result.err
    assert record(run_dir)["reconciliation"] == record(finished)["reconciliation"]

    def by_id(folder: Path) -> list[tuple]:
        columns = ["sample_id", "caption", "level_0", "level_1", "confidence"]
        rows = assignments(folder).select(columns).to_pylist()
        return sorted(tuple(r.values()) for r in rows)

    assert [r[:1] + r[2:] for r in by_id(run_dir)] == [r[:1] + r[2:] for r in by_id(finished)]
    assert {r[0]: r[1] for r in by_id(run_dir)} == {r[0]: r[1] for r in by_id(finished)}
    copies_hold_the_original_images(run_dir, {key: image for key, image, _ in samples(drawn)})


def copies_hold_the_original_images(run_dir: Path, images: dict[str, bytes]) -> None:
    """Both exports that copy images, of a corpus without tars."""
    result = job(
        "sample", f"run_dir={run_dir}", "compute=in_process", "sample.name=v", "sample.size=50",
        "sample.export=[webdataset,streaming]", "sample.rows_per_tar=20",
    )  # fmt: skip
    assert result.status == 0, result.err
    keys = pq.read_table(run_dir / "sample/v/weights.parquet")["key"].to_pylist()
    tars = sorted(str(p) for p in (run_dir / "sample/v/webdataset").glob("*.tar"))
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    names = {Path(key).stem: image for key, image in images.items()}
    assert [s["jpg"] for s in found] == [names[Path(key).stem] for key in keys]
    index = json.loads((run_dir / "sample/v/streaming/index.json").read_text())
    content = b"".join(
        (run_dir / "sample/v/streaming" / shard["raw_data"]["basename"]).read_bytes()
        for shard in index["shards"]
    )
    assert all(names[Path(key).stem] in content for key in keys)


def test_a_named_open_clip_model_with_a_local_checkpoint_does_the_whole_job(
    drawn, tmp_path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(
            "ViT-S-32-alt"
        )  # random weights: the way is tested, not names
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "words.txt").write_text("circle\nsquare\nstar\nwood\nsky\n")
    run_dir = tmp_path / "run"
    result = job(
        "cluster", f"corpus.uri={drawn}/0000[01].tar", f"run_dir={run_dir}", "k=3",
        "encoder=open_clip", "encoder.model=ViT-S-32-alt",
        f"encoder.checkpoint={tmp_path / 'weights.safetensors'}",
        f"caption.vocabulary={tmp_path / 'words.txt'}", *in_process(),
    )  # fmt: skip
    assert result.status == 0, result.err
    assert np.load(run_dir / "embeddings/000000.npy").shape == (40, 256)
    assert assignments(run_dir).num_rows == 80
    assert len(record(run_dir)["model_hash"]) == 64


def test_images_beside_another_of_their_key_are_passed_over_and_counted(drawn, tmp_path) -> None:
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    rows = samples(drawn)[:120]
    for shard in range(2):
        with tarfile.open(corpus / f"{shard}.tar", "w") as tar:
            for key, image, _ in rows[shard::2]:
                for name in (f"{key}.jpg", f"{key}.left.jpg", f"{key}.right.jpg")[: 1 + 2 * shard]:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(image)
                    tar.addfile(entry, io.BytesIO(image))
    settings = (f"corpus.uri={corpus}", f"run_dir={run_dir}", "k=[2,4]", *in_process())
    result = job("cluster", *settings)
    assert result.status == 0, result.err
    assert "120 images were passed over" in result.err
    counts = record(run_dir)["stages"]["embed"]["counts"]
    assert (counts["read"], counts["embedded"], counts["further_images"]) == (120, 120, 120)
    again = job("cluster", *settings)  # told by the files this time
    assert again.status == 0, again.err
    assert record(run_dir)["stages"]["embed"]["counts"]["further_images"] == 120
