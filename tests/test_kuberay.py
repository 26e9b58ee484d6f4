"""deploy/kuberay: what Kubernetes and KubeRay take, who reaches whom, and numbers that belong together."""

from __future__ import annotations

import copy
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from he_client import cli
from he_server.config import ServerConfig
from he_server.config_file import make_config, read_toml
from tests.kuberay_schema import RAY_CLUSTER
from tests.network_policies import Place, reaches

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "kuberay"
VERSIONS = ("1.29", "1.37")  #: of Kubernetes: the first with sidecars, and the newest that the schemas are of
SPACE = "hesearch"
Document = dict[str, Any]


def _documents(name: str = "*") -> list[Document]:
    return [one for path in sorted(FOLDER.glob(f"{name}.yaml")) for one in yaml.safe_load_all(path.read_text())]


def _one(kind: str, name: str = "") -> Document:
    (found,) = [d for d in _documents() if d["kind"] == kind and (not name or d["metadata"]["name"] == name)]
    return found


BUILT_IN = [d for d in _documents() if d["kind"] not in ("RayCluster", "Kustomization")]


def _templates() -> dict[str, Document]:
    """Of the pods: head, worker and front end."""
    ray = _one("RayCluster")["spec"]
    (workers,) = ray["workerGroupSpecs"]
    return {
        "head": ray["headGroupSpec"]["template"],
        "worker": workers["template"],
        "front-end": _one("Deployment")["spec"]["template"],
    }


def _containers() -> Iterator[tuple[str, Document]]:
    for pod, template in _templates().items():
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            yield pod, container


# ---- what is taken -------------------------------------------------------------------------------------------
def _validate(document: Document, version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="pip install '.[dev]'")
    kubernetes.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", BUILT_IN, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_kubernetes_takes_it(document: Document, version: str) -> None:
    _validate(document, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pod", ["head", "worker"])
def test_kubernetes_takes_the_pods_of_ray(pod: str, version: str) -> None:
    template = copy.deepcopy(_templates()[pod])
    _validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": pod}, "template": template}, version)


def test_kubernetes_refuses_what_is_misspelt() -> None:
    """So what it took above says something."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    deployment = _one("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes.ValidationError):
        _validate(deployment, VERSIONS[0])
    policy = _one("NetworkPolicy", "ray")
    policy["spec"]["ingress"][0]["to"] = policy["spec"]["ingress"][0].pop("from")
    with pytest.raises(kubernetes.ValidationError):
        _validate(policy, VERSIONS[0])


def test_kuberay_takes_the_cluster() -> None:
    jsonschema.validate(_one("RayCluster"), RAY_CLUSTER)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "authoptions"), {}),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), None),
        (("spec", "workerGroupSpecs", 0, "minreplicas"), 3),
    ],
)
def test_kuberay_refuses_what_is_wrong(place: tuple[Any, ...], value: Any) -> None:
    document = _one("RayCluster")
    at: Any = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, RAY_CLUSTER)


# ---- together ------------------------------------------------------------------------------------------------
def _generated() -> dict[str, set[str]]:
    """Names of the Secrets, with their keys (of an environment file: none)."""
    return {
        one["name"]: {re.sub(r"=.*|.*/", "", file) if "=" not in file else file.partition("=")[0]
                      for file in one.get("files", [])}
        for one in _one("Kustomization")["secretGenerator"]
    }  # fmt: skip


def test_every_secret_is_made_and_used() -> None:
    secrets, used = _generated(), set()

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            for key in ("secretRef", "secretKeyRef", "secret"):
                if isinstance(one := value.get(key), dict):
                    name = one.get("name") or one["secretName"]
                    used.add(name)
                    wanted = {one["key"]} if "key" in one else {item["key"] for item in one.get("items", [])}
                    assert wanted <= secrets[name]
            for one in value.values():
                visit(one)
        elif isinstance(value, list):
            for one in value:
                visit(one)

    visit(_documents())
    authentication = _one("RayCluster")["spec"]["authOptions"]
    assert authentication["mode"] == "token"
    assert secrets[authentication["secretName"]] == {"auth_token"}, "as KubeRay calls it"
    assert used | {authentication["secretName"]} == set(secrets)
    assert "/deploy/kuberay/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    listed = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(_one("Kustomization")["resources"]) == listed


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_it(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kuberay", ignore=shutil.ignore_patterns("secrets"))
    (tmp_path / "kuberay" / "secrets").mkdir()
    for one in _one("Kustomization")["secretGenerator"]:
        for file in [*one.get("files", []), *one.get("envs", [])]:
            (tmp_path / "kuberay" / file.rpartition("=")[2]).write_text("NAME=value\n")
    command = ["kubectl", "kustomize", tmp_path / "kuberay"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    documents = list(yaml.safe_load_all(built))
    assert {d["metadata"].get("namespace", d["metadata"]["name"]) for d in documents} == {SPACE}
    images = set(re.findall(r"image: (\S+)", built))
    assert len(images) == 1 and images != {"hesearch"}, "one image everywhere, the one that is set"
    assert len([d for d in documents if d["kind"] == "Secret"]) == len(_generated())
    for document in documents:
        if document["kind"] != "RayCluster":
            _validate(document, VERSIONS[0])
        else:
            jsonschema.validate(document, RAY_CLUSTER)


def test_files_of_the_configuration_are_mounted() -> None:
    spec = _templates()["front-end"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    config = read_toml(ROOT / "deploy" / "hesearch-container.toml")
    projected = volumes[mounts["/run/secrets"]]["projected"]["sources"]
    there = set().union(*(_generated()[source["secret"]["name"]] for source in projected))
    wanted = {str(config[key]).rpartition("/")[2] for key in ("tls_cert", "tls_key", "tls_client_ca", "kek")}
    probe = spec["containers"][0]["readinessProbe"]["exec"]["command"]
    assert wanted | set(re.findall(r"/run/secrets/([\w.]+)", " ".join(probe))) == there
    assert str(config["data"]) in mounts
    for pod, container in _containers():
        names = {volume["name"] for volume in _templates()[pod]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= names
        assert {"/tmp", "/dev/shm"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


# ---- what pods may do ----------------------------------------------------------------------------------------
def test_every_pod_is_restricted() -> None:
    assert _one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in _templates().values():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all("hostPath" not in volume for volume in spec["volumes"])
    for _, container in _containers():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} == container["resources"].keys()
        assert "memory" in container["resources"]["limits"] and "hostPort" not in str(container)


def test_the_key_encryption_key_is_in_the_front_ends_alone() -> None:
    for pod, template in _templates().items():
        assert ("hesearch-kek" in str(template)) is (pod == "front-end")
    ray, server = _templates()["front-end"]["spec"]["initContainers"][0], dict(_containers())["front-end"]
    assert "kek" not in str(ray["volumeMounts"]) and "secrets" not in str(ray["volumeMounts"])
    for container in (ray, server):
        environment = {one["name"]: one.get("value") for one in container["env"]}
        assert environment["RAY_AUTH_MODE"] == "token"
        folder, _, name = str(environment["RAY_AUTH_TOKEN_PATH"]).rpartition("/")
        assert name in _generated()["hesearch-ray"]
        assert folder in {mount["mountPath"] for mount in container["volumeMounts"]}


# ---- who reaches whom ----------------------------------------------------------------------------------------
PODS = {pod: Place(SPACE, template["metadata"]["labels"]) for pod, template in _templates().items()}
CLIENT = Place("shop", {"hesearch/client": "true"})
STRANGERS = [Place("shop", {"app": "web"}), Place(SPACE, {"app": "debug"}), Place("", {}, "203.0.113.9")]
RAY_PORTS = (6379, 6380, 6381, 8265, 10001, 10002)


def _reaches(source: Place, to: Place, port: int) -> bool:
    policies = [d for d in _documents("network") if d["kind"] == "NetworkPolicy"]
    return reaches(policies, SPACE, source, to, port)


def test_only_nodes_of_ray_reach_rays_ports() -> None:
    for port in RAY_PORTS:
        for to in PODS.values():
            assert all(_reaches(source, to, port) for source in PODS.values())
            for other in (CLIENT, Place("monitoring", {}), Place("kuberay-operator", {}), *STRANGERS):
                assert not _reaches(other, to, port), (other, to, port)


def test_clients_reach_the_front_ends_and_nothing_else() -> None:
    assert _reaches(CLIENT, PODS["front-end"], 50051)
    assert _reaches(Place("monitoring", {}), PODS["front-end"], 9464)
    assert not _reaches(CLIENT, PODS["front-end"], 9464)
    for stranger in STRANGERS:
        assert not _reaches(stranger, PODS["front-end"], 50051)
    for pod in ("head", "worker"):
        assert not _reaches(CLIENT, PODS[pod], 50051)
    exposed = {port["port"] for port in _one("Service")["spec"]["ports"]}
    assert exposed == {50051, 9464} and _one("Service")["spec"].get("type", "ClusterIP") == "ClusterIP"
    assert _one("RayCluster")["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_pods_leave_for_storage_alone() -> None:
    postgres, objects = Place("", {}, "198.51.100.7"), Place("", {}, "192.0.2.7")
    elsewhere, names = Place("", {}, "203.0.113.9"), Place("kube-system", {"k8s-app": "kube-dns"})
    for pod, place in PODS.items():
        assert _reaches(place, names, 53) and _reaches(place, objects, 443)
        assert _reaches(place, postgres, 5432) is (pod == "front-end")
        assert not any(_reaches(place, elsewhere, port) for port in (53, 80, 443, 5432))


def test_a_pod_that_nobody_thought_of_is_alone() -> None:
    other = Place(SPACE, {"app": "debug"})
    for port in (53, 443, 5432, 50051):
        for to in (*PODS.values(), Place("", {}, "192.0.2.7"), Place("kube-system", {"k8s-app": "kube-dns"})):
            assert not _reaches(other, to, port)
        assert not _reaches(CLIENT, other, port)


def test_services_and_budgets_select_the_pods_that_they_name() -> None:
    for kind, name, pod in (
        ("Service", "hesearch", "front-end"),
        ("PodDisruptionBudget", "front-ends", "front-end"),
        ("PodDisruptionBudget", "shards", "worker"),
    ):
        selector = _one(kind, name)["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        assert [one for one, place in PODS.items() if selector.items() <= place.labels.items()] == [pod]


def test_the_documented_commands_make_every_secret() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    (section,) = re.findall(r"^## 5\. .*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-n", "-c", block], check=True, timeout=60)
    for line in block.splitlines():
        if line.startswith("hesearch "):
            cli.build_parser().parse_args(line.split()[1:])
    files = {file.rpartition("=")[2] for one in _one("Kustomization")["secretGenerator"]
             for file in [*one.get("files", []), *one.get("envs", [])]}  # fmt: skip
    (copied,) = re.findall(r"for file in (.*); do", block)
    made = set(re.findall(r"deploy/kuberay/(secrets/[a-z-]+)\b", block))
    assert files <= made | {f"secrets/{name}" for name in copied.split()}
    assert "kubectl apply -k deploy/kuberay" in block


# ---- numbers that belong together ----------------------------------------------------------------------------
def _arguments(container: Document) -> dict[str, str]:
    return dict(one.removeprefix("--").partition("=")[::2] for one in container["args"] if one.startswith("--"))


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG])i", text).groups()  # type: ignore[union-attr]
    return int(number) << {"K": 10, "M": 20, "G": 30}[unit]


def _volume(pod: str, name: str) -> int:
    (found,) = [one for one in _templates()[pod]["spec"]["volumes"] if one["name"] == name]
    return _bytes(found["emptyDir"]["sizeLimit"])


def test_shards_have_the_room_that_front_ends_expect() -> None:
    flags = _arguments(dict(_containers())["front-end"])
    (workers,) = _one("RayCluster")["spec"]["workerGroupSpecs"]
    actors = int(flags["cluster-shards"]) * int(flags["cluster-replicas"])
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == actors
    resources = dict(_containers())["worker"]["resources"]
    assert workers["rayStartParams"]["num-cpus"] == flags["threads"] == resources["requests"]["cpu"]
    objects = int(workers["rayStartParams"]["object-store-memory"])
    assert _bytes(resources["limits"]["memory"]) > int(flags["index-memory-bytes"]) + objects
    assert _one("RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert _one("PodDisruptionBudget", "shards")["spec"]["minAvailable"] == workers["replicas"] - 1
    assert (
        _one("PodDisruptionBudget", "front-ends")["spec"]["minAvailable"] == _one("Deployment")["spec"]["replicas"] - 1
    )


def test_memory_and_disk_suffice() -> None:
    sidecar = _templates()["front-end"]["spec"]["initContainers"][0]
    assert _volume("front-end", "shm") > int(_arguments(sidecar)["object-store-memory"])
    ray = _one("RayCluster")["spec"]
    for pod, group in (("head", ray["headGroupSpec"]), ("worker", ray["workerGroupSpecs"][0])):
        assert _volume(pod, "shm") > int(group["rayStartParams"]["object-store-memory"])
    config = ServerConfig(data=Path("data"))
    uploads = config.max_transfers * config.max_segment_bytes
    assert _volume("front-end", "data") > int(_arguments(dict(_containers())["front-end"])["cache-bytes"]) + uploads


def test_front_ends_start_with_flags_that_there_are() -> None:
    arguments = cli.build_parser().parse_args(dict(_containers())["front-end"]["args"])
    assert (arguments.command, str(arguments.config)) == ("serve", "/etc/hesearch/hesearch.toml")
    config = make_config(ROOT / "deploy" / "hesearch-container.toml", vars(arguments))
    assert (config.cluster, config.cluster_shards, config.cluster_replicas) == ("ray-head-svc:6379", 3, 1)
    assert config.catalogue and config.segments and not config.insecure


def test_the_address_and_ports_of_ray() -> None:
    name = _one("RayCluster")["metadata"]["name"]
    sidecar, server = _templates()["front-end"]["spec"]["initContainers"][0], dict(_containers())["front-end"]
    assert _arguments(sidecar)["address"] == _arguments(server)["cluster"] == f"{name}-head-svc:6379"
    assert _templates()["front-end"]["spec"]["shareProcessNamespace"] is True, "or Ray does not find its node"
    ports = _arguments(sidecar)["node-manager-port"], _arguments(sidecar)["object-manager-port"]
    for group in (_one("RayCluster")["spec"]["headGroupSpec"], *_one("RayCluster")["spec"]["workerGroupSpecs"]):
        given = group["rayStartParams"]
        assert (given["node-manager-port"], given["object-manager-port"]) == ports


def test_probes_ask_what_answers() -> None:
    listening = {"head": 6379, "worker": 6380, "front-end": 6380}
    for pod, container in _containers():
        for kind in ("startupProbe", "livenessProbe"):
            if container["name"] == "ray":
                assert container[kind]["tcpSocket"]["port"] == listening[pod]
    server = dict(_containers())["front-end"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        program, *arguments = server[kind]["exec"]["command"]
        assert program == "/opt/hesearch/bin/hesearch"
        parsed = cli.build_parser().parse_args(arguments)
        assert parsed.command == "health" and not parsed.insecure
        assert server[kind]["timeoutSeconds"] > parsed.timeout
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][-1])
    grace_s = _templates()["front-end"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > pause + ServerConfig(data=Path("data")).grace_s + 10


def test_the_image_starts_ray_by_its_name() -> None:
    assert "ENV PATH=/opt/hesearch/bin:$PATH" in (ROOT / "deploy" / "Dockerfile").read_text()
    version = _one("RayCluster")["spec"]["rayVersion"]
    assert tuple(map(int, version.split("."))) >= (2, 52), "tokens"
    try:
        installed = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("Ray is not installed")
    assert version.split(".")[0] == installed.split(".")[0], "what one speaks the other may not"
