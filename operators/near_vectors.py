"""Pairs of vectors whose cosine is at least a threshold, all of them, without comparing all with all.

Unit vectors x and y have a cosine of at least t if and only if they are at most ε = √(2(1 − t)) apart. Vectors are
divided into the Voronoi cells of k-means centres, and compared within cells. A pair that a border divides is not
missed: x of cell i also joins cell j if it is at most ε/2 from the plane half-way between the centres,

    (‖x − c_j‖² − ‖x − c_i‖²) / (2 ‖c_i − c_j‖) ≤ ε / 2,

and of two vectors at most ε apart on both sides of that plane, one is. So every pair meets in the cell of one of them
(SemDeDup, Abbas et al. 2023, compares within cells only, and misses what borders divide). Which cells there are
changes how long it takes and nothing else: that is estimated on a sample for a few numbers of cells, and the best one
is taken. Vectors without any structure have every cell near every vector; then there is one cell.

**What it costs.** For n vectors of d numbers, k cells and c places that a vector stands in (1.4 to 3 for embeddings of
images at t = .95), finding cells takes 2 n k d operations and comparing within them (each pair once) n² c² d / k; least
in all with k = c √(n / 2) cells:

    2 √2 · c · d · n^1.5 operations.

Centres come on top with 320 k² d. What is read: 2 n d bytes of float16 in order to find cells, then c n rows of 2 d
bytes, each in a page of 4 KB where the file is larger than memory. For d = 512 and c = 2:

======  ======  ==========  =================  ======================  ================  =====================
n       cells   operations  at 200 GFLOP/s     G GPUs of 100 TFLOP/s   vectors, float16  read beyond memory
                            (2 cores)          (half precision)
======  ======  ==========  =================  ======================  ================  =====================
10⁶     1,400   2.9e12      15 s               0.03 s / G              1 GB
10⁷     4,500   9.2e13      8 min              1 s / G                 10 GB             80 GB
10⁸     14,000  2.9e15      4 h                29 s / G                100 GB            0.8 TB, 5 min / G at
                                                                                         3 GB/s for each
10⁹     45,000  9.2e16      5 days             15 min / G              1 TB              8 TB, 45 min / G
======  ======  ==========  =================  ======================  ================  =====================

So from 10⁸ on it is the disk that takes the time on GPUs. Hours on G of them, with b bytes a second from each one's
disk: ``(2 √2 c d n^1.5 / 10¹⁴ + 4096 c n / b) / G / 3600``. With two levels of cells, 4 n d √k would find them, and 10⁹
take a twentieth; that is not done, nor does one process use more than one GPU. Memory: 50 bytes for each image (50 GB
for 10⁹), and `memory_gb`, of which a quarter each holds the sample that centres are found from and how far these are
apart. That bounds k to 8,192 with 2 GB, and 45,000 take 32 GB; with fewer cells than are best it takes longer and gives
the same.

Products are taken in half precision where there is hardware for it, and what comes near the threshold is looked at
again in float64, so results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from operators.clustering.centres import train
from operators.greedy import NONE
from operators.vectors import Vectors

if TYPE_CHECKING:
    import torch

CELL, CELLS = 64, 2.0
"""Fewest vectors in a cell, on average and without copies; and most cells, in times of √n: more never pay."""
SAMPLE, ROUNDS = 32, 5
"""Vectors per cell that centres are found from, and in how many rounds."""
JUDGES = 16_384
"""Vectors, at most, by which numbers of cells are judged."""
TAKING = 4096
"""What it takes to read a vector, in comparisons of two."""
ROWS = 1024
"""Vectors that are compared with others at once."""
ROUNDING = 1e-6
"""Cosines of float16 vectors are not more exact than that."""
SEED = 0


class NearVectors:
    """`operators.greedy.Near`, by cosine.

    Args:
        vectors: The vectors of all images.
        rows: int64 (n,): the row of each image, in order of rank. All must be usable.
        threshold: Least cosine, above 0 and at most 1.
        memory_gb: About how much memory the search may take at once, besides 50 bytes for each image.
    """

    def __init__(self, vectors: Vectors, rows: NDArray[np.int64], threshold: float, memory_gb: float = 2.0) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1 but is {threshold}")
        self._vectors, self._rows, self._threshold = vectors, rows, threshold
        share = memory_gb * 2**30 / 4
        self._block = max(ROWS, int(share / (4 * vectors.dimensions)))
        self._most = int(min(share / (4 * SAMPLE * vectors.dimensions), (share / 4) ** 0.5))
        self._cells: list[NDArray[np.int64]] | None = None

    def first(
        self, asked: NDArray[np.bool_], among: NDArray[np.bool_], parts: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """See `Near`."""
        found = np.full(len(self._rows), NONE)
        if self._cells is None:
            self._cells = self._divide()
        for cell in self._cells:
            for asking, answering in _sides(asked[cell], among[cell], None if parts is None else parts[cell]):
                if asking.any() and answering.any():
                    some = asking | answering
                    self._first_in(cell[some], asking[some], answering[some], parts, found)
        return found

    def among(self, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Near`."""
        own = self._take(ranks)
        near = _torch(own) @ _torch(own).T
        sure = (near >= self._threshold + 1e-4).cpu().numpy()
        one, other = np.nonzero(((near >= self._threshold - 1e-4).cpu().numpy()) & ~sure)
        close = self._cosines(own, one, own, other) >= self._threshold - ROUNDING
        sure[one[close], other[close]] = True
        return sure

    def _take(self, ranks: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._vectors.take(self._rows[ranks])

    def _first_in(
        self,
        members: NDArray[np.int64],
        asked: NDArray[np.bool_],
        among: NDArray[np.bool_],
        parts: NDArray[np.int64] | None,
        found: NDArray[np.int64],
    ) -> None:
        """Lower `found` to the earliest in a cell.

        Args:
            members: int64 (m,): those of the cell that count, in order of rank.
            asked: bool (m,): for which of them.
            among: bool (m,): which of them it may be.
            parts: See `Near`.
            found: int64 (n,): for all images. Changed in place.
        """
        own = self._take(members)
        quick, margin = _quick(own)
        questions, answers = np.flatnonzero(asked), np.flatnonzero(among)
        for begin in range(0, len(questions), ROWS):
            places = questions[begin : begin + ROWS]
            low, size = 0, ROWS
            while len(places) and low < len(answers) and answers[low] < places[-1]:
                others = answers[low : low + size]
                score = quick[places] @ quick[others].T
                # Most have nothing near at all: that is cheap to see, and which of all are near is not.
                some = np.flatnonzero((score.amax(dim=1) >= self._threshold - margin).cpu().numpy())
                if len(some):
                    near = (score[some] >= self._threshold - margin).cpu().numpy()
                    asking = members[places[some]]
                    near &= members[others] < np.minimum(asking, found[asking])[:, None]
                    if parts is not None:
                        near &= parts[members[others]] != parts[asking, None]
                    self._settle(own, members, places[some], others, near, found)
                # The others of a cell come in order of rank: nothing later can be earlier than what is found.
                last = members[others[-1]]
                places = places[np.minimum(members[places], found[members[places]]) > last]
                low, size = low + size, min(size * 2, 8 * ROWS)

    def _settle(
        self,
        own: NDArray[np.float32],
        members: NDArray[np.int64],
        places: NDArray[np.int64],
        others: NDArray[np.int64],
        near: NDArray[np.bool_],
        found: NDArray[np.int64],
    ) -> None:
        """Of what may be near each, take the first that is."""
        unsettled = np.flatnonzero(near.any(axis=1))
        while len(unsettled):
            column = near[unsettled].argmax(axis=1)
            close = self._cosines(own, places[unsettled], own, others[column]) >= self._threshold - ROUNDING
            found[members[places[unsettled[close]]]] = members[others[column[close]]]
            near[unsettled, column] = False
            unsettled = unsettled[~close]
            unsettled = unsettled[near[unsettled].any(axis=1)]

    @staticmethod
    def _cosines(
        own: NDArray[np.float32], one: NDArray[np.int64], others: NDArray[np.float32], two: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        found = np.empty(len(one))
        for start in range(0, len(one), 4 * ROWS):
            part = slice(start, start + 4 * ROWS)
            found[part] = np.einsum("ij,ij->i", own[one[part]], others[two[part]], dtype=np.float64)
        return found

    def _divide(self) -> list[NDArray[np.int64]]:
        """Members of each cell by rank, in that order, with those of its neighbours that are near its borders."""
        count = len(self._rows)
        everything: NDArray[np.int64] = np.arange(count, dtype=np.int64)
        best: tuple[float, Borders | None] = (float(count) ** 2, None)
        wanted = min(count // CELL, int(CELLS * count**0.5), self._most)
        drawn = np.linspace(0, count - 1, min(count // 2, SAMPLE * wanted)).astype(np.int64)
        # Centres are nearer to what they were found from than to the rest, so how good they are the rest tells.
        rest = np.setdiff1d(np.linspace(0, count - 1, min(count, JUDGES)).astype(np.int64) + 1, np.append(drawn, count))
        sample, judges = self._take(drawn), self._take(rest)
        while wanted >= 2:
            sample = sample[:: max(1, len(sample) // (SAMPLE * wanted))]
            borders = Borders(sample, wanted, self._threshold)
            shares = np.bincount(borders.cells_of(judges)[1], minlength=wanted) / len(judges)
            sizes = count * shares
            cost = float(2.0 * count * wanted + (sizes**2).sum() + TAKING * sizes.sum())
            if cost < best[0]:
                best = (cost, borders)
            elif best[1] is not None:
                break
            wanted //= 4
        chosen = best[1]
        if chosen is None:
            return [everything]
        ranks, cells = [], []
        for start in range(0, count, self._block):
            part = everything[start : start + self._block]
            row, cell = chosen.cells_of(self._take(part))
            ranks.append(part[row])
            cells.append(cell.astype(np.int32))
        where = np.concatenate(cells)
        order = np.argsort(where, kind="stable")
        ends = np.cumsum(np.bincount(where))
        return np.split(np.concatenate(ranks)[order], ends[:-1])


class Borders:
    """k-means cells, and which vectors are near which border.

    Args:
        sample: float32 (n, d), unit vectors.
        count: How many cells.
        threshold: Least cosine of the pairs that must meet.
    """

    def __init__(self, sample: NDArray[np.float32], count: int, threshold: float) -> None:
        self._centres = _torch(train(sample, count, SEED, ROUNDS))
        self._half = (self._centres**2).sum(dim=1) / 2
        # Widened for float32: a vector that is copied once too often costs little, a missed pair is missed.
        self._width = float(np.sqrt(2 * (1 - threshold)) + 1e-3) / 2
        import torch

        self._apart = torch.cdist(self._centres, self._centres)

    def cells_of(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a row and a cell, by row: the row's own cell, and those whose border it is near."""
        rows, cells = [], []
        step = max(1, 2**25 // len(self._centres))
        for start in range(0, len(vectors), step):
            score = _torch(vectors[start : start + step]) @ self._centres.T - self._half
            most, home = score.max(dim=1)
            near = most[:, None] - score <= self._width * self._apart[home]
            row, cell = np.nonzero(near.cpu().numpy())
            rows.append(row + start)
            cells.append(cell)
        return np.concatenate(rows), np.concatenate(cells)


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


def _torch(vectors: NDArray[np.float32]) -> torch.Tensor:
    import torch

    from operators.models.device import pick_device

    return torch.from_numpy(vectors).to(pick_device())


def _quick(vectors: NDArray[np.float32]) -> tuple[Any, float]:
    """The vectors as the machine multiplies them fastest, and by how much a cosine may then be too low."""
    import torch

    tensor = _torch(vectors)
    if tensor.is_cuda:
        return tensor.half(), 2.0**-9
    if torch.cpu.get_capabilities().get("amx_bf16"):
        return tensor.bfloat16(), 2.0**-6
    return tensor, 1e-4
