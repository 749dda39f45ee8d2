"""Expressions that were read (`operators.expressions.expression`) over the rows of a table, by DuckDB."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from labelmill.operators.errors import OperatorError
from labelmill.operators.expressions.expression import Expression
from labelmill.operators.expressions.functions import FunctionError, Functions, connection, forget_connection
from labelmill.operators.moment import MomentError


def select(query: str, table: pa.Table, expression: Expression) -> pa.Table:
    """Run a query over the table ``rows``, which has `image_id` and what the expression refers to.

    An error that is neither the query's nor a row's may be that of an earlier row: DuckDB refuses everything after an
    internal error. So it is run again by a new one, and only what that says counts.

    Raises:
        duckdb.Error: It does not fit the columns, or a row cannot be computed.
        MomentError: DuckDB takes no table in this process, or cannot have what it needs of the machine.
    """
    import duckdb

    rows = table.select(list(dict.fromkeys(("image_id", *expression.inputs))))
    try:
        return _run(query, rows)
    except (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError, duckdb.OutOfMemoryException):
        raise
    except (duckdb.Error, MomentError):
        forget_connection()
    try:
        return _run(query, rows)
    except (duckdb.InternalError, duckdb.FatalException):
        forget_connection()
        raise
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.OperationalError as error:
        raise MomentError(f"DuckDB cannot go on: {plain(error)}", "machine") from error


def _run(query: str, rows: pa.Table) -> pa.Table:
    duck = connection()
    try:
        duck.register("rows", rows)
    except Exception as error:  # whatever it is (it imports pandas here), no row has been looked at
        raise MomentError(f"DuckDB does not take a table: {type(error).__name__}: {plain(error)}", "machine") from error
    try:
        return duck.sql(query).to_arrow_table()
    finally:
        duck.unregister("rows")


def bind(expression: Expression, columns: Mapping[str, pa.DataType], param: tuple[str | int, ...]) -> pa.Table:
    """One row of which everything is null, with the types that an expression will be given.

    Args:
        expression: What will be computed.
        columns: The type of every column that it reads.
        param: The parameter that it came from, for errors.

    Raises:
        OperatorError: A column holds float16; or, of these types, it calls what does not depend on its row alone.
    """
    types = {"image_id": pa.int64(), "key": pa.string(), **columns}
    for name in expression.reads:
        if _holds_float16(types[name]):
            raise OperatorError(f"column {name!r} must not hold float16 (DuckDB has none) but is {types[name]}", param)
    row = pa.table({name: pa.nulls(1, kind) for name, kind in types.items()})
    try:
        Functions().check_bound(_without_tables(expression, row))
    except FunctionError as error:
        raise OperatorError(str(error), param) from None
    return row


def _without_tables(expression: Expression, row: pa.Table) -> str:
    """The expression's parts over a row of nulls that is written out in the query."""
    names = ['"{}"'.format(name.replace('"', '""')) for name in ("image_id", *expression.inputs)]
    kinds = select(f"SELECT {', '.join(f'typeof({name})' for name in names)} FROM rows", row, expression)
    nulls = [f"CAST(NULL AS {kind[0]}) AS {name}" for kind, name in zip(kinds.columns, names, strict=True)]
    parts = ", ".join(part.sql for part in expression.parts)
    return f"SELECT {parts} FROM (SELECT {', '.join(dict.fromkeys(nulls))}) AS rows"


def describe(expression: Expression, row: pa.Table) -> str:
    """Which columns an expression reads, and their types, for a message."""
    return ", ".join(f"{name} is {row.schema.field(name).type}" for name in expression.inputs) or "it reads no column"


def plain(error: Exception) -> str:
    """DuckDB's message without its list of candidates and its drawing of where in the query the error is."""
    text = str(error).partition("\n\nLINE ")[0].partition("\n\tCandidate functions:")[0]
    return " ".join(text.partition(": ")[2].split()) or text


def _holds_float16(kind: pa.DataType) -> bool:
    return pa.types.is_float16(kind) or any(_holds_float16(kind.field(index).type) for index in range(kind.num_fields))
