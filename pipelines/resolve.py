"""The current cluster ids of every row, as plain tables."""

from __future__ import annotations

import sys

from rich.console import Console

from pipelines.cli import DONE, run
from pipelines.compute import start_compute
from pipelines.console import ConsoleProgress
from rrcluster.config import Config
from rrcluster.stages.resolve import resolve
from rrcluster.stages.run import existing_run


def main(config: Config) -> int:
    job, _ = existing_run(config)
    with (
        ConsoleProgress(config.log_format, every=config.log_every) as progress,
        start_compute(config) as compute,
    ):
        folder = resolve(job.store, compute, progress)
    Console().print(f"current ids: {job.store.path(folder)}", soft_wrap=True)
    return DONE


if __name__ == "__main__":
    sys.exit(run("resolve", main, sys.argv[1:]))
