"""A run folder: opened, checked against the configuration, and its record (``run.json``) kept."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rrcluster import __version__
from rrcluster.config import Config, as_made, identity, identity_hash, redacted
from rrcluster.io import tables, tally
from rrcluster.io.current import current, manifest, manifest_name
from rrcluster.io.manifest import corpus_fingerprint, list_shards
from rrcluster.io.store import Store
from rrcluster.io.tally import Tally
from rrcluster.records import Shard, UserError

log = logging.getLogger("rrcluster")

RECORD = "run.json"
MANIFEST = manifest_name(0)
ADOPTED = "adopted"  # in the record: where clusters came from that were not fitted here
PACKAGES = ("torch", "open_clip_torch", "timm", "ray", "pyarrow", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """An open run: where it lives, what was asked, and the input shards of its manifest."""

    store: Store
    config: Config
    shards: tuple[Shard, ...]


def open_run(config: Config) -> tuple[Run, Record]:
    """Open the run folder, or start one: the manifest is listed once and then kept.

    Raises UserError when the folder was made with other settings that change results.
    """
    if not config.run_dir:
        raise UserError("run_dir", "", "name the folder to write to, local or s3://bucket/folder")
    store = Store(config.run_dir, config.store_options)
    record = Record.read(store)
    if record is not None:
        record.refuse_other_settings(config)
    if record is not None and store.exists(MANIFEST):
        shards = manifest(store, 0)
        run = Run(store, for_shards(config, shards), shards)
        record.note("config", redacted(config))
        log.info("resuming the run in %s: %d shards", config.run_dir, len(run.shards))
        return run, record
    if not config.corpus.uri:
        raise UserError("corpus.uri", "", "name a folder, glob or list of image shards")
    started = time.monotonic()
    shards = tuple(list_shards(config.corpus))
    run = Run(store, for_shards(config, shards), shards)
    record = record or Record.start(store, config)
    record.note(
        "corpus",
        {
            "fingerprint": corpus_fingerprint(shards),
            "shards": len(shards),
            "num_bytes": sum(s.num_bytes for s in shards),
        },
    )
    rows = [vars(s) | {"shard": s.index} for s in shards]
    tables.write_table(store, MANIFEST, "manifest", tables.table_of("manifest", rows))
    record.stage_done("manifest", time.monotonic() - started, {"shards": len(shards)})
    return run, record


def for_shards(config: Config, shards: Sequence[Shard]) -> Config:
    """The configuration with ``encoder.kind=vectors`` where the shards are ready vectors.

    Raises UserError when ready vectors were promised and the shards hold images.
    """
    ready = shards[0].format == "embeddings"
    if config.encoder.kind == "vectors" and not ready:
        raise UserError(
            "encoder", "vectors", f"{shards[0].uri} holds images; choose an encoder for images"
        )
    if not ready:
        return config
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, kind="vectors"))


def existing_store(config: Config) -> Store:
    """The store of a run that must exist. Raises UserError when it does not."""
    store = Store(config.run_dir, config.store_options)
    if not config.run_dir or not store.exists(RECORD):
        raise UserError("run_dir", config.run_dir, f"there is no run here (no {RECORD})")
    return store


def existing_run(config: Config) -> tuple[Run, Record]:
    """An existing run with the settings it was made with, read from its own record.

    Secrets are not stored: storage options come from ``config``.
    """
    store = existing_store(config)
    record = Record.read(store)
    assert record is not None, "existing_store has seen the record"
    record.refuse_settings_it_keeps(config)
    stored, shards = as_made(config, record.content["config"]), current(store).shards
    return Run(store, for_shards(stored, shards) if shards else stored, shards), record


def split_evenly(shards: tuple[Shard, ...], parts: int) -> list[list[Shard]]:
    """At most ``parts`` runs of neighbouring shards whose lengths differ by one at most."""
    parts = min(parts, len(shards))
    if not parts:
        return []
    cuts = [len(shards) * i // parts for i in range(parts + 1)]
    return [list(shards[a:b]) for a, b in pairwise(cuts)]


@dataclass
class Record:
    """``run.json``, kept by the driver alone and rewritten whole at each change."""

    store: Store
    content: dict[str, Any] = field(default_factory=dict)
    whole: Record | None = None  # of the run, where this is the record of an increment

    @staticmethod
    def read(store: Store) -> Record | None:
        return Record(store, store.read_json(RECORD)) if store.exists(RECORD) else None

    @staticmethod
    def start(store: Store, config: Config) -> Record:
        settings = identity(config)
        record = Record(
            store,
            {
                "format_version": 1,
                "rrcluster": __version__,
                "identity": settings,
                "identity_hash": identity_hash(settings),
                "config": redacted(config),
                "versions": {name: _version(name) for name in PACKAGES},
                "stages": {},
                "started": _now(),
                "finished": None,
            },
        )
        try:
            record.save()
        except OSError as error:
            raise UserError(
                "run_dir", store.uri, f"cannot be written to ({error}); choose another folder"
            ) from error
        return record

    def of_increment(self, increment: int) -> Record:
        """The record of one increment: a part of this one, saved with it."""
        parts = self.content.setdefault("increments", {})
        content = parts.setdefault(f"{increment:05d}", {"stages": {}})
        if "model_hash" in self.content:
            content["model_hash"] = self.content["model_hash"]
        return Record(self.store, content, self)

    def save(self) -> None:
        if self.whole is not None:
            self.whole.save()
        else:
            self.store.write_json(RECORD, self.content)

    def note(self, name: str, value: Any) -> None:
        if self.content.get(name) != value:
            self.content[name] = value
            self.save()

    def refuse_other_settings(self, config: Config) -> None:
        """Raise UserError for the first setting that changes results and differs."""
        for name, asked, stored in self._other_settings(config):
            raise UserError(
                name,
                asked,
                f"the run in {self.store.uri} was made with {name}={stored}; "
                "keep that value, or choose another run_dir",
            )

    def refuse_settings_it_keeps(self, config: Config) -> None:
        """Raise UserError for a setting that was asked for, and that a run keeps as it was made."""
        default = identity(Config())
        for name, asked, stored in self._other_settings(config):
            if asked != default.get(name):
                remedy = f"the run in {self.store.uri} keeps {name}={stored}; leave it out"
                if name == "k":
                    remedy += ", or set recluster.refit_k for the next refit"
                raise UserError(name, asked, remedy)

    def _other_settings(self, config: Config) -> Iterator[tuple[str, Any, Any]]:
        """(name, asked, stored) of settings that change results and differ, in order of names."""
        stored, asked = self.content["identity"], identity(config)
        for name in sorted({*stored, *asked}):
            if stored.get(name) != asked.get(name):
                yield name, asked.get(name), stored.get(name)

    def adopts(self, run: Run, hierarchy: str) -> None:
        """Note that the run's clusters come from ``hierarchy``.

        Raises UserError when they come from elsewhere already, or rows are not ready vectors.
        """
        if "select" in self.content["stages"]:
            remedy = "this run was clustered here; choose another run_dir"
            raise UserError("run_dir", self.store.uri, remedy)
        if run.config.encoder.kind != "vectors":
            remedy = "name the .npy vectors that the hierarchy was made from"
            raise UserError("corpus.uri", run.config.corpus.uri, remedy)
        if self.content.get(ADOPTED, hierarchy) != hierarchy:
            remedy = f"the run adopted {self.content[ADOPTED]}; choose another run_dir"
            raise UserError("adopt.hierarchy", hierarchy, remedy)
        self.note(ADOPTED, hierarchy)

    def refuse_adopted(self) -> None:
        """Raise UserError for a run without a model: its clusters were made elsewhere."""
        if ADOPTED in self.content:
            raise UserError(
                "run_dir",
                self.store.uri,
                f"its clusters were adopted from {self.content[ADOPTED]} and there is no model "
                "here; cluster the same vectors into another run_dir",
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage; what the body puts into the yielded dictionary becomes its counts."""
        counts: dict[str, Any] = {}
        earlier = self.content["stages"].get(name, {})
        before = earlier.get("seconds", 0.0)
        moved = Tally(*(earlier.get(n, 0) for n in ("bytes_read", "bytes_written", "retries")))
        # What an attempt that was killed had moved is lost with it.
        started, at_start = time.monotonic(), tally.total()
        entry = {"status": "running", "seconds": before, "since": _now(), **moved.as_dict()}
        self.content["stages"][name] = entry
        self.save()
        try:
            yield counts
        except BaseException:
            seconds = before + time.monotonic() - started
            moved += tally.total() - at_start
            self.content["stages"][name] = {
                "status": "failed", "seconds": round(seconds, 3), **moved.as_dict(),
            }  # fmt: skip
            self.save()
            raise
        moved += tally.total() - at_start
        self.stage_done(name, before + time.monotonic() - started, counts, moved)

    def stage_done(
        self, name: str, seconds: float, counts: Mapping[str, Any], moved: Tally | None = None
    ) -> None:
        """Record a stage; ``moved`` is what its attempts read, wrote and tried again."""
        entry: dict[str, Any] = {
            "status": "done",
            "seconds": round(seconds, 3),
            "counts": dict(counts),
            "rates": {},
            "gpu_hours": 0.0,
            **(moved or Tally()).as_dict(),
        }
        self.content["stages"][name] = entry
        self.save()

    def describe(self, name: str, **facts: Any) -> None:
        """Add facts to a finished stage, e.g. its rates, which need its seconds."""
        self.content["stages"][name] |= facts
        self.save()

    def stage_failed(self, name: str) -> None:
        self.content["stages"][name] = {"status": "failed", "seconds": 0.0}
        self.save()

    def is_done(self, name: str) -> bool:
        return bool(self.content["stages"].get(name, {}).get("status") == "done")

    def finish(self) -> None:
        if self.content["finished"] is None:
            self.note("finished", _now())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
