"""``dry_run=true`` of a sample: what would be picked, and how balance changes with the size."""

from __future__ import annotations

import dataclasses

import numpy as np
from rich.console import Console
from rich.table import Table

from rrcluster.config import Config
from rrcluster.core.sample import balance
from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.stages.sample import refuse_size
from rrcluster.stages.sample_exports import MARKS
from rrcluster.stages.sample_plan import check_spec, read_population


def estimate_sample(config: Config, store: Store, console: Console) -> None:
    """Print what would be picked, and how balance changes with the size; write nothing."""
    spec = check_spec(config.sample, list(MARKS))
    population = read_population(current(store), spec)
    available = np.where(population.kept, population.sizes, 0)
    rows = int(available.sum())
    refuse_size(spec, int(population.sizes.sum()))
    table = Table(title="size against balance, nothing was written", title_justify="left", box=None)
    for name in ("method", "size", "drawn", "clusters", "effective", "gini", "most repeated"):
        table.add_column(name, justify="right" if name != "method" else "left")
    sizes = sorted({max(rows * share // 100, 1) for share in (1, 3, 10, 30, 100)} | {spec.size})
    for method in ("hierarchical", "flat", "proportional"):
        for size in sizes:
            wanted = dataclasses.replace(spec, method=method, size=size)
            try:
                drawn = population.budgets(available, wanted, config.seed).leaf
            except UserError:  # a smaller size than the asked one need not hold all minima
                if size == spec.size:
                    raise
                continue
            found = balance(drawn)
            times = -(-drawn // np.maximum(available, 1))
            mine = size == spec.size and method == spec.method
            table.add_row(
                method, f"{size:,}", f"{int(drawn.sum()):,}", f"{found['covered']:,}",
                f"{found['effective']:,.1f}", f"{found['gini']:.3f}", f"{int(times.max()):,}",
                style="bold" if mine else None,
            )  # fmt: skip
    console.print(table)
    whole = balance(available)
    console.print(
        f"the corpus: {rows:,} rows in {whole['covered']:,} clusters, effective "
        f"{whole['effective']:,.1f}, gini {whole['gini']:.3f}; duplicates and outliers are not "
        "taken off here"
    )
