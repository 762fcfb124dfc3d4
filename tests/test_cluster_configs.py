"""The cluster files hold to their schemas, name real modules, and carry nothing secret or public.

The launcher file is checked by the validation that Ray itself ships. The facts about RayJob come
from KubeRay's API reference for ray.io/v1 (docs.ray.io, "KubeRay CRD API reference", v1.6.2).
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rrcluster.config import load

FOLDER = Path(__file__).resolve().parents[1] / "cluster_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
JOB_FIELDS = {
    "entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    "backoffLimit", "activeDeadlineSeconds", "rayClusterSpec", "submissionMode",
}  # fmt: skip
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
    "workerGroupSpecs",
}  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def test_the_launcher_file_passes_rays_own_validation() -> None:
    validate_config(prepare_config(read("aws-gpu.yaml")))


def test_the_launcher_grows_on_spot_gpus_within_limits_and_needs_no_keys() -> None:
    config = read("aws-gpu.yaml")
    head, gpu = (config["available_node_types"][n] for n in (config["head_node_type"], "gpu"))
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert 0 == gpu["min_workers"] < gpu["max_workers"] <= config["max_workers"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] >= 2  # the coordinator and a reader
    assert all("IamInstanceProfile" in n["node_config"] for n in (head, gpu))


def test_every_ray_of_the_launcher_asks_for_the_token() -> None:
    config = read("aws-gpu.yaml")
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_rayjob_has_the_fields_that_kuberay_knows() -> None:
    job = read("kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert set(job["spec"]) <= JOB_FIELDS
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= CLUSTER_FIELDS
    assert cluster["authOptions"]["mode"] == "token"
    assert job["spec"]["shutdownAfterJobFinishes"]  # else the time to live does nothing
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_every_pod_of_the_rayjob_states_its_resources() -> None:
    cluster = read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"]
        for container in pod["containers"]:
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"])
            assert resources["limits"] == resources["requests"]
    workers = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert workers["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_rayjob_runs_a_real_module_with_settings_that_exist_and_fit() -> None:
    spec = read("kuberay-rayjob.yaml")["spec"]
    python, flag, module, *overrides = shlex.split(spec["entrypoint"])
    assert (python, flag) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    config = load(overrides)
    assert config.compute.address == "auto"
    room = spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert config.compute.workers == room


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_secret_and_no_public_address_stands_in_the_file(path: Path) -> None:
    text = path.read_text()
    assert "0.0.0.0" not in text
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", text)
    assert not re.search(r"(?i)\b(password|secret_access_key|auth_token)\s*[:=]\s*\S", _plain(text))
    assert "LoadBalancer" not in text
    assert "NodePort" not in text


def _plain(text: str) -> str:
    """Without comments, and without the mount that puts the token's own file in place."""
    lines = (line.split(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))
    return "\n".join(line for line in lines if "~/.ray/auth_token" not in line)
