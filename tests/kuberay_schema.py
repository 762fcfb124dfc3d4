"""What KubeRay and Kubernetes accept, as far as files in cluster_configs use it.

Names, types and required fields, taken down from KubeRay's API reference for ray.io/v1 (on
docs.ray.io, "KubeRay CRD API reference", fields of v1.6.2) and the core/v1 and batch/v1 references
of Kubernetes. A field that is not here is refused: look it up and add it. RayCronJob is alpha in
1.6 and not used; a scheduled job is a batch/v1 CronJob that applies a RayJob.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# A leaf is a type; [x] a list; {name: x} an object, "!" marks a required field; a string names
# another entry; dict any object of strings.
TYPES: dict[str, Any] = {
    "RayCluster": {"apiVersion!": str, "kind!": str, "metadata!": "Metadata", "spec!": "Cluster"},
    "RayJob": {"apiVersion!": str, "kind!": str, "metadata!": "Metadata", "spec!": "Job"},
    "CronJob": {"apiVersion!": str, "kind!": str, "metadata!": "Metadata", "spec!": "Cron"},
    "ConfigMap": {"apiVersion!": str, "kind!": str, "metadata!": "Metadata", "data": dict},
    "ServiceAccount": {"apiVersion!": str, "kind!": str, "metadata!": "Metadata"},
    "Role": {"apiVersion!": str, "kind!": str, "metadata!": "Metadata", "rules!": ["Rule"]},
    "RoleBinding": {
        "apiVersion!": str, "kind!": str, "metadata!": "Metadata", "roleRef!": dict,
        "subjects": [dict],
    },
    "Rule": {"apiGroups!": [str], "resources!": [str], "verbs!": [str]},
    "Metadata": {
        "name": str, "namespace": str, "labels": dict, "annotations": dict,
        "ownerReferences": [{
            "apiVersion!": str, "kind!": str, "name!": str, "uid!": str, "controller": bool,
        }],
    },
    "Job": {
        "entrypoint": str, "runtimeEnvYAML": str, "jobId": str, "submissionMode": str,
        "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
        "activeDeadlineSeconds": int, "suspend": bool, "rayClusterSpec": "Cluster",
        "clusterSelector": dict, "metadata": dict, "submitterPodTemplate": "Template",
    },
    "Cluster": {
        "rayVersion": str, "authOptions": {"mode": ("disabled", "token"), "secretName": str},
        "enableInTreeAutoscaling": bool, "suspend": bool, "headServiceAnnotations": dict,
        "autoscalerOptions": {
            "idleTimeoutSeconds": int, "upscalingMode": ("Default", "Aggressive", "Conservative"),
            "resources": "Resources", "version": str,
        },
        "headGroupSpec!": "Head", "workerGroupSpecs": ["Workers"],
    },
    "Head": {
        "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"), "enableIngress": bool,
        "rayStartParams": dict, "template!": "Template", "labels": dict,
    },
    "Workers": {
        "groupName!": str, "replicas": int, "minReplicas": int, "maxReplicas": int,
        "numOfHosts": int, "idleTimeoutSeconds": int, "rayStartParams": dict, "labels": dict,
        "template!": "Template",
    },
    "Template": {"metadata": "Metadata", "spec!": "Pod"},
    "Pod": {
        "serviceAccountName": str, "containers!": ["Container"], "tolerations": ["Toleration"],
        "nodeSelector": dict, "restartPolicy": ("Always", "OnFailure", "Never"),
        "volumes": ["Volume"], "terminationGracePeriodSeconds": int, "securityContext": "Security",
    },
    "Container": {
        "name!": str, "image": str, "imagePullPolicy": str, "command": [str], "args": [str],
        "env": [{"name!": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath!": str}}}],
        "envFrom": [{"secretRef": {"name!": str, "optional": bool}, "prefix": str}],
        "resources": "Resources", "securityContext": "Security",
        "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool, "subPath": str}],
    },
    "Volume": {"name!": str, "configMap": {"name!": str}, "emptyDir": object},
    "Security": {
        "allowPrivilegeEscalation": bool, "runAsNonRoot": bool, "readOnlyRootFilesystem": bool,
        "runAsUser": int, "capabilities": {"drop": [str]}, "seccompProfile": {"type!": str},
    },
    "Resources": {"requests": object, "limits": object},
    "Toleration": {"key": str, "operator": ("Exists", "Equal"), "effect": str, "value": str},
    "Cron": {
        "schedule!": str, "timeZone": str, "suspend": bool, "startingDeadlineSeconds": int,
        "concurrencyPolicy": ("Allow", "Forbid", "Replace"), "successfulJobsHistoryLimit": int,
        "failedJobsHistoryLimit": int,
        "jobTemplate!": {
            "metadata": "Metadata",
            "spec!": {
                "template!": "Template", "backoffLimit": int, "activeDeadlineSeconds": int,
                "ttlSecondsAfterFinished": int,
            },
        },
    },
}  # fmt: skip
API = {
    "RayCluster": "ray.io/v1", "RayJob": "ray.io/v1", "CronJob": "batch/v1", "ConfigMap": "v1",
    "ServiceAccount": "v1", "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
}  # fmt: skip


def errors(document: Mapping[str, Any]) -> list[str]:
    """What an API server would refuse about the document, a sentence each."""
    kind = document.get("kind", "")
    if document.get("apiVersion") != API.get(kind):
        return [f"no kind {kind!r} in {document.get('apiVersion')!r}"]
    return list(_errors(document, kind, kind))


def _errors(value: Any, wanted: Any, at: str) -> Iterator[str]:
    if isinstance(wanted, str):
        wanted = TYPES[wanted]
    if isinstance(wanted, tuple):
        if value not in wanted:
            yield f"{at}={value!r}: one of {wanted}"
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            yield f"{at} is no list"
            return
        for i, item in enumerate(value):
            yield from _errors(item, wanted[0], f"{at}[{i}]")
    elif wanted is dict:
        if not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())):
            yield f"{at} is no object of strings"
    elif isinstance(wanted, dict):
        if not isinstance(value, dict):
            yield f"{at} is no object"
            return
        fields = {name.rstrip("!"): kind for name, kind in wanted.items()}
        yield from (f"{at}.{n} is missing" for n in wanted if n[-1] == "!" and n[:-1] not in value)
        for name, item in value.items():
            if name in fields:
                yield from _errors(item, fields[name], f"{at}.{name}")
            else:
                yield f"{at}.{name} is no known field"
    elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        yield f"{at}={value!r} is no {wanted.__name__}"
