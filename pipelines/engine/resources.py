"""What there is to place workers on: of this machine, or of a cluster that is told in words."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from labelmill.pipelines.errors import UserError, nearest

GPU_MEMORY = "LABELMILL_GPU_MEMORY_GB"
"""The environment variable that states a GPU's memory in GB. Where it does, no driver is asked."""


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        cpus, gpus: Free for work.
        memory_gb: Of the host.
        id: Ray's, so that a worker can be sent there; empty where nothing is to be sent.
    """

    cpus: float
    gpus: float = 0.0
    memory_gb: float = math.inf
    id: str = ""


@dataclass(frozen=True)
class Resources:
    """What there is in all. GPU memory is that of the smallest GPU.

    Attributes:
        nodes: The machines that it is spread over; empty for one machine.
    """

    cpus: float
    gpus: float = 0.0
    gpu_memory_gb: float = 0.0
    memory_gb: float = math.inf
    nodes: tuple[Node, ...] = ()

    @classmethod
    def of(cls, nodes: Sequence[Node], gpu_memory_gb: float = 0.0) -> Resources:
        """The sum of machines."""
        return cls(
            sum(node.cpus for node in nodes),
            sum(node.gpus for node in nodes),
            gpu_memory_gb,
            sum(node.memory_gb for node in nodes),
            tuple(nodes),
        )

    @property
    def machines(self) -> tuple[Node, ...]:
        return self.nodes or (Node(self.cpus, self.gpus, self.memory_gb),)


def stated_gpu_memory(given: float | None = None) -> float | None:
    """A GPU's memory in GB where somebody has stated it: an option, or else the environment; None if nobody did.

    It is needed where it cannot be asked, or where a worker gets only a part of it.

    Raises:
        UserError: What the environment says is no such number.
    """
    if given is not None:
        return given
    text = os.environ.get(GPU_MEMORY, "")
    return _number(GPU_MEMORY, text, "a GPU's memory in GB, such as 80") if text else None


def resources_here(workers: int | None = None, gpu_memory_gb: float | None = None) -> Resources:
    """What a run on this machine would have, read without starting Ray.

    Args:
        workers: CPUs that it would be given; None for all that this process may use.
        gpu_memory_gb: What was stated; see `stated_gpu_memory`.
    """
    import psutil

    cpus = float(workers or len(psutil.Process().cpu_affinity()))
    return Resources(cpus, *_local_gpus(stated_gpu_memory(gpu_memory_gb)), psutil.virtual_memory().available / 1e9)


def _local_gpus(stated: float | None) -> tuple[float, float]:
    """Number of GPUs and memory of the smallest in GB. Imports torch only where a driver is installed.

    Where the memory is stated and CUDA_VISIBLE_DEVICES says which GPUs there are, they are taken at their word.
    """
    import shutil

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated and visible is not None:
        return float(sum(each.strip() not in ("", "-1") for each in visible.split(","))), stated
    if shutil.which("nvidia-smi") is None:
        return 0.0, 0.0
    import torch

    count = torch.cuda.device_count()
    if not count:
        return 0.0, 0.0
    return float(count), stated or smallest_gpu_gb()


def smallest_gpu_gb() -> float:
    """Memory in GB of the smallest GPU that this process sees; 0 where it sees none."""
    import torch

    gpus = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus), default=0) / 1e9


WORDS = {
    "nodes": "a whole number of machines from 1 to 100,000",
    "cpus": "the CPUs of one machine, a number from 1",
    "gpus": "the GPUs of one machine, a whole number from 0",
    "gpu_memory": "the memory of one GPU in GB, a number above 0",
    "memory": "the memory of one machine in GB, a number above 0",
}
"""What a cluster in words may say, and what each word takes."""

BOUNDS = {"nodes": (1.0, 100_000.0), "cpus": (1.0, math.inf)}
WHOLE = ("nodes", "gpus")


def parse_resources(text: str, gpu_memory_gb: float | None = None) -> Resources:
    """A cluster in words: ``nodes=100,cpus=128,gpus=8,gpu_memory=80``; a ``;`` before each further kind of machine.

    Args:
        text: ``cpus`` must be said, ``gpu_memory`` beside ``gpus``; `nodes` is 1, `gpus` 0 and `memory` enough unless
            it is said.
        gpu_memory_gb: Stands for ``gpu_memory`` where the text does not say it.

    Raises:
        UserError: With the word, what it must be, and the nearest one that there is.
    """
    nodes: list[Node] = []
    memories: list[float] = []
    for kind in text.split(";"):
        said = _words(kind)
        count = said.get("nodes", 1.0)
        gpus = said.get("gpus", 0.0)
        if gpus:
            memory = said.get("gpu_memory", gpu_memory_gb)
            if memory is None:
                raise UserError(f"--resources: gpus must come with gpu_memory, {WORDS['gpu_memory']}; got {kind!r}")
            memories.append(memory)
        elif "gpu_memory" in said:
            raise UserError(f"--resources: gpu_memory must come with gpus, {WORDS['gpus']}; got {kind!r}")
        nodes += [Node(said["cpus"], gpus, said.get("memory", math.inf))] * int(count)
    return Resources.of(nodes, min(memories, default=0.0))


def _words(kind: str) -> dict[str, float]:
    """One kind of machine: word → number."""
    said: dict[str, float] = {}
    for part in kind.split(","):
        word, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            example = "'nodes=100,cpus=128,gpus=8,gpu_memory=80'"
            raise UserError(f"--resources must be words with numbers, such as {example}, but has {part.strip()!r}")
        if word not in WORDS:
            raise UserError(f"--resources: unknown {word!r}, must be one of {', '.join(WORDS)}{nearest(word, WORDS)}")
        if word in said:
            raise UserError(f"--resources: {word} must be said once for a kind of machine but is there twice: {kind!r}")
        number = _number(f"--resources: {word}", value, WORDS[word])
        least, most = BOUNDS.get(word, (0.0, math.inf))
        if not least <= number <= most or (word in WHOLE and number % 1):
            raise UserError(f"--resources: {word} must be {WORDS[word]} but is {value!r}")
        said[word] = number
    if "cpus" not in said:
        raise UserError(f"--resources must say cpus, {WORDS['cpus']}; got {kind.strip()!r}")
    return said


def _number(what: str, text: str, expected: str) -> float:
    """A finite number, 0 only where it is written so.

    Raises:
        UserError: It is none, or below 0, or 0 for a memory.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and "memory" in what.lower()):
        raise UserError(f"{what} must be {expected} but is {text!r}")
    return number
