"""A balanced sample of a finished run, in trainers' formats."""

from __future__ import annotations

import dataclasses
import sys

from rich.console import Console

from pipelines.cli import DONE, run
from pipelines.compute import start_compute
from pipelines.console import ConsoleProgress
from rrcluster.config import Config
from rrcluster.report.balance import sample_table
from rrcluster.stages.report import report
from rrcluster.stages.run import existing_run
from rrcluster.stages.sample import sample
from rrcluster.stages.sample_estimate import estimate_sample
from rrcluster.stages.sample_plan import as_list


def main(config: Config) -> int:
    job, record = existing_run(config)
    console = Console()
    if config.dry_run:
        estimate_sample(dataclasses.replace(config, corpus=job.config.corpus), job.store, console)
        return DONE
    with (
        ConsoleProgress(config.log_format, every=config.log_every) as progress,
        start_compute(config) as compute,
    ):
        summary = sample(
            dataclasses.replace(config, corpus=job.config.corpus), job.store, compute, progress
        )
        report(job, record, progress)
    console.print(sample_table(summary))
    if summary["why_short"]:
        console.print(f"[bold]short[/bold]: {summary['why_short']}", soft_wrap=True)
    folder = job.store.path(f"sample/{summary['name']}")
    console.print(f"sample: {folder}/weights.parquet", soft_wrap=True)
    for name in as_list(config.sample.export):
        console.print(f"export: {folder}/{name}/", soft_wrap=True)
    return DONE


if __name__ == "__main__":
    sys.exit(run("sample", main, sys.argv[1:]))
