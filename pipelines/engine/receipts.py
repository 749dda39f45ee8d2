"""What workers tell the driver: a receipt for every step and shard, and how far they are with what is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pyarrow as pa

from labelmill.pipelines.steps import Step


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one step did to one shard.

    Attributes:
        step: Name of the step.
        shard: Number of the shard.
        images: Rows of the shard.
        seen, kept, dropped, duplicate, failed, undone: Images that were in play, and what became of them.
        computed: False where the file was there already.
        seconds: Wall time, of steps that were applied together each one's share; `wait` for prepared images, which
            such steps share; `infer` in the model.
        began, at: Unix time when the work on the shard began and when this step's file was there.
    """

    step: str
    shard: int
    images: int
    seen: int
    kept: int
    dropped: int
    duplicate: int
    failed: int
    undone: int = 0
    computed: bool = True
    seconds: float = 0.0
    wait: float = 0.0
    infer: float = 0.0
    began: float = 0.0
    at: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Partial:
    """How far a step is with a shard that it is working on.

    Attributes:
        step: Name of the step.
        shard: Number of the shard.
        images: Images done, in so many seconds.
        at: Unix time.
    """

    step: str
    shard: int
    images: int
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class Working:
    """A dataset step is at work. It decides about all shards together, so none is done before all are.

    Attributes:
        step: Name of the step.
        parts: Parts of the work that tasks have done.
        began: Unix time when the work began.
    """

    step: str
    parts: int
    began: float


@dataclass(frozen=True, slots=True)
class Loading:
    """A worker loads what a step needs, such as its model.

    Attributes:
        step: Name of the step.
        began: Unix time.
    """

    step: str
    began: float


News = Receipt | Partial | Working | Loading
OnNews = Callable[[News], None]
"""Told of every receipt, and about once a second of what is under way."""


def receipt_of(step: Step, shard: int, table: pa.Table, **timing: float | bool) -> Receipt:
    """Count a step's table."""
    decisions = table.column("decision").to_pylist()
    counts = {kind: decisions.count(kind) for kind in ("kept", "dropped", "duplicate", "failed", "undone")}
    seen = sum(decision is not None for decision in decisions)
    return Receipt(step.name, shard, table.num_rows, seen, **counts, at=time.time(), **timing)  # type: ignore[arg-type]
