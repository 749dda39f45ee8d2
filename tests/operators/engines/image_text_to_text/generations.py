"""What a DatasetOperator sees of rows that an earlier run decided."""

from __future__ import annotations

import pyarrow as pa

from labelmill.operators.base import KEPT, DatasetOperator, TableResult


def earlier(operator: DatasetOperator, rows: pa.Table, result: TableResult | None = None) -> pa.Table:
    """Rows with their results; none of the rows, but all of the columns, without a result."""
    if result is None:
        rows, result = rows.slice(0, 0), TableResult(operator.writes().empty_table(), [])
    if result.columns is not None:
        for field, column in zip(result.columns.schema, result.columns.columns, strict=True):
            rows = rows.append_column(field, column)
    decisions = [each.decision for each in result.decisions or [KEPT] * rows.num_rows]
    return rows.append_column("decision", pa.array(decisions, pa.string()))
