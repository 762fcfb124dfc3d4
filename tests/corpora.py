"""Small corpora for the tests of the readers: pictures, tars, and everything that is ugly."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.images import PixelSpec, read_shard
from rrcluster.records import Bad, Sample, Shard

SIZE = 32


def shard(path: str | Path, format: str = "webdataset", index: int = 0) -> Shard:
    return Shard(index, str(path), format, 0, "")


def rows(at: Shard, spec: CorpusSpec | None = None) -> list[Sample | Bad]:
    """All rows of the shard; every test that reads also checks that none is lost."""
    found = list(read_shard(at, spec or CorpusSpec(), PixelSpec(SIZE)))
    assert [row.row for row in found] == list(range(len(found)))
    assert all(row.shard == at.index for row in found)
    for row in found:
        if isinstance(row, Sample):
            assert row.pixels.shape == (SIZE, SIZE, 3)
            assert row.pixels.dtype == np.uint8
            assert len(row.sample_id) == 16
    return found


def picture(seed: int = 0, width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Smooth colours that differ by seed."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / (3 + seed + c)) + np.cos(y / (4 + c)) for c in range(3)]
    values = np.stack([127 + 60 * w for w in waves], axis=-1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0) -> bytes:
    return encoded(picture(seed), "JPEG")


def png_with_huge_header(width: int = 60_000, height: int = 60_000) -> bytes:
    """A decompression bomb: some hundred bytes that claim 3.6 gigapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def write_tar(
    path: Path,
    members: Iterable[tuple[str, bytes]],
    mode: str = "w",
    format: int = tarfile.PAX_FORMAT,
) -> Path:
    with tarfile.open(path, mode, format=format) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples_of(count: int) -> list[tuple[str, bytes]]:
    """Members of ``count`` good samples with captions."""
    return [
        member
        for i in range(count)
        for member in ((f"{i:04d}.jpg", jpeg(i)), (f"{i:04d}.txt", f"picture {i}".encode()))
    ]
