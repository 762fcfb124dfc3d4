"""The clusters that mix labels most, as a table of shares, a picture, and a page with it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rrcluster.io.current import current
from rrcluster.io.store import Store
from rrcluster.report.page import chart_page
from rrcluster.report.plots import Chart, clip

WORST = 16  # clusters in the picture
LABELS = 24  # columns of the picture, the labels that those clusters hold most of
KEPT = 5  # labels of a cluster in the JSON


def worst_mixed(
    store: Store, pairs: Mapping[tuple[int, int], int], labels: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Finest clusters by the samples that are not of their most common label, most first.

    ``pairs`` counts (label code, cluster id). Each entry has the cluster's id and caption, its
    labelled samples, how many are of another label, and its labels with their counts.
    """
    of: dict[int, Counter[str]] = {}
    for (code, cluster), count in pairs.items():
        of.setdefault(cluster, Counter())[labels[code]] += count
    others = {c: n.total() - n.most_common(1)[0][1] for c, n in of.items()}
    worst = sorted((c for c in of if others[c]), key=lambda c: (-others[c], c))[:WORST]
    names = _names(store)
    return [
        {
            "cluster_id": cluster,
            "caption": names.get(cluster, ""),
            "samples": of[cluster].total(),
            "of_other_labels": others[cluster],
            "labels": dict(sorted(of[cluster].items(), key=lambda e: (-e[1], e[0]))),
        }
        for cluster in worst
    ]


def _names(store: Store) -> dict[int, str]:
    now = current(store)
    table = now.clusters(now.levels - 1, ["cluster_id", "captions"]).to_pylist()
    return {r["cluster_id"]: r["captions"][0]["text"] for r in table if r["captions"]}


def confusion_chart(worst: list[dict[str, Any]]) -> Chart:
    """Shares of labels in the worst-mixed clusters: a row per cluster."""
    total: Counter[str] = Counter()
    for entry in worst:
        total.update(entry["labels"])
    columns = [label for label, _ in total.most_common(LABELS)]
    rows = [f"{clip(e['caption'] or 'no name', 28)} #{e['cluster_id']}" for e in worst]
    share = np.array(
        [[e["labels"].get(label, 0) / e["samples"] for label in columns] for e in worst]
    )
    figure = go.Figure(
        go.Heatmap(
            x=[html.escape(clip(label, 24)) for label in columns],
            y=[html.escape(name) for name in rows],
            z=share.tolist(),
            zmin=0.0,
            zmax=1.0,
            meta="heat",
            xgap=1,
            ygap=1,
            hovertemplate="%{y}<br>%{z:.0%} are %{x}<extra></extra>",
        )
    )
    figure.update_layout(template=None, showlegend=False)
    figure.update_xaxes(title="label", tickangle=-45)
    figure.update_yaxes(title="", autorange="reversed")
    mixed = sum(e["of_other_labels"] for e in worst)
    caption = (
        f"The {len(worst)} clusters with the most samples that are not of their most common label, "
        f"{mixed:,} such samples in all. A stronger colour is a larger share of the cluster."
    )
    table = tuple(
        (name, entry["samples"], entry["of_other_labels"],
         ", ".join(f"{label} {count:,}" for label, count in list(entry["labels"].items())[:KEPT]))
        for name, entry in zip(rows, worst, strict=True)
    )  # fmt: skip
    header = ("cluster", "samples", "of other labels", "labels")
    plain: dict[str, Any] = figure.to_plotly_json()
    return Chart("confusion", "Which labels the worst clusters mix", caption, plain, header, table)


def confusion_page(store: Store, worst: list[dict[str, Any]]) -> str:
    """One self-contained page with the picture and its numbers."""
    if not worst:
        return chart_page(store.uri, "Every cluster holds samples of one label only", [])
    return chart_page(store.uri, "Clusters against labels", [confusion_chart(worst)])
