"""Which steps run where, side by side or one after the other: decided from what there is, before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labelmill.operators.base import Needs
from labelmill.pipelines.engine.resources import Resources as Resources
from labelmill.pipelines.engine.spread import BASE_GB, CUDA_GB, MEMORY_SHARE, Group, spread
from labelmill.pipelines.engine.spread import Pool as Pool
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.steps import Step

DECODE_SECONDS = 0.003
"""CPU seconds to decode an image of 640×480 (369 JPEGs a second on one core, measured); once for each pool."""

IMAGE_SECONDS = 0.003
"""CPU seconds of an image step besides decoding: of one without a model (`inspect`, measured), or beside a GPU."""

MODEL_SECONDS = 1.0
"""CPU seconds of a model that runs on a CPU, if its operator does not say: of CLIP .03, of PP-OCR .25, of SAM 18
(measured)."""

TABLE_SECONDS = 0.0001
"""CPU seconds an image of a step that sees no pixels (.00002 to .00003 measured)."""


@dataclass(frozen=True)
class Phase:
    """Pools that work side by side, each shard passing from one to the next. Phases follow each other."""

    pools: tuple[Pool, ...]


def segments(steps: Sequence[Step]) -> list[list[Step]]:
    """Runs of steps between barriers: each dataset step alone, the others together."""
    found: list[list[Step]] = []
    for step in steps:
        if step.is_dataset or not found or found[-1][0].is_dataset:
            found.append([step])
        else:
            found[-1].append(step)
    return found


def place(
    steps: Sequence[Step], resources: Resources, workers: int | None = None, shards: int | None = None
) -> list[Phase]:
    """Place image and table steps that follow each other.

    Steps that follow each other share a pool as far as they fit: models on a GPU while its memory holds them, and the
    CPU steps around them, so that an image is decoded once and no worker waits for another. CPU steps have a pool of
    their own beside a GPU's if they have a model, whose work would keep a GPU waiting, or if the cluster has so many
    CPUs that the GPUs' workers cannot take, that the run is faster so. What does not fit side by side runs in phases.

    Args:
        steps: A segment without dataset steps, in order.
        resources: Of the whole cluster.
        workers: Upper bound of the workers of a pool; None for as many as fit.
        shards: How many there are to be done: more workers than these would have nothing to do.

    Raises:
        UserError: A model needs more than any machine has.
    """
    if resources.cpus < 1:
        raise UserError(f"the cluster must have at least one CPU for work but has {resources.cpus:g}")
    most = min(workers or sys.maxsize, shards or sys.maxsize)
    plans = [_phases(_groups(steps, resources, fuse), steps, resources, most) for fuse in _ways(steps, resources)]
    return min(plans, key=lambda plan: plan[1])[0]


def _ways(steps: Sequence[Step], resources: Resources) -> list[bool]:
    """Whether CPU steps may go to the workers of a GPU: both are tried where it makes a difference, this way first."""
    kinds = {_on_gpu(step.operator.needs(), resources) for step in steps if step.is_image}
    return [True, False] if len(kinds) > 1 else [True]


def _on_gpu(needs: Needs, resources: Resources) -> bool:
    return needs.gpu and int(resources.gpus) > 0


def _phases(
    groups: Sequence[Group], steps: Sequence[Step], resources: Resources, most: int
) -> tuple[list[Phase], float]:
    """Groups side by side as far as they fit, and the CPU seconds an image that the slowest pools take, summed up."""
    found: list[tuple[list[Group], list[Pool]]] = []
    for group in groups:
        if found:
            together = [*found[-1][0], group]
            fits = sum(each.gpu_gb is not None for each in together) < 2 and spread(together, resources, most)
            if fits:
                found[-1] = together, fits
                continue
        alone = spread([group], resources, most)
        if alone is None:
            names = ", ".join(step.name for step in steps if step.position in group.positions)
            where = "a node with a GPU" if group.gpu_gb is not None else "a node"
            raise UserError(
                f"no worker can do {names}: {where} must have a CPU and {group.memory_gb / MEMORY_SHARE:.1f} GB of "
                "memory for it but none has; see `ray status`"
            )
        found.append(([group], alone))
    slowest = sum(
        max(group.seconds / pool.workers / pool.cpus for group, pool in zip(together, pools, strict=True))
        for together, pools in found
    )
    return [Phase(tuple(pools)) for _, pools in found], slowest


def _groups(steps: Sequence[Step], resources: Resources, fuse: bool) -> list[Group]:
    """Consecutive steps that the same workers do."""
    groups: list[Group] = []
    for step in steps:
        needs = step.operator.needs()
        _check(step, needs, resources)
        last = groups[-1] if groups else None
        joined = _join(last, step, needs, resources, fuse) if last else None
        if joined is not None:
            groups[-1] = joined
            continue
        on_gpu = _on_gpu(needs, resources)
        groups.append(
            Group(
                (step.position,),
                _seconds(step, needs, on_gpu) + (DECODE_SECONDS if step.is_image else 0.0),
                BASE_GB + (CUDA_GB if on_gpu else needs.memory_gb),
                needs.memory_gb if on_gpu else None,
                heavy=_is_heavy(step, needs, on_gpu),
            )
        )
    return groups


def _join(last: Group, step: Step, needs: Needs, resources: Resources, fuse: bool) -> Group | None:
    """The last group with this step in it; None where the step needs a group of its own."""
    on_gpu = _on_gpu(needs, resources)
    heavy = _is_heavy(step, needs, on_gpu)
    host = last.memory_gb + (0.0 if on_gpu else needs.memory_gb) + CUDA_GB * (on_gpu and last.gpu_gb is None)
    joined = replace(
        last,
        positions=(*last.positions, step.position),
        seconds=last.seconds + _seconds(step, needs, on_gpu),
        memory_gb=host,
        heavy=last.heavy or heavy,
    )
    if host > _budget(resources, on_gpu or last.gpu_gb is not None):
        return None
    if not on_gpu and last.gpu_gb is None:
        return joined
    if not on_gpu and (heavy or (step.is_image and not fuse)):
        return None
    if on_gpu and last.gpu_gb is None and (last.heavy or not fuse):
        return None
    # A model of a step that asks for no GPU lands on the one that its process has.
    gpu_gb = (last.gpu_gb or 0.0) + needs.memory_gb
    return replace(joined, gpu_gb=gpu_gb) if gpu_gb <= resources.gpu_memory_gb else None


def _is_heavy(step: Step, needs: Needs, on_gpu: bool) -> bool:
    return step.is_image and not on_gpu and needs.memory_gb > 0


def _seconds(step: Step, needs: Needs, on_gpu: bool) -> float:
    """CPU seconds an image, decoding left out: what the operator says, or what is usual for its kind."""
    if needs.seconds is not None and not (on_gpu and needs.gpu):
        return needs.seconds
    if not step.is_image:
        return TABLE_SECONDS
    return MODEL_SECONDS if _is_heavy(step, needs, on_gpu) else IMAGE_SECONDS


def _budget(resources: Resources, gpu: bool) -> float:
    """Host memory that the workers of one machine may have: of the largest, or of the largest with a GPU."""
    return max((node.memory_gb for node in resources.machines if node.gpus >= 1 or not gpu), default=0) * MEMORY_SHARE


def _check(step: Step, needs: Needs, resources: Resources) -> None:
    """Refuse what no machine has."""
    if _on_gpu(needs, resources):
        if needs.memory_gb > resources.gpu_memory_gb:
            raise UserError(
                f"step {step.name!r} needs a GPU with {needs.memory_gb:g} GB but the smallest here has "
                f"{resources.gpu_memory_gb:g} GB; choose a smaller model"
            )
        return
    budget, host = _budget(resources, gpu=False), BASE_GB + needs.memory_gb
    if host > budget:
        raise UserError(
            f"step {step.name!r} needs {host:g} GB of memory but workers may use "
            f"{budget:.1f} GB here; choose a smaller model or a larger machine"
        )
