"""Choose images one after the other, always one of the class that has the fewest so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heapreplace

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.columns.image_classes import ImageClasses
from labelmill.operators.columns.rows import spans
from labelmill.operators.sampling.farthest_point import FarthestPoints

Rows = NDArray[np.int64]

MakeFarthest = Callable[[Rows, Rows, int], FarthestPoints]
"""From the candidates of a class, those of its images chosen before, and how many classes share the memory."""

UNLIMITED = np.iinfo(np.int64).max


def choose_evenly(
    classes: ImageClasses,
    before: Rows,
    candidates: Rows,
    wanted: int,
    limits: NDArray[np.int64],
    ties: NDArray[np.uint64],
    farthest: MakeFarthest | None = None,
) -> Rows:
    """Choose at most `wanted` candidates.

    The next image is always the next candidate of the class of which the fewest images are chosen, among classes that
    have a candidate left and are below their limit. It counts for all its classes; one that shows a class at its limit
    is passed over.

    Args:
        classes: Of all rows.
        before: int64: rows that were chosen in earlier runs; they count.
        candidates: int64: rows to choose from, in the order in which those of a class are chosen.
        wanted: How many to choose.
        limits: int64 (classes,): the most images of each class.
        ties: uint64 (classes,): of classes with equally many images the one with the least is next.
        farthest: Makes what gives the next candidate of a class, instead of their order.

    Returns:
        int64: the chosen rows.
    """
    if wanted >= len(candidates) and (limits == UNLIMITED).all():
        return candidates
    if (np.diff(classes.starts)[candidates] == 1).all():
        return _choose_apart(classes, before, candidates, wanted, limits, ties, farthest)
    return _choose_together(classes, before, candidates, wanted, limits, ties, farthest)


def _choose_apart(
    classes: ImageClasses,
    before: Rows,
    candidates: Rows,
    wanted: int,
    limits: NDArray[np.int64],
    ties: NDArray[np.uint64],
    farthest: MakeFarthest | None,
) -> Rows:
    """The same where every candidate has one class: how many of each class is known before any is chosen."""
    of_class, starts = _by_class(classes, candidates)
    have = _count(classes, before)
    more = level(have, np.diff(starts), limits, wanted, ties) - have
    place = np.arange(len(of_class)) - np.repeat(starts[:-1], np.diff(starts))
    if farthest is None:
        return of_class[place < np.repeat(more, np.diff(starts))]
    old, old_starts = _by_class(classes, before)
    gone = np.zeros(len(classes.starts) - 1, dtype=bool)
    chosen = [np.zeros(0, dtype=np.int64)]
    for number in np.flatnonzero(more).tolist():
        members, count = of_class[starts[number] : starts[number + 1]], int(more[number])
        if count == len(members):
            chosen.append(members)
            continue
        points = farthest(members, old[old_starts[number] : old_starts[number + 1]], 1)
        rows = []
        for _ in range(count):
            row = points.next(gone)
            assert row is not None
            points.choose(row)
            rows.append(row)
        chosen.append(np.array(rows, dtype=np.int64))
    return np.concatenate(chosen)


def level(
    have: NDArray[np.int64],
    available: NDArray[np.int64],
    limits: NDArray[np.int64],
    wanted: int,
    ties: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """How many images each class has in the end when the one with the fewest always gets the next.

    Args:
        have: int64 (classes,): images at the start.
        available: int64 (classes,): images that it can get.
        limits: int64 (classes,): the most images of each class.
        wanted: How many images to give out.
        ties: uint64 (classes,): of classes with equally many images the one with the least is next.
    """
    most = np.minimum(have + available, np.maximum(limits, have))
    if (most - have).sum() <= wanted:
        return most
    low, high = 0, int(most.max())
    while low < high:
        middle = (low + high + 1) // 2
        if (np.clip(middle, have, most) - have).sum() <= wanted:
            low = middle
        else:
            high = middle - 1
    final = np.clip(low, have, most)
    open_classes = np.flatnonzero((final == low) & (most > low))
    rest = wanted - int((final - have).sum())
    final[open_classes[np.argsort(ties[open_classes], kind="stable")[:rest]]] += 1
    return final


def _choose_together(
    classes: ImageClasses,
    before: Rows,
    candidates: Rows,
    wanted: int,
    limits: NDArray[np.int64],
    ties: NDArray[np.uint64],
    farthest: MakeFarthest | None,
) -> Rows:
    of_class, starts = _by_class(classes, candidates)
    counts, most, tie = _count(classes, before).tolist(), limits.tolist(), ties.tolist()
    row_starts, row_classes = classes.starts.tolist(), classes.classes.tolist()
    gone = np.zeros(len(row_starts) - 1, dtype=bool)
    points: dict[int, FarthestPoints] = {}
    present = np.flatnonzero(np.diff(starts)).tolist()
    if farthest is None:
        left = {number: iter(of_class[starts[number] : starts[number + 1]].tolist()) for number in present}
    else:
        old, old_starts = _by_class(classes, before)
        for number in present:
            members, kept = (
                of_class[starts[number] : starts[number + 1]],
                old[old_starts[number] : old_starts[number + 1]],
            )
            points[number] = farthest(members, kept, len(present))
        left = {number: _farthest_first(points[number], gone) for number in present}
    heap = [(counts[number], tie[number], number) for number in present]
    heapify(heap)
    passed = bytearray(len(gone))
    chosen: list[int] = []
    while heap and len(chosen) < wanted:
        count, order, number = heap[0]
        if counts[number] != count:
            heapreplace(heap, (counts[number], order, number))
            continue
        row = next(left[number], None) if count < most[number] else None
        if row is None:
            heappop(heap)
            continue
        if passed[row]:
            continue
        passed[row] = gone[row] = True
        mine = row_classes[row_starts[row] : row_starts[row + 1]]
        if any(counts[one] >= most[one] for one in mine):
            continue
        chosen.append(row)
        for one in mine:
            counts[one] += 1
            if points:
                points[one].choose(row)
    return np.array(chosen, dtype=np.int64)


def _farthest_first(points: FarthestPoints, gone: NDArray[np.bool_]) -> Iterator[int]:
    while (row := points.next(gone)) is not None:
        yield row


def _by_class(classes: ImageClasses, rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
    """Rows class by class, in their order; one with several classes in each. And where each class begins."""
    pairs = spans(classes.starts, rows)
    images, numbers = classes.images[pairs], classes.classes[pairs]
    by_class = np.argsort(numbers, kind="stable")
    return images[by_class], np.searchsorted(numbers[by_class], np.arange(len(classes.names) + 1))


def _count(classes: ImageClasses, rows: Rows) -> NDArray[np.int64]:
    return np.bincount(classes.classes[spans(classes.starts, rows)], minlength=len(classes.names))
