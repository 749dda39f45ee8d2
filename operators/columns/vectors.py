"""Embeddings of a whole dataset: read from a memory-mapped column a block at a time, with what cannot be used named."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelmill.operators.errors import OperatorError

BLOCK = 65_536
"""Rows that are looked at together: 128 MB of float32 at 512 dimensions."""

MISSING = "there is no embedding"
ZERO = "the embedding must not be all zeros"
INFINITE = "the embedding must be finite"


def holds_vectors(kind: pa.DataType) -> bool:
    """Whether a column of that type holds vectors of one length."""
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type) and kind.list_size)


def check_vectors(column: str, found: pa.DataType) -> None:
    """Refuse a column that the parameter `embedding` names and that holds something else.

    Raises:
        OperatorError: It must hold vectors of one length.
    """
    if not holds_vectors(found):
        raise OperatorError(f"column {column!r} must hold vectors of one length but is {found}", ("embedding",))


class Vectors:
    """The vectors of a column, by row.

    Args:
        column: fixed_size_list of float16, float32 or float64, nulls allowed. What is memory-mapped stays on the disk.

    Attributes:
        dimensions: Numbers in a vector.
        usable: bool (rows,): neither null nor all zeros, and finite.
        problems: Why not, for the others.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.dimensions: int = column.type.list_size
        self._length = len(column)
        self._dtype = column.type.value_type.to_pandas_dtype()
        self._chunks = [_Chunk(chunk) for chunk in column.chunks if len(chunk)]
        self._starts = np.cumsum([0, *(len(chunk.numbers) for chunk in self._chunks)])
        self.usable = np.ones(self._length, dtype=bool)
        self.problems: dict[int, str] = {}
        for start, raw, present in self._raw_blocks():
            squares = np.einsum("ij,ij->i", raw, raw)
            bad = ~(present & np.isfinite(squares) & (squares > 0))
            for row in np.flatnonzero(bad).tolist():
                reason = MISSING if not present[row] else ZERO if squares[row] == 0 else INFINITE
                self.problems[start + row] = reason
            self.usable[start : start + len(raw)] = ~bad

    def __len__(self) -> int:
        return self._length

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows from `start` to `stop`: float32 (n, dimensions), L2-normalised; zeros where a row is not usable."""
        return self.take(np.arange(start, min(stop, self._length)))

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All rows, in order: where a block begins, and `block`."""
        for start in range(0, self._length, size):
            yield start, self.block(start, start + size)

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Chosen rows, in the order asked for: as `block`. They are read in the order in which they stand."""
        numbers = self.raw(rows)
        numbers[~self.usable[rows]] = 0
        return normalised(numbers)

    def raw(self, rows: NDArray[np.integer]) -> NDArray[np.floating]:
        """Chosen rows as the column holds them, (n, dimensions); nulls are anything."""
        found = np.zeros((len(rows), self.dimensions), dtype=self._dtype)
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self._starts)
        for number, (low, high) in enumerate(pairwise(ends.tolist())):
            if low < high:
                here = order[low:high]
                found[here] = self._chunks[number].numbers[rows[here] - self._starts[number]]
        return found

    def cosines(self, one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float64]:
        """Cosines of pairs of rows, float64 (n,)."""
        found = np.empty(len(one))
        for start in range(0, len(one), BLOCK):
            part = slice(start, start + BLOCK)
            found[part] = np.einsum("ij,ij->i", self.take(one[part]), self.take(other[part]), dtype=np.float64)
        return found

    def _raw_blocks(self) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
        for chunk, first in zip(self._chunks, self._starts[:-1].tolist(), strict=True):
            for start in range(0, len(chunk.numbers), BLOCK):
                stop = start + BLOCK
                yield first + start, _float32(chunk.numbers[start:stop]), chunk.present[start:stop]


class _Chunk:
    """One chunk of the column: a view of its numbers, (rows, dimensions), and which rows are not null."""

    def __init__(self, chunk: pa.FixedSizeListArray) -> None:
        size = chunk.type.list_size
        values = chunk.values.slice(chunk.offset * size, len(chunk) * size)
        # Null numbers inside a list would hide as zeros: they become NaN, which is refused.
        plain = values.to_numpy(zero_copy_only=not values.null_count)
        self.numbers: NDArray[np.floating] = plain.reshape(len(chunk), size)
        self.present: NDArray[np.bool_] = chunk.is_valid().to_numpy(zero_copy_only=False)


def normalised(numbers: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors (n, d) in float32, L2-normalised. What is all zeros stays so."""
    found = _float32(numbers)
    norms = np.sqrt(np.einsum("ij,ij->i", found, found))
    found /= np.where(norms > 0, norms, 1)[:, None]
    return found


def _float32(numbers: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors in float32: of other types than float16 scaled, as their squares could be too large or too small."""
    if numbers.dtype != np.float16:
        with np.errstate(invalid="ignore"):
            largest = np.abs(numbers).max(axis=1, keepdims=True)
            numbers = np.divide(numbers, largest, out=np.zeros_like(numbers), where=largest != 0)
    return numbers.astype(np.float32)
