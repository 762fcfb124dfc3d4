"""The settings of the corpus: where it is, what is in it, how much damage it may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rrcluster.records import setting


@dataclass
class CorpusSpec:
    """What to read; the listing (``manifest``) and the readers (``images``, ``vectors``) use it."""

    uri: Any = setting(
        "",
        "folder, file, glob or {000..099} range of shards, a .txt of these (one per line), a run's "
        "manifest .parquet, or a list of all that; local, s3:// or any fsspec filesystem",
    )
    format: Literal["auto", "webdataset", "parquet", "images", "embeddings"] = setting(
        "auto", "auto: by the files' names; webdataset, parquet, images or embeddings (.npy)"
    )
    max_bad_fraction: float = setting(0.05, "exit status 3 when more of the rows are unusable")
    storage_options: dict[str, Any] = setting(
        {},
        "fsspec options of corpus.uri; for s3 also region and path_style, e.g. {anon: true} or "
        "{endpoint_url: ..., key: ..., secret: ..., region: ..., path_style: true}",
    )
    # 178,956,970 is the size at which PIL refuses an image by itself.
    max_pixels: int = setting(178_956_970, "images of more pixels are refused undecoded: too_large")
    jpeg_margin: float = setting(
        0.0,
        "JPEGs are decoded at a half to an eighth of their size where that leaves so often the "
        "encoder's side, say 2: faster for large photos, nearly the same vectors; 0: always whole",
    )
    image_column: str | None = setting(None, "Parquet column of image bytes; null: detected")
    caption_column: str | None = setting(None, "Parquet column of captions; null: detected")
    key_column: str | None = setting(None, "Parquet column of keys; null: detected")
    images_per_shard: int = setting(1000, "files per shard for format=images")
