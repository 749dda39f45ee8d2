"""What `labelmill plan --resources` prints: plans for machines from a laptop to a cluster, and words that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from labelmill.pipelines.cli import app
from labelmill.pipelines.engine.resources import Node, parse_resources, resources_here, stated_gpu_memory
from labelmill.pipelines.errors import UserError
from tests.drawing import folder_of_images

CHECKOUT = Path(__file__).resolve().parents[3]
LAPTOP = "cpus=8,gpus=1,gpu_memory=8,memory=16"
H200 = "cpus=16,gpus=1,gpu_memory=141,memory=128"
EIGHT = "cpus=128,gpus=8,gpu_memory=80,memory=1000"
CLUSTER = f"nodes=100,{EIGHT}"
CPUS = "nodes=4,cpus=64,memory=256"

MODELS = "embed, detect, select, segment"
WHOLE = "1 worker, all shards at once"
PLANS: dict[tuple[str, str], list[str]] = {
    ("embed", LAPTOP): ["2 workers, 4 CPUs and 1/2 GPU each: inspect, embed"],
    ("embed", H200): ["8 workers, 2 CPUs and 1/8 GPU each: inspect, embed"],
    ("embed", EIGHT): ["64 workers, 2 CPUs and 1/8 GPU each: inspect, embed"],
    ("embed", CLUSTER): ["6,400 workers, 2 CPUs and 1/8 GPU each: inspect, embed"],
    ("embed", CPUS): ["256 workers, 1 CPU each: inspect, embed"],
    ("autolabel", LAPTOP): [
        "8 workers, 1 CPU each: inspect, keep",
        f"{WHOLE}: deduplicate",
        "phase 1  2 workers, 4 CPUs and 1/2 GPU each: embed",
        "phase 2  1 worker, 8 CPUs and a GPU each: detect, select",
        "phase 3  2 workers, 4 CPUs and 1/2 GPU each: segment",
        f"{WHOLE}: split",
    ],
    ("autolabel", H200): [
        "16 workers, 1 CPU each: inspect, keep",
        f"{WHOLE}: deduplicate",
        f"8 workers, 2 CPUs and 1/8 GPU each: {MODELS}",
        f"{WHOLE}: split",
    ],
    ("autolabel", EIGHT): [
        "128 workers, 1 CPU each: inspect, keep",
        f"{WHOLE}: deduplicate",
        f"40 workers, 3 CPUs and 1/5 GPU each: {MODELS}",
        f"{WHOLE}: split",
    ],
    ("autolabel", CLUSTER): [
        "12,800 workers, 1 CPU each: inspect, keep",
        f"{WHOLE}: deduplicate",
        f"4,000 workers, 3 CPUs and 1/5 GPU each: {MODELS}",
        f"{WHOLE}: split",
    ],
    ("autolabel", CPUS): [
        "256 workers, 1 CPU each: inspect, keep",
        f"{WHOLE}: deduplicate",
        f"60 workers, 1 CPU each: {MODELS}",
        f"{WHOLE}: split",
    ],
    ("curate", LAPTOP): [
        "8 workers, 1 CPU each: inspect",
        f"{WHOLE}: odd_size",
        "8 workers, 1 CPU each: keep",
        f"{WHOLE}: deduplicate",
        f"{WHOLE}: split",
    ],
    ("curate", CLUSTER): [
        "12,800 workers, 1 CPU each: inspect",
        f"{WHOLE}: odd_size",
        "12,800 workers, 1 CPU each: keep",
        f"{WHOLE}: deduplicate",
        f"{WHOLE}: split",
    ],
}


def pipeline_file(name: str) -> str:
    folder_of_images(Path("data"), 3)
    if name == "embed":
        path = Path("embed.yaml")
        steps = ["inspect", {"embed": {"model": "clip-vit-b-32"}}]
        path.write_text(yaml.safe_dump({"name": "e", "source": {"folder": "data"}, "output": "run", "steps": steps}))
        return str(path)
    return str(CHECKOUT / "conf/pipelines" / f"{name}.yaml")


def plan(name: str, *flags: str) -> Any:
    ontology = ["--set", f"ontology={CHECKOUT / 'conf/ontologies/street.yaml'}"] if name == "autolabel" else []
    words = ["plan", pipeline_file(name), "--set", "source.folder=data", "--set", "output=run", *ontology, *flags]
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize(("name", "words"), PLANS)
def test_plans(name: str, words: str) -> None:
    found = plan(name, "--resources", words)
    assert found.exit_code == 0, found.output
    lines = [line.strip() for line in found.output.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("placement on"))
    placed = [line for line in lines[start + 1 :] if not line.startswith(("exports", "with 1 shard"))]
    assert placed == PLANS[name, words]


def test_the_plan_says_what_it_is_for_and_that_shards_are_few() -> None:
    told = plan("embed", "--resources", "nodes=100,cpus=128,gpus=8,gpu_memory=80").output
    assert "placement on 100 nodes (12,800 CPUs, 800 GPUs of 80 GB)" in told
    assert "with 1 shard to do a run starts no more workers than that" in told
    found = json.loads(plan("embed", "--resources", "cpus=16,gpus=1", "--gpu-memory", "141", "--json").stdout)
    assert found["resources"]["gpu_memory_gb"] == 141
    assert [stage["workers"] for stage in found["stages"]] == [8]


def test_kinds_of_machines() -> None:
    there = parse_resources("cpus=16; nodes=2, cpus=64, gpus=4, gpu_memory=24, memory=256", 80)
    assert [(node.cpus, node.gpus, node.memory_gb) for node in there.nodes[1:]] == [(64, 4, 256)] * 2
    assert there.nodes[0] == Node(16.0) and there.gpu_memory_gb == 24


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("cpu=128", r"unknown 'cpu', must be one of nodes, cpus, .*did you mean 'cpus'\?"),
        ("cpus=128,gpu_mem=80", r"unknown 'gpu_mem'.*did you mean 'gpu_memory'\?"),
        ("", "must be words with numbers, such as 'nodes=100.*', but has ''"),
        ("128 cpus", "must be words with numbers, such as .*, but has '128 cpus'"),
        ("cpus=many", "cpus must be the CPUs of one machine, a number from 1 but is 'many'"),
        ("cpus=nan", "cpus must be the CPUs of one machine, a number from 1 but is 'nan'"),
        ("cpus=0.5", "cpus must be the CPUs of one machine, a number from 1 but is '0.5'"),
        ("cpus=-4", "cpus must be .* but is '-4'"),
        ("cpus=4,nodes=0", "nodes must be a whole number of machines from 1 to 100,000 but is '0'"),
        ("cpus=4,nodes=2.5", "nodes must be a whole number of machines from 1 to 100,000 but is '2.5'"),
        ("cpus=4,nodes=1e9", "nodes must be a whole number of machines from 1 to 100,000 but is '1e9'"),
        ("cpus=4,gpus=1.5,gpu_memory=8", "gpus must be the GPUs of one machine, a whole number from 0 but is '1.5'"),
        ("cpus=4,gpus=1,gpu_memory=0", "gpu_memory must be the memory of one GPU in GB, a number above 0 but is '0'"),
        ("cpus=4,memory=80GB", "memory must be the memory of one machine in GB, a number above 0 but is '80GB'"),
        ("cpus=4,gpus=1", "gpus must come with gpu_memory"),
        ("cpus=4,gpu_memory=8", "gpu_memory must come with gpus"),
        ("nodes=4", "must say cpus, the CPUs of one machine"),
        ("cpus=4,cpus=8", "cpus must be said once"),
        ("cpus=4;", "must be words with numbers"),
    ],
)
def test_words_that_are_no_cluster(words: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_resources(words)


def test_a_model_that_no_gpu_there_holds_is_refused() -> None:
    found = plan("embed", "--resources", "cpus=8,gpus=1,gpu_memory=1")
    assert found.exit_code == 2
    assert "step 'embed' needs a GPU with 2 GB but the smallest here has 1 GB" in found.output


@pytest.mark.parametrize("flag", ["0", "-1", "inf", "nan", "much"])
def test_a_gpu_memory_that_is_none(flag: str) -> None:
    found = plan("embed", "--gpu-memory", flag)
    assert found.exit_code == 2 and "--gpu-memory" in found.output


def test_the_environment_states_a_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stated_gpu_memory() is None
    monkeypatch.setenv("LABELMILL_GPU_MEMORY_GB", "20")
    assert stated_gpu_memory() == 20 and stated_gpu_memory(10) == 10
    assert plan("embed", "--resources", "cpus=16,gpus=1").exit_code == 0
    for wrong in ("0", "a lot", "-3"):
        monkeypatch.setenv("LABELMILL_GPU_MEMORY_GB", wrong)
        with pytest.raises(UserError, match="LABELMILL_GPU_MEMORY_GB must be a GPU's memory in GB, such as 80 but is"):
            stated_gpu_memory()


def test_this_machine_is_read_without_ray() -> None:
    here = resources_here(workers=3)
    assert here.cpus == 3 and here.memory_gb > 0
    assert here.machines == (Node(3.0, here.gpus, here.memory_gb),)


@pytest.mark.parametrize(("visible", "gpus"), [("0,1", 2), ("MIG-5e0c", 1), ("", 0), ("-1", 0)])
def test_gpus_whose_memory_is_stated_are_counted_without_a_driver(
    monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert resources_here(4, gpu_memory_gb=10).gpus == gpus
    monkeypatch.setenv("LABELMILL_GPU_MEMORY_GB", "20")
    here = resources_here(4)
    assert (here.gpus, here.gpu_memory_gb) == (gpus, 20)
