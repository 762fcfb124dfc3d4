"""How even a sample is over the clusters, before and after: for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def sample_table(summary: Mapping[str, Any]) -> Table:
    """Per level: clusters that have a row, effective number of clusters, Gini coefficient."""
    title = f"Sample {summary['name']}: {summary['draws']:,} draws, {summary['rows']:,} rows"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("level", "clusters", "covered", "effective, corpus", "sample", "gini, corpus",
                 "sample"):  # fmt: skip
        table.add_column(name, justify="right")
    for level, found in enumerate(summary["levels"]):
        before, after = found["before"], found["after"]
        table.add_row(
            str(level), f"{found['clusters']:,}", f"{after['covered']:,}",
            f"{before['effective']:,.1f}", f"{after['effective']:,.1f}",
            f"{before['gini']:.3f}", f"{after['gini']:.3f}",
        )  # fmt: skip
    return table
