"""timm encoders: random ones for the plumbing, and a real one against real CLIP vectors."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rrcluster.models.encoder import EncoderSpec
from rrcluster.models.load import load_encoder, load_text_tower, pixel_facts
from rrcluster.records import UserError


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    """timm's own miniature network with random weights and a classifier of 7."""
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=7)
    save_file(model.state_dict(), path)
    return EncoderSpec(
        kind="timm",
        model="test_efficientnet",
        checkpoint=str(path),
        image_size=64,
        batch_size=8,
        model_options={"num_classes": 7},
    )


@pytest.fixture
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


def test_rows_are_pooled_features_and_do_not_depend_on_the_batch(
    spec: EncoderSpec, images: npt.NDArray[np.uint8]
) -> None:
    encoder = load_encoder(spec, "cpu")
    rows = encoder.encode_images(images)
    assert rows.shape == (11, encoder.width)
    assert encoder.width != 7  # not the classifier's
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(encoder.encode_images(images[8:]), rows[8:])


def test_the_transform_and_the_projection_are_applied_in_this_order(
    spec: EncoderSpec, images: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    plain = load_encoder(spec, "cpu")
    random = np.random.default_rng(1)
    w = random.normal(size=(plain.width, 5)).astype(np.float16)
    b = random.normal(size=5).astype(np.float32)
    np.savez(tmp_path / "p.npz", W=w, b=b)
    chosen = replace(spec, projection=str(tmp_path / "p.npz"), feature_transform="sqrt_unit")
    features = np.sqrt(np.maximum(plain.encode_images(images), 0.0))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = features @ w.astype(np.float32) + b
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    projected = load_encoder(chosen, "cpu")
    assert projected.width == 5
    assert projected.weights_hash != plain.weights_hash
    assert np.abs(projected.encode_images(images) - expected).max() < 1e-3


def test_the_hash_follows_the_features_and_not_the_classifier(
    spec: EncoderSpec, tmp_path: Path
) -> None:
    before = load_encoder(spec, "cpu").weights_hash
    weights = load_file(str(spec.checkpoint))
    for name, same in (("classifier.bias", True), ("conv_stem.weight", False)):
        changed = {key: value.clone() for key, value in weights.items()}
        changed[name].view(-1)[0] += 1.0
        path = tmp_path / f"{name}.safetensors"
        save_file(changed, path)
        other = load_encoder(replace(spec, checkpoint=str(path)), "cpu").weights_hash
        assert (other == before) == same


def test_the_models_own_preprocessing_is_used_unless_overridden(spec: EncoderSpec) -> None:
    assert pixel_facts(spec).image_size == 64
    bare = EncoderSpec(kind="timm", model="vit_small_patch14_dinov2", pretrained="lvd142m")
    assert pixel_facts(bare) == (518, "center_crop", "bicubic")
    assert pixel_facts(replace(bare, model_options={"img_size": 224})).image_size == 224


@pytest.mark.parametrize(
    ("mistake", "setting", "remedy"),
    [
        ({"model": "resnet5"}, "encoder.model", "resnet50"),
        ({"checkpoint": None}, "encoder.checkpoint", "encoder.pretrained=TAG"),
        ({"checkpoint": "/none.safetensors"}, "encoder.checkpoint", "no such file"),
        ({"pretrained": "nowhere"}, "encoder.pretrained", "it has"),
        ({"model": "resnet18", "model_options": {}}, "encoder.checkpoint", "cannot be read"),
        ({"projection": "/none.npz"}, "encoder.projection", "no such file"),
        ({"feature_transform": "log"}, "encoder.feature_transform", "sqrt_unit"),
    ],
)
def test_a_mistake_names_the_setting_and_what_would_work(
    spec: EncoderSpec, mistake: dict[str, object], setting: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder(replace(spec, **mistake), "cpu")  # type: ignore[arg-type]
    assert caught.value.setting == setting
    assert remedy in caught.value.remedy


def test_a_projection_that_does_not_fit_is_refused(spec: EncoderSpec, tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", W=np.zeros((3, 5)), b=np.zeros(5))
    with pytest.raises(UserError, match="W has 3 rows"):
        load_encoder(replace(spec, projection=str(tmp_path / "p.npz")), "cpu")


def test_a_real_network_projects_photos_onto_their_clip_vectors_and_names(test_data: Path) -> None:
    folder, models = test_data / "images" / "caltech101", test_data / "models"
    spec = EncoderSpec(
        kind="timm",
        model="mobilenetv2_100",
        checkpoint=str(models / "mobilenetv2_100_coral_fp16.safetensors"),
        model_options={"num_classes": 1001, "pad_type": "same"},
        image_size=224,
        mean=[0.5, 0.5, 0.5],
        std=[0.5, 0.5, 0.5],
        batch_size=32,
        feature_transform="sqrt_unit",
        projection=str(models / "mobilenetv2_to_clip_vitb32_projection.npz"),
        text=str(test_data / "vectors" / "text_lvis.npz"),
    )
    arrays = np.load(test_data / "vectors" / "image_caltech101.npz")
    first = arrays["split"] == 0
    x, y = arrays["x"][first].astype(np.float32), arrays["y"][first]
    with open(folder / "manifest.csv") as file:
        files = [row["file"] for row in csv.DictReader(file)]
    rows = np.sort(np.random.default_rng(0).permutation(len(files))[:64])
    encoder = load_encoder(spec, "cpu")
    v = encoder.encode_images(np.stack([_centre(folder / files[i]) for i in rows]))
    cosine = v @ (x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True)).T
    others = (cosine.sum() - np.trace(cosine)) / (64 * 63)
    assert np.diag(cosine).mean() > others + 0.2  # measured .89 against .61
    assert (y[rows][cosine.argmax(axis=1)] == y[rows]).mean() > 0.85  # measured .95

    tower = load_text_tower(spec, "cpu")
    assert tower is not None
    assert tower.fixed is not None
    names = [str(name).replace("_", " ") for name in arrays["class_name"]]
    known = [i for i, name in enumerate(names) if name in tower.fixed]
    asked = np.isin(y[rows], known)
    texts = tower.encode([names[i] for i in known])
    named = np.array(known)[(v[asked] @ texts.T).argmax(axis=1)]
    assert (named == y[rows][asked]).mean() > 0.85  # measured .99 among 28 names


def _centre(path: Path) -> npt.NDArray[np.uint8]:
    image = Image.open(path).convert("RGB")
    scale = 224 / min(image.size)
    size = [max(224, round(side * scale)) for side in image.size]
    image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, upper = (size[0] - 224) // 2, (size[1] - 224) // 2
    return np.asarray(image.crop((left, upper, left + 224, upper + 224)))
