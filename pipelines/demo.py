"""The whole job on a small corpus that the package draws itself: no GPU, no network."""

from __future__ import annotations

import dataclasses
import sys

from pipelines.cli import run
from pipelines.cluster import cluster, conclude
from pipelines.console import ConsoleProgress
from rrcluster.config import Config, absolute
from rrcluster.io.drawn_corpus import draw_corpus

DEFAULT_RUN = "rrcluster-demo"


def main(config: Config) -> int:
    run_dir = config.run_dir or absolute(DEFAULT_RUN)
    corpus = dataclasses.replace(config.corpus, uri=config.corpus.uri or f"{run_dir}/corpus")
    config = dataclasses.replace(config, run_dir=run_dir, corpus=corpus)
    with ConsoleProgress(config.log_format, every=config.log_every) as progress:
        if corpus.uri == f"{run_dir}/corpus":
            draw_corpus(
                corpus.uri, config.demo.images, config.demo.images_per_shard, config.seed, progress
            )
        record = cluster(config, progress)
    return conclude(config, record)


if __name__ == "__main__":
    sys.exit(run("demo", main, sys.argv[1:]))
