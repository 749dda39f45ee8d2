"""Keep the images for which a condition holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from labelmill.operators.base import KEPT, Decision, OperatorParams, TableOperator, TableResult
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.expressions.expression import ExpressionError, Part, parse
from labelmill.operators.expressions.queries import bind, describe, plain, select
from labelmill.operators.wording import counted

_KEPT = -1
_OUTCOME = '"outcome of keep"'
_LONGEST = 60


class Keep(TableOperator):
    """Keep the images for which a condition on their columns is true, and drop the others.

    ``keep: "sharpness >= 0.3 and min_side >= 64"``. The condition is one DuckDB SQL expression over the columns of
    earlier steps: ``sharpness`` is the nearest one above, ``inspect.sharpness`` that of the step `inspect`. A third
    name is a field, as in ``pose.face.yaw``; a field of a column named without its step is ``(face).yaw``. Lists work
    too: ``len(select.detections) > 0`` or ``len(list_filter(detect.detections, lambda d: d.score > 0.5)) <= 3``.
    `image_id` and `key` can always be used. Every function that looks at one row alone is there; queries, aggregates,
    files, settings, time and chance are not.

    An image is dropped with the first part (of those that AND joins) that is false for it, and with the values that
    made it so; or, if none is false, with the first that is unknown because a value is null. A row that cannot be
    computed, say by a cast of text that is no number, fails; ``try_cast`` gives null instead. Parts are computed from
    left to right, each only for the images that no earlier part has dropped.

    A part that compares a number with a constant also gives the decision its score and threshold.
    """

    name = "keep"
    decides = True

    class Params(OperatorParams):
        """The condition. A pipeline may give it alone: ``keep: "width > 64"``.

        Attributes:
            where: The condition that kept images meet.
        """

        shorthand: ClassVar[str] = "where"
        where: str

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        try:
            self.expression = parse(params.where)
        except ExpressionError as error:
            raise OperatorError(str(error), ("where",)) from None

    def reads(self) -> tuple[str, ...]:
        return self.expression.reads

    def writes(self) -> pa.Schema:
        return pa.schema([])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        """Bind the condition to the types of its columns, and compute it for one image of which everything is null.

        Raises:
            OperatorError: A part is not true or false, a type does not fit, or a column holds float16.
        """
        import duckdb

        nulls = bind(self.expression, columns, ("where",))
        described = describe(self.expression, nulls)
        parts = self.expression.parts
        try:
            kinds = select(f"SELECT {', '.join(part.sql for part in parts)} FROM rows", nulls, self.expression)
            select(_query(parts), nulls, self.expression)
        except duckdb.Error as error:
            message = f"{self.params.where!r} must fit its columns but does not: {plain(error)} ({described})"
            raise OperatorError(message, ("where",)) from None
        for part, column in zip(parts, kinds.columns, strict=True):
            if not pa.types.is_boolean(column.type):
                message = f"{part.text!r} must be true or false but is {column.type} ({described})"
                raise OperatorError(message, ("where",))

    def compute(self, table: pa.Table) -> TableResult:
        """Decide about one shard.

        Raises:
            RowError: A row cannot be computed; whoever applies the operator tries smaller parts, down to that row.
        """
        import duckdb

        parts = self.expression.parts
        try:
            result = select(_query(parts), table, self.expression)
        except (duckdb.DataError, duckdb.InvalidInputException) as error:
            raise RowError(f"{self.params.where!r} cannot be computed: {plain(error)}") from error
        decisions = [KEPT] * table.num_rows
        outcomes = result.column(0).to_numpy()
        for row in np.flatnonzero(outcomes != _KEPT).tolist():
            unknown, number = divmod(int(outcomes[row]), len(parts))
            first = 1 + sum(len(part.values) for part in parts[:number])
            found = [result.column(first + offset)[row] for offset in range(len(parts[number].values))]
            decisions[row] = _decision(parts[number], found, bool(unknown))
        return TableResult(None, decisions)


def _query(parts: Sequence[Part]) -> str:
    """One row of output per row: the outcome, then the values that explain the part which decided it.

    The outcome is -1 for a row that is kept, i where part i is false, and i + the number of parts where it is unknown.
    """
    cases = [f"WHEN NOT ({part.sql}) THEN {number}" for number, part in enumerate(parts)]
    cases += [f"WHEN ({part.sql}) IS NULL THEN {number}" for number, part in enumerate(parts, len(parts))]
    values = [
        f"CASE WHEN {_OUTCOME} IN ({number}, {number + len(parts)}) THEN ({value.sql}) END"
        for number, part in enumerate(parts)
        for value in part.values
    ]
    outcomes = f"SELECT CASE {' '.join(cases)} ELSE {_KEPT} END AS {_OUTCOME}, * FROM rows"
    return f"SELECT {', '.join([_OUTCOME, *values])} FROM ({outcomes})"


def _decision(part: Part, found: list[pa.Scalar], unknown: bool) -> Decision:
    shown = [
        f"{value.text} {_show(scalar)}"
        for value, scalar in zip(part.values, found, strict=True)
        if not value.constant and (unknown or value.text != part.text)
    ]
    reason = f"{part.text} is {'unknown' if unknown else 'false'}" + (f" ({', '.join(shown)})" if shown else "")
    score = threshold = None
    if part.compares and part.values[0].constant != part.values[1].constant:
        numbers = [_number(scalar) for scalar in found]
        constant = 0 if part.values[0].constant else 1
        if numbers[constant] is not None:
            score, threshold = numbers[1 - constant], numbers[constant]
    return Decision("dropped", reason, score, threshold)


def _show(scalar: pa.Scalar) -> str:
    value = scalar.as_py()
    if value is None:
        return "is null"
    if isinstance(value, bool):
        return f"= {str(value).lower()}"
    if isinstance(value, float):
        return f"= {_number(scalar)!r}"
    if isinstance(value, list):
        return f"has {counted(len(value), 'item')}"
    text = repr(value) if isinstance(value, str) else str(value)
    return f"= {text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}"


def _number(scalar: pa.Scalar) -> float | None:
    """The value as a float; one of 32 bits as the decimal that a person would write for it."""
    if not (pa.types.is_integer(scalar.type) or pa.types.is_floating(scalar.type) or pa.types.is_decimal(scalar.type)):
        return None
    value = scalar.as_py()
    if value is None:
        return None
    return float(str(np.float32(value))) if pa.types.is_float32(scalar.type) else float(value)
