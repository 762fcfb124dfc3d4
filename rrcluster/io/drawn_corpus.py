"""The demo's corpus: drawn pictures as WebDataset shards, with what real ones suffer from.

Some captions are missing, wrong or noisy; a few images are truncated or are no images at all.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from multiprocessing import get_context

from rrcluster.io.drawings import draw
from rrcluster.io.store import Store

BAD_EVERY = 211  # one picture in so many is damaged


def draw_corpus(
    folder: str,
    images: int,
    images_per_shard: int,
    seed: int,
    progress: Callable[[str, float, float | None], None],
) -> None:
    """Draw ``images`` pictures of held-out combinations into ``folder``; shards there are kept."""
    store = Store(folder)
    shards = -(-images // images_per_shard)
    present = store.names("", ".tar")
    todo = [
        (folder, i, min(images_per_shard, images - i * images_per_shard), images_per_shard, seed)
        for i in range(shards)
        if f"{i:05d}.tar" not in present
    ]
    progress("draw", shards - len(todo), shards)
    with get_context("spawn").Pool(min(os.cpu_count() or 1, max(len(todo), 1))) as pool:
        for done, _ in enumerate(pool.imap_unordered(_draw_shard, todo), shards - len(todo) + 1):
            progress("draw", done, shards)


def _draw_shard(work: tuple[str, int, int, int, int]) -> None:
    folder, shard, count, per_shard, seed = work
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(shard * per_shard, shard * per_shard + count):
            drawing = draw(seed, number, "heldout")
            jpeg = io.BytesIO()
            drawing.image.save(jpeg, "JPEG", quality=90)
            content = jpeg.getvalue()
            if number % BAD_EVERY == BAD_EVERY - 1:
                content = content[: len(content) // 3]
            _add(tar, f"{number:08d}.jpg", content)
            if drawing.web_caption is not None:
                _add(tar, f"{number:08d}.txt", drawing.web_caption.encode())
            facts = {"object": drawing.object, "colour": drawing.colour}
            _add(tar, f"{number:08d}.json", json.dumps(facts).encode())
    Store(folder).write_bytes(f"{shard:05d}.tar", buffer.getvalue())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
