"""The run in a terminal: its clusters at the end of a job, its stages while it is under way."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.report import advice
from rrcluster.report.progress import Increment, Progress, Stage, read_progress
from rrcluster.report.summary import Cluster, Summary, read_tree
from rrcluster.report.words import duration, percent, rates, significant

ROWS = 60  # clusters listed; the page and clusters/ have more
INCREMENTS = 10  # of the last nights; the page has all
BAR = 14  # characters of a full bar
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "waiting": "bright_black"}


def clusters_table(source: Summary | Store) -> Table:
    """The finest clusters under their coarsest parents: caption, samples, share, rate, captions.

    Reads only ``clusters/``, so it works before assignments are written.
    """
    if isinstance(source, Summary):
        roots, count = source.roots, source.num_leaves
    else:
        roots, sizes = read_tree(current(source))
        count = len(sizes[-1]) if sizes else 0
    table = Table(title="Clusters", title_justify="left", box=None, pad_edge=False)
    table.add_column("cluster", overflow="fold")
    table.add_column("id", justify="right", style="bright_black")
    table.add_column("samples", justify="right")
    table.add_column("share", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("nats", justify="right")
    leaves_of = [(root, [c for c in root.walk() if not c.children]) for root in roots]
    largest = max((c.share for _, leaves in leaves_of for c in leaves), default=1.0) or 1.0
    left = ROWS
    for i, (root, leaves) in enumerate(leaves_of):
        if left <= 0:
            break
        leaves.sort(key=lambda c: (-c.size, c.cluster_id))
        if leaves != [root]:
            table.add_section() if i else None
            _add(table, root, "", "bold", None)
        for leaf in leaves[:left]:
            _add(table, leaf, "" if leaf is root else "  ", "", largest)
        left -= len(leaves)
    hidden = count - sum(len(leaves) for _, leaves in leaves_of) - min(left, 0)
    if hidden > 0:
        table.caption = f"and {hidden:,} more: see the report"
    if not roots:
        table.caption = "no clusters yet"
    return table


def _add(table: Table, cluster: Cluster, indent: str, style: str, largest: float | None) -> None:
    bar = "" if largest is None else "━" * round(BAR * cluster.share / largest)
    table.add_row(
        Text(indent + plain(cluster.name), style=style),
        str(cluster.cluster_id),
        Text(f"{cluster.size:,}", style=style),
        Text(percent(cluster.share), style=style),
        Text(bar, style="cyan"),
        f"{cluster.coding_rate:.1f}" if cluster.coding_rate else "–",
    )


def status_table(store: Store) -> Table:
    """Every stage of the run with what its folder holds, whether counts add up, what to do next.

    Raises UserError when the folder holds no run.
    """
    progress = read_progress(store)
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("status")
    for name in ("parts", "rate", "bad", "time", "left"):
        table.add_column(name, justify="right")
    for stage in progress.stages:
        bad = progress.bad if stage.name == "embed" and (progress.read or stage.done) else None
        table.add_row(
            stage.name,
            Text(stage.status, style=COLOURS.get(stage.status, "")),
            f"{stage.done:,} / {stage.total:,}",
            _rate(stage),
            "" if bad is None else f"{'≈ ' if progress.estimated else ''}{bad:,}",
            duration(stage.seconds) if stage.seconds else "",
            "" if stage.left is None else f"about {duration(stage.left)}",
        )
    whole = Table.grid(padding=(0, 0, 1, 0))
    whole.add_row(Text(f"Run {plain(progress.uri)}", style="bold"))
    whole.add_row(table)
    if progress.increments:
        whole.add_row(_increments_table(progress.increments))
    whole.add_row(_below(progress))
    return whole


def _increments_table(increments: Sequence[Increment]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("increment", "status", "shards", "rows"):
        table.add_column(name, justify="left" if name == "status" else "right")
    table.add_column("decision", overflow="fold")
    for one in increments[-INCREMENTS:]:
        finished = one.status == "done"
        table.add_row(
            f"{one.number:,}",
            Text(one.status, style=COLOURS[one.status]),
            f"{one.shards:,}" if finished else f"{one.done:,} / {one.shards:,}",
            f"{one.rows:,}" if finished else "",
            plain(one.decision) if finished else f"at stage {plain(one.stage)}",
        )
    if len(increments) > INCREMENTS:
        table.caption = f"and {len(increments) - INCREMENTS:,} before: see the report"
    return table


def _below(progress: Progress) -> Text:
    if progress.reconciles is False:
        lines = Text(f"✗ {advice.reconciliation(progress)}\n", style="red")
    else:
        mark = "✓ " if progress.reconciles else ""
        lines = Text(f"{mark}{advice.reconciliation(progress)}\n")
    for step in advice.next_steps(progress):
        lines.append(f"→ {plain(step.replace('`', ''))}\n", style="default")
    lines.rstrip()
    return lines


def _rate(stage: Stage) -> str:
    if stage.status == "running" and stage.left is not None:
        return f"{significant(60 * stage.done / stage.seconds)} parts/min"
    return rates(stage.rates)


def plain(text: str) -> str:
    """Text that cannot steer a terminal: captions come from whoever made the corpus."""
    return "".join(c if c.isprintable() else "·" for c in text)
