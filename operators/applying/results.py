"""From what an operator gives to the table that is written: exact schema, every row, every decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.operators.base import KEPT, Decision, Operator, TableResult
from labelmill.operators.secrets import hide

RowValue = Mapping[str, Any] | Decision | None
"""One image's columns, or why it has none; None for an image that was not reached."""

DECISION_FIELDS = (
    pa.field("decision", pa.string()),  # a DecisionKind; null: the step did not see the image
    pa.field("decision.reason", pa.string()),
    pa.field("decision.score", pa.float64()),
    pa.field("decision.threshold", pa.float64()),
)


_MISFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


class ContractError(Exception):
    """An operator broke its own promise: a mistake in its code, not in an image. Stops the run."""


def step_schema(operator: Operator) -> pa.Schema:
    """The exact schema of a step's file: `image_id`, the operator's columns, the decision and why."""
    return pa.schema([pa.field("image_id", pa.int64(), nullable=False), *operator.writes(), *DECISION_FIELDS])


def step_table(
    operator: Operator, image_ids: pa.ChunkedArray, indices: np.ndarray, values: Sequence[RowValue]
) -> pa.Table:
    """The table of an ImageOperator's step.

    Args:
        operator: Whose `writes()` the table must have.
        image_ids: int64, all rows of the shard.
        indices: Rows that the operator saw, ascending.
        values: What it gave for each of them.

    Raises:
        ContractError: A column is missing, or one was given that `writes()` does not name.
    """
    schema = operator.writes()
    rows: list[Mapping[str, Any] | None] = []
    decisions: list[Decision] = []
    for value in values:
        if isinstance(value, Decision):
            rows.append(None)
            decisions.append(value)
        else:
            if value is None or set(value) != set(schema.names):
                given = sorted(value) if value is not None else None
                raise ContractError(f"{operator.name} must give the columns {sorted(schema.names)} but gave {given}")
            rows.append(value)
            decisions.append(KEPT)
    arrays = _convert(schema, rows, decisions)
    columns = pa.table(arrays, schema=schema) if len(schema) else None
    return join_result(operator, image_ids, indices, TableResult(columns, decisions))


def join_result(operator: Operator, image_ids: pa.ChunkedArray, indices: np.ndarray, result: TableResult) -> pa.Table:
    """Spread what an operator gave for some rows over all rows of the shard; the others are null.

    Args:
        operator: Whose `writes()` the table must have.
        image_ids: int64, all rows.
        indices: Rows that the operator saw, ascending.
        result: One row for each of them.

    Raises:
        ContractError: Wrong columns, types or number of rows.
    """
    schema, count = operator.writes(), len(indices)
    decisions = result.decisions if result.decisions is not None else [KEPT] * count
    if len(decisions) != count:
        raise ContractError(f"{operator.name} must decide about {count} rows but decided about {len(decisions)}")
    if len(schema):
        if result.columns is None:
            raise ContractError(f"{operator.name} must give the columns {schema.names} but gave none")
        if result.columns.num_rows != count:
            raise ContractError(f"{operator.name} must give {count} rows but gave {result.columns.num_rows}")
        if set(result.columns.column_names) != set(schema.names):
            given = sorted(result.columns.column_names)
            raise ContractError(f"{operator.name} must give the columns {sorted(schema.names)} but gave {given}")
        try:
            columns = result.columns.select(schema.names).cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ContractError(f"{operator.name} must give {schema} but gave {result.columns.schema}") from error
        columns = _null_failed(columns, decisions)
    else:
        columns = None
    kinds = [decision.decision for decision in decisions]
    given_arrays = [] if columns is None else [column.combine_chunks() for column in columns.columns]
    given_arrays += [
        pa.array(kinds, pa.string()),
        pa.array([hide(decision.reason) or None for decision in decisions], pa.string()),
        pa.array([decision.score for decision in decisions], pa.float64()),
        pa.array([decision.threshold for decision in decisions], pa.float64()),
    ]
    spread = np.full(len(image_ids), -1, dtype=np.int64)
    spread[indices] = np.arange(count)
    where = pa.array(spread, mask=spread < 0)
    arrays = [image_ids.combine_chunks(), *(_take(array, where) for array in given_arrays)]
    return pa.table(arrays, schema=step_schema(operator))


def _take(array: pa.Array | pa.ChunkedArray, where: pa.Array) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.take(where)


def _null_failed(columns: pa.Table, decisions: Sequence[Decision]) -> pa.Table:
    """A row that failed or is undone has no columns, whatever the operator left in them."""
    keep = np.array([decision.decision not in ("failed", "undone") for decision in decisions], dtype=bool)
    if keep.all():
        return columns
    where = pa.array(np.arange(len(keep)), mask=~keep)
    return columns.take(where)


def null_rows(schema: pa.Schema, count: int) -> pa.Table:
    """`count` rows in which every column is null."""
    return pa.table([pa.nulls(count, field.type) for field in schema], schema=schema)


def _convert(schema: pa.Schema, rows: list[Mapping[str, Any] | None], decisions: list[Decision]) -> list[pa.Array]:
    """Arrow arrays of every column. A value that does not fit its type fails that row, in place."""

    def convert() -> list[pa.Array]:
        return [to_array([row and row[field.name] for row in rows], field.type) for field in schema]

    try:
        return convert()
    except _MISFIT:
        for position, row in enumerate(rows):
            if row is None:
                continue
            for field in schema:
                try:
                    to_array([row[field.name]], field.type)
                except _MISFIT as error:
                    rows[position] = None
                    decisions[position] = Decision("failed", f"column {field.name!r} must be {field.type}: {error}")
                    break
    return convert()


def to_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array of Python or numpy values.

    Vectors are copied as a block: pyarrow's own path turns each number into a Python object first.

    Raises:
        ValueError: A vector of another length. pyarrow.ArrowException, TypeError: a value of another type.
    """
    if not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
        return pa.array(values, kind)
    width = kind.list_size
    block = np.zeros((len(values), width), dtype=kind.value_type.to_pandas_dtype())
    missing = np.array([value is None for value in values], dtype=bool)
    for position, value in enumerate(values):
        if value is None:
            continue
        vector = np.asarray(value)
        if vector.shape != (width,):
            raise ValueError(f"vector must have shape ({width},) but has {vector.shape}")
        block[position] = vector
    return pa.FixedSizeListArray.from_arrays(
        pa.array(block.reshape(-1), kind.value_type), width, mask=pa.array(missing) if missing.any() else None
    )
