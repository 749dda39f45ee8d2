"""Counts of figures whose range is not known beforehand, in bins with round edges. The order of values is no matter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FINEST = 1e-3
"""Width of a bin to begin with."""

MAX_BINS = 2000
"""Bins over which the values may spread before ten become one."""

EXACT = 2.0**52
"""Bins from 0 on that float64 tells apart."""

SHOWN = 100
"""Bins of the finished histogram, at most."""


class Histogram:
    """Bins of width 10^n, aligned at 0, that widen tenfold as the values spread.

    Attributes:
        count: Values that are numbers.
    """

    def __init__(self) -> None:
        self._factor = 1
        self._bins: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._counts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.count = 0

    def add(self, values: NDArray[np.floating]) -> None:
        """Count some values; those that are not finite are left out."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if not len(finite):
            return
        self.count += len(finite)
        edges = [finite.min(), finite.max()]
        if len(self._bins):
            edges += [self._bins[0] * self._width, self._bins[-1] * self._width]
        while (max(edges) - min(edges)) / self._width > MAX_BINS or max(map(abs, edges)) / self._width > EXACT:
            self._bins, self._counts = _merged(self._bins, self._counts, 10)
            self._factor *= 10
        # Figures are float32: 0.7 is 0.699999988 and belongs to the bin that begins at 0.7.
        finest = np.floor(np.round(finite / FINEST, 3))
        places = np.floor(finest / self._factor).astype(np.int64)
        self._bins, inverse = np.unique(np.concatenate([self._bins, places]), return_inverse=True)
        weights = np.concatenate([self._counts, np.ones(len(places), dtype=np.int64)])
        self._counts = np.bincount(inverse, weights=weights).astype(np.int64)

    def finish(self) -> dict[str, Any]:
        """``start`` and ``width`` of the first bin, and ``counts`` of all, empty ones between them included."""
        if not self.count:
            return {"start": 0.0, "width": 1.0, "counts": []}
        factor = 1
        spread = int(self._bins[-1] - self._bins[0]) + 1
        for wider in (1, 2, 5, 10, 20, 50):
            factor = wider
            if spread / wider <= SHOWN:
                break
        bins, weights = _merged(self._bins, self._counts, factor)
        width = self._width * factor
        counts = np.zeros(int(bins[-1] - bins[0]) + 1, dtype=np.int64)
        counts[bins - bins[0]] = weights
        return {"start": round(int(bins[0]) * width, 6), "width": round(width, 6), "counts": counts.tolist()}

    @property
    def _width(self) -> float:
        return FINEST * self._factor


def _merged(
    bins: NDArray[np.int64], counts: NDArray[np.int64], factor: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bins `factor` times as wide."""
    wider, inverse = np.unique(bins // factor, return_inverse=True)
    return wider, np.bincount(inverse, weights=counts, minlength=len(wider)).astype(np.int64)
