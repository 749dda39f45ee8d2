"""How precision and recall of one class depend on the score that its detections must have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Event = tuple[float, int, int]
"""A score, and by how much there are more labels, and more right ones, at all thresholds up to it."""


@dataclass(frozen=True)
class Curve:
    """Counts at every threshold that makes a difference.

    Attributes:
        scores: float64 (k,), descending, each once. What is said of one holds down to just above the next.
        labels: int (k,): detections that reach the score and become labels.
        right: int (k,): those that are an object of the class.
        objects: How many objects there are.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    right: NDArray[np.int64]
    objects: int

    @classmethod
    def of(cls, events: Iterable[Event], objects: int) -> Curve:
        """Add up events, in any order."""
        table = np.array(list(events), dtype=np.float64).reshape(-1, 3)
        scores, place = np.unique(-table[:, 0], return_inverse=True)
        steps = np.zeros((len(scores), 2))
        np.add.at(steps, place, table[:, 1:])
        totals = steps.cumsum(axis=0).astype(np.int64)
        return cls(-scores, totals[:, 0], totals[:, 1], objects)

    @property
    def precision(self) -> NDArray[np.float64]:
        """The share of the labels that are right, NaN where there are none."""
        return np.divide(self.right, self.labels, out=np.full(len(self.labels), np.nan), where=self.labels > 0)

    @property
    def f1(self) -> NDArray[np.float64]:
        """The harmonic mean of precision and recall; 0 where nothing is right."""
        both = self.labels + self.objects
        return np.divide(2 * self.right, both, out=np.zeros(len(self.labels)), where=both > 0)

    def at(self, score: float) -> tuple[int, int]:
        """Labels, and right ones, when detections must have at least this score."""
        place = int((self.scores >= score).sum()) - 1
        return (int(self.labels[place]), int(self.right[place])) if place >= 0 else (0, 0)

    def best(self) -> int | None:
        """Where F1 is largest, at the highest such score; None if nothing is right at any finite one."""
        usable = np.isfinite(self.scores) & (self.right > 0)
        return int(np.where(usable, self.f1, -1).argmax()) if usable.any() else None

    def lowest(self, precision: float, labels: int = 1) -> int | None:
        """Where the lowest score is that reaches a precision with at least so many labels; None if none does."""
        enough = np.isfinite(self.scores) & (self.labels >= labels) & (self.right >= precision * self.labels)
        return int(np.flatnonzero(enough)[-1]) if enough.any() else None

    def between(self, place: int) -> float:
        """A short number in the middle of the thresholds for which the counts at `place` hold.

        Compared as float32, as scores are, it lies above the next lower score and not above ``scores[place]``.
        """
        high = float(self.scores[place])
        low = float(self.scores[place + 1]) if place + 1 < len(self.scores) else 0.9 * high
        for digits in range(2, 9):
            found = round((low + high) / 2, digits)
            if low < float(np.float32(found)) <= high:
                return found
        return high
