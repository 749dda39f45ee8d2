"""Steps that want a GPU, on clusters of fake ones: which GPUs are used, and by how many workers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run import Options, run
from tests.drawing import folder_of_images
from tests.pipelines.test_cluster import PATIENCE, add_worker

GPU_GB = 80.0
IMAGES, SHARD = 48, 1


def nodes(count: int, **each: Any) -> Iterator[Any]:
    """A cluster on this machine of so many nodes beside a head that only leads."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0, "num_gpus": 0})
    try:
        for _ in range(count):
            add_worker(made, {**small, "memory": 64 * 2**30, **each})
        made.wait_for_nodes(timeout=PATIENCE)
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def one_node() -> Iterator[Any]:
    yield from nodes(1, num_cpus=16, num_gpus=4)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    yield from nodes(2, num_cpus=4, num_gpus=2)


def go(cluster: Any, *steps: Any, output: str = "run", **options: Any) -> list[dict[str, Any]]:
    """Run steps over the images, one a shard; what each worker noted of itself, once for each image."""
    folder_of_images(Path("data"), IMAGES)
    log = Path("seen.log").absolute()
    told = [{name: {"log": str(log), **params}, "as": f"s{number}"} for number, (name, params) in enumerate(steps)]
    document = {
        "name": "toy", "source": {"folder": str(Path("data").absolute())}, "output": str(Path(output).absolute()),
        "shard_size": SHARD, "steps": ["inspect", *told],
    }  # fmt: skip
    Path("p.yaml").write_text(yaml.safe_dump(document))
    how = Options(address=cluster.address, **{"gpu_memory_gb": GPU_GB, **options})
    summary = run(load_pipeline("p.yaml"), how, TerminalReporter())
    assert summary["outcome"]["kept"] == IMAGES
    return [json.loads(line) for line in log.read_text().splitlines()]


def workers_of(seen: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """How many processes each GPU had, by its node and number."""
    return Counter((node, gpu) for node, gpu, _ in {(each["node"], each["gpus"], each["pid"]) for each in seen})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_model_is_on_every_gpu_alike(one_node: Any) -> None:
    """16 CPUs and 4 GPUs are two workers a GPU with two CPUs each; they do `inspect` too, whose images they have."""
    seen = go(one_node, ("tests.toys:OnGpu", {"memory_gb": 2.0, "sleep": 0.4}))
    used = workers_of(seen)
    assert sorted(gpu for _, gpu in used) == ["0", "1", "2", "3"]
    assert set(used.values()) == {2}
    assert len(seen) == IMAGES, "each image once"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_models_share_workers_on_all_nodes_go_in_phases_and_a_model_on_the_cpu_sees_no_gpu(two_nodes: Any) -> None:
    seen = go(
        two_nodes,
        ("tests.toys:OnGpu", {"memory_gb": 2.0, "sleep": 0.2}),
        ("tests.toys:OnGpu", {"memory_gb": 3.0}),
        ("tests.toys:OnGpu", {"gpu": False, "memory_gb": 0.5}),
        ("tests.toys:OnGpu", {"memory_gb": 78.0}),
    )
    by_step = {step: [each for each in seen if each["step"] == step] for step in (2.0, 3.0, 0.5, 78.0)}
    assert all(len(by_step[step]) == IMAGES for step in by_step)
    for step in (2.0, 3.0, 78.0):
        used = workers_of(by_step[step])
        assert len(used) == 4 and set(used.values()) == {1}, "two GPUs on each of two nodes"
        assert len({node for node, _ in used}) == 2
    processes = {step: {(each["node"], each["pid"]) for each in by_step[step]} for step in by_step}
    assert processes[2.0] == processes[3.0], "the same workers do both"
    assert not processes[2.0] & processes[78.0], "which leave the GPUs before the next model comes"
    assert {each["gpus"] for each in by_step[0.5]} == {""}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_gpu_that_cannot_be_asked_is_a_sentence(two_nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"torch finds none there.*state it with --gpu-memory or LABELMILL_GPU_MEMORY"):
        go(two_nodes, ("tests.toys:OnGpu", {"memory_gb": 2.0}), gpu_memory_gb=None)
    monkeypatch.setenv("LABELMILL_GPU_MEMORY_GB", "24")
    with pytest.raises(UserError, match="needs a GPU with 30 GB but the smallest here has 24 GB"):
        go(two_nodes, ("tests.toys:OnGpu", {"memory_gb": 30.0}), gpu_memory_gb=None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_dies_and_the_workers_of_the_others_do_its_shards(two_nodes: Any) -> None:
    """Every GPU is taken, so what worked on the lost node can start again nowhere until others have nothing to do."""
    log = Path("seen.log").absolute()

    def die() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 10:
            time.sleep(0.05)
        two_nodes.remove_node(next(iter(two_nodes.worker_nodes)), allow_graceful=False)

    killer = threading.Thread(target=die, daemon=True)
    killer.start()
    seen = go(two_nodes, ("tests.toys:OnGpu", {"memory_gb": 2.0, "sleep": 0.5}))
    killer.join()
    counts = Counter(each["node"] for each in seen)
    assert len(counts) == 2 and sum(counts.values()) <= IMAGES + 4, "what was under way is done again, and no more"
