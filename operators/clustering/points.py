"""The vectors of a dataset as points: copies counted once, in an order that is the same however the rows lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.columns.vectors import Vectors

BLOCK = 16_384
"""Points that are looked at together: 32 MB of float32 at 512 dimensions."""


@dataclass(frozen=True)
class Points:
    """Distinct vectors. Point 0 is the one with the smallest key, and so on.

    A thousand copies of one picture would otherwise be a cluster of infinite density, draw centres to themselves, and
    be each other's nearest neighbours at distance 0.

    Attributes:
        vectors: Where the vectors are read.
        rows: int64 (points,): the row of each with the smallest key.
        copies: int64 (points,): how many rows have that vector.
    """

    vectors: Vectors
    rows: NDArray[np.int64]
    copies: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, points: NDArray[np.int64]) -> Points:
        """Some of them, in ascending order; they are numbered anew."""
        return Points(self.vectors, self.rows[points], self.copies[points])

    def load(self, points: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Unit vectors of chosen points, or of all: float32 (n, dimensions), in the order asked for."""
        return self.vectors.take(self.rows if points is None else self.rows[points])

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All points with their unit vectors, in the order in which they lie on the disk."""
        order = np.argsort(self.rows)
        for start in range(0, len(order), BLOCK):
            points = order[start : start + BLOCK]
            yield points, self.load(points)

    def sample(self, count: int, seed: int) -> NDArray[np.int64]:
        """At most `count` points, ascending; the same for the same set of keys and vectors."""
        if count >= len(self):
            return np.arange(len(self))
        return np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))


def read_points(vectors: Vectors, keys: pa.ChunkedArray) -> tuple[Points, NDArray[np.int64]]:
    """Find the distinct vectors among those that are usable.

    Two vectors are one point when all their numbers are equal; by a hash of 64 bits, which takes two different ones
    among ten million for equal once in 370,000 datasets.

    Args:
        vectors: One per row.
        keys: One per row, unique.

    Returns:
        The points; and int64 (rows,) the point of each row, -1 where the vector is not usable.
    """
    by_key = pc.sort_indices(keys).to_numpy().astype(np.int64)
    by_key = by_key[vectors.usable[by_key]]
    codes = _codes(vectors)[by_key]
    _, first, inverse, counts = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    of_row = np.full(len(vectors), -1, dtype=np.int64)
    of_row[by_key] = number[inverse]
    return Points(vectors, by_key[first[order]], counts[order]), of_row


def _codes(vectors: Vectors) -> NDArray[np.uint64]:
    from xxhash import xxh3_64_intdigest

    codes = np.empty(len(vectors), dtype=np.uint64)
    for start, block in vectors.blocks(BLOCK):
        codes[start : start + len(block)] = [xxh3_64_intdigest(vector) for vector in block]
    return codes
