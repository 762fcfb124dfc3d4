"""The cluster files hold to their schemas, name real modules, and carry nothing secret or public.

The launcher files are checked by the validation that Ray itself ships, the Kubernetes ones by
``kuberay_schema``.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kuberay_schema
import pytest
import ray
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from rrcluster.config import load, settings_help
from rrcluster.distributed.meters import METERS

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "cluster_configs"
KUBERNETES = sorted(FOLDER.glob("kuberay-*.yaml"))
LAUNCHERS = ["aws-gpu.yaml", "gcp-gpu.yaml", "laptop.yaml"]
CLOUDS = LAUNCHERS[:2]
FILES = [*sorted(FOLDER.glob("*.yaml")), FOLDER / "Dockerfile", FOLDER / "crontab"]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """What is applied: the files' documents, and those that a ConfigMap holds for a CronJob."""
    for path in KUBERNETES:
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document
            for text in document.get("data", {}).values():
                yield path.name, yaml.safe_load(text)


def ray_jobs() -> list[dict[str, Any]]:
    return [d["spec"] for _, d in documents() if d["kind"] == "RayJob"]


def ray_clusters() -> list[dict[str, Any]]:
    standing = [d["spec"] for _, d in documents() if d["kind"] == "RayCluster"]
    return standing + [job["rayClusterSpec"] for job in ray_jobs()]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_passes_rays_own_validation(name: str) -> None:
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_file_grows_on_spot_gpus_within_limits_and_needs_no_keys(name: str) -> None:
    config = read(name)
    head, gpu = (config["available_node_types"][n] for n in (config["head_node_type"], "gpu"))
    assert re.search(r"\bspot\b", str(gpu["node_config"]), re.IGNORECASE)
    assert not re.search(r"\bspot\b", str(head["node_config"]), re.IGNORECASE)
    assert 0 == gpu["min_workers"] < gpu["max_workers"] <= config["max_workers"]
    assert all(re.search("IamInstanceProfile|serviceAccounts", str(n)) for n in (head, gpu))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_head_does_no_heavy_work(name: str) -> None:
    config = read(name)
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert "--num-cpus=0" in start
    if name in CLOUDS:
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_ray_of_a_launcher_asks_for_the_token_and_bounds_its_retries(name: str) -> None:
    config = read(name)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert all("RAY_task_oom_retries=4" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_launcher_installs_the_packages_that_the_project_asks_for(name: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    installed = " ".join(read(name)["setup_commands"])
    for line in project["dependencies"]:
        package = line.split(";")[0].strip().replace(" ", "")
        # Ray is in the image; GPU machines are Linux.
        if not package.startswith(("ray[", "faiss-cpu")):
            assert f'"{package}"' in installed, f"{name} lacks {package}"


def test_what_names_a_version_of_ray_names_the_same_one_and_the_project_allows_it() -> None:
    named = re.findall(r"ray:(2\.\d+\.\d+)-py311", "".join(p.read_text() for p in FILES))
    named += [cluster["rayVersion"] for cluster in ray_clusters()]
    assert set(named) == {"2.60.0"}
    assert ray.__version__.split(".")[:2] == ["2", "60"]


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda p: p.name)
def test_a_kubernetes_file_holds_to_its_schema(path: Path) -> None:
    for document in [document for name, document in documents() if name == path.name]:
        assert kuberay_schema.errors(document) == []
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])


def test_the_schema_refuses_what_an_api_server_would() -> None:
    good = next(d for _, d in documents() if d["kind"] == "RayJob")
    for path, value, said in [
        (("spec", "ttlSecondsAfterFinish"), 5, "no known field"),
        (("spec", "backoffLimit"), "1", "no int"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "on", "one of"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}, "strings"),
        (("apiVersion",), "ray.io/v2", "no kind"),
    ]:
        bad = copy.deepcopy(good)
        inner = bad
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        (found,) = kuberay_schema.errors(bad)
        assert said in found


def test_every_ray_cluster_asks_for_a_token_keeps_its_head_free_and_bounds_its_workers() -> None:
    assert ray_clusters()
    for cluster in ray_clusters():
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] <= 64
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            assert pod["serviceAccountName"]
            for container in pod["containers"]:
                resources = container["resources"]
                assert {"cpu", "memory"} <= set(resources["requests"])
                assert resources["limits"] == resources["requests"]
                assert {"name": "RAY_task_oom_retries", "value": "4"} in container["env"]
        gpus = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
        assert gpus["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_rayjob_runs_a_real_module_with_settings_that_exist_and_fit() -> None:
    assert ray_jobs()
    for spec in ray_jobs():
        assert spec["shutdownAfterJobFinishes"]  # else the time to live does nothing
        assert spec["ttlSecondsAfterFinished"] > 0
        python, flag, module, *overrides = shlex.split(spec["entrypoint"])
        assert (python, flag) == ("python", "-m")
        assert importlib.util.find_spec(module) is not None
        config = load(overrides)
        assert config.compute.address == "auto"
        room = spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
        assert config.compute.workers == room


def scheduled(kind: str) -> dict[str, Any]:
    (found,) = (
        d for name, d in documents() if name == "kuberay-scheduled.yaml" and d["kind"] == kind
    )
    return found


def test_a_night_is_one_rayjob_however_often_its_pod_is_started(tmp_path: Path) -> None:
    pod = scheduled("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (tmp_path / "rayjob.yaml").write_text(scheduled("ConfigMap")["data"]["rayjob.yaml"])
    kubectl = tmp_path / "kubectl"  # notes what it is asked to apply, then says how the job ended
    kubectl.write_text(
        "#!/bin/sh\ncase $1 in apply) cat >> $0.got; echo --- >> $0.got ;; *) echo $END ;; esac\n"
    )
    kubectl.chmod(0o755)
    script = container["args"][0].replace("/jobs/", f"{tmp_path}/").replace("sleep 20", "sleep 0")
    names = {e["name"]: f"{e['name'].lower()}-7" for e in container["env"]}
    statuses = []
    for end in ("Complete", "Failed"):
        places = {"PATH": f"{tmp_path}:/usr/bin:/bin", "END": end}
        done = subprocess.run([*container["command"], script], env=names | places, check=False)
        statuses.append(done.returncode)
    assert statuses == [0, 1]
    first, second, _ = yaml.safe_load_all((tmp_path / "kubectl.got").read_text())
    assert first == second
    assert first["metadata"]["name"] == "job-7"
    (owner,) = first["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == ("job-7", "job_uid-7")
    assert kuberay_schema.errors(first) == []


def test_what_applies_the_nights_job_may_do_that_and_no_more() -> None:
    pod = scheduled("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    account = scheduled("ServiceAccount")["metadata"]["name"]
    assert pod["serviceAccountName"] == account
    assert scheduled("RoleBinding")["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert scheduled("RoleBinding")["roleRef"]["name"] == scheduled("Role")["metadata"]["name"]
    (rule,) = scheduled("Role")["rules"]
    assert rule["resources"] == ["rayjobs"]
    assert scheduled("RayJob")["spec"]["backoffLimit"] == 0  # else status 3 would be hidden


def test_the_crontab_submits_each_night_once_and_sees_how_it_ends() -> None:
    lines = (FOLDER / "crontab").read_text().splitlines()
    (line,) = (found for found in lines if " ray job submit " in found)
    *when, command = line.split(maxsplit=5)
    assert all(re.fullmatch(r"[\d*/,-]+", part) for part in when)
    assert not re.search(r"(?<!\\)%", command)  # cron would end the command there
    words = shlex.split(command.replace("\\%", "%"), posix=True)
    submit, (python, flag, module, *overrides) = words[: words.index("--")], words[-6:]
    assert submit[submit.index("--submission-id") + 1].endswith("$(date")  # of %F, one a day
    assert "--no-wait" not in submit
    assert (python, flag) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    assert load(overrides).compute.address == "auto"


def test_the_image_holds_the_project_and_runs_as_no_root() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] == "ray"
    copied = " ".join(line for line in lines if line.startswith("COPY"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "rrcluster", "pipelines"):
        assert f" {name}" in copied
        assert (REPOSITORY / name).exists()


def test_the_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text()
    assert [p.name for p in FILES if f"`{p.name}`" not in text] == []


def said_by_the_package() -> list[str]:
    """Every string constant of the package and its jobs, f-strings in their constant parts."""
    files = [p for top in ("rrcluster", "pipelines") for p in (REPOSITORY / top).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_the_run_book_quotes_messages_that_the_package_says() -> None:
    """The first column of its tables of messages; … stands for what varies."""
    text, said = (FOLDER / "RUNBOOK.md").read_text(), said_by_the_package()
    rows = text.split("## What messages mean")[1].split("\n\n")[1].splitlines()[2:]
    lasts = re.findall(r"^\| [123] \| `(.+?)`", text, re.MULTILINE)
    quoted = [re.match(r"\| `(.+?)` \|", row)[1] for row in rows] + lasts
    parts = [part.strip() for quote in quoted for part in quote.split("…") if part.strip()]
    assert len(rows) > 10
    assert len(lasts) == 4
    assert [part for part in parts if not any(part in line for line in said)] == []


def test_the_run_book_names_settings_and_metrics_that_exist() -> None:
    text = (FOLDER / "RUNBOOK.md").read_text()
    settings = {name for name, _, _ in settings_help()}
    groups = {name.partition(".")[0] for name in settings if "." in name}
    named = re.findall(r"`([a-z_]+\.[a-z_]+)(?:[=` ])", text)
    assert {n for n in named if n.partition(".")[0] in groups} - settings == set()
    metrics = re.findall(r"ray_(rrcluster_[a-z_]+?)(?:_total)?`", text)
    assert metrics
    assert set(metrics) <= METERS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_secret_and_no_public_address_stands_in_the_file(path: Path) -> None:
    text = path.read_text()
    assert "0.0.0.0" not in text
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", text)
    assert "PRIVATE KEY" not in text
    assert not re.search(r"(?i)\b(password|secret_access_key|auth_token)\s*[:=]\s*\S", _plain(text))
    assert "LoadBalancer" not in text
    assert "NodePort" not in text


def _plain(text: str) -> str:
    """Without comments, and without the mount that puts the token's own file in place."""
    lines = (line.split(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))
    return "\n".join(line for line in lines if "~/.ray/auth_token" not in line)


def test_the_upload_holds_no_virtual_environment_corpus_or_run_whatever_its_name(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "repository"
    code = ["pipelines/cluster.py", "rrcluster/core/rate.py", "rrcluster/models/tiny/image.onnx"]
    files = ["pyproject.toml", "vocabulary.txt"]  # someone's own beside the code
    environment = ["bin/python", "lib/python3.11/site-packages/a.so", "share/man/a", "pyvenv.cfg"]
    left = [f"{name}/{file}" for name in (".venv", "any-name") for file in environment]
    left += ["photos/shard-000.tar", "run/run.json", "tests/conftest.py", ".git/config"]
    for file in [*code, *files, *left]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    shutil.copy(REPOSITORY / ".rayignore", folder)
    create_package(str(folder), tmp_path / "upload.zip", include_gitignore=True)
    names = zipfile.ZipFile(tmp_path / "upload.zip").namelist()
    assert sorted(names) == sorted([".rayignore", *code, *files])
