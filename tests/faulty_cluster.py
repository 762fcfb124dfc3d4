"""A Ray cluster on this machine whose processes are killed, and jobs that run on it under fire.

Only processes that the cluster started are ever killed: children of its own raylets, and the
driver. ``undisturbed`` and ``same_output`` say whether a run came out as if nothing had happened.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray._private.internal_api import node_stats
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster

# Ray spills when a store is nearly full, which backpressure does not let happen: with these in its
# environment it wants to as soon as a twentieth is used.
SPILL_EARLY = {"RAY_object_spilling_threshold": "0.05", "RAY_min_spilling_size": "1"}
# What Ray calls the processes of each role (``ps`` shows it).
TITLES = {
    "encoder": ("ray::MapWorker(MapBatches(Encode))",),
    "reader": ("ray::MapBatches(ReadShard",),
    "assembler": ("ray::Assemble",),
    "feeder": ("ray::Feeder",),
    "holder": ("ray::BlockHolder",),
    "coordinator": ("ray::Coordinator",),
    "task": ("ray::_one", "ray::_embed_alone"),
}
ROLES = (*TITLES, "raylet", "driver")
NODE_CPUS = 4
# The first file or folder that a stage leaves when it is over, in the order of the stages.
OVER = {
    "embed": "model/fit",
    "select": "model/fit/index.json",
    "seed": "model/seed/seeds.safetensors",
    "refine": "model/refine/history.json",
    "count": "model/count/forest.safetensors",
    "caption": "model/caption/names.json",
    "write": "clusters/level=0.parquet",
}


class FaultyCluster:
    """A head without CPUs and ``nodes`` workers; a node that is lost is replaced by a new one."""

    def __init__(self, nodes: int = 2, object_store_memory: int = 200_000_000) -> None:
        self._memory = object_store_memory
        os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": object_store_memory,
                "include_dashboard": False,
            },
        )
        self._nodes = [self._add() for _ in range(nodes)]
        self.address: str = self._cluster.address

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=self._memory)

    def pids(self, role: str) -> list[int]:
        """Processes of one role, of every node."""
        raylets = {self._raylet(node) for node in [self._cluster.head_node, *self._nodes]}
        found = []
        for pid, parent, title in _processes():
            if parent in raylets and title.startswith(TITLES[role]):
                found.append(pid)
        return sorted(found)

    @staticmethod
    def _raylet(node: Any) -> int:
        return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)

    def object_store(self) -> int:
        """Bytes in the stores of all nodes."""
        used = 0
        for node in [self._cluster.head_node, *self._nodes]:
            found = node_stats(node.node_ip_address, node.node_manager_port, False)
            used += found.store_stats.object_store_bytes_used
        return used

    def memory(self) -> dict[str, int]:
        """The largest process of each role now: bytes of its own and its share of common pages."""
        found: dict[str, int] = {}
        for role in TITLES:
            for pid in self.pids(role):
                found[role] = max(found.get(role, 0), _proportional_bytes(pid))
        return found

    def lose_node(self, chance: random.Random) -> None:
        """Kill a worker's raylet and all that runs under it; another machine takes its place."""
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())

    def close(self) -> None:
        self._cluster.shutdown()

    def __enter__(self) -> FaultyCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


class Memory:
    """Watches a cluster: ``peaks`` of the object stores and of the largest process of each role."""

    def __init__(self, cluster: FaultyCluster) -> None:
        self._cluster, self._ended = cluster, threading.Event()
        self.peaks: dict[str, int] = {}

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            now = self._cluster.memory() | {"object store": self._cluster.object_store()}
            for name, value in now.items():
                self.peaks[name] = max(self.peaks.get(name, 0), value)

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent, command line) of every process."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                title = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode()
                stat = Path(entry.path, "stat").read_text()
            except (OSError, ValueError):
                continue  # it has just ended
            yield int(entry.name), int(stat.rpartition(")")[2].split()[1]), title


def stage_of(run_dir: Path) -> str:
    """The stage that a run is in, from the marks in its folder."""
    return next((stage for stage, mark in OVER.items() if not (run_dir / mark).exists()), "report")


@dataclass
class Published:
    """Counts files that appear in a run folder; one that is published again counts again."""

    run_dir: Path
    seen: set[tuple[str, int]] = field(default_factory=set)

    def look(self) -> None:
        for folder in ("samples", "assignments/increment=00000", "model"):
            for path in (self.run_dir / folder).rglob("*"):
                if not path.name.startswith(".") and path.suffix in (".parquet", ".safetensors"):
                    try:
                        self.seen.add((str(path), path.stat().st_ino))
                    except FileNotFoundError:
                        continue

    @property
    def again(self) -> int:
        """Files that were published more than once."""
        return len(self.seen) - len({name for name, _ in self.seen})


@dataclass
class Outcome:
    """How a disturbed run went."""

    status: int
    seconds: float
    kills: list[tuple[str, str]]  # (stage, role)
    published_again: int
    drivers: int  # attempts: 1 + drivers killed
    said: str


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cluster", *overrides]


class Killer:
    """Kills processes at seeded random moments: ``per_stage`` in each stage of a run, and of the
    roles that live at the moment the one that was killed least so far."""

    def __init__(
        self, cluster: FaultyCluster, roles: Sequence[str], seed: int, most: int,
        pause: tuple[float, float], each: Counter[str] | None = None, per_stage: int = 2,
        slack: int = 2,
    ) -> None:  # fmt: skip
        self.cluster, self.roles, self.chance = cluster, roles, random.Random(seed)
        self.most, self.pause, self.per_stage, self.slack = most, pause, per_stage, slack
        self.kills: list[tuple[str, str]] = []
        self.each: Counter[str] = Counter() if each is None else each

    def strike(self, run_dir: Path, driver: subprocess.Popen[Any]) -> None:
        """Kill one process, if it is time for one of the roles that live."""
        stage = stage_of(run_dir)
        if [s for s, _ in self.kills].count(stage) >= self.per_stage:
            return
        least = min(self.each[role] for role in self.roles)
        for role in sorted(self.roles, key=lambda r: (self.each[r], self.chance.random())):
            if self.each[role] > least + self.slack:
                return  # what always lives would take all the blows
            if self._kill(role, driver):
                self.kills.append((stage, role))
                self.each[role] += 1
                return

    def _kill(self, role: str, driver: subprocess.Popen[Any]) -> bool:
        if role == "driver":
            os.killpg(driver.pid, signal.SIGKILL)
            return True
        if role == "raylet":
            self.cluster.lose_node(self.chance)
            return True
        pids = self.cluster.pids(role)
        if not pids:
            return False
        os.kill(self.chance.choice(pids), signal.SIGKILL)
        return True


def disturbed_run(
    run_dir: Path, killer: Killer, overrides: Sequence[str], deadline: float = 900
) -> Outcome:
    """Run the job under fire until it ends by itself; a killed driver is started again."""
    started, drivers = time.monotonic(), 0
    published = Published(run_dir)
    log = run_dir.with_suffix(".log")
    while True:
        drivers += 1
        before = len(killer.kills)
        with log.open("a") as said:
            driver = subprocess.Popen(
                command(*overrides), stdout=said, stderr=said, start_new_session=True
            )
        ended = threading.Event()
        watch = threading.Thread(target=_look, args=(published, ended), daemon=True)
        watch.start()
        try:
            while driver.poll() is None:
                _pause(driver, killer.chance.uniform(*killer.pause))
                if driver.poll() is None and len(killer.kills) < killer.most:
                    killer.strike(run_dir, driver)
                assert time.monotonic() - started < deadline, f"no end: {log.read_text()[-3000:]}"
        finally:
            ended.set()
            watch.join()
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
        if ("driver" not in [role for _, role in killer.kills[before:]]) or driver.returncode >= 0:
            break
    published.look()
    return Outcome(
        driver.returncode, time.monotonic() - started, killer.kills, published.again, drivers,
        log.read_text(),
    )  # fmt: skip


def _look(published: Published, ended: threading.Event) -> None:
    while not ended.wait(0.05):
        published.look()


def _pause(driver: subprocess.Popen[Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and driver.poll() is None:
        time.sleep(0.02)


def differences(run_dir: Path, undisturbed: Path) -> list[str]:
    """Names of the files that two finished runs differ in; none is what is wanted."""
    names = {
        str(path.relative_to(folder))
        for folder in (run_dir, undisturbed)
        for path in folder.rglob("*")
        if path.suffix in (".parquet", ".npy", ".safetensors")
    }
    return sorted(name for name in names if _bytes(run_dir / name) != _bytes(undisturbed / name))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own of ``size``; raises OSError where it may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise OSError(f"no small disk here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def spilling(disk: Path) -> tuple[int, int]:
    """How often a Ray of this machine wanted to spill, and found ``disk`` full.

    The Ray that speaks of the disk, whatever else was started since; else the newest one.
    """
    logs = sorted(Path("/tmp/ray").glob("session_2*/logs/raylet.out"), reverse=True)
    told = [log.read_text() for log in logs]
    lines = next((text for text in told if str(disk) in text), told[0]).splitlines()
    wanted = sum("Triggering object spilling" in line for line in lines)
    return wanted, sum(disk.name in line and "% full" in line for line in lines)
