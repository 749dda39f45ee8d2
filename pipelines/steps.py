"""How steps hang together: which column a name means, which images a step sees, and what its result depends on."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from labelmill.operators.base import DatasetOperator, ImageOperator, Operator
from labelmill.operators.columns.schemas import SHARD, SOURCE_COLUMNS
from labelmill.operators.registry import is_built_in
from labelmill.pipelines.errors import nearest

ENGINE_VERSION = 1
"""Raised when decoding or the layout of step files changes what is in them."""

SOURCE = "source"


class ColumnError(Exception):
    """A step reads a column that nobody above it writes."""

    param: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Input:
    """A column that a step reads.

    Attributes:
        step: Position of the step that writes it, or None for the source.
        column: Its name in that step's file.
        type: Its Arrow type.
    """

    step: int | None
    column: str
    type: pa.DataType

    def name(self, steps: Sequence[Step]) -> str:
        """What a pipeline of these steps calls it: ``step.column`` or ``source.column``."""
        return f"{SOURCE if self.step is None else steps[self.step].name}.{self.column}"


@dataclass(frozen=True)
class Step:
    """An operator with its parameters, at its place in a pipeline.

    Attributes:
        position: 0-based.
        name: Unique in the pipeline.
        operator_name: As written.
        operator: Built, not loaded.
        inputs: What each of its `reads()` means.
        depends: Positions of the steps whose decisions say which images this one sees: those it reads, and those
            above it that can drop images. No other step, failing or changed, touches its result.
        fingerprint: 12 hex digits of everything that its result depends on.
    """

    position: int
    name: str
    operator_name: str
    operator: Operator
    inputs: dict[str, Input] = field(default_factory=dict)
    depends: tuple[int, ...] = ()
    fingerprint: str = ""

    @property
    def folder(self) -> str:
        """Where its files go in a fresh run: ``03-detect-9f2c61ab04d7``, counted from 1."""
        return f"{self.position + 1:02d}-{self.name}-{self.fingerprint}"

    @property
    def is_dataset(self) -> bool:
        return isinstance(self.operator, DatasetOperator)

    @property
    def is_image(self) -> bool:
        return isinstance(self.operator, ImageOperator)


def chain(above: Sequence[Step], name: str, operator_name: str, operator: Operator) -> Step:
    """Put an operator below other steps.

    Raises:
        ColumnError: It reads a column that none of them writes.
        OperatorError: A column it reads has a type that does not fit.
    """
    inputs = {reference: resolve(reference, above) for reference in operator.reads()}
    operator.check({reference: column.type for reference, column in inputs.items()})
    read = {column.step for column in inputs.values() if column.step is not None}
    deciders = {step.position for step in above if step.operator.decides}
    depends = tuple(sorted(read | deciders))
    return Step(
        position=len(above),
        name=name,
        operator_name=operator_name,
        operator=operator,
        inputs=inputs,
        depends=depends,
        fingerprint=_fingerprint(above, operator_name, operator, inputs, depends),
    )


def resolve(reference: str, above: Sequence[Step]) -> Input:
    """What a column reference means to a step below `above`.

    Args:
        reference: ``step.column``, ``source.column``, or a bare ``column`` for the nearest step above that writes it.

    Raises:
        ColumnError: Nobody writes it; names the nearest one that somebody does.
    """
    owner, dot, column = reference.rpartition(".")
    if dot and owner == SOURCE:
        if column in SOURCE_COLUMNS:
            return Input(None, column, SHARD.field(column).type)
        raise ColumnError(
            f"the source has no column {column!r}, it has {', '.join(SOURCE_COLUMNS)}{nearest(column, SOURCE_COLUMNS)}"
        )
    if dot and owner not in {step.name for step in above}:
        names = [step.name for step in above]
        there = f"the steps above are {', '.join(names)}" if names else "there is none"
        raise ColumnError(f"column {reference!r} must come from a step above, {there}{nearest(owner, names)}")
    for step in reversed(above):
        schema = step.operator.writes()
        if (not dot or step.name == owner) and column in schema.names:
            return Input(step.position, column, schema.field(column).type)
    known = [name for step in above for name in step.operator.writes().names]
    qualified = [f"{step.name}.{name}" for step in above for name in step.operator.writes().names]
    near = nearest(reference, qualified if dot else known)
    raise ColumnError(f"column {reference!r} is written by no step above{near}")


def _fingerprint(
    above: Sequence[Step], operator_name: str, operator: Operator, inputs: dict[str, Input], depends: tuple[int, ...]
) -> str:
    by_position = {step.position: step.fingerprint for step in above}
    content = {
        "engine": ENGINE_VERSION,
        "operator": operator_name,
        "version": operator.version,
        "params": operator.params.result_params(),
        "digest": operator.digest(),
        "code": None if is_built_in(type(operator)) else _source_digest(type(operator)),
        "inputs": {
            reference: [None if column.step is None else by_position[column.step], column.column]
            for reference, column in sorted(inputs.items())
        },
        "depends": [by_position[position] for position in depends],
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _source_digest(cls: type[Operator]) -> str:
    """A user's own operator is fingerprinted by its file, so that an edit is not taken for a finished step."""
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()
