"""The page in a real browser, when there is one: it renders, and search and folding work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report.synthetic_run import make_run, thumbnails_of

from rrcluster.io.store import Store
from rrcluster.report.page import build_pages

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom",
)  # fmt: skip
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on the PATH")


def _open(
    store: Store,
    folder: Path,
    fragment: str = "",
    file: str = "index.html",
    per_page: int = 1000,
    width: int = 1280,
) -> tuple[dict[str, str], str, str]:
    """The page's own marks after its scripts ran, its DOM, and what went to the console."""
    page = folder / file
    for name, html in build_pages(store, thumbnails_of(store), clusters_per_page=per_page):
        (folder / name).write_text(html, "utf-8")
    command = [
        BROWSER,
        *FLAGS,
        f"--window-size={width},900",
        f"--user-data-dir={folder / 'profile'}",
        f"{page.as_uri()}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root, done.stderr[-2000:]
    marks = dict(re.findall(r'data-(\w+)="([^"]*)"', root[0]))
    return marks, done.stdout, "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)


def test_the_page_renders_its_charts_without_an_error(run: Store, tmp_path: Path) -> None:
    marks, dom, console = _open(run, tmp_path)
    assert marks == {"errors": "0", "found": "6", "charts": "4", "overflow": "0", "ready": "yes"}
    assert console == ""
    assert dom.count('class="main-svg"') >= 4


def test_search_hides_what_does_not_match_and_opens_what_does(run: Store, tmp_path: Path) -> None:
    marks, dom, _ = _open(run, tmp_path, "#q=royalblue%20circle")
    assert marks["found"] == "1"
    leaves = re.findall(r'<details class="leaf"[^>]*>', dom)
    assert sum("hidden" not in leaf for leaf in leaves) == 1
    groups = re.findall(r'<details class="group"[^>]*>', dom)
    assert [" open" in g for g in groups] == [" hidden" not in g for g in groups]


def test_a_link_to_a_cluster_unfolds_it_and_draws_its_histogram(run: Store, tmp_path: Path) -> None:
    marks, dom, _ = _open(run, tmp_path, "#c4")
    assert re.search(r'<details class="leaf" id="c4"[^>]* open', dom)
    assert marks["errors"] == "0"
    assert "histogram js-plotly-plot" in dom


def test_captions_run_no_script_in_the_browser(tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.documentElement.dataset.evil='1'\">"
    marks, _, console = _open(make_run(tmp_path / "run", caption=evil), tmp_path)
    assert "evil" not in marks
    assert marks["errors"] == "0"
    assert console == ""


def test_the_search_of_a_tree_on_several_pages_leads_to_them(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run", groups=3, leaves=24)
    marks, dom, console = _open(store, tmp_path, "#q=royalblue%20square", per_page=5)
    assert (marks["errors"], marks["found"], console) == ("0", "1", "")
    link = re.search(r'<li><a href="(clusters-\d+\.html)(#c\d+)">royalblue square</a>', dom)
    assert link
    marks, dom, console = _open(store, tmp_path, link[2], file=link[1], per_page=5)
    assert (marks["errors"], console) == ("0", "")
    assert re.search(rf'<details class="leaf" id="{link[2][1:]}"[^>]* open', dom)


def test_folding_opens_and_closes_the_whole_tree(run: Store, tmp_path: Path) -> None:
    for fragment, opened in (("#unfold", True), ("#fold", False)):
        _, dom, console = _open(run, tmp_path, fragment)
        groups = re.findall(r'<details class="group"[^>]*>', dom)
        assert groups
        assert all((" open" in group) == opened for group in groups)
        assert console == ""


def test_a_narrow_screen_needs_no_scrolling_sideways(tmp_path: Path) -> None:
    long = "averyveryverylongcaptionwithoutanyblanks" * 4
    store = make_run(tmp_path / "run", caption=long)
    marks, _, _ = _open(store, tmp_path, "#c3", width=500)
    assert (marks["errors"], marks["overflow"]) == ("0", "0")
