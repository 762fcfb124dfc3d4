"""Score a run's levels against labels, for benchmarks. Labels never choose anything."""

from __future__ import annotations

import json
import sys

from rich.console import Console

from pipelines.cli import DONE, run
from rrcluster.config import Config
from rrcluster.records import UserError
from rrcluster.report.confusion import confusion_page
from rrcluster.report.labels import labels_table
from rrcluster.report.metrics import evaluate_run, evaluation_table
from rrcluster.stages.run import existing_store

PICTURE = "evaluate/confusion.html"


def main(config: Config) -> int:
    store, spec = existing_store(config), config.evaluate
    if not spec.labels:
        raise UserError(
            "evaluate.labels", "", "name a Parquet with columns label and key or sample_id"
        )
    labels = labels_table(spec.labels, config.corpus.storage_options)
    scores = evaluate_run(store, labels, config.seed, spec.bootstraps)
    store.write_json("evaluate/scores.json", scores)
    store.write_bytes(PICTURE, confusion_page(store, scores["worst_mixed"]).encode())
    console = Console(stderr=True)
    console.print(evaluation_table(scores))
    console.print(f"the worst-mixed clusters: {store.path(PICTURE)}", soft_wrap=True)
    print(json.dumps(scores, indent=1))
    return DONE


if __name__ == "__main__":
    sys.exit(run("evaluate", main, sys.argv[1:]))
