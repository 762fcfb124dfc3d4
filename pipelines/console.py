"""What a job shows while it runs: a live line per stage on a terminal, plain lines in a log."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rrcluster.report.words import duration

log = logging.getLogger("rrcluster")


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, message, and of stage, shard, done, total, facts what
    the line is about."""

    FIELDS = ("stage", "shard", "done", "total", "facts")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        given = {name: getattr(record, name, None) for name in self.FIELDS}
        line |= {name: value for name, value in given.items() if value not in (None, "", {})}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class ConsoleProgress:
    """A Progress that people look at; use it as a context manager."""

    def __init__(
        self, log_format: str = "plain", console: Console | None = None, every: float = 10.0
    ) -> None:
        self.console = console or Console(stderr=True)
        self._every = every  # seconds between plain lines of one stage
        self._stage = ""
        self._live: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._pace: dict[str, Pace] = {}
        if self.console.is_terminal and log_format == "plain":
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<8}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
        handler: logging.Handler = RichHandler(console=self.console, show_path=False)
        if self._live is None:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        if log_format == "json":
            handler.setFormatter(JsonLines())
        handler.addFilter(self._with_stage)
        log.handlers = [handler]
        log.setLevel(logging.INFO)
        log.propagate = False

    def _with_stage(self, record: logging.LogRecord) -> bool:
        """Every line says which stage it belongs to."""
        if not hasattr(record, "stage"):
            record.stage = self._stage
        return True

    def __enter__(self) -> ConsoleProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(
        self, stage: str, done: float, total: float | None, note: str = "", **facts: float
    ) -> None:
        self._stage = stage
        now = time.monotonic()
        pace = self._pace.setdefault(stage, Pace(now, done))
        rate = pace.rate(now, done)
        if self._live is not None:
            shown = f"{60 * rate:.3g}/min" if rate else ""
            if stage not in self._bars:
                self._bars[stage] = self._live.add_task(stage, total=total, note=note, rate=shown)
            self._live.update(self._bars[stage], completed=done, total=total, note=note, rate=shown)
            return
        finished = total is not None and done >= total
        if now - pace.said >= self._every or finished:
            pace.said = now
            share = f"{done:g}/{total:g}" if total else f"{done:g}" if done else ""
            left = f", {60 * rate:.3g}/min" if rate else ""
            if rate and total and not finished:
                left += f", about {duration((total - done) / rate)} left"
            said_facts = {"stage": stage, "done": done, "total": total, "facts": facts}
            share = f" {share}" if share else ""
            line = ("%s%s%s%s", stage, share, f" ({note})" if note else "", left)
            log.info(*line, extra=said_facts)


@dataclass
class Pace:
    """How fast a stage goes in this attempt: what was there before it does not count."""

    started: float
    first: float  # parts that were done when it started
    said: float = float("-inf")  # when its last line was written

    def rate(self, now: float, done: float) -> float:
        """Parts per second; 0 before there is anything to tell."""
        return (done - self.first) / (now - self.started) if now > self.started else 0.0
