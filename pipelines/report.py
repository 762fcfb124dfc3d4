"""Write a run's HTML report again, also while the run is unfinished."""

from __future__ import annotations

import sys

from rich.console import Console

from pipelines.cli import DONE, run
from rrcluster.compute import silent
from rrcluster.config import Config
from rrcluster.stages.report import report
from rrcluster.stages.run import existing_run


def main(config: Config) -> int:
    job, record = existing_run(config)
    report(job, record, silent)
    Console().print(f"report: {job.store.path('report/index.html')}", soft_wrap=True)
    return DONE


if __name__ == "__main__":
    sys.exit(run("report", main, sys.argv[1:]))
