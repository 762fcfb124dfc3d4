"""The page's section on samples: what it shows comes from the samples' summaries."""

from __future__ import annotations

from report.synthetic_run import make_run, no_thumbnails

from rrcluster.report.balance import balance_chart, read
from rrcluster.report.page import build_report
from rrcluster.report.summary import gather


def summary(name: str, why_short: str = "") -> dict:
    def side(gini: float) -> dict:
        curve = [i / 100 * (1 - gini) for i in range(100)] + [1.0]
        return {"covered": 9, "curve": curve, "effective": 7.5, "entropy": 2.0, "gini": gini}

    level = {"clusters": 12, "before": side(0.625), "after": side(0.125)}
    return {
        "name": name, "wanted": 400, "draws": 300, "rows": 280, "why_short": why_short,
        "levels": [level],
    }  # fmt: skip


def test_a_run_without_samples_has_no_section(tmp_path) -> None:
    store = make_run(tmp_path)
    assert read(store, gather(store)) is None


def test_every_sample_is_listed_with_its_balance_before_and_after(tmp_path) -> None:
    store = make_run(tmp_path)
    store.write_json("sample/v1/summary.json", summary("v1"))
    store.write_json("sample/v2/summary.json", summary("v2", "too few <images>"))
    page = build_report(store, no_thumbnails)
    assert "Samples and their balance" in page
    assert "0.625" in page
    assert "0.125" in page
    assert "v2 is short of what was wanted: too few &lt;images&gt;" in page
    assert "Balance of sample v1" in page


def test_the_chart_has_both_curves_and_their_numbers() -> None:
    chart = balance_chart(summary("v1"))
    before, after = chart.figure["data"]
    assert list(before["y"]) != list(after["y"])
    assert chart.rows[-1] == ("100 %", "100.0%", "100.0%")
    assert len(chart.rows) == 11
