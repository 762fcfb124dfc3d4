"""The HTML page: what it says, what it must not load, and how large it may get."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.synthetic_run import make_run, no_thumbnails, thumbnails_of

from rrcluster.io.store import Store
from rrcluster.records import UserError
from rrcluster.report import plots
from rrcluster.report.leaves import cut
from rrcluster.report.page import build_pages, build_report
from rrcluster.report.summary import gather
from rrcluster.report.thumbnails import choose, shards_worth_reading

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class _Tags(HTMLParser):
    """Collects tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, content: str) -> None:
        self.text += "" if self._silent else content


def test_counts_reconcile_and_are_shown(run: Store) -> None:
    text = _Tags(build_report(run, thumbnails_of(run))).text
    assert "126 read = 120 embedded + 6 bad" in text
    assert "120 images are sorted into 6 clusters in 3 groups" in text


def test_counts_that_do_not_add_up_are_said_to_be_wrong(run: Store) -> None:
    record = run.read_json("run.json")
    record["reconciliation"]["bad"] = 4
    run.write_json("run.json", record)
    text = _Tags(build_report(run, no_thumbnails)).text
    assert "126 read ≠ 120 embedded + 4 bad: +2 not accounted for" in text


def test_captions_cannot_bring_markup_into_the_page(tmp_path: Path) -> None:
    store = make_run(tmp_path, caption=EVIL)
    page = build_report(store, no_thumbnails)
    tags = _Tags(page)
    assert EVIL in tags.text
    assert "<script>alert" not in page
    assert all("onerror" not in attrs for _, attrs in tags.tags)
    assert sum(tag == "script" for tag, _ in tags.tags) == 3  # figures, plotly, the page's own


def test_the_page_loads_nothing_from_anywhere(run: Store) -> None:
    page = build_report(run, thumbnails_of(run))
    tags = _Tags(page).tags
    for tag, attrs in tags:
        for name in ("src", "href", "data", "poster", "action", "srcset"):
            value = attrs.get(name) or ""
            assert not value or value.startswith(("data:", "#")), f"{tag} {name}={value[:60]}"
    assert not re.search(r"url\(|@import|https?://", page)
    policy = next(a["content"] for t, a in tags if t == "meta" and "http-equiv" in a)
    assert policy
    assert policy.startswith("default-src 'none'; img-src data:")


def test_every_picture_has_a_text(run: Store) -> None:
    tags = _Tags(build_report(run, thumbnails_of(run))).tags
    pictures = [attrs for tag, attrs in tags if tag == "img"]
    assert pictures
    assert all(a.get("alt") for a in pictures)


def test_thumbnails_are_dropped_before_the_page_grows_over_its_size(tmp_path: Path) -> None:
    store = make_run(tmp_path, groups=2, leaves=12, rows=80, examples=12)
    whole = build_report(store, thumbnails_of(store))
    limit = (len(whole.encode()) - 40_000) / 1e6
    bounded = build_report(store, thumbnails_of(store), limit)
    assert len(bounded.encode()) <= limit * 1e6
    assert 0 < bounded.count("<img") < whole.count("<img")
    assert "thumbnails were left out to keep this page small" in _Tags(bounded).text
    assert "left out" not in _Tags(whole).text


def test_every_cluster_keeps_its_first_thumbnail_before_any_gets_a_second(run: Store) -> None:
    summary = gather(run)
    picture = b"\xff\xd8" + bytes(1000)
    album = choose(summary, lambda refs: dict.fromkeys(refs, picture), 6 * 1600)
    assert len(album.uris) == 6
    assert all(album.get(c.exemplars[0]) for c in summary.leaves)


def test_thumbnails_that_are_no_jpeg_are_not_put_on_the_page(run: Store) -> None:
    page = build_report(run, lambda refs: dict.fromkeys(refs, b"<svg onload=alert(1)>"))
    assert "<img" not in page


def test_a_page_too_small_for_charts_says_so_and_keeps_the_numbers(run: Store) -> None:
    page = build_report(run, thumbnails_of(run), 0.3)
    assert len(page.encode()) <= 300_000
    text = _Tags(page).text
    assert "drawings were left out" in text
    assert "How many clusters" in text


def test_a_thousand_clusters_fit_in_twenty_megabytes(tmp_path: Path) -> None:
    store = make_run(tmp_path, groups=20, leaves=1000, shards=2, rows=6000, examples=4)
    large = b"\xff\xd8" + bytes(4000)
    page = build_report(store, lambda refs: dict.fromkeys(refs, large))
    assert 10e6 < len(page.encode()) <= 20e6
    assert "1,000 clusters in 20 groups" in page


def test_ready_vectors_have_no_thumbnails_and_are_listed_by_caption(run: Store) -> None:
    text = _Tags(build_report(run, no_thumbnails)).text
    assert "There are no thumbnails for this corpus" in text
    assert "a crimson circle on a plain ground" in text


def test_a_run_that_was_only_embedded_says_what_is_missing(tmp_path: Path) -> None:
    store = make_run(tmp_path, upto="embed")
    text = _Tags(build_report(store, no_thumbnails)).text
    assert "This run is not finished" in text
    assert "write: every sample's cluster" in text
    assert "(0 of 3 shards are there)" in text
    assert "The run stands at stage seed" in text
    assert "120 images embedded so far" in text


def test_an_empty_cluster_is_shown_as_empty(tmp_path: Path) -> None:
    store = make_run(tmp_path, empty_leaf=True)
    text = _Tags(build_report(store, no_thumbnails)).text
    assert "This cluster is empty." in text
    assert "1 are empty" in text


def test_a_run_without_a_single_good_image_still_has_a_page(tmp_path: Path) -> None:
    store = make_run(tmp_path, rows=0, upto="embed")
    assert "6 read = 0 embedded + 6 bad" in _Tags(build_report(store, no_thumbnails)).text


def test_bad_images_are_counted_by_reason(run: Store) -> None:
    text = _Tags(build_report(run, no_thumbnails)).text
    assert "the bytes are not a readable image" in text
    assert "99 megapixels" in text


def test_the_settings_are_shown_and_a_folder_without_run_is_refused(
    run: Store, tmp_path: Path
) -> None:
    assert "s3://bucket/shards" in _Tags(build_report(run, no_thumbnails)).text
    with pytest.raises(UserError, match=r"run_dir=.*holds no run\.json"):
        build_report(Store(str(tmp_path / "nothing")), no_thumbnails)


def test_captions_in_charts_are_escaped(tmp_path: Path) -> None:
    summary = gather(make_run(tmp_path, caption="<a href='javascript:alert(1)'>x</a>"))
    chart = plots.size_chart(summary)
    assert all("<" not in text for text in chart.figure["data"][0]["hovertext"])


def test_many_clusters_become_a_line_and_a_long_curve_is_thinned(tmp_path: Path) -> None:
    store = make_run(tmp_path, groups=4, leaves=120)
    summary = gather(store)
    assert plots.size_chart(summary).figure["data"][0]["type"] == "scatter"
    assert summary.curve is not None
    ks = list(range(1, 50_001))
    long = dataclasses.replace(summary.curve, clusters=ks, nats_per_sample=[1.0 / k for k in ks])
    assert len(plots.curve_chart(long).figure["data"][0]["x"]) <= 1100


@pytest.mark.parametrize("hive", [False, True])
def test_a_single_level_has_clusters_without_groups(tmp_path: Path, hive: bool) -> None:
    store = make_run(tmp_path, single_level=True, hive=hive)
    page = build_report(store, thumbnails_of(store))
    text = _Tags(page).text
    assert "120 images are sorted into 6 clusters; the largest: crimson circle" in text
    assert 'class="group"' not in page
    assert sum(gather(store).confidence) == 120


def test_a_tree_too_large_for_a_page_gets_pages_that_hold_every_cluster_once(
    tmp_path: Path,
) -> None:
    store = make_run(tmp_path, groups=3, leaves=40, rows=100)
    pages = dict(build_pages(store, thumbnails_of(store), 20, clusters_per_page=8))
    assert list(pages)[-1] == "index.html"
    assert len(pages) > 5
    found = [
        int(attrs["id"][1:])  # type: ignore[index]
        for name, page in pages.items()
        for tag, attrs in _Tags(page).tags
        if tag == "details" and attrs.get("class") == "leaf"
    ]
    assert sorted(found) == list(range(3, 43))
    index = _Tags(pages["index.html"])
    links = {a["href"].partition("#")[0] for t, a in index.tags if t == "a" and a.get("href")}
    assert links - {""} == pages.keys() - {"index.html"}
    assert "40 clusters in 3 groups" in index.text
    assert all(len(page.encode()) < 20e6 for page in pages.values())


def test_pages_keep_whole_branches_where_they_fit_and_repeat_heads_where_not(
    tmp_path: Path,
) -> None:
    roots = gather(make_run(tmp_path, groups=3, leaves=12)).roots
    assert [[r.cluster_id for r in leaf.roots] for leaf in cut(roots, 4)] == [
        [root.cluster_id] for root in roots
    ]
    halves = cut(roots, 3)
    assert [leaf.count for leaf in halves] == [3, 1, 3, 1, 3, 1]
    assert [leaf.roots[0].cluster_id for leaf in halves[:2]] == [roots[0].cluster_id] * 2
    assert [leaf.first for leaf in cut(roots, 100)] == [1]


def test_few_shards_are_read_that_picture_many_clusters() -> None:
    wanted = [(9, 0), *((shard, row) for row in range(10) for shard in (1, 2))]
    assert shards_worth_reading(wanted, 2) == {1: set(range(10)), 2: set(range(10))}
    assert shards_worth_reading(wanted, 0) == {}
    assert shards_worth_reading([(5, 1), (4, 2)], 9) == {4: {2}, 5: {1}}
