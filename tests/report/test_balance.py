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


def test_classes_are_drawn_before_and_after_with_their_names_escaped(tmp_path) -> None:
    store = make_run(tmp_path)
    store.write_json("sample/v1/summary.json", summary("v1"))
    one = {"effective": 1.5, "gini": 0.4, "entropy": 0.4, "covered": 2}
    classes = {"names": ["<cats>", "dogs"], "before": [90, 10], "after": [30, 10],
               "balance_before": one, "balance_after": one | {"effective": 1.9}}  # fmt: skip
    store.write_json("sample/v1/classes.json", classes)
    page = build_report(store, no_thumbnails)
    assert "Classes in sample v1" in page
    assert "an effective number of 1.9 of 2 (the corpus 1.5)" in page
    assert "<cats>" not in page
    chart = read(store, gather(store)).charts[-1]
    assert chart.rows[0] == (1, "<cats>", "90.00%", "75.00%")
