"""What Prometheus can fetch from a running job, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import ray

from rrcluster.compute import silent
from rrcluster.distributed.meters import METERS, count

REPOSITORY = Path(__file__).resolve().parents[2]
# Metrics of Ray itself that the dashboard draws too.
RAYS_OWN = {"ray_object_store_memory", "ray_node_mem_used", "ray_node_gpus_utilization"}


def exported(meter: str) -> str:
    """The name under which Prometheus finds a meter."""
    return f"ray_{meter}_total" if METERS[meter].kind == "counter" else f"ray_{meter}"


def count_some(x: int) -> int:
    count("rrcluster_images", x)
    count("rrcluster_bad_images", 1, reason="decode")
    return x


def scrape() -> str:
    pages = []
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=5) as page:
            pages.append(page.read().decode())
    return "\n".join(pages)


def test_a_jobs_numbers_can_be_fetched_by_prometheus(ray_compute) -> None:
    ray_compute.observed(silent)("seed", 3, 30, inertia=0.41, unheard_of=1.0)
    list(ray_compute.map(count_some, [40, 2]))
    wanted = [
        r"ray_rrcluster_images_total\{.*\} \d",
        r'ray_rrcluster_bad_images_total\{.*reason="decode".*\} \d',
        r'ray_rrcluster_inertia\{.*stage="seed".*\} 0\.41',
        r'ray_rrcluster_done\{.*stage="seed".*\} 3\.0',
    ]
    end = time.monotonic() + 40  # Ray collects every ten seconds
    while missing := [line for line in wanted if not re.search(line, page := scrape())]:
        assert time.monotonic() < end, missing
        time.sleep(1)
    assert "unheard_of" not in page


def test_the_dashboard_draws_every_meter_and_no_name_that_nobody_sets() -> None:
    dashboard = json.loads((REPOSITORY / "cluster_configs/grafana.json").read_text())
    asked = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    named = set(re.findall(r"\bray_\w+", asked))
    known = {exported(meter) for meter in METERS}
    assert named <= known | RAYS_OWN
    undrawn = {"ray_rrcluster_effective_rank", "ray_rrcluster_clusters"}
    assert known - undrawn <= named
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])
    assert all(p["description"] and p["title"] for p in dashboard["panels"])
