"""The Kubernetes manifests: valid by Kubernetes' own schemas, and consistent with the server."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kustomization import render

from serving.launcher.launch import PLATFORM_GRACE
from serving.settings_sources import resolve

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "container" / "kubernetes"
FOLDERS = ["base", "multi-node"]
VERSIONS = ["1.29", "1.33", "1.36"]
# Of the API reference of LeaderWorkerSet v1, for which no package has a schema.
GROUP_KEYS = {"replicas", "leaderWorkerTemplate", "rolloutStrategy", "startupPolicy",
              "networkConfig"}  # fmt: skip
TEMPLATE_KEYS = {"leaderTemplate", "workerTemplate", "size", "restartPolicy", "subGroupPolicy"}
RESTART_POLICIES = {"None", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "Default"}


def objects(folder: str) -> list[dict[str, Any]]:
    return render(KUBERNETES / folder)


def one(folder: str, kind: str) -> dict[str, Any]:
    (found,) = [found for found in objects(folder) if found["kind"] == kind]
    return found


def pod_templates(folder: str) -> list[dict[str, Any]]:
    """Leader first."""
    if folder == "base":
        return [one("base", "Deployment")["spec"]["template"]]
    template = one("multi-node", "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return [template["leaderTemplate"], template["workerTemplate"]]


def server(template: dict[str, Any]) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    found: dict[str, Any] = container
    return found


ALL_PODS = [(folder, i) for folder, count in (("base", 1), ("multi-node", 2)) for i in range(count)]
SERVING_PODS = [("base", 0), ("multi-node", 0)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_fit_kubernetes_schemas(folder: str, version: str) -> None:
    for found in objects(folder):
        if found["kind"] == "LeaderWorkerSet":
            continue
        kubernetes_validate.validate(copy.deepcopy(found), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_of_a_group_fit_kubernetes_schemas(version: str) -> None:
    for template in pod_templates("multi-node"):
        wrapped = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "wrapped"},
            "template": copy.deepcopy(template),
        }
        kubernetes_validate.validate(wrapped, version, strict=True)


def test_group_has_the_fields_of_its_api() -> None:
    spec = one("multi-node", "LeaderWorkerSet")["spec"]
    assert set(spec) <= GROUP_KEYS
    assert set(spec["leaderWorkerTemplate"]) <= TEMPLATE_KEYS
    assert spec["leaderWorkerTemplate"]["restartPolicy"] in RESTART_POLICIES


def test_schema_check_finds_a_misspelt_field() -> None:
    wrong = one("base", "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_used(folder: str) -> None:
    kustomized = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
    named = {*kustomized["resources"], *kustomized.get("configurations", [])}
    present = {path.name for path in (KUBERNETES / folder).iterdir()}
    assert present == named | {"kustomization.yaml"}


@pytest.mark.skipif(shutil.which("kustomize") is None, reason="kustomize is not installed")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_renders_the_same_objects(folder: str) -> None:
    command = ["kustomize", "build", str(KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    suffix = re.compile(r"-[0-9a-z]{10}$")  # kustomize hashes in a way of its own

    def named(found: dict[str, Any]) -> tuple[str, str]:
        name = found["metadata"]["name"]
        is_generated = found["kind"] == "ConfigMap"
        return found["kind"], suffix.sub("", name) if is_generated else name

    rendered = {named(found): found for found in yaml.safe_load_all(done.stdout)}
    assert set(rendered) == {named(found) for found in objects(folder)}
    (config_map,) = [name for kind, name in rendered if kind == "ConfigMap"]
    full = rendered["ConfigMap", config_map]["metadata"]["name"]
    uses = set(re.findall(rf"name: ({config_map}\S*)", done.stdout))
    assert uses == {full}


@pytest.mark.parametrize(("folder", "i"), ALL_PODS)
def test_pod_runs_without_privileges_and_writes_to_volumes_only(folder: str, i: int) -> None:
    template = pod_templates(folder)[i]
    pod, container = template["spec"]["securityContext"], server(template)["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] > 0
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {one["mountPath"]: one["name"] for one in server(template)["volumeMounts"]}
    volumes = {one["name"]: one["emptyDir"] for one in template["spec"]["volumes"]}
    assert mounts.keys() == {"/tmp", "/dev/shm"}
    assert volumes[mounts["/dev/shm"]]["medium"] == "Memory"


@pytest.mark.parametrize(("folder", "i"), SERVING_PODS)
def test_probes_ask_what_the_server_has(folder: str, i: int) -> None:
    container = server(pod_templates(folder)[i])
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    paths = {}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert ports[container[name]["httpGet"]["port"]] == 8080
        paths[name] = container[name]["httpGet"]["path"]
    assert paths["startupProbe"] == paths["readinessProbe"] == "/health/ready"
    assert paths["livenessProbe"] == "/health/live"
    routes = (ROOT / "serving" / "front" / "platforms" / "probes.py").read_text()
    assert all(f'"{path.removeprefix("/health")}"' in routes for path in paths.values())
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > PLATFORM_GRACE


@pytest.mark.parametrize(("folder", "i"), ALL_PODS)
def test_grace_period_covers_the_wait_and_the_drain(folder: str, i: int) -> None:
    template = pod_templates(folder)[i]
    program, seconds = server(template)["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    drain = PLATFORM_GRACE if i == 0 else 0  # a worker has no requests
    assert template["spec"]["terminationGracePeriodSeconds"] > int(seconds) + drain


def test_worker_outlives_the_streams_of_its_leader() -> None:
    leader, worker = (
        int(server(template)["lifecycle"]["preStop"]["exec"]["command"][1])
        for template in pod_templates("multi-node")
    )
    assert worker >= leader + PLATFORM_GRACE


@pytest.mark.parametrize("folder", FOLDERS)
def test_selectors_find_pods_with_http(folder: str) -> None:
    labels = [template["metadata"]["labels"] for template in pod_templates(folder)]
    wanted = one(folder, "Service")["spec"]["selector"].items()
    matching = [wanted <= found.items() for found in labels]
    assert matching == [True] + [False] * (len(labels) - 1)


def test_autoscaler_and_budget_mean_the_deployment() -> None:
    deployment = one("base", "Deployment")
    target = one("base", "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # or each `apply` would undo the autoscaler
    budget = one("base", "PodDisruptionBudget")["spec"]["selector"]
    assert budget == deployment["spec"]["selector"]


def test_autoscaler_reads_a_metric_of_the_server() -> None:
    (metric,) = one("base", "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f'"{name}"' in (ROOT / "serving" / "metrics.py").read_text()
    assert name in (KUBERNETES / "README.md").read_text()  # with the adapter's rule


@pytest.mark.parametrize("i", [0, 1])
def test_arguments_of_a_group_resolve_as_the_controller_sets_them(i: int) -> None:
    group = {
        "LWS_GROUP_SIZE": "2",
        "LWS_WORKER_INDEX": str(i),
        "LWS_LEADER_ADDRESS": "group-0.group.default",
    }
    template = pod_templates("multi-node")[i]
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda match: group[match[1]], argument)
        for argument in server(template)["args"]
    ]
    settings = resolve(arguments, one("multi-node", "ConfigMap")["data"])
    assert (settings.nnodes, settings.node_rank) == (2, i)
    assert settings.master_addr == group["LWS_LEADER_ADDRESS"]
    ports = {one["containerPort"] for one in server(pod_templates("multi-node")[0])["ports"]}
    assert settings.master_port in ports
