"""The main job: image shards → named tree of clusters, and a report."""

from __future__ import annotations

import sys

from rich.console import Console

from pipelines.cli import DONE, TOO_MANY_BAD, run
from pipelines.compute import start_compute
from pipelines.console import ConsoleProgress
from rrcluster.compute import Progress
from rrcluster.config import Config
from rrcluster.io.lease import lease
from rrcluster.io.store import Store
from rrcluster.report.terminal import clusters_table
from rrcluster.stages.caption import caption
from rrcluster.stages.embed import embed
from rrcluster.stages.estimate import estimate_job
from rrcluster.stages.fit import fit
from rrcluster.stages.levels import check_levels
from rrcluster.stages.report import report
from rrcluster.stages.run import Record, open_run
from rrcluster.stages.select import select
from rrcluster.stages.write import write


def main(config: Config) -> int:
    with ConsoleProgress(config.log_format, every=config.log_every) as progress:
        if config.dry_run:
            estimate_job(config, Console())
            return DONE
        record = cluster(config, progress)
    return conclude(config, record)


def cluster(config: Config, progress: Progress) -> Record:
    """Run every stage that is not done yet; ``run.json`` as it is at the end.

    Raises Busy when another job has the run.
    """
    check_levels(config)
    job, record = open_run(config)
    record.refuse_adopted()
    with lease(job.store, "rrcluster cluster") as held:
        with start_compute(config) as compute:
            progress = compute.observed(progress)
            for stage in (embed, select, fit, caption, write):
                held.check()
                stage(job, compute, record, progress)
            record.note("spilled_bytes", compute.spilled_bytes())
        held.check()
        record.finish()
        report(job, record, progress)
    return record


def conclude(config: Config, record: Record) -> int:
    """Print what was found; the exit status."""
    console = Console()
    store = Store(config.run_dir, config.store_options)
    console.print(clusters_table(store))
    counts = record.content["reconciliation"]
    console.print(
        f"{counts['read']:,} images read = {counts['embedded']:,} embedded + {counts['bad']:,} bad"
    )
    console.print(f"report: {store.path('report/index.html')}", soft_wrap=True)
    share = counts["bad"] / max(counts["read"], 1)
    if share > config.corpus.max_bad_fraction:
        console.print(
            f"[bold]{share:.1%} of the images are bad[/bold], more than corpus.max_bad_fraction="
            f"{config.corpus.max_bad_fraction}; bad/ in the run folder says why"
        )
        return TOO_MANY_BAD
    return DONE


if __name__ == "__main__":
    sys.exit(run("cluster", main, sys.argv[1:]))
