"""How even a sample is over the clusters, before and after: for the terminal and the page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from rich.table import Table

from rrcluster.io.store import Store
from rrcluster.report.plots import BARS, Chart, bare_figure, clip, plain_figure
from rrcluster.report.section import Content, Section
from rrcluster.report.summary import Summary

CHARTS_SHOWN = 6  # samples whose curve is drawn; the others are in the table
ROWS_SHOWN = range(0, 101, 10)  # of a curve, in its table of numbers


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


def read(store: Store, summary: Summary) -> Content | None:
    """Every sample that was drawn, with its balance before and after; None without samples."""
    found = [
        store.read_json(f"sample/{name}/summary.json")
        for name in sorted(store.folders("sample"))
        if store.exists(f"sample/{name}/summary.json")
    ]
    if not found:
        return None
    classes = {
        one["name"]: store.read_json(f"sample/{one['name']}/classes.json")
        for one in found
        if store.exists(f"sample/{one['name']}/classes.json")
    }
    charts = [balance_chart(one) for one in found[:CHARTS_SHOWN]]
    charts += [class_chart(name, classes[name]) for name in list(classes)[:CHARTS_SHOWN]]
    return Content({"samples": found, "classes": classes}, tuple(charts))


def balance_chart(summary: Mapping[str, Any]) -> Chart:
    """Lorenz curves over the finest clusters: the diagonal is perfect balance."""
    finest = summary["levels"][-1]
    share = [i / (len(finest["after"]["curve"]) - 1) for i in range(len(finest["after"]["curve"]))]
    lines = [
        go.Scatter(
            x=share, y=finest[when]["curve"], mode="lines", meta=meta, name=what,
            hovertemplate="%{x:.0%} of the clusters hold %{y:.1%} of " + what + "<extra></extra>",
        )
        for when, what, meta in (
            ("before", "the corpus", "before"), ("after", "the sample", "line"),
        )
    ]  # fmt: skip
    figure = bare_figure(lines, "share of clusters, smallest first", "share of images")
    before, after = finest["before"], finest["after"]
    caption = (
        f"Sample {summary['name']}: an effective number of {after['effective']:,.1f} clusters of "
        f"{finest['clusters']:,} (the corpus {before['effective']:,.1f}), Gini coefficient "
        f"{after['gini']:.3f} (the corpus {before['gini']:.3f}). The straight line from corner to "
        "corner would be perfect balance; the grey one is the corpus."
    )
    rows = tuple(
        (f"{i} %", f"{before['curve'][i]:.1%}", f"{after['curve'][i]:.1%}") for i in ROWS_SHOWN
    )
    return Chart(
        f"balance-{summary['name']}", f"Balance of sample {summary['name']}", caption,
        plain_figure(figure), ("smallest clusters", "of the corpus", "of the sample"), rows,
    )  # fmt: skip


def class_chart(name: str, classes: Mapping[str, Any]) -> Chart:
    """Share of every labelled class in the corpus and in the sample, most frequent first."""
    before, after = (share_of(classes[when]) for when in ("before", "after"))
    names = [clip(n) for n in classes["names"]]
    ranks = list(range(1, len(names) + 1))
    lines = [
        go.Scatter(
            x=ranks, y=share, mode="lines", line_shape="hvh", meta=meta, name=what,
            hovertext=[html.escape(n) for n in names],
            hovertemplate="%{hovertext}<br>%{y:.2%} of " + what + "<extra></extra>",
        )
        for share, what, meta in (
            (before, "the corpus", "before"), (after, "the sample", "line"),
        )
    ]  # fmt: skip
    figure = bare_figure(lines, "classes, most frequent in the corpus first", "share of rows")
    figure.update_yaxes(rangemode="tozero")
    figure.add_hline(y=1 / len(names), name="even", line={"dash": "dot"})
    effective = [classes[f"balance_{when}"]["effective"] for when in ("before", "after")]
    caption = (
        f"Labelled classes in sample {name}: an effective number of {effective[1]:,.1f} of "
        f"{len(names):,} (the corpus {effective[0]:,.1f}). The dotted line is an equal share for "
        "all. Labels were only counted; they chose nothing."
    )
    shown = range(len(names)) if len(names) <= BARS else range(0, len(names), len(names) // BARS)
    rows = tuple((i + 1, names[i], f"{before[i]:.2%}", f"{after[i]:.2%}") for i in shown)
    header = ("rank", "class", "of the corpus", "of the sample")
    title = f"Classes in sample {name}"
    return Chart(f"balance-classes-{name}", title, caption, plain_figure(figure), header, rows)


def share_of(counts: Sequence[int]) -> list[float]:
    total = max(sum(counts), 1)
    return [count / total for count in counts]


SECTION = Section("balance", "Samples and their balance", "Samples", read)
