"""The configuration: one typed tree of dataclasses, composed once by Hydra, then plain values.

Each part is declared beside the code that it steers; here they are joined, checked and hashed.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rrcluster.core.caption import CaptionSpec
from rrcluster.core.count import CountSpec
from rrcluster.core.drift import ReclusterSpec
from rrcluster.core.kmeans import SeedingSpec
from rrcluster.core.refine import RefineSpec
from rrcluster.core.sample import SampleSpec
from rrcluster.io.corpus import CorpusSpec
from rrcluster.io.hierarchy import AdoptSpec
from rrcluster.models.encoder import EncoderSpec
from rrcluster.records import UserError, setting


@dataclass
class ComputeSpec:
    """Where the job runs. Nothing here changes a result."""

    backend: Literal["in_process", "ray"] = setting(
        "ray", "in_process: this process, no Ray; ray: Ray on this machine or a cluster"
    )
    address: str | None = setting(
        None, "Ray cluster to connect to (auto: the one submitted to); null starts Ray here"
    )
    workers: int | None = setting(None, "encoders and fit workers at once; null: from the machine")
    min_workers: int = setting(1, "encoders that are kept from the start on; more as there is room")
    workers_per_node: int | None = setting(None, "workers on one machine at most; null: what fits")
    cpus_per_worker: float = setting(1, "CPU cores that each worker reserves")
    gpus_per_worker: float = setting(0, "GPUs that each encoder reserves (1 on a GPU pool)")
    gpus_per_holder: float = setting(
        0, "GPUs that each holder of a fit's rows reserves, for k-means of many centroids; 0: CPUs"
    )
    memory_per_worker: int | None = setting(None, "bytes of memory each worker reserves")
    readers: int | None = setting(None, "reading and decoding tasks at once; null: Ray decides")
    cpus_per_reader: float = setting(1, "CPU cores that each reading task reserves")
    memory_per_reader: int = setting(1 << 30, "bytes each reading task reserves; torch takes half")
    memory_per_helper: int | None = setting(
        None, "bytes of memory that each assembler, deliverer and feeder reserves"
    )
    workers_per_feeder: int = setting(
        16, "encoders that one process feeds; with more, several share the corpus's shards"
    )
    block_bytes: int = setting(
        32 << 20, "decoded pixels handed on at once; more: fewer tasks and more memory of a reader"
    )
    resources: dict[str, Any] = setting(
        {}, "custom Ray resources that each worker and reader takes, e.g. {pool_a: 0.01}"
    )
    labels: dict[str, Any] = setting(
        {}, "Ray node labels that workers and readers are placed by, e.g. {ray.io/node-group: gpu}"
    )
    coordinator_cpus: float = setting(
        1, "CPU cores the coordinator reserves; 0: it sits beside the job, also on a bare head"
    )
    coordinator_memory: int | None = setting(None, "bytes of memory the coordinator reserves")
    object_store_memory: int | None = setting(None, "bytes of Ray's object store when started here")
    spill_dir: str | None = setting(None, "folder for spilled objects when Ray is started here")
    max_lost_shards: int = setting(
        100, "shards whose workers died again and again: read row by row up to here, then an error"
    )


@dataclass
class WriteSpec:
    """How assignments are laid out."""

    partition_by: Literal["shard", "cluster"] = setting(
        "shard", "shard: one output file per input shard; cluster: hive folders by level_0"
    )


@dataclass
class ReportSpec:
    """The HTML report."""

    max_megabytes: float = setting(20.0, "size that thumbnails may fill a page up to")
    clusters_per_page: int = setting(
        1000, "finest clusters on one page; a larger tree gets pages beside index.html"
    )
    thumbnail: int = setting(96, "longest side of a thumbnail in pixels")
    thumbnail_shards: int = setting(64, "shards read again for the thumbnails of a page at most")


@dataclass
class EvaluateSpec:
    """Scoring against labels, for benchmarks."""

    labels: str = setting(
        "",
        "Parquet with columns label and key or sample_id; with `sample`, classes are counted too",
    )
    bootstraps: int = setting(200, "bootstrap resamples behind the intervals")


@dataclass
class DemoSpec:
    """The corpus that the demo draws."""

    images: int = setting(3000, "pictures to draw")
    images_per_shard: int = setting(250, "pictures per WebDataset shard")


@dataclass
class Config:
    """All settings of a job."""

    corpus: CorpusSpec = field(default_factory=CorpusSpec)
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    seeding: SeedingSpec = field(default_factory=SeedingSpec)
    refine: RefineSpec = field(default_factory=RefineSpec)
    count: CountSpec = field(default_factory=CountSpec)
    caption: CaptionSpec = field(default_factory=CaptionSpec)
    compute: ComputeSpec = field(default_factory=ComputeSpec)
    write: WriteSpec = field(default_factory=WriteSpec)
    report: ReportSpec = field(default_factory=ReportSpec)
    sample: SampleSpec = field(default_factory=SampleSpec)
    recluster: ReclusterSpec = field(default_factory=ReclusterSpec)
    adopt: AdoptSpec = field(default_factory=AdoptSpec)
    evaluate: EvaluateSpec = field(default_factory=EvaluateSpec)
    demo: DemoSpec = field(default_factory=DemoSpec)
    run_dir: str = setting("", "folder of the run: local path or object store URI")
    run_storage_options: dict[str, Any] = setting(
        {}, "fsspec options of run_dir; empty: those of corpus.storage_options"
    )
    seed: int = setting(0, "the only source of randomness")
    k: Any = setting(
        "auto", "clusters: auto, one integer, or a list from coarse to fine, e.g. [10,100]"
    )
    log_every: float = setting(10.0, "seconds between a stage's lines where there is no terminal")
    log_format: Literal["plain", "json"] = setting(
        "plain", "plain: lines for people; json: one object per line with stage and shard"
    )
    dry_run: bool = setting(False, "list, probe and estimate; then stop")

    @property
    def store_options(self) -> dict[str, Any]:
        return self.run_storage_options or self.corpus.storage_options


# What changes results. The rest (compute, output, logging) may change between attempts.
_IDENTITY = {
    "corpus": ("uri", "format", "max_pixels", "jpeg_margin", "image_column", "caption_column",
               "key_column", "images_per_shard"),
    "encoder": None,
    "seeding": None,
    "refine": None,
    "count": None,
    "caption": None,
    "seed": None,
    "k": None,
}  # fmt: skip
# A row's vector does not depend on its batch, nor a head on where its training was interrupted.
_NOT_IDENTITY = {"encoder.batch_size", "refine.checkpoint_steps"}


def identity(config: Config) -> dict[str, Any]:
    """The settings that change results, flat, e.g. ``{"corpus.uri": ..., "seed": 0}``."""
    found = {}
    for name, value in flatten(dataclasses.asdict(config)):
        section, _, leaf = name.partition(".")
        if section not in _IDENTITY or name in _NOT_IDENTITY:
            continue
        chosen = _IDENTITY[section]
        if chosen is None or leaf in chosen:
            found[name] = value
    return found


def as_made(config: Config, stored: Mapping[str, Any]) -> Config:
    """``config`` with the settings that change results as a run was ``stored`` with them.

    Storage options are not stored; they are those of ``config``, as is what steers this attempt.
    """
    made: dict[str, Any] = {}
    for name in _IDENTITY:
        default = getattr(Config(), name)
        if dataclasses.is_dataclass(default):
            known = dataclasses.asdict(typing.cast(Any, default))
            values = known | {k: v for k, v in stored[name].items() if k in known}
            made[name] = _build(type(default), values, f"{name}.")
        else:
            made[name] = stored[name]
    made["corpus"].storage_options = config.corpus.storage_options
    made["corpus"].max_bad_fraction = config.corpus.max_bad_fraction
    made["encoder"].batch_size = config.encoder.batch_size
    write = dataclasses.replace(config.write, partition_by=stored["write"]["partition_by"])
    return dataclasses.replace(config, write=write, **made)


def identity_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 (first 16 hex digits) of the identity settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def redacted(config: Config) -> dict[str, Any]:
    """The configuration as it may be shown: storage options keep their names, not their values."""
    tree = dataclasses.asdict(config)
    for options in (tree["corpus"]["storage_options"], tree["run_storage_options"]):
        for name in options:
            options[name] = "***"
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of the settings tree as (dotted name, value); free-form dictionaries are leaves."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and not prefix and name != "run_storage_options":
            yield from flatten(value, f"{name}.")
        else:
            yield prefix + name, value


def load(overrides: Sequence[str]) -> Config:
    """The configuration from Hydra overrides such as ``corpus.uri=... encoder=clip_b32``.

    Raises UserError that names the setting for an unknown name or a value of the wrong kind.
    """
    tree = typing.cast(dict[str, Any], OmegaConf.to_container(_compose(overrides)))
    config: Config = _build(Config, tree)
    # Workers need not share this process's folder: local paths travel whole.
    uri = config.corpus.uri
    config.corpus.uri = [absolute(u) for u in uri] if isinstance(uri, list) else absolute(uri)
    config.run_dir = absolute(config.run_dir)
    config.adopt.hierarchy = absolute(config.adopt.hierarchy)
    return config


def absolute(uri: Any) -> Any:
    """A local path from the root on; anything else as it is."""
    if not isinstance(uri, str) or not uri or "://" in uri:
        return uri
    return os.path.abspath(os.path.expanduser(uri))


def as_yaml(overrides: Sequence[str]) -> str:
    """The composed configuration, as ``--cfg job`` prints it."""
    return OmegaConf.to_yaml(_compose(overrides))


def settings_help() -> Iterator[tuple[str, Any, str]]:
    """(name, default, sentence) of every setting."""
    for part in dataclasses.fields(Config):
        default = getattr(Config(), part.name)
        if dataclasses.is_dataclass(default):
            for leaf in dataclasses.fields(default):
                yield (
                    f"{part.name}.{leaf.name}",
                    getattr(default, leaf.name),
                    leaf.metadata.get("help", ""),
                )
        else:
            yield part.name, default, part.metadata.get("help", "")


def _compose(overrides: Sequence[str]) -> DictConfig:
    """Hydra's composition; of ``encoder=[a,b]``, what b sets goes under ``encoder.beside``."""
    two = next((o for o in overrides if o.startswith("encoder=[")), None)
    if two is None:
        return _compose_groups(overrides)
    names = [part.strip() for part in two.removeprefix("encoder=[").rstrip("]").split(",")]
    if len(names) != 2:
        raise UserError("encoder", two[8:], "name one encoder, or two as [clip_l14,dinov2_l14]")
    first, second = (f"encoder={name}" for name in names)
    found = _compose_groups([first if o is two else o for o in overrides])
    own, plain = _compose_groups([second])["encoder"], dataclasses.asdict(EncoderSpec())
    chosen = {n: v for n, v in own.items() if n == "kind" or v != plain[n]}
    found["encoder"]["beside"] = {**chosen, **found["encoder"]["beside"]}
    return found


def _compose_groups(overrides: Sequence[str]) -> DictConfig:
    ConfigStore.instance().store("base", dataclasses.asdict(Config()))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("pipelines.conf", version_base="1.3"):
            return compose("config", [_forced(_quoted(override)) for override in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise _override_error(overrides, error) from None


# Paths and names: taken as they are typed, so that globs and braces need no quotes of Hydra's.
_PLAIN = (
    "corpus.uri", "run_dir", "encoder.model", "encoder.checkpoint", "encoder.projection",
    "encoder.text", "caption.vocabulary", "evaluate.labels", "sample.weights", "adopt.hierarchy",
)  # fmt: skip


def _quoted(override: str) -> str:
    name, equals, value = override.partition("=")
    if name.lstrip("+") not in _PLAIN or not value or value == "null" or value[0] in "'\"[":
        return override
    return name + equals + "'" + value.replace("'", "\\'") + "'"


def _forced(override: str) -> str:
    """A setting that there is may be added or replaced: nobody need know which of the two it is."""
    plain = override.lstrip("+")
    name = plain.partition("=")[0]
    return f"++{plain}" if name in _known() or name.startswith(_FREE_FORM) else override


@cache
def _known() -> tuple[str, ...]:
    """The names of all settings."""
    return tuple(name for name, _, _ in settings_help())


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(_quoted(override))
    except HydraException:
        return False
    return True


# Groups of settings with names of the user's own.
_FREE_FORM = (
    "corpus.storage_options.", "run_storage_options.", "encoder.model_options.",
    "encoder.beside.", "compute.resources.", "compute.labels.",
)  # fmt: skip


def _override_error(overrides: Sequence[str], error: Exception) -> UserError:
    known = [*_known(), "encoder", "compute"]
    for override in overrides:
        name, equals, value = override.partition("=")
        bare = name.lstrip("+~")
        inside_options = bare.startswith(_FREE_FORM)
        if not equals:
            return UserError(override, "", "write settings as name=value; see --help")
        if bare not in known and not inside_options:
            near = difflib.get_close_matches(bare, known, 3)
            hint = f"did you mean {', '.join(near)}?" if near else "see --help for all settings"
            return UserError(bare, value, f"no such setting; {hint}")
        if not _parses(override):
            return UserError(bare, value, f"cannot be read; quote it: {bare}='\"...\"'")
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    for override in overrides:
        name, _, value = override.partition("=")
        if name in ("encoder", "compute") and (value in text or f"{name}/" in text):
            return UserError(name, value, f"choose one of: {', '.join(group_choices(name))}")
        if name.lstrip("+") in text or (value and value in text):
            return UserError(name, value, text)
    return UserError("settings", " ".join(overrides), text)


def group_choices(group: str) -> list[str]:
    """Names of the options of a configuration group, e.g. of ``encoder``."""
    from importlib.resources import files

    folder = files("pipelines.conf") / group
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[0] != "_")


def _build(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(kind)
    made = {}
    for part in dataclasses.fields(kind):
        name, value = prefix + part.name, values[part.name]
        hint = hints[part.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UserError(name, value, f"is a group; set {name}.<setting>=...")
            made[part.name] = _build(hint, value, f"{name}.")
        else:
            made[part.name] = _checked(name, value, hint)
    return kind(**made)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` asks, or a UserError that says what would work."""
    if name == "k" or (name == "recluster.refit_k" and value is not None):
        return _checked_k(name, value)
    if hint is Any:
        return value
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in choices:
            raise UserError(name, value, f"choose one of: {', '.join(map(str, choices))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in choices:
            return None
        for choice in choices:
            if choice is not type(None):
                try:
                    return _checked(name, value, choice)
                except UserError:
                    continue
        wanted = " or ".join(getattr(c, "__name__", str(c)) for c in choices).replace(
            "NoneType", "null"
        )
        raise UserError(name, value, f"must be {wanted}")
    kind = origin or hint
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(name, value, f"must be a {kind.__name__}")
    return value


def _checked_k(name: str, k: Any) -> Any:
    """``k`` as auto, a positive integer, or a strictly increasing list of them."""

    def positive(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x > 0

    if k == "auto" or positive(k):
        return k
    if isinstance(k, list) and k and all(map(positive, k)) and sorted(set(k)) == k:
        return k
    raise UserError(
        name, k, "use auto, one positive integer, or a list from coarse to fine such as [10,100]"
    )
