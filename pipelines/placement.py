"""Which steps run where, side by side or one after the other: decided from what there is, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.steps import Step

BASE_GB = 1.0
"""Host memory of a worker besides its models: libraries, cached images, one shard's columns."""

MEMORY_SHARE = 0.8
"""How much of the host's memory the workers may plan with; the rest is Ray's object store and the system's."""

GPU_WORKER_CPUS = 2.0
"""CPUs beside each GPU worker, for decoding and preparing ahead of the model."""


@dataclass(frozen=True)
class Resources:
    """What there is to place workers on. GPU memory is that of the smallest GPU."""

    cpus: float
    gpus: float = 0.0
    gpu_memory_gb: float = 0.0
    memory_gb: float = math.inf


@dataclass(frozen=True)
class Pool:
    """Workers that each do the same consecutive steps.

    Attributes:
        positions: Of the steps.
        workers: How many.
        cpus, gpus: Of one worker.
    """

    positions: tuple[int, ...]
    workers: int
    cpus: float
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        """Threads that prepare images. Beside a GPU they keep it fed; on a CPU a second one only contends for it."""
        return max(1, int(self.cpus) * (2 if self.gpus else 1))


@dataclass(frozen=True)
class Phase:
    """Pools that work side by side, each shard passing from one to the next. Phases follow each other."""

    pools: tuple[Pool, ...]


@dataclass(frozen=True)
class _Group:
    positions: tuple[int, ...]
    gpu_gb: float | None
    memory_gb: float


def segments(steps: Sequence[Step]) -> list[list[Step]]:
    """Runs of steps between barriers: each dataset step alone, the others together."""
    found: list[list[Step]] = []
    for step in steps:
        if step.is_dataset or not found or found[-1][0].is_dataset:
            found.append([step])
        else:
            found[-1].append(step)
    return found


def place(steps: Sequence[Step], resources: Resources, workers: int | None = None) -> list[Phase]:
    """Place image and table steps that follow each other.

    CPU steps that follow each other share a pool, so that an image is decoded once. A model on a GPU has a pool of its
    own and takes the fraction of the GPU that its card's memory says. What does not fit side by side runs in phases.

    Args:
        steps: A segment without dataset steps, in order.
        resources: Of the whole cluster.
        workers: Upper bound of the workers of a pool; None for as many as fit.

    Raises:
        UserError: A model needs more than any machine has.
    """
    if resources.cpus < 1:
        raise UserError(f"the cluster must have at least one CPU but has {resources.cpus:g}")
    groups = _groups(steps, resources)
    phases: list[list[_Group]] = []
    for group in groups:
        if phases and _fits([*phases[-1], group], resources):
            phases[-1].append(group)
        else:
            phases.append([group])
    return [_spread(phase, resources, workers) for phase in phases]


def _groups(steps: Sequence[Step], resources: Resources) -> list[_Group]:
    budget = resources.memory_gb * MEMORY_SHARE
    groups: list[_Group] = []
    for step in steps:
        needs = step.operator.needs()
        if needs.gpu and resources.gpus > 0:
            if needs.memory_gb > resources.gpu_memory_gb:
                raise UserError(
                    f"step {step.name!r} needs a GPU with {needs.memory_gb:g} GB but the largest here has "
                    f"{resources.gpu_memory_gb:g} GB; choose a smaller model"
                )
            groups.append(_Group((step.position,), needs.memory_gb, BASE_GB))
            continue
        if BASE_GB + needs.memory_gb > budget:
            raise UserError(
                f"step {step.name!r} needs {BASE_GB + needs.memory_gb:g} GB of memory but workers may use "
                f"{budget:.1f} GB here; choose a smaller model or a larger machine"
            )
        last = groups[-1] if groups else None
        light = needs.memory_gb == 0 and not step.is_image
        if last is not None and light:
            groups[-1] = _Group((*last.positions, step.position), last.gpu_gb, last.memory_gb)
        elif last is not None and last.gpu_gb is None and last.memory_gb + needs.memory_gb <= budget:
            groups[-1] = _Group((*last.positions, step.position), None, last.memory_gb + needs.memory_gb)
        else:
            groups.append(_Group((step.position,), None, BASE_GB + needs.memory_gb))
    return groups


def _fraction(group: _Group, resources: Resources) -> float:
    """The part of a GPU that one worker takes, rounded up to hundredths; a hundredth at least."""
    if group.gpu_gb is None:
        return 0.0
    return max(0.01, math.ceil(group.gpu_gb / resources.gpu_memory_gb * 100) / 100)


def _fits(groups: Sequence[_Group], resources: Resources) -> bool:
    """Whether one worker of every group can be there at once."""
    if len(groups) > resources.cpus:
        return False
    free = [1.0] * int(resources.gpus)
    for need in sorted((_fraction(group, resources) for group in groups), reverse=True):
        if need == 0:
            continue
        place = next((index for index, room in enumerate(free) if room + 1e-9 >= need), None)
        if place is None:
            return False
        free[place] -= need
    return sum(group.memory_gb for group in groups) <= resources.memory_gb * MEMORY_SHARE


def _spread(groups: Sequence[_Group], resources: Resources, workers: int | None) -> Phase:
    """Give every group as many workers as there is room for; CPU groups share what the others leave."""
    on_gpu = [group for group in groups if group.gpu_gb is not None]
    on_cpu = len(groups) - len(on_gpu)
    copies, cpus_each = 0, 1.0
    if on_gpu:
        load = sum(_fraction(group, resources) for group in on_gpu)
        copies = max(1, min(int(resources.gpus / load + 1e-9), int((resources.cpus - on_cpu) / len(on_gpu))))
        copies = min(copies, workers or copies)
        room = (resources.cpus - on_cpu) / (copies * len(on_gpu))
        cpus_each = GPU_WORKER_CPUS if room >= GPU_WORKER_CPUS else 1.0
    left = resources.cpus - copies * len(on_gpu) * cpus_each
    memory = resources.memory_gb * MEMORY_SHARE - copies * sum(group.memory_gb for group in on_gpu)
    pools = []
    for group in groups:
        if group.gpu_gb is not None:
            pools.append(Pool(group.positions, copies, cpus_each, _fraction(group, resources)))
            continue
        count = int(left / on_cpu)
        if math.isfinite(memory):
            count = min(count, int(memory / on_cpu / group.memory_gb))
        count = max(1, min(count, workers or count))
        pools.append(Pool(group.positions, count, 1.0))
    return Phase(tuple(pools))
