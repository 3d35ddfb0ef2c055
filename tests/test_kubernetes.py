"""The manifests are what Kubernetes accepts (by its own schemas), and fit the images, the settings and the metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.memory import needed_mb
from app.metrics import Metrics
from app.settings import Settings

DEPLOY = Path(__file__).parent.parent / "deploy"
FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.30", "1.37")  # of Kubernetes


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def of_kind(name: str, kind: str) -> dict[str, Any]:
    [manifest] = [m for m in manifests(name) if m["kind"] == kind]
    return manifest


PLAIN = manifests("caption.yaml")
[RAY, *BESIDE_RAY] = manifests("rayservice.yaml")
DEPLOYMENT = of_kind("caption.yaml", "Deployment")
CLUSTER = RAY["spec"]["rayClusterConfig"]
RAY_PODS = [group["template"] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"])]
PODS = [DEPLOYMENT["spec"]["template"], *RAY_PODS]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_own_schemas_accept_them(version: str) -> None:
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "of-ray"}, **pod} for pod in RAY_PODS]
    assert {m["kind"] for m in PLAIN} == {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy",
    }  # fmt: skip
    for manifest in (*PLAIN, *BESIDE_RAY, *pods):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_key_would_be_noticed() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(DEPLOYMENT).replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_every_container_can_do_little(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001  # as the image
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["enableServiceLinks"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}
        assert {"readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize("pod", PODS)
def test_containers_set_only_settings_that_exist(pod: dict[str, Any]) -> None:
    names = {variable["name"] for container in pod["spec"]["containers"] for variable in container["env"]}
    ours = {name for name in names if name.startswith("CAPTION_")}
    assert ours
    assert ours <= {f"CAPTION_{name.upper()}" for name in Settings.model_fields}


def test_a_pod_has_the_memory_and_the_time_that_its_settings_need() -> None:
    [container] = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits["memory"] == f"{needed_mb(Settings(), int(limits['cpu']))}Mi"
    delay = float(next(v["value"] for v in container["env"] if v["name"] == "CAPTION_DRAIN_DELAY"))
    grace = DEPLOYMENT["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > delay + Settings().grace


def test_all_selectors_find_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    service = of_kind("caption.yaml", "Service")
    assert service["spec"]["selector"] == labels
    for kind, key in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        assert of_kind("caption.yaml", kind)["spec"][key]["matchLabels"] == labels
    assert of_kind("caption.yaml", "NetworkPolicy")["spec"]["egress"] == []
    monitor = of_kind("monitor.yaml", "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    for manifest in BESIDE_RAY:
        selector = manifest["spec"].get("selector") or manifest["spec"]["podSelector"]
        assert all(selector["matchLabels"].items() <= pod["metadata"]["labels"].items() for pod in RAY_PODS)


def test_probes_ask_what_there_is() -> None:
    from app.main import create_app

    paths = set(create_app().openapi()["paths"])
    [container] = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    probes = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["httpGet"]["path"] for probe in probes} <= paths
    assert of_kind("monitor.yaml", "ServiceMonitor")["spec"]["endpoints"][0]["path"] in paths


def test_it_scales_by_a_metric_that_the_service_exports() -> None:
    exported = {family.name for family in Metrics().registry.collect()}
    scaler = of_kind("caption.yaml", "HorizontalPodAutoscaler")["spec"]
    by_pods, by_cpu = scaler["metrics"]
    assert by_pods["pods"]["metric"]["name"] in exported
    assert int(by_pods["pods"]["target"]["averageValue"]) < Settings().queue_size
    assert by_cpu["resource"]["name"] == "cpu"
    [rule] = yaml.safe_load((FOLDER / "adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == by_pods["pods"]["metric"]["name"]
    assert re.match(r"\w+", rule["seriesQuery"])[0] in exported  # type: ignore[index]


def test_ray_serves_what_serve_yaml_says() -> None:
    served = yaml.safe_load(RAY["spec"]["serveConfigV2"])
    assert served == yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text())
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert CLUSTER["authOptions"] == {"mode": "token"}
    pins = (DEPLOY.parent / "constraints.txt").read_text()
    assert f"ray=={CLUSTER['rayVersion']}\n" in pins
    [workers] = CLUSTER["workerGroupSpecs"]
    [deployment] = served["applications"][0]["deployments"]
    grace = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > deployment["graceful_shutdown_timeout_s"]


def test_a_worker_has_the_memory_that_its_replicas_need() -> None:
    [workers] = CLUSTER["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    cpus = int(container["resources"]["limits"]["cpu"])  # a replica each
    replicas = needed_mb(Settings(workers=cpus, threads=1), cpus)
    assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024 > replicas + 1024  # and Ray
