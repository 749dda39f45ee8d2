"""How many workers each group of steps of a phase gets, and on which machines."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from labelmill.pipelines.engine.resources import Node, Resources

BASE_GB = 1.0
"""Host memory of a worker besides its models: libraries, cached images, one shard's columns."""

CUDA_GB = 2.0
"""Host memory that CUDA's libraries take of a worker on a GPU, about; not measured here."""

MEMORY_SHARE = 0.8
"""How much of the host's memory the workers may plan with; the rest is Ray's object store and the system's."""

CONTEXT_GB = 0.5
"""GPU memory of a process besides its models: CUDA's own."""

FEEDING_CPUS = 2
"""CPUs that each GPU worker should have at least, to decode and prepare ahead of the model."""

MOST_CPUS = 8
"""CPUs of one GPU worker at most: its threads share one interpreter."""

ENOUGH = 0.85
"""The part of a node's CPUs from which on more workers on a GPU count for more than CPUs that are left over."""

MOST_PER_GPU = 8
"""Workers on one GPU at most: they take turns on it, and there is one to feed it while another computes."""


@dataclass(frozen=True)
class Group:
    """Consecutive steps that the same workers do.

    Attributes:
        positions: Of the steps.
        seconds: CPU seconds an image, about.
        memory_gb: Host memory of one worker.
        gpu_gb: GPU memory of one worker; None where it needs none.
        heavy: Whether it has a model on the CPU.
    """

    positions: tuple[int, ...]
    seconds: float
    memory_gb: float = BASE_GB
    gpu_gb: float | None = None
    heavy: bool = False


@dataclass(frozen=True)
class Pool:
    """Workers that each do the same consecutive steps.

    Attributes:
        positions: Of the steps.
        workers: How many.
        cpus, gpus, memory_gb: Of one worker. So many workers of a GPU's fraction fill each GPU alike.
        nodes: How many of them are on which node, by its id; empty where there is one machine.
    """

    positions: tuple[int, ...]
    workers: int
    cpus: float
    gpus: float = 0.0
    memory_gb: float = BASE_GB
    nodes: tuple[tuple[str, int], ...] = ()

    @property
    def threads(self) -> int:
        """Threads that prepare images. Beside a GPU they keep it fed; on a CPU a second one only contends for it."""
        return max(1, int(self.cpus) * (2 if self.gpus else 1))


@dataclass
class _Room:
    """What a node has left."""

    node: Node
    cpus: int = field(init=False)
    gpus: int = field(init=False)
    memory: float = field(init=False)

    def __post_init__(self) -> None:
        self.cpus, self.gpus = int(self.node.cpus), int(self.node.gpus)
        self.memory = self.node.memory_gb * MEMORY_SHARE

    def takes(self, memory: float) -> bool:
        """Whether one more worker of one CPU fits."""
        return self.cpus >= 1 and self.memory + 1e-9 >= memory

    def take(self, workers: int, cpus: int, memory: float) -> None:
        self.cpus -= workers * cpus
        if math.isfinite(self.memory):
            self.memory -= workers * memory


def spread(groups: Sequence[Group], resources: Resources, most: int) -> list[Pool] | None:
    """Workers of groups that are there at once.

    Every CPU group has one worker, where there is no GPU if that is possible. CPUs are shared by what the groups cost:
    those of a GPU group are spread over all GPUs alike, and the others get what is left, each by its cost.

    Args:
        groups: At most one of them on GPUs.
        resources: What there is.
        most: Upper bound of the workers of each group.

    Returns:
        One pool a group, in their order; None if they do not fit.
    """
    rooms = [_Room(node) for node in resources.machines]
    counts = [[0] * len(rooms) for _ in groups]
    total = sum(room.cpus for room in rooms)
    for group, count in zip(groups, counts, strict=True):
        if group.gpu_gb is None:
            where = [number for number, room in enumerate(rooms) if room.takes(group.memory_gb)]
            if not where:
                return None
            best = min(where, key=lambda number: (rooms[number].gpus > 0, -rooms[number].cpus))
            rooms[best].take(1, 1, group.memory_gb)
            count[best] = 1
    per_gpu, cpus = 1, 1
    for group, count in zip(groups, counts, strict=True):
        if group.gpu_gb is not None:
            share = group.seconds / sum(other.seconds for other in groups)
            per_gpu, cpus = _beside_a_gpu(group, rooms, resources, int(share * total), most)
            count[:] = _on_gpus(group, rooms, per_gpu, cpus, most)
            if not any(count):
                return None
    _fill(groups, counts, rooms, most)
    return [
        Pool(
            group.positions,
            sum(count),
            float(cpus if group.gpu_gb is not None else 1),
            math.floor(1e4 / per_gpu) / 1e4 if group.gpu_gb is not None else 0.0,
            group.memory_gb,
            tuple((node.id, here) for node, here in zip(resources.nodes, count, strict=True) if here and node.id)
            if len(resources.nodes) > 1
            else (),
        )
        for group, count in zip(groups, counts, strict=True)
    ]


def _beside_a_gpu(
    group: Group, rooms: Sequence[_Room], resources: Resources, allowed: int, most: int
) -> tuple[int, int]:
    """Workers on each GPU, and CPUs of each of them; the node that has the least for its GPUs decides for all."""
    with_gpus = [room for room in rooms if room.gpus]
    gpus = sum(room.gpus for room in with_gpus)
    if not gpus:
        return 1, 1
    cpus = max(1, min(allowed // gpus, *(room.cpus // room.gpus for room in with_gpus)))
    hosts = min(room.memory / room.gpus / group.memory_gb for room in with_gpus)
    models = resources.gpu_memory_gb / ((group.gpu_gb or 0.0) + CONTEXT_GB)
    bound = int(max(1, min(models, MOST_PER_GPU, cpus // FEEDING_CPUS, hosts, most // gpus)))
    shares = [(workers, max(1, min(MOST_CPUS, cpus // workers))) for workers in range(1, bound + 1)]
    return max(shares, key=lambda share: (min(share[0] * share[1], ENOUGH * cpus), share[0]))


def _on_gpus(group: Group, rooms: Sequence[_Room], per_gpu: int, cpus: int, most: int) -> list[int]:
    """Workers on each node, as many on each GPU as on every other as far as it goes; takes them from the rooms."""
    counts = [0] * len(rooms)
    heap = [(0.0, number) for number, room in enumerate(rooms) if room.gpus]
    while heap and sum(counts) < most:
        _, number = heapq.heappop(heap)
        room = rooms[number]
        if room.cpus < cpus or not room.takes(group.memory_gb) or counts[number] >= per_gpu * room.gpus:
            continue
        room.take(1, cpus, group.memory_gb)
        counts[number] += 1
        heapq.heappush(heap, (counts[number] / room.gpus, number))
    return counts


def _fill(groups: Sequence[Group], counts: list[list[int]], rooms: Sequence[_Room], most: int) -> None:
    """Give the CPUs that are left to the CPU groups, always to the one that has most to do for each of its workers."""
    waiting = [(-group.seconds, number, 1) for number, group in enumerate(groups) if group.gpu_gb is None and most > 1]
    heapq.heapify(waiting)
    free = [(-room.cpus, number) for number, room in enumerate(rooms) if room.cpus >= 1]
    heapq.heapify(free)
    while waiting and free:
        _, index, workers = heapq.heappop(waiting)
        group = groups[index]
        passed = []
        while free and not rooms[free[0][1]].takes(group.memory_gb):
            passed.append(heapq.heappop(free))
        if free:
            _, number = heapq.heappop(free)
            rooms[number].take(1, 1, group.memory_gb)
            counts[index][number] += 1
            if rooms[number].cpus >= 1:
                passed.append((-rooms[number].cpus, number))
            if workers + 1 < most:
                heapq.heappush(waiting, (-group.seconds / (workers + 1), index, workers + 1))
        for room in passed:
            heapq.heappush(free, room)
