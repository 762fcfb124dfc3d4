"""report: one self-contained page from what the run folder holds."""

from __future__ import annotations

from dataclasses import dataclass

from rrcluster.compute import Progress
from rrcluster.io.images import read_images
from rrcluster.report.page import build_report
from rrcluster.stages.run import Record, Run

PAGE = "report/index.html"


def report(run: Run, record: Record, progress: Progress) -> None:
    """Write ``report/index.html``."""
    with record.stage("report") as counts:
        page = build_report(run.store, Thumbnails(run, progress), run.config.report.max_megabytes)
        run.store.write_bytes(PAGE, page.encode())
        counts["bytes"] = len(page.encode())
        progress("report", 1, 1)


@dataclass(frozen=True)
class Thumbnails:
    """(shard, row) → small JPEG, read again from the corpus; a bounded number of shards."""

    run: Run
    progress: Progress

    def __call__(self, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        spec = self.run.config.report
        shards = {s.index: s for s in self.run.shards if s.format != "embeddings"}
        rows: dict[int, set[int]] = {}
        for shard, row in wanted:
            if shard in shards and (shard in rows or len(rows) < spec.thumbnail_shards):
                rows.setdefault(shard, set()).add(row)
        found: dict[tuple[int, int], bytes] = {}
        for done, (shard, some) in enumerate(sorted(rows.items())):
            self.progress("report", done, len(rows), "thumbnails")
            try:
                for row, jpeg in read_images(
                    shards[shard], self.run.config.corpus, some, spec.thumbnail
                ):
                    found[(shard, row)] = jpeg
            except OSError:
                continue  # the corpus may be gone by now; the page says which pictures it lacks
        return found
