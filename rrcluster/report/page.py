"""The report: an HTML file that opens from disk and loads nothing from anywhere.

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
from rrcluster.report import advice, balance, drift, words
from rrcluster.report.leaves import Leaf, cut
from rrcluster.report.plots import Chart, charts
from rrcluster.report.scan import Example
from rrcluster.report.section import Part, Section
from rrcluster.report.summary import SHOWN, Cluster, Summary, gather
from rrcluster.report.thumbnails import Album, Ref, choose

# Of other jobs, in reading order; see section.py.
SECTIONS: tuple[Section, ...] = (drift.SECTION, balance.SECTION)
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


def build_pages(
    store: Store,
    thumbnails: Callable[[list[Ref]], dict[Ref, bytes]],
    max_megabytes: float = 20,
    clusters_per_page: int = 1000,
) -> Iterator[tuple[str, str]]:
    """(file name, page) for the run in ``store``, finished or not; ``index.html`` comes last.

    It is one page where the tree has at most ``clusters_per_page`` finest clusters; larger trees
    get pages of their own beside it. Each is at most ``max_megabytes``. ``thumbnails`` gives small
    JPEGs for (shard, row) pairs, as far as it can. When they do not all fit, every cluster keeps
    its first ones; the page says how many were left out. Raises UserError when the folder holds no
    run.
    """
    summary = gather(store)
    parts = read_parts(store, summary)
    limit = int(max_megabytes * MEGABYTE)
    leaves: list[Leaf] = []
    if len(summary.leaves) > clusters_per_page:
        leaves = cut(summary.roots, clusters_per_page)
    for leaf in leaves:
        shown = replace(summary, roots=leaf.roots, outliers=())
        render = functools.partial(_render_leaf, shown, leaf, leaves)
        yield leaf.file, _within(limit, render, shown, thumbnails)
    shown = replace(summary, roots=()) if leaves else summary
    with_charts = len(_render(summary, parts, leaves, True, Album()).encode()) <= limit
    render = functools.partial(_render, summary, parts, leaves, with_charts)
    yield "index.html", _within(limit, render, shown, thumbnails, examples_of(parts))


def build_report(
    store: Store,
    thumbnails: Callable[[list[Ref]], dict[Ref, bytes]],
    max_megabytes: float = 20,
) -> str:
    """``index.html`` alone, as ``build_pages`` makes it."""
    return dict(build_pages(store, thumbnails, max_megabytes))["index.html"]


def _within(
    limit: int,
    render: Callable[[Album], str],
    shown: Summary,
    thumbnails: Callable[[list[Ref]], dict[Ref, bytes]],
    others: Sequence[Example] = (),
) -> str:
    """The page with as many thumbnails as fit ``limit`` bytes."""
    album = choose(shown, thumbnails, limit - len(render(Album()).encode()), others)
    page = render(album)
    while len(page.encode()) > limit and album.uris:  # a sample may be shown at several places
        kept = dict(list(album.uris.items())[: len(album.uris) * 9 // 10])
        dropped = len(album.uris) - len(kept)
        album = replace(album, uris=kept, left_out=album.left_out + dropped)
        page = render(album)
    return page


def read_parts(store: Store, summary: Summary) -> list[Part]:
    """The sections that this run has something to show in."""
    found = ((section, section.read(store, summary)) for section in SECTIONS)
    return [Part(section, content) for section, content in found if content is not None]


def examples_of(parts: Sequence[Part]) -> list[Example]:
    return [example for part in parts for example in part.content.examples]


def _render_leaf(summary: Summary, leaf: Leaf, leaves: Sequence[Leaf], album: Album) -> str:
    """A page of clusters of a tree that does not fit one page."""
    content: str = (
        _environment()
        .get_template("leaf.html.j2")
        .render(s=summary, p=summary.progress, leaf=leaf, leaves=leaves, **_shared(summary, album))
    )
    return content


def _link(leaves: Sequence[Leaf], cluster_id: int) -> str:
    """Where a cluster is: on this page, or on its own."""
    for leaf in leaves:
        if any(c.cluster_id == cluster_id for root in leaf.roots for c in root.walk()):
            return f"{leaf.file}#c{cluster_id}"
    return f"#c{cluster_id}"


def chart_page(uri: str, title: str, charts: Sequence[Chart]) -> str:
    """A page of its own with charts alone."""
    content: str = (
        _environment()
        .get_template("chart_page.html.j2")
        .render(
            uri=uri, title=title, charts=charts, with_charts=True,
            figures={c.name: c.figure for c in charts}, **_frame(),
        )
    )  # fmt: skip
    return content


def _frame() -> dict[str, Any]:
    """What every page needs: its looks and its scripts."""
    script = _source("page.js")
    return {
        "style": Markup(_source("style.css")),
        "script": Markup(script),
        "script_hashes": [_hash(script), _hash(plotly.offline.get_plotlyjs())],
        "plotly": Markup(_packed_plotly()),
    }


def _shared(summary: Summary, album: Album) -> dict[str, Any]:
    """What every page with clusters on it needs."""
    return {
        **_frame(),
        "record": summary.progress.record,
        "largest": [max(int(sizes[0]), 1) / max(int(sizes.sum()), 1) for sizes in summary.sizes],
        "album": album,
        "shown": functools.partial(_shown, album),
    }


def _render(
    summary: Summary, parts: Sequence[Part], leaves: Sequence[Leaf], with_charts: bool, album: Album
) -> str:
    drawn = charts(summary)
    every = [*drawn, *(chart for part in parts for chart in part.content.charts)]
    content: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            s=summary,
            p=summary.progress,
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
            leaves=leaves,
            link=functools.partial(_link, leaves),
            found_by=[
                [c.cluster_id, c.name, search_text(c), i]
                for i, leaf in enumerate(leaves)
                for root in leaf.roots
                for c in root.walk()
            ],
            **_shared(summary, album),
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
        "rates": words.rates,
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
