"""Which vectors of one cell are near which, by products of matrices and a second look at close calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.duplicates.voronoi import as_multiplied, on_device

ROWS, OTHERS = 256, 1024
"""Vectors that are compared at once, first with as many others, then with more and more up to this: what a processor's
cache holds. Products are of multiples of the former: oneDNN makes code for every shape that it is asked for, which
takes longer than to use it."""
ON_GPU = 16
"""Times as many fill a GPU."""
ROUNDING = 1e-6
"""Cosines of float16 vectors are not more exact than that."""


def earliest_in_cell(
    members: NDArray[np.int64],
    take: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    ranks: NDArray[np.int64],
    asked: NDArray[np.bool_],
    among: NDArray[np.bool_],
    parts: NDArray[np.int64] | None,
    found: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.int64]:
    """The earliest that each vector of a cell is near in this cell, at most what was found before.

    Args:
        members: int64 (m,): which of n vectors are in the cell, in order of rank.
        take: Gives unit vectors, float32 (k, d), of k of the n.
        ranks: int64 (n,).
        asked: bool (n,): for which of them.
        among: bool (n,): which of them it may be.
        parts: int64 (n,): it must be of another part.
        found: int64 (n,): the lowest rank so far.
        threshold: Least cosine.

    Returns:
        int64 (m,): a rank for each member.
    """
    lower = found[members]
    for asking, answering in _sides(asked[members], among[members], None if parts is None else parts[members]):
        if asking.any() and answering.any():
            chosen = np.flatnonzero(asking | answering)
            some = members[chosen]
            cell = _Cell(take(some), ranks[some], None if parts is None else parts[some], lower[chosen], threshold)
            cell.search(np.flatnonzero(asking[chosen]), np.flatnonzero(answering[chosen]))
            lower[chosen] = cell.found
    return lower


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
        scale = ON_GPU if quick.is_cuda else 1
        for begin in range(0, len(questions), scale * ROWS):
            places = questions[begin : begin + scale * ROWS]
            low, size, end = 0, scale * ROWS, int(np.searchsorted(answers, places[-1]))
            while len(places) and low < end:
                others = answers[low : min(low + size, end)]
                score = (quick[_span(places)] @ quick[_span(others)].T)[: len(places), : len(others)]
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
                low, size = low + size, min(size * 2, scale * OTHERS)

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
    """Rising places, and as many more as make a multiple of `ROWS`. A slice where none is left out, for what it takes
    is not copied."""
    first, more = int(places[0]), -len(places) % ROWS
    if int(places[-1]) - first + 1 == len(places):
        return slice(first, first + len(places) + more)
    return np.pad(places, (0, more), mode="edge")


def _cosines(vectors: NDArray[np.float32], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.empty(len(one))
    for start in range(0, len(one), OTHERS):
        part = slice(start, start + OTHERS)
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
    """The vectors as the machine multiplies them fastest, and by how much a cosine may then be too low.

    `ROWS` rows of zeros follow them.
    """
    import torch

    quick = as_multiplied(on_device(vectors))
    margin = {torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}.get(quick.dtype, 1e-4)
    return torch.nn.functional.pad(quick, (0, 0, 0, ROWS)), margin
