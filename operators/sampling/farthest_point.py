"""Farthest-point selection (k-center greedy, Gonzalez 1985): each image chosen is the one least like all before it.

Gonzalez compares every candidate with every image chosen: candidates × chosen × dimensions multiplications, read from
memory once per choice. The same choice is found with less. A distance to the nearest chosen image can only shrink, so
one that was measured earlier is an upper bound; only candidates whose bound is among the greatest are measured again,
a few thousand at a time and against all newer choices in one matrix product. What is chosen is exactly what comparing
everything would choose.

Vectors are rounded to whole numbers, a unit vector to a length of at most 4,096, so that every product and every sum of
some products is a whole number up to 2^24, which float32 holds exactly. A matrix product is then exact, in whatever
order, blocks or threads it is summed, and equal distances are equal: neither the machine nor the order of the rows can
change a choice. Rounding moves a cosine by about 1e-4, no more than float16 does.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.columns.vectors import Vectors

POOL = 2_048
"""Candidates whose distances are kept exact: 4 MB of float32 at 512 dimensions."""

STEP = 256
"""Choices that candidates are measured against together."""

BLOCK = 16_384
"""Candidates that are read together."""

_LOW = (1 << 32) - 1
_UNKNOWN = 1 << 30  # more than any squared distance, which is at most 4 × 2^24
_GONE = -1


class FarthestPoints:
    """The images of one class, farthest first. Of equally far ones the earlier candidate is next.

    Candidates beyond the first `at_once` wait: when half of those that are looked at are gone, as many others join.

    Args:
        vectors: Of all rows.
        candidates: int64: rows to choose from, in random order; the first is chosen where nothing was chosen before.
        chosen: int64: rows that were chosen before.
        at_once: How many candidates are looked at.
        memory: Bytes to hold candidates in; where they do not fit, they are read again whenever they are looked at.
    """

    def __init__(
        self,
        vectors: Vectors,
        candidates: NDArray[np.int64],
        chosen: NDArray[np.int64],
        at_once: int,
        memory: int,
    ) -> None:
        self._vectors, self._candidates, self._at_once, self._memory = vectors, candidates, at_once, memory
        self._scale = 4096 - np.sqrt(vectors.dimensions) / 2
        # A candidate's squared distance, or a bound of it, above 2^32 − 1 − its place; the greatest key is next.
        self._keys = np.zeros(0, dtype=np.int64)
        self._measured = np.zeros(0, dtype=np.int64)  # against how many of the chosen
        self._held: NDArray[np.int16] | None = np.zeros((0, vectors.dimensions), dtype=np.int16)
        self._chosen = np.zeros((0, vectors.dimensions), dtype=np.int16)
        self._count = 0
        self._alive = 0  # candidates that are looked at
        self._known: set[bytes] = set()
        self._last: tuple[int, NDArray[np.float32]] | None = None
        for start in range(0, len(chosen), BLOCK):
            for vector in self._read(chosen[start : start + BLOCK]):
                self._add(vector)
        self._join(min(at_once, len(candidates)))
        self._empty_pool()

    def next(self, gone: NDArray[np.bool_]) -> int | None:
        """The row farthest from all that were chosen, which is then no candidate any more; None when none is left.

        Args:
            gone: bool, of all rows: those that are to be passed over.
        """
        while True:
            if self._is_time_to_join():
                self._fill_pool()
            self._measure_pool()
            best = int(self._pool_keys.argmax()) if len(self._pool_keys) else -1
            if best < 0 or self._pool_keys[best] < max(0, self._outside):
                if not self._fill_pool():
                    return None
                continue
            self._pool_keys[best] = _GONE
            self._alive -= 1
            row = int(self._candidates[self._pool[best]])
            if not gone[row]:
                self._last = row, self._pool_vectors[best].copy()
                return row

    def choose(self, row: int) -> None:
        """Say that a row was chosen, whether `next` gave it or another class did."""
        is_last = self._last is not None and self._last[0] == row
        self._add(self._last[1] if is_last and self._last is not None else self._read(np.array([row]))[0])

    def _add(self, vector: NDArray[np.float32]) -> None:
        """Remember a chosen vector. One that is there already brings nothing nearer."""
        small = vector.astype(np.int16)
        digest = blake2b(small.tobytes(), digest_size=16).digest()
        if digest in self._known:
            return
        self._known.add(digest)
        if self._count == len(self._chosen):
            room = np.zeros((max(STEP, self._count), self._vectors.dimensions), dtype=np.int16)
            self._chosen = np.concatenate([self._chosen, room])
        self._chosen[self._count] = small
        self._count += 1

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.rint(self._vectors.take(rows) * np.float32(self._scale))

    def _places(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._held is None:
            return self._read(self._candidates[places])
        return self._held[places].astype(np.float32)

    def _is_time_to_join(self) -> bool:
        return self._alive * 2 <= self._at_once and len(self._keys) < len(self._candidates)

    def _join(self, count: int) -> None:
        """Look at the next candidates too."""
        start = len(self._keys)
        self._alive += count
        places = np.arange(start, start + count)
        self._keys = np.concatenate([self._keys, (_UNKNOWN << 32) + _LOW - places])
        self._measured = np.concatenate([self._measured, np.zeros(count, dtype=np.int64)])
        if self._held is None or (start + count) * self._vectors.dimensions * 2 > self._memory:
            self._held = None
            return
        held = np.zeros((start + count, self._vectors.dimensions), dtype=np.int16)
        held[:start] = self._held
        for first in range(start, start + count, BLOCK):
            rows = self._candidates[first : min(first + BLOCK, start + count)]
            held[first : first + len(rows)] = self._read(rows)
        self._held = held

    def _empty_pool(self) -> None:
        self._pool = np.zeros(0, dtype=np.int64)
        self._pool_keys = np.zeros(0, dtype=np.int64)
        self._pool_vectors = np.zeros((0, self._vectors.dimensions), dtype=np.float32)
        self._pool_measured = self._count
        self._outside = _GONE

    def _fill_pool(self) -> bool:
        """Look again for the candidates with the greatest bounds; False when there is none."""
        self._put_back(np.ones(len(self._pool), dtype=bool))
        self._empty_pool()
        if self._is_time_to_join():
            self._join(min(len(self._candidates) - len(self._keys), self._at_once - self._alive))
        elif not self._alive:
            return False
        if self._count:
            unknown = np.flatnonzero(self._keys >= _UNKNOWN << 32)
            for start in range(0, len(unknown), BLOCK):
                places = unknown[start : start + BLOCK]
                self._measure(places, self._places(places))
        pool = np.arange(len(self._keys))
        if len(pool) > POOL:
            pool = np.argpartition(self._keys, -POOL - 1)[-POOL - 1 :]
            least = int(self._keys[pool].argmin())
            self._outside = int(self._keys[pool[least]])
            pool = np.sort(np.delete(pool, least))
        vectors = self._places(pool)
        self._measure(pool, vectors)
        stays = self._keys[pool] >= max(0, self._outside)
        self._pool, self._pool_vectors = pool[stays], vectors[stays]
        self._pool_keys = self._keys[self._pool]
        return True

    def _put_back(self, leaving: NDArray[np.bool_]) -> None:
        places = self._pool[leaving]
        self._keys[places] = self._pool_keys[leaving]
        self._measured[places] = self._pool_measured

    def _measure(self, places: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Bring the bounds of candidates up to date, as far as they stay above those outside the pool."""
        if not len(places):
            return
        squares = np.einsum("ij,ij->i", vectors, vectors).astype(np.int64)
        first = int(self._measured[places].min()) // STEP * STEP
        for start in range(first, self._count, STEP):
            stop = min(start + STEP, self._count)
            active = np.flatnonzero((self._measured[places] < stop) & (self._keys[places] >= max(0, self._outside)))
            if not len(active):
                continue
            shown = vectors if len(active) == len(places) else vectors[active]
            self._lower(self._keys, places[active], squares[active], shown, start, stop)
            self._measured[places[active]] = stop

    def _measure_pool(self) -> None:
        if self._pool_measured == self._count or not len(self._pool):
            return
        squares = np.einsum("ij,ij->i", self._pool_vectors, self._pool_vectors).astype(np.int64)
        everyone = np.arange(len(self._pool))
        self._lower(self._pool_keys, everyone, squares, self._pool_vectors, self._pool_measured, self._count)
        self._pool_measured = self._count
        leaving = self._pool_keys < max(0, self._outside)
        if np.count_nonzero(leaving) * 2 > len(leaving):
            self._put_back(leaving)
            self._pool, self._pool_keys = self._pool[~leaving], self._pool_keys[~leaving]
            self._pool_vectors = self._pool_vectors[~leaving]

    def _lower(
        self,
        keys: NDArray[np.int64],
        places: NDArray[np.int64],
        squares: NDArray[np.int64],
        vectors: NDArray[np.float32],
        start: int,
        stop: int,
    ) -> None:
        """Lower keys to the distance from the nearest of the chosen from `start` to `stop`, where that is less."""
        chosen = self._chosen[start:stop].astype(np.float32)
        lengths = np.einsum("ij,ij->i", chosen, chosen).astype(np.int32)
        nearest = (lengths - 2 * (vectors @ chosen.T).astype(np.int32)).min(axis=1)
        low = keys[places] & _LOW
        lowered = np.minimum(keys[places], ((squares + nearest) << 32) + low)
        keys[places] = np.where(keys[places] >= 0, lowered, _GONE)
