import pytest

from rrcluster.config import load
from rrcluster.records import Shard, UserError
from rrcluster.stages.run import for_shards

VECTORS = [Shard(0, "/c/a.npy", "embeddings", 1, "")]
TARS = [Shard(0, "/c/a.tar", "webdataset", 1, "")]


def test_ready_vectors_need_no_encoder() -> None:
    assert for_shards(load(["encoder=clip_b32"]), VECTORS).encoder.kind == "vectors"


def test_images_keep_their_encoder() -> None:
    assert for_shards(load([]), TARS).encoder.kind == "tiny"


def test_vectors_that_turn_out_to_be_images_are_named() -> None:
    with pytest.raises(UserError, match="encoder for images"):
        for_shards(load(["encoder=vectors"]), TARS)
