"""What is done and what is left, read from the run folder alone, from any machine."""

from __future__ import annotations

import sys

from rich.console import Console

from pipelines.cli import DONE, run
from rrcluster.config import Config
from rrcluster.report.terminal import status_table
from rrcluster.stages.run import existing_store


def main(config: Config) -> int:
    Console().print(status_table(existing_store(config)))
    return DONE


if __name__ == "__main__":
    sys.exit(run("status", main, sys.argv[1:]))
