"""A finished hierarchy of ssl-data-curation as a run: clustered elsewhere, sampled here."""

from __future__ import annotations

import sys

from pipelines.cli import run
from pipelines.cluster import conclude
from pipelines.compute import start_compute
from pipelines.console import ConsoleProgress
from rrcluster.config import Config
from rrcluster.stages.adopt import adopt
from rrcluster.stages.embed import embed
from rrcluster.stages.report import report
from rrcluster.stages.run import open_run


def main(config: Config) -> int:
    with ConsoleProgress(config.log_format, every=config.log_every) as progress:
        job, record = open_run(config)
        record.adopts(job, config.adopt.hierarchy)
        with start_compute(config) as compute:
            watched = compute.observed(progress)
            embed(job, compute, record, watched)
            adopt(job, compute, record, watched)
            record.note("spilled_bytes", compute.spilled_bytes())
        record.finish()
        report(job, record, progress)
    return conclude(config, record)


if __name__ == "__main__":
    sys.exit(run("adopt", main, sys.argv[1:]))
