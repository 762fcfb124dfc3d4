"""Image shards of every format behind one reader: rows in order, each one a sample or bad.

Why a row is bad:

- ``decode``: an image that is damaged, cut short or empty;
- ``unsupported``: bytes that are no image of a known format, or a colour space that RGB cannot be
  made from;
- ``too_large``: more pixels than ``corpus.max_pixels`` (refused by its header, never decoded),
  over 1 GiB of bytes, or a JPEG of hundreds of scans;
- ``missing_image``: a sample with a caption but no image, a null in Parquet;
- ``truncated``: the *shard* ends early; one row after all that could be read;
- ``read``: a file that is gone, is another one than was listed, or cannot be opened at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator

import xxhash

from rrcluster.io import decode
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.decode import PixelSpec
from rrcluster.io.folders import iter_folder
from rrcluster.io.parquet import iter_parquet
from rrcluster.io.source import Damaged, Raw
from rrcluster.io.vectors import vector_shape
from rrcluster.io.webdataset import iter_webdataset
from rrcluster.records import Bad, Sample, Shard

__all__ = ["PixelSpec", "Raw", "decoded", "iter_raw", "probe_shard", "read_images", "read_shard"]

_READERS: dict[str, Callable[[Shard, CorpusSpec], Iterator[Raw]]] = {
    "webdataset": iter_webdataset,
    "parquet": iter_parquet,
    "images": iter_folder,
}


def iter_raw(shard: Shard, spec: CorpusSpec) -> Iterator[Raw]:
    """The shard's rows, undecoded, streamed; a shard that ends early ends in one problem row."""
    assert shard.format in _READERS, f"{shard.uri}: {shard.format} holds no images"
    row = 0
    try:
        for raw in _READERS[shard.format](shard, spec):
            yield raw
            row = raw.row + 1
    except Damaged as damage:
        yield Raw(row, damage.key, problem=(damage.reason, damage.detail))


def read_shard(shard: Shard, spec: CorpusSpec, pixels: PixelSpec) -> Iterator[Sample | Bad]:
    """The shard's rows in order, decoded to the encoder's size: rows are 0..n-1 without holes."""
    for raw in iter_raw(shard, spec):
        yield decoded(raw, shard, spec, pixels)


def decoded(raw: Raw, shard: Shard, spec: CorpusSpec, pixels: PixelSpec) -> Sample | Bad:
    """One row, decoded."""
    if raw.image is None:
        reason, detail = raw.problem or ("missing_image", "")
        return Bad(shard.index, raw.row, raw.key, reason, detail, raw.extra)
    try:
        array, width, height = decode.decode(raw.image, pixels, spec.max_pixels, spec.jpeg_margin)
    except decode.Undecodable as error:
        return Bad(shard.index, raw.row, raw.key, error.reason, error.detail, raw.extra)
    sample_id = sample_id_of(raw)
    return Sample(
        shard.index, raw.row, raw.key, raw.caption, width, height, sample_id, array, raw.extra
    )


def sample_id_of(raw: Raw) -> bytes:
    """16 bytes: the uid that came with the sample, else XXH3-128 of the image's bytes."""
    if raw.uid is not None:
        return bytes.fromhex(raw.uid)
    assert raw.image is not None, "only rows with an image have an id"
    return xxhash.xxh3_128_digest(raw.image)


def read_images(
    shard: Shard, spec: CorpusSpec, rows: Collection[int], max_side: int
) -> Iterator[tuple[int, bytes]]:
    """(row, JPEG thumbnail) of the wanted rows that can be shown; stops after the last of them."""
    wanted = set(rows)
    last = max(wanted, default=-1)
    if last < 0:
        return
    for raw in iter_raw(shard, spec):
        if raw.row in wanted and raw.image is not None:
            with contextlib.suppress(decode.Undecodable):  # it has its row in bad/
                yield raw.row, decode.thumbnail(raw.image, max_side, spec.max_pixels)
        if raw.row >= last:
            return


def probe_shard(shard: Shard, spec: CorpusSpec, limit: int) -> dict[str, int | bool]:
    """``images`` seen (at most ``limit``), their ``bytes``, and whether that was the whole shard.

    Bytes are those in the file where that is told (a tar's headers count), else the images' own.

    For ready vectors: all rows, from the header.
    """
    if shard.format == "embeddings":
        rows, _ = vector_shape(shard, spec)
        return {"images": rows, "bytes": shard.num_bytes, "shard_complete": True}
    images = size = 0
    for raw in iter_raw(shard, spec):
        if images >= limit:
            return {"images": images, "bytes": size, "shard_complete": False}
        if raw.image is not None:
            images += 1
            size = raw.end or size + len(raw.image)
    return {"images": images, "bytes": size, "shard_complete": True}
