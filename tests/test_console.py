"""What a job says while it runs."""

from __future__ import annotations

import io
import json
import logging

from rich.console import Console

from pipelines.console import ConsoleProgress


def test_json_lines_name_the_stage_and_the_shard() -> None:
    out = io.StringIO()
    progress = ConsoleProgress("json", Console(file=out))
    log = logging.getLogger("rrcluster")
    log.handlers[0].setStream(out)
    progress("embed", 12, 12, "480 images", bad=2)
    log.warning("shard %s was read row by row", "000007", extra={"shard": "000007"})
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["stage"], first["done"], first["total"]) == ("embed", 12, 12)
    assert first["facts"] == {"bad": 2}
    assert (second["stage"], second["shard"], second["level"]) == ("embed", "000007", "warning")
    assert second["message"] == "shard 000007 was read row by row"


def test_plain_lines_come_every_so_many_seconds_with_rate_and_time_left(
    monkeypatch, caplog
) -> None:
    clock = iter([0.0, 1.0, 11.0, 20.0, 31.0])
    monkeypatch.setattr("pipelines.console.time.monotonic", lambda: next(clock))
    progress = ConsoleProgress("plain", Console(file=io.StringIO()), every=10)
    handler = logging.getLogger("rrcluster").handlers[0]
    lines: list[str] = []
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    for done in (40, 42, 51, 60, 100):  # 40 were there before this attempt
        progress("embed", done, 100, "3 bad")
    assert lines == [
        "embed 40/100 (3 bad)",
        "embed 51/100 (3 bad), 60/min, about 49 s left",
        "embed 100/100 (3 bad), 116/min",
    ]


def test_a_stage_without_parts_says_what_it_does_and_no_share(monkeypatch) -> None:
    progress = ConsoleProgress("plain", Console(file=io.StringIO()), every=10)
    lines: list[str] = []
    handler = logging.getLogger("rrcluster").handlers[0]
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    progress("count", 0, None, "merging leaves")
    progress("refine", 0, 0, "accepted")
    assert lines == ["count (merging leaves)", "refine (accepted)"]
