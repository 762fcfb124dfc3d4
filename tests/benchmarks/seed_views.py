"""What is read off the figures of ``seed.py``: ratios to peers, and how time grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plotly.subplots import make_subplots

EQUAL = 1.001  # inertia within a thousandth counts as reached
AXES = ("n", "k", "d", "threads")
Row = dict[str, Any]


def scaling_cases(n: int, k: int, d: int) -> Iterator[tuple[str, int, int, int, int, int, int]]:
    """(name, n, d, k, cells, passes, threads): one of them varied, the others in the middle."""
    mid = (n // 4, k // 4, d // 2)
    for part in (n // 8, n // 4, n // 2, n):
        yield f"scale n {part}", part, mid[2], mid[1], 0, 25, 2
    for part in (k // 16, k // 8, k // 2, k):
        yield f"scale k {part}", mid[0], mid[2], part, 0, 25, 2
    for part in (d // 4, d):
        yield f"scale d {part}", mid[0], part, mid[1], 0, 25, 2
    yield "scale threads 1", mid[0], mid[2], mid[1], 0, 25, 1


def compared(rows: list[Row], row: Any) -> Iterator[Row]:
    """Ratios to ``faiss.Kmeans``, of two levels to a flat fit, and of Ray to one process."""
    at = {(r["case"], r["system"], r["metric"]): r for r in rows}
    for (case, system, metric), found in at.items():
        params = found["params"]
        flat, levels = at.get((case, "faiss.Kmeans", "inertia")), case == "two-level"
        if metric == "inertia" and flat and system != "faiss.Kmeans":
            ratio = found["value"] / flat["value"]
            yield row(system, case, "inertia over faiss.Kmeans", ratio, "ratio", params)
            if ratio <= EQUAL:
                times = at[case, "faiss.Kmeans", "seconds"]["value"]
                times /= at[case, system, "seconds"]["value"]
                yield row(system, case, "times as fast to that inertia", times, "ratio", params)
        if levels and system == "rrcluster" and metric in ("inertia", "seconds"):
            peer = at.get((case, "faiss.SuperKMeans", metric))
            if peer:
                name = f"{metric} over flat faiss.SuperKMeans"
                yield row(system, case, name, found["value"] / peer["value"], "ratio", params)
        if system == "rrcluster on Ray" and metric == "seconds":
            alone = at[case, "rrcluster", "seconds"]["value"]
            name = "seconds over in process"
            yield row(system, case, name, found["value"] / alone, "ratio", params)


def draw(rows: list[Row], path: Path) -> None:
    """Seconds of a fit against n, k, d and threads, on logarithmic axes, beside straight growth."""
    figure = make_subplots(1, 4, shared_yaxes=True, subplot_titles=[f"by {a}" for a in AXES])
    scaled = [r for r in rows if r["case"].startswith("scale") and r["metric"] == "seconds"]
    middle = [r for r in scaled if _is_middle(r["params"], scaled)]
    for column, axis in enumerate(AXES, 1):
        mine = [r for r in scaled if r["case"].split()[1] == axis] + middle
        points = sorted({r["params"][axis]: r["value"] for r in mine}.items())
        x, y = [p[0] for p in points], [p[1] for p in points]
        straight = [y[-1] * (v / x[-1]) ** (-1 if axis == "threads" else 1) for v in x]
        shown = {"showlegend": column == 1, "mode": "lines+markers"}
        figure.add_scatter(
            x=x, y=y, name="measured", line_color="#3366cc", row=1, col=column, **shown
        )
        line = {"color": "#999999", "dash": "dot"}
        figure.add_scatter(
            x=x, y=straight, name="in proportion", line=line, row=1, col=column,
            **(shown | {"mode": "lines"}),
        )  # fmt: skip
        figure.update_xaxes(type="log", tickvals=x, row=1, col=column)
    figure.update_yaxes(type="log")
    figure.update_yaxes(title="seconds of a fit", col=1)
    given = middle[0]["params"] if middle else {}
    figure.update_layout(
        title="k-means fit: " + ", ".join(f"{a} = {given.get(a)}" for a in AXES) + " unless varied",
        template="plotly_white", width=1200, height=420,
    )  # fmt: skip
    figure.write_html(path, include_plotlyjs=True)


def _is_middle(params: Row, scaled: list[Row]) -> bool:
    """Whether this is the fit that all curves go through: the one of most cases, on two threads."""
    usual = []
    for axis in AXES:
        values = [r["params"][axis] for r in scaled if r["case"].split()[1] != axis]
        usual.append(max(set(values), key=values.count))
    return [params[axis] for axis in AXES] == usual
