"""Parts of the page that other jobs fill."""

from __future__ import annotations

import jinja2
import pytest
from report.synthetic_run import make_run, no_thumbnails

from rrcluster.io.store import Store
from rrcluster.report import page
from rrcluster.report.plots import confidence_chart
from rrcluster.report.section import Content, Section
from rrcluster.report.summary import Summary, gather

TEMPLATE = (
    "<p>{{ data.rows | number }} rows of {{ data.text }}</p>"
    '{% for e in data.samples %}{{ sample(e, "confidence") }}{% endfor %}'
    "{% for c in data.drawn %}{{ chart(c) }}{% endfor %}"
)


def _read(store: Store, summary: Summary) -> Content:
    chart = confidence_chart([1, 2, 3])
    object.__setattr__(chart, "name", "tide-sure")
    some = summary.leaves[0].exemplars[:1]
    data = {"rows": 1234, "text": "<b>evil</b>", "samples": some, "drawn": []}
    return Content(data, (chart,), some, ("Mind the `tide`.",))


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = page._environment()
    loader = jinja2.ChoiceLoader(
        [environment.loader, jinja2.DictLoader({"sections/tide.html.j2": TEMPLATE})]
    )
    monkeypatch.setattr(environment, "loader", loader)
    nothing = Section("ebb", "Ebb", "Ebb", lambda *_: None)
    monkeypatch.setattr(
        page, "SECTIONS", (Section("tide", "How the tide is", "Tide", _read), nothing)
    )


def test_a_section_gets_a_heading_a_link_its_template_charts_and_steps(
    run: Store, sections: None
) -> None:
    html = page.build_report(run, no_thumbnails)
    assert '<a href="#tide">Tide</a>' in html
    assert "<h2>How the tide is</h2>" in html
    assert "1,234 rows of &lt;b&gt;evil&lt;/b&gt;" in html
    assert 'data-figure="tide-sure"' in html
    assert '"tide-sure": {' in html
    assert "Mind the <code>tide</code>." in html
    assert "ebb" not in html.lower().split("<script")[0]


def test_the_samples_of_a_section_are_asked_for_as_thumbnails(run: Store, sections: None) -> None:
    summary = gather(run)
    wanted = page.examples_of(page.read_parts(run, summary))
    assert wanted == list(summary.leaves[0].exemplars[:1])


def test_a_run_without_other_jobs_has_no_sections(tmp_path) -> None:
    run = make_run(tmp_path)
    assert page.read_parts(run, gather(run)) == []
