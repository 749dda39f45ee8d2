"""conf/cluster against the schemas of those who read it.

Ray's own schema of a launcher file comes with Ray. KubeRay's of a RayJob comes with KubeRay's operator only; the models
here are the part of it that the manifest uses (ray.io/v1, KubeRay 1.6), written by hand, and refuse any other field.
"""

from __future__ import annotations

import importlib.util
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labelmill.pipelines.config.cards import card_files
from tests.pipelines.command_lines import check_command, words_of

CHECKOUT = Path(__file__).resolve().parents[2]
CLUSTER = CHECKOUT / "conf/cluster"

DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: DnsName


class EnvVar(Strict):
    name: str
    value: str


class SecretRef(Strict):
    name: DnsName
    optional: bool = False


class EnvFrom(Strict):
    secretRef: SecretRef


class VolumeMount(Strict):
    name: DnsName
    mountPath: str
    readOnly: bool = False


class Port(Strict):
    name: DnsName
    containerPort: Annotated[int, Field(ge=1, le=65535)]


class Requirements(Strict):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Container(Strict):
    name: DnsName
    image: str
    command: list[str] | None = None
    ports: list[Port] = []
    env: list[EnvVar] = []
    envFrom: list[EnvFrom] = []
    resources: Requirements = Requirements()
    volumeMounts: list[VolumeMount] = []


class Claim(Strict):
    claimName: DnsName


class ConfigMap(Strict):
    name: DnsName


class Volume(Strict):
    name: DnsName
    persistentVolumeClaim: Claim | None = None
    configMap: ConfigMap | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    initContainers: list[Container] = []
    tolerations: list[Toleration] = []
    volumes: list[Volume] = []


class PodTemplate(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: DnsName
    replicas: Annotated[int, Field(ge=0)]
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=0)]
    rayStartParams: dict[str, str]
    template: PodTemplate


class RayClusterSpec(Strict):
    rayVersion: str
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(Strict):
    entrypoint: str
    backoffLimit: Annotated[int, Field(ge=0)]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    rayClusterSpec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))


@pytest.fixture
def job() -> RayJob:
    return RayJob.model_validate(documents()[0])


def pods(job: RayJob) -> list[PodSpec]:
    cluster = job.spec.rayClusterSpec
    return [cluster.headGroupSpec.template.spec, *(group.template.spec for group in cluster.workerGroupSpecs)]


def test_the_manifest_is_a_rayjob_whose_head_only_leads(job: RayJob) -> None:
    cluster = job.spec.rayClusterSpec
    assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"
    assert cluster.rayVersion == version("ray")
    head, *workers = pods(job)
    assert all("nvidia.com/gpu" not in container.resources.limits for container in head.containers)
    assert [worker.containers[0].resources.limits["nvidia.com/gpu"] for worker in workers] == ["1"]
    for group in cluster.workerGroupSpecs:
        assert group.minReplicas == group.replicas == group.maxReplicas, "a run is placed on what there is at its start"


def test_what_pods_mount_is_there(job: RayJob) -> None:
    claims = {document["metadata"]["name"] for document in documents() if document["kind"] == "PersistentVolumeClaim"}
    for pod in pods(job):
        volumes = {volume.name for volume in pod.volumes}
        for container in [*pod.containers, *pod.initContainers]:
            assert {mount.name for mount in container.volumeMounts} <= volumes
        assert {
            volume.persistentVolumeClaim.claimName for volume in pod.volumes if volume.persistentVolumeClaim
        } <= claims
        cache = {env.value for container in pod.containers for env in container.env if env.name == "XDG_CACHE_HOME"}
        assert cache <= {mount.mountPath for container in pod.containers for mount in container.volumeMounts}


def test_the_entrypoint_reads_a_file_that_the_head_mounts_and_parses(job: RayJob) -> None:
    words = job.spec.entrypoint.split()
    mounts = pods(job)[0].containers[0].volumeMounts
    assert any(words[-1].startswith(mount.mountPath) for mount in mounts)
    check_command(job.spec.entrypoint)
    pulls = [container.command for container in pods(job)[0].initContainers]
    assert pulls
    for words in pulls:
        check_pull(" ".join(words or []))


def test_mistakes_in_a_manifest_are_found(job: RayJob) -> None:
    for path, value in ((("spec", "entrypont"), "x"), (("spec", "backoffLimit"), "2"), (("kind",), "RayJobs")):
        bad = documents()[0]
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValidationError):
            RayJob.model_validate(bad)


def check_pull(line: str) -> None:
    """A line that pulls model cards: it parses, and the cards are there."""
    assert check_command(line) == ["models", "pull"]
    assert set(words_of(line)[3:]) <= card_files().keys()


def ray_schema() -> dict[str, Any]:
    """The schema of a launcher file that comes with Ray, found without importing Ray."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    found: dict[str, Any] = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    return found


def test_the_launcher_file_fits_rays_schema() -> None:
    launcher = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    jsonschema.validate(launcher, ray_schema())
    types = launcher["available_node_types"]
    head = types.pop(launcher["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert all(node["resources"]["GPU"] and node["min_workers"] == node["max_workers"] for node in types.values())
    assert launcher["max_workers"] == sum(node["max_workers"] for node in types.values())
    assert f":{version('ray')}-py3" in launcher["docker"]["image"]
    for command in launcher["setup_commands"]:
        if command.startswith("labelmill"):
            check_pull(command)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**launcher, "head_nodetype": "x"}, ray_schema())


def test_the_image_holds_what_a_run_needs() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    assert f"FROM rayproject/ray:{version('ray')}-py311-gpu" in lines
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert {"labelmill", "operators", "pipelines", "conf", "pyproject.toml"} <= set(copied)
    assert all((CHECKOUT / name).exists() for name in copied)


def test_the_readme_names_files_that_are_here_and_commands_that_parse() -> None:
    text = (CLUSTER / "README.md").read_text()
    for name in re.findall(r"\]\((\S+?)\)", text):
        assert (CLUSTER / name).exists(), name
    commands = re.findall(r"python -m labelmill (.*)$", text, re.MULTILINE)
    assert len(commands) >= 2
    for command in [*commands, "run street.yaml --address auto"]:
        check_command(f"labelmill {command}")
