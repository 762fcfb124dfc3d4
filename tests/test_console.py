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
