"""What a cluster has for a run, read from what Ray tells of its nodes."""

from __future__ import annotations

from typing import Any

import pytest

from labelmill.operators.base import Needs
from labelmill.pipelines.engine import ray_resources
from labelmill.pipelines.engine.resources import Node
from labelmill.pipelines.errors import UserError
from tests.pipelines.engine.test_placement import cpu, gpu, pipeline

GB = 1e9
TWO, THREE = "2" * 56, "3" * 56


def node(name: str, alive: bool = True, **has: float) -> dict[str, Any]:
    return {"NodeID": name * 56, "Alive": alive, "NodeManagerAddress": f"10.0.0.{name}", "Resources": has}


HEAD = node("1", memory=8 * GB)
LARGE = node("2", CPU=16, GPU=2, memory=64 * GB, **{"accelerator_type:H100": 1})
SMALL = node("3", CPU=8, GPU=1, memory=32 * GB, **{"accelerator_type:L4": 1})
LOST = node("4", alive=False, CPU=64, memory=64 * GB)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """A cluster as Ray tells of it; gives what is free, which a test may change."""
    import ray

    free = {each["NodeID"]: dict(each["Resources"]) for each in (HEAD, LARGE, SMALL)}

    class Context:
        get_node_id = staticmethod(lambda: "1")
        get_job_id = staticmethod(lambda: "01")

    monkeypatch.setattr(ray, "nodes", lambda: [HEAD, LARGE, SMALL, LOST])
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr("ray._private.state.available_resources_per_node", lambda: free)
    ray_resources._nodes.cache_clear()
    ray_resources._smallest_gpu_gb.cache_clear()
    return free


def answers(monkeypatch: pytest.MonkeyPatch, told: dict[str, float | None]) -> list[str]:
    """Let nodes tell of their GPUs, None for one that does not answer; gives which were asked."""
    import ray

    asked: list[str] = []

    def remote(scheduling_strategy: Any, **_: Any) -> Any:
        def decorate(_: Any) -> Any:
            class Remote:
                @staticmethod
                def remote() -> str:
                    asked.append(scheduling_strategy.node_id)
                    return asked[-1]

            return Remote

        return decorate

    def wait(waiting: list[str], **_: Any) -> Any:
        return [one for one in waiting if told[one] is not None], [one for one in waiting if told[one] is None]

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda one: told[one])
    return asked


@pytest.mark.usefixtures("nodes")
def test_nodes_without_cpus_for_work_and_lost_ones_are_left_out() -> None:
    found = ray_resources.cluster_resources(pipeline(cpu()))
    assert found.nodes == (Node(16, 2, 64, TWO), Node(8, 1, 32, THREE))
    assert (found.cpus, found.gpus, found.gpu_memory_gb, found.memory_gb) == (24, 3, 0, 96)


def test_what_others_hold_is_not_planned_with(nodes: dict[str, dict[str, float]]) -> None:
    """Ray leaves out what is held entirely. Later the run's own workers hold some: the first look counts."""
    nodes[TWO] = {"CPU": 3.0, "memory": 10 * GB}
    nodes[THREE] = {"GPU": 1.0, "memory": 32 * GB}
    assert ray_resources.cluster_resources(pipeline(cpu())).nodes == (Node(3, 0, 10, TWO),)
    nodes[TWO] = {}
    assert ray_resources.cluster_resources(pipeline(cpu())).nodes == (Node(3, 0, 10, TWO),)


@pytest.mark.usefixtures("nodes")
def test_every_kind_of_gpu_is_asked_once_and_the_smallest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, {TWO: 85.0, THREE: 24.0})
    for _ in range(2):
        assert ray_resources.cluster_resources(pipeline(gpu(2.0))).gpu_memory_gb == 24.0
    assert asked == [TWO, THREE]
    assert ray_resources.cluster_resources(pipeline(gpu(2.0)), gpu_memory_gb=20.0).gpu_memory_gb == 20.0
    assert asked == [TWO, THREE], "what is stated is not asked"


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({TWO: 85.0, THREE: 0.0}, r"node 10\.0\.0\.3 has GPUs but torch finds none there.*state it with --gpu-memory"),
        ({TWO: 85.0, THREE: None}, r"node 10\.0\.0\.3 did not tell the memory of its GPUs within 5 min; state it with"),
    ],
)
def test_a_node_that_cannot_tell(monkeypatch: pytest.MonkeyPatch, told: dict[str, float | None], message: str) -> None:
    answers(monkeypatch, told)
    with pytest.raises(UserError, match=message):
        ray_resources.cluster_resources(pipeline(gpu(2.0)))


@pytest.mark.usefixtures("nodes")
def test_nobody_asks_where_no_step_wants_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, {})
    assert pipeline(cpu())[0].operator.needs() == Needs()
    ray_resources.cluster_resources(pipeline(cpu()))
    assert asked == []
