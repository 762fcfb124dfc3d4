"""report: self-contained pages from what the run folder holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rrcluster.compute import Progress
from rrcluster.io.images import read_images
from rrcluster.report.page import build_pages
from rrcluster.report.thumbnails import Ref, shards_worth_reading
from rrcluster.stages.run import Record, Run

READERS = 8  # shards read for thumbnails at once: waiting for storage, mostly


def report(run: Run, record: Record, progress: Progress) -> None:
    """Write the pages under ``report/``, ``index.html`` last."""
    with record.stage("report") as counts:
        spec, thumbnails = run.config.report, Thumbnails(run, progress)
        pages = build_pages(run.store, thumbnails, spec.max_megabytes, spec.clusters_per_page)
        counts |= {"pages": 0, "bytes": 0}
        for name, page in pages:
            content = page.encode()
            run.store.write_bytes(f"report/{name}", content)
            counts["pages"] += 1
            counts["bytes"] += len(content)
        progress("report", 1, 1)


@dataclass(frozen=True)
class Thumbnails:
    """(shard, row) → small JPEG, read again from the corpus; a bounded number of shards."""

    run: Run
    progress: Progress

    def __call__(self, wanted: list[Ref]) -> dict[Ref, bytes]:
        shards = {s.index for s in self.run.shards if s.format != "embeddings"}
        rows = shards_worth_reading(
            [w for w in wanted if w[0] in shards], self.run.config.report.thumbnail_shards
        )
        found: dict[Ref, bytes] = {}
        with ThreadPoolExecutor(READERS) as pool:
            for done, some in enumerate(pool.map(self._read, rows.items()), 1):
                found |= some
                self.progress("report", done, len(rows), "shards read for thumbnails")
        return found

    def _read(self, item: tuple[int, set[int]]) -> dict[Ref, bytes]:
        index, rows = item
        shard = next(s for s in self.run.shards if s.index == index)
        size = self.run.config.report.thumbnail
        try:
            read = read_images(shard, self.run.config.corpus, rows, size)
            return {(index, row): jpeg for row, jpeg in read}
        except OSError:
            return {}  # the corpus may be gone by now; the page says which pictures it lacks
