"""The cluster files against the schemas of those who read them, and what they must never hold."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAY_FILES = ("cluster.yaml", "clusters/on-premises.yaml", "clusters/gcp.yaml")
CLOUDS = ("cluster.yaml", "clusters/gcp.yaml")
KUBERAY = ROOT / "clusters" / "kuberay.yaml"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def manifests() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(KUBERAY.read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("name", RAY_FILES)
def test_rays_own_schema_accepts_it_and_refuses_a_typo(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(name)))
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config({**load(name), "max_wrokers": 2}))


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_and_start_at_none_and_the_head_runs_no_trials(name: str) -> None:
    config = load(name)
    worker, head = (config["available_node_types"][kind] for kind in ("gpu_worker", "head"))
    assert worker["min_workers"] == 0 and worker["max_workers"] == config["max_workers"] > 0
    assert "spot" in json.dumps(worker["node_config"]).lower() and "spot" not in json.dumps(head).lower()
    assert head["resources"] == {"CPU": 0}
    assert config["idle_timeout_minutes"] > 0 and config["provider"]["cache_stopped_nodes"] is False


def test_a_placeholder_is_in_a_line_that_says_change() -> None:
    for name in (*RAY_FILES, "clusters/kuberay.yaml", "clusters/firewall.nft"):
        for line in (ROOT / name).read_text().splitlines():
            if re.search(r"REPLACE-ME|REGISTRY|10\.0\.0\.\d|US\$", line) and not line.lstrip().startswith("#"):
                assert "CHANGE" in line, f"{name}: {line}"


@pytest.mark.parametrize("name", RAY_FILES)
def test_every_shell_has_the_token_mode_and_the_storage_before_ray_starts(name: str) -> None:
    config = load(name)
    (environment,) = [c for c in config["setup_commands"] if c.startswith("printf")]
    assert "RAY_AUTH_MODE=token" in environment and "STUDY_STORAGE=/" in environment
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    (head,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize("name", [*RAY_FILES, "clusters/kuberay.yaml"])
def test_machines_only(name: str) -> None:
    for word in ("reg_weight", "lr:", "epochs", "trials:"):
        assert word not in (ROOT / name).read_text()


def test_the_rayjob_is_one_and_a_typo_is_refused() -> None:
    import jsonschema

    schema = json.loads((Path(__file__).parent / "kuberay_schema.json").read_text())
    job = manifests()["RayJob"]
    jsonschema.validate(job, schema)
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, schema)


def pods() -> list[dict[str, Any]]:
    cluster = manifests()["RayJob"]["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_kubernetes_takes_the_pods_the_claim_and_the_policy() -> None:
    import kubernetes_validate

    objects = [manifests()["PersistentVolumeClaim"], manifests()["NetworkPolicy"]]
    objects += [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": p["spec"]} for p in pods()]
    for thing in objects:
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
    wrong = copy.deepcopy(objects[-1])
    wrong["spec"]["tolerance"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="tolerance"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_the_pods_mount_the_claim_that_is_there_and_are_under_the_policy() -> None:
    selected = manifests()["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for pod in pods():
        assert pod["metadata"]["labels"] == selected
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "emptyDir" not in v]
        assert claims == [manifests()["PersistentVolumeClaim"]["metadata"]["name"]]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    cluster = manifests()["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    environment = {e["name"]: e["value"] for e in pods()[0]["spec"]["containers"][0]["env"]}
    promised = json.loads(environment["STUDY_CLUSTER_RESOURCES"])
    (container,) = pods()[1]["spec"]["containers"]
    assert promised["GPU"] == workers["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert promised["CPU"] == workers["maxReplicas"] * int(container["resources"]["limits"]["cpu"])


def test_the_manifest_names_the_ray_that_is_pinned() -> None:
    (pin,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert manifests()["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == pin


def test_every_file_of_the_container_is_there() -> None:
    copies = re.findall(r"^COPY (?!--)(.*) \S+$", (ROOT / "clusters" / "Containerfile").read_text(), re.MULTILINE)
    assert copies
    for name in " ".join(copies).split():
        assert (ROOT / name).exists(), name
