"""A job under fire: killed processes, lost machines, full disks, failing storage, a jumping clock.

    python tests/benchmarks/faults.py [--quick] [--seed N] [--case NAME] --json FILE

Every disturbed run must end with the files of the undisturbed one, byte for byte; what it cost is
reported: files that were published again, drivers that were started, and time. The long run kills
at least 50 processes at seeded random moments over all stages. Only processes that this program
started are killed. Cases that need a mount of their own are left out where none may be made.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import s3fs
import timm
import torch
from safetensors.torch import save_file

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the store's server, a line per request
TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from faulty_cluster import (  # noqa: E402 - the tests' folder must be on the path
    ROLES,
    SPILL_EARLY,
    FaultyCluster,
    Killer,
    Memory,
    Outcome,
    command,
    differences,
    disturbed_run,
    small_disk,
    spilling,
)
from job_fixtures import SMALL  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402
from s3_faults import faulty_s3  # noqa: E402

from rrcluster.io.drawn_corpus import draw_corpus  # noqa: E402

KILLS = {"quick": 6, "long": 50}
KILLS_PER_RUN = 7  # actors come back four times; more kills in one run would only test that bound
SHARE_OF_FAULTS = 0.05  # of all requests to the failing store
PAUSE = (0.3, 3.0)  # seconds between kills
Rows = Iterator[dict[str, Any]]


class Bench:
    """A corpus, the undisturbed run on it, and the folder that disturbed runs are made in."""

    def __init__(self, folder: Path, quick: bool, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.size = "quick" if quick else "long"
        self.images = 240 if quick else 480
        draw_corpus(str(folder / "corpus"), self.images, 40, 7, lambda *_, **__: None)
        self.settings = (f"corpus.uri={folder}/corpus", "k=[3,8]", "seeding.cell_leaves=8", *SMALL)
        self.calm = folder / "calm"
        self.calm_seconds = self.run(self.calm, "compute=in_process").seconds

    def run(
        self,
        run_dir: Path | str,
        *overrides: str,
        program: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """One attempt whose processes are left alone; ``program`` is the pipeline by default."""
        started = time.monotonic()
        settings = (*self.settings, f"run_dir={run_dir}", "compute.workers=2", *overrides)
        line = [*program, *settings] if program else command(*settings)
        around = os.environ | (environment or {})
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=around)
        said = done.stdout + done.stderr
        return Outcome(done.returncode, time.monotonic() - started, [], 0, 1, said)

    def row(self, case: str, metric: str, value: float, unit: str, **params: Any) -> dict[str, Any]:
        params = {"images": self.images, "seed": self.seed, **params}
        return {
            "bench": "faults", "system": "rrcluster", "case": case, "metric": metric,
            "value": round(value, 3), "unit": unit, "params": params,
        }  # fmt: skip

    def verdict(
        self,
        case: str,
        run_dir: Path,
        found: Outcome,
        elsewhere: bool = False,
        calm: Path | None = None,
        **params: Any,
    ) -> Rows:
        """The rows of one disturbed run; raises AssertionError when it did not come out right."""
        assert found.status == 0, found.said[-4000:]
        # The manifest names where the corpus is, and another place is another name.
        moved = {"manifest/increment=00000.parquet"} if elsewhere else set()
        wrong = [name for name in differences(run_dir, calm or self.calm) if name not in moved]
        assert not wrong, f"{case}: {len(wrong)} files differ, first {wrong[:3]}"
        yield self.row(case, "files_that_differ", len(wrong), "files", **params)
        yield self.row(case, "seconds", found.seconds, "s", **params)
        yield self.row(case, "drivers", found.drivers, "processes", **params)


def kills(bench: Bench) -> Rows:
    """SIGKILL of every role at random moments, run after run, until enough have been killed."""
    wanted, done, number = KILLS[bench.size], Counter[str](), 0
    stages = Counter[str]()
    with FaultyCluster() as cluster:
        compute = (
            f"compute.address={cluster.address}", "compute.workers=2", "compute.coordinator_cpus=0",
        )  # fmt: skip
        settings = (*bench.settings, *compute)
        quiet_dir = bench.folder / "kills-none"
        nobody = Killer(cluster, (), bench.seed, 0, PAUSE)
        undisturbed = disturbed_run(quiet_dir, nobody, (*settings, f"run_dir={quiet_dir}"))
        yield from bench.verdict("no kills", quiet_dir, undisturbed)
        while sum(done.values()) < wanted:
            run_dir = bench.folder / f"kills-{number}"
            killer = Killer(cluster, ROLES, 1000 * bench.seed + number, KILLS_PER_RUN, PAUSE, done)
            fed = f"compute.workers_per_feeder={1 + number % 2}"  # two feeders, or none
            found = disturbed_run(run_dir, killer, (*settings, fed, f"run_dir={run_dir}"))
            extra: dict[str, Any] = {
                "run": number,
                "kills": [f"{stage} {role}" for stage, role in found.kills],
            }
            yield from bench.verdict("kills", run_dir, found, **extra)
            yield bench.row("kills", "kills", len(found.kills), "kills", **extra)
            yield bench.row("kills", "published_again", found.published_again, "files", **extra)
            ratio = found.seconds / undisturbed.seconds
            yield bench.row("kills", "time_against_undisturbed", ratio, "ratio", **extra)
            stages.update(stage for stage, _ in found.kills)
            number += 1
            print(f"run {number}: {len(found.kills)} kills, {found.seconds:.0f} s", flush=True)
    for role, times in sorted(done.items()):
        yield bench.row("kills", f"kills of {role}", times, "kills")
    for stage, times in sorted(stages.items()):
        yield bench.row("kills", f"kills in {stage}", times, "kills")


def full_run_folder(bench: Bench) -> Rows:
    """The run folder's disk fills up in the middle; with room made, the same command goes on."""
    disk = bench.folder / "disk"
    with small_disk(disk, "600k"):
        first = bench.run(disk / "run", "compute=in_process")
        assert first.status == 1, first.said
        assert "no space left" in first.said, first.said
        assert "Traceback" not in first.said, first.said
        assert not list((disk / "run").rglob(".*")), "a half-written file was left"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        found = bench.run(disk / "run", "compute=in_process")
        yield from bench.verdict("full disk, run folder", disk / "run", found)


def small_store_and_spill_folder(bench: Bench) -> Rows:
    """A small object store that Ray wants to empty all the time, into a folder that is full, one
    that fills up on the way, and one that has room.

    The pixels of these images, 77 kB each, are several times the store.
    """
    images = 480 if bench.size == "quick" else 3600
    corpus, calm = bench.folder / "spill-corpus", bench.folder / "spill-calm"
    draw_corpus(str(corpus), images, 100, 7, lambda *_, **__: None)
    settings = (f"corpus.uri={corpus}", *small_vit(bench.folder), "seeding.fit_rows=200")
    undisturbed = bench.run(calm, *settings, "compute=in_process")
    assert undisturbed.status == 0, undisturbed.said[-4000:]
    for size in ("64k", "8m", "1g"):
        case, run_dir = f"100 MB object store, spill folder of {size}", bench.folder / f"s-{size}"
        disk = bench.folder / f"spill-{size}"
        with small_disk(disk, size):
            found = bench.run(
                run_dir, *settings, "compute=local", "compute.object_store_memory=100000000",
                f"compute.spill_dir={disk}", environment=SPILL_EARLY,
            )  # fmt: skip
        yield from bench.verdict(case, run_dir, found, calm=calm, images=images)
        spilled = json.loads((run_dir / "run.json").read_text())["spilled_bytes"]
        wanted, full = spilling(disk)
        assert wanted, "Ray never wanted to spill"
        assert full or size != "64k", "the spill folder was never found full"
        yield bench.row(case, "wanted_to_spill", wanted, "times")
        yield bench.row(case, "found_full", full, "times")
        yield bench.row(case, "spilled", spilled, "bytes")


JUMPING_CLOCK = """
import random, sys, time
chance, real = random.Random(int(sys.argv.pop(1))), time.time
jump = 0.0
def clock():
    global jump
    if chance.random() < 0.05:
        jump = chance.uniform(-86400, 86400)
    return real() + jump
time.time = clock
from pipelines.cli import main
sys.exit(main(["cluster", *sys.argv[1:]]))
"""


def clock_jumps(bench: Bench) -> Rows:
    """The wall clock of the job's process jumps by up to a day, both ways, all the time."""
    run_dir = bench.folder / "clock"
    program = (sys.executable, "-c", JUMPING_CLOCK, str(bench.seed))
    found = bench.run(run_dir, "compute=in_process", program=program)
    yield from bench.verdict("clock jumps", run_dir, found)
    seconds = json.loads((run_dir / "run.json").read_text())["stages"]
    assert all(0 <= stage["seconds"] < 600 for stage in seconds.values()), seconds


def failing_storage(bench: Bench) -> Rows:
    """Corpus and run folder in a store that answers a part of all requests with a fault."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    upstream = f"http://{host}:{port}"
    clean = {"key": "key", "secret": "secret", "client_kwargs": {"endpoint_url": upstream}}
    s3 = s3fs.S3FileSystem(**clean)
    s3.mkdir("faults")
    for path in (bench.folder / "corpus").glob("*.tar"):
        s3.put(str(path), f"faults/corpus/{path.name}")
    case, run_dir = "failing storage", bench.folder / "s3-run"
    with faulty_s3(upstream, SHARE_OF_FAULTS, seed=bench.seed) as proxy:
        options = clean | {"client_kwargs": {"endpoint_url": proxy.endpoint}}
        # botocore's own second tries are switched off: ours are tested.
        options["config_kwargs"] = {"retries": {"max_attempts": 0}, "read_timeout": 5}
        shown = json.dumps(options).replace('"', "")
        found = bench.run(
            "s3://faults/run", "compute=in_process", f"corpus.storage_options={shown}",
            "corpus.uri=s3://faults/corpus",
        )  # fmt: skip
        faults = sum(proxy.faults.values())
        requests = len(proxy.requests)
    s3.get("faults/run/", str(run_dir), recursive=True)
    server.stop()
    yield from bench.verdict(case, run_dir, found, elsewhere=True, share=SHARE_OF_FAULTS)
    yield bench.row(case, "faults", faults, "requests", of=requests)
    stages = json.loads((run_dir / "run.json").read_text())["stages"]
    yield bench.row(case, "tried_again", sum(s["retries"] for s in stages.values()), "calls")


def small_vit(folder: Path) -> tuple[str, ...]:
    """Settings of an encoder of 160 pixels that takes little time: random weights."""
    path = folder / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), path)
    return (
        "encoder=timm", "encoder.model=test_vit", f"encoder.checkpoint={path}",
        "encoder.model_options={num_classes:3}",
    )  # fmt: skip


def ten_times_the_corpus(bench: Bench) -> Rows:
    """The same memory for ten times the images: peaks of the object store and of each role.

    The long run's images are 77 kB each for the encoder: ten times the corpus is 0.9 GB, for a
    store of 200 MB.
    """
    images, per_shard = (240, 40) if bench.size == "quick" else (1200, 100)
    encoder = () if bench.size == "quick" else small_vit(bench.folder)
    with FaultyCluster(nodes=1) as cluster:
        peaks = {}
        for times in (1, 10):
            corpus, run_dir = bench.folder / f"corpus-{times}", bench.folder / f"many-{times}"
            draw_corpus(str(corpus), images * times, per_shard, 7, lambda *_, **__: None)
            settings = (
                f"corpus.uri={corpus}", f"run_dir={run_dir}", "k=[3,8]", *SMALL, *encoder,
                "seeding.fit_rows=200", f"compute.address={cluster.address}",
                "compute.workers=1", "compute.coordinator_cpus=0",
            )  # fmt: skip
            with Memory(cluster) as memory:
                found = disturbed_run(run_dir, Killer(cluster, (), 0, 0, PAUSE), settings)
            assert found.status == 0, found.said[-4000:]
            peaks[times] = memory.peaks
            spilled = json.loads((run_dir / "run.json").read_text())["spilled_bytes"]
            case = f"{times} × the corpus"
            yield bench.row(case, "spilled", spilled, "bytes", images=images * times)
            for name, value in sorted(memory.peaks.items()):
                many = {"images": images * times}
                yield bench.row(case, f"peak memory, {name}", value / 1e6, "MB", **many)
        for name in sorted(peaks[1].keys() & peaks[10].keys()):
            ratio = peaks[10][name] / max(peaks[1][name], 1)
            yield bench.row("10 × against 1 ×", f"peak memory, {name}", ratio, "ratio")


CASES: dict[str, Callable[[Bench], Rows]] = {
    "kills": kills,
    "full-run-folder": full_run_folder,
    "small-store": small_store_and_spill_folder,
    "clock": clock_jumps,
    "storage": failing_storage,
    "ten-times": ten_times_the_corpus,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="six kills, a small corpus")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--case", choices=CASES, action="append", help="only these cases")
    parser.add_argument("--json", required=True, help="file for the figures")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), options.quick, options.seed)
        for name in options.case or CASES:
            try:
                for row in CASES[name](bench):
                    rows.append(row)
                    print(f"{row['case']:42s} {row['metric']:32s} {row['value']:10g} {row['unit']}")
            except OSError as error:
                print(f"{name}: left out, {error}")
            Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
