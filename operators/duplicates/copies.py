"""What is a copy of what among the rows of a table: exactly, by hashes and by embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.columns.rows import codes
from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.duplicates.components import connect
from labelmill.operators.duplicates.near_hashes import NearHashes
from labelmill.operators.duplicates.near_vectors import NearVectors
from labelmill.operators.duplicates.representatives import Near, choose

if TYPE_CHECKING:
    from labelmill.operators.base import Tasks

HASHES = {"file": "file_hash", "pixels": "pixel_hash"}


class CopyParams(Protocol):
    """What counts as a copy: the parameters of `deduplicate` that say so, under their names."""

    @property
    def by(self) -> Sequence[str]: ...
    @property
    def distance(self) -> int | None: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def embedding(self) -> str: ...
    @property
    def memory_gb(self) -> float: ...


class Copies:
    """What is a copy of what among the rows of a table."""

    def __init__(self, params: CopyParams, rows: pa.Table, hash_column: str | None, tasks: Tasks | None = None) -> None:
        self._params, self._tasks = params, tasks
        self._codes = {kind: codes(rows.column(HASHES[kind]))[0] for kind in HASHES if kind in params.by}
        self._columns: dict[str, str] = {kind: HASHES[kind] for kind in self._codes}
        self._hashes = self._vectors = None
        self.usable = np.ones(rows.num_rows, dtype=bool)
        for code in self._codes.values():
            self.usable &= code >= 0
        if hash_column is not None:
            self._columns["perceptual"] = hash_column
            self._hashes, there = _hashes(rows.column(hash_column))
            self._hashed = there
            self.usable &= there
        if params.threshold is not None:
            self._vectors = Vectors(rows.column(params.embedding))
            self.usable &= self._vectors.usable

    def problem(self, row: int) -> str:
        """Why a row cannot be compared."""
        lacking = [self._columns[kind] for kind, code in self._codes.items() if code[row] < 0]
        if self._hashes is not None and not self._hashed[row]:
            lacking.append(self._columns["perceptual"])
        if lacking:
            return f"no hash: {' and '.join(lacking)} is null"
        assert self._vectors is not None
        return self._vectors.problems[row]

    def kept_by(self, order: NDArray[np.int64], old: int) -> NDArray[np.int64]:
        """For each row the row of the kept image that it is a copy of: its own if it is kept or cannot be compared.

        Args:
            order: Usable rows, the best first.
            old: So many of the first rows are kept whatever they look like.
        """
        found = self._first_exact(order)
        best = order[found[order] == order]
        kinds = self._near(best)
        if kinds and len(best):
            chosen = choose(kinds, len(best), int((best < old).sum()))
            found[order] = _moved(best, chosen, len(found))[found[order]]
        return found

    def connected(self, order: NDArray[np.int64], old: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each row the best row of its group, chains included; and a row that it is a copy of, on the way there.

        Args:
            order: Usable rows, the best first.
            old: So many of the first rows have a group already. They stand for it.
        """
        found = self._first_exact(order)
        best = order[found[order] == order]
        first, links = connect(self._near(best), len(best), int((best < old).sum()))
        copied = found.copy()
        found[order] = _moved(best, first, len(found))[found[order]]
        copied[best] = best[links]
        return found, copied

    def _first_exact(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each row the first that is an exact copy of it, by the widest of the kinds that count."""
        found = np.arange(len(self.usable))
        if self._codes:
            widest = self._codes["pixels" if "pixels" in self._codes else "file"][order]
            _, first, same = np.unique(widest, return_index=True, return_inverse=True)
            found[order] = order[first[same]]
        return found

    def _near(self, best: NDArray[np.int64]) -> list[Near]:
        """The other kinds, between rows in order of rank."""
        kinds: list[Near] = []
        if self._hashes is not None:
            assert self._params.distance is not None
            kinds.append(NearHashes(self._hashes[best], self._params.distance))
        if self._vectors is not None:
            params = self._params
            assert params.threshold is not None
            kinds.append(NearVectors(self._vectors, best, params.threshold, params.memory_gb, self._tasks))
        return kinds

    def how(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> list[tuple[str, float | None]]:
        """The first kind by which each row is a copy of another, and its figure where it has one."""
        names = np.full(len(one), "semantic" if self._vectors is not None else "perceptual", dtype=object)
        figures = np.full(len(one), np.nan)
        if self._hashes is not None:
            far = np.bitwise_count(self._hashes[one, :1] ^ self._hashes[other]).min(axis=1)
            near = far <= (self._params.distance or 0) if self._vectors is not None else np.ones(len(one), dtype=bool)
            names[near], figures[near] = "perceptual", far[near]
        for kind in reversed(self._codes):
            same = self._codes[kind][one] == self._codes[kind][other]
            names[same], figures[same] = kind, np.nan
        semantic = np.flatnonzero(names == "semantic")
        if len(semantic):
            assert self._vectors is not None
            figures[semantic] = self._vectors.cosines(one[semantic], other[semantic])
        return [
            (name, None if np.isnan(figure) else figure) for name, figure in zip(names, figures.tolist(), strict=True)
        ]


def _moved(rows: NDArray[np.int64], places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows that stand for others among `rows`, as rows of all `count`."""
    moved = np.arange(count)
    moved[rows] = rows[places]
    return moved


def _hashes(column: pa.ChunkedArray) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """uint64 (rows, 1 or 8), and which rows have them."""
    present = column.is_valid().to_numpy()
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else 1
    found = np.zeros((len(column), width), dtype=np.uint64)
    flat = column.drop_null()
    values = pc.list_flatten(flat) if width > 1 else flat
    found[present] = values.to_numpy().astype(np.uint64).reshape(-1, width)
    return found, present
