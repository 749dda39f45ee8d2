"""Arithmetic on boxes: overlap, non-maximum suppression, containment.

Boxes are float arrays of shape ``(n, 4)``, `xyxy` in pixels, with ``x1 < x2`` and ``y1 < y2``. Sums are made in
float64, so results do not depend on how many boxes are computed together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating]
Classes = NDArray[np.int64]

_BLOCK = 256  # rows compared at a time: memory stays flat however many boxes an image has


def areas(boxes: Boxes) -> NDArray[np.float64]:
    """Areas in square pixels, shape ``(n,)``."""
    boxes = boxes.astype(np.float64)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersections(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Areas that are shared by each of `first` (rows) and each of `second` (columns), shape ``(n, m)``."""
    width, height = (_shared(first, second, axis) for axis in (0, 1))
    return np.multiply(width, height, out=width)


def _shared(first: Boxes, second: Boxes, axis: int) -> NDArray[np.float64]:
    """Lengths that each pair shares along x (0) or y (1)."""
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    end = np.minimum(a[..., axis + 2], b[..., axis + 2])
    end -= np.maximum(a[..., axis], b[..., axis])
    return np.maximum(end, 0, out=end)


def iou(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Intersection over union of each of `first` and each of `second`, shape ``(n, m)``."""
    shared = intersections(first, second)
    return shared / (areas(first)[:, None] + areas(second)[None] - shared)


def suppress(
    boxes: Boxes, classes: Classes, threshold: float, within: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Greedy non-maximum suppression (Neubeck and Van Gool 2006), class by class or across classes.

    Args:
        boxes: Best first.
        classes: int, shape ``(n,)``.
        threshold: A box goes if its IoU with a better box that stays is larger.
        within: Compare boxes of the same class; else only boxes of different classes.

    Returns:
        For each box the index of the best box that suppresses it, -1 if it stays; and their IoU, 0 if it stays.
    """
    by = np.full(len(boxes), -1, dtype=np.int64)
    overlap = np.zeros(len(boxes))
    for start in range(0, len(boxes), _BLOCK):
        block, rest = boxes[start : start + _BLOCK], boxes[start:]
        found = iou(block, rest)
        comparable = (classes[start : start + _BLOCK, None] == classes[None, start:]) == within
        gone = np.triu((found > threshold) & comparable, k=1)
        for row in np.flatnonzero(gone.any(axis=1)).tolist():
            if by[start + row] < 0:
                hit = start + np.flatnonzero(gone[row] & (by[start:] < 0))
                by[hit] = start + row
                overlap[hit] = found[row, hit - start]
    return by, overlap


def contained(boxes: Boxes, classes: Classes, threshold: float) -> NDArray[np.int64]:
    """How many smaller boxes of its own class each box contains, shape ``(n,)``.

    One box contains another if the other's area is smaller and their intersection over that smaller area is at least
    `threshold`.
    """
    area = areas(boxes)
    counts = np.zeros(len(boxes), dtype=np.int64)
    for start in range(0, len(boxes), _BLOCK):
        block = slice(start, start + _BLOCK)
        inside = intersections(boxes[block], boxes) >= threshold * area[None]
        smaller = area[None] < area[block, None]
        counts[block] = (inside & smaller & (classes[block, None] == classes[None])).sum(axis=1)
    return counts


def second_inside(
    boxes: Boxes, classes: Classes, scores: NDArray[np.floating], threshold: float
) -> NDArray[np.float64]:
    """The second best score of the boxes that each box contains, in the sense of `contained`; −inf for fewer than two.

    Args:
        boxes: See `contained`.
        classes: See `contained`.
        scores: Float, shape ``(n,)``, without NaN.
        threshold: See `contained`.
    """
    area = areas(boxes)
    second = np.full(len(boxes), -np.inf)
    if len(boxes) < 2:
        return second
    for start in range(0, len(boxes), _BLOCK):
        block = slice(start, start + _BLOCK)
        inside = intersections(boxes[block], boxes) >= threshold * area[None]
        inside &= (area[None] < area[block, None]) & (classes[block, None] == classes[None])
        found = np.where(inside, scores.astype(np.float64)[None], -np.inf)
        second[block] = np.partition(found, -2, axis=1)[:, -2]
    return second
