"""Nearest neighbours by Euclidean distance between unit vectors, √(2 − 2 cosine), and what they say about density."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.clustering.centres import train
from labelmill.operators.clustering.points import BLOCK, Points
from labelmill.operators.clustering.similar import most_similar

EXACT = 16_384
"""Up to as many points every one is compared; beyond, those in the nearest cells (see `Cells`)."""

CELL = 128
"""Points of a cell, on average: what a query is compared with does not grow with the points."""

PROBES = 16
"""Cells that are looked into.

Of 50,000 vectors of 512 numbers in 400 planted clusters this finds all of the 10 nearest neighbours (at least .999),
and .76 for those in no cluster, whose neighbours are all nearly as far: the distances to the 10th were 1 % too large at
most. Of vectors without clusters in 16 dimensions, with noise in all 512, it finds .81; the 10th was 1.2 % too far
in the mean and 8 % at most.
"""

RESOLUTION = 1e-3
"""Two float16 copies of one unit vector may be as far apart as this, so smaller distances say nothing."""

_PAIRS = 16_384
_PER_CELL, _ROUNDS = 32, 6
_CANDIDATES = 64
"""Neighbours found in single cells that are held at once, for each point that may be found: as many queries are asked
together as that allows, so that what it costs to turn to a cell is shared by as many, however many cells there are."""


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest points of some points.

    Attributes:
        points: int64 (n, k): the nearest, nearest first; never the point itself.
        distances: float64 (n, k), ascending.
    """

    points: NDArray[np.int64]
    distances: NDArray[np.float64]

    def nearest(self, count: int) -> Neighbourhood:
        """Fewer of them."""
        return Neighbourhood(self.points[:, :count], self.distances[:, :count])


class Neighbours:
    """Searches among points (FAISS).

    Args:
        points: Which points there are.
        chosen: int64, ascending: those that may be found.
        exact: Compare with every point whatever their number.
    """

    def __init__(self, points: Points, chosen: NDArray[np.int64], exact: bool = False) -> None:
        self._all = points
        self.points = chosen
        self.vectors = points.load(chosen)
        self._index = None if exact or len(chosen) <= EXACT else Cells(self.vectors)

    def search(self, queries: NDArray[np.int64], count: int) -> Neighbourhood:
        """The nearest points of each query.

        Args:
            queries: int64 (n,).
            count: How many; fewer are given when there are not so many.
        """
        is_own = np.isin(queries, self.points, assume_unique=True)
        count = min(count, len(self.points) - (1 if is_own.any() else 0))
        found = np.empty((len(queries), count), dtype=np.int64)
        distances = np.empty((len(queries), count))
        order = np.argsort(self._all.rows[queries])  # as they lie on the disk
        step = BLOCK if self._index is None else max(BLOCK, self._index.together(count + 1))
        for start in range(0, len(queries) if count else 0, step):
            part = order[start : start + step]
            vectors = self._all.load(queries[part])
            places = self._closest(vectors, min(count + 1, len(self.points)))
            found[part], distances[part] = self._nearest(queries[part], vectors, places, count)
        return Neighbourhood(found, distances)

    def _closest(self, vectors: NDArray[np.float32], wanted: int) -> NDArray[np.int64]:
        """Places of those with the highest cosines: int64 (n, wanted)."""
        if self._index is None:
            return most_similar(vectors, self.vectors, wanted)[1]
        places = self._index.search(vectors, wanted)
        # -1 where the cells that were looked into hold too few: those queries are compared with all.
        short = np.flatnonzero((places < 0).any(axis=1))
        if len(short):
            places[short] = most_similar(vectors[short], self.vectors, wanted)[1]
        return places

    def _nearest(
        self, queries: NDArray[np.int64], vectors: NDArray[np.float32], places: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Without the point itself; of those equally far the first by key is nearer."""
        distances = np.empty(places.shape)
        step = max(1, _PAIRS // places.shape[1])
        for start in range(0, len(places), step):
            part = slice(start, start + step)
            # By differences: a product of matrices is exact to 1e-7 only, which is 3e-4 of distance.
            apart = vectors[part, None] - self.vectors[places[part]]
            distances[part] = np.sqrt(np.einsum("ijk,ijk->ij", apart, apart))
        distances[self.points[places] == queries[:, None]] = np.inf
        order = np.lexsort((places, distances), axis=1)[:, :count]
        return self.points[np.take_along_axis(places, order, 1)], np.take_along_axis(distances, order, 1)


class Cells:
    """An inverted file (FAISS's IVF) of n / `CELL` cells, whose centres do not depend on the number of threads.

    What is asked together is compared cell by cell, with products of matrices. FAISS's own compares query after query,
    for each of which everything that it is compared with comes from memory again; that takes three times as long.

    A query is compared with n / `CELL` centres, all in one fast product, and with the points of `PROBES` cells, which
    take most of the time and are as many for any n; with 4 √n cells (FAISS's guideline) both would grow.

    Args:
        vectors: float32 (n, dimensions), unit length.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        count = max(1, len(vectors) // CELL)
        some = np.random.default_rng(0).choice(len(vectors), min(len(vectors), count * _PER_CELL), replace=False)
        self._centres = train(vectors[np.sort(some)], count, seed=0, rounds=_ROUNDS)
        blocks = (vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK))
        home = np.concatenate([most_similar(block, self._centres, 1)[1][:, 0] for block in blocks])
        self._places = np.argsort(home, kind="stable")
        self._vectors = vectors[self._places]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(home, minlength=count))])

    def search(self, queries: NDArray[np.float32], wanted: int) -> NDArray[np.int64]:
        """Places of those with the highest cosines in the nearest cells: int64 (n, wanted); -1 for those that lack."""
        step = self.together(wanted)
        parts = [self._search(queries[start : start + step], wanted) for start in range(0, len(queries), step)]
        return np.concatenate(parts)

    def together(self, wanted: int) -> int:
        """Queries that are asked at once."""
        return max(1, _CANDIDATES * len(self._vectors) // (PROBES * wanted))

    def _search(self, queries: NDArray[np.float32], wanted: int) -> NDArray[np.int64]:
        probes = most_similar(queries, self._centres, min(PROBES, len(self._centres)))[1]
        # Questions by the cell that they go to: whose, and which of its probes.
        asker, probe = np.divmod(np.argsort(probes.ravel(), kind="stable"), probes.shape[1])
        ends = np.cumsum(np.bincount(probes.ravel(), minlength=len(self._centres)))
        cosines = np.full((*probes.shape, wanted), -np.inf, dtype=np.float32)
        places = np.full((*probes.shape, wanted), -1, dtype=np.int64)
        for cell in np.unique(probes).tolist():
            low, high = self._starts[cell : cell + 2].tolist()
            asking = slice(ends[cell - 1] if cell else 0, ends[cell])
            row, column, most = asker[asking], probe[asking], min(wanted, high - low)
            if most:
                near = most_similar(queries[row], self._vectors[low:high], most)
                cosines[row, column, :most] = near[0]
                places[row, column, :most] = self._places[low + near[1]]
        best = np.argpartition(-cosines.reshape(len(queries), -1), wanted - 1, axis=1)[:, :wanted]
        return np.take_along_axis(places.reshape(len(queries), -1), best, 1)


def outlier_scores(
    points: Points, queries: NDArray[np.int64], count: int, references: NDArray[np.int64], known: Neighbourhood | None
) -> NDArray[np.float64]:
    """How far a point is from its k-th neighbour, against how far these are from theirs.

    The simplified local outlier factor (Schubert, Zimek, Kriegel 2014, Local outlier detection reconsidered, section
    4.1; after Breunig et al. 2000, LOF): the mean over the k nearest neighbours o of ``kdist(p) / kdist(o)``. It is
    near 1 inside a group however dense that is, and grows without bound away from it.

    Args:
        points: Which points there are.
        queries: int64, ascending: those to score.
        count: k.
        references: int64, ascending: among which neighbours are sought.
        known: The nearest among `references` of all points, where they have been found already; at least `count`.

    Returns:
        float64 (queries,). 1 where there is no other point.
    """
    if known is None:
        search = Neighbours(points, references)
        around = search.search(queries, count)
    else:
        around = Neighbourhood(known.points[queries], known.distances[queries]).nearest(count)
    if not around.points.shape[1]:
        return np.ones(len(queries))
    reach = np.full(len(points), np.nan)
    reach[queries] = around.distances[:, -1]
    others = np.setdiff1d(around.points, queries)
    if len(others):
        found = known.distances[others] if known is not None else search.search(others, count).distances
        reach[others] = found[:, :count][:, -1]
    reach = np.maximum(reach, RESOLUTION)
    scores = np.empty(len(queries))
    for start in range(0, len(queries), BLOCK):
        part = slice(start, start + BLOCK)
        scores[part] = (reach[queries[part], None] / reach[around.points[part]]).mean(axis=1)
    return scores
