"""The open_clip encoder: obligations of every encoder, and what a user can get wrong."""

from __future__ import annotations

import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from rrcluster.models.encoder import EncoderSpec, PixelFacts
from rrcluster.models.load import load_encoder, load_text_tower, pixel_facts
from rrcluster.records import UserError

Pixels = npt.NDArray[np.uint8]


@pytest.fixture
def spec(clip_folder: Path) -> EncoderSpec:
    return EncoderSpec(kind="open_clip", model=f"local-dir:{clip_folder}", batch_size=16)


def test_vectors_are_what_open_clip_itself_computes(
    spec: EncoderSpec, clip_folder: Path, pixels: Pixels
) -> None:
    model = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3]))
    with torch.inference_mode():
        expected = model.encode_image((x - mean) / std, normalize=True).numpy()
    answer = load_encoder(spec, "cpu").encode_images(pixels)
    assert answer.dtype == np.float32
    assert np.abs(answer - expected).max() < 1e-5


def test_a_row_is_the_same_bits_whatever_is_beside_it(spec: EncoderSpec, pixels: Pixels) -> None:
    for precision in ("fp32", "bf16"):
        encoder = load_encoder(replace(spec, precision=precision), "cpu")
        together = encoder.encode_images(pixels)
        assert np.array_equal(encoder.encode_images(pixels[:3]), together[:3])
        assert np.array_equal(encoder.encode_images(pixels[32:]), together[32:])
        others = pixels.copy()
        others[1:16] = 0
        assert np.array_equal(encoder.encode_images(others)[0], together[0])


def test_bf16_agrees_with_fp32_to_one_in_a_thousand(spec: EncoderSpec, pixels: Pixels) -> None:
    exact = load_encoder(spec, "cpu").encode_images(pixels)
    rough = load_encoder(replace(spec, precision="bf16"), "cpu").encode_images(pixels)
    assert (exact * rough).sum(axis=1).min() > 0.999
    assert np.abs(np.linalg.norm(rough, axis=1) - 1.0).max() < 1e-5


def test_no_images_give_no_rows(spec: EncoderSpec, pixels: Pixels) -> None:
    assert load_encoder(spec, "cpu").encode_images(pixels[:0]).shape == (0, 32)


def test_the_hash_follows_the_weights(spec: EncoderSpec, tmp_path: Path) -> None:
    before = load_encoder(spec, "cpu").weights_hash
    assert load_encoder(spec, "cpu").weights_hash == before
    folder = Path(str(spec.model).removeprefix("local-dir:"))
    shutil.copytree(folder, tmp_path / "other")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] += 1e-3
    save_file(weights, tmp_path / "other" / "open_clip_model.safetensors")
    other = replace(spec, model=f"local-dir:{tmp_path / 'other'}")
    assert load_encoder(other, "cpu").weights_hash != before


def test_pixel_facts_need_no_weights(spec: EncoderSpec, tmp_path: Path) -> None:
    folder = Path(str(spec.model).removeprefix("local-dir:"))
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    bare = replace(spec, model=f"local-dir:{tmp_path}")
    assert pixel_facts(bare) == PixelFacts(32, "squash", "bilinear")
    assert pixel_facts(replace(bare, resize="center_crop")).resize == "center_crop"
    encoder = load_encoder(spec, "cpu")
    assert (encoder.image_size, encoder.resize, encoder.interpolation) == pixel_facts(spec)


def test_a_tag_tells_the_preprocessing_of_a_local_copy() -> None:
    facts = pixel_facts(EncoderSpec(kind="open_clip", model="ViT-B-16-SigLIP", pretrained="webli"))
    assert facts == PixelFacts(224, "squash", "bicubic")
    facts = pixel_facts(EncoderSpec(kind="open_clip", model="ViT-B-32"))
    assert facts == PixelFacts(224, "center_crop", "bicubic")


def test_another_image_size_keeps_the_weights(spec: EncoderSpec, pixels: Pixels) -> None:
    small = replace(spec, image_size=16)
    assert pixel_facts(small).image_size == 16
    assert load_encoder(small, "cpu").encode_images(pixels[:, ::2, ::2]).shape == (40, 32)


def test_text_and_images_share_a_space_and_texts_do_not_depend_on_each_other(
    spec: EncoderSpec,
) -> None:
    tower = load_text_tower(spec, "cpu")
    assert tower is not None
    assert tower.fixed is None
    rows = tower.encode(["cat", "traffic_light", "Straße"])
    assert rows.shape == (3, 32)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(tower.encode(["traffic light"])[0], rows[1])


def test_another_models_tower_can_name_ready_vectors(spec: EncoderSpec) -> None:
    tower = load_text_tower(EncoderSpec(kind="vectors", text=spec.model), "cpu")
    assert tower is not None
    assert tower.encode(["a dog"]).shape == (1, 32)
    assert load_text_tower(EncoderSpec(kind="vectors"), "cpu") is None


@pytest.mark.parametrize(
    ("mistake", "setting", "remedy"),
    [
        ({"model": "ViT-B-33"}, "encoder.model", "ViT-B-32"),
        ({"model": None}, "encoder.model", "name a"),
        ({"model": "ViT-B-32"}, "encoder.checkpoint", "encoder.pretrained=TAG"),
        ({"model": "ViT-B-32", "checkpoint": "/none.pt"}, "encoder.checkpoint", "no such file"),
        ({"model": "ViT-B-32", "pretrained": "laion2c"}, "encoder.pretrained", "laion2b"),
        ({"model": "local-dir:/none"}, "encoder.model", "open_clip_config.json"),
        ({"precision": "int8"}, "encoder.precision", "bf16"),
        ({"precision": "fp16"}, "encoder.precision", "GPU"),
        ({"kind": "open_clp"}, "encoder.kind", "open_clip"),
        ({"kind": "vectors"}, "encoder.kind", "corpus.format=embeddings"),
        ({"resize": "pad"}, "encoder.resize", "center_crop"),
        ({"mean": [0.5]}, "encoder.mean", "three"),
        ({"batch_size": 0}, "encoder.batch_size", "at least 1"),
        ({"pretrained": "openai"}, "encoder.pretrained", "leave it out"),
    ],
)
def test_a_mistake_names_the_setting_and_what_would_work(
    spec: EncoderSpec, mistake: dict[str, object], setting: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder(replace(spec, **mistake), "cpu")  # type: ignore[arg-type]
    assert caught.value.setting == setting
    assert remedy in caught.value.remedy


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
    spec = EncoderSpec(kind="open_clip", model="ViT-B-32", checkpoint=str(path))
    with pytest.raises(UserError, match="safetensors"):
        load_encoder(spec, "cpu")
    assert not (tmp_path / "ran").exists()


def test_a_download_is_announced_and_its_failure_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(tag: object) -> str:
        raise OSError("no route to the hub")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    spec = EncoderSpec(kind="open_clip", model="ViT-B-32", pretrained="laion2b_s34b_b79k")
    with caplog.at_level(logging.INFO, "rrcluster"), pytest.raises(UserError) as caught:
        load_encoder(spec, "cpu")
    assert caught.value.setting == "encoder.pretrained"
    assert "encoder.checkpoint=PATH" in caught.value.remedy
    assert [r.levelname for r in caplog.records if r.name.startswith("rrcluster")] == ["INFO"]
