"""What a RayCluster of KubeRay 1.6.2 may contain, as JSON schema; pods in it are Kubernetes' own kind.

Written down from the fields and types of its API reference (ray.io/v1), since no package has the definition itself: see
docs/cluster.md, section 5. A field that is not here is refused, so that a misspelt one is noticed.
"""

from __future__ import annotations

from typing import Any

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


_GROUP = {
    "rayStartParams": _TEXTS,
    "template": {"type": "object"},  #: a PodTemplateSpec, validated as one by itself
    "resources": _TEXTS,
    "labels": _TEXTS,
}
_HEAD = _object(
    "rayStartParams template",
    **_GROUP,
    headService={"type": "object"},
    enableIngress={"type": "boolean"},
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
)
_WORKERS = _object(
    "groupName minReplicas maxReplicas rayStartParams template",
    **_GROUP,
    groupName={"type": "string"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    numOfHosts=_COUNT,
    suspend={"type": "boolean"},
    scaleStrategy=_object("", workersToDelete={"type": "array", "items": {"type": "string"}}),
)
_SPEC = _object(
    "headGroupSpec",
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=_TEXTS,
    gcsFaultToleranceOptions={"type": "object"},
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    suspend={"type": "boolean"},
    authOptions=_object(
        "",
        mode={"enum": ["disabled", "token"]},
        secretName={"type": "string"},
        enableK8sTokenAuth={"type": "boolean"},
    ),
    upgradeStrategy=_object("", type={"enum": ["Recreate", "None"]}),
)
RAY_CLUSTER = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata={"type": "object", "required": ["name"]},
    spec=_SPEC,
)
