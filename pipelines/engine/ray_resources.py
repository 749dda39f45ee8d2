"""What a Ray cluster has for a run, node by node; asks a GPU for its memory where nobody has stated it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from labelmill.pipelines.engine.resources import GPU_MEMORY, Node, Resources, smallest_gpu_gb, stated_gpu_memory
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.steps import Step

ASKING_SECONDS = 300.0
"""How long a node may take to tell of its GPUs: torch is imported there."""


def cluster_resources(steps: Sequence[Step], gpu_memory_gb: float | None = None) -> Resources:
    """What the connected cluster has that nobody else had taken when the run began.

    Args:
        steps: A GPU is asked for its memory only when some of them could use one.
        gpu_memory_gb: What was stated; see `stated_gpu_memory`. With it, no driver is touched.

    Raises:
        UserError: A node says that it has GPUs, but none is found there.
    """
    import ray

    context = ray.get_runtime_context()
    connection = context.get_node_id(), context.get_job_id()
    nodes = _nodes(*connection)
    memory = 0.0
    if any(node.gpus >= 1 for node in nodes) and any(step.operator.needs().gpu for step in steps):
        memory = stated_gpu_memory(gpu_memory_gb) or _smallest_gpu_gb(*connection)
    return Resources.of(nodes, memory)


@lru_cache(maxsize=1)
def _nodes(node: str, job: str) -> tuple[Node, ...]:
    """The nodes as they are when a connection first asks: later its own workers may still hold some of it."""
    import ray

    free = _free()
    nodes = []
    for each in ray.nodes():
        has = free.get(each["NodeID"], each["Resources"]) if each["Alive"] else {}
        if has.get("CPU", 0) >= 1:
            nodes.append(Node(has["CPU"], has.get("GPU", 0.0), has.get("memory", 0.0) / 1e9, each["NodeID"]))
    return tuple(nodes)


def _free() -> dict[str, dict[str, float]]:
    """What nobody holds of each node, by its id; what is held entirely is not named. Empty where Ray does not tell."""
    import ray
    from ray._private.state import available_resources_per_node

    if ray.util.client.ray.is_connected():  # ray://…
        return {}
    return dict(available_resources_per_node())


@lru_cache(maxsize=1)
def _smallest_gpu_gb(node: str, job: str) -> float:
    """Asks one node of each kind: as many GPUs of the same type beside as many CPUs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kinds: dict[Any, dict[str, Any]] = {}
    for each in ray.nodes():
        has = each["Resources"]
        if each["Alive"] and has.get("GPU", 0) >= 1:
            types = sorted(name for name in has if name.startswith("accelerator_type:"))
            kinds[(*types, has["GPU"], has.get("CPU", 0))] = each
    asked = {}
    for each in kinds.values():
        there: Any = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
        # The process ends with the call: it has seen all GPUs, which none that comes after it may.
        ask = ray.remote(num_cpus=0, max_calls=1, scheduling_strategy=there)(_ask)
        asked[ask.remote()] = each["NodeManagerAddress"]
    state = f"state it with --gpu-memory or {GPU_MEMORY} (in GB)"
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=ASKING_SECONDS)
    if late:
        raise UserError(f"node {asked[late[0]]} did not tell the memory of its GPUs within 5 min; {state}")
    found = {asked[answer]: float(ray.get(answer)) for answer in ready}
    for address, memory in found.items():
        if not memory:
            raise UserError(
                f"Ray says that node {address} has GPUs but torch finds none there. If its driver is missing, install "
                f"it; if the memory cannot be asked, {state}"
            )
    return min(found.values())


def _ask() -> float:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return smallest_gpu_gb()
