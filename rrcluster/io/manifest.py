"""The manifest: the corpus as a list of shards, in an order that depends on their names only."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.folders import image_shards, is_image
from rrcluster.io.listing import Found, Listing, list_addresses, list_files, uri_of
from rrcluster.io.lists import is_text_list, read_manifest_table, read_text_list
from rrcluster.records import Shard, UserError

FORMATS = ("webdataset", "parquet", "images", "embeddings")
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_WHAT = {
    "webdataset": ".tar files",
    "parquet": ".parquet files",
    "images": "image files",
    "embeddings": ".npy files",
}


def list_shards(spec: CorpusSpec, known: Iterable[Shard] = ()) -> list[Shard]:
    """The shards that ``corpus.uri`` stands for, sorted, with indices from 0.

    ``known`` matters for format=images only: shards of an earlier listing keep the ends of their
    runs, and new files form shards of their own. Raises UserError for whatever the user can mend:
    a missing folder, no access, nothing to read, several formats at once.
    """
    if spec.format not in ("auto", *FORMATS):
        raise UserError("corpus.format", spec.format, f"choose auto, {', '.join(FORMATS)}")
    if spec.images_per_shard < 1:
        raise UserError("corpus.images_per_shard", spec.images_per_shard, "must be at least 1")
    uris = [spec.uri] if isinstance(spec.uri, str) else list(spec.uri or [""])
    listings, ready = _look_up(list(map(str, uris)), spec.storage_options)
    chosen = _detect(spec, listings, ready) if spec.format == "auto" else spec.format
    found = {shard.uri: (shard.num_bytes, shard.etag) for shard in ready if shard.format == chosen}
    for listing in sorted(listings, key=lambda at: uri_of(at.fs, at.root)):
        if chosen == "images":
            runs = image_shards(listing, spec.images_per_shard, known)
            found |= {uri: (size, etag) for uri, size, etag in runs}
        else:
            for file in _of_format(listing, chosen, spec.format != "auto"):
                found[uri_of(listing.fs, file.path)] = (file.size, file.etag)
    if not found:
        kinds = _count(listings)
        present = ", ".join(f"{n} {_WHAT[k]}" for k, n in kinds.items()) or "files of other kinds"
        wanted = "images or shards" if spec.format == "auto" else _WHAT[chosen]
        raise UserError("corpus.uri", spec.uri, f"no {wanted} there, only {present}")
    ordered = list(found) if chosen == "images" else sorted(found)  # runs are in tree order
    return [Shard(i, uri, chosen, *found[uri]) for i, uri in enumerate(ordered)]


def _look_up(uris: Sequence[str], options: Mapping[str, Any]) -> tuple[list[Listing], list[Shard]]:
    """What ``corpus.uri`` stands for: files that were listed, and shards of ready manifests."""
    listings: list[Listing] = []
    ready: list[Shard] = []
    for uri in uris:
        if is_text_list(uri):
            listings += list_addresses(read_text_list(uri, options), options, uri)
            continue
        shards = read_manifest_table(uri, options)
        if shards is None:
            listings += list_files(uri, options)
        else:
            ready += shards
    return listings, ready


def corpus_fingerprint(shards: Sequence[Shard]) -> str:
    """32 hex digits that change when a shard is added, removed or rewritten; order is no matter."""
    digest = xxhash.xxh3_128()
    for line in sorted(f"{s.uri}\0{s.format}\0{s.num_bytes}\0{s.etag}\n" for s in shards):
        digest.update(line.encode())
    return digest.hexdigest()


def _kind(file: Found, root: str) -> str | None:
    """The format that the file's name suggests; None for hidden files, marks and sidecars."""
    folders = file.path[len(root) :].strip("/").split("/")
    if any(name.startswith(".") for name in folders):
        return None
    name = file.path.lower()
    if is_image(name):
        return "images"
    if any(part.startswith("_") for part in folders):  # _SUCCESS, _temporary/, _metadata
        return None
    if name.endswith(_TAR):
        return "webdataset"
    if name.endswith(".parquet"):
        return "parquet"
    return "embeddings" if name.endswith(".npy") else None


def _of_format(listing: Listing, chosen: str, by_user: bool) -> list[Found]:
    """The listing's files of one format; files that the user named one by one pass as they are."""
    if by_user and listing.exact:
        return listing.files
    files = [f for f in listing.files if _kind(f, listing.root) == chosen]
    if chosen == "embeddings":
        # clip-retrieval leaves the vectors of the texts beside those of the images.
        images = [f for f in files if posixpath.basename(f.path).startswith("img_emb")]
        texts = [f for f in files if posixpath.basename(f.path).startswith("text_emb")]
        return [f for f in files if f not in texts] if images and texts else files
    return files


def _count(listings: Sequence[Listing]) -> Counter[str]:
    """How many files of each format there are."""
    kinds = (_kind(file, at.root) for at in listings for file in at.files)
    return Counter(kind for kind in kinds if kind is not None)


def _detect(spec: CorpusSpec, listings: Sequence[Listing], ready: Sequence[Shard]) -> str:
    kinds = _count(listings) + Counter(shard.format for shard in ready)
    for main in ("webdataset", "embeddings"):
        if set(kinds) == {main, "parquet"} and _companions(listings, main):
            del kinds["parquet"]
    if len(kinds) > 1:
        present = " and ".join(f"{n} {_WHAT[k]}" for k, n in kinds.items())
        raise UserError(
            "corpus.format", "auto", f"found {present}; choose one of: {', '.join(kinds)}"
        )
    if not kinds:
        raise UserError(
            "corpus.uri",
            spec.uri,
            "holds neither .tar, .parquet, .npy nor image files; if the files are named "
            f"otherwise, set corpus.format to one of: {', '.join(FORMATS)}",
        )
    return next(iter(kinds))


def _companions(listings: Sequence[Listing], main: str) -> bool:
    """Whether every Parquet file only describes a shard of the same stem.

    img2dataset writes 00000.parquet without images beside 00000.tar; clip-retrieval writes
    metadata/metadata_0.parquet beside img_emb/img_emb_0.npy.
    """
    stems: dict[str, set[str]] = {main: set(), "parquet": set()}
    for listing in listings:
        for file in listing.files:
            kind = _kind(file, listing.root)
            if kind in stems:
                stem = posixpath.basename(file.path).split(".")[0]
                stems[kind].add(stem)
    numbers = {f"metadata_{stem.rpartition('_')[2]}" for stem in stems[main]}
    return stems["parquet"] <= stems[main] | numbers
