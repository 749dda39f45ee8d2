"""Which vectors of one cell are near which, by products of matrices and a second look at close calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.voronoi import on_device

ROWS = 1024
"""Vectors that are compared with others at once."""
ROUNDING = 1e-6
"""Cosines of float16 vectors are not more exact than that."""


def earliest_in_cell(
    take: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    ranks: NDArray[np.int64],
    asked: NDArray[np.bool_],
    among: NDArray[np.bool_],
    parts: NDArray[np.int64] | None,
    found: NDArray[np.int64],
    threshold: float,
) -> None:
    """Lower what was found for the vectors of a cell to the earliest that each is near in this cell.

    Args:
        take: Gives unit vectors, float32 (n, d), by their places in the cell.
        ranks: int64 (m,): of the members, rising.
        asked: bool (m,): for which of them.
        among: bool (m,): which of them it may be.
        parts: int64 (m,): it must be of another part.
        found: int64 (m,): the lowest rank so far. Changed in place.
        threshold: Least cosine.
    """
    for asking, answering in _sides(asked, among, parts):
        if asking.any() and answering.any():
            some = np.flatnonzero(asking | answering)
            lower = _Cell(take(some), ranks[some], None if parts is None else parts[some], found[some], threshold)
            lower.search(np.flatnonzero(asking[some]), np.flatnonzero(answering[some]))
            found[some] = lower.found


def near_pairs(vectors: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """bool (m, m): which of m unit vectors are near which."""
    tensor = on_device(vectors)
    near = tensor @ tensor.T
    sure: NDArray[np.bool_] = (near >= threshold + 1e-4).cpu().numpy()
    one, other = np.nonzero(((near >= threshold - 1e-4).cpu().numpy()) & ~sure)
    close = _cosines(vectors, one, other) >= threshold - ROUNDING
    sure[one[close], other[close]] = True
    return sure


class _Cell:
    """Vectors that are compared with each other, in order of rank; `found` is lowered."""

    def __init__(
        self,
        vectors: NDArray[np.float32],
        ranks: NDArray[np.int64],
        parts: NDArray[np.int64] | None,
        found: NDArray[np.int64],
        threshold: float,
    ) -> None:
        self.found = found
        self._vectors, self._ranks, self._parts, self._threshold = vectors, ranks, parts, threshold

    def search(self, questions: NDArray[np.int64], answers: NDArray[np.int64]) -> None:
        quick, margin = _quick(self._vectors)
        least = self._threshold - margin
        for begin in range(0, len(questions), ROWS):
            places = questions[begin : begin + ROWS]
            low, size = 0, ROWS
            while len(places) and low < len(answers) and answers[low] < places[-1]:
                others = answers[low : low + size]
                score = quick[_span(places)] @ quick[_span(others)].T
                itself = np.minimum(np.searchsorted(others, places), len(others) - 1)
                there = np.flatnonzero(others[itself] == places)
                score[there, itself[there]] = -1
                # Most have nothing else near at all: that is cheap to see, and which of all are near is not.
                some = np.flatnonzero((score.amax(dim=1) >= least).cpu().numpy())
                if len(some):
                    near = (score[some] >= least).cpu().numpy()
                    asking = places[some]
                    near &= self._ranks[others] < np.minimum(self._ranks[asking], self.found[asking])[:, None]
                    if self._parts is not None:
                        near &= self._parts[others] != self._parts[asking, None]
                    self._settle(asking, others, near)
                # The others come in order of rank: nothing later can be earlier than what is found.
                places = places[np.minimum(self._ranks[places], self.found[places]) > self._ranks[others[-1]]]
                low, size = low + size, min(size * 2, 8 * ROWS)

    def _settle(self, places: NDArray[np.int64], others: NDArray[np.int64], near: NDArray[np.bool_]) -> None:
        """Of what may be near each, take the first that is."""
        unsettled = np.flatnonzero(near.any(axis=1))
        while len(unsettled):
            column = near[unsettled].argmax(axis=1)
            close = _cosines(self._vectors, places[unsettled], others[column]) >= self._threshold - ROUNDING
            self.found[places[unsettled[close]]] = self._ranks[others[column[close]]]
            near[unsettled, column] = False
            unsettled = unsettled[~close]
            unsettled = unsettled[near[unsettled].any(axis=1)]


def _span(places: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Rising places as a slice where none is left out, for what is indexed is not copied then."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) else places


def _cosines(vectors: NDArray[np.float32], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.empty(len(one))
    for start in range(0, len(one), 4 * ROWS):
        part = slice(start, start + 4 * ROWS)
        found[part] = np.einsum("ij,ij->i", vectors[one[part]], vectors[other[part]], dtype=np.float64)
    return found


def _sides(
    asked: NDArray[np.bool_], among: NDArray[np.bool_], parts: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Who asks whom in a cell: if most are of one part, these ask the others, not each other."""
    largest = None
    if parts is not None and len(parts):
        numbers, sizes = np.unique(parts, return_counts=True)
        largest = parts == numbers[sizes.argmax()]
    if largest is None or 2 * np.count_nonzero(largest) < len(largest):
        yield asked, among
    else:
        yield asked & largest, among & ~largest
        yield asked & ~largest, among


def _quick(vectors: NDArray[np.float32]) -> tuple[Any, float]:
    """The vectors as the machine multiplies them fastest, and by how much a cosine may then be too low."""
    import torch

    tensor = on_device(vectors)
    if tensor.is_cuda:
        return tensor.half(), 2.0**-9
    if torch.cpu.get_capabilities().get("amx_bf16"):
        return tensor.bfloat16(), 2.0**-6
    return tensor, 1e-4
