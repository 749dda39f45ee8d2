"""One number for each image, from an expression over its columns: ``sharpness * min_side``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelmill.operators.errors import OperatorError
from labelmill.operators.expressions.expression import ExpressionError, parse
from labelmill.operators.expressions.queries import bind, describe, plain, select


class Figure:
    """An expression, read and found safe; see `operators.expressions.expression`.

    Args:
        text: As the user wrote it.
        param: The parameter that it came from, for errors.

    Raises:
        OperatorError: It is not one expression over the row's columns.
    """

    def __init__(self, text: str, param: tuple[str | int, ...]) -> None:
        try:
            self._expression = parse(text)
        except ExpressionError as error:
            raise OperatorError(str(error), param) from None
        if len(self._expression.parts) != 1:
            raise OperatorError(f"{text!r} must be a number but is a condition", param)
        self._text, self._param = text, param
        self.reads = self._expression.reads

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        """Bind the expression to the types of its columns.

        Raises:
            OperatorError: It does not fit them, or is no number.
        """
        import duckdb

        nulls = bind(self._expression, columns, self._param)
        described = describe(self._expression, nulls)
        try:
            kind = self._run(nulls).type
        except duckdb.Error as error:
            message = f"{self._text!r} must fit its columns but does not: {plain(error)} ({described})"
            raise OperatorError(message, self._param) from None
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise OperatorError(f"{self._text!r} must be a number but is {kind} ({described})", self._param)

    def compute(self, table: pa.Table) -> NDArray[np.float64]:
        """Of every row: float64 (rows,), NaN where it is not known or cannot be computed."""
        if not table.num_rows:
            return np.zeros(0)
        return np.asarray(self._run(table, "TRY(CAST(({}) AS DOUBLE))").to_numpy(), dtype=np.float64)

    def _run(self, table: pa.Table, wrapped: str = "({})") -> pa.ChunkedArray:
        value = wrapped.format(self._expression.parts[0].sql)
        return select(f"SELECT {value} AS figure FROM rows", table, self._expression).column(0)
