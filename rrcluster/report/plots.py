"""Charts as plotly figures, without colours: the page's script paints them for light or dark.

A trace says its role in ``meta`` (bar, line, accepted, refused, ...), which the script maps to the
page's own colours. Text in a figure is escaped, as plotly reads it as markup.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from rrcluster.report.summary import Curve, Gate, Summary

BARS = 80  # clusters drawn as bars; more become a line over the rank
POINTS = 1000  # of a line


@dataclass(frozen=True)
class Chart:
    """A figure for plotly.js, what it shows in words, and its numbers as a table."""

    name: str
    title: str
    caption: str
    figure: dict[str, Any]
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def charts(summary: Summary) -> list[Chart]:
    """The charts that this run has something to show in."""
    found = []
    if summary.num_leaves:
        found.append(size_chart(summary))
    if summary.curve is not None and summary.curve.clusters:
        found.append(curve_chart(summary.curve))
    if summary.gates:
        found.append(gate_chart(summary.gates))
    if sum(summary.confidence):
        found.append(confidence_chart(summary.confidence))
    return found


def size_chart(summary: Summary) -> Chart:
    """Sizes of the finest level, largest first; logarithmic when there are many."""
    sizes = summary.sizes[-1]
    even = float(sizes.mean())
    count = len(sizes)
    if count <= BARS:
        leaves = sorted(summary.leaves, key=lambda c: (-c.size, c.cluster_id))
        names = [clip(c.name) for c in leaves]
        trace = go.Bar(
            x=list(range(1, count + 1)),
            y=sizes.tolist(),
            meta="bar",
            hovertext=[html.escape(n) for n in names],
            hovertemplate="%{hovertext}<br>%{y:,} samples<extra></extra>",
        )
        rows: tuple[tuple[Any, ...], ...] = tuple(
            (i + 1, n, int(s)) for i, (n, s) in enumerate(zip(names, sizes, strict=True))
        )
        header: tuple[str, ...] = ("rank", "cluster", "samples")
    else:
        ranks = sorted({round(count ** (i / POINTS)) for i in range(POINTS + 1)})
        trace = go.Scatter(
            x=ranks,
            y=[max(int(sizes[r - 1]), 1) for r in ranks],
            mode="lines",
            meta="line",
            hovertemplate="rank %{x:,}<br>%{y:,} samples<extra></extra>",
        )
        marks = sorted({1, count, *(10**i for i in range(7) if 10**i <= count), count // 2})
        rows, header = tuple((r, int(sizes[r - 1])) for r in marks), ("rank", "samples")
    figure = bare_figure([trace], "clusters, largest first", "samples")
    figure.add_hline(y=even, name="even", line={"dash": "dot"})
    if count > BARS:
        figure.update_xaxes(type="log", dtick=1)
        figure.update_yaxes(type="log", dtick=1)
    half = int((sizes.cumsum() * 2 >= sizes.sum()).argmax()) + 1
    empty = int((sizes == 0).sum())
    caption = (
        f"{count:,} clusters, from {int(sizes[0]):,} samples down to {int(sizes[-1]):,}. "
        f"The largest {half:,} hold half of the corpus; the dotted line is an even share "
        f"({even:,.0f})."
    ) + (f" {empty:,} are empty." if empty else "")
    return Chart("sizes", "How large the clusters are", caption, plain_figure(figure), header, rows)


def curve_chart(curve: Curve) -> Chart:
    """Coding length against the number of clusters, with the estimate's range and the choice."""
    pairs = list(zip(curve.clusters, curve.nats_per_sample, strict=True))
    step = -(-len(pairs) // POINTS)
    kept = [p for i, p in enumerate(pairs) if i % step == 0 or p[0] in curve.chosen]
    line = go.Scatter(
        x=[p[0] for p in kept],
        y=[p[1] for p in kept],
        mode="lines+markers" if len(kept) <= 40 else "lines",
        meta="line",
        hovertemplate="%{x:,} clusters<br>%{y:.3f} nats per sample<extra></extra>",
    )
    value = dict(pairs)
    chosen = [k for k in curve.chosen if k in value]
    points = go.Scatter(
        x=chosen,
        y=[value[k] for k in chosen],
        mode="markers+text",
        text=[f"{k:,}" for k in chosen],
        textposition="top right",
        cliponaxis=False,
        meta="chosen",
        hovertemplate="chosen: %{x:,} clusters<extra></extra>",
    )
    figure = bare_figure([line, points], "clusters", "nats per sample")
    figure.add_vrect(x0=curve.low - 0.5, x1=curve.high + 0.5, name="range")
    figure.add_vline(x=curve.estimate, name="estimate", line={"dash": "dot"})
    levels = ", ".join(f"{k:,}" for k in curve.chosen) or "none"
    asked = "k=auto" if curve.asked == "auto" else f"k={curve.asked} was asked"
    caption = (
        f"The shortest description of the corpus has {curve.estimate:,} clusters; repeated on "
        f"resampled data it has {curve.low:,} to {curve.high:,} (shaded). "
        f"Chosen: {levels} ({asked})."
    )
    if not curve.enough_data:
        caption += " There is too little data to trust the estimate."
    if curve.criteria:
        others = ", ".join(f"{n} {curve.criteria[n]:,}" for n in ("silhouette", "elbow", "gap"))
        caption += f" For comparison, on {curve.criteria['rows']:,} rows: {others}."
    marks = sorted({curve.estimate, curve.low, curve.high, *curve.chosen, *curve.clusters[:1]})
    rows = tuple((k, f"{value[k]:.4f}") for k in marks if k in value)
    return Chart(
        "curve",
        "How many clusters",
        caption,
        plain_figure(figure),
        ("clusters", "nats per sample"),
        rows,
    )


def gate_chart(gates: Sequence[Gate]) -> Chart:
    """What each refinement attempt changed, and whether it was kept."""
    traces, drawn = [], list(enumerate(gates))[-POINTS:]
    for role, accepted in (("accepted", True), ("refused", False)):
        some = [(i + 1, g) for i, g in drawn if g.accepted == accepted]
        if some:
            traces.append(
                go.Bar(
                    x=[i for i, _ in some],
                    y=[g.after - g.before for _, g in some],
                    name=role,
                    meta=role,
                    width=0.8,
                    hovertext=[
                        html.escape(f"{g.step}, cell {g.cell}, round {g.round}") for _, g in some
                    ],
                    hovertemplate="%{hovertext}<br>%{y:+.4f}<extra>" + role + "</extra>",
                )
            )
    figure = bare_figure(traces, "attempt", "change of the criterion")
    figure.update_layout(showlegend=True, barmode="overlay")
    kept = sum(g.accepted for g in gates)
    caption = (
        f"{len(gates):,} attempts: {kept:,} accepted, {len(gates) - kept:,} refused and "
        "rolled back. The criterion is measured without labels, always on the same samples."
    )
    return Chart("gates", "What refinement changed", caption, plain_figure(figure), (), ())


def confidence_chart(confidence: Sequence[int]) -> Chart:
    """How sure the assignments are, over all samples."""
    width = 1 / len(confidence)
    total = sum(confidence)
    trace = go.Bar(
        x=[(i + 0.5) * width for i in range(len(confidence))],
        y=list(confidence),
        meta="bar",
        hovertemplate="confidence %{x:.2f} ± " + f"{width / 2:.2f}<br>%{{y:,}} samples"
        "<extra></extra>",
    )
    figure = bare_figure([trace], "confidence", "samples")
    sure = sum(confidence[-1:])
    caption = (
        f"{100 * sure / total:.0f}% of the samples are assigned with a confidence of "
        f"{1 - width:.1f} or more."
    )
    rows = tuple(
        (f"{i * width:.1f} to {(i + 1) * width:.1f}", int(c)) for i, c in enumerate(confidence)
    )
    return Chart(
        "confidence", "How sure the assignments are", caption, plain_figure(figure),
        ("confidence", "samples"), rows,
    )  # fmt: skip


def bare_figure(traces: Sequence[Any], x: str, y: str) -> go.Figure:
    """Axes and traces; colours and fonts are the page's."""
    figure = go.Figure(list(traces))
    figure.update_layout(template=None, showlegend=False, bargap=0.15)
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def plain_figure(figure: go.Figure) -> dict[str, Any]:
    plain: dict[str, Any] = figure.to_plotly_json()
    return plain


def clip(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
