"""Voronoi cells as tasks over Parquet partitions: each reads its cells, with what is near their borders, and no more.

Vectors are handed out block by block. A task finds the cells of a block and writes it as one Parquet file in order of
cells, a row group for each bucket, which is some cells that follow each other. Another task takes one bucket: it reads
that row group of every file and compares within its cells. What travels is the vectors of each block once, and for the
members of a bucket a few bytes: what they ask, and what was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelmill.operators.base import Tasks
from labelmill.operators.columns.vectors import Vectors, normalised
from labelmill.operators.duplicates.vectors_of_a_cell import earliest_in_cell
from labelmill.operators.duplicates.voronoi import Borders, by_cell

LEAST_BLOCK = 1024
"""Vectors in a block, at least."""
BUCKETS = 4
"""Buckets for each task that can run at once, at least, so that all end at about the same time."""


class Partitions:
    """All vectors, divided by tasks into partitions that tasks search.

    Args:
        vectors: The vectors of all images.
        rows: int64 (n,): the row of each image, in order of rank.
        borders: Of the cells.
        sizes: float64 (cells,): about how many vectors each cell has.
        threshold: Least cosine.
        memory: Bytes that blocks on their way may take together, and that the vectors of a bucket may.
        tasks: Where it is done.
    """

    def __init__(
        self,
        vectors: Vectors,
        rows: NDArray[np.int64],
        borders: Borders,
        sizes: NDArray[np.float64],
        threshold: float,
        memory: float,
        tasks: Tasks,
    ) -> None:
        self._tasks, self._threshold, self._width = tasks, threshold, vectors.dimensions
        row_bytes = 4 * vectors.dimensions
        block = max(LEAST_BLOCK, int(memory / (tasks.width + 1) / row_bytes))
        self._ends = _buckets(sizes, max(BUCKETS * tasks.width, int(np.ceil(sizes.sum() * row_bytes / memory))))
        starts = range(0, len(rows), block)
        blocks = (_Block(at, vectors.raw(rows[at : at + block])) for at in starts)
        shared = _Division(tasks.folder, borders, self._ends)
        written: dict[int, _Written] = dict(tasks.map(_write_block, shared, blocks))
        self._blocks = [(start, written[number]) for number, start in enumerate(starts)]

    def __len__(self) -> int:
        return len(self._ends)

    def cells(self) -> Iterator[NDArray[np.int64]]:
        """Ranks of the members of each cell that has any, rising."""
        for bucket in range(len(self)):
            ranks, cells = self._members(bucket)
            yield from (ranks[members] for members in by_cell(cells))

    def first(
        self,
        asked: NDArray[np.bool_],
        among: NDArray[np.bool_],
        parts: NDArray[np.int64] | None,
        found: NDArray[np.int64],
    ) -> None:
        """Lower `found` to the earliest, as `operators.duplicates.representatives.Near.first` defines it; a task for
        each bucket.

        Args:
            asked: bool (n,).
            among: bool (n,).
            parts: int64 (n,).
            found: int64 (n,). Changed in place.
        """
        buckets = []

        def questions() -> Iterator[_Question]:
            for bucket in range(len(self)):
                ranks, _ = self._members(bucket)
                if asked[ranks].any() and among[ranks].any():
                    buckets.append(bucket)
                    part = None if parts is None else parts[ranks]
                    yield _Question(self._pieces(bucket), asked[ranks], among[ranks], part, found[ranks])

        shared = _Search(self._tasks.folder, self._width, self._threshold)
        for number, lower in self._tasks.map(_search_bucket, shared, questions()):
            np.minimum.at(found, self._members(buckets[number])[0], lower)

    def _members(self, bucket: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Ranks and cells of a bucket, in the order in which its partitions hold them."""
        spans = [(at, block, slice(*block.starts[bucket : bucket + 2])) for at, block in self._blocks]
        ranks = [at + block.places[span].astype(np.int64) for at, block, span in spans]
        return np.concatenate(ranks), np.concatenate([block.cells[span] for _, block, span in spans])

    def _pieces(self, bucket: int) -> list[tuple[int, int]]:
        """The file and the row group of each partition of a bucket that is not empty."""
        pieces = []
        for start, block in self._blocks:
            if block.starts[bucket] < block.starts[bucket + 1]:
                pieces.append((start, int(block.groups[bucket])))
        return pieces


def _buckets(sizes: NDArray[np.float64], wanted: int) -> NDArray[np.int64]:
    """One past the last cell of each bucket, so that buckets cost about the same to compare within."""
    cost = np.cumsum(sizes**2 + sizes + 1)
    goals = cost[-1] * np.arange(1, min(wanted, len(sizes)) + 1) / min(wanted, len(sizes))
    return np.unique(np.append(np.searchsorted(cost, goals[:-1]) + 1, len(sizes)))


@dataclass(frozen=True, eq=False)
class _Division:
    """What is needed to divide any block."""

    folder: str
    borders: Borders
    ends: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Block:
    """Vectors (n, d) as their column holds them, and the rank of the first."""

    start: int
    numbers: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class _Written:
    """What stands in the partitions of a block: places in the block and cells, and where each partition starts."""

    places: NDArray[np.int32]
    cells: NDArray[np.int32]
    starts: NDArray[np.int64]

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """The row group of each bucket that is not empty; int64 (buckets,)."""
        return np.cumsum(np.diff(self.starts) > 0) - 1


@dataclass(frozen=True, eq=False)
class _Search:
    """What is needed to search any bucket."""

    folder: str
    dimensions: int
    threshold: float


@dataclass(frozen=True, eq=False)
class _Question:
    """A bucket's partitions, and for its members, in their order, what `Partitions.first` is asked."""

    pieces: list[tuple[int, int]]
    asked: NDArray[np.bool_]
    among: NDArray[np.bool_]
    parts: NDArray[np.int64] | None
    found: NDArray[np.int64]


def _file(folder: str, start: int) -> str:
    return f"{folder}/block-{start:012d}.parquet"


def _write_block(shared: _Division, block: _Block) -> _Written:
    import fsspec
    import pyarrow.parquet as pq

    rows, cells = shared.borders.cells_of(normalised(block.numbers))
    order = np.argsort(cells, kind="stable")
    rows, cells = rows[order], cells[order]
    starts = np.searchsorted(cells, np.append(0, shared.ends))
    kind = pa.binary(block.numbers.dtype.itemsize * block.numbers.shape[1])
    schema = pa.schema(
        [("rank", pa.int64()), ("cell", pa.int32()), ("vector", kind)], {b"dtype": block.numbers.dtype.str.encode()}
    )
    with (
        fsspec.open(_file(shared.folder, block.start), "wb") as file,
        pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False) as writer,
    ):
        for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if low < high:
                numbers = np.ascontiguousarray(block.numbers[rows[low:high]])
                packed = pa.FixedSizeBinaryArray.from_buffers(kind, high - low, [None, pa.py_buffer(numbers)])
                columns = [block.start + rows[low:high], cells[low:high].astype(np.int32), packed]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=high - low)
    return _Written(rows.astype(np.int32), cells.astype(np.int32), starts)


def _search_bucket(shared: _Search, question: _Question) -> NDArray[np.int64]:
    """The earliest for each member, at most what was found before."""
    ranks, cells, numbers = _read(shared, question.pieces)
    found = question.found.copy()
    for members in by_cell(cells):
        found[members] = earliest_in_cell(
            members,
            lambda some: normalised(numbers[some]),
            ranks,
            question.asked,
            question.among,
            question.parts,
            found,
            shared.threshold,
        )
    return found


def _read(shared: _Search, pieces: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int32], Any]:
    """Ranks, cells and vectors, (n, d) as their column held them, of some row groups."""
    import fsspec
    import pyarrow.parquet as pq

    tables = []
    for start, group in pieces:
        with fsspec.open(_file(shared.folder, start), "rb") as file, pq.ParquetFile(file) as parquet:
            tables.append(parquet.read_row_group(group, use_threads=False))
    table = pa.concat_tables(tables)
    dtype = np.dtype((table.schema.metadata or {})[b"dtype"].decode())
    numbers = np.concatenate(
        [
            np.frombuffer(chunk.buffers()[1], dtype).reshape(-1, shared.dimensions)[chunk.offset :][: len(chunk)]
            for chunk in table.column("vector").chunks
        ]
    )
    return table.column("rank").to_numpy(), table.column("cell").to_numpy(), numbers
