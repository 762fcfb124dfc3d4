"""Damage of every kind, thousands of times: always a row, never an exception, never for long.

``RRCLUSTER_FUZZ_TIMES=100`` runs a hundred times the cases, ``RRCLUSTER_FUZZ_SEED`` other ones; a
failure names its case.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import encoded, picture, rows, shard, write_tar
from fuzzing import Bounds, cases, damaged
from PIL import Image

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.decode import PixelSpec, Undecodable, decode
from rrcluster.records import Bad, UserError

MAX_PIXELS = 1_000_000
# Of an image: RGBA of what is allowed, three copies of it at once, and the libraries' own.
IMAGE = {"seconds": 1.5, "megabytes": 3 * 4 * MAX_PIXELS / 2**20 + 40}
SHARD = {"seconds": 3.0, "megabytes": 120.0}
# A damaged page may claim 31 bits of length, and Arrow makes room for it before it looks inside.
PARQUET = {"seconds": 3.0, "megabytes": 2**11 + 120.0}
KINDS = {
    "JPEG": [{"quality": 85}, {"progressive": True}],
    "PNG": [{}],
    "WEBP": [{"quality": 80}, {"lossless": True}],
    "GIF": [{}],
    "TIFF": [{"compression": "tiff_lzw"}, {}],
    "BMP": [{}],
}
REASONS = {"decode", "truncated", "too_large", "unsupported", "missing_image", "read"}


@pytest.fixture(scope="module")
def photos(request) -> list[Image.Image]:
    """Real photos where there are some, else drawn ones; small, so that many cases fit."""
    try:
        folder: Path = request.getfixturevalue("test_data") / "images" / "flickr8k"
    except pytest.skip.Exception:
        return [picture(i, 180, 130) for i in range(6)]
    paths = sorted(folder.rglob("*.jpg"))[::150]
    return [Image.open(path).convert("RGB").copy() for path in paths]


def pixels_or_reason(content: bytes):
    try:
        return decode(content, PixelSpec(64), MAX_PIXELS)
    except Undecodable as error:
        return error


@pytest.mark.parametrize(("kind", "count"), [
    ("JPEG", 3200), ("PNG", 1800), ("WEBP", 1800), ("GIF", 800), ("TIFF", 1000), ("BMP", 400),
])  # fmt: skip
def test_a_damaged_image_is_pixels_or_a_reason_within_bounds(photos, kind, count):
    whole = [encoded(p, kind, **options) for p in photos for options in KINDS[kind]]
    whole.append(encoded(photos[0].convert("L"), kind))
    if kind in ("JPEG", "TIFF"):
        whole.append(encoded(photos[0].convert("CMYK"), kind))
    if kind in ("PNG", "GIF"):
        whole.append(encoded(photos[1].convert("P"), kind, transparency=3))
    bounds = Bounds(**IMAGE)
    usable = tried = 0
    for number, rng in cases(kind, count):
        tried += 1
        content = damaged(*(whole[i] for i in rng.integers(0, len(whole), 2)), rng)
        with bounds.case(f"case {number} of {kind}"):
            found = pixels_or_reason(content)
        if isinstance(found, Undecodable):
            assert found.reason in REASONS
            assert len(found.detail) <= 300
            assert "\n" not in found.detail
        else:
            pixels, width, height = found
            assert pixels.shape == (64, 64, 3)
            assert width * height <= MAX_PIXELS
            usable += 1
    assert 0 < usable < tried, "some damage is survived, some is not"


def bad_rows(at, bounds: Bounds, what: str) -> int:
    """How many rows of a damaged shard are bad."""
    with bounds.case(what):
        found = rows_or_mistake(at)
    if isinstance(found, UserError):  # damage may rename or retype the image column
        assert found.setting in ("corpus.image_column", "corpus.uri"), what
        return 1
    bad = [row for row in found if isinstance(row, Bad)]
    assert all(row.reason in REASONS and len(row.detail) <= 300 for row in bad), what
    for row in found:
        row.key.encode()  # a lone surrogate would not go into Parquet
    return len(bad)


def rows_or_mistake(at):
    try:
        return rows(at, CorpusSpec(max_pixels=MAX_PIXELS))
    except UserError as error:
        assert at.format == "parquet"
        return error


@pytest.mark.parametrize(("mode", "format", "count"), [
    ("w", tarfile.PAX_FORMAT, 500), ("w", tarfile.GNU_FORMAT, 400),
    ("w", tarfile.USTAR_FORMAT, 200),
    ("w:gz", tarfile.PAX_FORMAT, 200), ("w:bz2", tarfile.PAX_FORMAT, 60),
    ("w:xz", tarfile.PAX_FORMAT, 100),
])  # fmt: skip
def test_a_damaged_tar_gives_rows_within_bounds(photos, tmp_path, mode, format, count):
    small = [encoded(p.resize((48, 36)), "JPEG") for p in photos]
    members = [
        member
        for i, image in enumerate(small)
        for member in (
            (f"{'deep/' * 15}{i}.jpg", image), (f"{'deep/' * 15}{i}.txt", f"Bär {i}".encode()),
            (f"{'long' * 40}{i}.json", b'{"caption": "c", "uid": "%032x"}' % i),
        )
    ]  # fmt: skip
    if format == tarfile.USTAR_FORMAT:
        members = [(name[-90:], content) for name, content in members]
    whole = write_tar(tmp_path / "whole.tar", members, mode, format).read_bytes()
    bounds, path = Bounds(**SHARD), tmp_path / "a.tar"
    bad = 0
    for number, rng in cases(f"{mode} {format}", count):
        path.write_bytes(damaged(whole, small[0] + whole, rng))
        bad += bad_rows(shard(path), bounds, f"case {number} of tar {mode} {format}")
    assert bad > 0


@pytest.mark.parametrize(("compression", "count"), [("none", 400), ("snappy", 300), ("zstd", 300)])
def test_a_damaged_parquet_file_gives_rows_within_bounds(photos, tmp_path, compression, count):
    small = [encoded(p.resize((48, 36)), "JPEG") for p in photos] * 4
    table = pa.table({
        "image": pa.array([{"bytes": s, "path": f"{i}.jpg"} for i, s in enumerate(small)]),
        "caption": [None if i % 3 else f"Bär {i}" for i in range(len(small))],
        "key": list(range(len(small))),
    })  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression, row_group_size=10)
    whole = buffer.getvalue()
    bounds, path = Bounds(**PARQUET), tmp_path / "a.parquet"
    bad = 0
    for number, rng in cases(compression, count):
        # The footer is a small part of the file and the part that says what the rest is.
        content = damaged(whole, small[0] + whole, rng)
        if rng.integers(2):
            content = whole[: -len(whole) // 3] + damaged(whole[-len(whole) // 3 :], whole, rng)
        path.write_bytes(content)
        bad += bad_rows(shard(path, "parquet"), bounds, f"case {number} of {compression}")
    assert bad > 0


@pytest.mark.parametrize("count", [400])
def test_noise_of_any_name_is_a_row(tmp_path, count):
    bounds = Bounds(**SHARD)
    for number, rng in cases("noise", count):
        kind = ("webdataset", "parquet")[number % 2]
        path = tmp_path / "a"
        start = (b"", b"PAR1", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0")[rng.integers(5)]
        path.write_bytes(start + rng.bytes(int(rng.integers(0, 3000))))
        assert bad_rows(shard(path, kind), bounds, f"case {number} of noise")


def test_the_same_seed_gives_the_same_damage():
    content = np.random.default_rng(0).bytes(1000)
    one, two = ([damaged(content, content, rng) for _, rng in cases("x", 50)] for _ in range(2))
    assert one == two
    assert len(set(one)) > 45
