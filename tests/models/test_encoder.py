"""What every encoder does around its model: batches, memory, precision; and two joined as one."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from corpora import jpeg
from safetensors.torch import save_file
from torch import Tensor, nn

from rrcluster.io.decode import PixelSpec, decode
from rrcluster.models.encoder import EncoderSpec, Loaded, Look, PixelFacts, TorchEncoder
from rrcluster.models.joined import shared_part
from rrcluster.models.load import load_encoder, views
from rrcluster.records import UserError

SIDE = 16


class FewImages(nn.Module):
    """A model on a device with room for ``room`` images at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.seen = room, []  # type: ignore[var-annotated]
        self.weight = nn.Parameter(torch.randn(3 * SIDE * SIDE, 8, generator=torch.manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return images.reshape(len(images), -1) @ self.weight


def around(module: nn.Module, batch_size: int, **settings: object) -> TorchEncoder:
    facts = Look(PixelFacts(SIDE, "squash", "bicubic"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    spec = EncoderSpec(batch_size=batch_size, **settings)  # type: ignore[arg-type]
    return TorchEncoder(Loaded("fake", module, facts, "hash"), spec, "cpu")


@pytest.fixture
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (21, SIDE, SIDE, 3), dtype=np.uint8)


def test_too_little_memory_halves_the_batch_and_no_row_is_lost(
    images: npt.NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    expected = around(FewImages(64), 16).encode_images(images)
    small = FewImages(16)
    encoder = around(small, 16)
    encoder.encode_images(images[:16])
    small.room = 5  # somebody else takes memory while the job runs
    with caplog.at_level(logging.WARNING):
        rows = encoder.encode_images(images)
    assert np.abs(rows - expected).max() < 1e-6
    assert encoder.batch_size == 4
    assert [r.getMessage() for r in caplog.records] == [
        "cpu: out of memory, now 8 images at once", "cpu: out of memory, now 4 images at once",
    ]  # fmt: skip
    small.seen.clear()
    encoder.encode_images(images)
    assert set(small.seen) == {4}, "the smaller batch stays, and the tail is padded to it"


class OneAtATime(FewImages):
    """A model that notices a second batch on its device."""

    def __init__(self) -> None:
        super().__init__(64)
        self.alone = threading.Lock()

    def forward(self, images: Tensor) -> Tensor:
        assert self.alone.acquire(blocking=False), "two batches on the device at once"
        time.sleep(0.002)
        rows = super().forward(images)
        self.alone.release()
        return rows


def test_threads_that_feed_a_gpu_take_turns_and_keep_their_rows(
    images: npt.NDArray[np.uint8],
) -> None:
    encoder = around(OneAtATime(), 4)
    encoder._turn = threading.Lock()  # as on a GPU
    expected = encoder.encode_images(images)
    parts = [images[i : i + 5] for i in range(0, 21, 5)]
    with ThreadPoolExecutor(2) as pool:
        rows = np.concatenate(list(pool.map(encoder.encode_images, parts)))
    assert np.abs(rows - expected).max() < 1e-6


def test_a_device_without_room_for_one_image_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"encoder.batch_size=1"):
        around(FewImages(0), 8)


def test_every_batch_has_the_same_shape_so_nothing_compiles_twice(
    images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def compiled(module: nn.Module, **how: object) -> nn.Module:
        asked.append(how)
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    module = FewImages(64)
    encoder = around(module, 8, compile=True)
    for rows in (21, 1, 8):
        encoder.encode_images(images[:rows])
    assert asked == [{"dynamic": False}]
    assert set(module.seen) == {8}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    """timm's miniature ViT with random weights, at another size than the tiny CLIP's."""
    path = tmp_path_factory.mktemp("vit") / "weights.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), path)
    return EncoderSpec(
        kind="timm", model="test_vit", checkpoint=str(path), model_options={"num_classes": 3}
    )


def test_layout_and_precision_change_a_vector_by_their_tolerance_only(vit: EncoderSpec) -> None:
    spec = vars(vit) | {"batch_size": 8}
    side = views(vit)[0].image_size
    pixels = np.random.default_rng(1).integers(0, 256, (5, side, side, 3), dtype=np.uint8)
    plain = load_encoder(EncoderSpec(**spec), "cpu").encode_images(pixels)
    for more, least in [
        ({"channels_last": False}, 0.999999),
        ({"channels_last": True}, 0.999999),
        ({"precision": "bf16"}, 0.999),
    ]:
        rows = load_encoder(EncoderSpec(**(spec | more)), "cpu").encode_images(pixels)
        assert (rows * plain).sum(axis=1).min() > least, more
    with pytest.raises(UserError, match=r"encoder.precision=fp16"):
        load_encoder(EncoderSpec(**(spec | {"precision": "fp16"})), "cpu")


def test_joined_rows_are_both_unit_vectors_side_by_side_and_each_sees_its_own_pixels(
    vit: EncoderSpec,
) -> None:
    tiny = EncoderSpec(batch_size=4)
    both = EncoderSpec(batch_size=4, beside={n: v for n, v in vars(vit).items() if v})
    first, second = views(both)
    spec = PixelSpec(*first, PixelSpec(*second))  # type: ignore[arg-type]
    pictures = [jpeg(seed) for seed in range(6)]
    encoder = load_encoder(both, "cpu")
    seen = np.stack([decode(p, spec, 10**6)[0] for p in pictures])
    assert seen.shape[1:] == spec.shape == encoder.shape
    rows = encoder.encode_images(seen)
    alone = []
    for one, facts in ((tiny, first), (vit, second)):
        pixels = np.stack([decode(p, PixelSpec(*facts), 10**6)[0] for p in pictures])  # type: ignore[arg-type]
        alone.append(load_encoder(one, "cpu").encode_images(pixels))
    expected = np.concatenate(alone, axis=1) / np.sqrt(2)
    assert rows.shape == (6, encoder.width)
    assert np.abs(rows - expected).max() < 1e-5
    part = shared_part(torch.from_numpy(rows), alone[0].shape[1])
    assert np.abs(part.numpy() - alone[0]).max() < 1e-5, "captions see the first one's vectors"


def test_encoders_that_look_alike_share_one_set_of_pixels(vit: EncoderSpec) -> None:
    twice = EncoderSpec(**(vars(vit) | {"text": "names.npz", "beside": {**vars(vit)}}))
    del twice.beside["beside"]
    encoder = load_encoder(twice, "cpu")
    assert len(views(twice)) == 1
    assert encoder.shape == (views(vit)[0].image_size,) * 2 + (3,)
    assert encoder.weights_hash != load_encoder(vit, "cpu").weights_hash


def test_the_second_encoders_mistakes_name_its_settings(vit: EncoderSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder.beside.modle=.*no such setting"):
        views(EncoderSpec(beside={"kind": "timm", "modle": "x"}))
    with pytest.raises(UserError, match="text tower first"):
        views(EncoderSpec(**(vars(vit) | {"beside": {"kind": "tiny"}})))
