"""A sample's images copied out of the input shards: WebDataset tars, MosaicML Streaming shards.

An output file holds a range of the sample's draws in corpus order, so files are written side by
side and are the same bytes for any number of workers. The originals are streamed; memory is one
sample at a time for tars, one output file for Streaming, whose format begins with all offsets.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.exports import Drawn, Ints
from rrcluster.io.images import iter_raw
from rrcluster.io.source import IMAGE_SUFFIXES, Damaged, caption_and_uid, caption_text, clean
from rrcluster.io.webdataset import iter_members
from rrcluster.records import Shard, UserError

Members = list[tuple[str, bytes]]  # (".jpg", bytes), ...


@dataclass(frozen=True)
class Stretch:
    """Draws ``first:stop`` (repetitions counted) of one input shard; its rows are in a part."""

    shard: Shard
    part: int
    first: int
    stop: int


@dataclass(frozen=True)
class Copy:
    """One drawn image: the ``repeat``-th time, with all members of the original."""

    key: str
    repeat: int
    sample_id: bytes
    members: Members


def stretches(
    shards: dict[int, Shard], part_of: Ints, index: Ints, draws: Ints, per_file: int
) -> list[list[Stretch]]:
    """The draws of the shards ``index`` (with ``draws`` each, found in ``part_of``), cut into files
    of ``per_file`` draws, the last one shorter."""
    files: list[list[Stretch]] = []
    room = 0
    for at, part, count in zip(index.tolist(), part_of.tolist(), draws.tolist(), strict=True):
        done = 0
        while done < count:
            if not room:
                files.append([])
                room = per_file
            take = min(room, count - done)
            files[-1].append(Stretch(shards[at], part, done, done + take))
            done, room = done + take, room - take
    return files


def copies(drawn: Drawn, spec: CorpusSpec, some: list[Stretch]) -> Iterator[Copy]:
    """The images of some draws, in order. Raises UserError where the corpus is not what it was."""
    for stretch in some:
        rows, keys, ids, nth = _draws(drawn, stretch)
        wanted = dict.fromkeys(rows.tolist())
        found = 0
        try:
            for row, key, members in _originals(stretch.shard, spec, wanted):
                while found < len(rows) and rows[found] == row:
                    if clean(key) != keys[found]:
                        raise _changed(stretch.shard, f"row {row} is {key}, not {keys[found]}")
                    yield Copy(key, int(nth[found]), ids[found], members)
                    found += 1
        except Damaged as damage:
            raise _changed(stretch.shard, damage.detail) from damage
        if found < len(rows):
            raise _changed(stretch.shard, f"row {rows[found]} is gone")


def _draws(drawn: Drawn, stretch: Stretch) -> tuple[Ints, list[str], list[bytes], Ints]:
    """(rows, keys, ids, how often each was drawn before) of a stretch."""
    name = f"{drawn.folder}/work/collect/{stretch.part:06d}.parquet"
    with drawn.store.open(name) as file:
        table = pq.read_table(
            file,
            columns=["sample_id", "key", "row", "repeat"],
            filters=[("shard", "=", stretch.shard.index)],
        )
    repeat = table["repeat"].to_numpy()
    at = np.repeat(np.arange(len(table)), repeat)
    nth = np.arange(len(at)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    at, nth = at[stretch.first : stretch.stop], nth[stretch.first : stretch.stop]
    chosen = table.take(at)
    rows = chosen["row"].to_numpy().astype(np.int64)
    return rows, chosen["key"].to_pylist(), chosen["sample_id"].to_pylist(), nth


def _originals(
    shard: Shard, spec: CorpusSpec, rows: dict[int, None]
) -> Iterator[tuple[int, str, Members]]:
    if shard.format == "webdataset":
        yield from iter_members(shard, spec, rows)
        return
    last = max(rows)
    for raw in iter_raw(shard, spec):
        if raw.row in rows and raw.image is not None:
            members = [(f".{image_suffix(raw.image)}", raw.image)]
            if raw.caption is not None:
                members.append((".txt", raw.caption.encode()))
            if raw.uid is not None:
                members.append((".json", json.dumps({"uid": raw.uid}).encode()))
            yield raw.row, raw.key, members
        if raw.row >= last:
            return


def _changed(shard: Shard, detail: str) -> UserError:
    return UserError("corpus.uri", shard.uri, f"is not what was read before: {detail}")


def image_suffix(content: bytes) -> str:
    """The usual extension of an image, from its first bytes."""
    for start, suffix in ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"),
                          (b"BM", "bmp"), (b"II*", "tiff"), (b"MM\0*", "tiff")):  # fmt: skip
        if content.startswith(start):
            return suffix
    return "webp" if content[8:12] == b"WEBP" else "jpg"


@dataclass(frozen=True)
class WriteTar:
    """Map: a tar with the original members and bytes; answers samples and bytes of the file."""

    drawn: Drawn
    corpus: CorpusSpec
    folder: str

    def __call__(self, item: tuple[int, list[Stretch]]) -> Ints:
        number, some = item
        count, before = 0, ""
        with self.drawn.store.writing(f"{self.folder}/shard-{number:06d}.tar") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for copy in copies(self.drawn, self.corpus, some):
                    key = copy.key
                    if some[0].shard.format != "webdataset":  # a dot would end webdataset's key
                        folder, slash, base = key.rpartition("/")
                        key = folder + slash + base.replace(".", "_")
                    if copy.repeat or key == before:  # neighbours of one key would be one sample
                        key = f"{key}-{max(copy.repeat, 1)}"
                    for suffix, content in copy.members:
                        info = tarfile.TarInfo(key + suffix)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
                    before, count = key, count + 1
            size = file.tell()
        return np.asarray([count, size], np.int64)


# MosaicML Streaming's MDS format, version 2: number of samples, offsets, settings, samples.
COLUMNS = {"caption": "str", "image": "bytes", "key": "str", "sample_id": "bytes"}
MDS: dict[str, Any] = {
    "column_encodings": list(COLUMNS.values()), "column_names": list(COLUMNS),
    "column_sizes": [None] * len(COLUMNS), "compression": None, "format": "mds", "hashes": [],
    "size_limit": None, "version": 2,
}  # fmt: skip
MDS_BYTES = 1 << 32  # offsets are 32 bits


@dataclass(frozen=True)
class WriteMds:
    """Map: a shard of MosaicML Streaming; answers samples and bytes."""

    drawn: Drawn
    corpus: CorpusSpec
    folder: str

    def __call__(self, item: tuple[int, list[Stretch]]) -> Ints:
        number, some = item
        samples = [self._encoded(copy) for copy in copies(self.drawn, self.corpus, some)]
        settings = json.dumps(MDS, sort_keys=True).encode()
        start = 4 + 4 * (len(samples) + 1) + len(settings)
        offsets = np.cumsum([start, *map(len, samples)])
        if offsets[-1] >= MDS_BYTES:
            raise UserError(
                "sample.rows_per_tar", len(samples), "4 GB or more in one shard; take fewer rows"
            )
        with self.drawn.store.writing(f"{self.folder}/{mds_name(number)}") as file:
            file.write(np.uint32(len(samples)).tobytes())
            file.write(offsets.astype("<u4").tobytes() + settings)
            for sample in samples:
                file.write(sample)
        return np.asarray([len(samples), offsets[-1]], np.int64)

    @staticmethod
    def _encoded(copy: Copy) -> bytes:
        parts = {suffix.lower().lstrip("."): content for suffix, content in copy.members}
        told = caption_and_uid(parts["json"])[0] if "json" in parts else None
        caption = caption_text(parts["txt"]) if "txt" in parts else told or ""
        kinds = {s: s.rpartition(".")[2] for s in parts}
        images = [s for s, kind in kinds.items() if kind in IMAGE_SUFFIXES]
        image = min(images, key=lambda s: ("." in s, IMAGE_SUFFIXES.index(kinds[s]), s))
        values = [caption.encode(), parts[image], copy.key.encode(), copy.sample_id]
        return np.asarray([len(v) for v in values], "<u4").tobytes() + b"".join(values)


def mds_name(number: int) -> str:
    return f"shard.{number:05d}.mds"


def write_tar_sizes(drawn: Drawn, folder: str, sizes: Ints) -> None:
    """``sizes.json``, the mark: samples per tar, as open_clip reads it."""
    names = {f"shard-{i:06d}.tar": int(count) for i, (count, _) in enumerate(sizes)}
    drawn.store.write_json(f"{folder}/sizes.json", names)


def write_mds_index(drawn: Drawn, folder: str, sizes: Ints) -> None:
    """``index.json``, the mark: what StreamingDataset opens."""
    shards = [
        MDS | {
            "raw_data": {"basename": mds_name(i), "bytes": int(size), "hashes": {}},
            "samples": int(count), "zip_data": None,
        }
        for i, (count, size) in enumerate(sizes)
    ]  # fmt: skip
    drawn.store.write_json(f"{folder}/index.json", {"version": 2, "shards": shards})


def write_shard_weights(drawn: Drawn, folder: str, shards: list[Shard], draws: Ints) -> None:
    """``open_clip.json``: input shards with the factor by which each is drawn, for open_clip's
    --train-data and --train-data-upsampling-factors. It balances between shards only, and copies
    nothing."""
    chosen = np.flatnonzero(draws > 0)
    factors = draws[chosen] / drawn.embedded[chosen]
    drawn.store.write_json(
        f"{folder}/open_clip.json",
        {
            "train_data": "::".join(shards[i].uri for i in chosen),
            "train_data_upsampling_factors": "::".join(f"{f:.6g}" for f in factors),
            "train_num_samples": int(draws.sum()),
        },
    )
