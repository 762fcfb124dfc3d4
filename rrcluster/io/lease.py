"""One writer at a time on a run folder: a lease in the store, which ends when its holder does.

The holder makes ``lease.json`` (only one call can) and changes it every BEAT seconds. Who finds a
lease compares no clocks: it watches whether the file changes during TERM seconds of its own
monotonic clock. If it does, the holder lives and this caller gives way; if not, the holder is gone,
and the caller replaces that very content, which again only one can. A holder on the same machine
that is no longer running needs no watching.

A holder that was suspended for longer than TERM may wake up beside its successor. It finds out at
its next beat, and it can still not publish: ``check`` comes before each commit, and a commit is a
file that only one can make. Wrong or jumping wall clocks change nothing but the times in messages.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rrcluster.io.store import Store

NAME = "lease.json"
TERM = 60.0  # seconds without a beat after which a lease is void
BEATS_PER_TERM = 6


class Busy(Exception):
    """Another job holds the run folder; its words say which."""


class Lease:
    """A lease that is held; ``check`` raises Busy once it is not."""

    def __init__(self, store: Store, content: bytes, term: float) -> None:
        self._store, self._content, self._term = store, content, term
        self._lost = ""
        self._last = time.monotonic()
        self._end = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._beats.start()

    def check(self) -> None:
        """Raise Busy if the lease was lost: nothing may be published then."""
        if self._lost:
            raise Busy(self._lost)

    def _beat(self) -> None:
        while not self._end.wait(self._term / BEATS_PER_TERM):
            try:
                told = _next_beat(self._content)
                if self._store.swap(NAME, self._content, told):
                    self._content, self._last = told, time.monotonic()
                else:
                    self._lost = "another job took this run over; this one was away for too long"
            except OSError:  # the store may be back before the term is over
                if time.monotonic() - self._last > self._term:
                    self._lost = "the store could not be reached, so the lease has run out"
            if self._lost:
                return

    def give_back(self) -> None:
        """Stop beating and leave word that the lease is free."""
        self._end.set()
        self._beats.join()
        if not self._lost:
            free = json.loads(self._content) | {"free": True}
            self._store.swap(NAME, self._content, json.dumps(free).encode())


@contextmanager
def lease(store: Store, what: str, term: float = TERM) -> Iterator[Lease]:
    """Hold the run folder for a with-statement's length. Raises Busy when a living job has it."""
    mine = _claim(what)
    if not store.create(NAME, mine):
        _take_over(store, mine, term)
    held = Lease(store, mine, term)
    try:
        yield held
    finally:
        held.give_back()


def _take_over(store: Store, mine: bytes, term: float) -> None:
    found = store.read_bytes(NAME)
    started = time.monotonic()
    while not _is_over(found):
        time.sleep(min(1.0, term / (2 * BEATS_PER_TERM)))
        now = store.read_bytes(NAME)
        if now != found and not json.loads(now).get("free"):
            raise Busy(_words(now))
        found = now
        if time.monotonic() - started > term:
            break
    if not store.swap(NAME, found, mine):
        raise Busy(_words(store.read_bytes(NAME)))


def _is_over(content: bytes) -> bool:
    """Given back, or held by a process of this machine that is gone."""
    told = json.loads(content)
    if told.get("free"):
        return True
    if told["place"] != _place():
        return False
    return bool(told["born"] != _born(told["pid"]))


def _claim(what: str) -> bytes:
    me = os.getpid()
    return json.dumps(
        {
            "id": uuid.uuid4().hex, "what": what, "host": socket.gethostname(), "pid": me,
            "place": _place(), "born": _born(me), "since": _now(), "beat": 0,
        }
    ).encode()  # fmt: skip


def _next_beat(content: bytes) -> bytes:
    told: dict[str, Any] = json.loads(content)
    return json.dumps(told | {"beat": told["beat"] + 1}).encode()


def _place() -> str:
    """This boot of this machine and this space of process numbers; unique where it cannot say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return uuid.uuid4().hex


def _born(pid: int) -> str:
    """When the process started, in clock ticks since boot; "" when there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie holds nothing


def _words(content: bytes) -> str:
    told = json.loads(content)
    return (
        f"{told['what']} is at work on this run (process {told['pid']} on {told['host']}, since "
        f"{told['since']}); wait for it, or stop it and run this again"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
