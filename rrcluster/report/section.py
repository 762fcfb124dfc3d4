"""A part of the page that another job fills: its balance, its drift. One module and one template.

A module under ``report/`` defines ``SECTION``; ``page.SECTIONS`` lists them in reading order. Its
template is ``templates/sections/<name>.html.j2``. In it ``data`` is what ``read`` gave, and these
macros are at hand: ``sample(example, "confidence")``, ``chart(chart)`` and the page's filters
(number, percent, plural, bytes, seconds, codes, significant). The heading, the link in the
navigation, the charts and the thumbnails are the page's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rrcluster.io.store import Store
from rrcluster.report.plots import Chart
from rrcluster.report.scan import Example
from rrcluster.report.summary import Summary


@dataclass(frozen=True)
class Content:
    """What a section shows of one run: values for its template, charts below it, and more."""

    data: Mapping[str, Any] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()  # names must be unique on the page: start with the section's
    examples: tuple[Example, ...] = ()  # samples that the template shows, for their thumbnails
    steps: tuple[str, ...] = ()  # for "What to do next"; `backticks` become code


@dataclass(frozen=True)
class Section:
    """``name`` is the anchor and the template; ``read`` answers None where there is nothing."""

    name: str
    title: str  # the heading
    link: str  # the word in the navigation
    read: Callable[[Store, Summary], Content | None]

    @property
    def template(self) -> str:
        return f"sections/{self.name}.html.j2"


@dataclass(frozen=True)
class Part:
    """A section of this page with its content."""

    section: Section
    content: Content
