"""The cluster files: what Ray's launcher, Ray's autoscaler and KubeRay make of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.config import load_config
from tests.manifests import problems

ROOT = Path(__file__).parents[1]
KUBERAY = ROOT / "configs" / "kuberay"
RAY_VERSION = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
IMAGE = f"rayproject/ray:{RAY_VERSION}-py311-gpu"


def cluster_file() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def ray_job() -> dict[str, Any]:
    (job,) = documents("rayjob.yaml")
    return job


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping inside a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from nodes(one)


def launched(configuration: Any, demand: dict[str, float], failed: frozenset[str]) -> set[str]:
    """Return which node types Ray's autoscaler starts for a demand, some having just failed."""
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    (request,) = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)])
    assert isinstance(request, ResourceRequestByCount)
    reply = ResourceDemandScheduler(_NoEvents()).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=configuration.get_node_type_configs(),
            max_num_nodes=configuration.get_max_num_nodes(),
            resource_requests=[request],
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    assert not reply.infeasible_resource_requests
    return {launch.instance_type for launch in reply.to_launch}


class _NoEvents:
    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


# --- ray_cluster.yaml


def test_ray_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster_file()))
    wrong = cluster_file()
    wrong["idle_timeout_minuts"] = wrong.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(wrong))


@pytest.fixture(scope="module")
def on_aws(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the cluster file as `ray up` makes it out against (a stand-in for) AWS."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where it puts its SSH key
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("iam").create_instance_profile(InstanceProfileName="anisoalign")
        prepared = AWSNodeProvider.fillout_available_node_types_resources(
            prepare_config(cluster_file())
        )
        configuration = AWSNodeProvider.bootstrap_config(prepared)
    del configuration["head_node"]  # of earlier releases of Ray, and empty
    return configuration


def test_ray_up_makes_out_every_machine(on_aws: dict[str, Any]):
    types = on_aws["available_node_types"]
    resources = {name: node["resources"] for name, node in types.items()}
    assert resources["head"] == {"CPU": 0}
    assert {name for name in types if resources[name].get("GPU")} == {"gpu_spot", "gpu_on_demand"}
    for name, node in types.items():
        machine = node["node_config"]
        # Left to Ray, the image would be years old, and workers would have no rights at all.
        assert machine["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/")
        assert machine["IamInstanceProfile"] == {"Name": "anisoalign"}
        assert machine["SubnetIds"]
        assert ("InstanceMarketOptions" in machine) == name.endswith("_spot")


@pytest.mark.parametrize(("kind", "demand"), [("gpu", {"GPU": 1, "CPU": 1}), ("cpu", {"CPU": 1})])
def test_spot_comes_first_and_on_demand_is_the_fallback(
    on_aws: dict[str, Any], kind: str, demand: dict[str, float]
):
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    configuration = AutoscalingConfig(on_aws, skip_content_hash=True)
    assert launched(configuration, demand, frozenset()) == {f"{kind}_spot"}
    assert launched(configuration, demand, frozenset({f"{kind}_spot"})) == {f"{kind}_on_demand"}


def test_the_cluster_file_installs_this_repository():
    cluster = cluster_file()
    assert cluster["docker"]["image"] == IMAGE
    assert cluster["file_mounts"]["~/anisoalign"] == "."
    for command in cluster["setup_commands"]:
        (constraints,) = re.findall(r"-c ~/anisoalign/(\S+)", command)
        assert (ROOT / constraints).is_file()
    assert cluster["setup_commands"][-1].endswith("-e ~/anisoalign")


@pytest.mark.parametrize("name", ["cluster.yaml", "nightly.yaml"])
def test_the_clusters_can_grow_to_what_a_configuration_asks_for(name: str):
    config = load_config(ROOT / "configs" / name)
    types = cluster_file()["available_node_types"]
    assert config.ray.encode_actors != "auto"  # a cluster without workers shows no GPU to count
    assert config.ray.gpus_per_actor == 1
    for name in ("gpu_spot", "gpu_on_demand"):
        assert types[name]["max_workers"] >= config.ray.encode_actors
    group, _ = ray_job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["maxReplicas"] >= config.ray.encode_actors


# --- configs/kuberay


@pytest.mark.parametrize("name", ["rayjob.yaml", "nightly.yaml"])
def test_manifests_have_only_fields_that_exist(name: str):
    assert documents(name)
    for manifest in documents(name):
        assert list(problems(manifest["kind"], manifest, manifest["kind"])) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "found"),
    [
        ("rayjob.yaml", "backoffLimit: 2", "backOffLimit: 2", "spec.backOffLimit: unknown field"),
        ("rayjob.yaml", "backoffLimit: 2", 'backoffLimit: "2"', "'2' is no integer"),
        ("rayjob.yaml", "K8sJobMode", "K8SJobMode", "'K8SJobMode' is not one of K8sJobMode"),
        ("rayjob.yaml", 'num-cpus: "0"', "num-cpus: 0", "0 is no string"),
        ("rayjob.yaml", "maxReplicas: 8", "maxreplicas: 8", "maxReplicas: missing"),
        ("rayjob.yaml", "memory: 32Gi", "memory: 32gb", "'32gb' is no quantity"),
        ("rayjob.yaml", "weight: 100", "wait: 100", "wait: unknown field"),
        ("nightly.yaml", "timeZone", "timezone", "spec.timezone: unknown field"),
        ("nightly.yaml", "verbs:", "verb:", "rules[0].verb: unknown field"),
        ("nightly.yaml", "mountPath", "path", "volumeMounts[0].mountPath: missing"),
    ],
)
def test_a_wrong_field_is_found(name: str, right: str, wrong: str, found: str):
    text = (KUBERAY / name).read_text()
    assert right in text
    manifests = yaml.safe_load_all(text.replace(right, wrong))
    said = [line for one in manifests for line in problems(one["kind"], one, one["kind"])]
    assert found in "\n".join(said)


@pytest.fixture
def kuberay_configuration() -> dict[str, Any]:
    """Return what the autoscaler beside the head reads out of the RayJob's cluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    metadata = {"name": "night", "namespace": "anisoalign"}
    specification = copy.deepcopy(ray_job()["spec"]["rayClusterSpec"])
    return _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": specification})


def test_the_autoscaler_reads_the_ray_job(kuberay_configuration: dict[str, Any]):
    types = kuberay_configuration["available_node_types"]
    head = types.pop("headgroup")
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["cpu"]["resources"]
    for group in types.values():
        assert group["min_workers"] == 0 < group["max_workers"]
    assert kuberay_configuration["idle_timeout_minutes"] == 5


def test_the_ray_job_runs_the_night_and_cleans_up():
    job = ray_job()["spec"]
    command, program, config = job["entrypoint"].split()
    assert command == "python"
    assert (ROOT / program).is_file()
    load_config(ROOT / config)
    assert job["shutdownAfterJobFinishes"] is True
    assert job["rayClusterSpec"]["rayVersion"] == RAY_VERSION
    # Every pod runs the image that holds the project, and reads its credentials from outside.
    containers = [node for node in nodes(job) if "image" in node]
    assert len(containers) == 3
    assert len({container["image"] for container in containers}) == 1
    assert not any("env" in container for container in containers)
    assert all("secretRef" in source for node in containers for source in node["envFrom"])


def test_workers_go_to_spot_machines_first_and_the_head_never():
    cluster = ray_job()["spec"]["rayClusterSpec"]

    def affinity(group: dict[str, Any]) -> dict[str, Any]:
        return group["template"]["spec"]["affinity"]["nodeAffinity"]

    (term,) = affinity(cluster["headGroupSpec"])["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    avoided = {(rule["key"], *rule["values"]) for rule in term["matchExpressions"]}
    assert {rule["operator"] for rule in term["matchExpressions"]} == {"NotIn"}
    for group in cluster["workerGroupSpecs"]:
        # Preferred alone: where no spot machine can be had, any other will do.
        ((kind, terms),) = affinity(group).items()
        assert kind == "preferredDuringSchedulingIgnoredDuringExecution"
        rules = [rule for one in terms for rule in one["preference"]["matchExpressions"]]
        assert {(rule["key"], *rule["values"]) for rule in rules} == avoided
        assert {rule["operator"] for rule in rules} == {"In"}


def test_the_schedule_starts_the_ray_job_and_may():
    kinds = {(one["kind"], one["metadata"]["name"]): one for one in documents("nightly.yaml")}
    schedule = kinds["CronJob", "anisoalign-nightly"]["spec"]
    assert schedule["concurrencyPolicy"] == "Forbid"
    pod = schedule["jobTemplate"]["spec"]["template"]["spec"]
    (kustomization,) = documents("kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    (volume,) = pod["volumes"]
    assert volume["configMap"]["name"] == generated["name"]
    assert kustomization["generatorOptions"] == {"disableNameSuffixHash": True}
    assert all((KUBERAY / name).is_file() for name in kustomization["resources"])
    commands = [one["args"] for one in (*pod["initContainers"], *pod["containers"])]
    assert [arguments[0] for arguments in commands] == ["delete", "create"]
    for arguments in commands:
        (path,) = [one for one in arguments if one.startswith("--filename=")]
        folder, _, name = path.removeprefix("--filename=").rpartition("/")
        assert name in generated["files"]
        assert (KUBERAY / name).is_file()
        assert pod["initContainers"][0]["volumeMounts"] == [
            {"name": volume["name"], "mountPath": folder}
        ]
    (binding,) = [one for (kind, _), one in kinds.items() if kind == "RoleBinding"]
    role = kinds["Role", binding["roleRef"]["name"]]
    assert pod["serviceAccountName"] in {subject["name"] for subject in binding["subjects"]}
    assert role["rules"] == [
        {
            "apiGroups": [ray_job()["apiVersion"].split("/")[0]],
            "resources": ["rayjobs"],
            "verbs": ["create", "delete", "get", "list", "watch"],
        }
    ]
    job = ray_job()
    assert ("ServiceAccount", "anisoalign") in kinds
    namespaces = {one["metadata"].get("namespace") for one in [job, *kinds.values()]}
    assert namespaces == {"anisoalign", None}  # None: the namespace itself
    # One night is over before the next begins, late starts included.
    longest = schedule["startingDeadlineSeconds"] + job["spec"]["activeDeadlineSeconds"]
    assert longest <= 24 * 3600


def test_the_image_holds_what_the_ray_job_runs():
    lines = (KUBERAY / "Dockerfile").read_text().splitlines()
    assert f"FROM {IMAGE}" in lines
    (folder,) = [line.split()[1] for line in lines if line.startswith("WORKDIR ")]
    assert folder.startswith("/")
    copied = {
        source
        for line in lines
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
        if not source.startswith("--")
    }
    assert {"pipeline", "jobs", "configs", "constraints.txt", "pyproject.toml"} <= copied
    assert all((ROOT / source).exists() for source in copied)
