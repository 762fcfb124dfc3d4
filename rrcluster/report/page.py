"""The report: one HTML file that opens from disk and loads nothing from anywhere.

Captions come from whoever made the corpus, so every value is escaped by the template, and the
page's content security policy lets only the two scripts run whose hashes it names.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import jinja2
import plotly.offline
from markupsafe import Markup, escape

from rrcluster.io.store import Store
from rrcluster.report import advice, words
from rrcluster.report.plots import charts
from rrcluster.report.scan import Example
from rrcluster.report.section import Part, Section
from rrcluster.report.summary import SHOWN, Cluster, Summary, gather
from rrcluster.report.thumbnails import Album, Ref, choose

SECTIONS: tuple[Section, ...] = ()  # of other jobs, in reading order; see section.py
MEGABYTE = 1_000_000
GATES_SHOWN = 200
WITHOUT_PICTURE = 4  # examples listed by caption alone in a cluster that has no thumbnails
REASONS = {
    "decode": "the bytes are not a readable image",
    "truncated": "the file or the shard ends early",
    "too_large": "more pixels than corpus.max_pixels",
    "unsupported": "a format that is not read",
    "missing_image": "a record without an image",
    "read": "storage could not be read",
}


def build_report(
    store: Store,
    thumbnails: Callable[[list[Ref]], dict[Ref, bytes]],
    max_megabytes: float = 20,
) -> str:
    """The page for the run in ``store``, finished or not, in at most ``max_megabytes``.

    ``thumbnails`` gives small JPEGs for (shard, row) pairs, as far as it can. When they do not all
    fit, every cluster keeps its first ones; the page says how many were left out. Raises UserError
    when the folder holds no run.
    """
    summary = gather(store)
    parts = read_parts(store, summary)
    limit = int(max_megabytes * MEGABYTE)
    with_charts = True
    bare = len(_render(summary, parts, Album(), with_charts).encode())
    if bare > limit:
        with_charts = False
        bare = len(_render(summary, parts, Album(), with_charts).encode())
    album = choose(summary, thumbnails, limit - bare, examples_of(parts))
    page = _render(summary, parts, album, with_charts)
    while len(page.encode()) > limit and album.uris:  # a sample may be shown at several places
        kept = dict(list(album.uris.items())[: len(album.uris) * 9 // 10])
        dropped = len(album.uris) - len(kept)
        album = replace(album, uris=kept, left_out=album.left_out + dropped)
        page = _render(summary, parts, album, with_charts)
    return page


def read_parts(store: Store, summary: Summary) -> list[Part]:
    """The sections that this run has something to show in."""
    found = ((section, section.read(store, summary)) for section in SECTIONS)
    return [Part(section, content) for section, content in found if content is not None]


def examples_of(parts: Sequence[Part]) -> list[Example]:
    return [example for part in parts for example in part.content.examples]


def _render(summary: Summary, parts: Sequence[Part], album: Album, with_charts: bool) -> str:
    script = _source("page.js")
    drawn = charts(summary)
    every = [*drawn, *(chart for part in parts for chart in part.content.charts)]
    content: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            s=summary,
            p=summary.progress,
            record=summary.progress.record,
            headline=advice.headline(summary),
            noun=advice.noun(summary.progress),
            reconciliation=advice.reconciliation(summary.progress),
            missing=advice.missing_parts(summary.progress),
            steps=[
                *advice.next_steps(summary.progress, summary),
                *(step for part in parts for step in part.content.steps),
            ],
            parts=parts,
            reasons=REASONS,
            gates_shown=GATES_SHOWN,
            max_shown=SHOWN,
            num_gates_accepted=sum(g.accepted for g in summary.gates),
            charts=drawn,
            figures={c.name: c.figure for c in every} if with_charts else {},
            with_charts=with_charts,
            settings=list(_flat(summary.progress.record.get("config", {}))),
            largest=[max(int(sizes[0]), 1) / max(int(sizes.sum()), 1) for sizes in summary.sizes],
            album=album,
            shown=functools.partial(_shown, album),
            style=Markup(_source("style.css")),
            script=Markup(script),
            plotly=Markup(_packed_plotly()),
            script_hashes=[_hash(script), _hash(plotly.offline.get_plotlyjs())],
        )
    )
    return content


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rrcluster.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": lambda x: f"{x:,}",
        "percent": words.percent,
        "seconds": words.duration,
        "bytes": words.size_in_bytes,
        "codes": codes,
        "median": advice.median,
        "significant": words.significant,
        "plural": words.plural,
    }
    environment.globals["search_text"] = search_text
    return environment


def _shown(album: Album, examples: Sequence[Example]) -> list[Example]:
    """Those with a thumbnail; when there is none, the first few, by caption alone."""
    pictured = [e for e in examples if album.get(e)]
    return pictured or list(examples[:WITHOUT_PICTURE])


def search_text(cluster: Cluster) -> str:
    """What the search box looks through."""
    return " ".join([str(cluster.cluster_id), *(c[0] for c in cluster.captions)]).casefold()


def codes(text: str) -> Markup:
    """Text whose `backticked` parts become code; everything is escaped."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts)
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@functools.cache
def _source(name: str) -> str:
    return (files("rrcluster.report") / "templates" / name).read_text("utf-8").strip()


@functools.cache
def _packed_plotly() -> str:
    """plotly.js, gzipped: 2 MB on the page instead of 4.8; the page's script unpacks it."""
    packed = gzip.compress(plotly.offline.get_plotlyjs().encode(), 9, mtime=0)
    return base64.b64encode(packed).decode()


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
