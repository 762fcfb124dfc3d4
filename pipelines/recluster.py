"""New shards of the corpus become the next increment of a finished run."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from pipelines.cli import DONE, TOO_MANY_BAD, run
from pipelines.compute import start_compute
from pipelines.console import ConsoleProgress
from rrcluster.config import Config
from rrcluster.io.current import current
from rrcluster.stages.recluster import plan_increment, recluster
from rrcluster.stages.report import report
from rrcluster.stages.run import existing_run


def main(config: Config) -> int:
    console = Console()
    if config.dry_run:
        job, _ = existing_run(config)
        plan = plan_increment(job, current(job.store))
        size = sum(s.num_bytes for s in plan.shards)
        console.print(f"increment {plan.increment}: {len(plan.shards)} new shards, {size:,} bytes")
        return DONE
    with ConsoleProgress(config.log_format, every=config.log_every) as progress:
        found = recluster(config, lambda: start_compute(config), progress)
        if not found.facts:
            console.print("nothing new")
            return DONE
        job, record = existing_run(config)
        report(job, record, progress)
    for line in found.facts["words"]:
        console.print(line, soft_wrap=True)
    console.print(f"report: {job.store.path('report/index.html')}", soft_wrap=True)
    return _status(config, record.content["increments"][f"{found.plan.increment:05d}"])


def _status(config: Config, part: dict[str, Any]) -> int:
    counts = part.get("reconciliation", {"read": 0, "bad": 0})
    share = counts["bad"] / max(counts["read"], 1)
    return TOO_MANY_BAD if share > config.corpus.max_bad_fraction else DONE


if __name__ == "__main__":
    sys.exit(run("recluster", main, sys.argv[1:]))
