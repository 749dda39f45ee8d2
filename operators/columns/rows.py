"""Rows of a dataset as arrays: earlier runs' before the new ones, numbers for values, runs of places."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def old_then_new(column: str, new: pa.Table, old: pa.Table) -> pa.ChunkedArray:
    """A column of both tables that a DatasetOperator sees, without a copy."""
    return pa.chunked_array([*old.column(column).chunks, *new.column(column).chunks], new.schema.field(column).type)


def codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """A number for each distinct value, -1 for null, and the values in the order of their numbers."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind):
        kind = pa.large_string()  # its offsets do not overflow when all rows stand in one array
    elif pa.types.is_binary(kind):
        kind = pa.large_binary()
    if not len(column):
        return np.zeros(0, dtype=np.int64), pa.array([], kind)
    encoded = column.cast(kind).dictionary_encode().combine_chunks()
    return pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64), encoded.dictionary


def spans(starts: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """All places from ``starts[i]`` up to ``starts[i + 1]``, for each chosen i in turn."""
    lengths = starts[chosen + 1] - starts[chosen]
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[chosen] - (ends - lengths), lengths)
