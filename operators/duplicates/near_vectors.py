"""Pairs of vectors whose cosine is at least a threshold, all of them, without comparing all with all.

Unit vectors x and y have a cosine of at least t if and only if they are at most ε = √(2(1 − t)) apart. Vectors are
divided into the Voronoi cells of k-means centres, and compared within cells. A pair that a border divides is not
missed: x of cell i also joins cell j if it is at most ε/2 from the plane half-way between the centres,

    (‖x − c_j‖² − ‖x − c_i‖²) / (2 ‖c_i − c_j‖) ≤ ε / 2,

and of two vectors at most ε apart on both sides of that plane, one is. So every pair meets in the cell of one of them
(SemDeDup, Abbas et al. 2023, compares within cells only, and misses what borders divide). Which cells there are
changes how long it takes and nothing else: that is estimated on a sample for a few numbers of cells, and the best one
is taken. Cells are searched in as many threads as there are, each by one. Vectors without any structure have every
cell near every vector; then there is one cell.

**What it costs.** For n vectors of d numbers, k cells and c places that a vector stands in (1.4 to 3 for embeddings of
images at t = .95), finding cells takes 2 n k d operations and comparing within them (each pair once) n² c² d / k. On a
CPU an operation takes three times as long there as here, as every product with a centre is looked at again, so the
least is with about k = √n cells, and more than twice that are not tried:

    (2 + c²) · d · n^1.5 operations.

Centres come on top with 320 k² d. What fits into `memory_gb` is compared in one process. More is written to disk as
partitions in order of cells, 2 c n d bytes of float16, which tasks read twice: once to ask everything, and once to ask
those in chains for what was kept (`operators.duplicates.near_partitions`). For d = 512 and c = 2, on G workers in a
cluster:

======  ======  ==========  ===================  ======================  ===========  ==========  ===================
n       cells   operations  G × 2 cores of 100   G GPUs of 100 TFLOP/s   vectors,     partitions  disks of 3 GB/s
                            GFLOP/s each         (half precision)        float16
======  ======  ==========  ===================  ======================  ===========  ==========  ===================
10⁶     1,000   3.1e12      15 s / G             0.03 s / G              1 GB         2 GB        1 s + 2 s / G
10⁷     3,200   9.7e13      8 min / G            1 s / G                 10 GB        20 GB       7 s + 20 s / G
10⁸     10,000  3.1e15      4 h / G              31 s / G                100 GB       200 GB      1 min + 3 min / G
10⁹     32,000  9.7e16      6 days / G           16 min / G              1 TB         2 TB        11 min + 33 min / G
======  ======  ==========  ===================  ======================  ===========  ==========  ===================

So on GPUs it is the disk that takes the time, and what is not divided by G is that the vectors are gathered on one
machine's disk and handed out from there. Seconds, with b bytes a second from each disk:
``((2 + c²) d n^1.5 / 10¹⁴ + 6 c d n / b) / G + 4 d n / b``. With two levels of cells, 4 n d √k would find them, and 10⁹
take a twentieth of the operations; that is not done. Memory: 50 bytes for each image in one process (50 GB for 10⁹),
and `memory_gb` in each, of which a quarter each holds the sample that centres are found from and how far these are
apart. That bounds k to 8,192 with 2 GB, and 32,000 take 16 GB; with fewer cells than are best it takes longer and gives
the same.

Products are taken in half precision where there is hardware for it, and what comes near the threshold is looked at
again in float64, so results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.base import Tasks
from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.duplicates.in_threads import in_threads
from labelmill.operators.duplicates.near_partitions import Partitions
from labelmill.operators.duplicates.representatives import NONE
from labelmill.operators.duplicates.vectors_of_a_cell import earliest_in_cell, near_pairs
from labelmill.operators.duplicates.voronoi import SAMPLE, Borders, best_borders, by_cell

BLOCK = 16_384
"""Vectors whose cells are found together."""


class NearVectors:
    """`operators.duplicates.representatives.Near`, by cosine.

    Args:
        vectors: The vectors of all images.
        rows: int64 (n,): the row of each image, in order of rank. All must be usable.
        threshold: Least cosine, above 0 and at most 1.
        memory_gb: About how much memory the search may take at once, besides 50 bytes for each image; and so may each
            task.
        tasks: Where to compare vectors that do not fit into that memory; None for in this process.
    """

    def __init__(
        self,
        vectors: Vectors,
        rows: NDArray[np.int64],
        threshold: float,
        memory_gb: float = 2.0,
        tasks: Tasks | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1 but is {threshold}")
        self._vectors, self._rows, self._threshold, self._tasks = vectors, rows, threshold, tasks
        self._memory = memory_gb * 2**30
        share = self._memory / 4
        self._most = int(min(share / (4 * SAMPLE * vectors.dimensions), (share / 4) ** 0.5))
        self._cells: list[NDArray[np.int64]] | None = None
        self._partitions: Partitions | None = None

    def first(
        self, asked: NDArray[np.bool_], among: NDArray[np.bool_], parts: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """See `Near`."""
        found = np.full(len(self._rows), NONE)
        if self._cells is None and self._partitions is None:
            self._divide()
        if self._partitions is not None and not self._fits(int(np.count_nonzero(asked | among))):
            self._partitions.first(asked, among, parts, found)
            return found
        ranks = np.arange(len(found))

        def search(members: NDArray[np.int64]) -> NDArray[np.int64]:
            return earliest_in_cell(members, self._take, ranks, asked, among, parts, found, self._threshold)

        wanted = asked | among
        cells = [members[wanted[members]] for members in self._members()]
        threads = min(len(cells), self._threads(max(map(len, cells), default=0)))
        for members, earliest in zip(cells, in_threads(search, cells, threads), strict=True):
            found[members] = np.minimum(found[members], earliest)
        return found

    def among(self, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Near`."""
        return near_pairs(self._take(ranks), self._threshold)

    def _take(self, ranks: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._vectors.take(self._rows[ranks])

    def _threads(self, vectors: int) -> int:
        """How many threads may hold so many vectors each, as they are read, in float32 and in half precision."""
        return int(self._memory / (8 * max(1, vectors) * self._vectors.dimensions))

    def _fits(self, count: int) -> bool:
        return 4 * count * self._vectors.dimensions <= self._memory

    def _members(self) -> Iterable[NDArray[np.int64]]:
        if self._partitions is not None:
            return self._partitions.cells()
        assert self._cells is not None
        return self._cells

    def _divide(self) -> None:
        """Find the members of each cell by rank, in that order, with those of its neighbours near its borders."""
        count = len(self._rows)
        borders, sizes = best_borders(self._take, count, self._threshold, self._most)
        if borders is None:
            self._cells = [np.arange(count, dtype=np.int64)]
        elif self._tasks is not None and not self._fits(count):
            memory = self._memory / 4
            self._partitions = Partitions(
                self._vectors, self._rows, borders, sizes, self._threshold, memory, self._tasks
            )
        else:
            self._cells = self._divide_here(borders)

    def _divide_here(self, borders: Borders) -> list[NDArray[np.int64]]:
        def divide(start: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
            part = np.arange(start, min(start + BLOCK, len(self._rows)))
            row, cell = borders.cells_of(self._take(part))
            return part[row], cell.astype(np.int32)

        starts = range(0, len(self._rows), BLOCK)
        ranks, cells = zip(*in_threads(divide, starts, self._threads(BLOCK)), strict=True)
        joined = np.concatenate(ranks)
        return [joined[members] for members in by_cell(np.concatenate(cells))]
